"""The engine: one task over many tiles, on any `concurrent.futures.Executor`.

1. A bounded window of tasks is in flight, so neither tasks nor results pile up. Where workers come
   and go, it follows them.
2. A task that raises becomes a `Failure` and the others go on.
3. A fault that is worth it is tried again (`patchworks_core.machine.faults`): transient ones after
   a wait and with fewer neighbours, those of a dead worker one at a time, so that the tile that
   kills workers is found and its neighbours are not blamed.
4. Outcomes come in order of completion; nothing that is written may depend on that order.
"""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Generator, Iterable, Iterator
from concurrent.futures import (
    FIRST_COMPLETED,
    BrokenExecutor,
    CancelledError,
    Executor,
    Future,
    wait,
)
from contextlib import nullcontext
from dataclasses import dataclass, field
from typing import Any, Generic, TypeVar

from upath import UPath

from patchworks_core.errors import (
    ClusterError,
    ImageError,
    PlanError,
    SegmentationError,
    StageError,
    StorageError,
    TileOutputError,
    TileTimeoutError,
    WorkerLostError,
    WorkerMemoryError,
)
from patchworks_core.machine.error_texts import message_of, own_line, traceback_of
from patchworks_core.machine.faults import (
    NO_RETRY,
    FaultKind,
    RetryPolicy,
    free_memory,
    kind_of,
    spoils_process,
)
from patchworks_core.machine.interrupts import is_interruption
from patchworks_core.machine.worker_processes import end_after_call

OUR_ERRORS: dict[str, type[Exception]] = {
    error.__name__: error
    for error in (
        *(ImageError, PlanError, ClusterError, SegmentationError, StageError, TileOutputError),
        *(StorageError, WorkerLostError, WorkerMemoryError, TileTimeoutError),
    )
}
"""Errors that are made of a message alone, by the name they have in a `Failure`."""

Item = TypeVar("Item")
Result = TypeVar("Result")

WINDOW_PER_WORKER = 2
"""Tasks in flight per worker: one running, one waiting so that no worker idles."""

SECONDS_BETWEEN_COUNTS = 2.0
"""How often workers that come and go are counted."""


@dataclass(frozen=True, slots=True)
class Failure:
    """Why a task did not give a result; plain text, so that it crosses any process border."""

    error_type: str
    """Class of the exception."""

    message: str
    """Its text."""

    traceback: str
    """Where it came from."""

    kind: FaultKind = "other"
    """Whether another try could help."""

    line: str = ""
    """The user's own line that it came from, in words; empty where none is in it."""

    @property
    def is_of_storage(self) -> bool:
        """True where it is of a place that is written to, and other tasks would fare no better."""
        return self.error_type == StorageError.__name__

    def __str__(self) -> str:
        what = f"{self.error_type}: {self.message}"
        return f"{self.line}: {what}" if self.line else what


@dataclass(frozen=True, slots=True)
class Outcome(Generic[Item, Result]):
    """What became of one item: a value, or a failure."""

    item: Item
    value: Result | None
    failure: Failure | None
    seconds: float
    """Of the last try."""

    attempts: int = 1
    """Tries in all."""


def map_tiles(
    task: Callable[[Item], Result],
    items: Iterable[Item],
    *,
    executor: Executor,
    window: int,
    retry: RetryPolicy = NO_RETRY,
    place: UPath | None = None,
) -> Iterator[Outcome[Item, Result]]:
    """Run `task` on every item and yield the outcomes as they complete.

    Parameters
    ----------
    task : callable
        Called with one item in a worker; must pickle where workers are processes.
    items : iterable
        Taken one by one, as there is room in the window.
    executor : concurrent.futures.Executor
        One with a method ``sharing`` says what is sent to its workers in place of the task; one
        with ``abandon`` gets it called when the caller is interrupted. One whose workers come and
        go has ``count_workers``, which says how many calls they run at once now.
    window : int
        Items in flight at most; where workers are counted, at first.
    retry : RetryPolicy
        Which faults are tried again; none by default.
    place : UPath, optional
        A file that is not there yet, where workers of other machines can read: a large task is
        kept in it meanwhile, instead of being sent to them.

    Yields
    ------
    Outcome
        One per item. A task that raised, or whose worker died, is a failure. Items that were not
        started when the caller stops listening are dropped.
    """
    sharing = getattr(executor, "sharing", None)
    with nullcontext(task) if sharing is None else sharing(task, place) as sent:
        yield from _Map(sent, iter(items), executor, window, retry).outcomes()


@dataclass(slots=True)
class _Tries(Generic[Item]):
    """One item and what happened to it so far."""

    item: Item
    faults: list[tuple[FaultKind, str]] = field(default_factory=list)
    ready_at: float = 0.0

    @property
    def is_suspect(self) -> bool:
        """True where a worker died with this item in flight."""
        return bool(self.faults) and self.faults[-1][0] == "killed"


class _Map(Generic[Item, Result]):
    """The state of one `map_tiles`."""

    def __init__(
        self,
        task: Callable[[Item], Result],
        items: Iterator[Item],
        executor: Executor,
        window: int,
        retry: RetryPolicy,
    ) -> None:
        self._task = task
        self._items = items
        self._executor = executor
        self._window = self._full_window = window
        self._retry = retry
        self._count_workers: Callable[[], int] | None = getattr(executor, "count_workers", None)
        self._counted_at = time.monotonic()
        self._running: dict[Future[_Answer[Result]], _Tries[Item]] = {}
        self._again: list[_Tries[Item]] = []
        self._exhausted = False

    def outcomes(self) -> Iterator[Outcome[Item, Result]]:
        try:
            while True:
                self._fill()
                if self._exhausted and not self._running and not self._again:
                    return
                if not self._running:
                    time.sleep(max(0.0, self._seconds_to_next_try() or 0.0))
                    continue
                done, _ = wait(self._running, self._patience(), return_when=FIRST_COMPLETED)
                for future in done:
                    outcome = self._settle(future)
                    if outcome is not None:
                        yield outcome
        except BaseException as error:
            if is_interruption(error) and hasattr(self._executor, "abandon"):
                self._executor.abandon()
            raise
        finally:
            # Whoever gives up clears away what tasks write: none may write after that.
            wait([future for future in self._running if not future.cancel()])

    def _fill(self) -> None:
        """Submit items while there is room: those to be tried again first."""
        self._follow_workers()
        while len(self._running) < self._room():
            tries = self._next()
            if tries is None:
                return
            self._submit(tries)

    def _follow_workers(self) -> None:
        """Widen or narrow the window where workers came or went since they were last counted."""
        now = time.monotonic()
        if self._count_workers is None or now - self._counted_at < SECONDS_BETWEEN_COUNTS:
            return
        # Without any worker, what is in flight waits for the next.
        full = WINDOW_PER_WORKER * max(1, self._count_workers())
        # What transient faults took off stays off.
        self._window = max(1, self._window + full - self._full_window)
        self._full_window = full
        self._counted_at = time.monotonic()

    def _room(self) -> int:
        """Items that may be in flight: one, while it is not known which of them kills workers."""
        suspects = (t.is_suspect for t in (*self._again, *self._running.values()))
        return 1 if any(suspects) else self._window

    def _next(self) -> _Tries[Item] | None:
        now = time.monotonic()
        ready = [tries for tries in self._again if tries.ready_at <= now]
        if ready:
            first = min(ready, key=lambda tries: (not tries.is_suspect, tries.ready_at))
            self._again.remove(first)
            return first
        if self._exhausted or any(tries.is_suspect for tries in self._again):
            return None
        try:
            return _Tries(next(self._items))
        except StopIteration:
            self._exhausted = True
            return None

    def _submit(self, tries: _Tries[Item]) -> None:
        try:
            future = self._executor.submit(_run, self._task, tries.item)
        except BrokenExecutor as error:
            future = Future()
            future.set_exception(error)
        self._running[future] = tries

    def _settle(self, future: Future[_Answer[Result]]) -> Outcome[Item, Result] | None:
        """Return the outcome of an item, or None where it is tried again."""
        tries = self._running.pop(future)
        attempts = len(tries.faults) + 1
        if future.cancelled():
            answer = _failed(CancelledError("cancelled before it was started"))
        elif (error := future.exception()) is not None:
            answer = _failed(error)
        else:
            answer = future.result()
        if answer.failure is None:
            self._window = min(self._full_window, self._window + 1)
            return Outcome(tries.item, answer.value, None, answer.seconds, attempts)
        tries.faults.append((answer.failure.kind, str(answer.failure)))
        if answer.failure.kind == "transient":
            self._window = max(1, self._window // 2)
        seconds = self._retry.wait_before_retry(tries.faults)
        if seconds is None:
            return Outcome(tries.item, None, answer.failure, answer.seconds, attempts)
        tries.ready_at = time.monotonic() + seconds
        self._again.append(tries)
        return None

    def _patience(self) -> float | None:
        """Return how long to wait for an outcome before there may be something else to do."""
        seconds = self._seconds_to_next_try()
        if self._count_workers is None:
            return seconds
        return SECONDS_BETWEEN_COUNTS if seconds is None else min(seconds, SECONDS_BETWEEN_COUNTS)

    def _seconds_to_next_try(self) -> float | None:
        """Return how long until an item is to be tried again, or None where none is waiting."""
        if not self._again or len(self._running) >= self._room():
            return None
        return max(0.0, min(tries.ready_at for tries in self._again) - time.monotonic())


@dataclass(frozen=True, slots=True)
class _Answer(Generic[Result]):
    """What a worker says of one item, which need not travel back."""

    value: Result | None
    failure: Failure | None
    seconds: float


def _run(task: Callable[[Item], Result], item: Item) -> _Answer[Result]:
    """Run one task in a worker; what it raises comes back as text."""
    start = time.perf_counter()
    process = os.getpid()
    try:
        value = task(item)
    # Any error of a segmentation function fails its tile alone, and comes back as text because
    # exceptions of foreign packages do not all survive pickling. Also what is no `Exception`, such
    # as `sys.exit` or a panic of Rust code: it would end a worker of Dask, and nobody would answer.
    except BaseException as error:
        answer: _Answer[Result] = _failed(error, time.perf_counter() - start)
        if spoils_process(error):
            end_after_call()
    else:
        answer = _Answer(value, None, time.perf_counter() - start)
    if os.getpid() != process:
        os._exit(0)  # a copy that the task made of its process, and that came back too
    # Out of the handler, so that the traceback no longer keeps the tile's arrays alive.
    if answer.failure is not None and answer.failure.kind == "transient":
        free_memory()
    return answer


def _failed(error: BaseException, seconds: float = 0.0) -> _Answer[Any]:
    line, text = own_line(error), traceback_of(error)
    failure = Failure(type(error).__name__, message_of(error), text, kind_of(error), line)
    return _Answer(None, failure, seconds)


def in_order(
    outcomes: Iterable[Outcome[Item, Result]], items: Iterable[Item]
) -> Iterator[Outcome[Item, Result]]:
    """Yield outcomes in the order of the items; one that comes early waits for those before it.

    Parameters
    ----------
    outcomes : iterable of Outcome
        One per item, in any order.
    items : iterable
        Hashable, no two the same.
    """
    rest = iter(items)
    early: dict[Item, Outcome[Item, Result]] = {}
    item = next(rest, None)
    for outcome in outcomes:
        early[outcome.item] = outcome
        while item in early:
            yield early.pop(item)
            item = next(rest, None)


def results(outcomes: Iterable[Outcome[Any, Result]], *, doing: str) -> Iterator[Result]:
    """Yield the values of outcomes of which none may fail.

    Raises
    ------
    ImageError, PlanError, SegmentationError, StageError, TileOutputError
        At the first failure, where it is one of these.
    RuntimeError
        At any other, with the worker's traceback.
    """
    try:
        for outcome in outcomes:
            if outcome.failure is not None:
                raise _raised(outcome.failure, doing)
            yield outcome.value  # type: ignore[misc]
    finally:
        # The traceback of the error would keep a generator, and its tasks, until it is dropped.
        if isinstance(outcomes, Generator):
            outcomes.close()


def _raised(failure: Failure, doing: str) -> Exception:
    """Return the error that a failure is in this process: our own say all in their message."""
    ours = OUR_ERRORS.get(failure.error_type)
    if ours is not None:
        return ours(f"{doing} failed: {failure.message}")
    return RuntimeError(f"{doing} failed: {failure}\n{failure.traceback}")
