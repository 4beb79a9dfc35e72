"""Tile partitions are bounded: by image, by count, and by what is on disk."""

from __future__ import annotations

import shutil
from dataclasses import replace
from pathlib import Path

import dagster as dg
import numpy as np
import pytest

from patchworks_core.files.storage import write_text
from patchworks_core.stage.plan import Plan
from patchworks_pipeline.assets.reported import SUMMARY
from patchworks_pipeline.automation import retention, retention_sensor
from patchworks_pipeline.automation.alerts import Alerts
from patchworks_pipeline.automation.retention import Retention
from patchworks_pipeline.cli.runs import open_home
from patchworks_pipeline.definitions import defs
from patchworks_pipeline.instance.events_together import SqliteEvents
from patchworks_pipeline.instance.home import BATCH_VARIABLE
from patchworks_pipeline.instance.tile_log import together
from patchworks_pipeline.instance.tile_partitions import live_tile_keys, tile_keys_of
from patchworks_pipeline.lineage import Lineage
from patchworks_pipeline.records import OBJECTS_CSV, RETIRED, ImageFolder
from patchworks_pipeline.resources.resources import Automation, LabelStore, SegmentationDefaults
from patchworks_pipeline.tile_failures import TileFailure
from tests.pipeline.conftest import Pipeline
from tests.pipeline.daemon import SENSORS, Daemon
from tests.tissue import tissue, write_tiff

SHAPE = (64, 64)

N_TILES = 4


DAGSTERS_OWN = "storage: {sqlite: {base_dir: {env: DAGSTER_HOME}}}\ntelemetry: {enabled: false}\n"


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    """A home with two images of four tiles each, merged one after the other."""
    folder = tmp_path_factory.mktemp("finished")
    with pytest.MonkeyPatch.context() as patch:
        enter(patch, folder / "home")
        with open_home(folder / "home") as instance:
            pipeline = Pipeline(instance, {"budget": {"config": {"workers": 2}}})
            for key in "ab":
                path = write_tiff(folder / f"{key}.tif", tissue(SHAPE))
                image = pipeline.register(path, key, tile_shape=(32,), function="threshold")
                pipeline.run_to_labels(image)
                write_text(image.path / OBJECTS_CSV, "")  # a table and a report, which are not made
                write_text(image.path / SUMMARY, "{}")
                assert image.plan().grid.n_blocks == N_TILES
    return folder / "home"


def enter(patch: pytest.MonkeyPatch, home: Path) -> None:
    """Let this process use a home, until the patch ends."""
    patch.setenv("PATCHWORKS_HOME", str(home))
    patch.setenv("DAGSTER_HOME", str(home / "dagster"))
    patch.setenv(BATCH_VARIABLE, "1000")


@pytest.fixture
def storage() -> str:
    return "ours"


@pytest.fixture
def instance(made, home, storage, monkeypatch):
    """The instance of a copy of that home, with this package's storage or Dagster's own."""
    shutil.copytree(made, home)
    enter(monkeypatch, home)
    if storage == "dagster's":
        (home / "dagster" / "dagster.yaml").write_text(DAGSTERS_OWN)
    with open_home(home) as instance:
        assert isinstance(instance.event_log_storage, SqliteEvents) == (storage == "ours")
        yield instance


@pytest.fixture
def finished(instance) -> list[ImageFolder]:
    """The folders of the two images."""
    return [LabelStore().folder(key) for key in "ab"]


both_storages = pytest.mark.parametrize("storage", ["ours", "dagster's"])
"""One removes many keys at once, the other one by one."""


def retire(instance: dg.DagsterInstance, alerts: list[str] | None = None, **limits: float) -> None:
    """Run the job that retires."""

    class Told(Alerts):
        def send(self, told, **_):
            alerts.extend(f"{alert.image}: {alert.cause}" for alert in told)
            return len(told)

    result = defs.resolve_job_def("retire_images").execute_in_process(
        instance=instance,
        resources={
            "store": LabelStore(),
            "retention": Retention(**limits),
            "alerts": Alerts() if alerts is None else Told(),
        },
    )
    assert result.success


def n_live(instance: dg.DagsterInstance) -> dict[str, int]:
    return {image: len(keys) for image, keys in live_tile_keys(instance, Lineage()).items()}


def tick(instance: dg.DagsterInstance, daemon: Daemon | None = None, **limits) -> Daemon:
    daemon = daemon or Daemon(instance, {})
    daemon.resources = {"retention": Retention(**limits)}
    daemon.tick(SENSORS["retention_sensor"], run=False)
    return daemon


# Tile partitions of one image


def test_an_image_has_a_thousand_tile_partitions_at_most_by_default():
    assert SegmentationDefaults().max_tile_partitions == 1000


def test_an_image_that_was_planned_in_more_blocks_keeps_them_unless_someone_says_so(
    home, pipeline, tmp_path
):
    folder = pipeline.register(write_tiff(tmp_path / "c.tif", tissue(SHAPE)), "c", tile_shape=(8,))
    acquisition, image = folder.acquisition(), folder.acquisition().open()

    def planned(**limit: int) -> Plan:
        return SegmentationDefaults(**limit).plan_of(acquisition, image, folder)

    before = planned(max_tile_partitions=1000)
    folder.write_plan(before)
    smaller = type(before)(
        image=before.image,
        grid=replace(before.grid, block_shape=(2, 2)),
        segmentation=before.segmentation,
        versions=before.versions,
    )
    folder.write_plan(smaller)  # as another default would have cut it
    assert planned().fingerprint == smaller.fingerprint
    assert planned(max_tile_partitions=1000).fingerprint == before.fingerprint


@pytest.mark.parametrize(
    ("tile", "limit", "n_blocks"),
    [
        pytest.param(16, {}, 64, id="more than 512 are grouped"),
        pytest.param(32, {}, 256, id="fewer are not"),
        pytest.param(16, {"max_tile_partitions": 1024}, 1024, id="nor are any where it is said"),
        pytest.param(32, {"max_tile_partitions": 30}, 16, id="and fewer where that is said"),
    ],
)
def test_small_tiles_share_a_partition_while_nobody_says_how_many_there_are(
    pipeline, tmp_path, tile, limit, n_blocks
):
    image = write_tiff(tmp_path / "c.tif", np.zeros((512, 512), "uint8"))
    folder = pipeline.register(image, "c", tile_shape=(tile,), axes="yx")
    acquisition, opened = folder.acquisition(), folder.acquisition().open()
    plan = SegmentationDefaults(**limit).plan_of(acquisition, opened, folder)
    assert plan.grid.n_blocks == n_blocks


# The budget


@both_storages
def test_above_the_budget_the_image_finished_first_is_retired_and_keeps_its_stage(
    instance, finished
):
    told: list[str] = []
    retire(instance, told, max_live_keys=N_TILES)
    first, second = finished
    assert n_live(instance) == {second.key: N_TILES}
    assert told == []
    assert first.is_retired
    assert not second.is_retired
    assert first.stage().missing_blocks() == []
    assert list(instance.get_dynamic_partitions("images")) == [first.key, second.key]
    events = instance.get_materialized_partitions(dg.AssetKey("staged_labels"))
    of_first = {key for key in events if key.startswith("a/")}
    if isinstance(instance.event_log_storage, SqliteEvents):
        assert of_first == set()
        assert len(events) == N_TILES
    else:
        assert len(of_first) == N_TILES
    # Nothing is to be done about what is retired, and nothing is done.
    daemon = tick(instance, max_live_keys=N_TILES)
    assert n_live(instance) == {second.key: N_TILES}
    assert daemon.runs == []
    retire(instance, max_live_keys=N_TILES)
    assert n_live(instance) == {second.key: N_TILES}


def test_within_the_budget_nothing_is_retired(instance, finished):
    retire(instance, max_live_keys=2 * N_TILES)
    assert n_live(instance) == {"a": N_TILES, "b": N_TILES}


@pytest.mark.parametrize("storage", ["ours", pytest.param("dagster's", marks=pytest.mark.slow)])
def test_a_retired_image_that_is_taken_up_has_its_tiles_from_its_stage(
    instance, pipeline, finished
):
    retire(instance, max_live_keys=1)
    assert n_live(instance) == {}
    folder = finished[0]
    result = pipeline.plan(folder)
    assert result.success
    events = result.asset_materializations_for_node("image")
    (image,) = [event for event in events if event.asset_key == dg.AssetKey("image")]
    assert image.metadata["n_tile_partitions_new"].value == N_TILES
    assert n_live(instance) == {"a": N_TILES}
    assert not folder.is_retired
    staged = instance.get_materialized_partitions(dg.AssetKey("staged_labels"))
    assert set(tile_keys_of(instance, Lineage(), "a")) <= staged
    assert Daemon(instance, {}).until_quiet() == []


@pytest.mark.slow
def test_an_old_stage_goes_also_where_its_partitions_went_before(instance, finished, monkeypatch):
    retire(instance, max_live_keys=1)
    moment = retention.now() + 31 * retention.SECONDS_PER_DAY
    monkeypatch.setattr(retention, "now", lambda: moment)
    retire(instance)
    for folder in finished:
        assert folder.is_retired
        assert not (folder.path / "stage.zarr").exists()
        assert (folder.labels(folder.plan()).path / "0").exists()


def _fail(folder):
    folder.write_failure(TileFailure(folder.plan().grid.block_keys()[0], "OSError", "no", ""))


def _with_failures(instance, folder):
    _fail(folder)
    folder.stage().forget(folder.plan().grid.block((0, 0)))
    return "1 with failed tiles"


def _in_work(instance, folder):
    instance.create_run_for_job(
        defs.resolve_job_def("retire_images"),
        tags={"dagster/partition": folder.key},
        status=dg.DagsterRunStatus.STARTED,
    )
    return "1 in work"


def _not_merged(instance, folder):
    shutil.rmtree(str(folder.container))
    return "1 not merged"


def _damaged(instance, folder):
    (folder.path / "plan.json").write_text("{")
    return "1 with a damaged record"


@pytest.mark.parametrize("make", [_with_failures, _in_work, _not_merged, _damaged])
def test_what_may_not_be_retired_stays_the_others_go_and_someone_is_told(instance, finished, make):
    first, second = finished
    words, told = make(instance, first), []
    retire(instance, told, max_live_keys=1)
    assert n_live(instance) == {first.key: N_TILES}
    assert second.is_retired
    (alert,) = told
    assert "4 tile partitions are live, more than retention.max_live_keys=1" in alert
    assert f"images: {words}; the largest: a (4, {words[2:]})" in alert


def test_a_failure_of_a_tile_that_another_call_staged_since_keeps_no_image(instance, finished):
    for folder in finished:
        _fail(folder)
    retire(instance, max_live_keys=1)
    assert all(folder.is_retired for folder in finished)


def test_a_damaged_record_of_what_was_retired_puts_its_tiles_back(instance, finished):
    retire(instance, max_live_keys=1)
    (finished[0].path / RETIRED).write_text("{")
    tick(instance)
    assert n_live(instance) == {"a": N_TILES}


def test_retiring_by_count_that_was_cut_short_is_finished(instance, finished, monkeypatch):
    with monkeypatch.context() as patch:
        patch.setattr(retention, "remove_tile_keys", None)
        with pytest.raises(TypeError):
            retire(instance, max_live_keys=1)
    assert n_live(instance) == {"a": N_TILES, "b": N_TILES}
    # The sensor does not take it for an image whose tiles lack; the next run ends it.
    tick(instance)
    retire(instance)
    assert n_live(instance) == {"b": N_TILES}


@pytest.mark.parametrize("what", ["a run begins", "it is planned anew"])
def test_an_image_that_is_taken_up_while_others_are_retired_is_left(
    instance, finished, monkeypatch, what
):
    retires = retention.retire

    def meanwhile(*arguments, **options):
        if what == "a run begins":
            _in_work(instance, finished[1])
        else:  # by a run that has ended by now
            _in_work(instance, finished[1])
            instance.report_run_failed(instance.get_runs(limit=1)[0])
            _with_failures(instance, finished[1])
        return retires(*arguments, **options)

    monkeypatch.setattr(retention, "retire", meanwhile)
    retire(instance, max_live_keys=1)
    assert n_live(instance) == {"b": N_TILES}
    assert not finished[1].is_retired


# The sensor


def test_the_sensor_asks_for_a_run_above_the_budget_once_an_hour(instance, finished, monkeypatch):
    assert tick(instance, max_live_keys=8).runs == []
    daemon = tick(instance, max_live_keys=7)
    ((job, request),) = daemon.runs
    assert job == "retire_images"
    assert request.run_config["ops"]["retire_old_stages"]["config"] == {"all_images": False}
    tick(instance, daemon, max_live_keys=7)
    assert len(daemon.runs) == 1
    now = retention_sensor.events.now()
    monkeypatch.setattr(retention_sensor.events, "now", lambda: now + 3601)
    tick(instance, daemon, max_live_keys=7)
    assert len(daemon.runs) == 2


def test_the_sensor_asks_for_a_run_of_all_images_once_a_day(instance, monkeypatch):
    daemon = tick(instance)
    now = retention_sensor.events.now()
    for days, n_runs in ((0.9, 0), (1.1, 1), (1.2, 1), (2.2, 2)):
        moment = int(now + days * 86_400)
        monkeypatch.setattr(retention_sensor.events, "now", lambda moment=moment: moment)
        tick(instance, daemon)
        assert len(daemon.runs) == n_runs
    assert daemon.runs[-1][1].run_config["ops"]["retire_old_stages"]["config"]["all_images"]


def test_switched_off_nothing_is_retired(instance, finished):
    assert tick(instance, max_live_keys=1, enabled=False).runs == []
    daemon = Daemon(instance, {"retention": Retention(max_live_keys=1)})
    daemon.resources["automation"] = Automation(enabled=False)
    daemon.tick(SENSORS["retention_sensor"], run=False)
    assert daemon.runs == []


def test_tiles_of_an_image_without_a_folder_go_at_the_second_look(instance, finished):
    shutil.rmtree(str(finished[0].path))
    daemon = tick(instance)
    assert n_live(instance) == {"a": N_TILES, "b": N_TILES}
    tick(instance, daemon)
    assert n_live(instance) == {"b": N_TILES}


def test_a_store_that_is_not_mounted_costs_no_partition(instance, finished, tmp_path, caplog):
    away = tmp_path / "away"
    shutil.move(str(LabelStore().path()), str(away))
    daemon = Daemon(instance, {"retention": Retention()})
    for _ in range(3):
        daemon.evaluate(SENSORS["retention_sensor"])
        tick(instance, daemon)
    assert n_live(instance) == {"a": N_TILES, "b": N_TILES}


def test_tiles_that_the_instance_lacks_are_registered_in_one_range(instance, finished):
    first, second = finished
    before = tile_keys_of(instance, Lineage(), first.key)
    instance.delete_dynamic_partition("tiles", before[1])
    for key in tile_keys_of(instance, Lineage(), second.key):
        instance.delete_dynamic_partition("tiles", key)
    _in_work(instance, second)
    tick(instance)
    assert tile_keys_of(instance, Lineage(), first.key) == before
    assert tile_keys_of(instance, Lineage(), second.key) == []  # a run is at it
    keys = list(instance.get_dynamic_partitions("tiles"))
    assert keys == before


def test_tiles_of_another_plan_give_way_to_those_of_the_stage(instance, finished):
    before = tile_keys_of(instance, Lineage(), "a")
    instance.delete_dynamic_partition("tiles", before[1])
    instance.add_dynamic_partitions("tiles", ["a/z009"])
    tick(instance)
    assert tile_keys_of(instance, Lineage(), "a") == before


def test_one_bad_image_keeps_no_other_from_being_registered(instance, finished):
    for folder in finished:
        instance.delete_dynamic_partition("tiles", tile_keys_of(instance, Lineage(), folder.key)[0])
    _damaged(instance, finished[0])
    tick(instance)
    assert n_live(instance) == {"a": N_TILES - 1, "b": N_TILES}


# What the storage does


def test_many_keys_go_in_one_transaction(instance, monkeypatch):
    storage = instance.event_log_storage
    others = list(instance.get_dynamic_partitions("tiles"))
    keys = [f"A/{n}" for n in range(1200)]
    instance.add_dynamic_partitions("tiles", [*keys, "Ab/0"])
    assert tile_keys_of(instance, Lineage(), "A") == keys  # and not those of 'a'
    begun = []
    transaction = SqliteEvents.index_transaction

    def counted(self):
        begun.append(1)
        return transaction(self)

    monkeypatch.setattr(SqliteEvents, "index_transaction", counted)
    storage.delete_dynamic_partitions("tiles", keys)
    assert list(instance.get_dynamic_partitions("tiles")) == [*others, "Ab/0"]
    assert len(begun) == 1


def test_what_was_logged_of_a_tile_goes_from_the_file_of_its_run_too(instance):
    @dg.op
    def tiles(context) -> None:
        for n in range(100):
            note = {"note": "".join(map(str, np.arange(n, n + 500)))}
            context.log_event(dg.AssetMaterialization("s", partition=f"a/{n}", metadata=note))
        context.log_event(dg.AssetMaterialization("s", partition="b/0"))

    @dg.job
    def stage():
        tiles()

    storage = instance.event_log_storage
    with together(instance):
        run = stage.execute_in_process(instance=instance)
    file = Path(storage.path_for_shard(run.run_id))
    before = file.stat().st_size
    assert storage.delete_partition_events(dg.AssetKey("s"), [f"a/{n}" for n in range(100)]) == 100
    assert instance.get_materialized_partitions(dg.AssetKey("s")) == {"b/0"}
    logged = instance.all_logs(run.run_id, of_type=dg.DagsterEventType.ASSET_MATERIALIZATION)
    assert [event.dagster_event.partition for event in logged] == ["b/0"]
    assert instance.get_run_by_id(run.run_id).is_success
    assert file.stat().st_size < before / 2
