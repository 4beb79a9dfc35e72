"""Blocks that were being written when a call was killed are written again."""

from __future__ import annotations

import uuid
from dataclasses import replace

import numpy as np
import pytest
from fsspec.implementations.memory import MemoryFileSystem

from patchworks_core.files.array_writer import ArrayWriter
from patchworks_core.files.label_arrays import create_label_array
from patchworks_core.files.storage import as_path, open_array
from patchworks_core.machine.pools import Pool
from patchworks_core.machine.workers import Workers
from patchworks_core.merge.apply import apply_lut, create_apply_records
from tests.core.staging import TOUCHING, blobs, lut_of, merged_of, stage_into


@pytest.fixture
def requests(monkeypatch) -> list[str]:
    """What is asked of stores in memory, which are as remote as any."""
    asked: list[str] = []
    read = MemoryFileSystem.cat_file

    def counted(store, path, *arguments, **options):
        asked.append(path)
        return read(store, path, *arguments, **options)

    monkeypatch.setattr(MemoryFileSystem, "cat_file", counted)
    return asked


def test_records_in_an_object_store_are_asked_for_together(tmp_path, requests):
    stage = stage_into(tmp_path / "stage", blobs((32, 32)), max_blocks=64)
    store = as_path(f"memory://{uuid.uuid4().hex}")
    labels, records = store / "labels", store / "applied"
    create_label_array(labels, stage.grid, np.dtype(np.int32))
    create_apply_records(records, stage.grid)
    with Pool.open(Workers(1)) as pool:
        for n_written in (stage.grid.n_blocks, 0):
            requests.clear()
            applied = apply_lut(stage, lut_of(stage), labels=labels, records=records, pool=pool)
            assert len(list(applied)) == n_written
    chunks = [path for path in requests if "/applied/c/" in path]
    assert len(chunks) == stage.grid.n_blocks
    assert len(requests) - len(chunks) < stage.grid.n_blocks


def test_a_damaged_record_keeps_no_other_from_being_taken_back_before_pixels_are_written(
    tmp_path, monkeypatch
):
    stage = stage_into(tmp_path / "stage", blobs((16, 16)))
    joined, apart = lut_of(stage), lut_of(stage, replace(TOUCHING, rule="none"))
    store = as_path(f"memory://{uuid.uuid4().hex}")  # where what is stored is not looked at
    labels, records = store / "labels", store / "applied"
    create_label_array(labels, stage.grid, np.dtype(np.int32))
    create_apply_records(records, stage.grid)

    def apply(lut):
        with Pool.open(Workers()) as pool:
            list(apply_lut(stage, lut, labels=labels, records=records, pool=pool))

    apply(joined)
    (records / "c/0/0").write_bytes(b"damaged")
    write, n_recorded = ArrayWriter.write, 0

    def killed_before_the_second_record(writer, region, values):
        nonlocal n_recorded
        n_recorded += bool(writer.path.name == "applied" and values.any())
        if n_recorded == 2:
            raise ZeroDivisionError
        return write(writer, region, values)

    with monkeypatch.context() as killed:
        killed.setattr(ArrayWriter, "write", killed_before_the_second_record)
        with pytest.raises(RuntimeError, match="ZeroDivision"):
            apply(apart)

    apply(joined)
    np.testing.assert_array_equal(open_array(labels)[...], merged_of(stage))
