"""The same as `patchworks_pipeline.event_storage` for PostgreSQL; needs dagster-postgres."""

from typing import TYPE_CHECKING, Any, Self

from dagster_postgres import DagsterPostgresStorage
from dagster_postgres.utils import get_token_provider_from_config, pg_url_from_config

from patchworks_pipeline.dagster_insides import POSTGRES_EVENTS, are_there

if TYPE_CHECKING:
    from dagster._serdes import ConfigurableClassData


class PostgresStorage(DagsterPostgresStorage):
    """Everything of an instance in PostgreSQL."""

    def __init__(
        self,
        postgres_url: str,
        should_autocreate_tables: bool = True,
        inst_data: "ConfigurableClassData | None" = None,
        token_provider: Any = None,
    ) -> None:
        super().__init__(postgres_url, should_autocreate_tables, inst_data, token_provider)
        if are_there(POSTGRES_EVENTS, self):
            from patchworks_pipeline.instance.events_together_postgres import PostgresEvents

            self._event_log_storage = PostgresEvents(
                postgres_url, should_autocreate_tables, token_provider=token_provider
            )

    @classmethod
    def from_config_value(
        cls, inst_data: "ConfigurableClassData | None", config_value: Any
    ) -> Self:
        """Make the storage of an instance."""
        return cls(
            pg_url_from_config(config_value),
            config_value.get("should_autocreate_tables", True),
            inst_data,
            get_token_provider_from_config(config_value),
        )
