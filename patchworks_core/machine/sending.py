"""What a task carries reaches worker processes once, not with every item.

An image in memory, a histogram or a shading field would otherwise be pickled for each tile, and
copied into each worker for each tile again.

1. `in_file` pickles a task once; a small one goes with every item as it is.
2. Of a large one the pickle and the bytes of its arrays are put into a temporary file.
3. For each item a worker maps that file: pages are read when touched and are the same for all
   workers. What a task writes into its arrays is its own, as if it had been sent.
"""

from __future__ import annotations

import mmap
import pickle
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Generic, TypeVar

import cloudpickle

from patchworks_core.errors import PlanError

Item = TypeVar("Item")
Result = TypeVar("Result")

SMALL_BYTES = 1 << 16
"""A task up to this size goes with every item; it costs less than a file."""

ALIGNMENT = 64
"""Bytes to which an array in the file is aligned, as NumPy aligns what it allocates."""

NOT_PICKLED = (pickle.PicklingError, TypeError, AttributeError)
"""What pickling raises of something that cannot be sent."""


@dataclass(frozen=True, slots=True)
class TaskInFile(Generic[Item, Result]):
    """A task that lies in a file of this machine."""

    path: str
    """Of the file."""

    parts: tuple[tuple[int, int], ...]
    """Start and end of the pickle in the file, then of each array."""

    def __call__(self, item: Item) -> Result:
        """Run the task on one item."""
        with open(self.path, "rb") as file:
            # Copy on write: a worker that writes into an array changes neither file nor neighbour.
            content = memoryview(mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_COPY))
        pickled, *arrays = (content[start:stop] for start, stop in self.parts)
        task: Callable[[Item], Result] = pickle.loads(pickled, buffers=arrays)
        return task(item)


@contextmanager
def in_file(task: Callable[[Item], Result]) -> Iterator[Callable[[Item], Result]]:
    """Give what to send with every item in place of a task: itself where it is small.

    Raises
    ------
    PlanError
        If it does not fit into the temporary folder.
    """
    arrays: list[pickle.PickleBuffer] = []
    try:
        pickled = cloudpickle.dumps(task, protocol=5, buffer_callback=arrays.append)
    except NOT_PICKLED:
        yield task  # each item then fails, and says why
        return
    pieces: list[Any] = [memoryview(pickled), *(array.raw() for array in arrays)]
    n_bytes = sum(piece.nbytes for piece in pieces)
    if n_bytes <= SMALL_BYTES:
        yield task
        return
    with tempfile.TemporaryDirectory(
        prefix="patchworks-task-", ignore_cleanup_errors=True
    ) as folder:
        path = Path(folder) / "task"
        try:
            parts = _write(path, pieces)
        except OSError as error:
            raise PlanError(
                f"worker processes read what every tile needs from a file, and {n_bytes} bytes "
                f"could not be written to {path}: {error}; set TMPDIR to a folder with more room, "
                "give a path instead of an array, or use threads"
            ) from error
        kept: TaskInFile[Item, Result] = TaskInFile(str(path), parts)
        yield kept


def _write(path: Path, pieces: list[Any]) -> tuple[tuple[int, int], ...]:
    """Write pieces one after the other, aligned; return where each lies."""
    parts = []
    with path.open("wb") as file:
        for piece in pieces:
            file.seek(-file.tell() % ALIGNMENT, 1)
            start = file.tell()
            file.write(piece)
            parts.append((start, file.tell()))
    return tuple(parts)


@dataclass(frozen=True, slots=True)
class PickledTask(Generic[Item, Result]):
    """A task as its pickle, for workers that share no disk with this process."""

    pickled: bytes
    """Of the task; unpickled for each item."""

    def __call__(self, item: Item) -> Result:
        """Run the task on one item."""
        task: Callable[[Item], Result] = pickle.loads(self.pickled)
        return task(item)
