"""Calls on Dask in processes of their own: each thread of a Dask worker has one beneath it.

A function that hangs, crashes or takes too much memory then fails its call, and neither the Dask
worker nor what else it was given.

1. `InProcess` is what is submitted in place of a call.
2. The process is kept for the next call, and ended when none comes for a while.
3. A call that nobody waits for any more, because it was cancelled or its driver is gone, is ended.
"""

from __future__ import annotations

import tempfile
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from patchworks_core.machine.executors import one_thread
from patchworks_core.machine.limits import Deadline, WorkerLimits
from patchworks_core.machine.sending import PickledTask, TaskInFile
from patchworks_core.machine.worker_processes import (
    WorkerProcess,
    answered,
    pickled_call,
)

SECONDS_IDLE = 30.0
"""After which a process is ended that nobody gave a call: it may hold a model, or a GPU."""


@dataclass(frozen=True, slots=True)
class InProcess:
    """A call that a Dask worker makes in the process beneath its thread."""

    limits: WorkerLimits
    """Of the call; ``auto`` memory is the thread's share of what the Dask worker may take."""

    def __call__(self, function: Callable[..., Any], *arguments: Any) -> Any:
        """Make the call; raise what it raises, or WorkerLostError where its process was lost."""
        content = pickled_call(function, tuple(map(_in_file, arguments)), {})
        worker, key = _dask_worker()
        memory = _memory_of(self.limits, worker)
        deadline = _DEADLINES.setdefault(self.limits, Deadline(self.limits.timeout))
        return _beneath_this_thread().call(
            content, deadline=deadline, memory=memory, is_wanted=lambda: _is_wanted(worker, key)
        )


_DEADLINES: dict[WorkerLimits, Deadline] = {}
"""What the tiles took that passed in this Dask worker."""

_BENEATH = threading.local()


class _Beneath:
    """The process beneath one thread, started when it is needed."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._process: WorkerProcess | None = None
        self._used = 0.0

    def call(self, content: bytes, **options: Any) -> Any:
        """Make a pickled call in the process; options are those of `WorkerProcess.call`."""
        with self._lock:
            return answered(lambda: self._call_once(content, **options))

    def _call_once(self, content: bytes, **options: Any) -> Any:
        if self._process is None:
            self._process = WorkerProcess(one_thread())
        try:
            return self._process.call(content, **options)
        finally:
            self._used = time.monotonic()
            if not self._process.is_running:
                self._end()
            else:
                timer = threading.Timer(SECONDS_IDLE, self._end_if_idle)
                timer.daemon = True
                timer.start()

    def _end_if_idle(self) -> None:
        with self._lock:
            if self._process is not None and time.monotonic() - self._used >= SECONDS_IDLE:
                self._end()

    def _end(self) -> None:
        process, self._process = self._process, None
        if process is not None:
            process.close()


def _beneath_this_thread() -> _Beneath:
    if not hasattr(_BENEATH, "process"):
        _BENEATH.process = _Beneath()
    process: _Beneath = _BENEATH.process
    return process


def _dask_worker() -> tuple[Any, str]:
    """Return the Dask worker that this thread is of, and the key of its task."""
    from distributed import get_worker, worker

    return get_worker(), str(worker.thread_state.key)  # type: ignore[attr-defined]


def _is_wanted(worker: Any, key: str) -> bool:
    """Tell whether somebody waits for a task: not where it was cancelled, or its client is gone."""
    task = worker.state.tasks.get(key)
    return task is not None and task.state != "cancelled"


def _memory_of(limits: WorkerLimits, worker: Any) -> int | None:
    """Return the bytes that a process may take: what was said, or its share of the worker's."""
    memory = limits.memory_bytes()
    of_worker: int | None = worker.memory_manager.memory_limit
    if memory is None or limits.memory != "auto" or not of_worker:
        return memory
    return min(memory, of_worker // max(1, int(worker.state.nthreads)))


_FILES: dict[int, tuple[PickledTask[Any, Any], tempfile.TemporaryDirectory[str]]] = {}
"""Large tasks that this Dask worker was given last, and their files."""

_N_FILES = 4
"""Kept at once; the oldest goes, with its folder."""

_FILING = threading.Lock()


def _in_file(argument: Any) -> Any:
    """Return a large task as one in a file of this machine, so that it is sent once."""
    if not isinstance(argument, PickledTask):
        return argument
    with _FILING:
        if id(argument) not in _FILES:
            while len(_FILES) >= _N_FILES:
                _FILES.pop(next(iter(_FILES)))
            folder = tempfile.TemporaryDirectory(
                prefix="patchworks-task-", ignore_cleanup_errors=True
            )
            (Path(folder.name) / "task").write_bytes(argument.pickled)
            _FILES[id(argument)] = argument, folder
        _, folder = _FILES[id(argument)]
    task: TaskInFile[Any, Any] = TaskInFile(
        str(Path(folder.name) / "task"), ((0, len(argument.pickled)),)
    )
    return task
