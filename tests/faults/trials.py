"""A small call in a process of its own, stopped at a numbered step that it does to files.

1. `Points` counts the steps: each file that is opened for writing, each write of a whole file, each
   rename, removal and new folder below one folder.
2. At one of them it kills the process (a write is done by half first), or raises an error.
3. `run` does so in a copy of this process, which has everything imported: a fresh interpreter would
   take a second.
"""

from __future__ import annotations

import errno
import hashlib
import os
import pathlib
import pickle
import shutil
import sys
import time
import traceback
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import numpy as np

from patchworks_core import segment_to_ome_zarr, tile_process
from patchworks_core.machine import pools
from patchworks_core.machine.faults import RetryPolicy

Fault = Literal["kill", "ENOSPC", "EIO", "EACCES"]

FAULTS: tuple[Fault, ...] = ("kill", "ENOSPC", "EIO", "EACCES")

LASTING = {"ENOSPC", "EACCES"}
"""Faults that stay once they are there: a full disk, a place that is not ours."""

MAKES = {"open", "os.mkdir", "os.rename", "os.link", "write"}
"""Steps that a full disk or a forbidden place stops; what is there can be removed."""

STEPS = MAKES | {"os.remove", "os.rmdir"}

KILLED = 137

SECONDS = 60.0
"""A call that takes longer hangs."""


def labels_of_stripes(tile: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
    """Label each row of pixels of a tile that is not 0, and note that it was called."""
    note_call(int(tile.max()))
    rows = np.arange(1, tile.shape[0] + 1, dtype=np.int32)[:, None]
    return np.where(tile > 0, rows, 0).astype(np.int32)


def labels_of_columns(tile: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
    """Label each column of pixels of a tile that is not 0, and note that it was called."""
    note_call(int(tile.max()))
    columns = np.arange(1, tile.shape[1] + 1, dtype=np.int32)[None, :]
    return np.where(tile > 0, columns, 0).astype(np.int32)


def note_call(number: int) -> None:
    """Add a byte to the file of a tile; not by a step that counts."""
    folder = os.environ["PATCHWORKS_TEST_CALLS"]
    file = os.open(f"{folder}/{number}", os.O_WRONLY | os.O_CREAT | os.O_APPEND)
    os.write(file, b".")
    os.close(file)


def image() -> np.ndarray[Any, Any]:
    """Return an image of six tiles, of which each has a number of its own."""
    numbers = np.arange(1, 7, dtype=np.uint8).reshape(2, 3)
    pixels = np.kron(numbers, np.ones((8, 8), np.uint8))
    pixels[:, ::5] = 0
    return pixels


def array_call(folder: Path) -> None:
    """Write an array of labels."""
    tile_process(
        image(),
        labels_of_stripes,
        tile_shape=8,
        merge="touching",
        max_workers=2,
        write_to=folder / "a.zarr",
        resume=True,
    )


def ome_call(folder: Path) -> None:
    """Write an OME-Zarr label image."""
    segment_to_ome_zarr(
        image(),
        labels_of_stripes,
        folder / "b.zarr",
        tile_shape=8,
        merge="touching",
        max_workers=2,
        resume=True,
    )


CALLS: dict[str, Callable[[Path], None]] = {"tile_process": array_call, "OME-Zarr": ome_call}


class Points:
    """Counts what is done to files below a folder, and stops the process at the n-th step."""

    def __init__(self, folder: Path, at: int | None, fault: Fault = "kill") -> None:
        self.folder, self.at, self.fault = f"{folder}/", at, fault
        self.n = 0
        self.has_come = False

    def arm(self) -> None:
        """Listen from now on; it cannot be taken back."""
        sys.addaudithook(self._hear)
        write = pathlib.Path.write_bytes

        def write_bytes(path: pathlib.Path, content: bytes) -> int:
            if not str(path).startswith(self.folder):
                return write(path, content)
            if self._is_due("write"):
                write(path, bytes(content)[: len(content) // 2])
                self._stop("write", str(path))
            return write(path, content)

        pathlib.Path.write_bytes = write_bytes  # type: ignore[method-assign, assignment]

    def _hear(self, event: str, arguments: tuple[Any, ...]) -> None:
        if event not in STEPS or not str(arguments[0]).startswith(self.folder):
            return
        if event == "open" and not self._writes(*arguments[1:3]):
            return
        if self._is_due(event):
            self._stop(event, str(arguments[0]))

    @staticmethod
    def _writes(mode: str | None, flags: int) -> bool:
        return any(m in (mode or "") for m in "wax+") or bool(flags & (os.O_WRONLY | os.O_RDWR))

    def _is_due(self, event: str) -> bool:
        self.n += 1
        if self.has_come:
            return self.fault in LASTING and event in MAKES
        self.has_come = self.n == self.at
        return self.has_come and (self.fault in ("kill", "EIO") or event in MAKES)

    def _stop(self, event: str, path: str) -> None:
        if self.fault == "kill":
            os._exit(KILLED)
        number = getattr(errno, self.fault)
        raise OSError(number, os.strerror(number), path)


@dataclass(frozen=True, slots=True)
class Ended:
    """How a call in a copy of this process ended."""

    code: int
    """0, or `KILLED`."""

    seconds: float
    n_steps: int = 0
    error: str = ""
    """Class and text of what it raised."""

    calls: Counter[str] = field(default_factory=Counter)
    """How often the function was called for each tile."""


@dataclass(frozen=True, slots=True)
class Started:
    """A call in a copy of this process that may go on."""

    process: int
    begun: float
    calls: Path
    answer: Path

    def wait(self) -> Ended:
        """Wait for its end."""
        code = _wait(self.process, self.begun + SECONDS)
        seconds = time.monotonic() - self.begun
        whole = self.answer.exists()
        n_steps, error = pickle.loads(self.answer.read_bytes()) if whole else (0, "")
        self.answer.unlink(missing_ok=True)
        counted = Counter({path.name: path.stat().st_size for path in self.calls.iterdir()})
        return Ended(code, seconds, n_steps, error, counted)


def start(
    call: Callable[[Path], None],
    folder: Path,
    at: int | None = None,
    fault: Fault = "kill",
    *,
    name: str = "",
) -> Started:
    """Start a call in a copy of this process, stopped at a step."""
    calls = folder.with_name("calls")  # always the same: what a function reads tells it apart
    calls.mkdir(exist_ok=True)
    answer = folder.with_name(f"{folder.name}{name}.answer")
    answer.unlink(missing_ok=True)
    begun = time.monotonic()
    process = os.fork()
    if process == 0:
        _in_the_copy(call, folder, calls, answer, at, fault)
    return Started(process, begun, calls, answer)


def run(
    call: Callable[[Path], None], folder: Path, at: int | None = None, fault: Fault = "kill"
) -> Ended:
    """Run a call in a copy of this process, stopped at a step; return how it ended."""
    shutil.rmtree(folder.with_name("calls"), ignore_errors=True)
    started = start(call, folder, at, fault)
    ended = started.wait()
    shutil.rmtree(started.calls)
    return ended


def _in_the_copy(
    call: Callable[[Path], None], folder: Path, calls: Path, answer: Path, at: Any, fault: Fault
) -> None:
    error = ""
    try:
        os.environ["PATCHWORKS_TEST_CALLS"] = str(calls)
        silence = os.open(os.devnull, os.O_WRONLY)
        os.dup2(silence, 1)
        os.dup2(silence, 2)
        pools.RETRY = RetryPolicy(other_attempts=1, seconds=0.01)
        points = Points(folder, at, fault)
        points.arm()
        try:
            call(folder)
        except Exception as raised:
            error = f"{type(raised).__name__}: {raised}"
        points.folder = "/nowhere"
        answer.write_bytes(pickle.dumps((points.n, error)))
    except BaseException:
        answer.write_bytes(pickle.dumps((0, traceback.format_exc())))
    finally:
        os._exit(0)


def _wait(process: int, deadline: float) -> int:
    """Wait for a process; kill one that hangs."""
    while True:
        ended, status = os.waitpid(process, os.WNOHANG)
        if ended:
            return os.waitstatus_to_exitcode(status)
        if time.monotonic() > deadline:
            os.kill(process, 9)
            os.waitpid(process, 0)
            return -9
        time.sleep(0.002)


def digest_of(folder: Path) -> str:
    """Return a digest of every file of labels: names and bytes."""
    digest = hashlib.blake2b(digest_size=16)
    for path in sorted(files_in(folder)):
        digest.update(f"{path}\n".encode() + (folder / path).read_bytes())
    return digest.hexdigest()


def files_in(folder: Path) -> Iterator[str]:
    """Yield every file below a folder."""
    for path in folder.rglob("*"):
        if path.is_file():
            yield str(path.relative_to(folder))


ENDINGS = (".part", ".partial", ".trash", ".lock", ".work")


def left_over(folder: Path, endings: tuple[str, ...] = ENDINGS) -> list[str]:
    """Return what is there of names that are none of a result."""
    return [str(p.relative_to(folder)) for p in folder.rglob("*") if p.name.endswith(endings)]


@dataclass(frozen=True, slots=True)
class Trial:
    """A call that was stopped, and the same call again."""

    call: str
    fault: Fault
    at: int
    first: Ended
    again: Ended
    faults: tuple[str, ...]
    """What is wrong; empty where all is as promised."""

    @property
    def n_twice(self) -> int:
        """Tiles that were computed more often than once."""
        return sum(n > 1 for n in (self.first.calls + self.again.calls).values())


IN_FLIGHT = 2
"""Tiles that are worked on at once, and may be computed twice where the call is killed."""

IN_WINDOW = 4
"""Tiles that are given to workers when an error ends the call."""


def tried(call: str, fault: Fault, at: int, folder: Path, reference: str) -> Trial:
    """Stop a call at a step and call again; say what is not as promised."""
    folder.mkdir()
    first = run(CALLS[call], folder, at, fault)
    wrong = []
    if first.code not in (0, KILLED):
        wrong.append(f"the first call ended with {first.code}")
    if fault != "kill" and first.error:
        if not first.error.startswith("StorageError: ") or "\n" in first.error:
            wrong.append(f"not said in one line: {first.error[:2000]}")
        if parts := left_over(folder, (".part", ".partial")):
            wrong.append(f"after the error {parts} are there")
    again = run(CALLS[call], folder)
    if again.code or again.error:
        wrong.append(f"the call again: {again.code} {again.error[:2000]}")
    elif digest_of(folder) != reference:
        wrong.append(f"other bytes: {sorted(files_in(folder))}")
    if rest := left_over(folder):
        wrong.append(f"left over: {rest}")
    trial = Trial(call, fault, at, first, again, tuple(wrong))
    if trial.n_twice > (IN_FLIGHT if fault == "kill" else IN_WINDOW):
        twice = f"{trial.n_twice} tiles computed twice"
        trial = Trial(call, fault, at, first, again, (*wrong, twice))
    shutil.rmtree(folder)
    return trial


def reference_of(call: str, folder: Path) -> tuple[str, int]:
    """Run a call that nothing stops; return the digest of its files, and how many steps it does."""
    folder.mkdir()
    ended = run(CALLS[call], folder)
    assert not ended.error, ended.error
    digest = digest_of(folder)
    shutil.rmtree(folder)
    return digest, ended.n_steps
