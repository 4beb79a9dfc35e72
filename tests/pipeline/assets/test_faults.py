"""Faults in the pipeline: retried, stopped, left out, and bound to devices."""

from __future__ import annotations

import os
import subprocess
from itertools import combinations
from pathlib import Path

import dagster as dg
import numpy as np
import pynvml
import pytest
from dagster._core.storage.partition_status_cache import get_and_update_asset_status_cache_value

from patchworks_core.files.storage import open_array
from patchworks_pipeline.assets import merging
from patchworks_pipeline.assets.staging import RESUMED
from patchworks_pipeline.cli.runs import RANGE_END, RANGE_START, run_image
from patchworks_pipeline.instance.home import prepare_home
from patchworks_pipeline.instance.tile_log import TileLog
from patchworks_pipeline.partitions import tile_keys, tiles
from patchworks_pipeline.records import ImageFolder
from patchworks_pipeline.resources.compute_budget import ComputeBudget
from tests.core.staging import block_file, change_array
from tests.functions import faulty_functions as faulty
from tests.pipeline.conftest import error_of, metadata_of
from tests.tissue import (
    MARK,
    MARKED_KEY,
    environment_of_functions,
    files_under,
    marked_tissue,
    python_command,
    tissue,
    write_tiff,
)


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
    (row,) = metadata["failed_tiles"].records
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
    """Return the checks that may block, by name."""
    found = {e.check_name: e.passed for e in result.get_asset_check_evaluations()}
    return {name: found[name] for name in ("every_tile_is_merged", "ids_are_sequential")}


@pytest.mark.slow
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


def test_tiles_that_are_staged_again_while_they_are_merged_are_not_published(
    pipeline, tissue_path, monkeypatch
):
    """A function that does not return the same twice, in another run."""
    folder = pipeline.register(tissue_path)
    pipeline.run_to_labels(folder)
    before = folder.provenance(folder.plan())
    first = block_file(folder.stage().path, "y000x000")
    change_array(first, "labels", lambda labels: labels[::-1].copy())
    write = merging.write_merged

    def staged_again_first(*arguments, **options):
        change_array(first, "labels", lambda labels: labels[:, ::-1].copy())
        return write(*arguments, **options)

    monkeypatch.setattr(merging, "write_merged", staged_again_first)
    result = pipeline.merge(folder)
    assert "were staged again while they were merged; nothing was published" in error_of(result)
    assert folder.provenance(folder.plan()) == before
    monkeypatch.setattr(merging, "write_merged", write)
    assert pipeline.merge(folder).success
    assert folder.provenance(folder.plan())["stage"] == folder.stage().content()


@pytest.mark.slow
def test_what_a_block_left_half_written_is_no_part_of_a_partial_merge(
    pipeline, marked_path, mended
):
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


FAKE_NVML = """
from types import SimpleNamespace
class NVMLError(Exception): pass
def nvmlInit(): pass
def nvmlShutdown(): pass
def nvmlDeviceGetCount(): return 2
def nvmlDeviceGetHandleByIndex(index): return index
def nvmlDeviceGetName(handle): return "counting device"
def nvmlDeviceGetUUID(handle): return f"GPU-{handle}"
def nvmlDeviceGetMemoryInfo(handle): return SimpleNamespace(free=40 * 10**9, total=80 * 10**9)
"""


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


@pytest.mark.slow
def test_a_device_never_has_more_tiles_than_slots_although_two_images_ask(
    tissue_path, tmp_path, monkeypatch
):
    devices, modules, home = (tmp_path / name for name in ("devices", "modules", "home"))
    for folder in (devices, modules):
        folder.mkdir()
    (modules / "pynvml.py").write_text(FAKE_NVML)
    path = os.pathsep.join([str(modules), environment_of_functions()["PYTHONPATH"]])
    environment = {**os.environ, "PYTHONPATH": path, "PATCHWORKS_TEST_DEVICES": str(devices)}
    environment.pop("CUDA_VISIBLE_DEVICES", None)
    command = [python_command("patchworks"), "run", str(tissue_path), "--home", str(home)]
    command += ["--segmentation", "faulty_functions:on_device", "--tile-shape", "32"]
    prepare_home(home)
    with (tmp_path / "log").open("wb") as log:
        runs = [
            subprocess.Popen([*command, "--name", name], env=environment, stdout=log, stderr=log)
            for name in ("first", "second")
        ]
        assert [run.wait(300) for run in runs] == [0, 0], (tmp_path / "log").read_text()
    spans = spans_on_devices(devices)
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


def test_a_run_that_is_taken_up_from_its_failure_stages_only_what_is_missing(
    pipeline, marked_path, mended
):
    folder = pipeline.register(marked_path, function="tissue_functions:fails_at_mark")
    pipeline.plan(folder)
    assert not pipeline.stage(folder).success
    mended.touch()
    keys = tile_keys(folder.key, folder.plan().grid.block_keys())
    tags = {RANGE_START: keys[0], RANGE_END: keys[-1], RESUMED: "true"}
    result = pipeline.run("stage_tiles", tags=tags)
    assert result.success, error_of(result)
    staged = result.asset_materializations_for_node("staged_labels")
    events = [event for event in staged if "left it as it is" not in str(event.description)]
    assert [event.partition for event in events] == [f"tissue/{MARKED_KEY}"]
    # Each tile that Dagster asked for is told of: else it counts as undone in a backfill.
    assert sorted(str(event.partition) for event in staged) == keys


def test_tiles_of_a_run_that_was_ended_before_it_logged_them_are_logged_by_the_next(
    pipeline, marked_path, mended, monkeypatch
):
    folder = pipeline.register(marked_path, function="tissue_functions:fails_at_mark")
    pipeline.plan(folder)
    with monkeypatch.context() as patch:
        patch.setattr(TileLog, "_write", lambda log, tiles: None)
        assert not pipeline.stage(folder).success
    staged_labels = dg.AssetKey("staged_labels")
    assert pipeline.instance.get_materialized_partitions(staged_labels) == set()
    assert folder.stage().missing_blocks() == [MARKED_KEY]
    before = files_under(folder.path / "stage.zarr")

    result = pipeline.stage(folder, skip_staged=True)
    assert not result.success
    assert files_under(folder.path / "stage.zarr") == before
    keys = tile_keys(folder.key, folder.plan().grid.block_keys())
    rest = set(keys) - {f"tissue/{MARKED_KEY}"}
    assert pipeline.instance.get_materialized_partitions(staged_labels) == rest
    mended.touch()
    result = pipeline.stage(folder, skip_staged=True)
    staged = result.asset_materializations_for_node("staged_labels")
    events = [event for event in staged if "left it as it is" not in str(event.description)]
    assert [event.partition for event in events] == [f"tissue/{MARKED_KEY}"]
    # Each tile that Dagster asked for is told of: else it counts as undone in a backfill.
    assert sorted(str(event.partition) for event in staged) == keys


def failed_partitions(pipeline) -> set[str]:
    """Return the tiles that the UI shows in red."""
    key = dg.AssetKey("staged_labels")
    value = get_and_update_asset_status_cache_value(
        pipeline.instance, key, tiles, pipeline.instance
    )
    return set(value.deserialize_failed_partition_subsets(tiles).get_partition_keys())


APART = {"tissue/y000x000", f"tissue/{MARKED_KEY}", "tissue/y002x003"}
"""Tiles that see a marked object in `scattered`."""


@pytest.fixture
def scattered(pipeline, tmp_path) -> ImageFolder:
    """An image of 12 tiles of which three fail that lie apart; it is planned and staged."""
    image = marked_tissue()
    image[4:8, 4:8] = image[-8:-4, -8:-4] = MARK
    path = write_tiff(tmp_path / "scattered.tif", image)
    folder = pipeline.register(path, function="tissue_functions:fails_at_mark")
    pipeline.plan(folder)
    assert not pipeline.stage(folder).success
    return folder


def repair(pipeline, image: str, **config: object) -> dg.ExecuteInProcessResult:
    """Launch the job as a person does in the launchpad."""
    ops = {"stage_missing_tiles": {"config": {"image": image, **config}}}
    return pipeline.run("repair_image", ops=ops)


def test_a_retry_that_fails_turns_no_staged_tile_red(pipeline, scattered):
    assert failed_partitions(pipeline) == APART
    assert not pipeline.stage(scattered, skip_staged=True).success
    assert failed_partitions(pipeline) == APART
    assert not repair(pipeline, scattered.key).success
    assert failed_partitions(pipeline) == APART


def test_tiles_that_failed_apart_are_repaired_in_one_run_of_the_launchpad(
    pipeline, scattered, mended
):
    result = repair(pipeline, scattered.key)
    assert not result.success
    assert error_of(result).startswith("3 of 3 tiles failed")
    assert "launch job 'repair_image'" in error_of(result)
    mended.touch()
    assert repair(pipeline, scattered.key, only_transient=True).success
    assert len(scattered.stage().missing_blocks()) == 3, "they did not fail by chance"
    result = repair(pipeline, scattered.key)
    assert result.success
    staged = result.asset_materializations_for_node("stage_missing_tiles")
    assert {event.partition for event in staged} == APART
    assert failed_partitions(pipeline) == set()
    assert scattered.failures() == []
    assert scattered.stage().missing_blocks() == []
    run = pipeline.instance.get_run_by_id(result.run_id)
    assert run.tags["patchworks/image"] == scattered.key


def test_repairing_an_image_that_is_not_known_says_so(pipeline, home):
    result = repair(pipeline, "nobody")
    assert not result.success
    assert "image 'nobody'" in error_of(result)


def test_retry_repairs_tiles_that_failed_apart_in_one_run(pipeline, scattered, mended):
    mended.touch()
    plan, budget = scattered.plan(), ComputeBudget(workers=2)
    result = run_image(pipeline.instance, scattered, plan, budget=budget)
    assert result.steps == ("stage_tiles", "merge_image")
    assert result.is_complete
    assert failed_partitions(pipeline) == set()


@pytest.mark.slow
def test_the_command_line_logs_tiles_that_are_staged_and_were_not_logged(
    pipeline, marked_path, mended, monkeypatch
):
    mended.touch()
    folder = pipeline.register(marked_path, function="tissue_functions:fails_at_mark")
    pipeline.plan(folder)
    with monkeypatch.context() as patch:
        patch.setattr(TileLog, "_write", lambda log, tiles: None)
        assert pipeline.stage(folder).success
    found = run_image(pipeline.instance, folder, folder.plan(), budget=ComputeBudget(workers=2))
    assert found.steps == ("stage_tiles", "merge_image")
    records = pipeline.instance.fetch_materializations(dg.AssetKey("staged_labels"), 50).records
    events = [record.asset_materialization for record in records]
    assert len({event.partition for event in events}) == len(events) == 12
    assert {event.description for event in events} == {
        "Staged by a run that was ended before it had logged this tile."
    }
    again = run_image(pipeline.instance, folder, folder.plan(), budget=ComputeBudget(workers=2))
    assert again.steps == ()


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
