"""Workers: the executors that tiles run on, started and stopped in one place.

Threads share this process. Processes are for functions that hold the GIL, that may die, or that
each need a GPU of their own. Any other `concurrent.futures.Executor`, such as a Dask client's, can
be given to the engine directly.
"""

from __future__ import annotations

import os
import tempfile
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import Executor, Future, ThreadPoolExecutor
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from typing import Any, Literal, ParamSpec, TypeVar

from patchworks_core.errors import PlanError
from patchworks_core.machine.devices import bind_to_device
from patchworks_core.machine.parents import end_with_parent
from patchworks_core.machine.sending import in_file
from patchworks_core.tiles.numbers import whole_number

WorkerKind = Literal["threads", "processes"]

P = ParamSpec("P")
R = TypeVar("R")
Item = TypeVar("Item")

THREAD_VARIABLES = (
    *("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS", "BLIS_NUM_THREADS"),
    *("VECLIB_MAXIMUM_THREADS", "NUMEXPR_NUM_THREADS", "NUMBA_NUM_THREADS"),
)
"""How libraries are told their number of threads; the list is that of joblib."""


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
        whole_number("the number of workers", self.count, least=1)
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
    a worker that was killed; the standard pool does none of these. Each worker computes with one
    thread, as there are as many workers as are to compute at once; a variable of
    `THREAD_VARIABLES` that is set stays as it is. Workers end when this process does, however it
    ends.
    """

    def __init__(self, count: int, slots: tuple[str, ...] = ()) -> None:
        self._count = count
        self._slots = slots
        self._folders: list[tempfile.TemporaryDirectory[str]] = []
        self._executor: Any = None

    def _start(self) -> Any:
        from loky import ProcessPoolExecutor

        # The kernel takes the thread that starts workers for their parent, which is the one that
        # gives the first task; only the main thread is sure to live as long as the process.
        is_main = threading.current_thread() is threading.main_thread()
        folder = None
        if self._slots:
            # Taken slots of one generation of workers: those that died took theirs along.
            temporary = tempfile.TemporaryDirectory(prefix="patchworks-slots-")
            self._folders.append(temporary)
            folder = temporary.name
        # No idle timeout, which is the default too: a worker that left would take its slot along.
        return ProcessPoolExecutor(
            self._count,
            timeout=None,
            initializer=_begin_worker,
            initargs=(os.getpid(), is_main, folder, self._slots),
            env={name: os.environ.get(name, "1") for name in THREAD_VARIABLES},
        )

    def sharing(self, task: Callable[[Item], R]) -> AbstractContextManager[Callable[[Item], R]]:
        """Give what is sent with every item in place of a task."""
        return in_file(task)

    def submit(self, fn: Callable[P, R], /, *args: P.args, **kwargs: P.kwargs) -> Future[R]:
        """Run a call in a worker process; the first one starts them."""
        if self._executor is None:
            self._executor = self._start()
        return self._executor.submit(fn, *args, **kwargs)  # type: ignore[no-any-return]

    def renew(self) -> None:
        """Start new workers in place of those that died."""
        if self._executor is not None:
            self._executor.shutdown(wait=False, kill_workers=True)
        self._executor = None

    def shutdown(self, wait: bool = True, *, cancel_futures: bool = False) -> None:
        """Stop the workers."""
        if self._executor is not None:
            self._executor.shutdown(wait=wait, kill_workers=True)
        for folder in self._folders:
            folder.cleanup()


def _begin_worker(parent: int, is_main: bool, folder: str | None, slots: tuple[str, ...]) -> None:
    """Bind a new worker process to the process that started it, and to a GPU where it has one."""
    end_with_parent(parent, by_kernel=is_main)
    if folder is not None:
        bind_to_device(folder, slots)
