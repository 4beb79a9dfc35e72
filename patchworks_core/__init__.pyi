"""What is public, and where it is defined."""

from .api.estimate import Estimate as Estimate
from .api.mend_stage import mend_stage as mend_stage
from .api.merge_tile_labels import merge_tile_labels as merge_tile_labels
from .api.per_tile import (
    PlannedTiles as PlannedTiles,
)
from .api.per_tile import (
    merge_stage as merge_stage,
)
from .api.per_tile import (
    plan_tiles as plan_tiles,
)
from .api.per_tile import (
    planned_tiles as planned_tiles,
)
from .api.per_tile import (
    stage_tile as stage_tile,
)
from .api.segment_to_ome_zarr import (
    SegmentedImage as SegmentedImage,
)
from .api.segment_to_ome_zarr import (
    segment_to_ome_zarr as segment_to_ome_zarr,
)
from .api.tile_process import tile_process as tile_process
from .errors import (
    ClusterError as ClusterError,
)
from .errors import (
    ImageError as ImageError,
)
from .errors import (
    PlanError as PlanError,
)
from .errors import (
    SegmentationError as SegmentationError,
)
from .errors import (
    StageError as StageError,
)
from .errors import (
    TileOutputError as TileOutputError,
)
from .errors import (
    TilesFailedError as TilesFailedError,
)
from .errors import (
    TileTimeoutError as TileTimeoutError,
)
from .errors import (
    WorkerLostError as WorkerLostError,
)
from .errors import (
    WorkerMemoryError as WorkerMemoryError,
)
from .images.dask_view import load_ome_zarr as load_ome_zarr
from .images.image import (
    Image as Image,
)
from .images.image import (
    open_image as open_image,
)
from .images.readers.sources import list_images as list_images
from .images.readers.zarr_node import fields_of_plate as fields_of_plate
from .labels.measurements import measure_objects as measure_objects
from .labels.postprocess import (
    expand_labels as expand_labels,
)
from .labels.postprocess import (
    fill_holes as fill_holes,
)
from .labels.postprocess import (
    filter_sizes as filter_sizes,
)
from .labels.postprocess import (
    morphological_opening as morphological_opening,
)
from .labels.relabel import (
    relabel_sequential_array as relabel_sequential_array,
)
from .labels.relabel import (
    relabel_sequential_zarr as relabel_sequential_zarr,
)
from .labels.relations import (
    Relations as Relations,
)
from .labels.relations import (
    label_relations as label_relations,
)
from .labels.seam_report import (
    LabelSeams as LabelSeams,
)
from .labels.seam_report import (
    seam_report as seam_report,
)
from .labels.write_labels import (
    WrittenLabelImage as WrittenLabelImage,
)
from .labels.write_labels import (
    write_labels as write_labels,
)
from .machine.dask_clients import make_local_cluster as make_local_cluster
from .machine.model_sizing import auto_tile_shape_cellpose as auto_tile_shape_cellpose
from .machine.sizing import (
    auto_overlap as auto_overlap,
)
from .machine.sizing import (
    auto_tile_shape as auto_tile_shape,
)
from .machine.sizing import (
    safe_worker_count as safe_worker_count,
)
from .merge.mending import Mended as Mended
from .ome_zarr.convert import (
    ConvertedImage as ConvertedImage,
)
from .ome_zarr.convert import (
    convert_image as convert_image,
)
from .operations.filtering import (
    filter_image as filter_image,
)
from .operations.filtering import (
    global_threshold as global_threshold,
)
from .operations.filtering import (
    image_statistics as image_statistics,
)
from .operations.operations import (
    Chain as Chain,
)
from .operations.operations import (
    Operation as Operation,
)
from .operations.operations import (
    chain as chain,
)
from .operations.operations import (
    operation as operation,
)
from .operations.processed import process_lazily as process_lazily
from .pilot.trials import (
    PilotReport as PilotReport,
)
from .pilot.trials import (
    Trial as Trial,
)
from .pilot.trials import (
    suggest_overlap as suggest_overlap,
)
from .plugins.cellpose import cellpose_fn as cellpose_fn
from .plugins.segmentation import (
    Segmentation as Segmentation,
)
from .plugins.segmentation import (
    declare as declare,
)
from .plugins.segmentation import (
    segmentation_of as segmentation_of,
)
from .plugins.stardist import stardist_fn as stardist_fn
from .statistics.empty_tiles import estimate_empty_tiles as estimate_empty_tiles
from .tiles.grid import (
    TileGrid as TileGrid,
)
from .tiles.grid import (
    plan_grid as plan_grid,
)

__version__: str
