"""What the machine itself takes: copying, coding and the function alone, in the same run."""

from __future__ import annotations

import time
from concurrent.futures import ThreadPoolExecutor
from itertools import product
from pathlib import Path

import numpy as np
import zarr

from benchmarks.whole_jobs.workloads import FUNCTIONS, Workload


def limits(workload: Workload, image: Path, truth: Path, scratch: Path, workers: int) -> dict:
    """Return seconds: of copying and of coding the labels, of reading, of the function."""
    labels = zarr.open_array(str(truth), mode="r")[...]
    copy = labels.copy()  # new memory is given page by page, which takes far longer
    start = time.perf_counter()
    np.copyto(copy, labels)
    copied = time.perf_counter() - start
    del copy
    start = time.perf_counter()
    boxes = _boxes(workload.shape, workload.chunks)
    written = zarr.create_array(
        str(scratch), shape=labels.shape, chunks=workload.chunks, dtype="int32", overwrite=True
    )

    def write(box: tuple[slice, ...]) -> None:
        written[box] = labels[box]

    with ThreadPoolExecutor(workers) as pool:
        list(pool.map(write, boxes))
    coded = time.perf_counter()
    pixels = zarr.open_array(str(image), mode="r")
    with ThreadPoolExecutor(workers) as pool:
        list(pool.map(lambda box: pixels[box], boxes))
    decoded = time.perf_counter()
    whole, function = pixels[...], FUNCTIONS[workload.kind]
    began = time.perf_counter()
    with ThreadPoolExecutor(workers) as pool:
        list(
            pool.map(lambda box: function(whole[box]), _boxes(workload.shape, workload.tile_shape))
        )
    return {
        "copy": copied,
        "write labels": coded - start,
        "read image": decoded - coded,
        "function": time.perf_counter() - began,
    }


def _boxes(shape: tuple[int, ...], size: tuple[int, ...]) -> list[tuple[slice, ...]]:
    ranges = [range(0, n, s) for n, s in zip(shape, size, strict=True)]
    return [
        tuple(slice(a, a + s) for a, s in zip(corner, size, strict=True))
        for corner in product(*ranges)
    ]


def wrong_pixels(truth: Path, result: Path) -> int:
    """Count the pixels outside the largest one-to-one correspondence of two label images."""
    expected = zarr.open_array(str(truth), mode="r")[...]
    labels = zarr.open_array(str(result), mode="r")[...].reshape(expected.shape)
    partner = np.zeros(int(expected.max()) + 1, dtype=np.int64)
    partner[expected.ravel()] = labels.ravel()
    partner[0] = 0
    used, times = np.unique(partner[1:], return_counts=True)
    shared = used[(times > 1) | (used == 0)]
    wrong = partner[expected] != labels
    wrong |= (expected > 0) & np.isin(labels, shared)
    return int(wrong.sum())
