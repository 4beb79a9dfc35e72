"""The façade for people who run tiles themselves: plan, stage tile i, merge; each where they like.

1. `plan_tiles` cuts the image and writes down in a folder what a tile needs: the stage that
   `tile_process` would make, and beside it the function and the image (``job.pickle``).
2. `stage_tile` segments one tile, in any process and any order, at the same time as others.
3. `merge_stage` merges what was staged, as `tile_process` does, once no tile is missing.
"""

from __future__ import annotations

import logging
import os
import pickle
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, Literal, TypedDict, Unpack, overload

import cloudpickle
import numpy as np
import numpy.typing as npt
from upath import UPath

from patchworks_core.api.job import MAPPED, Job, check_resume
from patchworks_core.api.options import DEFAULTS, TileOptions, planned_job
from patchworks_core.api.tile_process import labels_of
from patchworks_core.calls.options import spelled_out
from patchworks_core.errors import (
    ImageError,
    PlanError,
    SegmentationError,
    StageError,
    TileOutputError,
    TilesFailedError,
)
from patchworks_core.files.storage import Location, as_path, claimed, is_local, write_bytes
from patchworks_core.images.calibration import LengthUnit, SizeLimits
from patchworks_core.images.image_source import ImageSource
from patchworks_core.machine.error_texts import message_of, own_line
from patchworks_core.machine.pools import Compute
from patchworks_core.machine.progress import Progress, no_progress, progress_of, say_aloud
from patchworks_core.machine.sending import NOT_PICKLED
from patchworks_core.plugins.segmentation import LabelFunction, Segmentation, segmentation_of
from patchworks_core.seams.rules import MergeOptions, MergeRule, Outline
from patchworks_core.stage.plan import Plan, tile_by_tile
from patchworks_core.stage.stage import Stage
from patchworks_core.stage.staging import Staging
from patchworks_core.tiles.grid import TileBlock, TileGrid
from patchworks_core.tiles.numbers import whole_number

if TYPE_CHECKING:
    import dask.array as da

log = logging.getLogger(__name__)

JOB = "job.pickle"
"""Beside the stage: what stages a tile, and how tiles are to be merged."""

PATIENCE_SECONDS = 3600.0
"""For another process that works on the same tile."""


@dataclass(frozen=True, slots=True)
class PlannedTiles:
    """What `plan_tiles` wrote, and other processes open by its folder."""

    stage: UPath
    """The folder, for `stage_tile` and `merge_stage`."""

    plan: Plan
    """What is cut, read and run; the same as `tile_process` makes."""

    @property
    def grid(self) -> TileGrid:
        """Where the tiles are."""
        return self.plan.grid

    @property
    def n_tiles(self) -> int:
        """Tiles in all; they are numbered from 0, in row-major order."""
        return self.plan.grid.n_blocks

    @property
    def keys(self) -> list[str]:
        """Names of the tiles, such as ``y001x002``, by number."""
        return [block.key for block in self.plan.grid.blocks()]

    def missing(self) -> list[int]:
        """Return the numbers of the tiles that are not staged."""
        keys = self.keys
        return [keys.index(key) for key in self.opened().missing_blocks()]

    def opened(self) -> Stage:
        """Open the stage."""
        return Stage.open(self.stage / "stage.zarr", self.plan)


@dataclass(frozen=True, slots=True)
class _TileJob:
    """What is written beside the stage."""

    job: Job
    staging: Staging


@spelled_out(TileOptions, {**DEFAULTS})
def plan_tiles(
    image: ImageSource,
    fn: str | LabelFunction | Segmentation,
    stage: Location,
    **options: Unpack[TileOptions],
) -> PlannedTiles:
    """Cut an image into tiles that any process can stage on its own.

    Parameters
    ----------
    image, fn
        As in `tile_process`. A function of a script is sent with what it refers to; one of a module
        is imported by each process, which must find that module.
    stage : path
        Folder to keep plan and tiles in, where all processes can write; made if it is not there.
        One that this call made earlier keeps its tiles, as `resume` says.
    **options
        As in `tile_process`: `tile_shape`, `overlap`, `channel`, `merge`, `min_size` and so on;
        `stage_dir` and `keep_stage` do not apply.

    Returns
    -------
    PlannedTiles
        Its ``n_tiles`` says how many there are.

    Raises
    ------
    ImageError, PlanError, SegmentationError
        If the input cannot be used as asked.
    StageError
        If the folder holds tiles of another plan.

    Examples
    --------
    >>> import tempfile
    >>> folder = tempfile.TemporaryDirectory()
    >>> pixels = np.repeat([[9, 9, 0, 0]], 4, axis=0)
    >>> planned = plan_tiles(pixels, "threshold", folder.name, tile_shape=2)
    >>> [stage_tile(folder.name, i) for i in range(planned.n_tiles)]
    [1, 0, 1, 0]
    >>> int(merge_stage(folder.name).max())
    1
    >>> folder.cleanup()
    """
    folder = as_path(stage)
    if is_local(folder):  # another process may be in another directory
        folder = as_path(os.path.abspath(str(folder)))
    resume = options.get("resume", "auto")
    check_resume(resume)
    _check_free(options)
    job, plan = planned_job(image, fn, {**options, "stage_dir": folder}, no_progress)
    plan = job.in_blocks_as_staged(tile_by_tile(plan), folder)
    opened = job.open_stage(plan, folder, resume=resume)
    staging = job.staging_of(opened, job.image.mapped_from(str(folder / MAPPED)))
    kept = replace(job, say=_silent, compute=_of_one_tile(job.compute), keep_stage=True)
    try:
        content = cloudpickle.dumps(_TileJob(kept, staging))
    except NOT_PICKLED as error:
        raise PlanError(
            f"{job.segmentation.name!r} cannot be sent to other processes ({error}); define it in "
            "a module, without what cannot be pickled"
        ) from error
    write_bytes(folder / JOB, content)
    return PlannedTiles(folder, opened.plan)


def _of_one_tile(compute: Compute) -> Compute:
    """Return what one tile runs on, of what was asked for all."""
    return compute.alone()


def _silent(text: str) -> None:
    """Say nothing."""


def _check_free(options: TileOptions) -> None:
    """Raise PlanError where an option is given that a stage of one's own settles."""
    for name in ("stage_dir", "keep_stage", "client"):
        if options.get(name):
            raise PlanError(f"plan_tiles keeps tiles in its own folder; leave {name}= out")


def planned_tiles(stage: Location | PlannedTiles) -> PlannedTiles:
    """Open what `plan_tiles` wrote, to ask how many tiles there are and which are missing.

    Raises
    ------
    StageError
        If there is none.
    """
    if isinstance(stage, PlannedTiles):
        return stage
    record = as_path(stage) / "stage.zarr" / "plan.json"
    if not record.exists():
        raise StageError(f"no tiles are planned at {stage}; call plan_tiles first")
    return PlannedTiles(as_path(stage), Plan.read(record))


def stage_tile(stage: Location | PlannedTiles, tile: int | str, *, again: bool = False) -> int:
    """Segment one tile of what was planned, and keep it in the stage.

    Parameters
    ----------
    stage : path or PlannedTiles
        As in `plan_tiles`. The folder is to be trusted: what is run is read from it.
    tile : int or str
        Number of the tile from 0, or its name such as ``y001x002``.
    again : bool
        Segment it anew where it is staged already.

    Returns
    -------
    int
        How many labels the tile has.

    Raises
    ------
    StageError
        If nothing is planned there.
    PlanError
        If there is no such tile.
    TileOutputError
        If the function returned what are no labels of the tile.
    TilesFailedError
        If the function raised an error, from which this comes.
    WorkerLostError
        With ``workers="processes"`` of `plan_tiles`: if the function crashed, or took longer or
        more memory than it may.

    Notes
    -----
    Any number of processes may call it at once. Of two with the same tile on one machine the second
    waits, and finds it done. That the image was changed meanwhile, `merge_stage` notices, and
    names the tiles: looking through a large one for every tile would take longer than many tiles.
    """
    planned = planned_tiles(stage)
    block = _block_of(planned, tile)
    with claimed(planned.stage / "claims" / block.key, doing="staging", patience=PATIENCE_SECONDS):
        if not again and block.key not in planned.opened().missing_blocks():
            return _n_labels(planned.opened(), block)
        loaded = job_at(planned)
        if loaded.job.compute.kind == "threads":
            with _naming(block, planned):
                return loaded.staging(block).n_labels
        grid, dtype = loaded.staging.stage.grid, loaded.staging.image.dtype
        with loaded.job.compute.open(grid, dtype) as pool:
            (staged,) = pool.map(loaded.staging, [block], step=f"tile {block.key}")
        return staged.n_labels


@contextmanager
def _naming(block: TileBlock, planned: PlannedTiles) -> Iterator[None]:
    """Say of what a function raises on which tile it did."""
    try:
        yield
    except (ImageError, PlanError, SegmentationError, StageError, TileOutputError, OSError):
        raise
    except Exception as error:
        text = f"{own_line(error)}: " if own_line(error) else ""
        text += f"{type(error).__name__}: {message_of(error)}"
        raise TilesFailedError(
            f"tile {block.key!r} at {planned.stage} failed: {text}\nmend the function and call "
            "stage_tile again for this tile; if that makes it another function, plan again",
            {block.key: text},
        ) from error


class MergeChanges(TypedDict, total=False):
    """What a merge may do otherwise than was planned; each means what `tile_process` says."""

    merge: MergeRule
    connectivity: int | None
    min_iou: float
    outline: Outline
    min_size: float
    max_size: float | None
    size_unit: LengthUnit
    sequential_labels: bool


@overload
def merge_stage(
    stage: Location | PlannedTiles,
    write_to: Location,
    *,
    compute: Literal[False] = False,
    output_component: str = "labels",
    overwrite: bool = False,
    max_workers: int | None = None,
    progress: bool | Progress = False,
    verbose: bool = False,
    **changes: Unpack[MergeChanges],
) -> da.Array: ...
@overload
def merge_stage(
    stage: Location | PlannedTiles,
    write_to: Location,
    *,
    compute: Literal[True],
    output_component: str = "labels",
    overwrite: bool = False,
    max_workers: int | None = None,
    progress: bool | Progress = False,
    verbose: bool = False,
    **changes: Unpack[MergeChanges],
) -> npt.NDArray[np.integer[Any]]: ...
@overload
def merge_stage(
    stage: Location | PlannedTiles,
    write_to: None = None,
    *,
    compute: bool = False,
    output_component: str = "labels",
    overwrite: bool = False,
    max_workers: int | None = None,
    progress: bool | Progress = False,
    verbose: bool = False,
    **changes: Unpack[MergeChanges],
) -> npt.NDArray[np.integer[Any]]: ...
def merge_stage(
    stage: Location | PlannedTiles,
    write_to: Location | None = None,
    *,
    compute: bool = False,
    output_component: str = "labels",
    overwrite: bool = False,
    max_workers: int | None = None,
    progress: bool | Progress = False,
    verbose: bool = False,
    **changes: Unpack[MergeChanges],
) -> Any:
    """Merge the tiles that were staged one by one; the stage stays, for another rule.

    Parameters
    ----------
    stage : path or PlannedTiles
        As in `stage_tile`.
    write_to, output_component, overwrite, compute, max_workers, progress, verbose
        As in `tile_process`.
    **changes
        `merge`, `connectivity`, `min_iou`, `outline`, `min_size`, `max_size`, `size_unit`
        and `sequential_labels` where they are to be others than was planned.

    Returns
    -------
    dask.array.Array or numpy.ndarray
        As `tile_process`; the same bytes as of a call that did all of it.

    Raises
    ------
    StageError
        If a tile is missing, naming the first ones, or the image changed since.
    """
    _check_changes(changes)
    planned = planned_tiles(stage)
    missing = planned.missing()
    if missing:
        keys = planned.keys
        first = ", ".join(f"{i} ({keys[i]})" for i in missing[:5])
        more = f" and {len(missing) - 5} more" if len(missing) > 5 else ""
        raise StageError(
            f"{len(missing)} of {planned.n_tiles} tiles are not staged at {planned.stage}: "
            f"{first}{more}; run stage_tile for each of them, then merge again"
        )
    job = job_at(planned).job
    with progress_of(progress) as report:
        job = replace(
            job,
            options=_changed(job, changes),
            compute=Compute(max_workers).with_memory(),
            progress=report,
            say=say_aloud if verbose else log.info,
            is_temporary=write_to is None,
            overwrite=overwrite,
            stage_dir=planned.stage,
        )
        plan = planned.plan
        return labels_of(job, plan, write_to, output_component, compute=compute, resume=True)


def _check_changes(changes: MergeChanges) -> None:
    """Raise PlanError where what is to be otherwise was settled before the merge, or is nothing."""
    allowed = list(MergeChanges.__annotations__)
    for name, value in changes.items():
        if name in allowed:
            continue
        may_be = ", ".join(f"{other}=" for other in allowed)
        if name in TileOptions.__annotations__:
            raise PlanError(
                f"{name}= is settled by plan_tiles and cannot be another in merge_stage, got "
                f"{value!r}; plan in another folder for that, or leave it out: what may be "
                f"otherwise is {may_be}"
            )
        raise TypeError(f"merge_stage() has no parameter {name!r}; it takes also {may_be}")


def _changed(job: Job, changes: MergeChanges) -> MergeOptions:
    """Return how to merge: as planned, but for what is to be otherwise."""
    names = {"merge": "rule", "sequential_labels": "sequential"}
    fields: dict[str, Any] = {names.get(name, name): value for name, value in changes.items()}
    unit = fields.pop("size_unit", "pixels")
    if {"min_size", "max_size"} & fields.keys():
        least = fields.get("min_size", 0)
        limits = SizeLimits.of(job.image, least, fields.get("max_size"), unit)
        fields |= {"min_size": limits.least, "max_size": limits.most}
    return replace(job.options, **fields)


def _block_of(planned: PlannedTiles, tile: int | str) -> TileBlock:
    """Return a tile by number or name."""
    keys = planned.keys
    if isinstance(tile, str) and not tile.isdigit():
        if tile not in keys:
            raise PlanError(f"no tile {tile!r}; they are {keys[0]!r} to {keys[-1]!r}")
        return planned.grid.block_of_key(tile)
    number = whole_number("tile", int(tile) if isinstance(tile, str) else tile, most=len(keys) - 1)
    return planned.grid.block_of_key(keys[number])


def _n_labels(stage: Stage, block: TileBlock) -> int:
    """Return how many labels the staged tiles of a block have."""
    indices = tuple(np.array([tile.index for tile in block.tiles]).T)
    return int(np.maximum(stage.counts()[indices], 0).sum())


def job_at(planned: PlannedTiles) -> _TileJob:
    """Load what stages a tile.

    Raises
    ------
    StageError
        If it is not there, cannot be loaded, or runs another function now.
    """
    path = planned.stage / JOB
    try:
        loaded = pickle.loads(path.read_bytes())
    except (OSError, ImportError, AttributeError, pickle.UnpicklingError, EOFError) as error:
        raise StageError(
            f"what runs on the tiles cannot be loaded from {path} ({type(error).__name__}: "
            f"{error}); let this process import the modules that plan_tiles saw, or plan again"
        ) from error
    job: _TileJob = loaded
    _check_function(job.job.segmentation, planned)
    return job


def _check_function(segmentation: Segmentation, planned: PlannedTiles) -> None:
    """Raise StageError where the function that is imported here is not the one of the plan."""
    recorded = planned.plan.segmentation
    module = str(recorded["function"]).partition(":")[0]
    if module == "__main__":  # it came with the job, as it was
        return
    try:
        now = segmentation_of(str(recorded["function"]), segmentation.parameters).to_dict()
    except SegmentationError:  # no name of a module leads to it, so it came with the job too
        return
    if now["version"] != recorded["version"]:
        raise StageError(
            f"{recorded['function']!r} is not what was planned at {planned.stage}: its version is "
            f"{now['version']!r} and was {recorded['version']!r}; restore it, or plan again in "
            "another folder"
        )
