"""Stages that version 0.1.0 made: what is read of them is what was staged, or names the tile."""

from __future__ import annotations

import os
import shutil
import tarfile
from pathlib import Path

import numpy as np
import pytest

from patchworks_core.errors import StageError
from patchworks_core.stage.plan import Plan
from patchworks_core.stage.stage import Stage

ARCHIVE = Path(__file__).parents[2] / "data" / "made_by_0.1.0.tar.xz"

STAGE = "labels.zarr/labels.work/stage.zarr"


@pytest.fixture(scope="module")
def unpacked(tmp_path_factory):
    folder = tmp_path_factory.mktemp("made_before")
    with tarfile.open(ARCHIVE) as archive:
        archive.extractall(folder, filter="tar")
    return folder / STAGE


@pytest.fixture
def folder(unpacked, tmp_path):
    return Path(shutil.copytree(unpacked, tmp_path / "stage"))


def opened(folder: Path) -> Stage:
    return Stage.open(folder, Plan.read(folder / "plan.json"))


def cut_short(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-3])


def test_five_of_twelve_tiles_are_staged_and_read(folder):
    stage = opened(folder)
    counts = stage.counts()
    assert (counts >= 0).sum() == 5
    block = stage.grid.block_of_key("y000x001")
    assert stage.labels(block).max() == counts[0, 1] == len(stage.areas(block))
    assert stage.objects(block).area.tolist() == stage.areas(block).tolist()
    assert np.count_nonzero(stage.digests()) == 5
    assert not stage.pixel_checksums().any()
    assert stage.strip((0, 1), 1, 0).any()


@pytest.mark.parametrize("spoil", [cut_short, os.unlink])
@pytest.mark.parametrize(
    ("file", "what"),
    [
        ("labels/c/0/1", "the labels"),
        ("digests/c/0/1", "the (labels|digests)"),
        ("objects/y000x001.parquet", "the (strips|areas)"),
    ],
)
def test_the_error_names_the_tile_and_only_that_one_is_staged_again(file, what, spoil, folder):
    stage = opened(folder)
    before = set(stage.missing_blocks())
    spoil(folder / file)
    block = stage.grid.block_of_key("y000x001")
    message = rf"{what} of tile block 'y000x001' at .* are damaged \(.*\); it counts as not staged"
    with pytest.raises(StageError, match=message):
        (stage.labels(block), stage.strips(block), stage.areas(block))
    assert set(opened(folder).missing_blocks()) == before | {"y000x001"}


@pytest.mark.parametrize("other", ["y000x002", "y001x000"])  # of as many labels, and of more
def test_the_objects_of_another_tile_are_not_taken_for_those_of_this(other, folder):
    stage = opened(folder)
    shutil.copy(*(folder / "objects" / f"{key}.parquet" for key in (other, "y000x001")))
    with pytest.raises(StageError, match="'y000x001' .* damaged .they are those of another tile"):
        stage.areas(stage.grid.block_of_key("y000x001"))


@pytest.mark.parametrize("spoil", [cut_short, os.unlink])
def test_a_tile_whose_count_is_damaged_was_not_staged(spoil, folder):
    before = opened(folder).counts()
    spoil(folder / "counts" / "c" / "0" / "1")
    before[0, 1] = -1
    assert (opened(folder).counts() == before).all()


def test_an_array_that_says_it_is_another_is_refused(folder):
    metadata = folder / "counts" / "zarr.json"
    text = metadata.read_text()
    assert '"fill_value": -1' in text
    metadata.write_text(text.replace('"fill_value": -1', '"fill_value": 0'))
    with pytest.raises(StageError, match="its array 'counts' has fill_value 0, not -1; stage the"):
        opened(folder)


@pytest.mark.parametrize("name", ["labels", "strips/y", "counts"])
def test_a_stage_with_damaged_metadata_is_staged_anew(name, folder):
    plan = Plan.read(folder / "plan.json")
    cut_short(folder / name / "zarr.json")
    stage = Stage.open_or_create(folder, plan)
    assert len(stage.missing_blocks()) == stage.grid.n_blocks
    assert not (folder / "counts").exists()
