"""The job: the six steps of one image in a row, with what they need in hand."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import Executor
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any

import zarr
import zarr.errors
from upath import UPath

from patchworks_core.apply import apply_lut, create_apply_records, create_label_array
from patchworks_core.engine import WINDOW_PER_WORKER, results
from patchworks_core.errors import PlanError, TilesFailedError
from patchworks_core.image import Image
from patchworks_core.lut import LookupTable
from patchworks_core.ngff import LabelImage
from patchworks_core.pilot import PilotReport, recommend_overlap
from patchworks_core.plan import Plan, make_plan
from patchworks_core.provenance import provenance_of
from patchworks_core.rules import MergeOptions, warning_of
from patchworks_core.segmentation import Segmentation
from patchworks_core.stage import Stage
from patchworks_core.statistics import ImageStatistics, measure_statistics
from patchworks_core.steps import look_up, pair_tiles, stage_blocks, write_labels
from patchworks_core.storage import (
    ZarrFormat,
    move,
    remove,
    zarr_store,
)
from patchworks_core.workers import Workers

Progress = Callable[[str, int, int], None]
"""Called with the name of a step, how much of it is done, and how much there is."""


@dataclass(frozen=True, slots=True)
class Job:
    """The steps of one image, with what they need in hand."""

    image: Image
    segmentation: Segmentation
    options: MergeOptions
    workers: Workers
    progress: Progress
    is_temporary: bool = False
    pilot: PilotReport | None = None

    def settled(self, tile_shape: Sequence[int] | int, overlap: Any) -> tuple[Job, Any]:
        """Return the job and the halo as a pilot recommends them, where it is asked."""
        if not isinstance(overlap, str):
            return self, overlap
        report, best = recommend_overlap(
            self.image, self.segmentation, overlap, tile_shape=tile_shape, options=self.options
        )
        options = replace(self.options, rule=best.rule)
        return replace(self, options=options, pilot=report), best.overlap

    def plan(self, tile_shape: Sequence[int] | int, overlap: Sequence[int] | int) -> Plan:
        """Plan the tiles of the image."""
        return make_plan(self.image, self.segmentation, tile_shape=tile_shape, overlap=overlap)

    def resolved(self, plan: Plan) -> MergeOptions:
        """Return the merge options with everything decided."""
        return self.options.resolve(
            plan.grid,
            declared=self.segmentation.merge,
            connectivity=self.segmentation.connectivity,
        )

    def write_array(self, plan: Plan, group: UPath, component: str, *, resume: bool) -> None:
        """Write the labels as one array of a Zarr group."""
        work = group / f"{component}.work"
        zarr_format = _open_group(group)
        with self._executor() as (executor, window):
            stage, lut = self._merge(plan, work, executor, window, resume=resume)
            labels, records = work / "merged", work / "applied"
            create_label_array(labels, plan.grid, lut.dtype, zarr_format=zarr_format)
            create_apply_records(records, plan.grid)
            outcomes = apply_lut(
                stage, lut, labels=labels, records=records, executor=executor, window=window
            )
            n_blocks = plan.grid.n_blocks
            for n, _ in enumerate(results(outcomes, doing="writing merged labels"), start=1):
                self.progress("apply", n, n_blocks)
        remove(group / component)
        move(labels, group / component)
        remove(work)

    def write_ome(self, plan: Plan, target: LabelImage, *, resume: bool) -> LookupTable:
        """Write the labels as an OME-Zarr label image."""
        target.check_container()
        work = target.container / "labels" / f"{target.name}.work"
        pilot = None if self.pilot is None else self.pilot.to_dict()
        with self._executor() as (executor, window):
            stage, lut = self._merge(plan, work, executor, window, resume=resume)
            done: list[str] = []

            def count(key: str) -> None:
                done.append(key)
                self.progress("apply", len(done), plan.grid.n_blocks)

            write_labels(
                stage,
                lut,
                target,
                provenance=provenance_of(plan, self.resolved(plan), lut, pilot=pilot),
                executor=executor,
                window=window,
                on_block=count,
            )
        remove(work)
        return lut

    def _merge(
        self, plan: Plan, work: UPath, executor: Executor, window: int, *, resume: bool
    ) -> tuple[Stage, LookupTable]:
        """Stage what is missing, pair, and look up."""
        options = self.resolved(plan)
        if (warning := warning_of(plan.grid, options)) is not None:
            warnings.warn(warning, stacklevel=5)
        staged = work / "stage.zarr"
        found = resume and (staged / "plan.json").exists()
        stage = Stage.open(staged, plan) if found else Stage.create(staged, plan)
        missing = [plan.grid.block_of_key(key) for key in stage.missing_blocks()]
        function = self.segmentation.bind(self._statistics(plan))
        failures = {}
        outcomes = stage_blocks(
            self.image, stage, function, missing, executor=executor, window=window
        )
        for n, outcome in enumerate(outcomes, start=1):
            if outcome.failure is not None:
                failures[outcome.item.key] = outcome.failure
            self.progress("stage", n, len(missing))
        if failures:
            key, first = min(failures.items())
            raise TilesFailedError(
                f"{len(failures)} of {plan.grid.n_blocks} tiles failed, the first is {key!r}: "
                f"{first}\n{first.traceback}\n{self._way_out(work)}",
                {key: str(failure) for key, failure in failures.items()},
            )
        edges = pair_tiles(stage, executor=executor, window=window)
        self.progress("pair", 1, 1)
        return stage, look_up(stage, edges, options)

    def _way_out(self, work: UPath) -> str:
        if self.is_temporary:
            return "mend the function and call again; write_to= keeps the tiles that went well"
        return (
            f"the others are staged at {work}; mend the function and call again, with resume=True "
            "if it is unchanged"
        )

    def _statistics(self, plan: Plan) -> ImageStatistics | None:
        if not self.segmentation.wants_statistics or "statistics" in self.segmentation.parameters:
            return None
        regions = [block.core for block in plan.grid.blocks()]
        return measure_statistics(self.image.read, regions, dtype=self.image.dtype)

    @contextmanager
    def _executor(self) -> Iterator[tuple[Executor, int]]:
        with self.workers.open() as executor:
            yield executor, WINDOW_PER_WORKER * self.workers.count


def _open_group(path: UPath) -> ZarrFormat:
    """Make the Zarr group at `path` if it is not there, and return its format."""
    try:
        return zarr.open_group(zarr_store(path), mode="a").metadata.zarr_format
    except zarr.errors.ContainsArrayError as error:
        raise PlanError(
            f"labels are written into a Zarr group, and {path} is an array; name another write_to"
        ) from error
