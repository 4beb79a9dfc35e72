"""The same as `patchworks_pipeline.instance.events_together` for PostgreSQL."""

from collections.abc import Sequence
from typing import Any

import dagster as dg
from dagster._core.storage.event_log.schema import SqlEventLogStorageTable
from dagster_postgres.event_log import PostgresEventLogStorage

from patchworks_pipeline.instance.events_together import EventsTogether


class PostgresEvents(EventsTogether, PostgresEventLogStorage):
    """Events in PostgreSQL."""

    def _write(self, events: Sequence[dg.EventLogEntry], rows: list[dict[str, Any]]) -> None:
        # Two steps, as Dagster has it: rows of two runs that are written at once must not wait for
        # each other unseen, or whoever reads by id would go past them.
        insert = SqlEventLogStorageTable.insert().values(rows)
        with self.index_connection() as connection:
            answer = connection.execute(insert.returning(SqlEventLogStorageTable.c.id))
            ids = [int(row[0]) for row in answer.fetchall()]
        with self.index_transaction() as connection:
            self._enter_assets(connection, events, ids)
