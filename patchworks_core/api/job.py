"""The job: the six steps of one image in a row, with what they need in hand."""

from __future__ import annotations

import logging
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from dataclasses import dataclass, replace
from functools import partial
from typing import Any, Literal

from upath import UPath

from patchworks_core.api.provenance import provenance_of
from patchworks_core.api.staging_log import Say, StagingLog, check_staged, say_beforehand
from patchworks_core.errors import PlanError, StageError
from patchworks_core.files.label_arrays import (
    create_label_array,
    open_label_group,
    refuse_file_name,
    refuse_ome_image,
)
from patchworks_core.files.replacing import (
    NEW,
    check_reads,
    component_path,
    replacing,
    work_folder,
)
from patchworks_core.files.storage import claimed, discard, is_local, remove
from patchworks_core.images.image import Image
from patchworks_core.machine.budget import granted_cores
from patchworks_core.machine.interrupts import INTERRUPTIONS, ended_by_sigterm
from patchworks_core.machine.pools import Compute, Pool
from patchworks_core.machine.progress import Progress, no_progress
from patchworks_core.merge.apply import apply_lut, create_apply_records
from patchworks_core.merge.outlines import outlines_of
from patchworks_core.merge.pairing import pair_tiles
from patchworks_core.merge.steps import look_up
from patchworks_core.ome_zarr.label_image import LabelImage, write_merged
from patchworks_core.pilot.trials import PilotReport, recommend_overlap
from patchworks_core.plugins.segmentation import LabelFunction, Segmentation
from patchworks_core.seams.lookup import LookupTable
from patchworks_core.seams.rules import MergeOptions
from patchworks_core.seams.views import Outlines
from patchworks_core.stage.plan import (
    CHANGING,
    Plan,
    as_recorded,
    in_blocks_of,
    make_plan,
    tile_by_tile,
)
from patchworks_core.stage.stage import Stage
from patchworks_core.stage.staging import Staging, other_channels_of, stage_all
from patchworks_core.stage.third_views import views_content
from patchworks_core.stage.unchanged import check_image, check_tiles
from patchworks_core.statistics.empty_tiles import EmptyTiles, find_empty_tiles
from patchworks_core.statistics.measuring import measure
from patchworks_core.statistics.statistics import ImageStatistics
from patchworks_core.tiles.grid import TileGrid, plan_grid

Resume = bool | Literal["auto"]
"""Whether tiles of an earlier call are taken up: ``auto`` where it is known that they are the same
function's."""

log = logging.getLogger("patchworks_core")

MAPPED = "image.npy"
"""Where worker processes find an image that was in memory."""


def check_resume(resume: object) -> None:
    """Raise PlanError where `resume` is none of its values."""
    if not (resume is True or resume is False or resume == "auto"):
        raise PlanError(f"resume is 'auto', True or False, got {resume!r}")


@dataclass(frozen=True, slots=True)
class _Merging:
    """What staged tiles are merged by."""

    stage: Stage
    lut: LookupTable
    pool: Pool
    outlines: Outlines | None


@dataclass(frozen=True, slots=True)
class Job:
    """The steps of one image, with what they need in hand."""

    image: Image
    segmentation: Segmentation
    options: MergeOptions
    compute: Compute
    progress: Progress = no_progress
    say: Say = log.info

    skip_empty: bool = False
    """Leave tiles without signal unsegmented."""

    empty_threshold: float | None = None
    """Brightest value that is background; None asks the image."""

    stage_dir: UPath | None = None
    """Where the stage is kept; None is beside the labels."""

    keep_stage: bool = False
    """Leave the stage there when the work is complete."""

    is_temporary: bool = False

    leaves_gaps: bool = False
    """The function labels nothing where all is 0 (`Staging.leaves_gaps`)."""

    output_chunks: tuple[int, ...] | None = None
    """Of an array of labels, pixels per axis; None chooses."""

    overwrite: bool = False
    """Replace what is not ours to replace."""

    pilot: PilotReport | None = None
    empty: EmptyTiles | None = None

    def planned(self, tile_shape: Sequence[int] | int, overlap: Any) -> tuple[Job, Plan]:
        """Plan the tiles; return the job with what a pilot and the image settled.

        Parameters
        ----------
        tile_shape, overlap
            As in `patchworks_core.tiles.grid.plan_grid`; an overlap in words asks a pilot.
        """
        other_channels_of(self.segmentation, self.image)
        job, halo = self, overlap
        if isinstance(overlap, str):
            report, best = recommend_overlap(
                self.image,
                self.segmentation,
                overlap,
                tile_shape=tile_shape,
                say=self.say,
                options=self.options,
            )
            options = replace(self.options, rule=best.rule)
            job, halo = replace(self, options=options, pilot=report), best.overlap
        threshold = None
        if self.skip_empty:
            grid = plan_grid(self.image.axes, self.image.shape, tile_shape=tile_shape, overlap=halo)
            empty = find_empty_tiles(
                self.image, grid, threshold=self.empty_threshold, compute=self._readers()
            )
            job, threshold = replace(job, empty=empty), empty.threshold
            self.say(str(empty))
        plan = make_plan(
            self.image,
            self.segmentation,
            tile_shape=tile_shape,
            overlap=halo,
            empty_threshold=threshold,
        )
        return job, plan

    def resolved(self, plan: Plan) -> MergeOptions:
        """Return the merge options with everything decided."""
        return self.options.resolve(
            plan.grid,
            declared=self.segmentation.merge,
            connectivity=self.segmentation.connectivity,
            outline=self.segmentation.outline,
        )

    def write_array(self, plan: Plan, group: UPath, component: str, *, resume: Resume) -> None:
        """Write the labels as one array of a Zarr group."""
        target = component_path(group, component)
        refuse_file_name(group)
        refuse_ome_image(group, component)
        work = work_folder(target)
        plan = self.in_blocks_as_staged(plan, work)
        reads = (self.image.source, self.image.pixels)
        what, another = "an array of labels", "output_component or write_to"
        # The array first: its stage lies beside it, and another stage_dir would not mend that.
        check_reads(target, reads, what=what, another=another)
        check_reads(self._stage_path(work), reads, what="a stage", another="stage_dir")
        with (
            self._interruptible(plan, work),
            self._alone_in_stage_dir(),
            replacing(
                target,
                reads=reads,
                what=what,
                another=another,
                overwrite=self.overwrite,
                made_from=self._recipe(plan, work) | self._layout,
                resume=self._may_be_done(resume),
                keeps=True,
                clear=self._clear,
            ) as working,
        ):
            zarr_format = open_label_group(group)
            if working.is_done:
                self.say(f"{target} is complete and is what would be made")
                return
            with self._merged(plan, work, resume=resume) as merging:
                create_label_array(
                    working.new,
                    plan.grid,
                    merging.lut.dtype,
                    zarr_format=zarr_format,
                    chunks=self.output_chunks,
                )
                create_apply_records(work / "applied", plan.grid)
                blocks = apply_lut(
                    merging.stage,
                    merging.lut,
                    labels=working.new,
                    records=work / "applied",
                    pool=merging.pool,
                    outlines=merging.outlines,
                )
                for n, _ in enumerate(blocks, start=1):
                    self.progress("apply", n, plan.grid.n_blocks)

    def write_ome(self, plan: Plan, target: LabelImage, *, resume: Resume) -> int:
        """Write the labels as an OME-Zarr label image; return how many objects there are."""
        plan = self.in_blocks_as_staged(plan, work_folder(target.path))
        target = replace(target, plan=plan)
        options = self.resolved(plan)
        pilot = None if self.pilot is None else self.pilot.to_dict()
        work = work_folder(target.path)
        with (
            self._interruptible(plan, work),
            self._alone_in_stage_dir(),
            target.writing(
                reads=(self.image.source, self.image.pixels),
                overwrite=self.overwrite,
                made_from=self._recipe(plan, work),
                resume=self._may_be_done(resume),
                clear=self._clear,
            ) as working,
        ):
            if working.is_done:
                self.say(f"{target.path} is complete and is what would be made")
                return target.n_objects()
            with self._merged(plan, working.folder, resume=resume) as merging:
                done: list[str] = []

                def count(key: str) -> None:
                    done.append(key)
                    self.progress("apply", len(done), plan.grid.n_blocks)

                write_merged(
                    merging.stage,
                    merging.lut,
                    target,
                    working,
                    provenance=provenance_of(plan, options, merging.lut, pilot=pilot),
                    pool=merging.pool,
                    on_block=count,
                    outlines=merging.outlines,
                )
        return merging.lut.n_objects

    @contextmanager
    def _merged(self, plan: Plan, work: UPath, *, resume: Resume) -> Iterator[_Merging]:
        """Stage what is missing, pair, and look up; the workers stay for what comes then."""
        options = self.resolved(plan)
        say_beforehand(self.image, plan.grid, options, self.say)
        stage = self.open_stage(plan, work, resume=resume)
        stage.clean()
        image = self._reachable(stage)
        missing = [plan.grid.block_of_key(key) for key in stage.missing_blocks()]
        staging = self.staging_of(stage, image)
        if len(missing) < plan.grid.n_blocks:  # what an earlier call left
            with self._readers().open(plan.grid, image.dtype) as readers:
                check_tiles(staging, pool=readers)
        listener = StagingLog(self.progress, self.say)
        with stage_all(staging, missing, self.compute, listener) as (pool, count):
            way_out = self._way_out(work, n_staged=plan.grid.n_blocks - count.n_failed)
            check_staged(count, plan.grid, way_out=way_out)
            check_image(staging, pool=pool)
            content = stage.content()
            with pair_tiles(stage, pool=pool) as edges:
                self.progress("pair", 1, 1)
                outlines = outlines_of(stage, edges, options)
                lut = look_up(stage, edges, options, outlines=outlines, pool=pool)
            self.say(
                f"{lut.n_staged} labels in {plan.grid.n_tiles} tiles are {lut.n_objects} objects "
                f"by rule {options.rule!r}"
            )
            yield _Merging(stage, lut, pool, outlines)
            if stage.content() != content:
                raise StageError(
                    f"tiles at {stage.path} were staged again by another call while they were "
                    "merged; nothing was published: call again"
                )

    @contextmanager
    def _interruptible(self, plan: Plan, work: UPath) -> Iterator[None]:
        """Let Ctrl-C and SIGTERM end the work, and say what is kept of it."""
        with ended_by_sigterm():
            try:
                yield
            except INTERRUPTIONS:
                log.warning("interrupted: %s", self._kept(plan, work))
                raise

    def _alone_in_stage_dir(self) -> AbstractContextManager[None]:
        """Keep other calls, whose targets are others, out of the stage's folder where it has one.

        A stage beside the labels is within what one call at a time writes to.
        """
        if self.stage_dir is None:
            return nullcontext()
        return claimed(self.stage_dir / "stage.zarr", doing="staging in")

    def _kept(self, plan: Plan, work: UPath) -> str:
        """Say what there is for the next call to take up."""
        if self.is_temporary and self.stage_dir is None:
            return "nothing is kept; write_to= keeps the tiles that are done"
        try:
            stage = Stage.open(self._stage_path(work), plan)
        except (OSError, PlanError, StageError):
            return "no tile is staged yet"
        n_staged = plan.grid.n_blocks - len(stage.missing_blocks())
        return (
            f"{n_staged} of {plan.grid.n_blocks} tile blocks are staged at {stage.path} and kept; "
            "call again, and they are taken up where the function is unchanged, or with resume=True"
        )

    def staging_of(self, stage: Stage, image: Image) -> Staging:
        """Return what stages a tile, given the image as it can be read where that is done."""
        return Staging(
            image,
            stage,
            self.bound(stage.plan),
            self.empty.empty_tiles if self.empty else frozenset(),
            other_channels_of(self.segmentation, image),
            leaves_gaps=self.leaves_gaps,
        )

    def open_stage(self, plan: Plan, work: UPath, *, resume: Resume) -> Stage:
        """Open the stage that an earlier call left, or start one."""
        staged = self._stage_path(work)
        record = staged / "plan.json"
        if not record.exists():
            return Stage.create(staged, plan)
        try:
            recorded = Plan.read(record)
        except PlanError:
            doubts = self.segmentation.unknown or plan.versions.get(CHANGING)
            if resume is True or (resume and not doubts and Stage.is_of(staged, plan)):
                return self._taken_up(Stage.open(staged, plan))
            if self.stage_dir is not None:
                raise
            log.warning("the stage at %s cannot be read, and is begun anew", staged)
            return Stage.create(staged, plan)
        plan = as_recorded(plan, self.segmentation, recorded, partial(self._statistics, plan))
        if resume is True:
            return self._taken_up(Stage.open(staged, plan))
        if plan.fingerprint == recorded.fingerprint:
            if resume is False:
                return Stage.create(staged, plan)
            self._check_vouched(staged, plan, recorded)
            return self._taken_up(Stage.open(staged, plan))
        if self.stage_dir is not None:
            raise StageError(
                f"stage_dir={str(self.stage_dir)!r} holds the stage of another plan "
                f"({plan.difference(recorded)}); name another folder, or delete it"
            )
        log.warning(
            "the stage at %s is of another plan (%s) and is begun anew",
            staged,
            plan.difference(recorded),
        )
        return Stage.create(staged, plan)

    def in_blocks_as_staged(self, plan: Plan, work: UPath) -> Plan:
        """Return the plan with its tiles in the blocks in which an earlier call staged them."""
        try:
            return in_blocks_of(plan, Plan.read(self._stage_path(work) / "plan.json"))
        except (OSError, PlanError):  # none, or one that is spoken of when it is opened
            return plan

    def _taken_up(self, stage: Stage) -> Stage:
        n_blocks, n_missing = stage.grid.n_blocks, len(stage.missing_blocks())
        if n_missing < n_blocks:
            log.warning(
                "%d of %d tile blocks are staged at %s by an earlier call and are taken up; "
                "resume=False of tile_process, or removing that folder, begins anew",
                n_blocks - n_missing,
                n_blocks,
                stage.path,
            )
        return stage

    def _check_vouched(self, staged: UPath, plan: Plan, recorded: Plan) -> None:
        """Raise StageError where tiles of an earlier call may be of another function."""
        doubts = list(self.segmentation.unknown)
        if plan.versions.get(CHANGING) != recorded.versions.get(CHANGING):
            doubts.append(
                f"what {self.segmentation.name!r} reads and may change, which is another now"
            )
        n_missing = len(Stage.open(staged, plan).missing_blocks())
        if doubts and n_missing < plan.grid.n_blocks:
            raise StageError(
                f"{plan.grid.n_blocks - n_missing} of {plan.grid.n_blocks} tile blocks are staged "
                f"at {staged} by an earlier call, and nothing vouches that the function is the "
                f"same: not known is {'; '.join(doubts)}. Nothing was removed; pass resume=True to "
                "take them up, or resume=False to begin anew"
            )

    def _may_be_done(self, resume: Resume) -> bool:
        """Tell whether labels that an earlier call made from the same are those of this call."""
        return resume is True or (resume == "auto" and not self.segmentation.unknown)

    def _recipe(self, plan: Plan, work: UPath) -> dict[str, Any]:
        """Return what labels are made from, JSON-ready."""
        # The same labels in whatever blocks, and 0.1.0 made blocks of one tile.
        recipe = {"plan": tile_by_tile(plan).fingerprint, "merge": self.resolved(plan).to_dict()}
        changing = plan.versions.get(CHANGING)
        return recipe | ({CHANGING: changing} if changing else {}) | self._mended(plan, work)

    def _mended(self, plan: Plan, work: UPath) -> dict[str, Any]:
        """Return what the stage that an earlier call left has beside its tiles, JSON-ready."""
        try:
            return views_content(Stage.open(self._stage_path(work), plan))
        except (OSError, PlanError, StageError):  # none, or one that is spoken of when it is opened
            return {}

    @property
    def _layout(self) -> dict[str, Any]:
        """Return how an array of labels is cut, where that was asked for."""
        return {} if self.output_chunks is None else {"chunks": list(self.output_chunks)}

    def _stage_path(self, work: UPath) -> UPath:
        return (self.stage_dir or work) / "stage.zarr"

    def _clear(self, work: UPath) -> None:
        """Remove what the work left, but for a stage that is to be kept."""
        remove(self._stage_path(work) / MAPPED)
        if self.stage_dir is not None and not self.keep_stage:
            discard(self.stage_dir / "stage.zarr")
        if self.keep_stage and self.stage_dir is None:
            for name in (NEW, "merged", "applied"):
                discard(work / name)
            return
        discard(work)

    def _reachable(self, stage: Stage) -> Image:
        """Return the image as worker processes are given it: not pixel by pixel.

        They write into the stage, so what lies there can be read by them, on a cluster as well.
        """
        if self.compute.is_in_process or not is_local(stage.path):
            return self.image
        return self.image.mapped_from(str(stage.path / MAPPED))

    def _way_out(self, work: UPath, *, n_staged: int) -> str:
        """Say what to do when tiles failed."""
        if self.is_temporary and self.stage_dir is None:
            return "mend the function and call again; write_to= keeps the tiles that went well"
        if not n_staged:
            return "none is staged; mend what failed and call again"
        return (
            f"the others are staged at {self.stage_dir or work}; mend what failed and call again: "
            "they are taken up where the function is unchanged, or with resume=True"
        )

    def bound(self, plan: Plan) -> LabelFunction:
        """Return the function of a tile, with what it asks for of the whole image."""
        others = other_channels_of(self.segmentation, self.image)
        measured = {
            name: self._measured(others[name], plan.grid)
            for name in self.segmentation.measured_channels
        }
        statistics = self._statistics(plan)
        for note in self.segmentation.notes_on(statistics) if statistics is not None else ():
            log.warning(note)
        return self.segmentation.bind(statistics, measured)

    def _statistics(self, plan: Plan) -> ImageStatistics | None:
        """Return the statistics of the image, where the function asks for them."""
        if not self.segmentation.wants_statistics or "statistics" in self.segmentation.parameters:
            return None
        if self.empty is not None:
            return self.empty.statistics
        return self._measured(self.image, plan.grid)

    def _measured(self, image: Image, grid: TileGrid) -> ImageStatistics:
        with self._readers().open(grid, image.dtype) as pool:
            return measure(image, [block.core for block in grid.blocks()], pool)

    def _readers(self) -> Compute:
        """Return what reads: that releases the GIL, so threads of this process are right."""
        return Compute(
            self.compute.max_workers or max(1, granted_cores().value - 1), only_here=True
        )
