"""Faults: what kind of failure a tile had, and whether another try is worth it.

- *transient*: memory of the host or of a GPU ran out, or a device or network did not answer. The
  tile waits, then is tried again with fewer neighbours in flight.
- *killed*: the worker died, by a signal or for memory. On Dask it cannot be seen which of the tiles
  in flight did it, so each is tried again alone; a worker process of ours has one tile, which is
  tried once more, alone, as it may have been killed for what others took. A process that lost its
  GPU, by an address that is none or an assertion in a kernel, cannot use it again: it is ended too.
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
from contextlib import suppress
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

_NO_BACKEND_TEXT = "unable to initialize backend 'cuda'"
"""How JAX says that others hold the memory of the GPU; asked again, it is silent and on the CPU."""

_OUT_OF_MEMORY_TEXT = (
    *("cuda out of memory", "cuda error: out of memory", "cublas_status_alloc"),
    *("cuda_error_out_of_memory", "device(s) is/are busy or unavailable", _NO_BACKEND_TEXT),
)
"""How PyTorch and Numba say it, in errors that have no class for it."""

_LOST_DEVICE_TEXT = (
    *("device-side assert triggered", "illegal memory access", "illegal instruction"),
    *("misaligned address", "unspecified launch failure", "launch timed out"),
    *("hardware stack error", "invalid program counter", "uncorrectable ecc error"),
)
"""What CUDA says of a context that is of no use any more; PyTorch, CuPy and JAX pass it on."""


def _loses_device(error: BaseException) -> bool:
    """Tell whether the GPU is lost to this process, for good."""
    text = str(error).lower()
    return "cuda" in text and any(words in text for words in _LOST_DEVICE_TEXT)


def spoils_process(error: BaseException) -> bool:
    """Tell whether this process is of no use on its GPU any more after an error.

    Examples
    --------
    >>> spoils_process(RuntimeError("CUDA error: device-side assert triggered"))
    True
    >>> spoils_process(RuntimeError("CUDA error: out of memory"))
    False
    """
    return _loses_device(error) or _NO_BACKEND_TEXT in str(error).lower()


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
    if _loses_device(error):
        return "killed"
    text = str(error).lower()
    if any(words in text for words in _OUT_OF_MEMORY_TEXT):
        return "transient"
    return "other"


def free_memory() -> None:
    """Give back what this process does not need, before a tile is tried again."""
    gc.collect()
    free_reserve()


def free_reserve() -> None:
    """Give back the GPU memory that frameworks in this process hold in reserve; some 2 ms."""
    torch, cupy = sys.modules.get("torch"), sys.modules.get("cupy")
    # Of a GPU that is lost, or not there, frameworks say so here once more.
    with suppress(Exception):
        if torch is not None and torch.cuda.is_initialized():
            torch.cuda.empty_cache()
    with suppress(Exception):
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
