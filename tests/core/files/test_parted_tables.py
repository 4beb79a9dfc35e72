"""Tables in parts: read as any Parquet file, and no damage to a part or the record goes unseen."""

from __future__ import annotations

import io
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from patchworks_core.files.parted_tables import PartedTable, write_parts
from patchworks_core.files.storage import as_path, write_bytes
from patchworks_core.files.tables import DamagedError, bytes_of_table

SCHEMA = pa.schema([("id", pa.int64()), ("axis", pa.int8())])
RECORD = {"stage": "abc", "allow_missing": "false"}


def part(start: int, n: int) -> pa.Table:
    ids = np.arange(start, start + n)
    return pa.table({"id": ids, "axis": (ids % 3).astype(np.int8)}, schema=SCHEMA)


PARTS = [part(0, 5), part(5, 3), part(8, 1)]


@pytest.fixture(params=["local", "memory"])
def path(request, tmp_path):
    if request.param == "local":
        return as_path(tmp_path / "of" / "pairs.parquet")
    return as_path(f"memory://parted{tmp_path.name}/pairs.parquet")


def test_a_table_comes_back_part_by_part_and_reads_as_any_parquet_file(path, tmp_path):
    write_parts(path, SCHEMA, iter(PARTS), RECORD)
    table = PartedTable.open(path)
    assert (table.record, table.n_rows) == (RECORD, 9)
    assert list(table.parts()) == PARTS
    (tmp_path / "copy.parquet").write_bytes(path.read_bytes())
    assert pq.read_table(tmp_path / "copy.parquet").equals(pa.concat_tables(PARTS))


def test_a_table_without_rows_comes_back(path):
    write_parts(path, SCHEMA, iter(()), RECORD)
    table = PartedTable.open(path)
    assert (table.record, table.n_rows, list(table.parts())) == (RECORD, 0, [])
    assert pq.read_table(io.BytesIO(path.read_bytes())).schema.names == SCHEMA.names


def test_a_table_that_was_written_whole_is_one_part(path):
    whole = part(0, 9).replace_schema_metadata(RECORD)
    write_bytes(path, bytes_of_table(whole))
    table = PartedTable.open(path)
    assert (table.record, table.n_rows) == (RECORD, 9)
    assert [one.to_pydict() for one in table.parts()] == [whole.to_pydict()]


def test_what_is_written_until_it_was_stopped_does_not_replace_what_was_there(path):
    def stopped():
        yield PARTS[0]
        raise KeyboardInterrupt

    for before in (None, RECORD):
        if before is not None:
            write_parts(path, SCHEMA, iter(PARTS), RECORD)
        with pytest.raises(KeyboardInterrupt):
            write_parts(path, SCHEMA, stopped(), {"stage": "other"})
        if before is None:
            with pytest.raises(FileNotFoundError):
                PartedTable.open(path)
        else:
            assert list(PartedTable.open(path).parts()) == PARTS
            assert [file.name for file in path.parent.iterdir()] == [path.name]


def test_a_bit_flipped_or_a_file_cut_short_is_damage_or_changes_nothing(tmp_path):
    path = tmp_path / "pairs.parquet"
    write_parts(as_path(path), SCHEMA, iter(PARTS), RECORD)
    content, rng = path.read_bytes(), np.random.default_rng(2)
    damages = [content[:0], content[:40], content[:-1]]
    for place in rng.integers(0, len(content), 150):
        flipped = bytearray(content)
        flipped[place] ^= 1 << int(rng.integers(8))
        damages.append(bytes(flipped))
    n_noticed = sum(is_noticed(path, damage) for damage in damages)
    assert n_noticed > len(damages) // 3


def is_noticed(path: Path, damage: bytes) -> bool:
    path.write_bytes(damage)
    try:
        table = PartedTable.open(as_path(path))
        parts = list(table.parts())
    except DamagedError:
        return True
    assert (table.record, table.n_rows, parts) == (RECORD, 9, PARTS)
    return False


def test_a_file_that_was_replaced_meanwhile_is_not_read_on(tmp_path):
    path = as_path(tmp_path / "pairs.parquet")
    write_parts(path, SCHEMA, iter(PARTS), RECORD)
    parts = PartedTable.open(path).parts()
    assert next(parts) == PARTS[0]
    write_parts(path, SCHEMA, iter([part(0, 5), part(6, 3), part(8, 1)]), RECORD)
    with pytest.raises(DamagedError, match="part 1 is not what was written"):
        next(parts)
