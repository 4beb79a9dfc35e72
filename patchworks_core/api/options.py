"""The options of a call that segments, and the job that they ask for, in one place."""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from typing import Any, Literal, TypedDict

from patchworks_core.api.arguments import TileShape, has_gpu, shape_of_tiles
from patchworks_core.api.job import Job, Resume, check_resume
from patchworks_core.files.storage import Location, as_path
from patchworks_core.images.calibration import LengthUnit, SizeLimits
from patchworks_core.images.image import DEFAULT_CHANNEL, DEFAULT_LEVEL, open_image
from patchworks_core.images.image_source import ImageSource
from patchworks_core.images.units import PixelSize
from patchworks_core.machine.devices import Gpus
from patchworks_core.machine.limits import Auto, WorkerLimits
from patchworks_core.machine.pools import Compute
from patchworks_core.machine.progress import Progress, say_aloud
from patchworks_core.machine.workers import WorkerKind
from patchworks_core.plugins.segmentation import LabelFunction, Segmentation, segmentation_of
from patchworks_core.seams.rules import MergeOptions, MergeRule, Outline
from patchworks_core.stage.plan import Plan

log = logging.getLogger("patchworks_core.api.tile_process")


class TileOptions(TypedDict, total=False):
    """How an image is opened, cut, segmented and merged; each means what `tile_process` says."""

    tile_shape: TileShape
    overlap: Sequence[int] | int | Literal["auto"]
    channel: int | str | None
    level: int
    axes: str | None
    pixel_size: PixelSize | None
    parameters: Mapping[str, Any] | None
    use_gpu: bool
    gpus: Gpus
    max_workers: int | None
    workers: WorkerKind
    tile_timeout: float | Auto | None
    worker_memory: int | str | None
    client: Any
    verbose: bool
    overwrite: bool
    sequential_labels: bool
    skip_empty: bool
    empty_threshold: float | None
    stage_dir: Location | None
    keep_stage: bool
    merge: MergeRule
    connectivity: int | None
    min_iou: float
    outline: Outline
    min_size: float
    max_size: float | None
    size_unit: LengthUnit
    resume: Resume


DEFAULTS = TileOptions(
    tile_shape=None,
    overlap=0,
    channel=DEFAULT_CHANNEL,
    level=DEFAULT_LEVEL,
    axes=None,
    pixel_size=None,
    parameters=None,
    use_gpu=False,
    gpus=None,
    max_workers=None,
    workers="threads",
    tile_timeout="auto",
    worker_memory="auto",
    client=None,
    verbose=False,
    overwrite=False,
    sequential_labels=True,
    skip_empty=False,
    empty_threshold=None,
    stage_dir=None,
    keep_stage=False,
    merge="auto",
    connectivity=None,
    min_iou=0.3,
    outline="auto",
    min_size=0,
    max_size=None,
    size_unit="pixels",
    resume="auto",
)


def planned_job(
    image: ImageSource,
    fn: str | LabelFunction | Segmentation,
    options: TileOptions,
    progress: Progress,
    *,
    is_temporary: bool = False,
    merge_options: MergeOptions | None = None,
    compute: Compute | None = None,
) -> tuple[Job, Plan]:
    """Return the job that a call asks for, and the plan of its tiles.

    Parameters
    ----------
    image, fn
        As in `tile_process`.
    options : TileOptions
        `DEFAULTS` hold for what is left out.
    progress : callable
    is_temporary : bool
        Whether nothing is to be left on disk.
    merge_options : MergeOptions, optional
        In place of those among the options.
    compute : Compute, optional
        In place of what the options say of workers.
    """
    values: TileOptions = {**DEFAULTS, **options}
    check_resume(values["resume"])
    opened = open_image(
        image,
        channel=values["channel"],
        level=values["level"],
        axes=values["axes"],
        pixel_size=values["pixel_size"],
    )
    stage_dir = values["stage_dir"]
    job = Job(
        opened,
        segmentation_of(fn, values["parameters"]),
        merge_options or _merge_options(values, SizeLimits.of(opened, *_sizes(values))),
        (compute or _compute(values)).with_memory(),
        progress,
        say_aloud if values["verbose"] else log.info,
        skip_empty=values["skip_empty"] or values["empty_threshold"] is not None,
        empty_threshold=values["empty_threshold"],
        stage_dir=None if stage_dir is None else as_path(stage_dir),
        keep_stage=values["keep_stage"],
        is_temporary=is_temporary,
        overwrite=values["overwrite"],
    )
    overlap = values["overlap"]
    return job.planned(shape_of_tiles(values["tile_shape"], opened, overlap, job.compute), overlap)


def _sizes(options: TileOptions) -> tuple[float, float | None, LengthUnit]:
    return options["min_size"], options["max_size"], options["size_unit"]


def _merge_options(options: TileOptions, limits: SizeLimits) -> MergeOptions:
    """Return how labels are to be merged."""
    return MergeOptions(
        options["merge"],
        options["connectivity"],
        options["min_iou"],
        limits.least,
        options["sequential_labels"],
        limits.most,
        options["outline"],
    )


def _compute(options: TileOptions) -> Compute:
    """Return what the tiles are to run on."""
    gpus = options["gpus"]
    use_gpu = has_gpu(options["use_gpu"], gpus)
    count, kind = options["max_workers"], options["workers"]
    limits = WorkerLimits(options["tile_timeout"], options["worker_memory"])
    return Compute(count, kind, use_gpu, gpus, options["client"], limits)
