"""Tables that people read, as Parquet and as CSV beside it: what a person changed in one is kept.

The CSV cannot vouch for itself. It is as it was written where it says what the Parquet file says.
"""

import io

import pyarrow as pa
import pyarrow.csv as pa_csv
from upath import UPath

from patchworks_core.files.storage import remove, write_bytes
from patchworks_core.files.tables import DamagedError, bytes_of_table, table_of


def csv_path(path: UPath) -> UPath:
    """Return where a table is as CSV."""
    return path.with_suffix(".csv")


def was_changed(path: UPath) -> bool:
    """Tell whether a table as CSV is not what the Parquet file says, where both can be read."""
    table = _table_at(path)
    return table is not None and csv_path(path).exists() and not _is_csv_of(path, table)


def write_table(path: UPath, table: pa.Table) -> list[UPath]:
    """Write a table as Parquet and as CSV; return where what was changed in the ones before is.

    The CSV goes first and comes last, so that one of another table never stands beside the Parquet
    file, wherever this is killed.
    """
    kept = _keep_changes(path, table)
    remove(csv_path(path))
    write_bytes(path, bytes_of_table(table))
    write_bytes(csv_path(path), _csv_of(table))
    return kept


def words_on_kept(kept: list[UPath]) -> str:
    """Say where files are that were changed."""
    names = " and ".join(str(path) for path in kept)
    return f"the table was changed since patchworks wrote it; what it was is kept: {names}"


def _keep_changes(path: UPath, table: pa.Table) -> list[UPath]:
    """Copy a table that is not as it was written, under names of their own."""
    before, csv = _table_at(path), csv_path(path)
    if not csv.exists() or (before is not None and _is_csv_of(path, before)):
        return []
    files = [] if _is_csv_of(path, table) else [csv]
    if before is not None and not before.equals(table):
        files.append(path)
    return [_keep(file) for file in files]


def _keep(file: UPath) -> UPath:
    """Copy a file to a name beside it that is free."""
    number = 1
    while True:
        copy = file.with_name(f"{file.stem}.changed-{number}{file.suffix}")
        if not copy.exists():
            write_bytes(copy, file.read_bytes())
            return copy
        number += 1


def _table_at(path: UPath) -> pa.Table | None:
    """Return the table in a Parquet file; None where there is none, or a damaged one."""
    try:
        return table_of(bytes(path.read_bytes()))
    except (FileNotFoundError, DamagedError):
        return None


def _is_csv_of(path: UPath, table: pa.Table) -> bool:
    return bool(csv_path(path).read_bytes() == _csv_of(table))


def _csv_of(table: pa.Table) -> bytes:
    """Return a table as CSV."""
    buffer = io.BytesIO()
    pa_csv.write_csv(table, buffer)
    return buffer.getvalue()
