"""Damage on disk: what is read of a stage is what was staged, or an error that names the tile."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import numpy as np
import pytest

from patchworks_core import StageError, tile_process
from patchworks_core.errors import PlanError
from patchworks_core.files.tables import DamagedError, bytes_of_table, table_of
from patchworks_core.machine.pools import Pool
from patchworks_core.machine.workers import Workers
from patchworks_core.merge.steps import add_up_objects
from patchworks_core.seams.rules import MergeOptions
from patchworks_core.stage.stage import Stage
from tests.core.staging import (
    blobs,
    block_file,
    label_components,
    lut_of,
    merged_of,
    plan_of,
    spoil_array,
    stage_into,
)

PIXELS = blobs((8, 8), density=0.45, seed=3)

OPTIONS = {"tile_shape": 4, "overlap": 1, "merge": "touching", "max_workers": 1}

BY_SIZE = MergeOptions("touching", 1, min_size=2)


def everything(folder: Path) -> tuple[np.ndarray, object]:
    """Read all that a merge reads: labels, strips, sums, counts and digests."""
    stage = Stage.open(folder, plan_of(PIXELS, overlap=1)[1])
    merged = merged_of(stage, BY_SIZE)
    with Pool.open(Workers()) as pool:
        return merged, add_up_objects(stage, lut_of(stage, BY_SIZE), pool).to_table()


def damaged(content: bytes, rng: np.random.Generator, n_flips: int) -> Iterator[bytes | None]:
    """Yield a file cut short, with single bits flipped, and None for one that is lost."""
    yield from (content[:n] for n in sorted({0, 1, len(content) // 2, len(content) - 1}))
    for place in rng.integers(0, len(content), n_flips):
        flipped = bytearray(content)
        flipped[place] ^= 1 << int(rng.integers(8))
        yield bytes(flipped)
    yield None


@pytest.fixture(scope="module")
def staged(tmp_path_factory):
    folder = tmp_path_factory.mktemp("damage") / "stage"
    stage_into(folder, PIXELS, overlap=1)
    return folder


@pytest.fixture
def folder(staged, tmp_path):
    return Path(shutil.copytree(staged, tmp_path / "stage"))


PARTS = ["plan.json", "generation", "blocks"]


@pytest.mark.parametrize("part", PARTS)
def test_any_damage_to_a_stage_is_an_error_of_ours_or_changes_nothing(part, folder):
    labels, sums = everything(folder)
    rng = np.random.default_rng(PARTS.index(part))
    whole = {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}
    of_part = [path for path in whole if part in path.relative_to(folder).parts]
    n_errors = 0
    for path in sorted(of_part)[:: max(1, len(of_part) // 5)]:
        for content in damaged(whole[path], rng, n_flips=4):
            path.unlink() if content is None else path.write_bytes(content)
            message = error_or_check(folder, labels, sums)
            assert message is None or str(folder) in message
            n_errors += message is not None
            for other, before in whole.items():  # a damaged tile has its count taken back
                other.write_bytes(before)
    # The generation is known by its folder too, and the plan by the tile blocks, unless it is gone.
    assert (n_errors > 3) == (part == "blocks")


def test_what_a_killed_merge_left_hides_no_tile_where_the_generation_is_damaged(folder):
    labels, _ = everything(folder)
    (folder / "generation").write_text("damaged")
    _, plan = plan_of(PIXELS, overlap=1)
    Stage.open(folder, plan).file_for_task().write_bytes(b"table")
    assert not Stage.open(folder, plan).missing_blocks()
    assert (everything(folder)[0] == labels).all()


def error_or_check(folder, labels, sums) -> str | None:
    """Return the words of an error of ours; otherwise hold what is read against what was staged."""
    try:
        merged, measured = everything(folder)
    except (StageError, PlanError) as error:
        return str(error)
    assert (merged == labels).all()
    assert measured.equals(sums)
    return None


def cut_short(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-3])


def flip_middle(path: Path) -> None:
    """Spoil the header."""
    content = bytearray(path.read_bytes())
    content[100] ^= 4
    path.write_bytes(bytes(content))


WHAT = {
    "labels": "the labels",
    "strips/1/1": "the strips",
    "areas": "the areas",
    "whole": "the object sums",
}


@pytest.mark.parametrize("name", WHAT)
def test_the_error_names_the_tile_and_only_that_one_is_staged_again(name, folder):
    labels, _ = everything(folder)
    spoil_array(block_file(folder, "y001x000"), name)
    message = (
        rf"{WHAT[name]} of tile block 'y001x000' at .* are damaged \({name} are not what was "
        r"written\); it counts as not staged|'y001x000' is not staged"
    )
    with pytest.raises(StageError, match=message):
        everything(folder)
    stage = Stage.open(folder, plan_of(PIXELS, overlap=1)[1])
    assert stage.missing_blocks() == ["y001x000"]
    stage_into(folder, PIXELS, overlap=1, keys=stage.missing_blocks())
    assert (everything(folder)[0] == labels).all()


@pytest.mark.parametrize("spoil", [cut_short, flip_middle, os.unlink])
def test_a_tile_whose_file_is_damaged_was_not_staged_and_is_named(spoil, folder, caplog):
    plan = plan_of(PIXELS, overlap=1)[1]
    expected = Stage.open(folder, plan).counts()
    expected[1, 0] = -1
    spoil(block_file(folder, "y001x000"))
    stage = Stage.open(folder, plan)
    assert stage.missing_blocks() == ["y001x000"]
    assert (stage.counts() == expected).all()
    assert ("y001x000" in caplog.text) == (spoil is not os.unlink)


def test_the_file_of_another_block_is_not_taken_for_that_of_this(folder, caplog):
    stage = Stage.open(folder, plan_of(PIXELS, overlap=1)[1])
    labels, _ = everything(folder)
    shutil.copy(block_file(folder, "y000x000"), path := block_file(folder, "y001x000"))
    assert stage.missing_blocks() == ["y001x000"]
    assert f"{path} is damaged (it is that of tile block 'y000x000')" in caplog.text
    with pytest.raises(StageError, match="the labels of tile block 'y001x000' .* are damaged"):
        stage.labels(stage.grid.block_of_key("y001x000"))
    stage_into(folder, PIXELS, overlap=1, keys=stage.missing_blocks())
    assert (everything(folder)[0] == labels).all()


def test_a_tile_that_is_taken_back_while_files_are_listed_hides_no_other(folder, monkeypatch):
    stage = Stage.open(folder, plan_of(PIXELS, overlap=1)[1])
    scan = os.scandir

    @contextmanager
    def scan_while_one_is_unlinked(path):
        with scan(path) as entries:
            listed = sorted(entries, key=lambda entry: entry.name)
        os.unlink(listed[0].path)
        yield iter(listed)

    monkeypatch.setattr(os, "scandir", scan_while_one_is_unlinked)
    assert stage.missing_blocks() == ["y000x000"]


def test_a_file_that_is_replaced_is_read_again(folder):
    stage = Stage.open(folder, plan_of(PIXELS, overlap=1)[1])
    before, path = stage.counts(), block_file(folder, "y001x000")
    content = path.read_bytes()
    cut_short(path)
    assert stage.missing_blocks() == ["y001x000"]
    path.write_bytes(content)
    assert (stage.counts() == before).all()


def test_a_call_that_finds_damage_is_completed_by_the_next_one(tmp_path):
    target, stage = tmp_path / "labels.zarr", tmp_path / "stage"
    wanted = np.asarray(tile_process(PIXELS, label_components, **OPTIONS))
    options = {"write_to": target, "stage_dir": stage, "keep_stage": True, **OPTIONS}
    tile_process(PIXELS, label_components, **options)
    shutil.rmtree(target)
    spoil_array(block_file(stage, "y000x001"), "labels")
    with pytest.raises(StageError, match="tile block 'y000x001' .* call again, or run"):
        tile_process(PIXELS, label_components, **options)
    again = tile_process(PIXELS, label_components, **options)
    assert (np.asarray(again) == wanted).all()


def test_a_tile_that_is_not_staged_has_no_labels(folder):
    stage = Stage.open(folder, plan_of(PIXELS, overlap=1)[1])
    block = stage.grid.block_of_key("y001x001")
    assert stage.labels(block).any()
    stage.forget(block)
    with pytest.raises(StageError, match="'y001x001' is not staged at .*; stage it before"):
        stage.labels(block)


def test_a_table_that_holds_something_else_is_damaged():
    import pyarrow as pa

    table = pa.table({"area": np.arange(3), "is_cut": [True, False, True]}, metadata={"a": "b"})
    assert table_of(bytes_of_table(table)).equals(table, check_metadata=True)
    content = bytes_of_table(table)
    other = table.set_column(0, "area", pa.array([0, 1, 3]))
    swapped = other.replace_schema_metadata(
        {**table.schema.metadata, b"digest": _digest_in(content)}
    )
    with pytest.raises(DamagedError, match="does not hold what was written"):
        table_of(_plain_bytes(swapped))


def _digest_in(content: bytes) -> bytes:
    import io

    import pyarrow.parquet as pq

    return pq.read_table(io.BytesIO(content)).schema.metadata[b"digest"]


def _plain_bytes(table) -> bytes:
    import io

    import pyarrow.parquet as pq

    buffer = io.BytesIO()
    pq.write_table(table, buffer)
    return buffer.getvalue()
