"""Workers: the executors that tiles run on, started and stopped in one place.

Threads share this process. Processes are for functions that hold the GIL, that may die, or that
each need a GPU of their own. Any other `concurrent.futures.Executor`, such as a Dask client's, can
be given to the engine directly.
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Iterator
from concurrent.futures import Executor, Future, ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Literal, ParamSpec, TypeVar

from patchworks_core.errors import PlanError
from patchworks_core.machine.devices import take_slot

WorkerKind = Literal["threads", "processes"]

P = ParamSpec("P")
R = TypeVar("R")


@dataclass(frozen=True, slots=True)
class Workers:
    """How many tasks run at once, and in what."""

    count: int = 1
    """Tasks at once."""

    kind: WorkerKind = "threads"
    """``threads`` or ``processes``."""

    slots: tuple[str, ...] = ()
    """UUID of the GPU behind each slot; each worker process is bound to one. Empty is no GPU."""

    def __post_init__(self) -> None:
        if self.count < 1:
            raise PlanError(f"workers must be at least 1, got {self.count!r}")
        if self.kind not in ("threads", "processes"):
            raise PlanError(f"workers must be 'threads' or 'processes', got {self.kind!r}")
        if self.slots and (self.kind != "processes" or self.count > len(self.slots)):
            raise PlanError(
                f"workers on GPUs must be processes, at most one per slot, got {self.count} "
                f"{self.kind} for {len(self.slots)} slots"
            )

    @contextmanager
    def open(self) -> Iterator[Executor]:
        """Start the workers, and stop them at the end; tasks not yet started are dropped."""
        if self.kind == "threads":
            threads = ThreadPoolExecutor(self.count, thread_name_prefix="patchworks")
            try:
                yield threads
            finally:
                threads.shutdown(wait=True, cancel_futures=True)
            return
        processes = ProcessPool(self.count, self.slots)
        try:
            yield processes
        finally:
            processes.shutdown()


class ProcessPool(Executor):
    """Worker processes that can be started anew when one of them has died.

    loky sends functions defined in notebooks and scripts, needs no ``__main__`` guard, and notices
    a worker that was killed; the standard pool does none of these.
    """

    def __init__(self, count: int, slots: tuple[str, ...] = ()) -> None:
        self._count = count
        self._slots = slots
        self._folders: list[tempfile.TemporaryDirectory[str]] = []
        self._executor = self._start()

    def _start(self) -> Any:
        from loky import ProcessPoolExecutor

        if not self._slots:
            return ProcessPoolExecutor(self._count)
        # A folder of taken slots per generation of workers: those that died took theirs along.
        taken = tempfile.TemporaryDirectory(prefix="patchworks-slots-")
        self._folders.append(taken)
        # No idle timeout: a worker that left would take its slot along.
        return ProcessPoolExecutor(
            self._count, timeout=None, initializer=take_slot, initargs=(taken.name, self._slots)
        )

    def submit(self, fn: Callable[P, R], /, *args: P.args, **kwargs: P.kwargs) -> Future[R]:
        """Run a call in a worker process."""
        return self._executor.submit(fn, *args, **kwargs)  # type: ignore[no-any-return]

    def renew(self) -> None:
        """Start new workers in place of those that died."""
        self._executor.shutdown(wait=False, kill_workers=True)
        self._executor = self._start()

    def shutdown(self, wait: bool = True, *, cancel_futures: bool = False) -> None:
        """Stop the workers."""
        self._executor.shutdown(wait=wait, kill_workers=True)
        for folder in self._folders:
            folder.cleanup()
