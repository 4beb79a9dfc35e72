"""Insides of Dagster that are missing are said once, and Dagster's own way is used instead."""

import re
import warnings

import dagster as dg
import pytest
from dagster._core.execution.plan.instance_concurrency_context import InstanceConcurrencyContext
from dagster._core.storage.event_log.sql_event_log import SqlEventLogStorage
from dagster._core.storage.event_log.sqlite import SqliteEventLogStorage

from patchworks_pipeline import dagster_insides
from patchworks_pipeline.automation.in_process import _without_capture
from patchworks_pipeline.dagster_insides import (
    CAPTURE,
    LAUNCHER,
    POSTGRES_EVENTS,
    SLOTS,
    SQLITE_EVENTS,
    DagsterInsidesWarning,
    are_there,
)
from patchworks_pipeline.event_storage import SqliteStorage
from patchworks_pipeline.instance.events_together import SqliteEvents
from patchworks_pipeline.instance.slots import take_pool_slot
from patchworks_pipeline.instance.tile_partitions import has_own_storage
from patchworks_pipeline.launcher import WatchedRunLauncher
from tests.pipeline.instance.test_event_storage import KEYS, as_it_is_read, run_tiles


@pytest.fixture(autouse=True)
def _said_by_no_test_before():
    dagster_insides._warn_once.cache_clear()
    yield
    dagster_insides._warn_once.cache_clear()


@pytest.mark.parametrize("insides", [SQLITE_EVENTS, POSTGRES_EVENTS, LAUNCHER, SLOTS, CAPTURE])
def test_this_dagster_has_all_that_is_relied_on(insides):
    if insides is POSTGRES_EVENTS:
        pytest.importorskip("dagster_postgres")
    assert [name for name in insides.names if not dagster_insides._is_there(name)] == []


def lose_method(monkeypatch):
    monkeypatch.delattr(SqlEventLogStorage, "_store_asset_event_tags")
    return "SqlEventLogStorage._store_asset_event_tags"


def change_parameters(monkeypatch):
    path = SqliteEventLogStorage.path_for_shard
    monkeypatch.setattr(SqliteEventLogStorage, "path_for_shard", lambda self, key: path(self, key))
    return "SqliteEventLogStorage.path_for_shard(self, run_id)"


def lose_attribute(monkeypatch):
    made = SqliteEventLogStorage.__init__

    def without_lock(self, *arguments, **options):
        made(self, *arguments, **options)
        del self._db_lock

    monkeypatch.setattr(SqliteEventLogStorage, "__init__", without_lock)
    return "_event_log_storage._db_lock"


def test_a_storage_without_what_it_needs_is_dagsters_own_and_says_so_once(tmp_path, monkeypatch):
    for lose in (lose_method, change_parameters, lose_attribute):
        dagster_insides._warn_once.cache_clear()
        with monkeypatch.context() as patch:
            name = re.escape(lose(patch))
            words = rf"^Dagster {dg.__version__} has no .*{name}.* written and removed one by one"
            with pytest.warns(DagsterInsidesWarning, match=words) as said:
                storages = [SqliteStorage(str(tmp_path / lose.__name__ / n)) for n in "ab"]
        assert len(said) == 1
        assert all(type(one.event_log_storage) is SqliteEventLogStorage for one in storages)


def test_tiles_are_logged_one_by_one_where_the_storage_is_dagsters_own(tmp_path, monkeypatch):
    # Dagster needs this one itself: it is not taken away, but said to be.
    monkeypatch.setattr(dagster_insides, "_is_there", lambda name: "_event_to_row" not in name)
    text = (
        "storage: {custom: {module: patchworks_pipeline.event_storage, class: SqliteStorage, "
        f"config: {{base_dir: '{tmp_path}'}}}}}}\ntelemetry: {{enabled: false}}\n"
    )
    (tmp_path / "dagster.yaml").write_text(text)
    with pytest.warns(DagsterInsidesWarning, match="events of retired tiles stay"):
        instance = dg.DagsterInstance.from_config(str(tmp_path))
    with instance:
        assert not has_own_storage(instance)
        assert as_it_is_read(instance, run_tiles(instance).run_id)["partitions"] == KEYS


def test_where_all_is_there_nothing_is_said(tmp_path):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert type(SqliteStorage(str(tmp_path)).event_log_storage) is SqliteEvents


def test_a_launcher_that_cannot_look_is_not_asked(monkeypatch):
    assert WatchedRunLauncher().supports_check_run_worker_health
    monkeypatch.setattr(dagster_insides, "_is_there", lambda name: "FAILED" not in name)
    with pytest.warns(DagsterInsidesWarning, match="no .*WorkerStatus.FAILED.* in the books"):
        assert not WatchedRunLauncher().supports_check_run_worker_health


def test_a_slot_is_left_to_the_step_where_it_cannot_be_taken_before(monkeypatch):
    monkeypatch.delattr(InstanceConcurrencyContext, "claim")
    with dg.DagsterInstance.ephemeral() as instance:
        run = dg.DagsterRun(job_name="job")
        with pytest.warns(DagsterInsidesWarning, match="a wait for a slot of a pool is not said"):
            take_pool_slot(instance, "gpu", run, "step", say=print)


def test_what_is_printed_is_kept_where_that_cannot_be_turned_off():
    with dg.DagsterInstance.ephemeral() as instance:
        manager = instance.__dict__.pop("_compute_log_manager", None)
        with (
            pytest.warns(DagsterInsidesWarning, match="no _compute_log_manager, .* small image"),
            _without_capture(instance),
        ):
            assert not hasattr(instance, "_compute_log_manager")
        instance._compute_log_manager = manager


@pytest.mark.parametrize(
    ("name", "there"),
    [
        ("json:dumps(obj)", True),
        ("json:dumps(obj, skipkeys)", True),  # keyword-only ones are called by their names
        ("json:dumps()", False),
        ("json:dumps(other)", False),
        ("json:no_such_name", False),
        ("no_such_module:name", False),
    ],
)
def test_a_name_is_there_where_it_can_be_called_as_it_is_written(name, there):
    assert dagster_insides._is_there(name) is there


def test_attributes_of_an_object_are_looked_for_along_their_path():
    class Thing:
        pass

    thing = Thing()
    thing.inner = Thing()
    insides = dagster_insides.Insides("it is lost", (), ("inner.value",))
    with pytest.warns(DagsterInsidesWarning, match="it is lost"):
        assert not are_there(insides, thing)
    thing.inner.value = 0
    assert are_there(insides, thing)
