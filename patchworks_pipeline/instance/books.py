"""What it means where the database of a home fails: its disk is full, read-only, or damaged."""

import errno
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import yaml
from sqlalchemy.exc import OperationalError, SQLAlchemyError

from patchworks_core.errors import StorageError
from patchworks_core.files.space import free_bytes
from patchworks_core.files.storage import as_path
from patchworks_core.machine.budget import human_bytes
from patchworks_pipeline.image_faults import with_way_out

BYTES_TO_WRITE = 1_000_000
"""Where less is free, the files that SQLite needs beside a database may find no room."""

_SERVERS = ("psycopg2", "psycopg", "dagster_postgres")
"""Packages whose errors are of PostgreSQL."""

_MAYBE_FULL = ("disk I/O error", "unable to open database file")
"""What SQLite says where those files cannot be made, among others."""


def fault_of_books(error: BaseException, home: Path) -> StorageError | None:
    """Return what to say where an error came from the database of a home; None where it did not."""
    cause = _operational(error)
    server = fault_of_server(cause or error, home)
    if server is not None or cause is None:
        return server
    words, folder = words_of_database(cause), home / "dagster"
    free = free_bytes(as_path(folder))
    is_short = free is not None and free < BYTES_TO_WRITE
    if is_short and any(text in words for text in (*_MAYBE_FULL, "disk is full")):
        words = f"no space left on device ({human_bytes(free or 0)} are free)"
    text = f"the database of the home at {str(folder)!r} cannot be written to: {words}"
    if (whole := with_way_out(text)) != text:
        return StorageError(whole, errno.ENOSPC)
    return StorageError(
        f"the database of the home at {str(folder)!r} failed: {words}; what was finished is kept: "
        "call again, and where that fails restore it, or move that folder away: 'patchworks run' "
        "of each image enters it in a new one",
        errno.EIO,
    )


def fault_of_server(error: BaseException, home: Path) -> StorageError | None:
    """Return what to say where the database is a server, such as PostgreSQL; else None."""
    origin = error.orig if isinstance(error, OperationalError) else error
    if type(origin).__module__.partition(".")[0] not in _SERVERS:
        return None
    return StorageError(
        f"the PostgreSQL that {str(home / 'dagster' / 'dagster.yaml')!r} names failed: "
        f"{words_of_database(error)}; start it, or correct its address there or in the "
        "environment, and call again: what was finished is kept",
        errno.EIO,
    )


def unset_variables(home: Path) -> list[str]:
    """Return the variables that the settings of an instance take and the environment lacks."""
    try:
        settings = yaml.safe_load((home / "dagster" / "dagster.yaml").read_text())
    except (OSError, ValueError, yaml.YAMLError):
        return []  # said by whoever reads them
    return [name for name in _variables_in(settings) if name not in os.environ]


def _variables_in(settings: Any) -> Iterator[str]:
    if isinstance(settings, dict):
        if list(settings) == ["env"]:
            yield str(settings["env"])
        for value in settings.values():
            yield from _variables_in(value)
    elif isinstance(settings, list):
        for value in settings:
            yield from _variables_in(value)


def words_of_database(error: BaseException) -> str:
    """Return what a database says, without the statement that it was asked."""
    origin = error.orig if isinstance(error, OperationalError) and error.orig else error
    return " ".join(str(origin).split())


def _operational(error: BaseException | None) -> SQLAlchemyError | None:
    """Return the error of the database that an error is, or was raised from."""
    while error is not None:
        if isinstance(error, OperationalError):
            return error
        error = error.__cause__
    return None
