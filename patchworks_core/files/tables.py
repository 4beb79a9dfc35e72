"""Tables as Parquet, with a digest of what they hold, so that no damage to one goes unseen."""

from __future__ import annotations

import hashlib
import io
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import pyarrow as pa

_DIGEST = b"digest"
"""Key in the metadata of a table; tables of version 0.1.0 have none."""


class DamagedError(ValueError):
    """What was read is not what was written; whoever knows the place says so in its own error."""


def bytes_of_table(table: pa.Table) -> bytes:
    """Return a table as a Parquet file.

    Examples
    --------
    >>> import pyarrow as pa
    >>> table_of(bytes_of_table(pa.table({"area": [3, 4]})))["area"].to_pylist()
    [3, 4]
    """
    import pyarrow.parquet as pq

    metadata = {**(table.schema.metadata or {}), _DIGEST: _digest(table)}
    buffer = io.BytesIO()
    pq.write_table(table.replace_schema_metadata(metadata), buffer, compression="zstd")
    return buffer.getvalue()


def table_of(content: bytes) -> pa.Table:
    """Return the table that a Parquet file holds.

    Raises
    ------
    DamagedError
        If it is no such file, or holds anything else than was written.
    """
    import pyarrow.parquet as pq

    try:
        table = pq.read_table(io.BytesIO(content))
        metadata = dict(table.schema.metadata or {})
        digest = metadata.pop(_DIGEST, None)
        table = table.replace_schema_metadata(metadata or None)
        is_whole = digest is None or digest == _digest(table)
    except Exception as error:  # a damaged file may raise anything
        words = " ".join(str(error).split())
        raise DamagedError(f"{type(error).__name__}: {words}") from error
    if not is_whole:
        raise DamagedError("the table does not hold what was written")
    return table


def _digest(table: pa.Table) -> bytes:
    """Digest the columns and the metadata of a table of numbers."""
    content = hashlib.blake2b(digest_size=16)
    metadata = table.schema.metadata or {}
    for key in sorted(metadata):
        content.update(b"%d %d " % (len(key), len(metadata[key])) + key + metadata[key])
    for name in table.column_names:
        column = table[name].to_numpy()
        content.update(f"{name} {column.dtype.str} {len(column)} ".encode())
        content.update(column.tobytes())
    return content.hexdigest().encode()
