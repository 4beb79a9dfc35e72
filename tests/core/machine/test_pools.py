"""Where the tiles of a library call run, and how many at once."""

from __future__ import annotations

import os
import signal
import socket
from contextlib import nullcontext
from types import SimpleNamespace

import numpy as np
import pytest
from scipy import ndimage

from patchworks_core import TilesFailedError, declare, make_local_cluster, tile_process
from patchworks_core.errors import PlanError
from patchworks_core.machine import devices
from patchworks_core.machine import pools as compute_module
from patchworks_core.machine.budget import Limit
from patchworks_core.machine.dask_clients import ClusterExecutor
from patchworks_core.machine.devices import Device
from patchworks_core.machine.pools import Compute, Pool
from patchworks_core.machine.workers import Workers
from patchworks_core.tiles.grid import plan_grid
from tests.core.oracles import assert_same_partition
from tests.core.staging import blobs, label_components

GRID = plan_grid("yx", (4096, 4096), tile_shape=1024, overlap=32)
U2 = np.dtype("u2")


@pytest.fixture
def granted(monkeypatch):
    def grant(cores: int, memory: int) -> None:
        monkeypatch.setattr(compute_module, "granted_cores", lambda: Limit(cores, "a test"))
        monkeypatch.setattr(compute_module, "granted_memory_bytes", lambda: Limit(memory, "a test"))

    return grant


def workers_of(compute: Compute, **options) -> int:
    with compute.open(GRID, U2, **options) as pool:
        return pool.window // 2


def test_the_granted_cores_less_one_work_where_memory_allows(granted):
    granted(4, 10**10)
    assert workers_of(Compute()) == 3
    assert workers_of(Compute(), measured_bytes=3 * 10**9) == 2


def test_a_number_is_obeyed_beyond_the_cores_but_not_beyond_the_memory(granted):
    granted(1, 10**10)
    assert workers_of(Compute(3)) == 3
    with pytest.warns(UserWarning, match="max_workers=3 would not fit: .*give smaller tiles"):
        assert workers_of(Compute(3), measured_bytes=3 * 10**9) == 2


def test_a_tile_that_cannot_fit_is_refused_before_it_runs(granted):
    granted(4, 10**6)
    with pytest.raises(PlanError, match=r"one tile needs about .* use smaller tiles"):
        tile_process(np.zeros((2048, 2048)), label_components, tile_shape=-1)


@pytest.mark.slow
def test_the_first_tile_says_how_many_may_run_at_once(granted, capfd):
    granted(4, 10**9)

    @declare(merge="touching", version="1")
    def hungry(tile):
        np.ones(250 << 20, dtype="u1")
        return ndimage.label(tile)[0]

    pixels = blobs((64, 64))
    labels = tile_process(pixels, hungry, tile_shape=32, verbose=True)
    assert_same_partition(labels, ndimage.label(pixels)[0])
    said = capfd.readouterr().err
    assert "3 workers: memory of a test (800.0 MB usable) holds 3 tiles of 26" in said
    assert "tile y000x000 at (0, 0) of (32, 32) pixels: " in said


def test_invalid_choices_are_named():
    with pytest.raises(PlanError, match="workers must be a whole number, 1 or more, got 0"):
        tile_process(np.zeros((4, 4)), label_components, tile_shape=2, max_workers=0)


def test_without_a_gpu_the_cpu_is_used_and_it_is_said_once():
    with pytest.warns(UserWarning, match="no GPU found; the function runs on the CPU") as caught:
        tile_process(np.ones((8, 8)), label_components, tile_shape=4, use_gpu=True)
    assert len(caught) == 1
    with (
        pytest.warns(UserWarning, match="no GPU found; the function runs on the CPU"),
        make_local_cluster(True, n_workers=1, dashboard_address=None) as client,
    ):
        assert client.submit(abs, -2).result() == 2


@pytest.mark.slow
def test_each_gpu_has_one_worker_that_sees_no_other(monkeypatch):
    pair = tuple(Device(i, f"GPU-{i}", "", 0, 0) for i in range(2))
    monkeypatch.setattr(devices, "granted_devices", lambda: pair)
    with make_local_cluster(use_gpu=True) as client:
        seen = client.run(lambda: os.environ["CUDA_VISIBLE_DEVICES"])
        assert sorted(seen.values()) == ["GPU-0", "GPU-1"]
        assert client.dashboard_link.startswith("http://")
    with (
        pytest.raises(PlanError, match="got n_workers=3 for 2 GPUs"),
        make_local_cluster(use_gpu=True, n_workers=3),
    ):
        pass


@pytest.mark.slow
def test_an_active_cluster_takes_the_tiles_without_being_told(tmp_path):
    pixels, pids = blobs((48, 48)), tmp_path / "pids"
    pids.mkdir()

    @declare(merge="touching", version="1")
    def leave_a_trace(tile):
        (pids / str(os.getpid())).touch()
        return ndimage.label(tile)[0]

    with make_local_cluster(n_workers=2, memory_bytes=2 * 10**9, dashboard_address=None) as client:
        labels = tile_process(pixels, leave_a_trace, tile_shape=16, write_to=tmp_path / "o.zarr")
        workers = set(client.run(os.getpid).values())
    assert {int(p.name) for p in pids.iterdir()} <= workers
    assert os.getpid() not in workers
    assert_same_partition(labels.compute(), ndimage.label(pixels)[0])


@pytest.mark.slow
def test_a_worker_that_takes_long_to_be_there_again_is_waited_for(tmp_path):
    import dask
    from distributed import Client

    ended = tmp_path / "ended"

    @declare(merge="touching", version="1")
    def ends_its_worker_once(tile):
        if not ended.exists():
            ended.touch()
            os._exit(3)
        return ndimage.label(tile)[0]

    options = {"tile_shape": 16, "write_to": tmp_path / "o.zarr"}
    with (
        dask.config.set({"distributed.deploy.lost-worker-timeout": "0.1s"}),
        make_local_cluster(n_workers=1, dashboard_address=None) as client,
    ):
        assert isinstance(client, Client)
        labels = tile_process(blobs((48, 48)), ends_its_worker_once, client=client, **options)
    assert labels.max().compute() > 0


def test_that_a_cluster_has_no_worker_is_said_once(caplog):
    threads = {"tcp://a": 2}
    client = SimpleNamespace(
        get_executor=lambda pure: None,
        nthreads=lambda: dict(threads),
        scheduler=SimpleNamespace(address="tcp://scheduler"),
    )
    executor = ClusterExecutor(client)
    counts = [executor.count_workers()]
    threads.clear()
    counts += [executor.count_workers(), executor.count_workers()]
    assert counts == [2, 0, 0]
    assert caplog.text.count("the Dask cluster at tcp://scheduler has no worker") == 1


def test_a_client_whose_workers_are_threads_is_refused():
    from distributed import Client

    with (
        Client(processes=False, n_workers=1, dashboard_address=None) as client,
        pytest.raises(PlanError, match=r"has its workers in this process; .*make_local_cluster"),
    ):
        tile_process(np.ones((8, 8)), label_components, tile_shape=4, client=client)


def test_an_unknown_error_is_told_at_once_and_a_passing_one_is_tried_again():
    calls = []

    @declare(version="1")
    def broken(tile):
        calls.append(1)
        raise ZeroDivisionError("no")

    with pytest.raises(TilesFailedError):
        tile_process(np.ones((4, 4)), broken, tile_shape=4)
    assert len(calls) == 1

    @declare(version="1")
    def out_of_memory_once(tile):
        calls.append(1)
        if len(calls) == 2:
            raise MemoryError
        return tile.astype(int)

    assert tile_process(np.ones((4, 4)), out_of_memory_once, tile_shape=4).max() == 1


def test_a_cluster_without_a_dashboard_starts_where_its_port_is_taken():
    with socket.socket() as taken:
        taken.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            taken.bind(("", 8787))
            taken.listen()
        except OSError:
            pass  # another program has it, which is as good
        with make_local_cluster(n_workers=1, memory_bytes=10**9, dashboard_address=None) as client:
            assert client.submit(int, 3).result(30) == 3


def test_tiles_on_a_gpu_are_in_processes_that_can_be_ended(monkeypatch):
    """A process that lost its GPU is of no use, and a Dask worker would stay."""
    given = {}
    pool = SimpleNamespace()
    monkeypatch.setattr(compute_module, "granted_devices", lambda: [Device(0, "GPU-0", "", 0, 0)])
    monkeypatch.setattr(compute_module, "make_local_cluster", lambda *_, **__: nullcontext())
    monkeypatch.setattr(Pool, "of_cluster", lambda *args: given.update(limits=args[2]) or pool)
    with Compute(use_gpu=True).open(GRID, U2) as opened:
        assert opened is pool
    assert given["limits"] is not None


def test_tiles_share_memory_only_with_threads_of_this_process(monkeypatch):
    assert Compute(2).is_in_process
    assert not Compute(2, "processes").is_in_process
    assert not Compute(client=object()).is_in_process
    monkeypatch.setattr(compute_module, "granted_devices", lambda: [Device(0, "GPU-0", "", 0, 0)])
    assert not Compute(use_gpu=True).is_in_process


def test_a_pool_yields_in_order_and_tells_of_progress_where_it_is_asked():
    told = []
    with Pool.open(Workers(3), lambda *step: told.append(step)) as pool:
        assert list(pool.map(abs, [-3, 2, -1], step="absolute", n=3, is_ordered=True)) == [3, 2, 1]
        assert list(pool.map(abs, [-3], step="untold")) == [3]
        with pytest.raises(RuntimeError, match="taking roots failed: TypeError"):
            list(pool.map(abs, ["a"], step="roots", doing="taking roots"))
    assert told == [("absolute", n, 3) for n in (1, 2, 3)]
    assert (pool.n_workers, Pool(None, 1).n_workers) == (3, 1)


def dies_once(marker):
    if not marker.exists():
        marker.touch()
        os.kill(os.getpid(), signal.SIGKILL)
    return "done"


def test_a_step_whose_worker_was_killed_goes_on_with_another(tmp_path):
    with Pool.open(Workers(1, "processes")) as pool:
        assert list(pool.map(dies_once, [tmp_path / "died"], step="pairing")) == ["done"]


@pytest.mark.parametrize(
    ("n_items", "n_workers", "sizes"),
    [
        (0, 2, []),
        (3, 2, [1, 1, 1]),
        (80, 2, [10] * 8),
        (200, 2, [16] * 12 + [8]),
        (2_000_000, 2, [40] * 50_000),
    ],
)
def test_items_are_cut_so_that_nobody_waits_and_tasks_are_not_too_many(n_items, n_workers, sizes):
    batches = Pool(None, window=2 * n_workers).batches(range(n_items), at_most=16)
    assert [len(batch) for batch in batches] == sizes
    assert [item for batch in batches for item in batch] == list(range(n_items))


def test_small_steps_run_one_at_a_time_in_threads_and_side_by_side_in_processes():
    for kind, window in (("threads", 1), ("processes", 4)):
        with Pool.open(Workers(2, kind)) as pool:
            assert (pool.window, pool.for_small_steps().window) == (4, window)
