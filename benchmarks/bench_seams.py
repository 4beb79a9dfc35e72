"""What every merge rule and outline makes of the same labels of the same tiles, with the truth.

    python benchmarks/bench_seams.py [--seeds 5] [--sets tissue,discs] [--halos ¼,½,1]
                                     [--peer-python PYTHON] [--processes 1] [--write]
                                     [--measured FILE]

Images are made from seeds (`seam_sets`); what a tile sees of one is the truth with errors of the
tile's own (`tissue.TileView`), mild or hard. Seeds 0 and on report; thresholds were chosen on
others. What was measured is kept in a file, a line per image, and not measured again: a run that
was ended goes on. ``--peer-python`` is the interpreter of an environment with `patchworks` 3.3.0
(``pip install patchworks==3.3.0``); without one the peer is left out. ``--write`` puts the table
into docs/seams.md.
"""

from __future__ import annotations

import argparse
import json
from collections.abc import Iterable, Iterator
from concurrent.futures import ProcessPoolExecutor
from contextlib import suppress
from functools import partial
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from seam_merges import merge_with_peer
from seam_scores import score, seam_pixels
from seam_sets import SETS
from skimage.metrics import adapted_rand_error, variation_of_information
from tissue import MILD, TileView, hard

from patchworks_core.pilot.in_memory import TilesInMemory
from patchworks_core.seams.rules import MergeOptions
from patchworks_core.tiles.grid import TileGrid, plan_grid

PAGE = Path(__file__).parents[1] / "docs" / "seams.md"

Labels = npt.NDArray[Any]

HALOS = {"¼": 0.25, "½": 0.5, "1": 1.0}

OPTIONS = {
    "none": MergeOptions("none", 1, outline="core"),
    "overlap-pairs": MergeOptions("overlap-pairs", 1, outline="core"),
    "overlap, core": MergeOptions("overlap", 1, outline="core"),
    "overlap": MergeOptions("overlap", 1, outline="feather"),
}

FIGURES = {
    "pq": "PQ",
    "f50": "F1 .5",
    "f75": "F1 .75",
    "split": "split",
    "fused": "fused",
    "vi_split": "VI split",
    "vi_merge": "VI merge",
    "are": "Rand error",
    "jump": "jump",
    "straight": "straight",
}

Job = tuple[str, str, str, int]
"""Set, disagreement, halo, seed."""

Key = tuple[str, str, str, str]
"""Set, disagreement, halo, what merged."""


def main() -> None:
    """Run every case, and print or write the tables."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--sets", default=",".join(name for name in SETS if "," not in name))
    parser.add_argument("--volumes", action="store_true", help="the 3-D sets as well")
    parser.add_argument("--halos", default=",".join(HALOS))
    parser.add_argument("--peer-python", type=Path)
    parser.add_argument("--processes", type=int, default=1)
    parser.add_argument("--write", action="store_true")
    parser.add_argument("--measured", type=Path, default=Path("build/bench/seams.jsonl"))
    args = parser.parse_args()
    names = [*args.sets.split(","), *(n for n in SETS if "3-D" in n and args.volumes)]
    cases = list(product(names, ("mild", "hard"), args.halos.split(",")))
    jobs = [(*case, seed) for seed in range(args.seeds) for case in cases]
    args.measured.parent.mkdir(parents=True, exist_ok=True)
    rows = measured_rows(args.measured)
    missing = [job for job in jobs if job not in rows]
    with ProcessPoolExecutor(args.processes) as executor, args.measured.open("a") as file:
        measured = executor.map(partial(measure, args.peer_python), missing)
        for job, figures_of in zip(missing, measured, strict=True):
            rows[job] = figures_of
            print(json.dumps([job, figures_of]), file=file, flush=True)
    results: dict[Key, list[dict[str, float]]] = {}
    for case in cases:
        for seed in range(args.seeds):
            for what, of_rule in rows[*case, seed].items():
                results.setdefault((*case, what), []).append(of_rule)
    peer = "the peer is `patchworks` 3.3.0" if args.peer_python else "no peer was run for it"
    text = f"Seeds a row: {args.seeds}; {peer}.\n\n{table(results)}"
    print(text)
    if args.write:
        from seams import write_between

        write_between(PAGE, "bench", text)


def measured_rows(path: Path) -> dict[Job, dict[str, dict[str, float]]]:
    """Return what a file says was measured; a line that was cut off is none."""
    rows = {}
    for line in path.read_text().splitlines() if path.exists() else ():
        with suppress(ValueError):
            job, figures_of = json.loads(line)
            rows[tuple(job)] = figures_of
    return rows


def measure(peer_python: Path | None, job: Job) -> dict[str, dict[str, float]]:
    """Return the figures of every rule in one image."""
    name, how, halo, seed = job
    chosen = SETS[name]
    truth = chosen.truth(seed)
    disagreement = MILD if how == "mild" else hard(chosen.diameter)
    view = TileView(truth, disagreement, chosen.diameter / 3, seed)
    width = round(HALOS[halo] * chosen.diameter)
    grid = plan_grid(chosen.axes, truth.shape, tile_shape=chosen.tile_shape, overlap=width)
    views = {tile.index: view(tile.read) for tile in grid.tiles()}
    tiles = TilesInMemory.stage(truth, lambda pixels, tile: views[tile.index], grid)
    merged: dict[str, Any] = {what: tiles.merged(options) for what, options in OPTIONS.items()}
    if peer_python is not None:
        merged |= merge_with_peer(views, grid, peer_python)
    return {
        what: figures(truth, labels, grid)
        for what, labels in merged.items()
        if isinstance(labels, np.ndarray)
    }


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


def table(results: dict[Key, list[dict[str, float]]]) -> str:
    """Return the Markdown table: mean over seeds, and the range of PQ."""
    lines = [
        "| set | tiles differ | halo | merged by | " + " | ".join(FIGURES.values()) + " |",
        "|---|---|---|---|" + "---|" * len(FIGURES),
    ]
    for (name, how, halo, what), rows in results.items():
        lines.append(f"| {name} | {how} | {halo} | {what} | {' | '.join(_cells(rows))} |")
    return "\n".join(lines)


def _cells(rows: Iterable[dict[str, float]]) -> Iterator[str]:
    values = {name: [row[name] for row in rows] for name in FIGURES}
    for name, numbers in values.items():
        mean = float(np.mean(numbers))
        if name == "pq":
            yield f"{mean:.3f} ({min(numbers):.3f}-{max(numbers):.3f})"
        elif name in ("split", "fused", "straight"):
            yield f"{mean:.1%}"
        else:
            yield f"{mean:.2f}" if name == "jump" else f"{mean:.3f}"


if __name__ == "__main__":
    main()
