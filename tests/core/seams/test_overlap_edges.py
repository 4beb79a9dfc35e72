"""The `overlap` rule at its edges: perfect labels, cut into tiles in every awkward way."""

from __future__ import annotations

import numpy as np
import pytest

from patchworks_core import tile_process
from patchworks_core.pilot.in_memory import TilesInMemory
from patchworks_core.seams.rules import MergeOptions
from patchworks_core.tiles.grid import plan_grid
from tests.core.oracles import assert_same_partition, merge_in_memory
from tests.core.seams.test_merge_properties import perfect_labels, touching_cells

OVERLAP = MergeOptions("overlap", 1)


def merged(truth: np.ndarray, tile_shape, overlap, seed: int = 0) -> np.ndarray:
    axes = "zyx"[-truth.ndim :]
    grid = plan_grid(axes, truth.shape, tile_shape=tile_shape, overlap=overlap)
    return merge_in_memory(truth, perfect_labels(truth, seed), grid, OVERLAP)


def squares(shape: tuple[int, int], size: int, pitch: int) -> np.ndarray:
    """Return squares of `size` pixels, `pitch` apart."""
    truth = np.zeros(shape, dtype=int)
    for n, y in enumerate(range(0, shape[0], pitch)):
        for m, x in enumerate(range(0, shape[1], pitch)):
            truth[y : y + size, x : x + size] = 1 + n * 1000 + m
    return truth


def test_a_halo_larger_than_a_neighbours_core_is_sound():
    truth = squares((40, 46), 5, 7)
    assert_same_partition(merged(truth, (8, 8), (12, 12)), truth)


@pytest.mark.parametrize("n_remainder", [1, 2, 3])
def test_a_remainder_thinner_than_the_halo_is_sound(n_remainder):
    truth = squares((32 + n_remainder, 32 + n_remainder), 4, 5)
    assert_same_partition(merged(truth, (16, 16), (6, 6)), truth)


def test_with_a_halo_on_one_axis_only_the_planes_must_agree_on_the_other():
    truth = squares((30, 30), 6, 8)
    assert_same_partition(merged(truth, (10, 10), (0, 4)), truth)


def test_an_axis_without_a_halo_is_warned_of():
    truth = squares((30, 30), 6, 8)
    with pytest.warns(UserWarning, match="no halo on axis 'y'.*give overlap"):
        tile_process(truth, lambda tile: tile, tile_shape=10, overlap=(0, 4), merge="overlap")


def test_an_object_may_span_whole_rows_and_columns_of_tiles():
    truth = np.zeros((50, 60), dtype=int)
    truth[4:7] = 1
    truth[20:, 10:13] = 2
    truth[12:16, 33:57] = 3
    assert_same_partition(merged(truth, (10, 10), (4, 4)), truth)


def test_an_object_seen_only_in_a_halo_is_counted_once():
    truth = np.zeros((20, 40), dtype=int)
    truth[8:12, 20:23] = 1  # in the core of the right tile, in the halo of the left
    labels = merged(truth, (20, 20), (0, 6))
    assert_same_partition(labels, truth)
    assert labels.max() == 1


@pytest.mark.parametrize("at", [(7, 7), (8, 8), (9, 9), (10, 10), (7, 10), (10, 7)])
def test_an_object_at_a_corner_of_four_tiles_is_one(at):
    truth = np.zeros((20, 20), dtype=int)
    truth[at[0] : at[0] + 3, at[1] : at[1] + 3] = 1
    assert_same_partition(merged(truth, (10, 10), (4, 4)), truth)


def test_an_object_that_crosses_only_through_the_corner_is_one():
    truth = np.zeros((20, 20), dtype=int)
    for i in range(6, 14):
        truth[i, i] = 1
    assert_same_partition(merged(truth, (10, 10), (4, 4)), truth)


def test_the_other_diagonal_is_one_as_well():
    truth = np.zeros((20, 20), dtype=int)
    for i in range(6, 14):
        truth[i, 19 - i] = 1
    assert_same_partition(merged(truth, (10, 10), (4, 4)), truth)


def test_four_cells_that_meet_at_a_corner_of_tiles_stay_four():
    truth = np.ones((20, 20), dtype=int)
    truth[:10, 10:], truth[10:, :10], truth[10:, 10:] = 2, 3, 4
    assert_same_partition(merged(truth, (10, 10), (4, 4)), truth)


@pytest.mark.parametrize("shift", [-2, -1, 1, 2])
def test_four_cells_that_meet_beside_a_corner_of_tiles_stay_four(shift):
    at = 10 + shift
    truth = np.ones((20, 20), dtype=int)
    truth[:at, at:], truth[at:, :at], truth[at:, at:] = 2, 3, 4
    assert_same_partition(merged(truth, (10, 10), (4, 4)), truth)


def test_a_cell_wholly_enclosed_in_another_stays_apart():
    truth = np.ones((24, 24), dtype=int)
    truth[9:15, 9:15] = 2
    assert_same_partition(merged(truth, (12, 12), (6, 6)), truth)


def test_a_ring_around_a_corner_of_tiles_is_one():
    y, x = np.indices((40, 40)) - 20
    radius = np.hypot(y, x)
    truth = ((radius > 9) & (radius < 12)).astype(int)
    truth[radius < 4] = 2
    assert_same_partition(merged(truth, (20, 20), (12, 12)), truth)


def test_tiles_without_objects_between_others_are_no_trouble():
    truth = np.zeros((60, 60), dtype=int)
    truth[2:5, 2:5], truth[55:58, 55:58], truth[28:33, 19:22] = 1, 2, 3
    assert_same_partition(merged(truth, (10, 10), (4, 4)), truth)


@pytest.mark.parametrize("shape", [(1, 50), (50, 1)])
def test_an_image_one_pixel_wide_is_tiled_along_its_length(shape):
    truth = (np.arange(50) // 4 + 1).reshape(shape)
    assert_same_partition(merged(truth, 10, 4), truth)


def test_an_image_one_tile_wide_is_tiled_along_its_length():
    truth = squares((60, 10), 4, 5)
    assert_same_partition(merged(truth, (15, 10), (4, 4)), truth)


@pytest.mark.parametrize("seed", range(3))
def test_a_volume_of_touching_cells_in_thin_tiles_is_sound(seed):
    truth = touching_cells((12, 30, 30), seed, n_cells=60)
    labels = merged(truth, (4, 13, 13), (4, 12, 12), seed)
    for label in np.unique(labels):
        assert len(np.unique(truth[labels == label])) == 1


def test_labels_that_met_no_partner_are_objects_of_their_own():
    truth = squares((20, 20), 3, 5)
    grid = plan_grid("yx", truth.shape, tile_shape=10, overlap=4)

    def blind_on_the_left(pixels, tile):
        return pixels * (tile.index[1] > 0)

    staged = TilesInMemory.stage(truth, blind_on_the_left, grid)
    right = truth.copy()
    right[:, :10] = 0
    assert_same_partition(staged.merged(OVERLAP), right)
