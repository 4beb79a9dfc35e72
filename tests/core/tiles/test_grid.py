"""The grid is held against counting pixel by pixel."""

from __future__ import annotations

import json
from itertools import combinations
from math import prod
from operator import add

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from patchworks_core.errors import PlanError
from patchworks_core.tiles.block_counts import enough_blocks
from patchworks_core.tiles.grid import SPATIAL_AXES, Face, TileGrid, plan_grid


@st.composite
def grids(draw) -> TileGrid:
    """Small grids over any axes, with halos up to beyond the tile, in blocks of tiles."""
    axes = draw(st.sampled_from(["x", "yx", "zyx", "tyx", "cyx", "tczyx"]))
    shape, tile, halo = [], [], []
    for axis in axes:
        spatial = axis in SPATIAL_AXES
        size = draw(st.integers(1, 9 if spatial else 3))
        shape.append(size)
        tile.append(draw(st.integers(1, size)) if spatial else 1)
        halo.append(0 if tile[-1] == 1 else draw(st.integers(0, 6)))
    block = tuple(draw(st.integers(1, 3)) for _ in axes)
    return TileGrid(axes, tuple(shape), tuple(tile), tuple(halo), block)


@given(grids())
@settings(max_examples=60)
def test_cores_partition_the_image(grid):
    owners = np.zeros(grid.shape, dtype=int)
    for tile in grid.tiles():
        owners[tile.core.slices] += 1
    assert (owners == 1).all()
    assert len(list(grid.tiles())) == grid.n_tiles


@given(grids())
@settings(max_examples=60)
def test_a_tile_reads_its_core_and_the_halo_within_the_image(grid):
    for tile in grid.tiles():
        for axis, size in enumerate(grid.shape):
            start, stop = tile.core.start[axis], tile.core.stop[axis]
            wanted = set(range(start - grid.halo[axis], stop + grid.halo[axis])) & set(range(size))
            assert set(range(tile.read.start[axis], tile.read.stop[axis])) == wanted


@given(grids())
@settings(max_examples=60)
def test_the_read_factor_is_the_pixels_read_over_the_pixels_there_are(grid):
    n_read = sum(tile.read.size for tile in grid.tiles())
    assert grid.read_factor == pytest.approx(n_read / np.prod(grid.shape))


@given(grids())
@settings(max_examples=60)
def test_tiles_are_numbered_in_row_major_order(grid):
    assert [tile.number for tile in grid.tiles()] == list(range(grid.n_tiles))
    assert all(grid.tile(tile.index) == tile for tile in grid.tiles())


@given(grids())
@settings(max_examples=60)
def test_blocks_cover_each_tile_once_and_read_what_their_tiles_read(grid):
    blocks = list(grid.blocks())
    numbers = [tile.number for block in blocks for tile in block.tiles]
    assert sorted(numbers) == list(range(grid.n_tiles))
    assert len(blocks) == grid.n_blocks
    for block in blocks:
        owned, read = np.zeros(grid.shape, bool), np.zeros(grid.shape, bool)
        for tile in block.tiles:
            owned[tile.core.slices] = True
            read[tile.read.slices] = True
        assert owned[block.core.slices].all()
        assert owned.sum() == block.core.size
        assert read[block.read.slices].all()
        assert read.sum() == block.read.size


@given(grids())
@settings(max_examples=60)
def test_block_keys_are_unique_sort_in_row_major_order_and_name_their_block(grid):
    keys = grid.block_keys()
    assert keys == sorted(set(keys))
    assert [grid.block_of_key(key) for key in keys] == list(grid.blocks())


def test_keys_sort_in_row_major_order_beyond_a_thousand_blocks():
    keys = plan_grid("yx", (4, 1200), tile_shape=1).block_keys()
    assert keys == sorted(set(keys))
    assert keys[0] == "y0000x0000"


@given(grids())
@settings(max_examples=40)
def test_every_neighbouring_pair_of_tiles_shares_exactly_one_face(grid):
    spatial = set(grid.spatial)

    def are_neighbours(a, b):
        apart = [abs(i - j) for i, j in zip(a.index, b.index, strict=True)]
        return max(apart) == 1 and all(d == 0 or i in spatial for i, d in enumerate(apart))

    tiles = list(grid.tiles())
    wanted = [(a.number, b.number) for a, b in combinations(tiles, 2) if are_neighbours(a, b)]
    inside = set(np.ndindex(grid.grid_shape))
    faces = [
        Face(tile, grid.tile(index), step)
        for tile in tiles
        for step in grid.steps
        if (index := tuple(map(add, tile.index, step))) in inside
    ]
    assert sorted((face.low.number, face.high.number) for face in faces) == sorted(wanted)
    for face in faces:
        assert face.is_plane == (sum(map(abs, face.step)) == 1)
        assert face.step[face.axis] == 1


@given(grids())
@settings(max_examples=40)
def test_a_grid_comes_back_from_json(grid):
    assert TileGrid.from_dict(json.loads(json.dumps(grid.to_dict()))) == grid


@pytest.mark.parametrize("remainder", [1, 3, 7])
def test_a_remainder_smaller_than_the_halo_is_a_tile_of_its_own(remainder):
    grid = plan_grid("x", (40 + remainder,), tile_shape=20, overlap=8)
    last = list(grid.tiles())[-1]
    assert grid.grid_shape == (3,)
    assert (last.core.shape, last.read.start) == ((remainder,), (32,))


@pytest.mark.parametrize(
    ("axes", "shape", "tile_shape", "overlap", "tile", "halo"),
    [
        ("yx", (100, 60), 40, 8, (40, 40), (8, 8)),
        ("yx", (100, 60), -1, 8, (100, 60), (0, 0)),
        ("yx", (100, 60), (40,), (8,), (100, 40), (0, 8)),
        ("yx", (100, 60), 1000, 8, (100, 60), (0, 0)),
        ("zyx", (10, 100, 60), (-1, 40, 40), (8, 8, 8), (10, 40, 40), (0, 8, 8)),
        ("zyx", (10, 100, 60), (1, 40, 40), 8, (1, 40, 40), (0, 8, 8)),
        ("zyx", (10, 100, 60), (40, 40), (8, 8), (10, 40, 40), (0, 8, 8)),
        ("zyx", (10, 100, 60), (5, 40, 40), (20, 4, 4), (5, 40, 40), (10, 4, 4)),
        ("tyx", (5, 100, 60), 40, 8, (1, 40, 40), (0, 8, 8)),
        ("tczyx", (5, 2, 9, 60, 60), (-1, -1, 3, 40, 40), 2, (1, 1, 3, 40, 40), (0, 0, 2, 2, 2)),
    ],
)
def test_what_a_person_writes_becomes_a_tile_and_a_halo(
    axes, shape, tile_shape, overlap, tile, halo
):
    grid = plan_grid(axes, shape, tile_shape=tile_shape, overlap=overlap)
    assert (grid.tile_shape, grid.halo) == (tile, halo)


def test_numpy_numbers_are_whole_numbers():
    shape = np.array([100, 60])
    grid = plan_grid("yx", shape, tile_shape=np.array([40, 90]), overlap=np.int64(3))
    assert grid == TileGrid("yx", (100, 60), (40, 60), (3, 0))
    json.dumps(grid.to_dict())


@given(
    shape=st.tuples(st.integers(1, 3), st.integers(1, 60), st.integers(1, 60)),
    max_blocks=st.integers(1, 200),
)
@settings(max_examples=60)
def test_blocks_are_grown_until_there_are_few_enough(shape, max_blocks):
    grid = plan_grid("tyx", shape, tile_shape=4, overlap=1, max_blocks=max_blocks)
    assert grid.n_blocks <= max_blocks
    assert grid.n_tiles > max_blocks or grid.block_shape == (1, 1, 1)
    assert grid.block_shape[0] == 1 or max_blocks < shape[0]


@pytest.mark.parametrize(
    ("fields", "words"),
    [
        ({"axes": "xy"}, "axes must be some of 'tczyx' in that order, got 'xy'"),
        ({"axes": ""}, "axes must be some of"),
        ({"axes": "yy"}, "axes must be some of"),
        ({"axes": "yq"}, "axes must be some of"),
        ({"shape": (9,)}, "shape needs one value per axis of 'yx', got"),
        ({"halo": (1, 1, 1)}, "halo needs one value per axis"),
        ({"tile_shape": (4.5, 4)}, "tile_shape must hold whole numbers, got"),
        ({"shape": (0, 9)}, "shape must be at least 1 on every axis"),
        ({"tile_shape": (0, 4)}, "tile_shape must be at least 1"),
        ({"halo": (-1, 0)}, "halo must be 0 or more"),
        ({"block_shape": (0, 1)}, "block_shape must be at least 1"),
        ({"tile_shape": (10, 4)}, "a tile of 10 does not fit axis 'y' of 9 pixels"),
        ({"tile_shape": (1, 4), "halo": (2, 0)}, "a tile 1 thick on axis 'y' has no halo there"),
        ({"axes": "tx", "tile_shape": (2, 4)}, "a tile holds one index of axis 't'"),
    ],
)
def test_a_grid_that_breaks_a_rule_is_refused_with_the_rule(fields, words):
    values = {"axes": "yx", "shape": (9, 9), "tile_shape": (4, 4), "halo": (0, 0), **fields}
    with pytest.raises(PlanError) as caught:
        TileGrid(**values)
    assert words in str(caught.value)


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ({"shape": (9, 9, 9)}, "shape needs one value per axis of 'yx', got (9, 9, 9)"),
        ({"tile_shape": (4, 4, 4)}, "tile_shape needs one value, or one per axis of 'yx'"),
        ({"tile_shape": ()}, "tile_shape needs one value"),
        ({"tile_shape": (4.5, 4)}, "tile_shape must hold whole numbers, got (4.5, 4)"),
        ({"tile_shape": 4.5}, "tile_shape must hold whole numbers, got 4.5"),
        ({"tile_shape": "44"}, "tile_shape must hold whole numbers, got '44'"),
        ({"tile_shape": -2}, "tile_shape must be at least 1"),
        ({"tile_shape": 0}, "tile_shape must be at least 1"),
        ({"overlap": -1}, "halo must be 0 or more"),
        ({"max_blocks": 0}, "max_blocks must be a whole number, 1 or more, got 0"),
    ],
)
def test_arguments_that_describe_no_grid_are_refused_with_the_rule(arguments, words):
    values = {"axes": "yx", "shape": (9, 9), "tile_shape": 4, **arguments}
    with pytest.raises(PlanError) as caught:
        plan_grid(values.pop("axes"), values.pop("shape"), **values)
    assert words in str(caught.value)


def test_a_key_of_no_block_is_refused_with_the_keys_there_are():
    grid = plan_grid("yx", (9, 9), tile_shape=4)
    with pytest.raises(PlanError, match="no tile block 'y9x9' .* are 'y000x000' to 'y002x002'"):
        grid.block_of_key("y9x9")


@pytest.mark.parametrize(
    "record",
    [
        {"axes": "yx"},
        {"axes": "yx", "shape": 9, "tile_shape": [4, 4], "halo": [0, 0]},
        {"axes": "yx", "shape": [9, 9], "tile_shape": [4, 4], "halo": [0, 0], "colour": [1, 1]},
        [1, 2],
    ],
)
def test_what_is_no_record_of_a_grid_is_refused(record):
    with pytest.raises(PlanError, match="not the record of a tile grid"):
        TileGrid.from_dict(record)


@pytest.mark.parametrize(
    ("shape", "tile_shape", "chunks", "block"),
    [
        ((256, 1024, 1024), 64, (64, 256, 256), (1, 4, 4)),  # a chunk is one block
        ((256, 1024, 1024), 64, (1, 1024, 1024), (1, 2, 8)),  # as much of it as leaves 64
        ((8192, 8192), 1024, (4096, 4096), (1, 1)),  # there are only 64 tiles
        ((400, 4000, 4000), (64, 256, 256), (64, 256, 256), (1, 1, 1)),
    ],
)
def test_blocks_hold_whole_chunks_while_there_is_work_for_many(shape, tile_shape, chunks, block):
    axes = "zyx"[-len(shape) :]
    most = enough_blocks(shape)
    grid = plan_grid(axes, shape, tile_shape=tile_shape, max_blocks=most, chunks=chunks)
    assert grid.block_shape == block
    assert prod(grid.blocks_shape) >= 64
