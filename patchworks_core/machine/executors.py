"""Executors that can be given up: the threads and processes of this machine that run tasks.

`concurrent.futures` waits at the end for what is running, and the interpreter does so once more.
Here `abandon` waits for nothing, so that an interrupted call ends at once.
"""

from __future__ import annotations

import ctypes
import os
import threading
from collections.abc import Callable, Sequence
from concurrent.futures import CancelledError, Executor, Future, InvalidStateError
from contextlib import AbstractContextManager, suppress
from dataclasses import dataclass
from queue import Empty, SimpleQueue
from typing import Any, ParamSpec, TypeVar

from upath import UPath

from patchworks_core.machine.devices import VISIBLE_DEVICES
from patchworks_core.machine.limits import AUTO_LIMITS, Deadline, WorkerLimits
from patchworks_core.machine.sending import in_file
from patchworks_core.machine.worker_processes import (
    SHARES_DEVICE,
    NotBegunError,
    WorkerProcess,
    answered,
    pickled_call,
)

P = ParamSpec("P")
R = TypeVar("R")

THREAD_VARIABLES = (
    *("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS", "MKL_NUM_THREADS", "BLIS_NUM_THREADS"),
    *("VECLIB_MAXIMUM_THREADS", "NUMEXPR_NUM_THREADS", "NUMBA_NUM_THREADS"),
)
"""How libraries are told their number of threads; the list is that of joblib."""


def one_thread() -> dict[str, str]:
    """Return the variables that let a process compute with one thread, unless they are set."""
    return {name: os.environ.get(name, "1") for name in THREAD_VARIABLES}


class AbandonedError(BaseException):
    """What a thread is told that nobody waits for any more; no `Exception`, which tasks catch."""


@dataclass(frozen=True, slots=True)
class _Call:
    future: Future[Any]
    function: Callable[..., Any]
    arguments: tuple[Any, ...]
    keywords: dict[str, Any]

    def settle(self, value: Any = None, error: BaseException | None = None) -> None:
        """Set the result, unless the call was given up meanwhile."""
        with suppress(InvalidStateError):
            if error is None:
                self.future.set_result(value)
            else:
                self.future.set_exception(error)


class ThreadPool(Executor):
    """Threads of this process, which do not keep it from ending."""

    runs_here = True
    """Tasks run in this interpreter."""

    def __init__(self, count: int) -> None:
        self._count = count
        self._calls: SimpleQueue[_Call | None] = SimpleQueue()
        self._threads: list[threading.Thread] = []
        self._running: dict[threading.Thread, _Call] = {}
        self._is_abandoned = False
        self._is_closed = False

    def submit(self, fn: Callable[P, R], /, *args: P.args, **kwargs: P.kwargs) -> Future[R]:
        """Run a call in a thread of the pool."""
        if self._is_closed:
            raise RuntimeError("these workers were stopped; open others")
        future: Future[R] = Future()
        self._calls.put(_Call(future, fn, args, kwargs))
        if len(self._threads) < self._count:
            number = len(self._threads)
            thread = threading.Thread(
                target=self._serve, args=(number,), name=f"patchworks_{number}", daemon=True
            )
            self._threads.append(thread)
            thread.start()
        return future

    def _serve(self, number: int) -> None:
        """Take calls until there are no more."""
        this = threading.current_thread()
        try:
            while not self._is_abandoned and (call := self._calls.get()) is not None:
                if call.future.set_running_or_notify_cancel():
                    self._running[this] = call
                    self._run(call, number)
                    self._running.pop(this, None)
                del call  # its arrays would stay until the next one
        except BaseException:
            # `AbandonedError` may come while a lock is taken or given back, which then raises too.
            if not self._is_abandoned:
                raise

    def _run(self, call: _Call, number: int) -> None:
        """Run a call in this thread."""
        try:
            value = call.function(*call.arguments, **call.keywords)
        except BaseException as error:
            call.settle(error=error)
        else:
            call.settle(value)

    def abandon(self) -> None:
        """Give up what is running: nobody waits for it, and it is ended as far as it can be.

        Of a thread, that is at its next line of Python; what it computes until then is left out.
        """
        self._is_abandoned = self._is_closed = True
        self._drop_waiting()
        for thread, call in list(self._running.items()):
            call.settle(error=CancelledError("given up while it was running"))
            if thread.ident is not None:
                ctypes.pythonapi.PyThreadState_SetAsyncExc(
                    ctypes.c_ulong(thread.ident), ctypes.py_object(AbandonedError)
                )

    def shutdown(self, wait: bool = True, *, cancel_futures: bool = False) -> None:
        """Stop the threads when what runs is done; what waits is dropped."""
        self._is_closed = True
        self._drop_waiting()
        for _ in self._threads:
            self._calls.put(None)
        if wait and not self._is_abandoned:
            for thread in self._threads:
                thread.join()

    def _drop_waiting(self) -> None:
        """Cancel what was not started."""
        with suppress(Empty):
            while True:
                call = self._calls.get_nowait()
                if call is not None:
                    call.future.cancel()


class ProcessPool(ThreadPool):
    """Worker processes, each kept by a thread that gives it calls and starts it anew if it dies.

    A worker has one call at a time, so it is known what it was doing when it died, took too long or
    took too much memory: that call fails, and the others go on. Each worker computes with one
    thread, as there are as many workers as are to compute at once; a variable of
    `THREAD_VARIABLES` that is set stays as it is. Workers end when this process does, however it
    ends.

    Parameters
    ----------
    count : int
    slots : sequence of str
        UUID of the GPU behind each worker; none where no GPU is used. A worker that takes the place
        of one that died has its slot.
    limits : WorkerLimits
        Of each call.
    """

    runs_here = False

    def __init__(
        self,
        count: int,
        slots: Sequence[str] = (),
        limits: WorkerLimits = AUTO_LIMITS,
    ) -> None:
        super().__init__(count)
        self._slots = slots
        self._deadline = Deadline(limits.timeout)
        self._memory = limits.memory_bytes()
        self._workers: dict[int, WorkerProcess] = {}

    def sharing(
        self, task: Callable[[Any], R], place: UPath | None = None
    ) -> AbstractContextManager[Callable[[Any], R]]:
        """Give what is sent with every item in place of a task; workers are of this machine."""
        return in_file(task)

    def _serve(self, number: int) -> None:
        try:
            super()._serve(number)
        finally:
            if number in self._workers:
                self._workers.pop(number).close()

    def _run(self, call: _Call, number: int) -> None:
        """Send a call to the worker of this thread, and wait for what it gives."""
        try:
            content = pickled_call(call.function, call.arguments, call.keywords)
            value = answered(
                lambda: self._answer(number, content), goes_on=lambda: not self._is_closed
            )
        except BaseException as error:
            call.settle(error=error)
            self._forget_the_dead(number)
        else:
            self._forget_the_dead(number)
            call.settle(value)

    def _answer(self, number: int, content: bytes) -> Any:
        """Return what the worker of a thread gives; start it where there is none."""
        if number not in self._workers:
            self._workers[number] = WorkerProcess(self._environ(number))
        try:
            return self._workers[number].call(content, deadline=self._deadline, memory=self._memory)
        except NotBegunError:
            self._forget_the_dead(number)
            raise

    def _forget_the_dead(self, number: int) -> None:
        """Make room for another worker where that of a thread is gone."""
        worker = self._workers.get(number)
        if worker is not None and not worker.is_running:
            self._workers.pop(number).close()

    def _environ(self, number: int) -> dict[str, str]:
        """Return what the worker of a thread has in its environment."""
        if not self._slots:
            return one_thread()
        slot = self._slots[number]
        shares = {SHARES_DEVICE: "1"} if self._slots[: self._count].count(slot) > 1 else {}
        return one_thread() | {VISIBLE_DEVICES: slot} | shares

    def abandon(self) -> None:
        """Give up what is running, and end the workers."""
        self._is_abandoned = self._is_closed = True
        self._drop_waiting()
        for worker in list(self._workers.values()):
            worker.end()

    def shutdown(self, wait: bool = True, *, cancel_futures: bool = False) -> None:
        """End the workers at once; what waits is dropped."""
        self._is_closed = True
        self._drop_waiting()
        for worker in list(self._workers.values()):
            worker.end()
        super().shutdown(wait)
