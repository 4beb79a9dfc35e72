"""Segment images larger than memory tile by tile, and get one label image back."""

from __future__ import annotations

from patchworks_core.api.merge_tile_labels import merge_tile_labels
from patchworks_core.api.per_tile import (
    PlannedTiles,
    merge_stage,
    plan_tiles,
    planned_tiles,
    stage_tile,
)
from patchworks_core.api.segment_to_ome_zarr import segment_to_ome_zarr
from patchworks_core.api.tile_process import tile_process
from patchworks_core.errors import (
    ImageError,
    PlanError,
    SegmentationError,
    StageError,
    TileOutputError,
    TilesFailedError,
)
from patchworks_core.images.dask_view import load_ome_zarr
from patchworks_core.images.image import Image, open_image
from patchworks_core.images.readers.sources import list_images
from patchworks_core.images.readers.zarr_node import fields_of_plate
from patchworks_core.labels.measurements import measure_objects
from patchworks_core.labels.postprocess import (
    expand_labels,
    fill_holes,
    filter_sizes,
    morphological_opening,
)
from patchworks_core.labels.relabel import relabel_sequential_array, relabel_sequential_zarr
from patchworks_core.labels.relations import Relations, label_relations
from patchworks_core.labels.seam_report import LabelSeams, seam_report
from patchworks_core.labels.write_labels import WrittenLabelImage, write_labels
from patchworks_core.machine.dask_clients import make_local_cluster
from patchworks_core.machine.model_sizing import auto_tile_shape_cellpose
from patchworks_core.machine.sizing import (
    auto_overlap,
    auto_tile_shape,
    safe_worker_count,
)
from patchworks_core.ome_zarr.convert import ConvertedImage, convert_image
from patchworks_core.operations.filtering import filter_image, global_threshold, image_statistics
from patchworks_core.operations.operations import Chain, Operation, chain, operation
from patchworks_core.operations.processed import process_lazily
from patchworks_core.pilot.trials import PilotReport, Trial, suggest_overlap
from patchworks_core.plugins.cellpose import cellpose_fn
from patchworks_core.plugins.segmentation import Segmentation, declare, segmentation_of
from patchworks_core.plugins.stardist import stardist_fn
from patchworks_core.statistics.empty_tiles import estimate_empty_tiles
from patchworks_core.tiles.grid import TileGrid, plan_grid

__all__ = [
    "Chain",
    "ConvertedImage",
    "Image",
    "ImageError",
    "LabelSeams",
    "Operation",
    "PilotReport",
    "PlanError",
    "PlannedTiles",
    "Relations",
    "Segmentation",
    "SegmentationError",
    "StageError",
    "TileGrid",
    "TileOutputError",
    "TilesFailedError",
    "Trial",
    "WrittenLabelImage",
    "auto_overlap",
    "auto_tile_shape",
    "auto_tile_shape_cellpose",
    "cellpose_fn",
    "chain",
    "convert_image",
    "declare",
    "estimate_empty_tiles",
    "expand_labels",
    "fields_of_plate",
    "fill_holes",
    "filter_image",
    "filter_sizes",
    "global_threshold",
    "image_statistics",
    "label_relations",
    "list_images",
    "load_ome_zarr",
    "make_local_cluster",
    "measure_objects",
    "merge_stage",
    "merge_tile_labels",
    "morphological_opening",
    "open_image",
    "operation",
    "plan_grid",
    "plan_tiles",
    "planned_tiles",
    "process_lazily",
    "relabel_sequential_array",
    "relabel_sequential_zarr",
    "safe_worker_count",
    "seam_report",
    "segment_to_ome_zarr",
    "segmentation_of",
    "stage_tile",
    "stardist_fn",
    "suggest_overlap",
    "tile_process",
    "write_labels",
]
