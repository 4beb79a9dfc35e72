"""Dagster's event storages, with one thing added: many tiles are written, or removed, together.

Dagster opens a connection and commits two or three times per event, which is most of what a tile
costs. It has a call for many events at once, `store_event_batch`, and its open-source storages only
loop in it. Here that call is one write, and `EventsTogether.together` makes batches of what a block
of code logs.
Keys of tiles are removed in one transaction, where Dagster opens a connection for each, and with
them what was logged of these tiles, which Dagster never removes.
Tables and files are Dagster's own: a home may go from one to the other and back at any time.

`patchworks_pipeline.event_storage` and its sister for PostgreSQL make them, where all insides of
Dagster that are used here are there (`patchworks_pipeline.dagster_insides`).
"""

import sqlite3
import threading
from collections.abc import Iterator, Sequence
from contextlib import closing, contextmanager
from functools import lru_cache
from pathlib import Path
from typing import Any, TypeVar

import dagster as dg
import sqlalchemy as db
from dagster._core.storage.event_log.schema import (
    AssetCheckExecutionsTable,
    AssetEventTagsTable,
    DynamicPartitionsTable,
    SqlEventLogStorageTable,
)
from dagster._core.storage.event_log.sql_event_log import SqlEventLogStorage
from dagster._core.storage.event_log.sqlite import SqliteEventLogStorage
from dagster._core.storage.sqlite import SQLITE_BUSY_TIMEOUT_SECONDS
from sqlalchemy.pool import NullPool

T = TypeVar("T")

WRITTEN_TOGETHER = {
    dg.DagsterEventType.ASSET_MATERIALIZATION,
    dg.DagsterEventType.ASSET_MATERIALIZATION_PLANNED,
}
"""Events that come one per tile."""

ENGINES = 16
"""Files of SQLite of which an engine is kept; it holds no connection, but what it translated."""

AT_ONCE = 500
"""Values of one statement; databases limit them."""


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

    def store_asset_check_event(self, event: dg.EventLogEntry, event_id: int | None) -> None:
        """Store what came of a check; outside of runs, in place of what came of it before.

        Dagster's table has one row for each check, partition and run, and outside of runs a second
        one would be refused.
        """
        evaluation = event.get_dagster_event().event_specific_data
        if not event.run_id and isinstance(evaluation, dg.AssetCheckEvaluation):
            row = AssetCheckExecutionsTable.c
            with self.index_transaction() as connection:
                connection.execute(
                    AssetCheckExecutionsTable.delete().where(
                        row.asset_key == evaluation.asset_key.to_string(),
                        row.check_name == evaluation.check_name,
                        row.run_id == event.run_id,
                        row.partition == evaluation.partition,
                    )
                )
        super().store_asset_check_event(event, event_id)

    def dynamic_partitions_that_start_with(self, name: str, start: str) -> list[str]:
        """Return the keys of a dynamic partition set that start so, in its order."""
        table = DynamicPartitionsTable.c
        query = (
            db.select(table.partition)
            .where(
                table.partitions_def_name == name,
                # Not LIKE, for which SQLite takes upper and lower case as the same.
                db.func.substr(table.partition, 1, len(start)) == start,
            )
            .order_by(table.id)
        )
        with self.index_connection() as connection:
            return [str(row[0]) for row in connection.execute(query)]

    def delete_dynamic_partitions(self, name: str, keys: Sequence[str]) -> None:
        """Remove many keys of a dynamic partition set: all, or none where it fails."""
        table = DynamicPartitionsTable.c
        with self.index_transaction() as connection:
            for some in _portions(keys):
                connection.execute(
                    DynamicPartitionsTable.delete().where(
                        table.partitions_def_name == name, table.partition.in_(some)
                    )
                )

    def delete_partition_events(self, asset: dg.AssetKey, keys: Sequence[str]) -> int:
        """Remove what was logged of partitions of an asset; return how many events."""
        event = SqlEventLogStorageTable.c
        ids: list[int] = []
        runs: set[str] = set()
        with self.index_transaction() as connection:
            for some in _portions(keys):
                rows = connection.execute(
                    db.select(event.id, event.run_id).where(
                        event.asset_key == asset.to_string(), event.partition.in_(some)
                    )
                ).fetchall()
                ids += [row[0] for row in rows]
                runs |= {row[1] for row in rows}
            for few in _portions(ids):
                tags = AssetEventTagsTable.c.event_id.in_(few)
                connection.execute(AssetEventTagsTable.delete().where(tags))
                connection.execute(SqlEventLogStorageTable.delete().where(event.id.in_(few)))
        self._delete_elsewhere(asset, keys, runs)
        return len(ids)

    def _delete_elsewhere(self, asset: dg.AssetKey, keys: Sequence[str], runs: set[str]) -> None:
        """Remove the same events where the runs keep another copy of them."""

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


def _portions(values: Sequence[T]) -> Iterator[Sequence[T]]:
    """Yield values, as many at a time as one statement takes."""
    for start in range(0, len(values), AT_ONCE):
        yield values[start : start + AT_ONCE]


def _may_wait(event: dg.EventLogEntry) -> bool:
    return event.is_dagster_event and event.dagster_event_type in WRITTEN_TOGETHER


class SqliteEvents(EventsTogether, SqliteEventLogStorage):
    """Events in SQLite: a file per run, and an index of all that is about assets."""

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        self._engine = lru_cache(maxsize=ENGINES)(self._new_engine)
        super().__init__(*args, **kwargs)

    @contextmanager
    def _connect(self, shard: str) -> Iterator[db.Connection]:
        """Connect by an engine that is kept: Dagster makes one each time, which translates anew."""
        if shard not in self._initialized_dbs:
            with super()._connect(shard) as connection:
                yield connection
            return
        with self._db_lock, self._engine(shard).begin() as connection:
            yield connection

    def _new_engine(self, shard: str) -> db.Engine:
        options = {"timeout": SQLITE_BUSY_TIMEOUT_SECONDS}
        address = self.conn_string_for_shard(shard)
        return db.create_engine(address, poolclass=NullPool, connect_args=options)

    def _write(self, events: Sequence[dg.EventLogEntry], rows: list[dict[str, Any]]) -> None:
        insert = SqlEventLogStorageTable.insert()
        with self.run_connection(events[0].run_id) as connection:
            connection.execute(insert, rows)
        with self.index_transaction() as connection:
            keys = [connection.execute(insert, row).inserted_primary_key for row in rows]
            ids = [int(key[0]) for key in keys if key is not None]
            self._enter_assets(connection, events, ids)

    def _delete_elsewhere(self, asset: dg.AssetKey, keys: Sequence[str], runs: set[str]) -> None:
        event = SqlEventLogStorageTable.c
        for run_id in sorted(runs):
            if not Path(self.path_for_shard(run_id)).exists():
                continue
            with self.run_connection(run_id) as connection:
                for some in _portions(keys):
                    connection.execute(
                        SqlEventLogStorageTable.delete().where(
                            event.asset_key == asset.to_string(), event.partition.in_(some)
                        )
                    )
            # The file of a run grows no more: what is free in it would be lost for ever.
            with closing(sqlite3.connect(self.path_for_shard(run_id))) as file:
                file.execute("VACUUM")
