"""The engine: one task over many tiles, on any `concurrent.futures.Executor`.

A bounded window of tasks is in flight, so neither tasks nor results pile up. A task that raises
becomes a `Failure` and the others go on; outcomes come in order of completion, and nothing that is
written may depend on that order.
"""

from __future__ import annotations

import time
import traceback
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import (
    FIRST_COMPLETED,
    BrokenExecutor,
    CancelledError,
    Executor,
    Future,
    ThreadPoolExecutor,
    wait,
)
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, Generic, Literal, TypeVar

from patchworks_core.errors import PlanError

Item = TypeVar("Item")
Result = TypeVar("Result")

WorkerKind = Literal["threads", "processes"]

WINDOW_PER_WORKER = 2
"""Tasks in flight per worker: one running, one waiting so that no worker idles."""


@dataclass(frozen=True, slots=True)
class Failure:
    """Why a task did not give a result; plain text, so that it crosses any process border."""

    error_type: str
    """Class of the exception."""

    message: str
    """Its text."""

    traceback: str
    """Where it came from."""

    def __str__(self) -> str:
        return f"{self.error_type}: {self.message}"


@dataclass(frozen=True, slots=True)
class Outcome(Generic[Item, Result]):
    """What became of one item: a value, or a failure."""

    item: Item
    value: Result | None
    failure: Failure | None
    seconds: float


@dataclass(frozen=True, slots=True)
class Workers:
    """How many tasks run at once, and in what."""

    count: int = 1
    """Tasks at once."""

    kind: WorkerKind = "threads"
    """``threads`` share this process; ``processes`` are for functions that hold the GIL."""

    def __post_init__(self) -> None:
        if self.count < 1:
            raise PlanError(f"workers must be at least 1, got {self.count!r}")
        if self.kind not in ("threads", "processes"):
            raise PlanError(f"workers must be 'threads' or 'processes', got {self.kind!r}")

    @contextmanager
    def open(self) -> Iterator[Executor]:
        """Start the workers, and stop them at the end; tasks not yet started are dropped."""
        executor: Executor
        if self.kind == "threads":
            executor = ThreadPoolExecutor(self.count, thread_name_prefix="patchworks")
        else:
            # loky sends functions defined in notebooks and scripts, needs no __main__ guard, and
            # notices a worker that was killed; the standard pool does none of these.
            from loky import ProcessPoolExecutor

            executor = ProcessPoolExecutor(self.count)
        try:
            yield executor
        finally:
            if self.kind == "threads":
                executor.shutdown(wait=True, cancel_futures=True)
            else:
                executor.shutdown(wait=True, kill_workers=True)  # type: ignore[call-arg]


def map_tiles(
    task: Callable[[Item], Result],
    items: Iterable[Item],
    *,
    executor: Executor,
    window: int,
) -> Iterator[Outcome[Item, Result]]:
    """Run `task` on every item and yield the outcomes as they complete.

    Parameters
    ----------
    task : callable
        Called with one item in a worker; must pickle where workers are processes.
    items : iterable
        Taken one by one, as there is room in the window.
    executor : concurrent.futures.Executor
    window : int
        Items in flight at most.

    Yields
    ------
    Outcome
        One per item. A task that raised, or whose worker died, is a failure.
    """
    running: dict[Future[Outcome[Item, Result]], Item] = {}
    waiting = iter(items)
    exhausted = False
    try:
        while running or not exhausted:
            while not exhausted and len(running) < window:
                try:
                    item = next(waiting)
                except StopIteration:
                    exhausted = True
                    break
                try:
                    running[executor.submit(_run, task, item)] = item
                except BrokenExecutor as error:
                    yield Outcome(item, None, _failure(error), 0.0)
            done, _ = wait(running, return_when=FIRST_COMPLETED)
            for future in done:
                yield _outcome(future, running.pop(future))
    finally:
        # Whoever stops listening must not leave tasks behind in an executor that lives on.
        for future in running:
            future.cancel()


def _outcome(future: Future[Outcome[Item, Result]], item: Item) -> Outcome[Item, Result]:
    """Return what a task that is done came to; its worker may have died before it could say."""
    error = CancelledError("cancelled") if future.cancelled() else future.exception()
    return future.result() if error is None else Outcome(item, None, _failure(error), 0.0)


def _run(task: Callable[[Item], Result], item: Item) -> Outcome[Item, Result]:
    """Run one task in a worker; what it raises comes back as text."""
    start = time.perf_counter()
    try:
        value = task(item)
    # Any error of a segmentation function fails its tile alone, and comes back as text because
    # exceptions of foreign packages do not all survive pickling.
    except Exception as error:
        return Outcome(item, None, _failure(error), time.perf_counter() - start)
    return Outcome(item, value, None, time.perf_counter() - start)


def _failure(error: BaseException) -> Failure:
    text = "".join(traceback.format_exception(error))
    return Failure(type(error).__name__, str(error), text)


def results(outcomes: Iterable[Outcome[Any, Result]], *, doing: str) -> Iterator[Result]:
    """Yield the values of outcomes of which none may fail.

    Raises
    ------
    RuntimeError
        At the first failure, with the worker's traceback.
    """
    for outcome in outcomes:
        if outcome.failure is not None:
            raise RuntimeError(f"{doing} failed: {outcome.failure}\n{outcome.failure.traceback}")
        yield outcome.value  # type: ignore[misc]
