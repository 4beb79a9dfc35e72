"""Faults: what kind of failure a tile had, and whether another try is worth it.

- *transient*: memory of the host or of a GPU ran out, or a device or network did not answer. The
  tile waits, then is tried again with fewer neighbours in flight.
- *killed*: the worker died, by a signal or for memory. On Dask it cannot be seen which of the tiles
  in flight did it, so each is tried again alone; a worker process of ours has one tile, which is
  tried once more, alone, as it may have been killed for what others took.
- *storage*: what came of the tile could not be kept. That is so for all tiles, so staging stops.
- *stuck*: the tile took longer than it may. Another try would take as long.
- *refused*: the input or what the function returned breaks a rule. Another try would give the same.
- *other*: an error nobody knows. It is tried once more; the same error twice is final.
"""

from __future__ import annotations

import errno
import gc
import sys
from collections.abc import Sequence
from concurrent.futures import BrokenExecutor
from dataclasses import dataclass
from typing import Literal

from patchworks_core.errors import (
    ImageError,
    PlanError,
    SegmentationError,
    StageError,
    StorageError,
    TileOutputError,
    TileTimeoutError,
    WorkerLostError,
)

FaultKind = Literal["transient", "killed", "stuck", "storage", "refused", "other"]

_REFUSED = (ImageError, PlanError, SegmentationError, StageError, TileOutputError)

_TRANSIENT = (MemoryError, ConnectionError, TimeoutError, InterruptedError, BlockingIOError)

_TRANSIENT_ERRNO = {
    errno.EAGAIN,
    errno.EBUSY,
    errno.EIO,
    errno.EMFILE,
    errno.ENFILE,
    errno.ENOMEM,
    errno.ESTALE,
    errno.ETIMEDOUT,
}
"""Of an OSError: a device, a network file system or a table that may be free in a moment."""

_TRANSIENT_NAMES = {"OutOfMemoryError", "ResourceExhaustedError"}
"""Classes of packages that are not imported here: PyTorch and CuPy, TensorFlow."""

_KILLED_NAMES = {"KilledWorker"}
"""Class of Dask."""

_OUT_OF_MEMORY_TEXT = ("cuda out of memory", "cuda error: out of memory", "cublas_status_alloc")
"""How older PyTorch says it in a RuntimeError."""


def kind_of(error: BaseException) -> FaultKind:
    """Return what kind of fault an exception is.

    Examples
    --------
    >>> kind_of(MemoryError()), kind_of(ValueError("no"))
    ('transient', 'other')
    """
    names = {cls.__name__ for cls in type(error).__mro__}
    if isinstance(error, TileTimeoutError):
        return "stuck"
    if isinstance(error, BrokenExecutor | WorkerLostError) or names & _KILLED_NAMES:
        return "killed"
    if isinstance(error, _REFUSED):
        return "refused"
    if isinstance(error, _TRANSIENT) or names & _TRANSIENT_NAMES:
        return "transient"
    if isinstance(error, OSError) and error.errno in _TRANSIENT_ERRNO:
        return "transient"
    if isinstance(error, StorageError):
        return "storage"
    text = str(error).lower()
    if isinstance(error, RuntimeError) and any(words in text for words in _OUT_OF_MEMORY_TEXT):
        return "transient"
    return "other"


def free_memory() -> None:
    """Give back what frameworks in this process hold in reserve, before a tile is tried again."""
    gc.collect()
    torch, cupy = sys.modules.get("torch"), sys.modules.get("cupy")
    if torch is not None and torch.cuda.is_initialized():
        torch.cuda.empty_cache()
    if cupy is not None:
        cupy.get_default_memory_pool().free_all_blocks()


@dataclass(frozen=True, slots=True)
class RetryPolicy:
    """How often a tile is tried again, and after how long."""

    transient_attempts: int = 4
    """Tries in all of a tile with transient faults."""

    killed_attempts: int = 2
    """Tries in all of a tile whose worker died: once among others, then alone."""

    other_attempts: int = 2
    """Tries in all of a tile with an unknown error; the same error twice is final."""

    seconds: float = 1.0
    """Wait before the second try of a transient fault; doubled for each further one."""

    max_seconds: float = 60.0
    """Longest wait."""

    def wait_before_retry(self, faults: Sequence[tuple[FaultKind, str]]) -> float | None:
        """Return the seconds to wait before another try, or None where there is none.

        Parameters
        ----------
        faults : sequence of (kind, text)
            The faults of one tile so far, the last one last.

        Examples
        --------
        >>> policy = RetryPolicy()
        >>> policy.wait_before_retry([("transient", "out of memory")])
        1.0
        >>> policy.wait_before_retry([("other", "IndexError: 3"), ("other", "IndexError: 3")])
        """
        kind, text = faults[-1]
        n = sum(1 for k, _ in faults if k == kind)
        if kind in ("refused", "stuck", "storage"):
            return None
        if kind == "transient":
            wait = min(self.max_seconds, self.seconds * 2 ** (n - 1))
            return wait if n < self.transient_attempts else None
        if kind == "killed":
            return 0.0 if n < self.killed_attempts else None
        is_same = sum(1 for k, t in faults if (k, t) == (kind, text)) > 1
        return None if is_same or n >= self.other_attempts else 0.0


NO_RETRY = RetryPolicy(transient_attempts=1, killed_attempts=1, other_attempts=1)
"""One try each."""
