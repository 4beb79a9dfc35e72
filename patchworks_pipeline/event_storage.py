"""Dagster's storage in SQLite, in which many tiles are written, or removed, together.

Named in ``dagster.yaml`` below ``storage: custom:``; without it all works, event by event. So it
does where Dagster lacks what `patchworks_pipeline.instance.events_together` needs.
"""

from typing import TYPE_CHECKING, Any, Self

from dagster._core.storage.sqlite_storage import DagsterSqliteStorage

from patchworks_pipeline.dagster_insides import SQLITE_EVENTS, are_there

if TYPE_CHECKING:
    from dagster._serdes import ConfigurableClassData


class SqliteStorage(DagsterSqliteStorage):
    """Everything of an instance in SQLite."""

    def __init__(self, base_dir: str, inst_data: "ConfigurableClassData | None" = None) -> None:
        super().__init__(base_dir, inst_data)
        if are_there(SQLITE_EVENTS, self):
            from patchworks_pipeline.instance.events_together import SqliteEvents

            self._event_log_storage = SqliteEvents(self._event_log_storage._base_dir)

    @classmethod
    def from_config_value(
        cls, inst_data: "ConfigurableClassData | None", config_value: Any
    ) -> Self:
        """Make the storage of an instance."""
        return cls(**config_value, inst_data=inst_data)
