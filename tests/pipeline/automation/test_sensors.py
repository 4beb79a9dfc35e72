"""The chain from landing to merged labels: nothing lost, nothing twice."""

from __future__ import annotations

import json
import re
import time
from pathlib import Path
from types import SimpleNamespace

import dagster as dg
import numpy as np
import pytest
import tifffile
import yaml
import zarr

from patchworks_core import PlanError, tile_process
from patchworks_pipeline.assets import acquiring, merging, staging
from patchworks_pipeline.assets.acquisitions import can_be_taken
from patchworks_pipeline.automation import events, sensors
from patchworks_pipeline.automation import landing_sensor as landing_module
from patchworks_pipeline.automation.alerts import Alerts
from patchworks_pipeline.automation.events import (
    RANGE_END,
    RANGE_START,
    EventCursor,
    busy_images,
    cursor_record,
    images_of_run,
    new_partitions,
)
from patchworks_pipeline.cli.status import refusals
from patchworks_pipeline.definitions import defs
from patchworks_pipeline.landing.arrivals import Ledger, Quarantine
from patchworks_pipeline.lineage import Lineage
from patchworks_pipeline.partitions import tile_keys, tiles
from patchworks_pipeline.records import Acquisition, ImageFolder
from patchworks_pipeline.resources.resources import AcquisitionSource, Automation, LabelStore
from patchworks_pipeline.tile_failures import TileFailure
from tests.core.staging import block_file, change_array
from tests.pipeline.conftest import Pipeline
from tests.pipeline.daemon import CHAIN, Daemon, landing_sensor, merging_sensor, staging_sensor
from tests.tissue import HALO, MARKED_KEY, TILE, marked_tissue, tissue, write_tiff

SETTLE = 10

STAGED = dg.AssetKey("staged_labels")


class Clock:
    """A clock that is set by hand."""

    def __init__(self) -> None:
        self.now = 1000

    def __call__(self) -> int:
        return self.now


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    clock = Clock()
    monkeypatch.setattr(events, "now", clock)
    return clock


@pytest.fixture
def landing(home: Path) -> Path:
    folder = home / "landing"
    folder.mkdir(parents=True)
    return folder


@pytest.fixture
def daemon(instance: dg.DagsterInstance, clock: Clock, landing: Path) -> Daemon:
    return Daemon(instance, {"source": AcquisitionSource(settle_seconds=SETTLE)})


def choose(key: str, path: Path, function: str = "perfect") -> None:
    """Leave the record that says how an image is tiled and segmented."""
    acquisition = Acquisition(
        str(path), tile_shape=(TILE,), overlap=(HALO,), function=f"tissue_functions:{function}"
    )
    LabelStore().folder(key).write_acquisition(acquisition)


def land(daemon: Daemon, clock: Clock) -> list[dg.RunRequest]:
    """Tick twice, a settling time apart."""
    daemon.tick(landing_sensor)
    clock.now += SETTLE
    return daemon.tick(landing_sensor)


def labels_of(key: str) -> np.ndarray:
    folder = LabelStore().folder(key)
    return zarr.open_array(str(folder.labels(folder.plan()).path / "0"), mode="r")[...]


def stage_again(daemon: Daemon, key: str, block: str) -> dg.ExecuteInProcessResult:
    """Materialize one tile by hand."""
    return defs.resolve_job_def("stage_tiles").execute_in_process(
        instance=daemon.instance, partition_key=f"{key}/{block}", raise_on_error=False
    )


# Landing


def test_an_acquisition_is_taken_once_it_is_still(daemon, clock, landing):
    write_tiff(landing / "a.tif", tissue())
    assert daemon.tick(landing_sensor) == []
    clock.now += SETTLE - 1
    assert daemon.tick(landing_sensor) == []
    clock.now += 1
    (request,) = daemon.tick(landing_sensor)
    assert request.partition_key == "a"
    assert request.tags["patchworks/image"] == "a"
    assert list(daemon.instance.get_dynamic_partitions("images")) == ["a"]
    assert LabelStore().folder("a").acquisition().url == str(landing / "a.tif")
    assert LabelStore().folder("a").has("plan.json")


def test_a_tick_that_is_done_twice_asks_for_the_same_run(daemon, clock, landing):
    write_tiff(landing / "a.tif", tissue())
    daemon.tick(landing_sensor)
    clock.now += SETTLE
    first, second = (daemon.evaluate(landing_sensor) for _ in range(2))
    assert [r.run_key for r in first.run_requests] == [r.run_key for r in second.run_requests]


def test_a_run_that_the_daemon_lost_is_asked_for_again(daemon, clock, landing):
    write_tiff(landing / "a.tif", tissue())
    lost = land_without_running(daemon, clock)
    clock.now += SETTLE
    daemon.tick(landing_sensor, run=False)
    clock.now += SETTLE
    again = daemon.tick(landing_sensor)
    assert [r.run_key for r in again] == [r.run_key for r in lost]


def land_without_running(daemon: Daemon, clock: Clock) -> list[dg.RunRequest]:
    daemon.tick(landing_sensor)
    clock.now += SETTLE
    return daemon.tick(landing_sensor, run=False)


@pytest.mark.parametrize("loses_ledger", [False, True])
def test_a_cursor_that_is_reset_takes_nothing_twice(daemon, clock, landing, loses_ledger):
    for name in ("a.tif", "b.tif"):
        write_tiff(landing / name, tissue())
    assert len(land(daemon, clock)) == 2
    daemon.tick(landing_sensor)
    daemon.cursors.clear()
    if loses_ledger:
        LabelStore().path().joinpath(".landing.json").unlink()
    assert land(daemon, clock) == []
    assert land(daemon, clock) == []
    assert len(daemon.runs) == 2


LEDGERS = (".landing.json", ".landing.json.copy")


@pytest.mark.parametrize("content", [b"", b"\xff\x00", b'{"a": ', b"[1, 2]"])
@pytest.mark.parametrize("n_damaged", [1, 2])
def test_a_damaged_ledger_starts_nothing_again_and_loses_nothing(
    daemon, clock, landing, content, n_damaged, capsys
):
    for name in ("a.tif", "b.tif"):
        write_tiff(landing / name, tissue((40, 40)))
    land(daemon, clock)
    daemon.tick(landing_sensor)
    for run in daemon.instance.get_runs():  # a facility keeps runs for some days only
        daemon.instance.delete_run(run.run_id)
    for name in LEDGERS[:n_damaged]:
        (LabelStore().path() / name).write_bytes(content)
    write_tiff(landing / "c.tif", tissue((40, 40)))
    write_tiff(landing / "a.tif", tissue((40, 40), seed=1))
    daemon.cursors.clear()
    assert sorted(str(request.partition_key) for request in land(daemon, clock)) == ["a", "c"]
    assert ".landing.json" in capsys.readouterr().err
    daemon.tick(landing_sensor)
    assert len(Ledger.read(LabelStore().path() / ".landing.json").taken) == 3
    assert land(daemon, clock) == []


def test_a_ledger_that_cannot_be_read_stops_the_tick_and_loses_nothing(daemon, clock, landing):
    write_tiff(landing / "a.tif", tissue((40, 40)))
    land(daemon, clock)
    daemon.tick(landing_sensor)
    ledger = LabelStore().path() / ".landing.json"
    content, cursor = ledger.read_bytes(), dict(daemon.cursors)
    ledger.unlink()
    ledger.mkdir()
    with pytest.raises(PlanError, match=r"\.landing\.json says which acquisitions were taken"):
        daemon.tick(landing_sensor)
    ledger.rmdir()
    ledger.write_bytes(content)
    assert daemon.cursors == cursor
    assert land(daemon, clock) == []


SETTINGS_DAMAGED = {
    "a value of another type": ("source:\n  settle_seconds: soon\n", "line 2"),
    "a list": ("- source\n", "must hold one section per resource"),
    "cut short": ("source: {settle_seconds: [1,\n", "line 2"),
    "not text": (b"\xff\xfe\x00\x01", "is not YAML"),
    "nested too deeply": ("[" * 5000, "nested too deeply"),
    "a folder": (None, "must be a file and is a folder"),
}


@pytest.mark.parametrize("damage", SETTINGS_DAMAGED)
def test_damaged_settings_are_one_clear_error_and_lose_no_cursor(daemon, clock, landing, damage):
    write_tiff(landing / "a.tif", tissue((40, 40)))
    land(daemon, clock)
    cursor, settings = dict(daemon.cursors), landing.parent / "patchworks.yaml"
    content, words = SETTINGS_DAMAGED[damage]
    if content is None:
        settings.mkdir()
    else:
        settings.write_bytes(content if isinstance(content, bytes) else content.encode())
    with pytest.raises(dg.DagsterResourceFunctionError) as told:
        daemon.tick(landing_sensor)
    cause = told.value.__cause__
    assert isinstance(cause, PlanError)
    assert str(settings) in str(cause)
    assert words in str(cause)
    settings.rmdir() if content is None else settings.unlink()
    assert daemon.cursors == cursor
    assert land(daemon, clock) == []


def test_an_acquisition_that_was_run_by_hand_is_not_run_again(daemon, clock, landing):
    path = write_tiff(landing / "a.tif", tissue())
    pipeline = Pipeline(daemon.instance, {})
    pipeline.plan(pipeline.register(path, "a"))
    assert land(daemon, clock) == []
    assert daemon.runs == []


def test_an_acquisition_that_is_registered_keeps_its_choices(daemon, clock, landing):
    choose("a", write_tiff(landing / "a.tif", tissue()))
    land(daemon, clock)
    assert LabelStore().folder("a").plan().grid.tile_shape == (TILE, TILE)


def test_an_acquisition_that_is_written_over_is_planned_again(daemon, clock, landing):
    path = write_tiff(landing / "a.tif", tissue())
    land(daemon, clock)
    first = LabelStore().folder("a").plan().fingerprint
    write_tiff(path, tissue((64, 64)))
    (request,) = land(daemon, clock)
    assert request.partition_key == "a"
    assert LabelStore().folder("a").plan().fingerprint != first
    assert list(daemon.instance.get_dynamic_partitions("images")) == ["a"]


def test_an_unreadable_one_is_told_of_once_and_stops_no_other(daemon, clock, landing, caplog):
    (landing / "a.tif").write_bytes(b"not a tiff")
    write_tiff(landing / "b.tif", tissue())
    daemon.tick(landing_sensor)
    clock.now += SETTLE
    tick = daemon.evaluate(landing_sensor)
    assert [r.partition_key for r in tick.run_requests] == ["b"]
    assert refusals_told(tick) == [str(landing / "a.tif")]
    daemon.cursors["landing_sensor"] = tick.cursor
    clock.now += SETTLE
    for _ in range(3):
        later = daemon.evaluate(landing_sensor)
        assert refusals_told(later) == []
        daemon.cursors["landing_sensor"] = later.cursor
        clock.now += SETTLE
    (reason,) = Quarantine(LabelStore().path() / ".quarantine").reasons().values()
    assert "a.tif" in reason


def test_a_landing_folder_that_is_not_mounted_is_told_of_once(daemon, clock, landing, monkeypatch):
    told: list[str] = []
    monkeypatch.setattr(
        Alerts, "send", lambda self, alerts, **_: told.extend(a.cause for a in alerts)
    )
    landing.rmdir()
    daemon.tick(landing_sensor)
    assert told == []  # it may be mounted in a moment
    daemon.tick(landing_sensor)
    (cause,) = told
    assert f"the landing folder '{landing}' does not exist; mount its disk, make it, or" in cause
    landing.mkdir()
    write_tiff(landing / "a.tif", tissue())
    assert [request.partition_key for request in land(daemon, clock)] == ["a"]


def refusals_told(tick: dg.SensorResult) -> list[str]:
    """Return which acquisitions a tick says were refused."""
    return [
        event.description.partition(" was refused: ")[0]
        for event in tick.asset_events
        if isinstance(event, dg.AssetCheckEvaluation) and not event.passed
    ]


def test_a_refusal_is_told_though_the_tick_fails_that_made_it(daemon, clock, landing, monkeypatch):
    (landing / "a.tif").write_bytes(b"not a tiff")
    write_tiff(landing / "b.tif", tissue())
    daemon.tick(landing_sensor)
    clock.now += SETTLE

    def full(self):
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(landing_module._Decisions, "gather", full)
        with pytest.raises(OSError, match="No space left"):
            daemon.evaluate(landing_sensor)
    first = daemon.evaluate(landing_sensor)
    refused = [str(landing / "a.tif")]
    assert refusals_told(first) == refused
    assert refusals_told(daemon.evaluate(landing_sensor)) == refused  # the first was not kept
    daemon.cursors["landing_sensor"] = first.cursor
    assert refusals_told(daemon.evaluate(landing_sensor)) == []


def test_what_landed_is_reported_as_an_asset_of_its_own_with_its_check(daemon, clock, landing):
    path = write_tiff(landing / "a.tif", tissue())
    (landing / "b.tif").write_bytes(b"not a tiff")
    land(daemon, clock)
    key = dg.AssetKey("acquisition")
    (record,) = daemon.instance.fetch_materializations(key, limit=10).records
    event = record.asset_materialization
    assert event.partition == "a"
    assert event.metadata["path"].value == str(path)
    assert event.metadata["size_bytes"].value == path.stat().st_size
    assert event.tags["dagster/data_version"] == event.metadata["signature"].value
    history = daemon.instance.event_log_storage.get_asset_check_execution_history(
        dg.AssetCheckKey(key, "can_be_taken"), limit=10
    )
    assert sorted(record.status.value for record in history) == ["FAILED", "SUCCEEDED"]


def test_the_check_of_an_acquisition_opens_it_again(instance, pipeline, home, tmp_path):
    path = write_tiff(tmp_path / "a.tif", tissue())
    pipeline.register(path, "a")

    def passes(key: str) -> bool:
        context = SimpleNamespace(has_partition_key=True, partition_key=key)
        return can_be_taken(context, LabelStore(), AcquisitionSource()).passed

    assert passes("a")
    path.write_bytes(b"not a tiff")
    assert not passes("a")
    assert not passes("gone")
    with pytest.raises(dg.Failure, match="choose the partition of an image"):
        can_be_taken(SimpleNamespace(has_partition_key=False), LabelStore(), AcquisitionSource())


def test_the_setting_that_a_refusal_advises_is_taken(daemon, clock, landing, home):
    pages = np.stack([tissue(), tissue()])
    tifffile.imwrite(landing / "a.tif", pages, metadata=None, photometric="minisblack")
    assert land(daemon, clock) == []
    (reason,) = Quarantine(LabelStore().path() / ".quarantine").reasons().values()
    advice = re.search(r"in patchworks.yaml that is source: (\{.*\})", reason)[1]
    chosen = yaml.safe_load(advice) | {"settle_seconds": SETTLE}
    daemon.resources["source"] = AcquisitionSource(**chosen)
    assert [request.partition_key for request in land(daemon, clock)] == ["a"]
    assert LabelStore().folder("a").acquisition().open().axes == "zyx"


def test_an_unreadable_one_that_is_replaced_is_taken(daemon, clock, landing):
    (landing / "a.tif").write_bytes(b"not a tiff")
    assert land(daemon, clock) == []
    write_tiff(landing / "a.tif", tissue())
    (request,) = land(daemon, clock)
    assert request.partition_key == "a"


def test_of_two_with_the_same_key_the_second_is_told_whose_it_is(daemon, clock, landing):
    for name in ("a b.tif", "a_b.tif"):
        write_tiff(landing / name, tissue())
    (request,) = land(daemon, clock)
    assert request.partition_key == "a_b"
    (reason,) = Quarantine(LabelStore().path() / ".quarantine").reasons().values()
    assert f"a_b.tif' would be image 'a_b', which is '{landing}/a b.tif' already" in reason
    assert "give it another name" in reason


def test_names_in_any_script_are_taken_and_kept_apart(daemon, clock, landing):
    for name in ("細胞.npy", "細菌.npy", "ä.npy", "â.npy"):
        np.save(landing / name, tissue((8, 8)))
    requests = land(daemon, clock)
    assert len({request.partition_key for request in requests}) == 4
    urls = {LabelStore().folder(str(r.partition_key)).acquisition().url for r in requests}
    assert len(urls) == 4


class _Template:
    """A landing folder whose template is changed."""

    def __init__(self, daemon: Daemon, landing: Path) -> None:
        self.daemon, self.path = daemon, landing / "plate_1" / "well_B03.tif"
        self.path.parent.mkdir()
        self.write(0)
        self.set("plate_{plate}/well_{well}.tif")

    def write(self, seed: int) -> None:
        write_tiff(self.path, tissue((40, 40), seed=seed))

    def set(self, template: str) -> None:
        source = AcquisitionSource(settle_seconds=SETTLE, template=template)
        self.daemon.resources["source"] = source


@pytest.fixture
def template(daemon: Daemon, landing: Path) -> _Template:
    return _Template(daemon, landing)


@pytest.mark.parametrize("ledger", ["whole", "of 0.1.0", "lost"])
def test_an_image_keeps_its_key_when_the_template_changes(daemon, clock, template, ledger):
    assert [request.partition_key for request in land(daemon, clock)] == ["1_B03"]
    daemon.tick(landing_sensor)
    for name in LEDGERS if ledger != "whole" else ():
        path = LabelStore().path() / name
        version = json.loads(path.read_text())[str(template.path)]
        path.unlink()
        if ledger == "of 0.1.0" and name == LEDGERS[0]:
            version = {key: version[key] for key in ("signature", "glance")}
            path.write_text(json.dumps({str(template.path): version}))
    template.set("{folder}/{file}.tif")
    assert land(daemon, clock) == []
    template.write(1)
    assert [request.partition_key for request in land(daemon, clock)] == ["1_B03"]
    assert list(daemon.instance.get_dynamic_partitions("images")) == ["1_B03"]


def test_an_image_keeps_the_key_that_it_was_asked_for_under(daemon, clock, template):
    (lost,) = land_without_running(daemon, clock)
    template.set("{folder}/{file}.tif")
    template.write(1)
    (again,) = land(daemon, clock)
    assert again.partition_key == lost.partition_key == "1_B03"
    assert again.run_key != lost.run_key


def test_what_is_refused_under_the_key_it_keeps_is_told_of_once(daemon, clock, template):
    land(daemon, clock)
    template.set("{folder}/{file}.tif")
    template.path.write_bytes(b"II*\0damaged")
    assert land(daemon, clock) == []
    (name,) = Quarantine(LabelStore().path() / ".quarantine").names()
    assert name.startswith("1_B03-")
    record = LabelStore().path() / ".quarantine" / f"{name}.json"
    when = record.stat().st_mtime_ns
    assert land(daemon, clock) == []
    assert record.stat().st_mtime_ns == when


def test_an_image_that_was_run_by_hand_is_taken_under_the_key_it_has(daemon, clock, template):
    pipeline = Pipeline(daemon.instance, {})
    pipeline.plan(pipeline.register(template.path, "well_B03", tile_shape=None, overlap=None))
    other = template.path.with_name("well_B04.tif")
    write_tiff(other, tissue((40, 40)))
    assert [request.partition_key for request in land(daemon, clock)] == ["1_B04"]
    template.write(1)
    assert [request.partition_key for request in land(daemon, clock)] == ["well_B03"]


def test_an_image_that_was_planned_under_its_former_key_keeps_it(daemon, clock, landing):
    choose("Gewebe___1", write_tiff(landing / "Gewebe_ä_1.tif", tissue()))
    write_tiff(landing / "Gewebe_ö_1.tif", tissue())
    keys = {request.partition_key for request in land(daemon, clock)}
    assert "Gewebe___1" in keys
    assert len(keys) == 2


def test_a_name_of_which_no_key_can_be_made_is_told_of(daemon, clock, landing):
    write_tiff(landing / "___.tif", tissue())
    assert land(daemon, clock) == []
    (reason,) = Quarantine(LabelStore().path() / ".quarantine").reasons().values()
    assert reason == "no partition key can be made of the name '___.tif'; rename it"


def test_a_damaged_record_stops_no_other(daemon, clock, landing):
    for name in ("a.tif", "b.tif"):
        write_tiff(landing / name, tissue())
    folder = LabelStore().folder("a")
    folder.path.mkdir(parents=True)
    (folder.path / "acquisition.json").write_text("{")
    assert [r.partition_key for r in land(daemon, clock)] == ["b"]


def test_one_tick_takes_no_more_than_a_page(daemon, clock, landing):
    daemon.resources["source"] = AcquisitionSource(settle_seconds=SETTLE, max_per_tick=2)
    for n in range(5):
        np.save(landing / f"{n}.npy", tissue((8, 8)))
    daemon.tick(landing_sensor)
    pages = []
    for _ in range(4):
        clock.now += SETTLE
        pages.append(len(daemon.tick(landing_sensor)))
    assert pages == [2, 2, 1, 0]


def test_a_cursor_that_is_not_ours_is_a_beginning():
    assert cursor_record("12345") == cursor_record("no json") == cursor_record(None) == {}


# The chain


@pytest.mark.slow
def test_the_chain_gives_what_one_call_of_the_library_gives(daemon, clock, landing):
    choose("a", write_tiff(landing / "a.tif", tissue()))
    land(daemon, clock)
    assert daemon.until_quiet() == ["stage_tiles", "merge_image"]
    function = pytest.importorskip("tissue_functions").perfect
    expected = tile_process(tissue(), function, tile_shape=TILE, overlap=HALO)
    np.testing.assert_array_equal(labels_of("a"), expected)


@pytest.mark.slow
def test_a_new_version_goes_through_the_whole_chain(daemon, clock, landing):
    path = write_tiff(landing / "a.tif", tissue())
    choose("a", path)
    land(daemon, clock)
    daemon.until_quiet()
    write_tiff(path, tissue((64, 64), seed=1))
    assert len(land(daemon, clock)) == 1
    assert daemon.until_quiet() == ["stage_tiles", "merge_image"]
    assert labels_of("a").shape == (64, 64)


@pytest.mark.slow
def test_cursors_that_are_reset_start_no_run(daemon, clock, landing):
    for key in ("a", "b"):
        choose(key, write_tiff(landing / f"{key}.tif", tissue((48, 48))))
    land(daemon, clock)
    assert sorted(daemon.until_quiet()) == ["merge_image"] * 2 + ["stage_tiles"] * 2
    daemon.cursors.clear()
    clock.now += SETTLE
    assert daemon.until_quiet() == []
    clock.now += SETTLE
    assert daemon.until_quiet() == []


@pytest.mark.slow
def test_a_daemon_that_starts_again_at_every_tick_ends_the_same(daemon, clock, landing):
    choose("a", write_tiff(landing / "a.tif", tissue()))

    def forget() -> None:
        clock.now += SETTLE
        daemon.cursors.clear()

    land(daemon, clock)
    daemon.cursors.clear()
    assert daemon.until_quiet(forget) == ["stage_tiles", "merge_image"]


def test_a_failed_tile_makes_the_merge_wait(daemon, clock, landing, mended):
    choose("a", write_tiff(landing / "a.tif", marked_tissue()), "fails_at_mark")
    land(daemon, clock)
    assert daemon.until_quiet() == ["stage_tiles"]
    mended.touch()
    clock.now += 10 * SETTLE
    assert daemon.until_quiet() == []
    assert stage_again(daemon, "a", MARKED_KEY).success
    assert daemon.until_quiet() == ["merge_image"]
    assert labels_of("a").max() == len(np.unique(marked_tissue())) - 1


@pytest.mark.slow
def test_a_tile_that_comes_out_otherwise_is_merged_once(daemon, clock, landing):
    choose("a", write_tiff(landing / "a.tif", tissue()))
    land(daemon, clock)
    daemon.until_quiet()
    change_a_tile("a")
    report(daemon.instance, "a/y000x000")
    assert daemon.until_quiet() == ["merge_image"]


@pytest.mark.slow
def test_tiles_that_change_and_change_back_are_merged_each_time(daemon, clock, landing):
    choose("a", write_tiff(landing / "a.tif", tissue()))
    land(daemon, clock)
    daemon.until_quiet()
    change_a_tile("a")
    for _ in range(3):
        report(daemon.instance, "a/y000x000")
        assert daemon.until_quiet() == ["merge_image"]
        change_a_tile("a")


def change_a_tile(key: str) -> None:
    """Stage the first tile as if the function had found something else, or the first again."""
    stage = LabelStore().folder(key).stage()
    change_array(block_file(stage.path, "y000x000"), "labels", lambda labels: labels[::-1])


@pytest.mark.slow
def test_a_tile_that_comes_out_the_same_is_not_merged_again(daemon, clock, landing):
    choose("a", write_tiff(landing / "a.tif", tissue()))
    land(daemon, clock)
    daemon.until_quiet()
    assert stage_again(daemon, "a", "y001x001").success
    assert daemon.until_quiet() == []


def test_a_merge_is_asked_for_once_while_it_waits_in_line(daemon, clock, landing):
    choose("a", write_tiff(landing / "a.tif", tissue()))
    land(daemon, clock)
    daemon.tick(staging_sensor)
    (first,) = daemon.tick(merging_sensor, run=False)
    daemon.cursors.pop("merging_sensor")
    (again,) = daemon.tick(merging_sensor, run=False)
    assert again.run_key == first.run_key


def test_an_image_that_a_run_is_at_is_left_to_it(daemon, clock, landing):
    choose("a", write_tiff(landing / "a.tif", tissue()))
    land(daemon, clock)
    keys = tile_keys("a", LabelStore().folder("a").plan().grid.block_keys())
    by_hand = daemon.instance.create_run_for_job(
        defs.resolve_job_def("stage_tiles"),
        tags={RANGE_START: keys[0], RANGE_END: keys[-1]},
        status=dg.DagsterRunStatus.STARTED,
    )
    assert daemon.tick(staging_sensor) == []
    assert "1 images wait" in daemon.evaluate(staging_sensor).skip_reason.skip_message
    daemon.instance.report_run_failed(by_hand)
    assert len(daemon.tick(staging_sensor)) == 1
    assert daemon.until_quiet() == ["merge_image"]


def test_tiles_that_the_awaited_run_found_to_fail_are_not_tried_again(daemon, clock, landing):
    choose("a", write_tiff(landing / "a.tif", tissue()))
    land(daemon, clock)
    folder = LabelStore().folder("a")
    by_hand = daemon.instance.create_run_for_job(
        defs.resolve_job_def("stage_tiles"),
        tags={"dagster/partition": "a/y000x000"},
        status=dg.DagsterRunStatus.STARTED,
    )
    daemon.tick(staging_sensor)
    for block in folder.plan().grid.block_keys():
        folder.write_failure(TileFailure(block, "ValueError", "no", ""))
    daemon.instance.report_run_failed(by_hand)
    assert daemon.tick(staging_sensor) == []


def test_images_that_were_retired_meanwhile_are_passed_over(daemon, clock, landing):
    for key in ("a", "b"):
        choose(key, write_tiff(landing / f"{key}.tif", tissue((48, 48))))
    land(daemon, clock)
    daemon.instance.delete_dynamic_partition("images", "a")
    (request,) = daemon.tick(staging_sensor)
    assert request.tags["patchworks/image"] == "b"
    daemon.instance.delete_dynamic_partition("images", "b")
    assert daemon.tick(merging_sensor) == []


def test_tiles_that_were_retired_meanwhile_are_passed_over(daemon, clock, landing):
    choose("a", write_tiff(landing / "a.tif", tissue((48, 48))))
    land(daemon, clock)
    for key in daemon.instance.get_dynamic_partitions("tiles"):
        daemon.instance.delete_dynamic_partition("tiles", key)
    assert daemon.tick(staging_sensor) == []


def test_a_stage_whose_last_event_was_lost_is_merged_all_the_same(daemon, clock, landing, mended):
    choose("a", write_tiff(landing / "a.tif", marked_tissue()), "fails_at_mark")
    land(daemon, clock)
    daemon.until_quiet()
    mended.touch()
    with dg.DagsterInstance.ephemeral() as elsewhere:
        elsewhere.add_dynamic_partitions("tiles", [f"a/{MARKED_KEY}"])
        assert stage_again(Daemon(elsewhere, {}), "a", MARKED_KEY).success
    assert daemon.tick(merging_sensor) == []
    clock.now += sensors.SECONDS_TO_LOOK_AGAIN
    assert len(daemon.tick(merging_sensor)) == 1


def test_an_image_that_is_planned_again_with_all_its_tiles_needs_no_run(daemon, clock, landing):
    choose("a", write_tiff(landing / "a.tif", tissue()))
    land(daemon, clock)
    daemon.tick(staging_sensor)
    Pipeline(daemon.instance, {}).plan(LabelStore().folder("a"))
    assert daemon.until_quiet() == ["merge_image"]


@pytest.mark.parametrize("how", ["resource", "variable"])
def test_switched_off_automation_starts_nothing(daemon, clock, landing, monkeypatch, how):
    write_tiff(landing / "a.tif", tissue())
    if how == "resource":
        daemon.resources["automation"] = Automation(enabled=False)
    else:
        monkeypatch.setenv("PATCHWORKS_AUTOMATION", "off")
    daemon.tick(landing_sensor)
    clock.now += SETTLE
    for sensor in CHAIN:
        tick = daemon.evaluate(sensor)
        assert not tick.run_requests
        assert "automation is switched off" in tick.skip_reason.skip_message


def test_every_sensor_of_the_chain_runs_from_the_start():
    assert all(s.default_status == dg.DefaultSensorStatus.RUNNING for s in CHAIN)


# Events


def report(instance: dg.DagsterInstance, *partitions: str) -> None:
    for partition in partitions:
        instance.report_runless_asset_event(
            dg.AssetMaterialization("staged_labels", partition=partition)
        )


def test_events_are_read_once_in_pages(instance):
    keys = [f"a/{n}" for n in range(45)]
    report(instance, *keys)
    cursor, found = EventCursor(), []
    for expected in (20, 20, 5, 0):
        page, cursor = new_partitions(instance, STAGED, cursor, limit=20)
        cursor = EventCursor.from_json(json.loads(json.dumps(cursor.to_json())))
        assert len(page) == expected
        found += page
    assert found == keys


def test_more_events_than_a_page_of_the_database_are_read_in_one_tick(instance, monkeypatch):
    monkeypatch.setattr(events, "READ_AT_ONCE", 10)
    report(instance, *(f"a/{n}" for n in range(25)))
    page, cursor = new_partitions(instance, STAGED, EventCursor(), limit=10_000)
    assert len(page) == 25
    assert new_partitions(instance, STAGED, cursor, limit=10_000)[0] == []


def test_an_event_that_shows_late_is_read(instance):
    report(instance, "a/0", "a/1", "a/2")
    late = EventCursor(after=3, recent=(1, 3))
    assert new_partitions(instance, STAGED, late, limit=10)[0] == ["a/1"]


def test_a_run_over_tiles_of_several_images_is_at_all_of_them(instance):
    instance.add_dynamic_partitions(str(tiles.name), ["a/0", "a/1", "b/0", "c/0"])

    def images(tags: dict[str, str], job: str = "stage_tiles", **config: object) -> list[str]:
        ops = {"ops": {"stage_missing_tiles": {"config": config}}}
        run = dg.DagsterRun(job, tags=tags, run_config=ops)
        return images_of_run(instance, Lineage(), run)

    assert images({RANGE_START: "a/1", RANGE_END: "c/0"}) == ["a", "b", "c"]
    assert images({"dagster/partition": "a/1"}) == ["a"]
    assert images({}) == []
    assert images({}, "repair_image", image="b") == ["b"]
    assert images({}, "repair_image") == []


def test_a_run_that_ended_keeps_no_image_busy(instance):
    run = instance.create_run_for_job(
        defs.resolve_job_def("merge_image"),
        tags={"dagster/partition": "a"},
        status=dg.DagsterRunStatus.STARTED,
    )
    assert busy_images(instance, Lineage(), ["merge_image"]) == {"a"}
    instance.report_run_failed(run)
    assert busy_images(instance, Lineage(), ["merge_image"]) == frozenset()


# A request is no result


def unplannable(monkeypatch: pytest.MonkeyPatch) -> pytest.MonkeyPatch:
    """Let every run that measures an image fail, as where a share is away for a while."""

    def failing(*arguments: object, **options: object) -> None:
        raise OSError(5, "Input/output error", "/share/a.tif")

    monkeypatch.setattr(acquiring, "measure", failing)
    return monkeypatch


@pytest.fixture
def real_clock(clock) -> Clock:
    """The clock of the runs, from where a test sets it on."""
    clock.now = int(time.time())
    return clock


def land_again(daemon: Daemon, clock: Clock) -> list[dg.RunRequest]:
    """Tick three times: what is due again is let go of, settles, and arrives."""
    daemon.tick(landing_sensor)
    return land(daemon, clock)


def test_an_acquisition_is_taken_when_its_run_succeeded_and_not_before(
    daemon, real_clock, landing, monkeypatch
):
    ledger = LabelStore().path() / ".landing.json"
    write_tiff(landing / "a.tif", tissue((40, 40)))
    with monkeypatch.context() as patch:
        unplannable(patch)
        (first,) = land(daemon, real_clock)
        assert land_again(daemon, real_clock) == [], "it is not due yet"
        assert Ledger.read(ledger).taken == {}
    real_clock.now += 120
    (second,) = land_again(daemon, real_clock)
    assert second.run_key != first.run_key
    daemon.tick(landing_sensor)
    assert list(Ledger.read(ledger).taken) == [str(landing / "a.tif")]
    real_clock.now += 10_000
    assert land_again(daemon, real_clock) == []
    assert LabelStore().folder("a").has("statistics.json")


def test_what_fails_again_and_again_is_quarantined_with_the_reason_and_the_way_out(
    daemon, real_clock, landing, monkeypatch, caplog
):
    sent: list[str] = []
    monkeypatch.setattr(
        Alerts, "send", lambda self, alerts, **_: sent.extend(a.cause for a in alerts)
    )
    write_tiff(landing / "a.tif", tissue((40, 40)))
    write_tiff(landing / "b.tif", tissue((40, 40)))
    with monkeypatch.context() as patch:
        unplannable(patch)
        assert len(land(daemon, real_clock)) == 2
        for wait in (60, 600):
            ended = int(time.time())
            real_clock.now = ended + wait - 30
            assert land_again(daemon, real_clock) == []
            real_clock.now = ended + wait + 30
            assert len(land_again(daemon, real_clock)) == 2
        for _ in range(3):
            real_clock.now += 10_000
            assert land_again(daemon, real_clock) == []
    quarantine = Quarantine(LabelStore().path() / ".quarantine")
    reasons = quarantine.reasons()
    assert len(reasons) == 2
    for name, reason in reasons.items():
        assert "3 runs failed, the last one of" in reason
        assert "Input/output error" in reason
        assert f"once {quarantine.path / name}.json is removed" in "".join(sent)
        assert any(f"{name} was refused" in line and "is removed" in line for line in refusals())
    released = next(iter(reasons))
    (quarantine.path / f"{released}.json").unlink()
    (request,) = land_again(daemon, real_clock)
    assert request.run_key == f"{released}~4"
    write_tiff(landing / "b.tif", tissue((40, 40), seed=1))
    assert [r.partition_key for r in land_again(daemon, real_clock)] == ["b"]


def test_what_cannot_be_registered_is_quarantined_too(daemon, clock, landing, monkeypatch):
    sent: list[str] = []
    monkeypatch.setattr(
        Alerts, "send", lambda self, alerts, **_: sent.extend(a.cause for a in alerts)
    )
    place = Path(str(LabelStore().path())) / "a"
    place.parent.mkdir(parents=True, exist_ok=True)
    place.write_text("a file where the folder should be")
    write_tiff(landing / "a.tif", tissue((40, 40)))
    write_tiff(landing / "b.tif", tissue((40, 40)))
    quarantine = Quarantine(LabelStore().path() / ".quarantine")
    assert [request.partition_key for request in land(daemon, clock)] == ["b"]
    for wait in (10, 70, 300):
        clock.now += wait
        assert land(daemon, clock) == []
        assert quarantine.reasons() == {}, "it is early, or tried the second time"
    assert not sent
    clock.now += 600
    assert land(daemon, clock) == []
    (reason,) = quarantine.reasons().values()
    assert "3 tries to register it failed, the last one of: not a directory: " in reason
    assert reason.endswith(f"{str(place / 'acquisition.json')!r}")
    assert len(sent) == 1
    assert "is removed" in sent[0]
    assert any("3 tries to register it failed" in line for line in refusals())
    place.unlink()
    (record,) = (quarantine.path / f"{name}.json" for name in quarantine.names())
    record.unlink()
    assert [request.partition_key for request in land_again(daemon, clock)] == ["a"]


def test_a_full_disk_gives_no_acquisition_up(daemon, clock, landing, monkeypatch):
    write_tiff(landing / "a.tif", tissue((40, 40)))
    with monkeypatch.context() as patch:

        def full(self, acquisition):
            raise OSError(28, "No space left on device", "a")

        patch.setattr(ImageFolder, "write_acquisition", full)
        for _ in range(6):
            assert land(daemon, clock) == []
            clock.now += 10_000
    assert not Quarantine(LabelStore().path() / ".quarantine").reasons()
    assert [request.partition_key for request in land(daemon, clock)] == ["a"]


@pytest.mark.parametrize("deleted", [0, 1])
def test_a_run_that_is_deleted_from_the_books_keeps_no_other_from_starting(
    daemon, real_clock, landing, monkeypatch, deleted
):
    write_tiff(landing / "a.tif", tissue((40, 40)))
    with monkeypatch.context() as patch:
        unplannable(patch)
        land(daemon, real_clock)
        real_clock.now += 120
        assert len(land_again(daemon, real_clock)) == 1
    runs = sorted(daemon.instance.get_runs(), key=lambda run: run.tags["dagster/run_key"])
    daemon.instance.delete_run(runs[deleted].run_id)
    real_clock.now += 1200
    assert len(land_again(daemon, real_clock)) == 1
    assert LabelStore().folder("a").has("statistics.json")


def test_an_acquisition_whose_run_waits_in_line_is_asked_for_once(daemon, real_clock, landing):
    write_tiff(landing / "a.tif", tissue((40, 40)))
    (request,) = land_without_running(daemon, real_clock)
    run = daemon.instance.create_run_for_job(
        defs.resolve_job_def("plan_image"),
        tags={**request.tags, "dagster/run_key": request.run_key},
        status=dg.DagsterRunStatus.STARTED,
    )
    for resets in (False, True):
        if resets:
            daemon.cursors.clear()
        for _ in range(4):
            real_clock.now += SETTLE
            assert daemon.tick(landing_sensor, run=False) == []
    assert Ledger.read(LabelStore().path() / ".landing.json").taken == {}
    daemon.instance.report_run_canceled(run)
    assert land_again(daemon, real_clock) == []
    (reason,) = Quarantine(LabelStore().path() / ".quarantine").reasons().values()
    assert reason == "its run was canceled"


def test_one_bad_entry_of_a_cursor_stops_no_other(daemon, real_clock, landing, monkeypatch):
    for key in "ab":
        write_tiff(landing / f"{key}.tif", tissue((40, 40)))
    land(daemon, real_clock)
    taking = landing_module.taking_of

    def failing(instance: dg.DagsterInstance, name: str, *arguments: object, **options: object):
        if name.startswith("a-"):
            raise OSError(5, "Input/output error")
        return taking(instance, name, *arguments, **options)

    with monkeypatch.context() as patch:
        patch.setattr(landing_module, "taking_of", failing)
        daemon.tick(landing_sensor)
    assert list(Ledger.read(LabelStore().path() / ".landing.json").taken) == [
        str(landing / "b.tif")
    ]
    land_again(daemon, real_clock)
    assert len(Ledger.read(LabelStore().path() / ".landing.json").taken) == 2


# A clock that is set back


def test_a_clock_that_is_set_back_a_year_keeps_nothing_waiting(daemon, clock, landing):
    clock.now = 10**9
    write_tiff(landing / "a.tif", tissue((40, 40)))
    daemon.tick(landing_sensor)
    clock.now -= 31_536_000
    assert [request.partition_key for request in land(daemon, clock)] == ["a"]
    folder = LabelStore().folder("a")
    clock.now = 10**9
    assert daemon.tick(merging_sensor) == [], "it waits for its tiles"
    for block in folder.plan().grid.block_keys():
        Pipeline(daemon.instance, {}).stage(folder, block)
    daemon.cursors["merging_sensor"] = moved_past_events(daemon)
    clock.now -= 31_536_000
    assert [request.partition_key for request in daemon.tick(merging_sensor)] == ["a"]


def moved_past_events(daemon: Daemon) -> str:
    """Return the cursor of the merging sensor as if it had read every event."""
    record = json.loads(str(daemon.cursors["merging_sensor"]))
    _, cursor = new_partitions(daemon.instance, STAGED, EventCursor(), limit=1000)
    return json.dumps({**record, "staged": cursor.to_json()})


@pytest.mark.parametrize("job", ["stage_tiles", "merge_image"])
def test_staging_and_merging_that_failed_of_what_passes_are_tried_again(
    daemon, real_clock, landing, monkeypatch, job
):
    write_tiff(landing / "a.tif", tissue((40, 40)))
    land(daemon, real_clock)
    module, name, sensor = {
        "stage_tiles": (staging, "staging_of", staging_sensor),
        "merge_image": (merging, "pair_tiles", merging_sensor),
    }[job]
    with monkeypatch.context() as patch:
        patch.setattr(module, name, out_of_space)
        daemon.until_quiet()
        assert [asked for asked, _ in daemon.runs].count(job) == 1
        for n_runs, seconds in ((2, 120), (3, 1200), (3, 10**6)):
            real_clock.now += seconds
            daemon.until_quiet()
            assert [asked for asked, _ in daemon.runs].count(job) == n_runs
    daemon.cursors.pop(sensor.name)
    assert daemon.tick(sensor) == [], "a person has to look, whatever becomes of the cursor"


def test_a_merge_that_failed_once_is_done_by_itself(daemon, real_clock, landing, monkeypatch):
    write_tiff(landing / "a.tif", tissue((40, 40)))
    with monkeypatch.context() as patch:
        patch.setattr(merging, "pair_tiles", out_of_space)
        daemon.until_quiet()
        land(daemon, real_clock)
        daemon.until_quiet()
    real_clock.now += 120
    assert daemon.until_quiet() == ["merge_image"]
    assert labels_of("a").any()


def out_of_space(*arguments: object, **options: object) -> None:
    raise OSError(28, "No space left on device")


def test_a_staging_run_that_was_killed_after_a_tile_had_failed_is_taken_up(
    daemon, real_clock, landing
):
    write_tiff(landing / "a.tif", tissue((40, 40)))
    choose("a", landing / "a.tif")
    land(daemon, real_clock)
    (request,) = daemon.tick(staging_sensor, run=False)
    folder = LabelStore().folder("a")
    first, *others = folder.plan().grid.block_keys()
    folder.write_failure(TileFailure(first, "WorkerLostError", "killed", "", kind="killed"))
    run = daemon.instance.create_run_for_job(
        defs.resolve_job_def("stage_tiles"),
        tags={**request.tags, "dagster/run_key": request.run_key},
        status=dg.DagsterRunStatus.STARTED,
    )
    daemon.instance.report_run_failed(run)
    assert daemon.tick(staging_sensor) == [], "it is not due yet"
    real_clock.now = int(time.time()) + 90
    (again,) = daemon.tick(staging_sensor, run=False)
    assert again.run_key == f"{request.run_key}~2"
    keys = tile_keys("a", others)
    assert (again.tags[RANGE_START], again.tags[RANGE_END]) == (keys[0], keys[-1])
