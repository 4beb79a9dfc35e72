"""What a task carries reaches worker processes once, not with every item.

An image in memory, a histogram or a shading field would otherwise be pickled for each tile, and
copied into each worker for each tile again.

1. `in_file` pickles a task once; a small one goes with every item as it is.
2. Of a large one the pickle and the bytes of its arrays are put into a temporary file.
3. For each item a worker maps that file: pages are read when touched and are the same for all
   workers. What a task writes into its arrays is its own, as if it had been sent.
4. Workers of other machines find the file at a place that they reach too; of an object store each
   fetches it once.
"""

from __future__ import annotations

import mmap
import pickle
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from enum import Enum, auto
from functools import lru_cache
from typing import Any, Generic, TypeVar

import cloudpickle
from upath import UPath

from patchworks_core.errors import ClusterError, PlanError
from patchworks_core.machine.error_texts import not_reached

Item = TypeVar("Item")
Result = TypeVar("Result")

SMALL_BYTES = 1 << 16
"""A task up to this size goes with every item; it costs less than a file."""

ALIGNMENT = 64
"""Bytes to which an array in the file is aligned, as NumPy aligns what it allocates."""

PLACED_BYTES = 1 << 12
"""A task up to this size goes with every item, where a large one has a place in a store."""

NOT_PICKLED = (pickle.PicklingError, TypeError, AttributeError)
"""What pickling raises of something that cannot be sent."""


@dataclass(frozen=True, slots=True)
class TaskInFile(Generic[Item, Result]):
    """A task that lies in a file."""

    path: str | UPath
    """Of the file; a `UPath` is on an object store."""

    parts: tuple[tuple[int, int], ...]
    """Start and end of the pickle in the file, then of each array."""

    def __call__(self, item: Item) -> Result:
        """Run the task on one item."""
        if isinstance(self.path, str):
            try:
                with open(self.path, "rb") as file:
                    # Copy on write: who writes into an array changes neither file nor neighbour.
                    content = memoryview(mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_COPY))
            except FileNotFoundError:
                raise ClusterError(not_reached(f"what tasks share, at {self.path},")) from None
        else:
            content = memoryview(_fetched(self.path))
        pickled, *arrays = (content[start:stop] for start, stop in self.parts)
        task: Callable[[Item], Result] = pickle.loads(pickled, buffers=arrays)
        return task(item)


@lru_cache(maxsize=2)
def _fetched(path: UPath) -> bytes:
    """Read a file of an object store, once in a process."""
    return bytes(path.read_bytes())


@contextmanager
def in_file(
    task: Callable[[Item], Result], place: UPath | None = None
) -> Iterator[Callable[[Item], Result]]:
    """Give what to send with every item in place of a task: itself where it is small.

    Parameters
    ----------
    task : callable
    place : UPath, optional
        The file for a large one, removed at the end; None is one in a temporary folder.

    Raises
    ------
    PlanError
        If it does not fit there.
    """
    arrays: list[pickle.PickleBuffer] = []
    try:
        pickled = cloudpickle.dumps(task, protocol=5, buffer_callback=arrays.append)
    except NOT_PICKLED:
        yield task  # each item then fails, and says why
        return
    pieces: list[Any] = [memoryview(pickled), *(array.raw() for array in arrays)]
    n_bytes = sum(piece.nbytes for piece in pieces)
    if n_bytes <= (SMALL_BYTES if place is None else PLACED_BYTES):
        yield task
        return
    with ExitStack() as stack:
        if place is None:
            folder = tempfile.TemporaryDirectory(
                prefix="patchworks-task-", ignore_cleanup_errors=True
            )
            file = UPath(stack.enter_context(folder)) / "task"
            way_out = "set TMPDIR to a folder with more room, give a path instead of an array, or "
            way_out += "use threads"
        else:
            file, way_out = place, "make room there"
            stack.callback(place.unlink, missing_ok=True)
        try:
            parts = _write(file, pieces)
        except OSError as error:
            raise PlanError(
                f"worker processes read what every tile needs from a file, and {n_bytes} bytes "
                f"could not be written to {file}: {error}; {way_out}"
            ) from error
        is_local = file.protocol in ("", "file", "local")
        kept: TaskInFile[Item, Result] = TaskInFile(str(file) if is_local else file, parts)
        yield kept


def _write(path: UPath, pieces: list[Any]) -> tuple[tuple[int, int], ...]:
    """Write pieces one after the other, aligned; return where each lies."""
    parts, stop = [], 0
    with path.open("wb") as file:
        for piece in pieces:
            gap = -stop % ALIGNMENT
            file.write(bytes(gap))
            file.write(piece)
            parts.append((stop + gap, stop + gap + piece.nbytes))
            stop = parts[-1][1]
    return tuple(parts)


class _Sent(Enum):
    """What stands for what Dask itself sends."""

    RESULT = auto()


@dataclass(frozen=True, slots=True)
class PickledCall:
    """A call as its pickle: whoever hands it on opens none of what it is about."""

    pickled: bytes

    @classmethod
    def of(
        cls, function: Any, arguments: Sequence[Any], keywords: Mapping[str, Any]
    ) -> PickledCall:
        """Pickle a call; where an argument is `AS_RESULT`, a result takes its place."""
        return cls(bytes(cloudpickle.dumps((function, tuple(arguments), dict(keywords)))))

    def __call__(self, *results: Any) -> Any:
        """Make the call."""
        function, arguments, keywords = pickle.loads(self.pickled)
        rest = iter(results)
        return function(*(next(rest) if a is AS_RESULT else a for a in arguments), **keywords)


AS_RESULT = _Sent.RESULT
"""Argument of a `PickledCall` that is given when it is made."""


@dataclass(frozen=True, slots=True)
class PickledTask(Generic[Item, Result]):
    """A task as its pickle, for workers that share no disk with this process."""

    pickled: bytes
    """Of the task; unpickled for each item."""

    def __call__(self, item: Item) -> Result:
        """Run the task on one item."""
        task: Callable[[Item], Result] = pickle.loads(self.pickled)
        return task(item)
