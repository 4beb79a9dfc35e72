"""The steps of a merge on 1, 2 and 4 Dask workers: seconds, those of the driver, bytes of a task.

    python -m benchmarks.merge_on_dask [--edge 16384] [--workers 1 2 4] [--outline core]

An image of discs is staged once, in tiles of 256 x 256; then its stage is merged by each number of
workers, which are processes of this machine with one thread each. Seconds of the driver are of its
processor. Bytes are of the pickled call with all that is sent with it, and of what comes back. The
labels are compared byte for byte with those that two threads wrote. Prints Markdown rows.
"""

from __future__ import annotations

import argparse
import pickle
import tempfile
import time
from collections.abc import Callable
from concurrent.futures import Future
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, TypeVar

import cloudpickle
import numpy as np
import zarr
from scipy import ndimage
from upath import UPath

from patchworks_core.images.image import open_image
from patchworks_core.machine.dask_clients import ClusterExecutor, make_local_cluster
from patchworks_core.machine.faults import RetryPolicy
from patchworks_core.machine.pools import Pool
from patchworks_core.machine.workers import Workers
from patchworks_core.merge.outlines import outlines_of
from patchworks_core.merge.pairing import pair_tiles
from patchworks_core.merge.steps import look_up
from patchworks_core.ome_zarr.label_image import LabelImage, write_merged
from patchworks_core.plugins.segmentation import segmentation_of
from patchworks_core.seams.rules import MergeOptions
from patchworks_core.stage.plan import make_plan
from patchworks_core.stage.stage import Stage
from patchworks_core.stage.staging import Staging, stage_blocks
from patchworks_core.tiles.block_counts import enough_blocks

T = TypeVar("T")

TILE, HALO, PERIOD = 256, 16, 37


class Counting(ClusterExecutor):
    """The workers of a client, and what is sent to them and comes back."""

    def __init__(self, client: Any) -> None:
        super().__init__(client)
        self.forget()

    def forget(self) -> None:
        """Begin to count anew."""
        self.n_tasks = self.n_sent = self.n_back = 0
        self.overhead = 0.0

    def submit(self, fn: Callable[..., Any], /, *args: Any, **kwargs: Any) -> Future[Any]:
        """Run a call, and count its bytes."""
        start = time.process_time()
        self.n_tasks += 1
        self.n_sent += len(cloudpickle.dumps((fn, args, kwargs)))
        self.overhead += time.process_time() - start
        future: Future[Any] = super().submit(fn, *args, **kwargs)
        future.add_done_callback(self._came)
        return future

    def _came(self, future: Future[Any]) -> None:
        start = time.process_time()
        self.n_back += len(pickle.dumps(future.result()))
        self.overhead += time.process_time() - start


@dataclass(slots=True)
class Clock:
    """Prints a row of the table for each step."""

    workers: str
    executor: Any

    def time(self, step: str, call: Callable[[], T]) -> T:
        """Call, and print what it took."""
        counting = self.executor if isinstance(self.executor, Counting) else None
        if counting is not None:
            counting.forget()
        start, driver = time.perf_counter(), time.process_time()
        value = call()
        seconds, driver = time.perf_counter() - start, time.process_time() - driver
        cells = ["", "", ""]
        if counting is not None:
            seconds, driver = seconds - counting.overhead, driver - counting.overhead
            n = max(1, counting.n_tasks)
            sizes = (counting.n_tasks, counting.n_sent // n, counting.n_back // n)
            cells = [f"{size:,}" for size in sizes]
        row = [self.workers, step, f"{seconds:.1f}", f"{driver:.1f}", *cells]
        print(f"| {' | '.join(row)} |", flush=True)
        return value


def main() -> None:
    """Stage once, and merge on each number of workers."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--edge", type=int, default=16384)
    parser.add_argument("--workers", type=int, nargs="+", default=[1, 2, 4])
    parser.add_argument("--outline", choices=("core", "feather"), default="core")
    args = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="patchworks-merge-") as name:
        folder = UPath(name)
        options = MergeOptions("overlap", 1, outline=args.outline)
        stage = staged(folder, args.edge)
        grid = stage.grid
        megapixels = np.prod(grid.shape) / 1e6
        print(f"{grid.n_tiles:,} tiles in {grid.n_blocks:,} blocks, {megapixels:.0f} megapixels")
        names = ("workers", "step", "s", "s of the driver", "tasks", "bytes sent", "bytes back")
        print(f"\n| {' | '.join(names)} |\n|{'---|' * len(names)}")
        with Pool.open(Workers(2)) as pool:
            merge(stage, folder / "here", options, pool, Clock("2 threads", pool.executor))
        for count in args.workers:
            local = make_local_cluster(
                n_workers=count, memory_bytes=count << 30, dashboard_address=None
            )
            with local as client:
                counting = Counting(client)
                pool = replace(Pool.of_cluster(client, RetryPolicy()), executor=counting)
                target = folder / f"on_{count}"
                merge(stage, target, options, pool, Clock(f"{count} on Dask", counting))
            assert chunks(target) == chunks(folder / "here"), "labels must be the same bytes"


def staged(folder: UPath, edge: int) -> Stage:
    """Stage an image of discs; tiles that are cut otherwise have other ids."""
    y, x = np.ogrid[: 4 * PERIOD, : 4 * PERIOD]
    discs = (y % PERIOD - PERIOD // 2) ** 2 + (x % PERIOD - PERIOD // 2) ** 2 < (PERIOD // 3) ** 2
    repeats = (-(-edge // len(discs)),) * 2
    zarr.create_array(
        str(folder / "image.zarr"), shape=(edge, edge), chunks=(1024, 1024), dtype=np.uint8
    )[...] = np.tile(discs, repeats)[:edge, :edge]
    image = open_image(str(folder / "image.zarr"), axes="yx")
    function = segmentation_of(label_discs)
    plan = make_plan(
        image, function, tile_shape=TILE, overlap=HALO, max_blocks=enough_blocks(image.shape)
    )
    stage = Stage.create(folder / "stage", plan)
    with Pool.open(Workers(2)) as pool:
        staging = Staging(image, stage, label_discs)
        for outcome in stage_blocks(staging, list(plan.grid.blocks()), pool=pool):
            assert outcome.failure is None, outcome.failure
    return stage


def label_discs(pixels: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
    """Label what is connected."""
    return np.asarray(ndimage.label(pixels)[0])


def merge(stage: Stage, target: UPath, options: MergeOptions, pool: Pool, clock: Clock) -> None:
    """Merge what is staged into an OME-Zarr label image."""
    edges = clock.time("pair", lambda: pair_tiles(stage, pool=pool))
    outlines = outlines_of(stage, edges, options)
    lut = clock.time(
        "look up", lambda: look_up(stage, edges, options, outlines=outlines, pool=pool)
    )
    image = LabelImage(target, "discs", stage.plan)
    write: dict[str, Any] = {"provenance": {"n_objects": lut.n_objects}, "outlines": outlines}
    with image.writing() as working:
        clock.time(
            "apply, pyramid",
            lambda: write_merged(stage, lut, image, working, pool=pool, **write),
        )


def chunks(target: UPath) -> dict[str, bytes]:
    """Return the chunks of all levels."""
    folder = Path(str(target)) / "labels" / "discs"
    return {
        str(path.relative_to(folder)): path.read_bytes()
        for path in folder.rglob("*")
        if path.is_file() and "c" in path.relative_to(folder).parts
    }


if __name__ == "__main__":
    main()
