"""How fast image operations are, beside Dask on the same pixels in the same run.

    python -m benchmarks.filters [--workers 2] [--repeats 5]
    python -m benchmarks.filters --plane 50000 [--workers 2] [--folder /scratch]

1. One time point of a float64 image (T=10, C=3, 2048 x 2048), in memory: shading correction and a
   3 x 3 median, in GB/s of pixels, through `filter_image` and through Dask on the same chunks. The
   two take turns, and the best of the repeats counts; CPU time is what a busy machine leaves alone.
2. How long each filter keeps other threads from running: nothing means that it releases the GIL.
3. ``--plane``: a square uint16 plane in Zarr goes through the median tile by tile. Prints how much
   memory the process took at its peak, and compares windows with `scipy.ndimage.median_filter`.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable
from pathlib import Path

import dask.array as da
import numpy as np
import zarr
from scipy import ndimage

from patchworks_core.machine.peak import PeakMemory
from patchworks_core.operations.background import white_tophat
from patchworks_core.operations.filtering import filter_image
from patchworks_core.operations.filters import gaussian, maximum, median
from patchworks_core.operations.operations import Operation
from patchworks_core.operations.shading import shading_correction

SHAPE, TILE = (10, 3, 2048, 2048), 1024

CHUNK, WINDOW = 1000, 700


def main() -> None:
    """Run one part or the other."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--plane", type=int, metavar="PIXELS", help="side of a plane on disk")
    parser.add_argument("--folder", type=Path, help="where the plane is kept; else a temporary one")
    parser.add_argument("--filter-plane", type=Path, help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.filter_plane:
        filter_plane(args.filter_plane, args.workers)
    elif args.plane:
        with tempfile.TemporaryDirectory(prefix="patchworks-", dir=args.folder) as folder:
            stream_plane(Path(folder), args.plane, args.workers)
    else:
        compare_with_dask(args.workers, args.repeats)
        measure_gil()


def compare_with_dask(workers: int, repeats: int) -> None:
    """Print GB/s of shading correction and median, for both."""
    rng = np.random.default_rng(0)
    pixels = np.empty(SHAPE)
    for plane in np.ndindex(SHAPE[:2]):
        pixels[plane] = rng.random(SHAPE[2:])
    one = pixels[4]
    flat, dark = 1 + rng.random(SHAPE[2:]), rng.random(SHAPE[2:]) / 10
    lazy = da.from_array(pixels, chunks=(1, 1, TILE, TILE))[4]
    dark_lazy = da.from_array(dark, chunks=TILE)
    light = da.from_array(flat, chunks=TILE) - dark_lazy
    gain = da.from_array((flat - dark).mean() / (flat - dark), chunks=TILE)
    small = (one * 4000).astype("uint16")

    def ours(operation: Operation, image: np.ndarray = one) -> Callable[[], np.ndarray]:
        return lambda: filter_image(
            image, operation, axes="cyx", tile_shape=TILE, max_workers=workers
        )

    def dask(array: da.Array) -> Callable[[], np.ndarray]:
        return lambda: array.compute(scheduler="threads", num_workers=workers)

    def dask_median(array: da.Array) -> Callable[[], np.ndarray]:
        depth = (0, 1, 1)
        return dask(
            array.map_overlap(ndimage.median_filter, depth=depth, boundary="none", size=(1, 3, 3))
        )

    correct = ours(shading_correction(flat, dark))
    rows = [
        ("shading correction", correct, dask((lazy - dark_lazy) * light.mean() / light), 8),
        ("the same, Dask given the gain", correct, dask((lazy - dark_lazy) * gain), 8),
        ("3 x 3 median", ours(median(3)), dask_median(lazy), 8),
        (
            "3 x 3 median of uint16",
            ours(median(3), small),
            dask_median(da.from_array(small, chunks=(1, TILE, TILE))),
            2,
        ),
    ]
    print(f"one time point, {one.size / 1e6:.1f} Mpixel of float64, {workers} threads, GB/s")
    print("| operation | patchworks | Dask | times as fast | by CPU time | largest difference |")
    print("|---|---|---|---|---|---|")
    for name, mine, theirs, n_bytes in rows:
        difference = abs(mine().astype(float) - theirs()).max()
        times = np.array([(*taken_by(mine), *taken_by(theirs)) for _ in range(repeats)])
        wall, cpu, wall_dask, cpu_dask = times.min(axis=0)
        speeds = [n_bytes * one.size / taken / 1e9 for taken in (wall, wall_dask)]
        print(
            f"| {name} | {speeds[0]:.3f} | {speeds[1]:.3f} | {wall_dask / wall:.1f} "
            f"| {cpu_dask / cpu:.1f} | {difference:.1e} |",
            flush=True,
        )


def taken_by(function: Callable[[], object]) -> tuple[float, float]:
    """Return how long a call takes: seconds, and seconds of CPU time of all threads."""
    wall, cpu = time.perf_counter(), time.process_time()
    function()
    return time.perf_counter() - wall, time.process_time() - cpu


def measure_gil() -> None:
    """Print how long another thread waits for its turn while a filter runs."""
    pixels = (np.random.default_rng(0).random((2048, 2048)) * 4000).astype("uint16")
    filters = {
        "gaussian(2)": gaussian(2),
        "median(3)": median(3),
        "median(5, ball)": median(5, shape="ball"),
        "maximum(9)": maximum(9),
        "white_tophat(10)": white_tophat(10),
        "shading_correction": shading_correction(np.ones(pixels.shape)),
    }
    print("\n| filter, 4.2 Mpixel of uint16 | ms | longest wait of another thread, ms |")
    print("|---|---|---|")
    for name, operation in filters.items():
        waits: list[float] = []
        is_done = threading.Event()

        def tick(waits: list[float] = waits, is_done: threading.Event = is_done) -> None:
            last = time.perf_counter()
            while not is_done.wait(0.001):
                now = time.perf_counter()
                waits.append(now - last)
                last = now

        thread = threading.Thread(target=tick)
        thread.start()
        taken, _ = taken_by(lambda operation=operation: operation(pixels))
        is_done.set()
        thread.join()
        print(f"| {name} | {1000 * taken:.0f} | {1000 * max(waits, default=0):.0f} |", flush=True)


def stream_plane(folder: Path, side: int, workers: int) -> None:
    """Write a plane, filter it in a process of its own, and look at windows of the result."""
    source, taken = folder / "plane", time.perf_counter()
    plane = zarr.create_array(
        str(source), shape=(side, side), chunks=(CHUNK, CHUNK), dtype="uint16", fill_value=0
    )
    for y in range(0, side, CHUNK):
        for x in range(0, side, CHUNK):
            box = (slice(y, min(side, y + CHUNK)), slice(x, min(side, x + CHUNK)))
            plane[box] = waves_with_specks(*box)
    taken = time.perf_counter() - taken
    print(f"plane of {side} x {side} uint16, {plane.nbytes / 1e9:.1f} GB, written in {taken:.0f} s")
    command = [sys.executable, "-m", "benchmarks.filters", "--filter-plane", str(source)]
    subprocess.run([*command, "--workers", str(workers)], check=True)
    filtered = zarr.open_array(str(folder / "filtered"), mode="r")
    rng = np.random.default_rng(0)
    corners = [(0, 0), (side - WINDOW, side - WINDOW), *rng.integers(0, side - WINDOW, (20, 2))]
    for y, x in corners:
        box = (slice(y, y + WINDOW), slice(x, x + WINDOW))
        expected = ndimage.median_filter(np.asarray(plane[box]), 3)[1:-1, 1:-1]
        assert np.array_equal(filtered[box][1:-1, 1:-1], expected), (y, x)
    print(f"{len(corners)} windows of {WINDOW} x {WINDOW} are as scipy.ndimage has them")


def waves_with_specks(rows: slice, columns: slice) -> np.ndarray:
    """Return a box of a plane of waves with specks, which a median takes out."""
    y, x = np.ogrid[rows, columns]
    waves = ((y * 7 + x * 3) // 64 % 200).astype(np.uint16)
    waves[(y * 31 + x * 17) % 101 == 0] = 4000
    return waves


def filter_plane(source: Path, workers: int) -> None:
    """Filter a plane on disk and print what it took."""
    import psutil

    before, start = psutil.Process().memory_info().rss, time.perf_counter()
    with PeakMemory() as peak:
        lazy = filter_image(
            source, median(3), write_to=source.with_name("filtered"), max_workers=workers
        )
    taken, gigabytes = time.perf_counter() - start, lazy.nbytes / 1e9
    print(
        f"median(3) with {workers} threads: {taken:.0f} s, {gigabytes / taken:.3f} GB/s; peak "
        f"memory {(before + peak.bytes) / 1e6:.0f} MB, of which {before / 1e6:.0f} MB before it "
        "began",
        flush=True,
    )


if __name__ == "__main__":
    main()
