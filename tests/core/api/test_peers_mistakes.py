"""What peers got wrong (the design, section 6), where no other test of the core says it.

The number before each test is the one in the design.
"""

from __future__ import annotations

from collections import Counter

import numpy as np
import pytest
from scipy import ndimage

from patchworks_core import TilesFailedError, declare, plan_grid, tile_process
from patchworks_core.files.label_arrays import output_chunks
from patchworks_core.machine.pools import Pool
from patchworks_core.machine.workers import Workers
from patchworks_core.merge.pairing import pair_tiles
from patchworks_core.seams.lookup import build_lut
from tests.core.oracles import assert_same_partition, edge_table
from tests.core.staging import (
    blobs,
    block_file,
    label_components,
    lut_of,
    rows_of,
    spoil_array,
    stage_into,
)


# 1
@pytest.mark.parametrize("remainder", [1, 2, 5])
def test_a_remainder_smaller_than_the_halo_fuses_nothing_with_default_arguments(remainder):
    pixels = np.zeros((32 + remainder, 48), dtype=bool)
    pixels[::2, ::2] = True
    labels = tile_process(pixels, lambda t: ndimage.label(t)[0], tile_shape=16, overlap=6)
    assert_same_partition(labels, ndimage.label(pixels)[0])


# 2
def test_objects_under_the_same_id_in_every_tile_stay_different_objects():
    pixels = np.zeros((40, 40), dtype=bool)
    pixels[5::10, 5::10] = True
    labels = tile_process(pixels, lambda t: t.astype(int), tile_shape=10)
    assert labels.max() == np.count_nonzero(labels) == 16


# 3
def test_two_cells_that_touch_at_a_face_stay_two():
    cells = np.zeros((12, 40), dtype=np.int32)
    for cell, start in enumerate(range(0, 40, 10), start=1):
        cells[:, start : start + 10] = cell
    for tile_shape in ((12, 10), (12, 15), (5, 7)):
        labels = tile_process(cells, lambda t: t, tile_shape=tile_shape, overlap=5)
        assert_same_partition(labels, cells)


# 4
@pytest.mark.slow
def test_an_oblique_line_is_one_object_where_the_function_uses_full_connectivity():
    line = np.eye(24, dtype=bool) | np.eye(24, dtype=bool)[::-1]

    @declare(merge="touching", version="1")
    def label_diagonal(tile, connectivity=2):
        structure = ndimage.generate_binary_structure(tile.ndim, connectivity)
        return ndimage.label(tile, structure)[0]

    for tile_shape in (3, 5, 6, 8):
        assert tile_process(line, label_diagonal, tile_shape=tile_shape).max() == 1
    faces_only = tile_process(line, label_diagonal, tile_shape=5, parameters={"connectivity": 1})
    assert_same_partition(faces_only, ndimage.label(line)[0])


# 5 and 25
@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:merge='overlap' with no halo")
@pytest.mark.parametrize(
    ("tile_shape", "overlap", "seen"),
    [((1, 8, 8), 3, (1, 14, 14)), ((2, 8, 8), 1, (4, 10, 10)), ((2, 8, 8), (0, 2, 3), (2, 12, 14))],
)
def test_a_function_sees_the_overlap_on_each_side_and_none_where_tiles_are_one_thick(
    tile_shape, overlap, seen
):
    shapes = []

    @declare(version="1")
    def record_shape(tile):
        shapes.append(tile.shape)
        return np.zeros(tile.shape, int)

    tile_process(np.zeros((6, 24, 24)), record_shape, tile_shape=tile_shape, overlap=overlap)
    assert Counter(shapes)[seen] >= 1
    assert max(shapes) == seen


# 7
@pytest.mark.parametrize("bad", [-1, 1.2, np.nan, np.inf])
def test_a_value_that_is_no_label_fails_its_tile_and_becomes_no_object(bad):
    with pytest.raises(TilesFailedError, match="TileOutputError"):
        tile_process(np.ones((4, 4)), lambda t: np.full(t.shape, bad), tile_shape=2)


@pytest.mark.parametrize("large", [2**31, 2**32 + 1, 2**63, 2**64 - 1])
def test_a_large_label_is_an_object_like_any_other(large):
    pixels = blobs((12, 12))

    def label_high_up(tile):
        labels = ndimage.label(tile)[0].astype(np.uint64)
        return np.where(labels > 0, np.uint64(large) - labels + np.uint64(1), 0).astype(np.uint64)

    labels = tile_process(pixels, label_high_up, tile_shape=5)
    assert_same_partition(labels, ndimage.label(pixels)[0])


# 14
def test_a_channel_is_never_taken_from_the_axis_of_another():
    pixels = np.zeros((2, 3, 8, 8), dtype=np.uint8)
    pixels[1, 2] = 1
    options = {"axes": "czyx", "tile_shape": (-1, 4, 4), "channel": 1}
    labels = tile_process(pixels, label_components, **options)
    assert labels.shape == (3, 8, 8)
    assert [bool(plane.any()) for plane in labels] == [False, False, True]


# 16
@pytest.mark.parametrize("max_blocks", [None, 3])
@pytest.mark.parametrize("tile_shape", [(600, 600), (700, 1000), (1009, 300)])
def test_no_two_tiles_write_one_chunk(tile_shape, max_blocks):
    grid = plan_grid("yx", (2500, 2100), tile_shape=tile_shape, max_blocks=max_blocks)
    chunks = output_chunks(grid)
    writers = Counter()
    for block in grid.blocks():
        rows, columns = (
            range(a // c, -(-b // c))
            for a, b, c in zip(block.core.start, block.core.stop, chunks, strict=True)
        )
        writers.update((row, column) for row in rows for column in columns)
    assert set(writers.values()) == {1}


# 17
def test_pairing_reads_no_pixel_of_the_staged_labels(tmp_path):
    stage = stage_into(tmp_path / "stage", blobs((12, 12)), overlap=1)
    expected = lut_of(stage)
    for key in stage.grid.block_keys():
        spoil_array(block_file(stage.path, key), "labels")
    found = lut_of(stage)
    np.testing.assert_array_equal(found.joined, expected.joined)
    np.testing.assert_array_equal(found.merged, expected.merged)


def test_the_edge_table_is_the_same_whatever_order_tiles_are_paired_in(tmp_path):
    stage = stage_into(tmp_path / "stage", blobs((30, 30)), overlap=1)
    with Pool.open(Workers()) as one, Pool.open(Workers(4)) as many:
        first = pair_tiles(stage, pool=one)
        second = pair_tiles(stage, pool=many)
    assert rows_of(first).to_arrow() == rows_of(second).to_arrow()
    assert len(first) > 50


# 19
def test_more_objects_than_16_bits_count_do_not_wrap():
    pixels = np.zeros((600, 600), dtype=bool)
    pixels[::2, ::2] = True
    labels = tile_process(pixels, label_components, tile_shape=256)
    assert labels.max() == 90_000
    assert len(np.unique(labels)) == 90_001


def test_a_lookup_table_grows_with_what_is_joined_and_not_with_the_ids():
    counts = np.array([2**40, 2**40, 5])
    lut = build_lut(edge_table([(1, 2**31 - 1, 2, 3), (0, 7, 2, 5)]), counts)
    assert len(lut.joined) == len(lut.merged) == 2
    assert lut.n_objects == 2**41 + 3
    assert lut.of_tile(2).tolist() == [
        *(0, 2**41 + 1, 2**41 + 2, 2**40 + 2**31 - 1, 2**41 + 3, 7),
    ]


# 21
@pytest.mark.parametrize("merge", ["touching", "overlap"])
def test_tiles_without_objects_are_tiles(merge):
    pixels = np.zeros((24, 24), dtype=bool)
    pixels[10:20, 10:14] = True
    labels = tile_process(pixels, label_components, tile_shape=6, overlap=2, merge=merge)
    np.testing.assert_array_equal(labels, pixels.astype(int))


# 22
def test_an_axis_is_never_guessed():
    from patchworks_core import ImageError

    with pytest.raises(ImageError, match="pass axes="):
        tile_process(np.zeros((2, 3, 8, 8)), label_components, tile_shape=4)
