"""The same as `patchworks_pipeline.event_storage` for PostgreSQL; needs dagster-postgres."""

from collections.abc import Sequence
from typing import Any, Self

import dagster as dg
from dagster._core.storage.event_log.schema import SqlEventLogStorageTable
from dagster._serdes import ConfigurableClassData
from dagster_postgres import DagsterPostgresStorage
from dagster_postgres.event_log import PostgresEventLogStorage
from dagster_postgres.utils import get_token_provider_from_config, pg_url_from_config

from patchworks_pipeline.event_storage import EventsTogether


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


class PostgresStorage(DagsterPostgresStorage):
    """Everything of an instance in PostgreSQL."""

    def __init__(
        self,
        postgres_url: str,
        should_autocreate_tables: bool = True,
        inst_data: ConfigurableClassData | None = None,
        token_provider: Any = None,
    ) -> None:
        super().__init__(postgres_url, should_autocreate_tables, inst_data, token_provider)
        self._event_log_storage = PostgresEvents(
            postgres_url, should_autocreate_tables, token_provider=token_provider
        )

    @classmethod
    def from_config_value(cls, inst_data: ConfigurableClassData | None, config_value: Any) -> Self:
        """Make the storage of an instance."""
        return cls(
            pg_url_from_config(config_value),
            config_value.get("should_autocreate_tables", True),
            inst_data,
            get_token_provider_from_config(config_value),
        )
