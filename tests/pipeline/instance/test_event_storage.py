"""Events of many tiles are written in one go, and read as if each had been written alone."""

import shutil
import threading
from pathlib import Path

import dagster as dg
import pytest
import sqlalchemy as db
import yaml
from dagster._core.storage.event_log.sqlite import SqliteEventLogStorage

from patchworks_pipeline.cli.runs import open_home
from patchworks_pipeline.instance.events_together import SqliteEvents
from patchworks_pipeline.instance.home import BATCH_VARIABLE, home_environment, prepare_home
from patchworks_pipeline.instance.tile_log import TileLog, together

KEYS = [f"image/{n}" for n in range(12)]

DAGSTERS_OWN = "storage: {sqlite: {base_dir: %s}}\ntelemetry: {enabled: false}\n"


def tiles_asset(body):
    """Return an asset of all keys whose run calls `body`."""

    @dg.multi_asset(
        specs=[dg.AssetSpec("staged_labels", skippable=True)],
        partitions_def=dg.StaticPartitionsDefinition(KEYS),
        backfill_policy=dg.BackfillPolicy.single_run(),
    )
    def staged_labels(context: dg.AssetExecutionContext):
        body(context)
        yield from ()

    return staged_labels


def tile(key: str) -> dg.AssetMaterialization:
    return dg.AssetMaterialization("staged_labels", partition=key, metadata={"key": key})


def log_all(context: dg.AssetExecutionContext) -> None:
    with TileLog(context) as log:
        for key in KEYS:
            log.add(tile(key))


def run_tiles(instance: dg.DagsterInstance, body=log_all) -> dg.ExecuteInProcessResult:
    job = dg.Definitions([tiles_asset(body)]).resolve_implicit_global_asset_job_def()
    tags = {
        "dagster/asset_partition_range_start": KEYS[0],
        "dagster/asset_partition_range_end": KEYS[-1],
    }
    return job.execute_in_process(instance=instance, tags=tags, raise_on_error=False)


class Commits:
    """Counts the transactions of event storages."""

    def __init__(self, monkeypatch) -> None:
        self.n = 0
        connect = SqliteEvents._connect

        def counted(storage, shard):
            self.n += 1
            return connect(storage, shard)

        monkeypatch.setattr(SqliteEvents, "_connect", counted)


def as_it_is_read(instance: dg.DagsterInstance, run_id: str) -> dict[str, object]:
    """Return what the UI and sensors read of a run, but for times and ids."""
    key = dg.AssetKey("staged_labels")
    read = instance.fetch_materializations(key, limit=100, ascending=True).records
    records = [record.asset_materialization for record in read]
    planned = instance.all_logs(run_id, of_type=dg.DagsterEventType.ASSET_MATERIALIZATION_PLANNED)
    logged = instance.all_logs(run_id, of_type=dg.DagsterEventType.ASSET_MATERIALIZATION)
    latest = instance.get_latest_materialization_event(key)
    (asset,) = instance.get_asset_records([key])
    return {
        "partitions": [record.partition for record in records],
        "metadata": [record.metadata["key"].value for record in records],
        "tags": [sorted(record.tags or {}) for record in records],
        "planned": {event.dagster_event.partition for event in planned},
        "of the run": [event.dagster_event.partition for event in logged],
        "messages": [event.message for event in logged],
        "levels": [event.level for event in logged],
        "latest": latest.asset_materialization.partition,
        "latest run is this": asset.asset_entry.last_run_id == run_id,
        "latest is the last": asset.asset_entry.last_materialization_storage_id
        == read[-1].storage_id,
        "materialized": instance.get_materialized_partitions(key),
    }


@pytest.fixture(scope="module")
def new_home(tmp_path_factory):
    """A home that was opened once: making its tables takes longer than any test here."""
    home = tmp_path_factory.mktemp("new") / "home"
    with pytest.MonkeyPatch.context() as patch:
        restore_environment_after(patch)
        with open_home(home):
            pass
    return home


def restore_environment_after(patch: pytest.MonkeyPatch) -> None:
    """Have the variables that opening a home sets as they were."""
    for name in ("DAGSTER_HOME", "PATCHWORKS_HOME"):
        patch.setenv(name, "")
    patch.setenv(BATCH_VARIABLE, "1000")


@pytest.fixture
def batched(new_home, tmp_path, monkeypatch):
    """An instance as a new home has it."""
    shutil.copytree(new_home, tmp_path / "home")
    restore_environment_after(monkeypatch)
    with open_home(tmp_path / "home") as instance:
        assert isinstance(instance.event_log_storage, SqliteEvents)
        yield instance


@pytest.fixture(scope="module")
def single(tmp_path_factory):
    """An instance as Dagster has it."""
    folder = tmp_path_factory.mktemp("single")
    (folder / "dagster.yaml").write_text(DAGSTERS_OWN % folder)
    with dg.DagsterInstance.from_config(str(folder)) as instance:
        assert not isinstance(instance.event_log_storage, SqliteEvents)
        yield instance


def test_what_is_written_together_reads_as_what_is_written_alone(batched, single):
    read = []
    for instance in (batched, single):
        result = run_tiles(instance)
        assert result.success
        logged = result.asset_materializations_for_node("staged_labels")
        assert [event.partition for event in logged] == KEYS
        read.append(as_it_is_read(instance, result.run_id))
    assert read[0] == read[1]
    assert read[0]["partitions"] == KEYS
    assert read[0]["planned"] == set(KEYS)


def test_a_dozen_tiles_cost_fewer_transactions_than_tiles(batched, monkeypatch):
    commits = Commits(monkeypatch)
    run_tiles(batched, lambda context: None)
    without, commits.n = commits.n, 0
    run_tiles(batched)
    assert 2 <= commits.n - without <= 6


def test_a_home_goes_from_one_storage_to_the_other_and_back(batched, tmp_path):
    first = run_tiles(batched).run_id
    folder = tmp_path / "home" / "dagster"
    ours = (folder / "dagster.yaml").read_text()
    (folder / "dagster.yaml").write_text(DAGSTERS_OWN % folder)
    with dg.DagsterInstance.from_config(str(folder)) as instance:
        assert instance.get_run_by_id(first).is_success
        assert as_it_is_read(instance, first)["partitions"] == KEYS
        second = run_tiles(instance).run_id
    (folder / "dagster.yaml").write_text(ours)
    with dg.DagsterInstance.get() as instance:
        assert as_it_is_read(instance, second)["partitions"] == [*KEYS, *KEYS]


def test_only_the_thread_that_asked_for_it_waits(batched):
    def body(context: dg.AssetExecutionContext) -> None:
        def seen() -> set[str]:
            return context.instance.get_materialized_partitions(dg.AssetKey("staged_labels"))

        with together(context.instance):
            context.log_event(tile(KEYS[0]))
            other = threading.Thread(target=lambda: context.log_event(tile(KEYS[1])))
            other.start()
            other.join()
            assert seen() == {KEYS[1]}
        assert seen() == {KEYS[0], KEYS[1]}

    result = run_tiles(batched, body)
    assert result.success


def test_tiles_that_were_added_are_logged_though_the_run_fails(batched):
    def body(context: dg.AssetExecutionContext) -> None:
        with TileLog(context) as log:
            log.add(tile(KEYS[0]))
            raise ValueError("the run fails")

    result = run_tiles(batched, body)
    assert not result.success
    assert batched.get_materialized_partitions(dg.AssetKey("staged_labels")) == {KEYS[0]}


def test_a_tile_is_seen_while_the_run_goes_on_although_no_other_follows(batched):
    def body(context: dg.AssetExecutionContext) -> None:
        with TileLog(context) as log:
            log.add(tile(KEYS[0]))
            wait = threading.Event()
            for _ in range(100):
                if context.instance.get_materialized_partitions(dg.AssetKey("staged_labels")):
                    return
                wait.wait(0.1)
        raise AssertionError("the tile was not logged before the end")

    assert run_tiles(batched, body).success


def test_a_log_that_cannot_be_written_fails_the_run(batched, monkeypatch):
    def refuse(storage, events, rows):
        raise db.exc.OperationalError("insert", {}, Exception("disk full"))

    def body(context: dg.AssetExecutionContext) -> None:
        monkeypatch.setattr(SqliteEvents, "_write", refuse)
        with TileLog(context) as log:
            log.add(tile(KEYS[0]))

    result = run_tiles(batched, body)
    monkeypatch.undo()
    assert not result.success
    (failure,) = [event for event in result.all_events if event.is_step_failure]
    assert "disk full" in failure.step_failure_data.error.to_string()


def test_a_home_sets_how_many_events_dagster_hands_over_unless_someone_did(tmp_path, monkeypatch):
    monkeypatch.delenv(BATCH_VARIABLE, raising=False)
    assert int(home_environment(tmp_path)[BATCH_VARIABLE]) > 0
    monkeypatch.setenv(BATCH_VARIABLE, "0")
    assert home_environment(tmp_path)[BATCH_VARIABLE] == "0"


def test_the_storage_keeps_its_files_where_dagsters_own_would(batched, single):
    for instance in (batched, single):
        run_tiles(instance, lambda context: None)
    ours, own = (
        {str(path.relative_to(root).parent) for path in root.rglob("*.db")}
        for root in (Path(instance.root_directory) for instance in (batched, single))
    )
    assert ours == own == {"history", "history/runs", "schedules"}


def test_a_new_home_names_the_storage(tmp_path):
    home = prepare_home(tmp_path)
    settings = yaml.safe_load((home / "dagster" / "dagster.yaml").read_text())
    assert settings["storage"]["custom"]["class"] == "SqliteStorage"


def test_an_engine_is_kept_for_each_file_of_events(batched, monkeypatch):
    made = []
    create = db.create_engine

    def counted(address, **options):
        made.append(address)
        return create(address, **options)

    for name in ("sqlalchemy.create_engine", f"{SqliteEventLogStorage.__module__}.create_engine"):
        monkeypatch.setattr(name, counted)
    result = run_tiles(batched)
    events = batched.all_logs(result.run_id)
    assert len(events) > 10
    assert len(made) <= 2 * 2 + 1  # to make the tables and to use them, of the run and the index
