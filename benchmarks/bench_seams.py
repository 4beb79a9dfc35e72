"""What every merge rule, outline and other tool makes of the same labels of the same tiles.

    python benchmarks/bench_seams.py [--seeds 5] [--sets tissue,discs] [--halos ¼,½,1]
                                     [--python NAME=PYTHON] [--processes 1] [--write]
                                     [--measured FILE]

Images are made from seeds (`seam_sets`); what a tile sees of one is the truth with errors of the
tile's own (`tissue.TileView`), mild or hard. Seeds 0 and on report; thresholds were chosen on
others. What was measured is kept in a file, a line per image, and not measured again: a run that
was ended goes on, and a tool that comes later is measured alone. ``--python`` names the interpreter
of an environment with another tool (`seam_merges.TOOLS` says which, and what to install); what has
neither interpreter nor measured rows is left out. ``--write`` puts who is first into docs/seams.md,
and every figure into benchmarks/SEAMS.md.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Collection, Iterator, Mapping, Sequence
from concurrent.futures import ProcessPoolExecutor
from contextlib import suppress
from functools import cache
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from seam_merges import TOOLS, Views, merge_with_tool, staged
from seam_scores import score, seam_pixels
from seam_sets import SETS
from seam_tables import Results, Row, against_others, every_figure, outlines_at_faces
from skimage.metrics import adapted_rand_error, variation_of_information
from tissue import MILD, TileView, hard

from patchworks_core.seams.rules import MergeOptions
from patchworks_core.tiles.grid import TileGrid, plan_grid

FIGURES_PAGE = Path(__file__).parent / "SEAMS.md"
PAGE = Path(__file__).parents[1] / "docs" / "seams.md"

Labels = npt.NDArray[Any]

HALOS = {"¼": 0.25, "½": 0.5, "1": 1.0}

OPTIONS = {
    "none": MergeOptions("none", 1, outline="core"),
    "overlap-pairs": MergeOptions("overlap-pairs", 1, outline="core"),
    "overlap, core": MergeOptions("overlap", 1, outline="core"),
    "overlap": MergeOptions("overlap", 1, outline="feather"),
}

TRUTH = "the truth"
"""What the tables call the labels that tiles are views of, and whose outlines cross faces, too."""

OURS = (*OPTIONS, TRUTH)

Job = tuple[str, str, str, int]
"""Set, disagreement, halo, seed."""

Scene = tuple[Labels, Views, TileGrid]
"""The truth, what every tile sees of it, and the tiles."""


def main() -> None:
    """Run every case, and print or write the tables."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--sets", default=",".join(name for name in SETS if "," not in name))
    parser.add_argument("--volumes", action="store_true", help="the 3-D sets as well")
    parser.add_argument("--halos", default=",".join(HALOS))
    parser.add_argument("--python", action="append", default=[], metavar="NAME=PYTHON")
    parser.add_argument("--processes", type=int, default=1)
    parser.add_argument("--write", action="store_true")
    parser.add_argument("--measured", type=Path, default=Path("build/bench/seams.jsonl"))
    args = parser.parse_args()
    pythons = dict(item.split("=", 1) for item in args.python)
    if unknown := pythons.keys() - TOOLS.keys():
        parser.error(f"--python: {sorted(unknown)} must be of {sorted(TOOLS)}")
    names = [*args.sets.split(","), *(n for n in SETS if "3-D" in n and args.volumes)]
    cases = list(product(names, ("mild", "hard"), args.halos.split(",")))
    args.measured.parent.mkdir(parents=True, exist_ok=True)
    rows = measured_rows(args.measured)
    with args.measured.open("a") as file:
        for seed in range(args.seeds):
            jobs = [(*case, seed) for case in cases]
            for job, row in missing_rows(jobs, rows, pythons, args.processes):
                rows.setdefault(job, {}).update(row)
                print(json.dumps([job, row]), file=file, flush=True)
    results: Results = {case: [rows[*case, seed] for seed in range(args.seeds)] for case in cases}
    print(every_figure(results, OURS))
    print(against_others(results, "overlap", OURS))
    print(outlines_at_faces(results, TRUTH))
    if args.write:
        write_tables(results)


def write_tables(results: Results) -> None:
    """Write every figure into one page, and who is first into the other."""
    from seams import write_between

    write_between(FIGURES_PAGE, "bench", every_figure(results, OURS))
    write_between(PAGE, "bench", against_others(results, "overlap", OURS))
    write_between(PAGE, "outlines", outlines_at_faces(results, TRUTH))


def measured_rows(path: Path) -> dict[Job, Row]:
    """Return what the lines of a file say was measured; one that was cut off says nothing."""
    rows: dict[Job, Row] = {}
    for line in path.read_text().splitlines() if path.exists() else ():
        with suppress(ValueError):
            job, row = json.loads(line)
            rows.setdefault(tuple(job), {}).update(row)
    return rows


def missing_rows(
    jobs: Sequence[Job], rows: Mapping[Job, Row], pythons: Mapping[str, str], processes: int
) -> Iterator[tuple[Job, Row]]:
    """Measure what rows lack of our rules, and of each tool that there is an interpreter for."""
    lacking = {job: missing for job in jobs if (missing := set(OURS) - rows.get(job, {}).keys())}
    with ProcessPoolExecutor(processes) as executor:
        measured = executor.map(measure, lacking.keys(), lacking.values())
        yield from zip(lacking, measured, strict=True)
    scenes: dict[Job, Scene] = {}
    for name, python in pythons.items():
        tool = TOOLS[name]
        lacking = [
            job
            for job in jobs
            if len(SETS[job[0]].shape) in tool.dimensions
            and not rows.get(job, {}).keys() >= tool.modes.keys()
        ]
        scenes |= {job: scene(job) for job in lacking if job not in scenes}
        if lacking:
            yield from measure_tool(name, Path(python), {job: scenes[job] for job in lacking})


def scene(job: Job) -> Scene:
    """Return the truth of an image, what every tile sees of it, and the tiles."""
    name, how, halo, seed = job
    chosen = SETS[name]
    truth = truth_of(name, seed)
    disagreement = MILD if how == "mild" else hard(chosen.diameter)
    view = TileView(truth, disagreement, chosen.diameter / 3, seed)
    width = round(HALOS[halo] * chosen.diameter)
    grid = plan_grid(chosen.axes, truth.shape, tile_shape=chosen.tile_shape, overlap=width)
    return truth, {tile.index: view(tile.read) for tile in grid.tiles()}, grid


@cache
def truth_of(name: str, seed: int) -> Labels:
    """Return the label image of a set and a seed."""
    return SETS[name].truth(seed)


def measure(job: Job, lacking: Collection[str]) -> Row:
    """Return the figures of some of our rules, and of the truth itself, in one image."""
    truth, views, grid = scene(job)
    row = {}
    if TRUTH in lacking:
        row[TRUTH] = figures(truth, truth, grid)
    options = {what: of_rule for what, of_rule in OPTIONS.items() if what in lacking}
    if options:
        tiles = staged(views, grid)
        for what, of_rule in options.items():
            row[what] = figures(truth, tiles.merged(of_rule), grid)
    return row


def measure_tool(tool: str, python: Path, scenes: Mapping[Job, Scene]) -> Iterator[tuple[Job, Row]]:
    """Yield the figures of every mode of a tool in each image; a mode that failed has none."""
    merged = merge_with_tool(tool, python, [(views, grid) for _, views, grid in scenes.values()])
    for (job, (truth, _, grid)), of_mode in zip(scenes.items(), merged, strict=True):
        row = {}
        for mode, labels in of_mode.items():
            if isinstance(labels, str):
                print(f"{mode}, {job}: {labels}", file=sys.stderr)
            else:
                row[mode] = figures(truth, labels.astype(np.int64), grid)
        yield job, row


def figures(truth: Labels, labels: Labels, grid: TileGrid) -> dict[str, float]:
    """Return the figures of one label image; objects are those that touch a seam."""
    counts = score(truth, labels, truth, grid, min_piece=1)
    split, merge = variation_of_information(truth, labels)
    return {
        "pq": counts.pq,
        "f50": _f1(truth, labels, grid, 0.5),
        "f75": _f1(truth, labels, grid, 0.75),
        "split": counts.split,
        "fused": counts.fuse,
        "vi_split": float(split),
        "vi_merge": float(merge),
        "are": float(adapted_rand_error(truth, labels)[0]),
        "jump": float(np.mean([*_jumps(labels, grid)] or [0])),
        "straight": _straight(labels, grid),
    }


def _f1(truth: Labels, labels: Labels, grid: TileGrid, least: float) -> float:
    """Return the object F1 at seams, of matches whose IoU is above `least`."""
    at = seam_pixels(grid)
    width = int(labels.max()) + 1
    keys, common = np.unique(truth.astype(np.int64) * width + labels, return_counts=True)
    t, p = keys // width, keys % width
    union = np.bincount(truth.ravel())[t] + np.bincount(labels.ravel())[p] - common
    hit = (t > 0) & (p > 0) & (common > least * union)
    at_seam_t, at_seam_p = (set(np.unique(x[at]).tolist()) - {0} for x in (truth, labels))
    n = len(at_seam_t) + len(at_seam_p)
    found = sum(i in at_seam_t for i in t[hit].tolist())
    found += sum(i in at_seam_p for i in p[hit].tolist())
    return found / n if n else 1.0


def _jumps(labels: Labels, grid: TileGrid) -> Iterator[float]:
    """Yield by how many pixels the ends of each object move from one side of a face to the other.

    Along every line of a face: an object on both sides begins at another pixel on each, or ends.
    """
    for axis in grid.spatial:
        planes = np.moveaxis(labels, axis, 0)
        for border in range(grid.tile_shape[axis], grid.shape[axis], grid.tile_shape[axis]):
            low, high = (planes[i].reshape(-1, planes.shape[-1]) for i in (border - 1, border))
            for a, b in zip(low, high, strict=True):
                for label in np.intersect1d(a[a > 0], b[b > 0]):
                    ends = [np.flatnonzero(line == label)[[0, -1]] for line in (a, b)]
                    yield from np.abs(ends[0] - ends[1]).tolist()


def _straight(labels: Labels, grid: TileGrid) -> float:
    """Return the share of pixel pairs across faces that differ, less that of planes beside."""
    shares = {0: [0, 0], 1: [0, 0]}
    for axis in grid.spatial:
        planes = np.moveaxis(labels, axis, 0)
        for border in range(grid.tile_shape[axis], grid.shape[axis], grid.tile_shape[axis]):
            for beside, at in ((0, border), (1, border - grid.tile_shape[axis] // 2)):
                differs = planes[at - 1] != planes[at]
                shares[beside][0] += int(differs.sum())
                shares[beside][1] += differs.size
    at_face, control = (n / max(1, total) for n, total in shares.values())
    return at_face - control


if __name__ == "__main__":
    main()
