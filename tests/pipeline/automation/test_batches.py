"""Many small acquisitions are taken in one run, and what is urgent goes before."""

from __future__ import annotations

from pathlib import Path

import dagster as dg
import numpy as np
import pytest
from dagster._core.storage.noop_compute_log_manager import NoOpComputeLogManager
from dagster._daemon.run_coordinator.queued_run_coordinator_daemon import (
    QueuedRunCoordinatorDaemon,
)

from patchworks_pipeline.automation import alert_sensors, landing_sensor
from patchworks_pipeline.automation.alerts import Alerts
from patchworks_pipeline.automation.events import images_of_run
from patchworks_pipeline.automation.priorities import PRIORITY, Step, priority_tags, put_first
from patchworks_pipeline.cli.runs import open_home, register
from patchworks_pipeline.definitions import defs
from patchworks_pipeline.landing.arrivals import Quarantine
from patchworks_pipeline.lineage import ALONE, Lineage
from patchworks_pipeline.records import Acquisition, ImageFolder
from patchworks_pipeline.resources.resources import AcquisitionSource, Automation, LabelStore
from tests.pipeline.automation.test_sensors import SETTLE, choose, clock, daemon, land, landing
from tests.pipeline.conftest import call_command_line
from tests.pipeline.daemon import landing_sensor as landing_of
from tests.tissue import marked_tissue, tissue, write_tiff

__all__ = ["clock", "daemon", "landing"]


@pytest.fixture(autouse=True)
def two_are_many(monkeypatch):
    monkeypatch.setattr(landing_sensor, "MANY", 2)


@pytest.fixture
def told(monkeypatch) -> list[str]:
    """What people are told."""
    words: list[str] = []

    def send(self, alerts, **_):
        words.extend(f"{alert.image}: {alert.cause}" for alert in alerts)
        return len(alerts)

    monkeypatch.setattr(Alerts, "send", send)
    return words


def drop(landing: Path, *names: str) -> None:
    """Copy small images into the landing folder."""
    for name in names:
        (landing / name).parent.mkdir(parents=True, exist_ok=True)
        np.save(landing / name, tissue((32, 32)))


def is_merged(key: str) -> bool:
    folder = LabelStore().folder(key)
    return folder.has("plan.json") and folder.provenance(folder.plan()) is not None


def jobs_in_the_books(instance: dg.DagsterInstance) -> list[str]:
    return sorted(run.job_name for run in instance.get_runs())


def images_of(request: dg.RunRequest) -> list[str]:
    run = dg.DagsterRun("process_images", run_config=request.run_config)
    return images_of_run(None, Lineage(), run)


# Batches


def test_many_small_images_are_taken_to_their_labels_in_one_run(daemon, clock, landing):
    captured = []

    class Counted(NoOpComputeLogManager):
        def capture_logs(self, log_key):
            captured.append(log_key)
            return super().capture_logs(log_key)

    daemon.instance._compute_log_manager = Counted()
    drop(landing, "a.npy", "b.npy")
    daemon.tick(landing_of)
    clock.now += SETTLE
    assert daemon.until_quiet() == ["process_images"]
    assert all(map(is_merged, "ab"))
    # What is printed is captured by the run of the batch: Dagster starts four processes for that.
    assert len(captured) == 1
    chain = ["merge_image", "plan_image", "stage_tiles"]
    assert jobs_in_the_books(daemon.instance) == sorted([*chain * 2, "process_images"])
    assert list(daemon.instance.get_dynamic_partitions("images")) == ["a", "b"]
    # Each step of each image is in the books as if it had been launched.
    merged = daemon.instance.get_materialized_partitions(dg.AssetKey("merged_labels"))
    assert merged == {"a", "b"}


def test_batches_have_no_more_images_than_the_setting_says(daemon, clock, landing):
    daemon.resources["source"] = AcquisitionSource(settle_seconds=SETTLE, images_per_run=2)
    drop(landing, "a.npy", "b.npy", "c.npy")
    daemon.tick(landing_of)
    clock.now += SETTLE
    requests = daemon.tick(landing_of, run=False)
    assert [images_of(request) for request in requests] == [["a", "b"], ["c"]]
    assert len({request.run_key for request in requests}) == 2


@pytest.mark.parametrize("choice", [{"images_per_run": 1}, {"small_megabytes": 0.001}])
def test_large_images_and_those_that_shall_not_be_have_runs_of_their_own(
    daemon, clock, landing, choice
):
    daemon.resources["source"] = AcquisitionSource(settle_seconds=SETTLE, **choice)
    drop(landing, "a.npy", "b.npy")
    daemon.tick(landing_of)
    clock.now += SETTLE
    requests = daemon.tick(landing_of, run=False)
    assert [request.job_name for request in requests] == ["plan_image"] * 2


def test_few_small_images_have_runs_of_their_own(daemon, clock, landing, monkeypatch):
    monkeypatch.undo()
    assert landing_sensor.MANY > 2


def test_one_bad_image_of_a_batch_leaves_the_others_alone_and_is_named(
    daemon, clock, landing, told
):
    for key, image in {"a": tissue(), "b": marked_tissue(), "c": tissue()}.items():
        choose(key, write_tiff(landing / f"{key}.tif", image), "fails_at_mark")
    daemon.tick(landing_of)
    clock.now += SETTLE
    assert daemon.until_quiet() == ["process_images"]
    assert (is_merged("a"), is_merged("b"), is_merged("c")) == (True, False, True)
    assert LabelStore().folder("b").failures()
    assert told
    assert {words.partition(":")[0] for words in told} == {"b"}
    (batch,) = daemon.instance.get_runs(dg.RunsFilter(job_name="process_images"))
    assert not batch.is_success


def test_an_image_whose_record_is_damaged_leaves_the_others_alone(daemon, clock, landing, told):
    drop(landing, "a.npy", "b.npy")
    daemon.tick(landing_of)
    clock.now += SETTLE
    (request,) = daemon.tick(landing_of, run=False)
    (LabelStore().folder("a").path / "acquisition.json").write_text("{")
    assert not daemon.execute("process_images", request).success
    assert is_merged("b")
    assert [words.partition(":")[0] for words in told] == ["a"]


def test_a_batch_that_goes_on_is_not_asked_for_again_and_one_that_was_lost_is(
    daemon, clock, landing
):
    drop(landing, "a.npy", "b.npy")
    daemon.tick(landing_of)
    clock.now += SETTLE
    (request,) = daemon.tick(landing_of, run=False)
    run = daemon.instance.create_run_for_job(
        defs.resolve_job_def("process_images"),
        run_config=request.run_config,
        tags={**request.tags, "dagster/run_key": request.run_key},
        status=dg.DagsterRunStatus.STARTED,
    )
    for _ in range(3):
        clock.now += SETTLE
        assert daemon.tick(landing_of, run=False) == []
    daemon.instance.report_run_failed(run)  # it had begun none of them
    again: list[dg.RunRequest] = []
    for _ in range(3):
        again += daemon.tick(landing_of, run=False)
        clock.now += SETTLE
    assert [images_of(request) for request in again] == [["a", "b"]]


def test_a_batch_that_died_is_told_of_with_its_images(instance, home, told):
    images = [{"image": key, "version": "1", "run_key": key} for key in "abcde"]
    config = {"ops": {"take_batch": {"config": {"images": images}}}}
    run = instance.create_run_for_job(
        defs.resolve_job_def("process_images"),
        run_config=config,
        status=dg.DagsterRunStatus.STARTED,
    )
    event = instance.report_run_failed(run, "its process is gone")
    with dg.build_run_status_sensor_context(
        "run_failure_alerts", event, instance, run, resources={"store": LabelStore()}
    ) as context:
        alert_sensors.run_failure_alerts(context.for_run_failure(), ALONE, LabelStore(), Alerts())
    assert told == ["a, b, c and 2 others: a run of 5 images has ended: its process is gone"]


# Urgency


def test_what_lies_in_the_folder_of_urgent_ones_goes_first_under_its_own_name(
    daemon, clock, landing
):
    daemon.resources["source"] = AcquisitionSource(settle_seconds=SETTLE, max_per_tick=1)
    drop(landing, "a.npy", "urgent/z.npy")
    (request,) = land(daemon, clock)
    assert images_of(request) == ["z"]
    assert int(request.tags[PRIORITY]) >= 10
    assert LabelStore().folder("z").acquisition().priority == 1
    assert LabelStore().folder("z").acquisition().url == str(landing / "urgent" / "z.npy")


def test_an_urgent_one_of_the_name_of_another_is_refused(daemon, clock, landing):
    drop(landing, "a.npy", "urgent/a.npy")
    (request,) = land(daemon, clock)
    assert images_of(request) == ["a"]
    (reason,) = Quarantine(LabelStore().path() / ".quarantine").reasons().values()
    assert "give it another name" in reason


def test_a_template_has_the_same_fields_below_the_folder_of_urgent_ones(daemon, clock, landing):
    daemon.resources["source"] = AcquisitionSource(
        settle_seconds=SETTLE, template="{plate}/{field}.npy"
    )
    drop(landing, "urgent/p1/f1.npy")
    (request,) = land(daemon, clock)
    assert images_of(request) == ["p1_f1"]


@pytest.mark.slow
def test_a_batch_gives_way_to_what_is_urgent_and_its_rest_is_asked_for_again(
    daemon, clock, landing, monkeypatch
):
    drop(landing, "a.npy", "b.npy")
    daemon.tick(landing_of)
    clock.now += SETTLE
    (request,) = daemon.tick(landing_of, run=False)
    monkeypatch.setattr(
        landing_sensor, "MANY", 10
    )  # what is left is few, and a batch none the less
    waiting = daemon.instance.create_run_for_job(
        defs.resolve_job_def("process_images"),
        run_config=request.run_config,
        tags={PRIORITY: "11"},
        status=dg.DagsterRunStatus.NOT_STARTED,
    )
    assert daemon.execute("process_images", request).success
    assert not is_merged("a")
    daemon.instance.delete_run(waiting.run_id)
    jobs: list[str] = []
    for _ in range(3):
        clock.now += SETTLE
        jobs += daemon.until_quiet()
    assert jobs == ["process_images"]
    assert is_merged("a")
    assert is_merged("b")


@pytest.mark.parametrize(
    ("automation", "urgent", "wanted"),
    [
        (Automation(), False, [None, "1", "2"]),
        (Automation(finish_first=False), True, ["10", "10", "10"]),
        pytest.param(
            Automation(finish_first=False), False, [None, None, None], marks=pytest.mark.slow
        ),
        pytest.param(Automation(), True, ["10", "11", "12"], marks=pytest.mark.slow),
    ],
)
def test_runs_nearer_to_the_labels_go_first(daemon, clock, landing, automation, urgent, wanted):
    daemon.resources |= {
        "automation": automation,
        "source": AcquisitionSource(settle_seconds=SETTLE, images_per_run=1),
    }
    drop(landing, "urgent/a.npy" if urgent else "a.npy")
    daemon.tick(landing_of)
    clock.now += SETTLE
    assert daemon.until_quiet() == ["plan_image", "stage_tiles", "merge_image"]
    assert [request.tags.get(PRIORITY) for _, request in daemon.runs] == wanted


def test_an_ordinary_image_is_recorded_as_before(tmp_path, home):
    folder = LabelStore().folder("a")
    choose("a", tmp_path / "a.tif")
    assert "priority" not in (folder.path / "acquisition.json").read_text()
    assert isinstance(folder, ImageFolder)


def queue(instance: dg.DagsterInstance, key: str, job: str, priority: str | None = None) -> str:
    """Let a run of an image wait in line; return its id."""
    tags = {"dagster/partition": key} | ({PRIORITY: priority} if priority else {})
    run = instance.create_run_for_job(
        defs.resolve_job_def(job), tags=tags, status=dg.DagsterRunStatus.NOT_STARTED
    )
    return run.run_id


def order_of(instance: dg.DagsterInstance) -> list[str]:
    """Return the waiting runs in the order in which Dagster's own daemon starts them."""
    runs = instance.get_runs(dg.RunsFilter(statuses=[dg.DagsterRunStatus.NOT_STARTED]))
    ordered = QueuedRunCoordinatorDaemon(1)._priority_sort(reversed(runs))
    return [run.run_id for run in ordered]


def test_an_image_that_waits_is_put_first_with_all_its_runs(home, instance, tmp_path):
    for key in ("a", "b"):
        choose(key, tmp_path / f"{key}.tif")
    first = queue(instance, "other", "plan_image")
    urgent = queue(instance, "urgent", "merge_image", "12")
    own = [queue(instance, "b", "plan_image"), queue(instance, "b", "merge_image", "2")]
    assert order_of(instance) == [urgent, own[1], first, own[0]]
    folder = LabelStore().folder("b")
    assert put_first(instance, ALONE, folder) == 2
    assert order_of(instance) == [own[1], own[0], urgent, first]
    assert folder.acquisition().priority == 2
    assert priority_tags(2, Step.STAGE, Automation()) == {PRIORITY: "21"}, "and those to come"
    other = LabelStore().folder("a")
    assert put_first(instance, ALONE, other) == 0
    assert other.acquisition().priority == 3


@pytest.mark.slow
def test_the_command_line_puts_an_image_first_and_keeps_a_priority(home, tmp_path):
    with open_home(home) as instance:
        register(instance, LabelStore(), "a", Acquisition("/landing/a.tif"))
        run_id = queue(instance, "a", "plan_image")
    code, printed = call_command_line("next", "a")
    assert (code, printed) == (0, "a: 1 run that waits goes first now, and so will those to come")
    with open_home(home) as instance:
        run = instance.get_run_by_id(run_id)
        assert run is not None
        assert run.tags[PRIORITY] == "10"
    code, printed = call_command_line("next", "nowhere")
    assert code == 2
    path = write_tiff(tmp_path / "c.tif", tissue((32, 32)))
    options = ("--segmentation", "threshold", "--tile-shape", "32", "--overlap", "0")
    assert call_command_line("run", path, *options, "--priority", "3")[0] == 0
    assert LabelStore().folder("c").acquisition().priority == 3
    assert call_command_line("run", path)[0] == 0
    assert LabelStore().folder("c").acquisition().priority == 3
