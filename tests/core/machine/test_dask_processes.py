"""A function on Dask that hangs, dies or eats memory fails its tile, and the Dask worker lives."""

from __future__ import annotations

import ctypes
import os
import signal
import subprocess
import sys
import time

import numpy as np
import pytest

from patchworks_core import TilesFailedError, make_local_cluster, tile_process
from patchworks_core.machine.faults import RetryPolicy
from patchworks_core.machine.limits import WorkerLimits
from patchworks_core.machine.pools import Pool
from tests.functions.misbehaving import misbehave

BAD = {
    "holds the GIL": "TileTimeoutError: it was not done after 5 s",
    "crashes": "WorkerLostError: its worker process was ended by SIGSEGV",
    "exits": "WorkerLostError: its worker process ended with exit code 7",
    "eats memory": "WorkerMemoryError: its worker process took",
}


@pytest.mark.slow
def test_a_bad_task_fails_alone_and_the_only_dask_worker_lives():
    with make_local_cluster(n_workers=1, memory_limit="200MB", dashboard_address=None) as client:
        before = list(client.nthreads())
        limits = WorkerLimits(timeout=5)
        pool = Pool.of_cluster(client, RetryPolicy(killed_attempts=1), limits)
        outcomes = {o.item: o for o in pool.outcomes(misbehave, ["crashes", *BAD, 1, 2])}
        assert list(client.nthreads()) == before
    for item, words in BAD.items():
        assert str(outcomes[item].failure).startswith(words), outcomes[item].failure
    assert outcomes[1].value == outcomes[2].value, "a process is kept for the next call"


def crashes_at_seven(tile):
    if (tile == 7).any():
        ctypes.string_at(0)
    return (tile > 0).astype("i4")


@pytest.mark.slow
@pytest.mark.parametrize("options", [{}, {"workers": "processes"}, {"tile_timeout": 60}])
def test_a_function_that_crashes_its_single_worker_is_over_in_bounded_time(options, tmp_path):
    image = np.ones((8, 32), "u1")
    image[0, 9] = 7
    with make_local_cluster(n_workers=1, dashboard_address=None) as client:
        start = time.monotonic()
        with pytest.raises(TilesFailedError) as failed:
            tile_process(
                image, crashes_at_seven, tile_shape=8, merge="none", write_to=tmp_path / "a.zarr",
                client=client, **options,
            )  # fmt: skip
        seconds = time.monotonic() - start
    print(options, seconds)
    assert list(failed.value.failures) == ["y000x001"]
    assert seconds < 60
    assert len(list(tmp_path.rglob("*.tiles"))) == 3


DRIVER = """
import sys, time
import numpy as np
from distributed import Client
from patchworks_core import tile_process

folder = sys.argv[1]

def slow(tile):
    open(folder + "/started", "a").close()
    time.sleep(4)
    open(folder + "/survived", "a").close()
    return np.full(tile.shape, 1, dtype="i4")

tile_process(np.ones((8, 8), "u1"), slow, tile_shape=4, write_to=folder + "/a.zarr",
             client=Client(sys.argv[2]), workers=sys.argv[3], merge="none")
"""


def two(tile):
    return np.arange(1, tile.size + 1, dtype="i4").reshape(tile.shape)


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["threads", "processes"])
def test_a_dask_worker_of_a_dead_driver_writes_nothing_into_the_next_call(kind, tmp_path):
    script = tmp_path / "driver.py"
    script.write_text(DRIVER)
    with make_local_cluster(n_workers=2, dashboard_address=None) as client:
        command = [sys.executable, str(script), str(tmp_path), client.scheduler.address, kind]
        driver = subprocess.Popen(command)
        while not (tmp_path / "started").exists():
            assert driver.poll() is None
            time.sleep(0.05)
        os.kill(driver.pid, signal.SIGKILL)
        driver.wait()
        labels = tile_process(
            np.ones((8, 8), "u1"), two, tile_shape=4, write_to=tmp_path / "a.zarr",
            client=client, merge="none", compute=True, resume=False,
        )  # fmt: skip
        time.sleep(5)  # as long as a worker takes that was at work
    assert len(np.unique(labels)) == 64
    assert not list(tmp_path.rglob("*.work"))
    assert (tmp_path / "survived").exists() == (kind == "threads"), "a process is ended"


def when_it_ran(_: int) -> tuple[float, float]:
    start = time.time()
    time.sleep(0.3)
    return start, time.time()


@pytest.mark.slow
def test_a_worker_that_comes_later_gets_tasks_for_all_its_threads():
    with make_local_cluster(n_workers=1, dashboard_address=None) as client:
        pool = Pool.of_cluster(client, RetryPolicy())
        command = ["distributed.cli.dask_worker", client.scheduler.address, "--nthreads", "6"]
        worker = subprocess.Popen([sys.executable, "-m", *command, "--no-dashboard"])
        try:
            assert pool.n_workers == 1
            times = [o.value for o in pool.outcomes(when_it_ran, range(80))]
        finally:
            worker.terminate()
            worker.wait()
    at_once = max(sum(a <= start < b for a, b in times) for start, _ in times)
    assert at_once == 7
