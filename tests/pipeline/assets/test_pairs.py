"""The record of the edge table: of an earlier version, damaged, and after a tile was repaired."""

from __future__ import annotations

import json
from pathlib import Path

import dagster as dg
import pyarrow.parquet as pq
import pytest

from patchworks_core.errors import StageError
from patchworks_core.files.storage import write_bytes
from patchworks_core.files.tables import bytes_of_table
from patchworks_core.merge import pairing
from patchworks_core.seams import edge_table
from patchworks_pipeline.edge_records import PAIRS
from patchworks_pipeline.records import ImageFolder
from tests.core.staging import rows_of
from tests.tissue import files_under, tissue, write_tiff


@pytest.fixture
def folder(pipeline, tmp_path, monkeypatch) -> ImageFolder:
    # Every batch leaves its rows in a file, and the record has many parts.
    monkeypatch.setattr(pairing, "ROWS_HELD", 0)
    monkeypatch.setattr(edge_table.divided, "__kwdefaults__", {"n_rows": 20})
    folder = pipeline.register(write_tiff(tmp_path / "tissue.tif", tissue()))
    pipeline.run_to_labels(folder)
    return folder


def labels(folder: ImageFolder) -> dict[str, bytes]:
    return files_under(Path(str(folder.labels(folder.plan()).path)) / "0")


def test_a_table_of_an_earlier_version_is_merged_as_one_part(pipeline, folder):
    stage, expected = folder.stage(), labels(folder)
    rows = rows_of(folder.edges(stage))
    assert pq.ParquetFile(str(folder.path / PAIRS)).num_row_groups > 2
    record = {"stage": stage.content(), "allow_missing": json.dumps(False)}
    whole = rows.to_arrow().replace_schema_metadata(record)
    write_bytes(folder.path / PAIRS, bytes_of_table(whole))
    assert folder.has_edges_of(stage, allow_missing=False)
    names = [dg.AssetKey(name) for name in ("global_lut", "merged_labels")]
    assert pipeline.run("merge_image", partition_key=folder.key, asset_selection=names).success
    assert labels(folder) == expected
    assert rows_of(folder.edges(stage)).to_arrow().equals(rows.to_arrow())


def test_a_damaged_part_is_refused_and_paired_again(pipeline, folder):
    path, stage = Path(str(folder.path / PAIRS)), folder.stage()
    content, expected = path.read_bytes(), labels(folder)
    column = pq.ParquetFile(str(path)).metadata.row_group(1).column(1)
    place = column.data_page_offset + column.total_compressed_size - 9
    path.write_bytes(content[:place] + bytes([content[place] ^ 4]) + content[place + 1 :])
    with pytest.raises(StageError, match="cannot be read .* materialize boundary_pairs again"):
        rows_of(folder.edges(stage))
    assert not folder.has_edges_of(stage, allow_missing=False)
    assert pipeline.merge(folder).success
    assert path.read_bytes() == content
    assert labels(folder) == expected


def test_a_repaired_tile_is_paired_again_and_gives_the_same_bytes(pipeline, folder):
    path, stage = Path(str(folder.path / PAIRS)), folder.stage()
    content, expected = path.read_bytes(), labels(folder)
    block = stage.grid.block_of_key(stage.grid.block_keys()[1])
    stage.forget(block)
    assert not folder.has_edges_of(folder.stage(), allow_missing=False)
    assert pipeline.stage(folder, block.key).success
    assert pipeline.merge(folder).success
    assert path.read_bytes() == content
    assert labels(folder) == expected
    assert not list(Path(str(folder.path)).rglob("*.part")), "no file of rows is left"
