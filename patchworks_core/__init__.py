"""Segment images larger than memory tile by tile, and get one label image back."""

from __future__ import annotations

from patchworks_core.contingency import Relations
from patchworks_core.convert import ConvertedImage, convert_image
from patchworks_core.dask_clients import make_local_cluster
from patchworks_core.errors import (
    ImageError,
    PlanError,
    SegmentationError,
    StageError,
    TileOutputError,
    TilesFailedError,
)
from patchworks_core.filtering import filter_image, global_threshold, image_statistics
from patchworks_core.grid import TileGrid, plan_grid
from patchworks_core.image import Image, open_image
from patchworks_core.loading import load_ome_zarr
from patchworks_core.measurements import measure_objects
from patchworks_core.merge import merge_tile_labels
from patchworks_core.model_sizing import auto_tile_shape_cellpose
from patchworks_core.occupancy import estimate_empty_tiles
from patchworks_core.operations import Chain, Operation, chain, operation
from patchworks_core.plugins.cellpose import cellpose_fn
from patchworks_core.plugins.stardist import stardist_fn
from patchworks_core.postprocess import (
    expand_labels,
    fill_holes,
    filter_sizes,
    morphological_opening,
)
from patchworks_core.process import tile_process
from patchworks_core.processed import process_lazily
from patchworks_core.readers.zarr_node import fields_of_plate
from patchworks_core.relabel import relabel_sequential_array, relabel_sequential_zarr
from patchworks_core.relations import label_relations
from patchworks_core.segmentation import Segmentation, declare, segmentation_of
from patchworks_core.sizing import (
    auto_overlap,
    auto_tile_shape,
    safe_worker_count,
)
from patchworks_core.to_ome_zarr import segment_to_ome_zarr

__all__ = [
    "Chain",
    "ConvertedImage",
    "Image",
    "ImageError",
    "Operation",
    "PlanError",
    "Relations",
    "Segmentation",
    "SegmentationError",
    "StageError",
    "TileGrid",
    "TileOutputError",
    "TilesFailedError",
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
    "load_ome_zarr",
    "make_local_cluster",
    "measure_objects",
    "merge_tile_labels",
    "morphological_opening",
    "open_image",
    "operation",
    "plan_grid",
    "process_lazily",
    "relabel_sequential_array",
    "relabel_sequential_zarr",
    "safe_worker_count",
    "segment_to_ome_zarr",
    "segmentation_of",
    "stardist_fn",
    "tile_process",
]
