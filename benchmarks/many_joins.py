"""What deciding joins takes for edge tables of any length: seconds of the processor and memory.

    python -m benchmarks.many_joins [--rows 10000000]

The rows are those of tiles of made tissue, cells side by side (`benchmarks/seam_sets.py`), whose
tiles disagree mildly or hard. They are repeated, each time for other tiles, until there are so
many: an image of that many tiles has such rows, but for those that tie its repeats together. Each
rule decides in a process of its own; its memory is the peak of that process less what it had
before. Prints Markdown rows; `docs/scale.md` has them.
"""

from __future__ import annotations

import argparse
import json
import resource
import subprocess
import sys
import time
from dataclasses import fields
from pathlib import Path
from typing import Any

import numpy as np

sys.path.insert(0, str(Path(__file__).parent))
from bench_seams import scene
from seam_merges import staged

from patchworks_core.seams.edge_table import EdgeTable
from patchworks_core.seams.rules import MergeOptions, joined_pairs

CASES = [(how, rule) for how in ("mild", "hard") for rule in ("overlap-pairs", "overlap")]


def main() -> None:
    """Measure every case in a process of its own, or the one that is named."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--rows", type=int, default=10_000_000)
    parser.add_argument("--case", help="As 'hard,overlap'.")
    args = parser.parse_args()
    if args.case:
        print(json.dumps(measured(args.rows, *args.case.split(","))))
        return
    print("| tiles differ | rule | rows | joined | processor, s | memory, MB |")
    print("|---|---|---|---|---|---|")
    for how, rule in CASES:
        command = [sys.executable, __file__, "--rows", str(args.rows), "--case", f"{how},{rule}"]
        said = subprocess.run(command, check=True, capture_output=True, text=True).stdout
        n_rows, n_joined, seconds, megabytes = json.loads(said)
        print(f"| {how} | {rule} | {n_rows:,} | {n_joined:,} | {seconds:.0f} | {megabytes:,.0f} |")


def measured(n_rows: int, how: str, rule: Any) -> tuple[int, int, float, float]:
    """Return rows, joins, seconds of the processor and megabytes of deciding."""
    edges, counts = repeated(*tissue(how), n_rows)
    options = MergeOptions(rule, 1, outline="core")
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    begun = time.process_time()
    joined = joined_pairs(edges, counts, options)
    seconds = time.process_time() - begun
    grown = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before
    return len(edges), int(joined.sum()), seconds, grown / 1024


def tissue(how: str) -> tuple[EdgeTable, np.ndarray[Any, Any]]:
    """Return the rows of one image, and the labels of its tiles."""
    _, views, grid = scene(("tissue", how, "½", 100))
    tiles = staged(views, grid)
    return tiles.edges, tiles.counts


def repeated(
    edges: EdgeTable, counts: np.ndarray[Any, Any], n_rows: int
) -> tuple[EdgeTable, np.ndarray[Any, Any]]:
    """Repeat rows, each time for tiles of their own."""
    n = -(-n_rows // len(edges))
    columns = {f.name: np.tile(getattr(edges, f.name), n) for f in fields(edges)}
    shift = np.repeat(np.arange(n) * len(counts), len(edges))
    for name in ("tile_a", "tile_b"):
        columns[name] = columns[name] + shift
    return EdgeTable(**columns), np.tile(counts, n)


if __name__ == "__main__":
    main()
