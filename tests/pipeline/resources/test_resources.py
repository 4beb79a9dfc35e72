"""What a deployment decides: how much of the machine, which devices, where things are."""

from __future__ import annotations

from types import SimpleNamespace

import numpy as np
import pynvml
import pytest

from patchworks_core import declare
from patchworks_core.errors import ImageError, PlanError
from patchworks_core.machine.budget import Limit
from patchworks_core.machine.devices import Device
from patchworks_core.machine.pools import WORKER_PROCESS_BYTES
from patchworks_core.plugins.segmentation import segmentation_of
from patchworks_core.stage.plan import make_plan
from patchworks_pipeline.records import Acquisition
from patchworks_pipeline.resources import compute_budget
from patchworks_pipeline.resources.compute_budget import ComputeBudget
from patchworks_pipeline.resources.gpus import GpuPool
from patchworks_pipeline.resources.resources import (
    AcquisitionSource,
    LabelStore,
    SegmentationDefaults,
)
from tests.tissue import tissue, write_tiff


@pytest.fixture
def plan(tmp_path):
    path = write_tiff(tmp_path / "tissue.tif", tissue())
    return make_plan(Acquisition(str(path)).open(), segmentation_of("watershed"), tile_shape=32)


def grant(monkeypatch, *, cores: int, memory: int) -> None:
    monkeypatch.setattr(compute_budget, "granted_cores", lambda: Limit(cores, "SLURM"))
    monkeypatch.setattr(compute_budget, "granted_memory_bytes", lambda: Limit(memory, "cgroup v2"))


def test_the_cores_decide_where_memory_is_plenty(plan, monkeypatch):
    grant(monkeypatch, cores=8, memory=10**12)
    assert ComputeBudget().decide(plan).count == 7
    assert ComputeBudget(cores_left_free=4).decide(plan).count == 4
    assert ComputeBudget().decide(plan).reason == "7 workers: SLURM grants 8 cores, 1 left free"


def test_the_memory_decides_where_it_is_scarce(plan, monkeypatch):
    grant(monkeypatch, cores=8, memory=10**12)
    needed = ComputeBudget().decide(plan).bytes_per_worker
    grant(monkeypatch, cores=8, memory=4 * needed)
    assert ComputeBudget(memory_fraction=0.5).decide(plan).count == 2
    assert "memory of cgroup v2" in ComputeBudget(memory_fraction=0.5).decide(plan).reason


def test_a_number_that_the_user_set_is_kept(plan, monkeypatch):
    grant(monkeypatch, cores=8, memory=10**12)
    assert ComputeBudget(workers=3).decide(plan).count == 3


def test_a_tile_beyond_the_memory_is_refused_before_it_is_read(plan, monkeypatch):
    grant(monkeypatch, cores=8, memory=1000)
    with pytest.raises(PlanError, match="one tile needs about .* use smaller tiles"):
        ComputeBudget().decide(plan)


def test_processes_need_memory_beside_their_tiles(plan, monkeypatch):
    needed = ComputeBudget().decide(plan).bytes_per_worker
    grant(monkeypatch, cores=8, memory=4 * (needed + WORKER_PROCESS_BYTES))
    budget, dtype = ComputeBudget(memory_fraction=1), np.dtype("u2")
    assert budget.decide_for(plan.grid, dtype, kind="processes").count == 4
    assert budget.decide_for(plan.grid, dtype, kind="threads").count == 7


def harmless(tile):
    return tile


@pytest.mark.parametrize(
    ("chosen", "function", "kind"),
    [
        ("auto", "watershed", "threads"),
        ("auto", harmless, "processes"),
        ("auto", declare(version="1", workers="threads")(lambda tile: tile), "threads"),
        ("threads", harmless, "threads"),
        ("processes", "watershed", "processes"),
    ],
)
def test_a_function_is_in_processes_unless_it_or_the_deployment_says_threads(
    chosen, function, kind
):
    declared = segmentation_of(function).worker_kind
    assert ComputeBudget(kind=chosen).open(2, declared).kind == kind


def test_another_kind_of_worker_is_refused():
    words = "budget.kind must be 'auto', 'threads' or 'processes', got 'fibers'"
    with pytest.raises(PlanError, match=words):
        ComputeBudget(kind="fibers")


def test_without_a_driver_there_is_no_device(monkeypatch):
    def no_driver():
        raise pynvml.NVMLError(pynvml.NVML_ERROR_LIBRARY_NOT_FOUND)

    monkeypatch.setattr(pynvml, "nvmlInit", no_driver)
    assert GpuPool().devices() == []
    assert GpuPool(slots_per_device=4).slots() == ()


@pytest.fixture
def two_devices(monkeypatch):
    """A machine with 40 GB free on one device and 1 GB on the other."""
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    free = [40 * 10**9, 10**9]
    closed = []
    monkeypatch.setattr(pynvml, "nvmlInit", lambda: None)
    monkeypatch.setattr(pynvml, "nvmlShutdown", lambda: closed.append(True))
    monkeypatch.setattr(pynvml, "nvmlDeviceGetCount", lambda: len(free))
    monkeypatch.setattr(pynvml, "nvmlDeviceGetHandleByIndex", lambda index: index)
    monkeypatch.setattr(pynvml, "nvmlDeviceGetName", lambda handle: f"GPU {handle}")
    monkeypatch.setattr(pynvml, "nvmlDeviceGetUUID", lambda handle: f"GPU-uuid-{handle}")
    monkeypatch.setattr(
        pynvml,
        "nvmlDeviceGetMemoryInfo",
        lambda handle: SimpleNamespace(free=free[handle], total=80 * 10**9),
    )
    return closed


def test_a_device_without_enough_free_memory_is_not_used(two_devices):
    (device,) = GpuPool().devices()
    assert device == Device(0, "GPU-uuid-0", "GPU 0", 40 * 10**9, 80 * 10**9)
    assert len(GpuPool(min_free_bytes=0).devices()) == 2
    assert len(GpuPool(slots_per_device=3, min_free_bytes=0).slots()) == 6
    assert len(two_devices) == 3  # each call ends what it began


def test_the_store_is_in_the_home_unless_it_is_named(home):
    assert str(LabelStore().folder("a").path) == str(home / "store" / "a")
    with pytest.raises(PlanError, match="cannot name an image"):
        LabelStore().folder("../a")


def test_two_acquisitions_of_one_key_are_refused(home):
    landing = home / "landing"
    landing.mkdir(parents=True)
    for name in ("a b.tif", "a_b.tif", ".a_b.tif"):
        (landing / name).touch()
    with pytest.raises(ImageError, match=r"2 acquisitions in .* \(\['a b.tif', 'a_b.tif'\]\)"):
        AcquisitionSource().find("a_b")


def test_an_image_keeps_what_it_chose_over_the_deployment(plan):
    deployment = SegmentationDefaults(tile_shape=[512], overlap=[16], merge="touching", min_size=5)
    chosen = Acquisition("x", tile_shape=(64, 64), overlap=(0,), merge={"rule": "none"})
    assert deployment.tiling_of(chosen)["tile_shape"] == (64, 64)
    assert deployment.tiling_of(chosen)["overlap"] == 0
    assert deployment.tiling_of(Acquisition("x"))["tile_shape"] == 512
    options = deployment.merge_options(chosen, plan, {"min_size": 7})
    assert (options.rule, options.min_size) == ("none", 7)
