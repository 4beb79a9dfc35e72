"""Processor seconds of each step of one image, one after the other in one thread.

    python -m benchmarks.steps [W1 W2 W3 W4] [--overlap 16 [--outline core]]

Seconds of the processor change less than those of the clock on a machine that others use, and a
step that got slower is seen by name. Workloads are those of `benchmarks.whole_jobs`, whose images
are made where they are not there yet. Prints a Markdown row per workload: the function alone and
reading, which are not ours; the rest of staging; pairing; looking up; writing merged labels. With
``--overlap`` tiles have that halo and are merged by `overlap`, outlines drawn or those of cores.
"""

from __future__ import annotations

import argparse
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass, field, fields, replace
from typing import Any, TypeVar

import numpy as np
from upath import UPath

from benchmarks.whole_jobs.__main__ import prepared
from benchmarks.whole_jobs.workloads import BY_NAME, FUNCTIONS, Workload
from patchworks_core.api.options import planned_job
from patchworks_core.files.label_arrays import create_label_array, open_label_group
from patchworks_core.machine.pools import Compute
from patchworks_core.machine.progress import no_progress
from patchworks_core.merge.apply import apply_lut, create_apply_records
from patchworks_core.merge.outlines import outlines_of
from patchworks_core.merge.pairing import pair_tiles
from patchworks_core.merge.steps import look_up
from patchworks_core.stage.stage import Stage
from patchworks_core.stage.staging import Staging
from patchworks_core.tiles.grid import TileBlock

T = TypeVar("T")

STEPS = ("plan", "read", "function", "rest of staging", "pair", "look up", "apply")


class Clock:
    """Processor seconds by what they were for."""

    def __init__(self) -> None:
        self.seconds: dict[str, float] = dict.fromkeys(STEPS, 0.0)

    def time(self, step: str, call: Callable[[], T]) -> T:
        """Call, and count the seconds of all threads."""
        start = time.process_time()
        value = call()
        self.seconds[step] += time.process_time() - start
        return value


@dataclass(frozen=True, slots=True)
class TimedStaging(Staging):
    """Staging that times reading."""

    clock: Clock = field(default_factory=Clock)

    def read(
        self, block: TileBlock
    ) -> tuple[np.ndarray[Any, Any], dict[str, np.ndarray[Any, Any]]]:
        """Read the pixels of a block."""
        return self.clock.time("read", lambda: Staging.read(self, block))


def main() -> None:
    """Measure the workloads that are named, or the first four."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("workloads", nargs="*", default=["W1", "W2", "W3", "W4"])
    parser.add_argument("--overlap", type=int)
    parser.add_argument("--outline", choices=("auto", "core", "feather"), default="auto")
    args = parser.parse_args()
    print("| workload | " + " | ".join(STEPS) + " | all |")
    print("|---|" + "---|" * (len(STEPS) + 1))
    for name in args.workloads:
        workload = BY_NAME[name]
        if args.overlap is not None:
            workload = replace(workload, halo=args.overlap)
        seconds = measured(workload, args.outline)
        cells = [seconds[step] for step in STEPS] + [sum(seconds.values())]
        print(f"| {name} | " + " | ".join(f"{cell:.2f}" for cell in cells) + " |", flush=True)


def measured(workload: Workload, outline: str) -> dict[str, float]:
    """Return the processor seconds of each step."""
    image, _, _ = prepared(workload, 2)
    clock = Clock()

    def function(pixels: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
        return clock.time("function", lambda: FUNCTIONS[workload.kind](pixels))

    rule: Any = "overlap" if workload.halo else "touching"
    asked: Any = {
        "tile_shape": workload.tile_shape,
        "overlap": workload.halo,
        "axes": workload.axes,
        "merge": rule,
        "outline": outline,
        "max_workers": 1,
        "resume": False,
    }
    job, plan = clock.time(
        "plan", lambda: planned_job(str(image), FUNCTIONS[workload.kind], asked, no_progress)
    )
    with tempfile.TemporaryDirectory(prefix="patchworks-steps-") as folder:
        stage = Stage.create(UPath(folder) / "stage", plan)
        of_job = job.staging_of(stage, job.image)
        same = {f.name: getattr(of_job, f.name) for f in fields(Staging)}
        staging = TimedStaging(**{**same, "function": function}, clock=clock)
        blocks = list(plan.grid.blocks())
        staging(blocks[0])  # what is imported when it is first used
        clock.seconds["function"] = clock.seconds["read"] = 0.0
        clock.time("rest of staging", lambda: [staging(block) for block in blocks])
        clock.seconds["rest of staging"] -= clock.seconds["function"] + clock.seconds["read"]
        with Compute(1, only_here=True).open(plan.grid, job.image.dtype) as pool:
            _merge(UPath(folder), stage, job.resolved(plan), pool, clock)
    return clock.seconds


def _merge(folder: UPath, stage: Stage, options: Any, pool: Any, clock: Clock) -> None:
    """Merge what is staged."""
    edges = clock.time("pair", lambda: pair_tiles(stage, pool=pool))
    outlines = clock.time("look up", lambda: outlines_of(stage, edges, options))
    lut = clock.time(
        "look up", lambda: look_up(stage, edges, options, outlines=outlines, pool=pool)
    )
    group, records = folder / "merged", folder / "applied"
    made = {"zarr_format": open_label_group(group), "chunks": None}
    create_label_array(group / "labels", stage.grid, lut.dtype, **made)
    create_apply_records(records, stage.grid)
    places: Any = {"labels": group / "labels", "records": records}
    clock.time(
        "apply",
        lambda: list(apply_lut(stage, lut, **places, pool=pool, outlines=outlines)),
    )


if __name__ == "__main__":
    main()
