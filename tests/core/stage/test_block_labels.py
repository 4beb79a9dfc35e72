"""Labels that a block keeps by their runs are those that it would keep pixel by pixel."""

from __future__ import annotations

import numpy as np
import pytest
from scipy import ndimage
from upath import UPath

from patchworks_core.errors import StageError
from patchworks_core.files import packed as packed_files
from patchworks_core.files.label_arrays import create_label_array
from patchworks_core.files.storage import open_array
from patchworks_core.machine.pools import Pool
from patchworks_core.machine.workers import Workers
from patchworks_core.merge.apply import apply_lut, create_apply_records
from patchworks_core.stage import block_labels, label_runs
from patchworks_core.stage.block_labels import counted_over_block, local_labels
from patchworks_core.stage.label_runs import LabelRuns
from tests.core.oracles import assert_same_partition
from tests.core.staging import block_file, lut_of, stage_into


def discs(shape, seed=0, n=150):
    """Return a mask of discs, whose runs are long."""
    centres = np.random.default_rng(seed).integers(0, shape, (n, len(shape)))
    mask = np.zeros(shape, dtype=bool)
    mask[tuple(centres.T)] = True
    return ndimage.distance_transform_edt(~mask) < 9


IMAGE = discs((400, 600))

TILINGS = [
    pytest.param({"tile_shape": (400, 600)}, id="one tile"),
    pytest.param({"tile_shape": (200, 200)}, id="blocks of one tile"),
    pytest.param({"tile_shape": (70, 90), "max_blocks": 3}, id="many tiles in a block"),
    pytest.param({"tile_shape": (70, 600), "max_blocks": 2}, id="rows of tiles in a block"),
    pytest.param({"tile_shape": (200, 220), "overlap": 12}, id="halo"),
]


@pytest.mark.parametrize("asked", TILINGS)
def test_labels_are_the_same_by_runs_and_by_pixels(asked, tmp_path, monkeypatch):
    stages = [stage_into(tmp_path / "runs", IMAGE, **asked)]
    monkeypatch.setattr(label_runs, "MIN_PIXELS", 10**9)
    stages.append(stage_into(tmp_path / "pixels", IMAGE, **asked))
    kinds = set()
    for block in stages[0].grid.blocks():
        by_runs, by_pixels = (stage.labels(block) for stage in stages)
        np.testing.assert_array_equal(by_runs, by_pixels)
        assert by_runs.dtype == by_pixels.dtype
        kinds |= {type(stage.kept_labels(block)) for stage in stages}
    assert kinds == {LabelRuns, np.ndarray}, "both were tried"


@pytest.mark.parametrize("asked", TILINGS)
def test_blocks_of_runs_are_merged_as_if_the_image_was_labelled_at_once(asked, tmp_path):
    stage = stage_into(tmp_path / "stage", IMAGE, **asked)
    lut = lut_of(stage)
    labels, records = UPath(tmp_path / "labels"), UPath(tmp_path / "records")
    create_label_array(labels, stage.grid, lut.dtype, zarr_format=3, chunks=None)
    create_apply_records(records, stage.grid)
    with Pool.open(Workers()) as pool:
        list(apply_lut(stage, lut, labels=labels, records=records, pool=pool))
    assert_same_partition(open_array(labels)[...], ndimage.label(IMAGE)[0])


def test_ids_of_runs_are_counted_over_the_tiles_of_a_block():
    local = np.zeros((256, 256), dtype=np.uint16)
    local[10:20, 100:128] = 1
    local[10:20, 128:150] = 1  # the same number, of the tile beside it
    local[200:210, 5:60] = 2
    runs = LabelRuns.of(local, box=(128, 128))
    counted = counted_over_block(runs, (1, 1, 2, 0), (128, 128))
    assert sorted(set(counted.ids)) == [0, 1, 2, 4]
    np.testing.assert_array_equal(local_labels(counted, (1, 1, 2, 0)), local)


def test_labels_of_more_than_65535_objects_keep_their_type():
    local = np.repeat(np.arange(70_000, dtype=np.int32), 16).reshape(-1, 160)
    runs = LabelRuns.of(local)
    arrays = block_labels.arrays_of_labels(runs)
    assert [a.dtype for a in arrays.values()] == [np.uint32, np.uint16]
    back = LabelRuns(*arrays.values(), local.shape)
    labels = local_labels(back, (69_999,))
    np.testing.assert_array_equal(labels, local)
    assert labels.dtype == np.int32


def test_runs_that_do_not_fill_their_block_are_damage(tmp_path):
    stage = stage_into(tmp_path / "stage", IMAGE, tile_shape=(200, 200))
    block = next(stage.grid.blocks())
    path = block_file(stage.path, block.key)
    with packed_files.open_packed(path) as packed:
        arrays = packed.load(packed.arrays)
        header = packed.header
    arrays["runs/lengths"] = arrays["runs/lengths"].copy()
    arrays["runs/lengths"][0] += 1
    path.write_bytes(packed_files.pack(header, arrays))
    with pytest.raises(StageError, match="do not make up a block"):
        stage.kept_labels(block)
    assert block.key in stage.missing_blocks()
