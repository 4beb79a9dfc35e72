"""Segment images larger than memory tile by tile, and get one label image back."""

from __future__ import annotations

from patchworks_core.errors import (
    ImageError,
    PlanError,
    SegmentationError,
    StageError,
    TileOutputError,
    TilesFailedError,
)
from patchworks_core.grid import TileGrid, plan_grid
from patchworks_core.image import Image, open_image
from patchworks_core.merge import merge_tile_labels
from patchworks_core.process import segment_to_ome_zarr, tile_process
from patchworks_core.segmentation import Segmentation, declare, segmentation_of

__all__ = [
    "Image",
    "ImageError",
    "PlanError",
    "Segmentation",
    "SegmentationError",
    "StageError",
    "TileGrid",
    "TileOutputError",
    "TilesFailedError",
    "declare",
    "merge_tile_labels",
    "open_image",
    "plan_grid",
    "segment_to_ome_zarr",
    "segmentation_of",
    "tile_process",
]
