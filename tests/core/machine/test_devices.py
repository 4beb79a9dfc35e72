"""GPUs are found by NVML and filtered as CUDA filters them."""

from __future__ import annotations

import os
import sys
from types import SimpleNamespace

import pytest

from patchworks_core.errors import PlanError
from patchworks_core.machine.devices import Device, granted_devices, slots_on, visible
from patchworks_core.machine.engine import map_tiles
from patchworks_core.machine.workers import Workers

DEVICES = [Device(i, f"GPU-{letter}0", "fake", 8, 16) for i, letter in enumerate("abc")]


class FakeNvml:
    """NVML of a machine with some devices, or without a driver."""

    class NVMLError(Exception):
        pass

    def __init__(self, n_devices: int | None) -> None:
        self.n_devices = n_devices
        self.is_open = False

    def nvmlInit(self):
        if self.n_devices is None:
            raise self.NVMLError
        self.is_open = True

    def nvmlShutdown(self):
        self.is_open = False

    def nvmlDeviceGetCount(self):
        return self.n_devices

    def nvmlDeviceGetHandleByIndex(self, index):
        return index

    def nvmlDeviceGetMemoryInfo(self, handle):
        return SimpleNamespace(free=8, total=16)

    def nvmlDeviceGetUUID(self, handle):
        return f"GPU-{'abc'[handle]}0".encode()

    def nvmlDeviceGetName(self, handle):
        return "fake"


def test_without_a_driver_there_are_no_devices():
    assert granted_devices(environ={}, nvml=FakeNvml(None)) == ()


def test_all_devices_are_found_and_nvml_is_closed_again():
    nvml = FakeNvml(3)
    assert list(granted_devices(environ={}, nvml=nvml)) == DEVICES
    assert not nvml.is_open


@pytest.mark.parametrize(
    ("setting", "indices"),
    [
        (None, [0, 1, 2]),
        ("", []),
        ("2,0", [2, 0]),
        ("GPU-b0", [1]),
        ("GPU-c", [2]),
        ("1,9,0", [1]),
        ("-1", []),
        ("GPU-", []),
        (" 1 , GPU-a0", [1]),
        # As the driver of a real GPU was seen to read them (580.159.04, NVIDIA H200).
        ("0,0", []),
        ("GPU-a0,GPU-a0", []),
        ("GPU-a0,0", [0]),
        ("0,GPU-a0", [0]),
        ("GPU-A0", [0]),
        ("gpu-a0", []),
        ("a0", []),
        (" GPU-a0", []),
        ("G", []),
        ("0x0", [0]),
        ("+0", [0]),
        ("0a", [0]),
        ("0;1", [0]),
        ("\uff10", []),
        ("\u00b2", []),
        ("NoDevFiles", []),
        ("MIG-GPU-a0", []),
    ],
)
def test_visible_devices_are_read_as_cuda_reads_them(setting, indices):
    assert [device.index for device in visible(DEVICES, setting)] == indices


def test_the_environment_hides_devices_from_nvml():
    found = granted_devices(environ={"CUDA_VISIBLE_DEVICES": "GPU-c0"}, nvml=FakeNvml(3))
    assert [device.uuid for device in found] == ["GPU-c0"]


def device_of_worker(item: int) -> tuple[int, str]:
    return os.getpid(), os.environ["CUDA_VISIBLE_DEVICES"]


def test_each_worker_process_is_bound_to_one_slot():
    slots = slots_on(DEVICES[:2], 1)
    with Workers(2, "processes", slots).open() as executor:
        outcomes = list(map_tiles(device_of_worker, range(12), executor=executor, window=4))
    seen = {outcome.value for outcome in outcomes}
    processes = {process for process, _ in seen}
    assert len(seen) == len(processes), "a process saw two devices"
    assert {device for _, device in seen} <= set(slots)
    assert len(processes) == len({device for _, device in seen}), "two processes on one slot"


def reserves_given_back(item: int) -> int:
    """Return how often this process gave back what its PyTorch, which is none, holds in reserve."""
    if "torch" not in sys.modules:
        given_back: list[int] = []
        cuda = SimpleNamespace(
            is_initialized=lambda: True, empty_cache=lambda: given_back.append(1)
        )
        sys.modules["torch"] = SimpleNamespace(cuda=cuda, given_back=given_back)
    return len(sys.modules["torch"].given_back)


@pytest.mark.parametrize(("slots", "gives_back"), [("aa", True), ("ab", False)])
def test_a_worker_that_shares_its_gpu_holds_nothing_in_reserve(slots, gives_back):
    with Workers(2, "processes", tuple(f"GPU-{letter}0" for letter in slots)).open() as executor:
        outcomes = list(map_tiles(reserves_given_back, range(8), executor=executor, window=4))
    assert (max(outcome.value for outcome in outcomes) > 0) == gives_back


def test_threads_cannot_be_bound_to_gpus():
    with pytest.raises(PlanError, match="workers on GPUs must be processes, at most one per slot"):
        Workers(1, "threads", ("GPU-a0",))
