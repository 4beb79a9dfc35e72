"""What third views gain at seams, and what they cost.

    python benchmarks/mend_seams.py [--seeds 5] [--sets tissue,discs] [--halos ½] [--volumes]
                                    [--measured FILE] [--write]

The images, and what tiles see of them, are those of `bench_seams`; a third view is one more view,
with errors of its own. Each image is staged once and merged three times: as it is, with third views
of the worst quarter of its faces, and with those of all faces besides that `mend_stage` mends
unless it is told otherwise. A line per image is kept in a file, and not measured again. ``--write``
puts the table into docs/seams.md.
"""

from __future__ import annotations

import argparse
import json
import tempfile
from collections.abc import Callable, Iterator, Mapping
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from bench_seams import HALOS, PAGE, Job, measured_rows, truth_of
from seam_scores import score
from seam_sets import SETS
from tissue import MILD, PERFECT, TileView, hard

from patchworks_core import declare, mend_stage, merge_stage, plan_tiles, stage_tile
from patchworks_core.tiles.grid import TileGrid
from patchworks_core.tiles.regions import Region

Labels = npt.NDArray[Any]

QUARTER = 0.25
"""Of all faces, the worst."""


def by_place(view: TileView) -> Callable[[Labels], Labels]:
    """Return a function of images whose pixels say where they lie: it sees that of the truth."""

    @declare(version="1")
    def see(tile: Labels) -> Labels:
        start = np.unravel_index(int(tile.flat[0]), view.truth.shape)
        stop = (int(a) + n for a, n in zip(start, tile.shape, strict=True))
        return view(Region(tuple(map(int, start)), tuple(stop)))

    return see


def main() -> None:
    """Measure every case, and print or write the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--sets", default=",".join(name for name in SETS if "," not in name))
    parser.add_argument("--volumes", action="store_true", help="the 3-D sets as well")
    parser.add_argument("--halos", default="½")
    parser.add_argument("--write", action="store_true")
    parser.add_argument("--measured", type=Path, default=Path("build/bench/mend_seams.jsonl"))
    args = parser.parse_args()
    names = [*args.sets.split(","), *(n for n in SETS if "3-D" in n and args.volumes)]
    cases = list(product(names, ("mild", "hard"), args.halos.split(",")))
    args.measured.parent.mkdir(parents=True, exist_ok=True)
    rows = measured_rows(args.measured)
    with args.measured.open("a") as file:
        for seed in range(args.seeds):
            for case in cases:
                job = (*case, seed)
                if job not in rows:
                    rows[job] = dict(measure(job))
                    print(json.dumps([job, rows[job]]), file=file, flush=True)
    table = table_of(cases, rows, args.seeds)
    print(table)
    if args.write:
        from seams import write_between

        write_between(PAGE, "mending", table)


def measure(job: Job) -> Iterator[tuple[str, Any]]:
    """Yield PQ at seams of one image without and with third views, and what these cost."""
    name, how, halo, seed = job
    chosen, truth = SETS[name], truth_of(name, seed)
    disagreement = {"perfect": PERFECT, "mild": MILD}.get(how, hard(chosen.diameter))
    view = TileView(truth, disagreement, chosen.diameter / 3, seed)
    overlap = round(HALOS[halo] * chosen.diameter)
    with tempfile.TemporaryDirectory() as folder:
        planned = plan_tiles(
            np.arange(truth.size).reshape(truth.shape),
            by_place(view),
            folder,
            tile_shape=chosen.tile_shape,
            overlap=overlap,
            merge="overlap",
            axes=chosen.axes,
        )
        for number in range(planned.n_tiles):
            stage_tile(planned, number)
        grid = planned.grid
        yield "tiles", grid.n_tiles
        yield "before", _pq(truth, merge_stage(planned), grid)
        n_faces = sum((n - 1) * grid.n_tiles // n for n in grid.grid_shape)
        some = mend_stage(planned, faces=round(QUARTER * n_faces), min_agreement=1)
        yield "quarter", _pq(truth, merge_stage(planned), grid)
        yield "quarter_calls", some.n_views
        rest = mend_stage(planned)
        yield "mended", _pq(truth, merge_stage(planned), grid)
        yield "mended_calls", some.n_views + rest.n_views


def _pq(truth: Labels, labels: Labels, grid: TileGrid) -> float:
    return score(truth, np.asarray(labels).astype(np.int64), truth, grid, min_piece=1).pq


def table_of(
    cases: list[tuple[str, str, str]], rows: Mapping[Job, Mapping[str, Any]], n_seeds: int
) -> str:
    """Return the table, a line per case: mean and range over the seeds."""
    lines = [
        f"Seeds a row: {n_seeds}. Calls are those of the function beside the tiles.",
        "",
        "| set | tiles differ | halo | PQ | worst quarter of faces | calls | "
        "and faces below 0.75 | calls |",
        "|---|---|---|---|---|---|---|---|",
    ]
    for case in cases:
        of_case = [rows[*case, seed] for seed in range(n_seeds)]
        values = {key: np.array([row[key] for row in of_case]) for key in of_case[0]}

        def gain(key: str, values: dict[str, Any] = values) -> str:
            gains = values[key] - values["before"]
            return f"{gains.mean():+.3f} ({gains.min():+.3f} to {gains.max():+.3f})"

        calls = [
            f"+{(values[key] / values['tiles']).mean():.0%}"
            for key in ("quarter_calls", "mended_calls")
        ]
        cells = (
            *case,
            f"{values['before'].mean():.3f}",
            *(gain("quarter"), calls[0], gain("mended"), calls[1]),
        )
        lines.append(f"| {' | '.join(cells)} |")
    return "\n".join(lines)


if __name__ == "__main__":
    main()
