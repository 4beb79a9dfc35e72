"""What is kept around faces."""

from __future__ import annotations

import numpy as np
import pytest

from patchworks_core.seams.strips import (
    cut_planes,
    cut_strip,
    smallest_strip,
    strip_axes,
    strip_of_tile,
)
from patchworks_core.tiles.grid import TileGrid


@pytest.mark.parametrize(
    "grid",
    [
        TileGrid("yx", (100, 90), (16, 32), (0, 0), (3, 2)),
        TileGrid("zyx", (7, 20, 33), (3, 5, 8), (0, 0, 0), (2, 2, 3)),
        TileGrid("tyx", (3, 20, 33), (1, 5, 40 // 2), (0, 0, 0), (2, 2, 1)),
    ],
)
def test_strips_of_a_block_without_halo_are_those_of_its_tiles(grid):
    labels = np.random.default_rng(0).integers(1, 9, grid.shape).astype(np.uint16)
    for block in grid.blocks():
        for axis in strip_axes(grid):
            for side in (0, 1):
                strips = cut_planes(grid, block, labels[block.core.slices], axis, side)
                for tile in block.tiles:
                    expected = cut_strip(grid, tile, labels[tile.read.slices], axis, side)
                    strip = strip_of_tile(grid, strips, tile.index, axis)
                    np.testing.assert_array_equal(strip, expected)


def test_the_smallest_strip_between_two_tiles_is_across_an_axis_that_is_crossed():
    grid = TileGrid("zyx", (128, 512, 512), (64, 256, 256), (16, 16, 16))
    steps = [(1, 0, 0), (1, -1, 0), (1, 0, 1), (0, -1, 1), (-1, 1, 1)]
    assert [smallest_strip(grid, step) for step in steps] == [0, 1, 2, 1, 1]
