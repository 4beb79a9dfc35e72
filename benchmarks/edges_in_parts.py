"""What a driver takes for a table of edges of any length: seconds of the processor and memory.

    python -m benchmarks.edges_in_parts [--rows 10000000]

The rows are those of `benchmarks/many_joins.py`, whose tiles disagree mildly. "Workers" leave them
in files, as pairing does where there are many; every other step is one of the driver, in a process
of its own, whose memory is its peak less what it had before. Prints Markdown rows; `docs/scale.md`
has them.
"""

from __future__ import annotations

import argparse
import json
import pickle
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
from upath import UPath

sys.path.insert(0, str(Path(__file__).parent))
from bench_seams import scene
from seam_merges import staged

from patchworks_core.merge.pairing import EdgeFile, PairedTiles
from patchworks_core.seams.edge_table import EdgeTable
from patchworks_core.seams.judge import judge_seams
from patchworks_core.seams.lookup import HaloOwners
from patchworks_core.seams.rules import Joins, MergeOptions, MergeRule
from patchworks_core.tiles.grid import TileGrid
from patchworks_pipeline.assets.merging import pair_figures
from patchworks_pipeline.edge_records import EdgesOfRecord, write_edges

PER_FILE = 12
"""Images whose rows are in one file."""


IMAGE = "image.pickle"
"""What is known of one image."""


def make_image(folder: Path) -> None:
    """Make the rows of one image, in a process other than those that are measured."""
    _, views, grid = scene(("tissue", "mild", "½", 100))
    tiles = staged(views, grid)
    (folder / IMAGE).write_bytes(pickle.dumps((grid, tiles.edges, tiles.counts)))


class Driver:
    """The rows of so many images side by side, and the steps over them."""

    def __init__(self, n_rows: int, folder: Path) -> None:
        grid, self.one, counts = pickle.loads((folder / IMAGE).read_bytes())
        self.n_tiles, self.n = len(counts), -(-n_rows // len(self.one))
        shape = (grid.shape[0] * self.n, *grid.shape[1:])
        self.grid = TileGrid(grid.axes, shape, grid.tile_shape, grid.halo)
        self.counts = np.tile(counts, self.n)
        self.files, self.record = UPath(folder / "files"), UPath(folder / "pairs.parquet")

    def _images(self) -> Iterator[range]:
        for first in range(0, self.n, PER_FILE):
            yield range(first, min(self.n, first + PER_FILE))

    def _file(self, images: range) -> UPath:
        return self.files / f"pairs-{images[0]:08d}.part"

    def workers(self) -> None:
        """Leave all rows in files."""
        for images in self._images():
            shifts = [i * self.n_tiles for i in images]
            rows = [
                replace(self.one, tile_a=self.one.tile_a + n, tile_b=self.one.tile_b + n)
                for n in shifts
            ]
            EdgeFile.write(self._file(images), EdgeTable.stacked(rows))

    def paired(self) -> PairedTiles:
        """Return what workers left."""
        files = [EdgeFile(self._file(i), len(i) * len(self.one), 1) for i in self._images()]
        return PairedTiles(files, self.files / "pairs")

    def gather(self) -> None:
        """Go through the rows once."""
        assert sum(map(len, self.paired().parts())) == self.n * len(self.one)

    def write(self) -> None:
        """Make the record of the pipeline, and its figures."""
        edges = self.paired()
        pair_figures(edges)
        write_edges(self.record, edges, "", allow_missing=False)

    def edges(self) -> EdgesOfRecord:
        """Open the record."""
        return EdgesOfRecord.open(self.record, nullcontext)

    def look_up(self, rule: MergeRule) -> None:
        """Find the objects by a rule."""
        edges = self.edges()
        Joins.of(edges, self.counts, MergeOptions(rule, 1, outline="core")).standing(edges)

    def judge(self) -> None:
        """Judge the seams."""
        judge_seams(self.grid, self.edges(), self.counts, MergeOptions("overlap", 1))


STEPS: dict[str, Callable[[Driver], Any]] = {
    "workers leave rows": Driver.workers,
    "gather": Driver.gather,
    "gather, figures, record": Driver.write,
    "read": lambda driver: driver.edges().check(),
    "touching": lambda driver: driver.look_up("touching"),
    "overlap-pairs": lambda driver: driver.look_up("overlap-pairs"),
    "overlap": lambda driver: driver.look_up("overlap"),
    "owners": lambda driver: HaloOwners.of(driver.edges(), driver.counts),
    "judge": Driver.judge,
}


def main() -> None:
    """Measure every step in a process of its own, or the one that is named."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--rows", type=int, default=10_000_000)
    parser.add_argument("--folder", type=Path)
    parser.add_argument("--step", choices=["image", *STEPS])
    args = parser.parse_args()
    if args.step == "image":
        make_image(args.folder)
        return
    if args.step:
        driver = Driver(args.rows, args.folder)
        before, begun = peak_megabytes(), time.process_time()
        STEPS[args.step](driver)
        print(json.dumps([time.process_time() - begun, peak_megabytes() - before]))
        return
    print("| step | processor, s | memory, MB |\n|---|---|---|")
    with tempfile.TemporaryDirectory(prefix="patchworks-edges-") as folder:
        command = [sys.executable, __file__, "--rows", str(args.rows), "--folder", folder, "--step"]
        # A process of its own: the peak of those that are measured begins with that of this one.
        subprocess.run([*command, "image"], check=True)
        for step in STEPS:
            run = subprocess.run([*command, step], check=True, capture_output=True, text=True)
            said = run.stdout
            seconds, megabytes = json.loads(said.splitlines()[-1])
            print(f"| {step} | {seconds:.1f} | {megabytes:,.0f} |", flush=True)


def peak_megabytes() -> float:
    """Return the most memory this process has had."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024


if __name__ == "__main__":
    main()
