"""What happens by the clock: reprocess, merge again, retry, retire."""

from __future__ import annotations

import datetime
import time
from collections.abc import Iterator
from pathlib import Path

import dagster as dg
import pytest

from patchworks_pipeline.automation import retention, schedules
from patchworks_pipeline.automation.alerts import Alerts
from patchworks_pipeline.automation.retention import Retention, is_retired
from patchworks_pipeline.automation.schedules import make_schedules
from patchworks_pipeline.definitions import defs
from patchworks_pipeline.partitions import tiles
from patchworks_pipeline.records import ImageFolder
from patchworks_pipeline.resources.resources import Automation, LabelStore, SegmentationDefaults
from patchworks_pipeline.tile_failures import TileFailure
from tests.pipeline.conftest import Pipeline
from tests.pipeline.daemon import Daemon
from tests.tissue import tissue, write_tiff

SCHEDULES = defs.schedules or ()

NIGHT = datetime.datetime(2026, 5, 4, 2, tzinfo=datetime.UTC)


@pytest.fixture
def instance() -> Iterator[dg.DagsterInstance]:
    """An instance on disk, because a schedule opens it again by its reference."""
    with dg.instance_for_test() as instance:
        yield instance


@pytest.fixture
def folder(pipeline: Pipeline, tmp_path: Path) -> ImageFolder:
    return pipeline.register(write_tiff(tmp_path / "a.tif", tissue()), "a")


def tick(
    instance: dg.DagsterInstance, name: str, automation: Automation | None = None
) -> list[dg.RunRequest]:
    """Return what a schedule asks for tonight."""
    (schedule,) = [each for each in SCHEDULES if each.name == name]
    resources = {
        "store": LabelStore(),
        "segmentation": SegmentationDefaults(),
        "automation": automation or Automation(),
    }
    resources = {key: resources[key] for key in schedule.required_resource_keys}
    with dg.build_schedule_context(
        instance=instance, scheduled_execution_time=NIGHT, resources=resources
    ) as context:
        result = schedule(context)
        found = [result] if isinstance(result, (dg.RunRequest, dg.SkipReason)) else list(result)
    return [each for each in found if isinstance(each, dg.RunRequest)]


def write_transient(folder: ImageFolder, monkeypatch, transient: str, final: str = "") -> None:
    """Leave failures in the folder, by letter of the block's last digit."""
    failures = [
        TileFailure(block, "OSError", "no", "") for block in folder.plan().grid.block_keys()
    ]
    kinds = {f.block: f.block[-1] in transient for f in failures}
    kept = [f for f in failures if f.block[-1] in transient + final]

    class Known:
        def __init__(self, failure: TileFailure) -> None:
            self.block, self.is_transient = failure.block, kinds[failure.block]

    monkeypatch.setattr(ImageFolder, "failures", lambda self: [Known(f) for f in kept])


def test_every_schedule_waits_to_be_switched_on():
    assert {each.default_status for each in SCHEDULES} == {dg.DefaultScheduleStatus.STOPPED}


def test_hours_are_those_of_the_timezone():
    assert {each.execution_timezone for each in SCHEDULES} == {"UTC"}
    moved = make_schedules("Europe/Berlin")
    assert {each.execution_timezone for each in moved} == {"Europe/Berlin"}
    assert [each.name for each in moved] == [each.name for each in SCHEDULES]


@pytest.mark.slow
def test_switched_off_automation_asks_for_nothing(instance, pipeline, folder):
    pipeline.run_all(folder)
    for schedule in SCHEDULES:
        assert tick(instance, schedule.name, Automation(enabled=False)) == []


# Reprocess


def test_an_image_is_outdated_once_its_function_is_another(instance, pipeline, folder):
    pipeline.plan(folder)
    assert tick(instance, "reprocess_outdated") == []
    chosen = folder.acquisition()
    pipeline.register(Path(chosen.url), "a", function="tissue_functions:above")
    (request,) = tick(instance, "reprocess_outdated")
    assert request.partition_key == "a"
    Daemon(instance, {}).execute("plan_image", request)
    assert tick(instance, "reprocess_outdated") == []


def test_an_image_is_outdated_once_a_parameter_is_another(instance, pipeline, folder):
    pipeline.plan(folder)
    pipeline.register(
        Path(folder.acquisition().url),
        "a",
        function="tissue_functions:above",
        parameters={"level": 3},
    )
    assert len(tick(instance, "reprocess_outdated")) == 1


def test_an_image_that_was_never_planned_is_not_outdated(instance, folder):
    assert tick(instance, "reprocess_outdated") == []


def test_an_image_that_is_gone_keeps_no_other_from_being_reprocessed(
    instance, pipeline, folder, tmp_path
):
    other = pipeline.register(write_tiff(tmp_path / "b.tif", tissue()), "b")
    for each in (folder, other):
        pipeline.plan(each)
    Path(folder.acquisition().url).unlink()
    write_tiff(tmp_path / "b.tif", tissue((64, 64)))
    assert [request.partition_key for request in tick(instance, "reprocess_outdated")] == ["b"]


@pytest.mark.slow
def test_labels_of_older_code_are_merged_again(instance, pipeline, folder, monkeypatch):
    pipeline.run_all(folder)
    assert tick(instance, "remerge_outdated") == []
    monkeypatch.setattr(schedules, "_merge_code_version", lambda: "later")
    (request,) = tick(instance, "remerge_outdated")
    assert request.partition_key == "a"


# Retry


def test_only_what_failed_by_chance_is_tried_again(instance, pipeline, folder, monkeypatch):
    pipeline.plan(folder)
    assert tick(instance, "retry_transient") == []
    write_transient(folder, monkeypatch, transient="013", final="2")
    (request,) = tick(instance, "retry_transient")
    assert request.job_name == "repair_image"
    left = [key for key in folder.plan().grid.block_keys() if key[-1] == "2"]
    assert Daemon(instance, {}).execute("repair_image", request).success
    assert folder.stage().missing_blocks() == left


def test_tiles_that_are_staged_by_now_are_not_tried_again(instance, pipeline, folder, monkeypatch):
    pipeline.plan(folder)
    pipeline.stage(folder)
    write_transient(folder, monkeypatch, transient="0123")
    assert tick(instance, "retry_transient") == []


# Retire


def retire(instance: dg.DagsterInstance, days: float) -> dg.ExecuteInProcessResult:
    return defs.resolve_job_def("retire_images").execute_in_process(
        instance=instance,
        resources={"store": LabelStore(), "retention": Retention(), "alerts": Alerts()},
        run_config={"ops": {"retire_old_stages": {"config": {"days": days}}}},
    )


def later(monkeypatch: pytest.MonkeyPatch, days: float) -> None:
    moment = time.time() + days * retention.SECONDS_PER_DAY
    monkeypatch.setattr(retention, "now", lambda: moment)


def test_the_schedule_asks_for_the_run_that_retires(instance):
    assert len(tick(instance, "retire_finished")) == 1


@pytest.mark.slow
def test_what_was_merged_long_ago_is_retired_and_its_labels_stay(
    instance, pipeline, folder, monkeypatch
):
    pipeline.run_all(folder)
    retire(instance, days=30)
    assert folder.stage().missing_blocks() == []
    later(monkeypatch, days=31)
    assert retire(instance, days=30).success
    assert is_retired(folder)
    assert not (folder.path / "stage.zarr").exists()
    assert list(instance.get_dynamic_partitions(str(tiles.name))) == []
    assert list(instance.get_dynamic_partitions("images")) == ["a"]
    assert (folder.labels(folder.plan()).path / "0").exists()
    assert folder.objects().num_rows > 0


def test_an_image_that_is_not_merged_is_never_retired(instance, pipeline, folder, monkeypatch):
    pipeline.plan(folder)
    pipeline.stage(folder)
    later(monkeypatch, days=300)
    retire(instance, days=1)
    assert folder.stage().missing_blocks() == []


@pytest.mark.slow
def test_an_image_whose_tiles_changed_since_its_merge_is_not_retired(
    instance, pipeline, folder, monkeypatch
):
    pipeline.run_all(folder)
    pipeline.register(Path(folder.acquisition().url), "a", function="tissue_functions:above")
    pipeline.plan(folder)
    pipeline.stage(folder)
    later(monkeypatch, days=300)
    retire(instance, days=1)
    assert not is_retired(folder)


@pytest.mark.slow
def test_an_image_that_a_run_is_at_is_not_retired(instance, pipeline, folder, monkeypatch):
    pipeline.run_all(folder)
    instance.create_run_for_job(
        defs.resolve_job_def("retire_images"),
        tags={"dagster/partition": "a"},
        status=dg.DagsterRunStatus.STARTED,
    )
    later(monkeypatch, days=300)
    retire(instance, days=1)
    assert not is_retired(folder)


@pytest.mark.slow
def test_retiring_that_was_cut_short_is_finished_by_the_next_run(
    instance, pipeline, folder, monkeypatch
):
    pipeline.run_all(folder)
    later(monkeypatch, days=300)
    with monkeypatch.context() as patch:
        patch.setattr(instance, "delete_dynamic_partition", None)
        with pytest.raises(TypeError):
            retire(instance, days=1)
    assert len(instance.get_dynamic_partitions(str(tiles.name))) > 0
    retire(instance, days=1)
    assert list(instance.get_dynamic_partitions(str(tiles.name))) == []


@pytest.mark.slow
def test_a_retired_image_can_be_staged_again_and_needs_no_merge(
    instance, pipeline, folder, monkeypatch
):
    pipeline.run_all(folder)
    later(monkeypatch, days=300)
    retire(instance, days=1)
    daemon = Daemon(instance, {})
    assert daemon.until_quiet() == []
    pipeline.plan(folder)
    assert not is_retired(folder)
    assert daemon.until_quiet() == ["stage_tiles"]
