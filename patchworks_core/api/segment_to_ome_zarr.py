"""The façade for OME-Zarr: segment an image into a label image with pyramid and calibration."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

from upath import UPath

from patchworks_core.api.arguments import TileShape, shape_of_tiles
from patchworks_core.api.job import Job, Resume, check_resume
from patchworks_core.files.storage import Location, as_path
from patchworks_core.images.image import Image
from patchworks_core.machine.pools import Compute
from patchworks_core.machine.progress import Progress, no_progress
from patchworks_core.ome_zarr.label_image import LabelImage
from patchworks_core.ome_zarr.metadata import OmeVersion, check_axes
from patchworks_core.plugins.segmentation import Segmentation
from patchworks_core.seams.rules import MergeOptions
from patchworks_core.stage.plan import Plan


@dataclass(frozen=True, slots=True)
class SegmentedImage:
    """What `segment_to_ome_zarr` wrote."""

    path: UPath
    """The label image, ``<container>/labels/<name>``."""

    n_objects: int
    plan: Plan


def segment_to_ome_zarr(
    image: Image,
    segmentation: Segmentation,
    container: Location,
    *,
    name: str = "labels",
    tile_shape: TileShape,
    overlap: Sequence[int] | int | Literal["auto"] = 0,
    options: MergeOptions | None = None,
    compute: Compute | None = None,
    version: OmeVersion = "0.5",
    progress: Progress | None = None,
    skip_empty: bool = False,
    empty_threshold: float | None = None,
    resume: Resume = "auto",
    overwrite: bool = False,
) -> SegmentedImage:
    """Segment an image tile by tile into an OME-Zarr label image with pyramid and calibration.

    Parameters
    ----------
    image : Image
    segmentation : Segmentation
    container : path or URL
        OME-Zarr to write ``labels/<name>`` into; made if it is not there.
    name : str
        Of the label image.
    tile_shape, overlap, skip_empty, empty_threshold, resume, overwrite
        As in `tile_process`.
    options : MergeOptions, optional
    compute : Compute, optional
        What the tiles run on; by default as many threads as cores and memory allow.
    progress : callable, optional
        ``progress(step, done, total)``.
    version : {"0.5", "0.4"}
        Of OME-NGFF.

    Returns
    -------
    SegmentedImage

    Raises
    ------
    PlanError
        If the image has fewer than two spatial axes, which OME-Zarr cannot hold, or a label image
        of that name is there that patchworks did not write, or that was changed since.
    TilesFailedError
        If tiles failed; all others are staged.
    """
    check_resume(resume)
    check_axes(image.axes)
    job = Job(
        image,
        segmentation,
        options or MergeOptions(),
        (compute or Compute()).with_memory(),
        progress or no_progress,
        skip_empty=skip_empty or empty_threshold is not None,
        empty_threshold=empty_threshold,
        overwrite=overwrite,
    )
    tiles = shape_of_tiles(tile_shape, image, overlap, job.compute)
    job, plan = job.planned(tiles, overlap)
    target = LabelImage(as_path(container), name, plan, version)
    n_objects = job.write_ome(plan, target, resume=resume)
    return SegmentedImage(target.path, n_objects, plan)
