"""A million tiles and a billion objects: what plan, status, edges and lookup table take.

    python -m benchmarks.scale [--tiles 1000000] [--objects 1000000000] [--folder FOLDER]

Nothing is segmented. A stage is made, every tile block with a file as `Stage.write` makes it, one
label in each tile; then other processes plan, ask what is missing, for
the first time and again. The edge table has rows for the share of objects at faces, each joined to
one of the next tile. Every step runs in a process of its own; its memory is the peak of that
process less what an empty one has. Prints Markdown rows; `docs/scale.md` has them.
"""

from __future__ import annotations

import argparse
import json
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import fields
from math import isqrt
from pathlib import Path
from typing import Any

import numpy as np
from upath import UPath

from patchworks_core.images.image import open_image
from patchworks_core.plugins.segmentation import Segmentation, segmentation_of
from patchworks_core.seams.edge_table import EdgeTable
from patchworks_core.seams.lookup import build_lut
from patchworks_core.stage.block_files import StagedTile
from patchworks_core.stage.plan import Plan, make_plan
from patchworks_core.stage.stage import Stage
from patchworks_core.stage.tile_labels import number_labels
from patchworks_core.tiles.block_counts import enough_blocks
from patchworks_core.tiles.grid import Tile

TILE = 16

PER_TILE = 1000
"""Objects of a tile of the simulated table."""


def main() -> None:
    """Run every step, or the one that is named."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--tiles", type=int, default=1_000_000)
    parser.add_argument("--objects", type=int, default=1_000_000_000)
    parser.add_argument("--at-faces", type=float, default=0.02)
    parser.add_argument("--folder", type=Path)
    parser.add_argument("--step", choices=STEPS)
    args = parser.parse_args()
    if args.step:
        before = peak()
        start = time.perf_counter()
        said = STEPS[args.step](args)
        seconds = time.perf_counter() - start
        print(json.dumps([seconds, peak() - before, said]))
        return
    with tempfile.TemporaryDirectory(prefix="patchworks-scale-") as name:
        folder = args.folder or Path(name)
        sizes = ["--tiles", str(args.tiles), "--objects", str(args.objects)]
        sizes += ["--at-faces", str(args.at_faces), "--folder", str(folder)]
        print("| step | s | MB | |\n|---|---|---|---|")
        for step in STEPS:
            command = [sys.executable, "-m", "benchmarks.scale", *sizes, "--step", step]
            answer = subprocess.run(command, check=True, capture_output=True, text=True).stdout
            seconds, n_bytes, said = json.loads(answer.splitlines()[-1])
            print(f"| {step} | {seconds:.1f} | {n_bytes / 1e6:.0f} | {said} |", flush=True)


def peak() -> int:
    """Return the most memory this process has had, in bytes."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def nothing(pixels: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
    """Label nothing."""
    return np.zeros(pixels.shape, dtype=np.uint16)


def planned(args: argparse.Namespace) -> Plan:
    """Plan as many tiles, in as many blocks as they would have if they were of 1024 x 1024."""
    edge = isqrt(args.tiles - 1) + 1
    n_blocks = enough_blocks((edge * 1024, edge * 1024))
    pixels = np.lib.stride_tricks.as_strided(
        np.zeros(1, np.uint16), (edge * TILE, edge * TILE), (0, 0), writeable=False
    )
    image = open_image(pixels, axes="yx")
    return make_plan(image, _function(), tile_shape=TILE, overlap=0, max_blocks=n_blocks)


def _function() -> Segmentation:
    return segmentation_of(nothing)


def plan(args: argparse.Namespace) -> str:
    """Plan the tiles and name their blocks."""
    made = planned(args)
    return f"{made.grid.n_tiles:,} tiles, {len(made.grid.block_keys()):,} blocks"


def write(args: argparse.Namespace) -> str:
    """Write a file for every block, one label in each."""
    made = planned(args)
    stage = Stage.create(UPath(args.folder / "stage"), made)
    n_bytes = 0
    for block in made.grid.blocks():
        n_bytes += stage.write(block, [_staged(tile) for tile in block.tiles])
    return f"{made.grid.n_blocks:,} files, {n_bytes / 1e9:.2f} GB"


def _staged(tile: Tile) -> StagedTile:
    """Return a tile with one label."""
    labels = np.zeros(tile.read.shape, dtype=np.uint16)
    labels[2:5, 2:5] = 1
    numbered = number_labels(labels, tile.core.relative_to(tile.read.start), where="")
    return StagedTile(tile, numbered, pixels=1)


def status(args: argparse.Namespace) -> str:
    """Ask what is missing."""
    made = planned(args)
    stage = Stage.open(UPath(args.folder / "stage"), made)
    return f"{len(stage.missing_blocks()):,} of {made.grid.n_blocks:,} blocks missing"


def table(args: argparse.Namespace) -> str:
    """Build the lookup table of a table of edges."""
    n_tiles = args.objects // PER_TILE
    n_joins = round(args.objects * args.at_faces) // 2
    rng = np.random.default_rng(0)
    tiles = np.sort(rng.integers(0, n_tiles - 1, n_joins))
    ids = rng.integers(1, PER_TILE + 1, (2, n_joins), dtype=np.int32)
    n_others = len(fields(EdgeTable)) - 4
    edges = EdgeTable(tiles, ids[0], tiles + 1, ids[1], *[np.zeros(n_joins, np.int8)] * n_others)
    start = time.perf_counter()
    lut = build_lut(edges, np.full(n_tiles, PER_TILE))
    build = time.perf_counter() - start
    n_bytes = lut.offsets.nbytes + lut.joined.nbytes + lut.merged.nbytes
    start = time.perf_counter()
    for number in range(0, n_tiles, max(1, n_tiles // 1000)):
        lut.of_tile(number)
    each = (time.perf_counter() - start) / 1000
    return (
        f"{lut.n_staged:,} labels, {n_joins:,} joins: {build:.1f} s, {n_bytes / 1e6:.0f} MB, "
        f"{each * 1e6:.0f} µs for the ids of a tile"
    )


STEPS: dict[str, Callable[[argparse.Namespace], str]] = {
    "plan": plan,
    "write": write,
    "status": status,
    "status again": status,
    "table": table,
}

if __name__ == "__main__":
    main()
