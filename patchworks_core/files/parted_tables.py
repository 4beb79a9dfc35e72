"""Tables as Parquet in parts: row groups, written and read one at a time, each with its digests.

Whoever reads Parquet reads the file as any other. A part is checked when it is read, so that no
damage goes unseen though nobody reads the whole.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from operator import methodcaller
from typing import TYPE_CHECKING, Any, TypeVar

from upath import UPath

from patchworks_core.files.storage import is_local, written_whole
from patchworks_core.files.tables import DamagedError, table_of

if TYPE_CHECKING:
    import pyarrow as pa
    import pyarrow.parquet as pq

T = TypeVar("T")

_PARTS = "parts"
"""Key in the metadata of such a table: rows of all, and the digests of each column of each part."""

_DIGEST = "parts_digest"
"""Key of the digest of the record and of what `_PARTS` says."""


def write_parts(
    path: UPath, schema: pa.Schema, parts: Iterable[pa.Table], record: Mapping[str, str]
) -> None:
    """Write a table, of which one part at a time is in memory; the file is there when it is whole.

    Parameters
    ----------
    path : UPath
    schema : pyarrow.Schema
        Of every part: columns of numbers.
    parts : iterable of pyarrow.Table
    record : mapping of str to str
        What is to be known of the table.
    """
    import pyarrow.parquet as pq

    digests, n_rows = [], 0
    with written_whole(path) as name, pq.ParquetWriter(name, schema, compression="zstd") as writer:
        for part in parts:
            writer.write_table(part, row_group_size=max(1, part.num_rows))
            digests.append(_digests(part))
            n_rows += part.num_rows
        summary = json.dumps({"rows": n_rows, "digests": digests}, separators=(",", ":"))
        digest = _digest_of_record(record, summary)
        writer.add_key_value_metadata({**record, _PARTS: summary, _DIGEST: digest})


@dataclass(frozen=True, slots=True, eq=False)
class PartedTable:
    """A table in parts that `write_parts` wrote, or as `bytes_of_table` made it, which is one."""

    path: UPath

    record: dict[str, str]
    """What is known of the table."""

    n_rows: int

    _digests: tuple[dict[str, str], ...]
    """Of the columns of each part."""

    _whole: pa.Table | None = None
    """Where it is not in parts."""

    @classmethod
    def open(cls, path: UPath) -> PartedTable:
        """Read what is said of a table.

        Raises
        ------
        FileNotFoundError
            If there is none.
        DamagedError
            If it is not what was written.
        """
        record = _with_file(path, _record_of)
        if _PARTS not in record:
            whole = table_of(bytes(path.read_bytes()))
            metadata = (whole.schema.metadata or {}).items()
            record = {key.decode(): value.decode() for key, value in metadata}
            return cls(path, record, whole.num_rows, (), whole)
        summary, digest = record.pop(_PARTS), record.pop(_DIGEST, "")
        if digest != _digest_of_record(record, summary):
            raise DamagedError("what is said of the table is not what was written")
        content = json.loads(summary)
        return cls(path, record, content["rows"], tuple(content["digests"]))

    def parts(self) -> Iterator[pa.Table]:
        """Yield the parts in order.

        Raises
        ------
        DamagedError
            If one is not what was written, or the file is another than was opened.
        """
        if self._whole is not None:
            yield self._whole
            return
        for number, digests in enumerate(self._digests):
            part = _with_file(self.path, methodcaller("read_row_group", number))
            if _digests(part) != digests:
                raise DamagedError(f"part {number} is not what was written")
            yield part.replace_schema_metadata(None)


def _record_of(file: pq.ParquetFile) -> dict[str, str]:
    metadata = file.metadata.metadata or {}
    # Arrow keeps its own schema there.
    return {k.decode(): v.decode() for k, v in metadata.items() if not k.startswith(b"ARROW:")}


def _with_file(path: UPath, read: Callable[[pq.ParquetFile], T]) -> T:
    """Read something of a Parquet file; of a damaged one anything may be raised."""
    import pyarrow.parquet as pq

    try:
        with path.open("rb") as content, pq.ParquetFile(content) as file:
            return read(file)
    except FileNotFoundError:
        raise
    except Exception as error:
        if not is_local(path) and isinstance(error, OSError) and not isinstance(error, ValueError):
            raise
        words = " ".join(str(error).split())
        raise DamagedError(f"{type(error).__name__}: {words}") from error


def _digests(part: pa.Table) -> dict[str, str]:
    """Return a digest of each column."""
    return {name: _digest_of_column(part[name].to_numpy()) for name in part.column_names}


def _digest_of_column(values: Any) -> str:
    content = hashlib.blake2b(f"{values.dtype.str} {len(values)} ".encode(), digest_size=8)
    content.update(values.data)
    return content.hexdigest()


def _digest_of_record(record: Mapping[str, str], summary: str) -> str:
    content = json.dumps([sorted(record.items()), summary]).encode()
    return hashlib.blake2b(content, digest_size=16).hexdigest()
