"""A worker process that hangs, dies or eats memory fails its own task, and no other."""

from __future__ import annotations

import math
import os
import re
import signal
import time

import numpy as np
import psutil
import pytest

from patchworks_core import plan_tiles, stage_tile, tile_process
from patchworks_core.errors import PlanError, TilesFailedError, TileTimeoutError, WorkerLostError
from patchworks_core.machine.engine import map_tiles
from patchworks_core.machine.executors import ProcessPool
from patchworks_core.machine.faults import RetryPolicy
from patchworks_core.machine.limits import (
    LEAST_SECONDS,
    SECONDS_OF_FIRST,
    Deadline,
    WorkerLimits,
    bytes_of,
)
from patchworks_core.machine.pools import Compute
from patchworks_core.machine.worker_processes import STARTS
from patchworks_core.machine.workers import Workers
from tests.functions.misbehaving import Arrives, misbehave

LIMITS = WorkerLimits(timeout=3, memory="100MB")


WORDS = {
    "sleeps": r"TileTimeoutError: it was not done after 3 s .*tile_timeout=",
    "holds the GIL": r"TileTimeoutError: it was not done after 3 s",
    "crashes": r"WorkerLostError: its worker process was ended by SIGSEGV: the function",
    "exits": r"WorkerLostError: its worker process ended with exit code 7",
    "eats memory": r"WorkerMemoryError: its worker process took [12]\d\d.\d MB, .* 100.0 MB that",
}


def outcomes_of(items, count=2):
    with Workers(count, "processes", limits=LIMITS).open() as executor:
        retry = RetryPolicy(killed_attempts=1)
        outcomes = map_tiles(misbehave, items, executor=executor, window=2 * count, retry=retry)
        return {outcome.item: outcome for outcome in outcomes}


def test_what_is_wrong_with_one_task_is_said_of_it_and_the_others_finish():
    outcomes = outcomes_of(["crashes", 1, "exits", 2, "eats memory", 3, "holds the GIL", 4])
    failures = {item: str(o.failure) for item, o in outcomes.items() if o.failure is not None}
    assert set(failures) == {"crashes", "exits", "eats memory", "holds the GIL"}
    for item, text in failures.items():
        assert re.match(WORDS[item], text), text
    assert len({outcomes[n].value for n in (1, 2, 3, 4)}) > 1, "workers are replaced"


def test_a_task_is_not_blamed_for_workers_that_were_killed_before_they_began_with_it(tmp_path):
    arrived = tmp_path / "arrived.txt"
    arrived.touch()

    def kill_each(count):
        killed = set()
        while len(killed) < count:
            for pid in set(map(int, arrived.read_text().split())) - killed:
                os.kill(pid, signal.SIGKILL)
                killed.add(pid)
            time.sleep(0.02)

    with Workers(1, "processes", limits=LIMITS).open() as executor:
        future = executor.submit(max, Arrives(arrived, 2), 0)
        kill_each(2)
        assert future.result(20) == int(arrived.read_text().split()[2])
    arrived.write_text("")
    with Workers(1, "processes", limits=LIMITS).open() as executor:
        future = executor.submit(max, Arrives(arrived, STARTS), 0)
        kill_each(STARTS)
        with pytest.raises(WorkerLostError, match="was ended by SIGKILL"):
            future.result(20)


@pytest.mark.slow
def test_a_worker_that_is_ended_takes_along_what_its_function_started():
    before = set(psutil.Process().children(recursive=True))
    outcomes = outcomes_of(["starts others", 1], count=1)
    assert outcomes["starts others"].failure.kind == "stuck"
    assert set(psutil.Process().children(recursive=True)) <= before


def test_a_copy_of_a_worker_that_a_function_made_answers_nothing():
    outcomes = outcomes_of(["forks", 1, 2], count=1)
    assert {outcome.value for outcome in outcomes.values()} == {outcomes[1].value}
    assert all(outcome.failure is None for outcome in outcomes.values())


def test_a_deadline_learns_from_what_passed():
    deadline = Deadline("auto")
    assert deadline.seconds == SECONDS_OF_FIRST
    deadline.add(0.1)
    assert deadline.seconds == LEAST_SECONDS
    deadline.add(1000)
    deadline.add(1)
    assert deadline.seconds == 50_000
    assert Deadline(None).seconds == Deadline(math.inf).seconds == math.inf
    chosen = Deadline(3)
    chosen.add(1000)
    assert chosen.seconds == 3


@pytest.mark.parametrize(
    ("limits", "words"),
    [
        ({"timeout": 0}, "tile_timeout must be .*0.1 or more, got 0"),
        ({"timeout": "soon"}, "tile_timeout must be"),
        ({"memory": "much"}, "worker_memory must be a number of bytes, .* such as '8GB', got 'mu"),
        ({"memory": 0}, "worker_memory must be a number of bytes"),
        ({"memory": 8}, "worker_memory must be a number of bytes, 1 MB or more, .*, got 8"),
        ({"memory": True}, "worker_memory must be a number of bytes"),
        ({"memory": "1.2.3GB"}, "worker_memory must be a number of bytes"),
    ],
)
def test_limits_that_cannot_be_are_refused(limits, words):
    with pytest.raises(PlanError, match=words):
        WorkerLimits(**limits)


def test_bytes_are_read_as_people_write_them():
    texts = {
        "8GB": 8 * 10**9,
        "1.5 gib": 3 << 29,
        "2000k": 2_000_000,
        "7000000": 7_000_000,
        5_000_000: 5_000_000,
    }
    assert {text: bytes_of("worker_memory", text) for text in texts} == texts


def test_no_limit_is_no_limit():
    assert WorkerLimits(memory=None).memory_bytes() is None
    assert WorkerLimits().memory_bytes() > 0
    assert not WorkerLimits(None, None).is_asked_for


def test_limits_that_nothing_could_keep_are_refused():
    with pytest.raises(PlanError, match="tiles run in threads; pass workers='processes'"):
        Compute(1, "threads", limits=WorkerLimits(timeout=3))


@pytest.mark.parametrize("options", [{"client": object()}, {"use_gpu": True, "gpus": 1}])
def test_on_dask_limits_ask_for_processes_also_where_one_tile_runs_alone(options):
    limits = WorkerLimits(timeout=3)
    alone = Compute(1, "threads", limits=limits, **options).alone()
    assert (alone.kind, alone.limits, alone.client) == ("processes", limits, None)


def test_a_tile_that_hangs_fails_by_its_name(tmp_path):
    image = np.ones((8, 24), "u1")
    image[0, 9] = 7

    def hangs(tile):
        time.sleep(600 if (tile == 7).any() else 0)
        return (tile > 0).astype("i4")

    options = {"tile_shape": 8, "workers": "processes", "max_workers": 2, "tile_timeout": 1}
    with pytest.raises(TilesFailedError) as failed:
        tile_process(image, hangs, write_to=tmp_path / "a.zarr", **options)
    assert list(failed.value.failures) == ["y000x001"]
    assert "TileTimeoutError" in failed.value.failures["y000x001"]
    assert len(list(tmp_path.rglob("*.tiles"))) == 2


def test_tiles_of_one_block_have_the_time_of_a_tile_each(tmp_path):
    image = np.ones((8, 1024), "u1")  # 128 tiles in 64 blocks of two
    image[0, [3, 11]] = 7

    def dawdles(tile):
        time.sleep(0.7 if (tile == 7).any() else 0)
        return (tile > 0).astype("i4")

    options = {"tile_shape": 8, "workers": "processes", "max_workers": 2, "tile_timeout": 1}
    labels = tile_process(image, dawdles, write_to=tmp_path / "a.zarr", **options)
    assert np.asarray(labels).max() == 1


@pytest.mark.slow
def test_a_tile_that_is_staged_by_itself_has_the_limits_too(tmp_path):
    def leaves(tile):
        os._exit(4)

    plan_tiles(np.ones((4, 4), "u1"), leaves, tmp_path, tile_shape=4, workers="processes")
    with pytest.raises(WorkerLostError, match="tile y000x000 failed: its worker .* exit code 4"):
        stage_tile(tmp_path, 0)


def test_a_pool_can_be_given_up_at_once():
    pool = ProcessPool(1, limits=LIMITS)
    future = pool.submit(time.sleep, 600)
    waiting = pool.submit(time.sleep, 600)
    time.sleep(0.1)
    start = time.monotonic()
    pool.abandon()
    with pytest.raises((WorkerLostError, TileTimeoutError)):
        future.result(5)
    assert waiting.cancelled()
    assert time.monotonic() - start < 5
    with pytest.raises(RuntimeError, match="were stopped"):
        pool.submit(time.sleep, 0)
