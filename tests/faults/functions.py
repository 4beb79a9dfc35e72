"""Bad functions in threads, processes and on Dask: what became of tile, neighbours and call."""

from __future__ import annotations

import ctypes
import os
import re
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np

BAD = (
    *("nothing", "raises", "exits", "prints 100 MB", "forks", "changes directory"),
    *("leaks", "ends the process", "crashes", "hangs"),
)
"""What a function does on one tile of four."""

KINDS = ("threads", "processes", "Dask", "Dask, processes")

SECONDS = 240.0
"""Longer than this, and the call is ended from outside."""

SECONDS_OF_A_HANG = 60.0
"""The same for a function that hangs where nothing ends it: threads, and plain Dask."""

TIMEOUT = 5.0


def bad(tile: np.ndarray) -> np.ndarray:
    """Do on the tile that holds 7 what the environment says; label all pixels of any tile."""
    what = os.environ["PATCHWORKS_TEST_BAD"]
    if (tile == 7).any():
        if what == "raises":
            raise ValueError("bad")
        if what == "exits":
            sys.exit("bad")
        if what == "prints 100 MB":
            print("x" * 100_000_000)
        if what == "forks":
            os.fork()
        if what == "changes directory":
            os.chdir("/")
        if what == "leaks":
            kept = [np.ones(50_000_000, np.uint8) for _ in range(8)]
            time.sleep(20)
            del kept
        if what == "ends the process":
            os._exit(3)
        if what == "crashes":
            ctypes.string_at(0)
        if what == "hangs":
            time.sleep(600)
    return (tile > 0).astype(np.int32)


PROGRAM = """
import os, sys, numpy as np
from patchworks_core import make_local_cluster, tile_process
from tests.faults.functions import TIMEOUT, bad
kind, target = sys.argv[1:]
image = np.ones((8, 32), np.uint8)
image[0, 8] = 7
def call(**more):
    tile_process(image, bad, tile_shape=8, merge="touching", write_to=target, **more)
def main():
    if kind.startswith("Dask"):
        options = dict(n_workers=1, memory_limit="400MB", dashboard_address=None)
        limits = dict(workers="processes", tile_timeout=TIMEOUT) if "processes" in kind else {}
        with make_local_cluster(**options) as client:
            call(client=client, **limits)
    elif kind == "processes":
        call(workers=kind, max_workers=2, tile_timeout=TIMEOUT, worker_memory="250MB")
    else:
        call(max_workers=2)
if __name__ == "__main__":
    try:
        main()
        print("complete", file=sys.stderr)
    except Exception as error:
        failures = getattr(error, "failures", {"": error})
        text = "; ".join(str(failure) for failure in failures.values())
        print(f"{type(error).__name__} {list(failures)} {text}", file=sys.stderr)
"""


@dataclass(frozen=True, slots=True)
class Row:
    """What came of one function in one kind of workers."""

    what: str
    kind: str
    tile: str
    n_others: int
    """Of the three other tiles that are staged."""

    call: str
    seconds: float


def trials(
    folder: Path, kinds: tuple[str, ...] = KINDS, functions: tuple[str, ...] = BAD
) -> Iterator[Row]:
    """Run each function in each kind of workers, in a process of its own."""
    folder.mkdir(parents=True)
    for kind in kinds:
        for what in functions:
            yield _row(folder / f"{kind} {what}.zarr", what, kind)


def _row(target: Path, what: str, kind: str) -> Row:
    script = target.with_suffix(".py")
    script.write_text(PROGRAM)
    may_hang = what == "hangs" and "processes" not in kind
    start = time.monotonic()
    process = subprocess.Popen(
        [sys.executable, str(script), kind, str(target)],
        env={**os.environ, "PATCHWORKS_TEST_BAD": what},
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    )
    try:
        said = process.communicate(timeout=SECONDS_OF_A_HANG if may_hang else SECONDS)[1]
        call = "returned" if "complete" in said else f"exit code {process.returncode}"
    except subprocess.TimeoutExpired:
        os.killpg(process.pid, 9)
        said = process.communicate()[1]
        call = "not over, and killed from outside"
    seconds = time.monotonic() - start
    error = next((line for line in said.splitlines() if line.startswith("TilesFailedError")), "")
    tile = "done" if call == "returned" else "lost with the call"
    if error:
        call = "raised TilesFailedError"
        name = re.search(r"\b(\w+Error|SystemExit|KilledWorker)\b", error.partition("] ")[2])
        tile = f"failed by name: {name[0] if name else error}"
    staged = {path.name for path in target.rglob("*.tiles")} - {"y000x001.tiles"}
    n_others = 3 if call == "returned" else len(staged)
    return Row(what, kind, tile, n_others, call, seconds)


def table(rows: list[Row]) -> str:
    """Return the rows as a table of Markdown."""
    lines = [
        "| function | workers | its tile | other tiles | call | s |",
        "|---|---|---|---|---|---|",
    ]
    lines += [
        f"| {r.what} | {r.kind} | {r.tile} | {r.n_others} of 3 | {r.call} | {r.seconds:.0f} |"
        for r in sorted(rows, key=lambda row: (BAD.index(row.what), KINDS.index(row.kind)))
    ]
    return "\n".join(lines)
