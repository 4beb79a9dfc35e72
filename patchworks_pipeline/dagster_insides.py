"""Insides of Dagster that are relied on: whether they are there, and what is lost without them.

Dagster keeps no promise about them. What needs one has a list of its names here, asks `are_there`
before it uses any, and where that says no leaves the work to Dagster's own behaviour. Types that
are only annotations are no insides: they are imported for the type checker alone.
"""

import inspect
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache
from importlib import import_module
from typing import Any
from warnings import warn

import dagster as dg


class DagsterInsidesWarning(UserWarning):
    """Dagster's own behaviour takes the place of that of this package."""


@dataclass(frozen=True, slots=True)
class Insides:
    """Names that one part of this package needs."""

    lost: str
    """What a person goes without where one is missing."""

    names: tuple[str, ...]
    """Each ``module:name``, and of what is called its parameters, as in
    ``dagster._core.utils:Class.method(self, event)``."""

    attributes: tuple[str, ...] = ()
    """Of an object, such as a storage, that exists only once it is made."""


_SQL = "dagster._core.storage.event_log.sql_event_log:SqlEventLogStorage"
_SQLITE = "dagster._core.storage.event_log.sqlite:SqliteEventLogStorage"
_POSTGRES = "dagster_postgres.event_log:PostgresEventLogStorage"
_SCHEMA = "dagster._core.storage.event_log.schema"
_ONE_BY_ONE = (
    "events and keys of tiles are written and removed one by one, and events of retired tiles stay"
)

_OF_EVENTS = (
    f"{_SCHEMA}:AssetCheckExecutionsTable",
    f"{_SCHEMA}:AssetEventTagsTable",
    f"{_SCHEMA}:DynamicPartitionsTable",
    f"{_SCHEMA}:SqlEventLogStorageTable",
    f"{_SQL}.store_event(self, event)",
    f"{_SQL}.store_event_batch(self, events)",
    f"{_SQL}.store_asset_check_event(self, event, event_id)",
    f"{_SQL}.index_transaction(self)",
    f"{_SQL}._event_to_row(self, event)",
    f"{_SQL}._store_asset_event(self, conn, event, event_id)",
    f"{_SQL}._store_asset_event_tags(self, conn, events, event_ids)",
)

SQLITE_EVENTS = Insides(
    _ONE_BY_ONE,
    (
        *_OF_EVENTS,
        "dagster._core.storage.sqlite:SQLITE_BUSY_TIMEOUT_SECONDS",
        f"{_SQLITE}(base_dir)",
        f"{_SQLITE}._connect(self, shard)",
        f"{_SQLITE}.run_connection(self, run_id)",
        f"{_SQLITE}.index_connection(self)",
        f"{_SQLITE}.path_for_shard(self, run_id)",
        f"{_SQLITE}.conn_string_for_shard(self, shard_name)",
    ),
    (
        "_event_log_storage._base_dir",
        "_event_log_storage._initialized_dbs",
        "_event_log_storage._db_lock",
    ),
)
"""Of the storage of events in SQLite."""

POSTGRES_EVENTS = Insides(
    _ONE_BY_ONE,
    (
        *_OF_EVENTS,
        f"{_POSTGRES}(postgres_url, should_autocreate_tables, inst_data, token_provider)",
        f"{_POSTGRES}.index_connection(self)",
    ),
    ("_event_log_storage",),
)
"""Of the storage of events in PostgreSQL."""

LAUNCHER = Insides(
    "a run whose process is gone stays in the books as running until somebody ends it",
    (
        "dagster._core.launcher.base:CheckRunHealthResult(status, msg)",
        "dagster._core.launcher.base:WorkerStatus.RUNNING",
        "dagster._core.launcher.base:WorkerStatus.FAILED",
        "dagster:DefaultRunLauncher.launch_run(self, context)",
        "dagster:DefaultRunLauncher._instance",
    ),
)
"""Of the launcher, which looks whether the process of a run is there."""

SLOTS = Insides(
    "a wait for a slot of a pool is not said, and Ctrl-C does not end it",
    (
        "dagster._core.execution.plan.instance_concurrency_context:"
        "InstanceConcurrencyContext(instance, dagster_run)",
        "dagster._core.execution.plan.instance_concurrency_context:"
        "InstanceConcurrencyContext.claim(self, concurrency_key, step_key)",
    ),
)
"""Of slots of pools that are taken before a run begins."""

CAPTURE = Insides(
    "each small image of a batch starts the processes that keep what is printed, which takes time",
    ("dagster._core.storage.noop_compute_log_manager:NoOpComputeLogManager()",),
    ("_compute_log_manager",),
)
"""Of runs that keep nothing of what is printed."""


def are_there(insides: Insides, thing: Any = None) -> bool:
    """Tell whether all insides are there and are called as they were; warn once where not.

    Parameters
    ----------
    insides : Insides
    thing : object
        Has the attributes of it.
    """
    missing = [name for name in insides.names if not _is_there(name)]
    missing += [name for name in insides.attributes if not _has(thing, name)]
    if missing:
        _warn_once(tuple(missing), insides.lost)
    return not missing


@cache
def _warn_once(missing: tuple[str, ...], lost: str) -> None:
    words = (
        f"Dagster {dg.__version__} has no {' and no '.join(missing)}, which this version of "
        f"patchworks relies on; Dagster's own way is used instead, and {lost}: install a version "
        "of Dagster that patchworks asks for"
    )
    warn(words, DagsterInsidesWarning, stacklevel=4)


def _is_there(name: str) -> bool:
    """Tell whether a name can be imported, and called with the parameters it is given with."""
    path, is_called, parameters = name.rstrip(")").partition("(")
    module, _, attributes = path.partition(":")
    try:
        thing = import_module(module)
        for attribute in attributes.split("."):
            thing = getattr(thing, attribute)
    except (ImportError, AttributeError):
        return False
    return not is_called or _takes(thing, [one for one in parameters.split(", ") if one])


def _takes(function: Any, names: list[str]) -> bool:
    """Tell whether a function has parameters of these names first, and needs no others."""
    parameters = list(inspect.signature(function).parameters.values())
    return [one.name for one in parameters[: len(names)]] == names and not any(
        _is_needed(parameters[len(names) :])
    )


def _is_needed(parameters: list[inspect.Parameter]) -> Iterator[bool]:
    optional = {inspect.Parameter.VAR_POSITIONAL, inspect.Parameter.VAR_KEYWORD}
    for one in parameters:
        yield one.default is inspect.Parameter.empty and one.kind not in optional


def _has(thing: Any, path: str) -> bool:
    """Tell whether an object has an attribute, or an attribute of an attribute."""
    for name in path.split("."):
        if not hasattr(thing, name):
            return False
        thing = getattr(thing, name)
    return True
