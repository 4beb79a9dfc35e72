"""One task over many items: bounded, complete, and deaf to the order of completion."""

from __future__ import annotations

import os
import random
import threading
import time
from concurrent.futures import Executor, Future, ThreadPoolExecutor
from contextlib import ExitStack

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from patchworks_core.errors import PlanError
from patchworks_core.machine import engine
from patchworks_core.machine.dask_clients import ClusterExecutor, make_local_cluster
from patchworks_core.machine.engine import Outcome, in_order, map_tiles, results
from patchworks_core.machine.workers import Workers


class Unpicklable(Exception):
    """An exception that no process can send."""

    def __init__(self, message: str) -> None:
        super().__init__(message)
        self.lock = threading.Lock()


def square(item: int) -> int:
    return item * item


def fail_at_3(item: int) -> int:
    if item == 3:
        raise Unpicklable("three is wrong")
    return item


def die_at_3(item: int) -> int:
    if item == 3:
        os._exit(1)
    return item


class OutOfOrder(Executor):
    """Finishes what was submitted in random order; keeps count of what is in flight."""

    def __init__(self, seed: int) -> None:
        self.random, self.lock = random.Random(seed), threading.Lock()
        self.waiting: list = []
        self.most = 0

    def submit(self, fn, /, *args, **kwargs) -> Future:
        future: Future = Future()
        with self.lock:
            self.waiting.append((future, fn, args))
            self.most = max(self.most, len(self.waiting))
        threading.Timer(0.001, self.finish_one).start()
        return future

    def finish_one(self) -> None:
        with self.lock:
            future, fn, args = self.waiting.pop(self.random.randrange(len(self.waiting)))
        future.set_result(fn(*args))


@given(n=st.integers(0, 12), window=st.integers(1, 5), seed=st.integers(0, 2**32))
@settings(max_examples=25)
def test_every_item_gives_one_outcome_in_whatever_order_and_the_window_holds(n, window, seed):
    executor = OutOfOrder(seed)
    outcomes = list(map_tiles(square, range(n), executor=executor, window=window))
    assert sorted((o.item, o.value) for o in outcomes) == [(i, i * i) for i in range(n)]
    assert executor.most <= window


def test_items_are_taken_as_there_is_room():
    taken = []

    def items():
        for i in range(100):
            taken.append(i)
            yield i

    with ThreadPoolExecutor(1) as executor:
        outcomes = map_tiles(square, items(), executor=executor, window=4)
        assert taken == []
        next(outcomes)
        assert len(taken) <= 4
        assert len(list(outcomes)) == 99


def test_no_more_tasks_run_at_once_than_the_window():
    lock, now, most = threading.Lock(), [0], [0]

    def task(item):
        with lock:
            now[0] += 1
            most[0] = max(most[0], now[0])
        time.sleep(0.002)
        with lock:
            now[0] -= 1

    with ThreadPoolExecutor(8) as executor:
        list(map_tiles(task, range(30), executor=executor, window=3))
    assert 1 <= most[0] <= 3


class ComesAndGoes(ThreadPoolExecutor):
    """Threads, `n` of which a test lets be there; keeps how many tasks were in flight at most."""

    def __init__(self, n: int) -> None:
        super().__init__(20)
        self.n, self.futures, self.most = n, [], {}

    def count_workers(self) -> int:
        return self.n

    def submit(self, fn, /, *args, **kwargs) -> Future:
        future = super().submit(fn, *args, **kwargs)
        self.futures = [f for f in self.futures if not f.done()] + [future]
        self.most[self.n] = max(self.most.get(self.n, 0), len(self.futures))
        return future


def test_the_window_is_wider_once_workers_came_even_while_long_tasks_run(monkeypatch):
    monkeypatch.setattr(engine, "SECONDS_BETWEEN_COUNTS", 0.05)
    executor, others = ComesAndGoes(1), threading.Barrier(4, timeout=20)
    threading.Timer(0.2, setattr, (executor, "n", 2)).start()
    # Four tasks wait for each other: with the window that there was at first, for ever.
    outcomes = list(map_tiles(lambda i: others.wait(), range(4), executor=executor, window=2))
    assert all(outcome.failure is None for outcome in outcomes)
    assert executor.most[1] == 2


def test_the_window_is_narrower_once_workers_went(monkeypatch):
    monkeypatch.setattr(engine, "SECONDS_BETWEEN_COUNTS", 0.0)
    executor = ComesAndGoes(5)
    for n_done, _ in enumerate(map_tiles(square, range(60), executor=executor, window=10), start=1):
        executor.n = 5 if n_done < 30 else 0
    assert executor.most[5] <= 10
    assert executor.most[0] <= 2, "where there is none, what one would have waits for the next"


def test_what_memory_took_off_the_window_stays_off_when_a_worker_comes(monkeypatch):
    monkeypatch.setattr(engine, "SECONDS_BETWEEN_COUNTS", 0.0)
    executor = ComesAndGoes(4)

    def task(item: int) -> None:
        if item < 6:
            raise MemoryError
        time.sleep(0.5)

    for n_done, _ in enumerate(map_tiles(task, range(40), executor=executor, window=8), start=1):
        if n_done == 6:
            executor.n = 5
        if n_done == 7:
            break
    assert executor.most.get(5, 0) <= 5, "two of the new worker, beside what had room"


@pytest.mark.parametrize("kind", ["threads", "processes"])
def test_a_task_that_raises_is_a_failure_and_the_others_finish(kind):
    with Workers(2, kind).open() as executor:
        outcomes = list(map_tiles(fail_at_3, range(8), executor=executor, window=4))
    failed = {o.item: o.failure for o in outcomes if o.failure}
    assert list(failed) == [3]
    assert str(failed[3]).endswith("): Unpicklable: three is wrong")
    assert "in fail_at_3" in failed[3].traceback
    assert sorted(o.value for o in outcomes if not o.failure) == [0, 1, 2, 4, 5, 6, 7]


def test_a_worker_that_dies_gives_failures_and_no_hang():
    with Workers(1, "processes").open() as executor:
        outcomes = list(map_tiles(die_at_3, range(8), executor=executor, window=2))
    assert sorted(o.item for o in outcomes) == list(range(8))
    by_item = {o.item: o for o in outcomes}
    assert by_item[3].failure is not None
    assert [by_item[i].value for i in range(2)] == [0, 1]
    assert by_item[3].failure.error_type == "WorkerLostError"


def test_functions_made_on_the_spot_run_in_processes():
    offset = 5
    with Workers(1, "processes").open() as executor:
        outcomes = list(map_tiles(lambda i: i + offset, [1], executor=executor, window=1))
    assert outcomes[0].value == 6


def test_a_task_that_exits_fails_alone():
    def leave(item):
        raise SystemExit(3)

    with ThreadPoolExecutor(1) as executor:
        outcomes = list(map_tiles(leave, [1, 2], executor=executor, window=1))
    assert [o.failure.error_type for o in outcomes] == ["SystemExit", "SystemExit"]


def test_a_task_that_is_cancelled_from_outside_is_a_failure():
    class Cancelling(Executor):
        def submit(self, fn, /, *args, **kwargs):
            future: Future = Future()
            future.cancel()
            future.set_running_or_notify_cancel()
            return future

    outcomes = list(map_tiles(square, [1], executor=Cancelling(), window=1))
    assert outcomes[0].failure.error_type == "CancelledError"


def test_who_stops_listening_leaves_no_tasks_waiting():
    started = []
    first_is_done = threading.Event()

    def task(item):
        started.append(item)
        if item:
            first_is_done.wait(5)

    with ThreadPoolExecutor(1) as executor:
        outcomes = map_tiles(task, range(10), executor=executor, window=6)
        next(outcomes)
        outcomes.close()
        first_is_done.set()
    assert len(started) <= 2


def test_results_are_values_or_the_first_failure_with_its_traceback():
    with ThreadPoolExecutor(1) as executor:
        good = results(map_tiles(square, [2, 3], executor=executor, window=1), doing="squaring")
        assert list(good) == [4, 9]
        bad = results(map_tiles(fail_at_3, [3], executor=executor, window=1), doing="squaring")
        with pytest.raises(RuntimeError, match=": Unpicklable: three is wrong\nTra"):
            list(bad)


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ((0,), "workers must be a whole number, 1 or more"),
        ((1, "fibres"), "'threads' or 'processes'"),
    ],
)
def test_workers_that_cannot_be_are_refused(arguments, words):
    with pytest.raises(PlanError, match=words):
        Workers(*arguments)


def test_outcomes_come_in_the_order_of_their_items_when_asked():
    outcomes = [Outcome(item, item * 10, None, 0.0) for item in (2, 0, 3, 1)]
    assert [o.value for o in in_order(outcomes, range(4))] == [0, 10, 20, 30]
    waited = in_order(iter(outcomes), range(4))
    assert next(waited).item == 0


class Panic(BaseException):
    """Such as PyO3 raises where Rust code panics; no `Exception`."""


def leave_at_2(item):
    if item == 2:
        raise SystemExit("licence missing")
    if item == 3:
        raise Panic("a panic")
    return item


@pytest.mark.parametrize("kind", ["threads", "processes", "dask"])
def test_what_is_no_exception_fails_its_tile_alone(kind):
    with ExitStack() as stack:
        if kind == "dask":
            cluster = make_local_cluster(n_workers=1, memory_bytes=10**9, dashboard_address=None)
            executor = ClusterExecutor(stack.enter_context(cluster))
        else:
            executor = stack.enter_context(Workers(1, kind).open())
        found, done = {}, threading.Event()

        def run():
            for outcome in map_tiles(leave_at_2, range(5), executor=executor, window=2):
                failure = outcome.failure
                text = f"{failure.error_type}: {failure.message}" if failure else ""
                found[outcome.item] = text or outcome.value
            done.set()

        threading.Thread(target=run, daemon=True).start()
        assert done.wait(30), "no answer"
    assert found == {0: 0, 1: 1, 2: "SystemExit: licence missing", 3: "Panic: a panic", 4: 4}


def test_when_an_error_is_raised_no_task_is_still_at_work(tmp_path):
    def task(number: int) -> None:
        if number == 0:
            raise ValueError("the first fails")
        time.sleep(0.3)
        (tmp_path / f"{number}").touch()

    with Workers(3).open() as executor:
        outcomes = map_tiles(task, range(3), executor=executor, window=3)
        with pytest.raises(RuntimeError, match="the first fails"):
            list(results(outcomes, doing="writing"))
        at_the_error = sorted(tmp_path.iterdir())
        time.sleep(0.6)
    assert sorted(tmp_path.iterdir()) == at_the_error
