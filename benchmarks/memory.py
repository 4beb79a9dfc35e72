"""Whether `tile_process` stays within its memory: an image of 16 GB under a limit of 2 GB.

    python -m benchmarks.memory [--gigabytes 16] [--limit 2] [--kinds threads processes]

Each run is a process of its own in a memory control group of its own (cgroup v1 or v2, which needs
root); where none can be made, its address space is limited instead. Two functions are tried: one
that labels connected components, and one that besides takes five times the bytes of its tile.
Reported: whether it finished, the peak of resident memory over all its processes (proportional set
size), and the chunk size, tile and number of workers it settled on.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import psutil
import zarr

CHUNK = 1024
GROUPS = (Path("/sys/fs/cgroup/memory"), Path("/sys/fs/cgroup"))
LIMIT_FILES = ("memory.limit_in_bytes", "memory.max")

CHILD = """
import json, sys, time
from benchmarks.memory import FUNCTIONS
from patchworks_core import tile_process, open_image
from patchworks_core.machine.budget import granted_memory_bytes

image, target, function, kind, n_workers = sys.argv[1:6]
limit = granted_memory_bytes()
start = time.perf_counter()
labels = tile_process(
    image, FUNCTIONS[function], tile_shape="auto", overlap=16, merge="touching", axes="yx",
    workers=kind, max_workers=int(n_workers) or None, write_to=target, verbose=True,
)
print(json.dumps({"seconds": time.perf_counter() - start, "granted": [limit.value, limit.source],
    "first_row_objects": int((labels[:2048, :2048].max()).compute()), "n": labels.npartitions}))
"""


def components(tile: np.ndarray) -> np.ndarray:
    """Label connected components."""
    from scipy import ndimage

    return ndimage.label(tile > 0.5)[0]


def hungry(tile: np.ndarray) -> np.ndarray:
    """Do so, and take five times the bytes of the tile besides."""
    ballast = np.ones((5, *tile.shape), dtype=tile.dtype)
    labels = components(tile)
    return labels + (ballast[0] < 0)


FUNCTIONS: dict[str, Callable[[np.ndarray], np.ndarray]] = {
    "components": components,
    "hungry": hungry,
}


def write_image(path: Path, n_bytes: int) -> tuple[int, int]:
    """Write a square float64 image of discs; every chunk is the same, so it is written once."""
    n_chunks = round((n_bytes / 8) ** 0.5 / CHUNK)
    size = n_chunks * CHUNK
    array = zarr.create_array(
        str(path), shape=(size, size), chunks=(CHUNK, CHUNK), dtype="f8", dimension_names=["y", "x"]
    )
    y, x = np.ogrid[:CHUNK, :CHUNK]
    array[:CHUNK, :CHUNK] = np.sin(y / 9) * np.sin(x / 11)
    first = path / "c" / "0" / "0"
    for i in range(n_chunks):
        for j in range(n_chunks):
            target = path / "c" / str(i) / str(j)
            if target != first:
                target.parent.mkdir(parents=True, exist_ok=True)
                os.link(first, target)
    return size, size


def memory_group(name: str, limit: int) -> Path | None:
    """Make a memory control group with a limit; None where that is not possible."""
    for root, file in zip(GROUPS, LIMIT_FILES, strict=True):
        group = root / name
        try:
            group.mkdir()
            (group / file).write_text(str(limit))
        except OSError:
            continue
        return group
    return None


def peak_of(process: subprocess.Popen[str]) -> int:
    """Return the largest sum of proportional set sizes of a process and those it started, bytes."""
    peak = 0
    while process.poll() is None:
        total = 0
        try:
            root = psutil.Process(process.pid)
            for p in (root, *root.children(recursive=True)):
                total += p.memory_full_info().pss
        except psutil.Error:  # one of them has just ended
            pass
        peak = max(peak, total)
        time.sleep(0.1)
    return peak


def main() -> None:
    """Run every combination and print a table."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--gigabytes", type=float, default=16)
    parser.add_argument("--limit", type=float, default=2, help="gigabytes")
    parser.add_argument("--kinds", nargs="+", default=["threads", "processes"])
    parser.add_argument("--functions", nargs="+", default=list(FUNCTIONS))
    parser.add_argument("--workers", type=int, default=2, help="0 lets the budget decide")
    args = parser.parse_args()
    limit = int(args.limit * 1e9)
    print("| function | workers | limit | finished | seconds | peak, GB | settled on |")
    print("|--|--|--|--|--|--|--|")
    with tempfile.TemporaryDirectory(prefix="patchworks-") as folder:
        image = Path(folder, "image.zarr")
        shape = write_image(image, int(args.gigabytes * 1e9))
        for function in args.functions:
            for kind in args.kinds:
                print(run(image, Path(folder), function, kind, args.workers, limit), flush=True)
    print(f"\nimage {shape}, float64, {8 * shape[0] * shape[1] / 1e9:.1f} GB")


def run(image: Path, folder: Path, function: str, kind: str, n_workers: int, limit: int) -> str:
    """Run one combination; return its row."""
    group = memory_group(f"patchworks-{os.getpid()}", limit)

    def confine() -> None:
        if group is None:
            resource.setrlimit(resource.RLIMIT_AS, (limit, limit))
        else:
            (group / "cgroup.procs").write_text(str(os.getpid()))

    target = folder / "labels.zarr"
    command = [sys.executable, "-c", CHILD, str(image), str(target), function, kind, str(n_workers)]
    process = subprocess.Popen(
        command,
        stdout=subprocess.PIPE,
        stderr=(folder / "said").open("w"),
        text=True,
        preexec_fn=confine,
    )
    try:
        peak = peak_of(process)
        output = process.stdout.read() if process.stdout else ""
    finally:
        process.kill()
        process.wait()
        if group is not None:
            group.rmdir()
        shutil.rmtree(target, ignore_errors=True)
    said = (folder / "said").read_text().splitlines()
    settled = next((line for line in said if "set by" in line or "holds" in line), said[-1:])
    kind_of_limit = "address space" if group is None else "cgroup"
    if process.returncode:
        print("\n".join(said[-20:]), file=sys.stderr)
        return (
            f"| {function} | {kind} | {kind_of_limit} | no, exit {process.returncode} | - "
            f"| {peak / 1e9:.2f} | {settled} |"
        )
    found = json.loads(output.splitlines()[-1])
    return (
        f"| {function} | {kind} | {kind_of_limit} | yes | {found['seconds']:.0f} "
        f"| {peak / 1e9:.2f} | {settled} |"
    )


if __name__ == "__main__":
    main()
