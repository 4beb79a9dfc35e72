"""Dagster's event storages, with one thing added: events of many tiles are written together.

Dagster opens a connection and commits two or three times per event, which is most of what a tile
costs. It has a call for many events at once, `store_event_batch`, and its open-source storages only
loop in it. Here that call is one write, and `together` makes batches of what a block of code logs.
Tables and files are Dagster's own: a home may go from one to the other and back at any time.

Named in ``dagster.yaml`` below ``storage: custom:``; without it all works, event by event.
"""

import threading
from collections.abc import Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Any, Self

import dagster as dg
from dagster._core.storage.event_log.schema import SqlEventLogStorageTable
from dagster._core.storage.event_log.sql_event_log import SqlEventLogStorage
from dagster._core.storage.event_log.sqlite import SqliteEventLogStorage
from dagster._core.storage.sqlite_storage import DagsterSqliteStorage
from dagster._serdes import ConfigurableClassData

WRITTEN_TOGETHER = {
    dg.DagsterEventType.ASSET_MATERIALIZATION,
    dg.DagsterEventType.ASSET_MATERIALIZATION_PLANNED,
}
"""Events that come one per tile."""


def together(instance: dg.DagsterInstance) -> AbstractContextManager[None]:
    """Write what this thread logs of assets meanwhile in one go, at the end.

    Does nothing special where the instance has one of Dagster's own storages.
    """
    storage = instance.event_log_storage
    return storage.together() if isinstance(storage, EventsTogether) else nullcontext()


class EventsTogether(SqlEventLogStorage):
    """Writes events that come together in one go."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        self._waiting = threading.local()
        super().__init__(*args, **kwargs)  # type: ignore[no-untyped-call]

    @contextmanager
    def together(self) -> Iterator[None]:
        """Keep events that this thread stores, and write them at the end."""
        waiting: list[dg.EventLogEntry] = []
        self._waiting.events = waiting
        try:
            yield
        finally:
            del self._waiting.events
            if waiting:
                self.store_event_batch(waiting)

    def store_event(self, event: dg.EventLogEntry) -> None:
        """Store an event, or keep it for the others."""
        waiting = getattr(self._waiting, "events", None)
        if waiting is not None and _may_wait(event):
            waiting.append(event)
        else:
            super().store_event(event)

    def store_event_batch(self, events: Sequence[dg.EventLogEntry]) -> None:
        """Store events of one run."""
        many = [event for event in events if _may_wait(event)]
        for event in events:
            if not _may_wait(event):
                super().store_event(event)
        if many:
            self._write(many, [self._event_to_row(event) for event in many])

    def _write(self, events: Sequence[dg.EventLogEntry], rows: list[dict[str, Any]]) -> None:
        """Write asset events of one run."""
        raise NotImplementedError

    def _enter_assets(
        self, connection: Any, events: Sequence[dg.EventLogEntry], ids: Sequence[int]
    ) -> None:
        """Do for many events what Dagster does for each: enter its tags, and it as the latest."""
        self._store_asset_event_tags(connection, events, ids)
        latest = {
            (event.get_dagster_event().asset_key, event.dagster_event_type): (event, event_id)
            for event, event_id in zip(events, ids, strict=True)
        }
        for event, event_id in latest.values():
            self._store_asset_event(connection, event, event_id)


def _may_wait(event: dg.EventLogEntry) -> bool:
    return event.is_dagster_event and event.dagster_event_type in WRITTEN_TOGETHER


class SqliteEvents(EventsTogether, SqliteEventLogStorage):
    """Events in SQLite: a file per run, and an index of all that is about assets."""

    def _write(self, events: Sequence[dg.EventLogEntry], rows: list[dict[str, Any]]) -> None:
        insert = SqlEventLogStorageTable.insert()
        with self.run_connection(events[0].run_id) as connection:
            connection.execute(insert, rows)
        with self.index_transaction() as connection:
            keys = [connection.execute(insert, row).inserted_primary_key for row in rows]
            ids = [int(key[0]) for key in keys if key is not None]
            self._enter_assets(connection, events, ids)


class SqliteStorage(DagsterSqliteStorage):
    """Everything of an instance in SQLite."""

    def __init__(self, base_dir: str, inst_data: ConfigurableClassData | None = None) -> None:
        super().__init__(base_dir, inst_data)
        folder = self._event_log_storage._base_dir
        self._event_log_storage = SqliteEvents(folder)

    @classmethod
    def from_config_value(cls, inst_data: ConfigurableClassData | None, config_value: Any) -> Self:
        """Make the storage of an instance."""
        return cls(**config_value, inst_data=inst_data)
