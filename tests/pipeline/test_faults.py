"""Faults in the pipeline: retried, stopped, left out, and bound to devices."""

from __future__ import annotations

import threading
from itertools import combinations
from pathlib import Path
from types import SimpleNamespace

import dagster as dg
import numpy as np
import pynvml
import pytest

from patchworks_core.storage import open_array
from tests.functions import faulty_functions as faulty
from tests.pipeline.conftest import error_of, metadata_of
from tests.tissue import MARKED_KEY, files_under, marked_tissue, tissue, write_tiff


@pytest.fixture
def tissue_path(tmp_path: Path) -> Path:
    return write_tiff(tmp_path / "tissue.ome.tif", tissue())


@pytest.fixture
def marked_path(tmp_path: Path) -> Path:
    return write_tiff(tmp_path / "marked.ome.tif", marked_tissue())


def failure_of(result: dg.ExecuteInProcessResult) -> dg.DagsterEvent:
    (event,) = [event for event in result.all_events if event.is_step_failure]
    return event


def test_a_tile_that_ran_out_of_memory_once_is_staged_in_the_end(
    pipeline, tissue_path, tmp_path, monkeypatch
):
    monkeypatch.setenv(faulty.KILLED_ONCE, str(tmp_path / "once"))
    folder = pipeline.register(tissue_path, function="faulty_functions:out_of_memory_once")
    pipeline.plan(folder)
    result = pipeline.stage(folder)
    assert result.success, error_of(result)
    tries = [
        event.metadata["n_attempts"].value
        for event in result.asset_materializations_for_node("staged_labels")
    ]
    assert sorted(tries) == [1] * 11 + [2]


def test_a_failed_tile_shows_its_traceback_its_pixels_and_its_input(pipeline, marked_path):
    folder = pipeline.register(marked_path, function="tissue_functions:fails_at_mark")
    pipeline.plan(folder)
    metadata = failure_of(pipeline.stage(folder)).step_failure_data.user_failure_data.metadata
    (row,) = metadata["failed_tiles"].value
    assert row.data["tile"] == f"tissue/{MARKED_KEY}"
    assert row.data["pixels"] == "y 32:64, x 64:96"
    assert row.data["kind"] == "other"
    assert row.data["tries"] == "2"
    assert "fails_at_mark" in metadata["traceback_of_the_first"].value
    assert "data:image/png;base64," in metadata[f"input of tissue/{MARKED_KEY}"].value


def test_a_run_stops_when_too_many_tiles_fail(pipeline, tissue_path):
    folder = pipeline.register(tissue_path, function="tissue_functions:negative")
    pipeline.plan(folder)
    result = pipeline.stage(folder, max_failed_fraction=0.5)
    assert error_of(result).startswith("stopped: 7 of 12 tiles of tissue failed, more than")
    assert "5 were not tried" in error_of(result)


def test_a_run_that_may_not_stop_tries_every_tile(pipeline, tissue_path):
    folder = pipeline.register(tissue_path, function="tissue_functions:negative")
    pipeline.plan(folder)
    result = pipeline.stage(folder, max_failed_fraction=1.0)
    assert error_of(result).startswith("12 of 12 tiles failed")


def merge(pipeline, folder, *, allow_missing_tiles: bool) -> dg.ExecuteInProcessResult:
    config = {"config": {"allow_missing_tiles": allow_missing_tiles}}
    return pipeline.run("merge_image", partition_key=folder.key, ops={"boundary_pairs": config})


def checks_of(result: dg.ExecuteInProcessResult) -> dict[str, bool]:
    return {e.check_name: e.passed for e in result.get_asset_check_evaluations()}


def test_a_merge_with_a_hole_says_that_it_is_partial_and_heals(pipeline, marked_path, mended):
    folder = pipeline.register(marked_path, function="tissue_functions:fails_at_mark")
    pipeline.plan(folder)
    pipeline.stage(folder)
    assert not merge(pipeline, folder, allow_missing_tiles=False).success

    partial = merge(pipeline, folder, allow_missing_tiles=True)
    assert partial.success, error_of(partial)
    assert metadata_of(partial, "merged_labels")["is_partial"] is True
    assert metadata_of(partial, "merged_labels")["n_tiles_missing"] == 1
    assert checks_of(partial) == {"every_tile_is_merged": False, "ids_are_sequential": True}
    labels = open_array(folder.labels(folder.plan()).path / "0")[...]
    hole = folder.plan().grid.block_of_key(MARKED_KEY).core
    assert not labels[hole.slices].any()
    assert sorted(np.unique(labels)) == list(range(labels.max() + 1))

    mended.touch()
    assert pipeline.stage(folder, MARKED_KEY).success
    healed = merge(pipeline, folder, allow_missing_tiles=False)
    assert checks_of(healed) == {"every_tile_is_merged": True, "ids_are_sequential": True}
    sound = pipeline.register(marked_path, key="sound", function="tissue_functions:fails_at_mark")
    pipeline.run_to_labels(sound)
    found = [f.container / "labels" / "labels" / "0" for f in (folder, sound)]
    assert files_under(found[0]) == files_under(found[1])


def test_what_a_block_left_half_written_is_no_part_of_a_partial_merge(pipeline, marked_path, mended):
    mended.touch()
    folder = pipeline.register(marked_path, function="tissue_functions:fails_at_mark")
    pipeline.plan(folder)
    pipeline.stage(folder)
    stage = folder.stage()
    block = stage.grid.block_of_key(MARKED_KEY)
    stage.forget(block)
    result = merge(pipeline, folder, allow_missing_tiles=True)
    assert result.success, error_of(result)
    labels = open_array(folder.labels(folder.plan()).path / "0")[...]
    assert not labels[block.core.slices].any()
    assert len(folder.objects()) == labels.max()


@pytest.fixture
def two_gpus(monkeypatch, tmp_path):
    """Two devices, and a folder in which tiles leave marks of the device they were on."""
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    monkeypatch.setattr(pynvml, "nvmlInit", lambda: None)
    monkeypatch.setattr(pynvml, "nvmlShutdown", lambda: None)
    monkeypatch.setattr(pynvml, "nvmlDeviceGetCount", lambda: 2)
    monkeypatch.setattr(pynvml, "nvmlDeviceGetHandleByIndex", lambda index: index)
    monkeypatch.setattr(pynvml, "nvmlDeviceGetName", lambda handle: "counting device")
    monkeypatch.setattr(pynvml, "nvmlDeviceGetUUID", lambda handle: f"GPU-{handle}")
    memory = SimpleNamespace(free=40 * 10**9, total=80 * 10**9)
    monkeypatch.setattr(pynvml, "nvmlDeviceGetMemoryInfo", lambda handle: memory)
    folder = tmp_path / "devices"
    folder.mkdir()
    monkeypatch.setenv("PATCHWORKS_TEST_DEVICES", str(folder))
    return folder


def spans_on_devices(folder: Path) -> dict[str, list[tuple[float, float]]]:
    """Return when tiles were on each device."""
    spans: dict[str, list[tuple[float, float]]] = {}
    for mark in folder.iterdir():
        device, start, stop = mark.read_text().split()
        spans.setdefault(device, []).append((float(start), float(stop)))
    return spans


def most_at_once(spans: list[tuple[float, float]]) -> int:
    """Return the most spans that hold one moment."""
    return max(sum(a <= start < b for a, b in spans) for start, _ in spans)


def test_a_device_never_has_more_tiles_than_slots_although_two_images_ask(
    home, tissue_path, two_gpus
):
    # An instance with a database on disk, because two runs share it from two threads.
    from tests.pipeline.conftest import Pipeline

    with dg.instance_for_test() as instance:
        pipeline = Pipeline(instance, {"gpus": {"config": {"slots_per_device": 1}}})
        folders = [
            pipeline.register(tissue_path, key=key, function="faulty_functions:on_device")
            for key in ("first", "second")
        ]
        for folder in folders:
            assert pipeline.plan(folder).success
        results: list[dg.ExecuteInProcessResult] = []
        threads = [
            threading.Thread(target=lambda f=f: results.append(pipeline.stage(f))) for f in folders
        ]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join(150)
        assert [result.success for result in results] == [True, True]
        tags = [instance.get_run_by_id(r.run_id).tags["patchworks/workers"] for r in results]
    assert tags == ["2 slots on 2 GPUs, one worker process each"] * 2
    spans = spans_on_devices(two_gpus)
    assert set(spans) == {"GPU-0", "GPU-1"}
    assert sum(map(len, spans.values())) == 24
    assert all(most_at_once(found) == 1 for found in spans.values())


def test_without_a_device_a_gpu_function_runs_on_the_cpu_and_the_run_says_so(
    pipeline, tissue_path, monkeypatch, tmp_path
):
    (tmp_path / "devices").mkdir()
    monkeypatch.setenv("PATCHWORKS_TEST_DEVICES", str(tmp_path / "devices"))

    def no_driver():
        raise pynvml.NVMLError(pynvml.NVML_ERROR_LIBRARY_NOT_FOUND)

    monkeypatch.setattr(pynvml, "nvmlInit", no_driver)
    folder = pipeline.register(tissue_path, function="faulty_functions:on_device")
    pipeline.plan(folder)
    result = pipeline.stage(folder)
    assert result.success
    run = pipeline.instance.get_run_by_id(result.run_id)
    assert "no GPU found, the function runs on the CPU" in run.tags["patchworks/workers"]


def test_tiles_of_one_image_do_not_share_a_key_with_tiles_of_another(pipeline, tissue_path):
    folders = [pipeline.register(tissue_path, key=key) for key in ("a", "b", "a.b")]
    for folder in folders:
        pipeline.plan(folder)
    keys = pipeline.instance.get_dynamic_partitions("tiles")
    parts = [{k for k in keys if k.rpartition("/")[0] == folder.key} for folder in folders]
    assert all(not one & other for one, other in combinations(parts, 2))
    assert sum(map(len, parts)) == len(keys) == 36


def test_planning_an_image_anew_keeps_its_tiles_one_range(pipeline, tissue_path):
    first = pipeline.register(tissue_path, key="first")
    second = pipeline.register(tissue_path, key="second")
    for folder in (first, second):
        pipeline.plan(folder)
    pipeline.plan(pipeline.register(tissue_path, key="first", tile_shape=(24,)))
    keys = pipeline.instance.get_dynamic_partitions("tiles")
    of_first = [n for n, key in enumerate(keys) if key.startswith("first/")]
    assert of_first == list(range(of_first[0], of_first[0] + 24))
