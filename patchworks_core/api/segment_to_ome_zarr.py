"""The façade for OME-Zarr: segment an image into a label image with pyramid and calibration."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal, Unpack, overload

from upath import UPath

from patchworks_core.api.estimate import Estimate, estimate
from patchworks_core.api.options import DEFAULTS, TileOptions, planned_job
from patchworks_core.calls.options import spelled_out
from patchworks_core.calls.values import html_table
from patchworks_core.files.storage import Location, as_path
from patchworks_core.images.image_source import ImageSource
from patchworks_core.machine.pools import Compute
from patchworks_core.machine.progress import Progress, progress_of
from patchworks_core.ome_zarr.label_image import LabelImage
from patchworks_core.ome_zarr.metadata import OmeVersion, check_axes
from patchworks_core.plugins.segmentation import LabelFunction, Segmentation
from patchworks_core.seams.rules import MergeOptions
from patchworks_core.stage.plan import Plan


@dataclass(frozen=True, slots=True)
class SegmentedImage:
    """What `segment_to_ome_zarr` wrote."""

    path: UPath
    """The label image, ``<container>/labels/<name>``."""

    n_objects: int
    plan: Plan

    def _repr_html_(self) -> str:
        grid = self.plan.grid
        rows = [
            ("path", self.path),
            ("n_objects", self.n_objects),
            ("axes", grid.axes),
            ("shape", grid.shape),
            ("n_tiles", grid.n_tiles),
        ]
        return html_table(("", "SegmentedImage"), rows)


@overload
def segment_to_ome_zarr(
    image: ImageSource,
    fn: str | LabelFunction | Segmentation,
    container: Location,
    *,
    dry_run: Literal[True],
    name: str = "labels",
    version: OmeVersion = "0.5",
    progress: bool | Progress | None = False,
    options: MergeOptions | None = None,
    compute: Compute | None = None,
    **tiling: Unpack[TileOptions],
) -> Estimate: ...
@overload
def segment_to_ome_zarr(
    image: ImageSource,
    fn: str | LabelFunction | Segmentation,
    container: Location,
    *,
    dry_run: Literal[False] = False,
    name: str = "labels",
    version: OmeVersion = "0.5",
    progress: bool | Progress | None = False,
    options: MergeOptions | None = None,
    compute: Compute | None = None,
    **tiling: Unpack[TileOptions],
) -> SegmentedImage: ...
@spelled_out(TileOptions, {**DEFAULTS})
def segment_to_ome_zarr(
    image: ImageSource,
    fn: str | LabelFunction | Segmentation,
    container: Location,
    *,
    name: str = "labels",
    version: OmeVersion = "0.5",
    progress: bool | Progress | None = False,
    dry_run: bool = False,
    options: MergeOptions | None = None,
    compute: Compute | None = None,
    **tiling: Unpack[TileOptions],
) -> SegmentedImage | Estimate:
    """Segment an image tile by tile into an OME-Zarr label image with pyramid and calibration.

    Parameters
    ----------
    image, fn
        As in `tile_process`.
    container : path or URL
        OME-Zarr to write ``labels/<name>`` into; made if it is not there.
    name : str
        Of the label image.
    version : {"0.5", "0.4"}
        Of OME-NGFF.
    progress, dry_run
        As in `tile_process`.
    options : MergeOptions, optional
        In place of `merge`, `connectivity`, `min_iou`, `outline`, `min_size`,
        `max_size` and `sequential_labels`.
    compute : Compute, optional
        In place of `max_workers`, `workers`, `tile_timeout`, `worker_memory`, `use_gpu`, `gpus` and
        `client`.
    **tiling
        `patchworks_core.api.options.TileOptions`: what else `tile_process` takes, `tile_shape`,
        `overlap`, `channel` and so on.

    Returns
    -------
    SegmentedImage
        Or an `Estimate`, of a dry run.

    Raises
    ------
    PlanError
        If the image has fewer than two spatial axes, which OME-Zarr cannot hold, or a label image
        of that name is there that patchworks did not write, or that was changed since.
    TilesFailedError
        If tiles failed; all others are staged.
    """
    with progress_of(progress) as report:
        job, plan = planned_job(image, fn, tiling, report, merge_options=options, compute=compute)
        check_axes(job.image.axes)
        if dry_run:
            return estimate(job, plan)
        target = LabelImage(as_path(container), name, plan, version)
        n_objects = job.write_ome(plan, target, resume=tiling.get("resume", "auto"))
    return SegmentedImage(target.path, n_objects, plan)
