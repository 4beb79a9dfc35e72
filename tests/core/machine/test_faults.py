"""Faults are told apart, and only those worth it are tried again."""

from __future__ import annotations

import errno
import os
import sys
from concurrent.futures import Executor, Future, ThreadPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from pathlib import Path
from types import SimpleNamespace

import pytest

from patchworks_core.errors import TileOutputError
from patchworks_core.machine.engine import map_tiles
from patchworks_core.machine.faults import RetryPolicy, free_memory, kind_of
from patchworks_core.machine.workers import Workers

QUICK = RetryPolicy(seconds=0.01)


class OutOfMemoryError(RuntimeError):
    """Named as PyTorch and CuPy name theirs."""


@pytest.mark.parametrize(
    ("error", "kind"),
    [
        (MemoryError(), "transient"),
        (OutOfMemoryError("no"), "transient"),
        (RuntimeError("CUDA out of memory. Tried to allocate 2.00 GiB"), "transient"),
        (OSError(errno.EIO, "input/output error"), "transient"),
        (ConnectionResetError(), "transient"),
        (FileNotFoundError(errno.ENOENT, "no such file"), "other"),
        (OSError(errno.ENOSPC, "no space left on device"), "other"),
        (BrokenProcessPool(), "killed"),
        (TileOutputError("shape"), "refused"),
        (IndexError("3"), "other"),
        # As PyTorch 2.11, CuPy 14, Numba and JAX 0.11 said on a real GPU.
        (RuntimeError("CUDA error: device-side assert triggered\nSearch for `cuda"), "killed"),
        (RuntimeError("CUDA error: an illegal memory access was encountered\n"), "killed"),
        (RuntimeError("cudaErrorIllegalAddress: an illegal memory access was"), "killed"),
        (RuntimeError("CUDA_ERROR_LAUNCH_FAILED: unspecified launch failure"), "killed"),
        (RuntimeError("cudaErrorMisalignedAddress: misaligned address"), "killed"),
        (RuntimeError("CUDA error: out of memory\nSearch for `cudaErrorMemoryAll"), "transient"),
        (
            RuntimeError("CUDA error: CUDA-capable device(s) is/are busy or unavailable"),
            "transient",
        ),
        (Exception("CUDA_ERROR_OUT_OF_MEMORY: The API call failed because it was"), "transient"),
        (Exception("[<CUresult.CUDA_ERROR_OUT_OF_MEMORY: 2>] Call to cuMemAlloc"), "transient"),
        (RuntimeError("Unable to initialize backend 'cuda': INTERNAL: no support"), "transient"),
        (RuntimeError("CUDA_ERROR_INVALID_VALUE: invalid argument"), "other"),
        (RuntimeError("cudaErrorNoDevice: no CUDA-capable device is detected"), "other"),
        (RuntimeError("misaligned address of a table"), "other"),
        (RuntimeError("mat1 and mat2 shapes cannot be multiplied"), "other"),
    ],
)
def test_faults_are_told_apart(error, kind):
    assert kind_of(error) == kind


def test_memory_that_cannot_be_given_back_is_no_fault(monkeypatch):
    def lost():
        raise RuntimeError("CUDA error: an illegal memory access was encountered")

    cuda = SimpleNamespace(is_initialized=lambda: True, empty_cache=lost)
    monkeypatch.setitem(sys.modules, "torch", SimpleNamespace(cuda=cuda))
    monkeypatch.setitem(sys.modules, "cupy", SimpleNamespace(get_default_memory_pool=lost))
    free_memory()


lost_by: list[int] = []
"""Items that this process lost its GPU by."""


def lose_device_at_3(item: int) -> int:
    """As a kernel with an address that is none: it fails, and all after it in the same process."""
    if item == 3:
        lost_by.append(item)
    if lost_by:
        raise RuntimeError("CUDA error: device-side assert triggered")
    return item


def test_a_tile_that_loses_the_gpu_takes_no_other_tile_along():
    with Workers(2, "processes").open() as executor:
        outcomes = map_tiles(
            lose_device_at_3, range(10), executor=executor, window=4, retry=RetryPolicy()
        )
        of = {outcome.item: outcome for outcome in outcomes}
    assert [item for item in sorted(of) if of[item].failure is not None] == [3]
    assert "device-side assert" in of[3].failure.message
    assert of[3].attempts == 2


def backend_of_process(item: int) -> tuple[int, str]:
    """As JAX where the GPU is full: it fails once, and has the CPU in the same process then."""
    if Path(os.environ["FULL"]).exists():
        if lost_by:
            return item, "cpu"
        lost_by.append(item)
        Path(os.environ["FULL"]).unlink()
        raise RuntimeError("Unable to initialize backend 'cuda': INTERNAL: no supported devices")
    return item, "cpu" if lost_by else "gpu"


def test_a_process_that_would_go_on_without_the_gpu_is_replaced(tmp_path, monkeypatch):
    monkeypatch.setenv("FULL", str(tmp_path / "full"))
    (tmp_path / "full").touch()
    with Workers(1, "processes").open() as executor:
        outcomes = map_tiles(backend_of_process, range(3), executor=executor, window=2, retry=QUICK)
        assert sorted(outcome.value for outcome in outcomes) == [(i, "gpu") for i in range(3)]


class FailsAtFirst:
    """Raises what it is told, so many times per item."""

    def __init__(self, errors: dict[int, list[Exception]]) -> None:
        self.errors = errors
        self.calls: list[int] = []

    def __call__(self, item: int) -> int:
        self.calls.append(item)
        left = self.errors.get(item, [])
        if left:
            raise left.pop(0)
        return item


def run(task, n=6, window=3, retry=QUICK):
    with ThreadPoolExecutor(3) as executor:
        outcomes = map_tiles(task, range(n), executor=executor, window=window, retry=retry)
        return {outcome.item: outcome for outcome in outcomes}


def test_a_transient_fault_is_tried_again_until_it_passes():
    outcomes = run(FailsAtFirst({2: [MemoryError("a"), MemoryError("a"), MemoryError("a")]}))
    assert outcomes[2].value == 2
    assert outcomes[2].attempts == 4
    assert all(outcome.failure is None for outcome in outcomes.values())


@pytest.mark.slow
def test_a_transient_fault_that_does_not_pass_is_final_after_the_attempts():
    outcomes = run(FailsAtFirst({2: [MemoryError("a")] * 99}))
    assert outcomes[2].failure is not None
    assert outcomes[2].attempts == QUICK.transient_attempts
    assert sorted(n for n in outcomes if outcomes[n].failure is None) == [0, 1, 3, 4, 5]


def test_the_same_unknown_error_twice_is_final():
    task = FailsAtFirst({1: [IndexError("3")] * 99})
    assert run(task)[1].attempts == 2
    assert task.calls.count(1) == 2


def test_an_unknown_error_that_passes_once_is_no_failure():
    assert run(FailsAtFirst({1: [IndexError("3")]}))[1].value == 1


def test_a_broken_rule_is_not_tried_again():
    task = FailsAtFirst({1: [TileOutputError("shape")] * 99})
    assert run(task)[1].attempts == 1
    assert task.calls.count(1) == 1


class AtOnce(Executor):
    """Runs what is submitted before it returns, and counts."""

    n_submitted = 0

    def submit(self, fn, /, *args, **kwargs):
        self.n_submitted += 1
        future: Future = Future()
        future.set_result(fn(*args, **kwargs))
        return future


@pytest.mark.slow
def test_after_transient_faults_fewer_are_in_flight():
    executor = AtOnce()
    task = FailsAtFirst({item: [MemoryError()] for item in range(8)})
    outcomes = map_tiles(task, range(8), executor=executor, window=8, retry=QUICK)
    next(outcomes)
    assert executor.n_submitted == 8 + 1, "eight failed together, so one at a time is tried again"
    assert len(list(outcomes)) == 7


def kill_worker_at_3(item: int) -> int:
    if item == 3:
        os.kill(os.getpid(), 9)
    return item


def test_a_tile_that_kills_its_worker_is_named_and_its_neighbours_finish():
    with Workers(2, "processes").open() as executor:
        outcomes = {
            outcome.item: outcome
            for outcome in map_tiles(
                kill_worker_at_3, range(8), executor=executor, window=4, retry=QUICK
            )
        }
    failed = [item for item, outcome in outcomes.items() if outcome.failure is not None]
    assert failed == [3]
    assert outcomes[3].failure.kind == "killed"
    assert sorted(outcomes) == list(range(8))


class KilledOnce:
    """Kills its worker at item 3 unless it has done so before."""

    def __init__(self, mark: Path) -> None:
        self.mark = mark

    def __call__(self, item: int) -> int:
        if item == 3 and not self.mark.exists():
            self.mark.touch()
            os.kill(os.getpid(), 9)
        return item


def test_a_tile_whose_worker_was_killed_from_outside_succeeds_when_tried_again(tmp_path):
    with Workers(2, "processes").open() as executor:
        outcomes = list(
            map_tiles(
                KilledOnce(tmp_path / "killed"),
                range(8),
                executor=executor,
                window=4,
                retry=QUICK,
            )
        )
    assert sorted(outcome.value for outcome in outcomes) == list(range(8))
