"""Merging is held against oracles: the whole image labelled at once, and perfect labels cut up."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import ndimage

from patchworks_core.seams.rules import MergeOptions
from patchworks_core.tiles.grid import TileGrid, plan_grid
from tests.core.oracles import assert_same_partition, examples, merge_in_memory


@st.composite
def cases(draw, axes_choices=("x", "yx", "zyx", "tzyx"), max_size=14):
    """Axes, shape, tile shape and halo; shapes shrink as axes are added."""
    axes = draw(st.sampled_from(axes_choices))
    longest = {1: 40, 2: max_size, 3: 8, 4: 6}[len(axes)]
    shape = tuple(draw(st.integers(1, 3 if a == "t" else longest)) for a in axes)
    tile = tuple(
        1 if a == "t" else draw(st.integers(1, n)) for a, n in zip(axes, shape, strict=True)
    )
    halo = tuple(
        0 if a == "t" or t == 1 else draw(st.integers(0, 5))
        for a, t in zip(axes, tile, strict=True)
    )
    return TileGrid(axes, shape, tile, halo), draw(st.integers(0, 2**32 - 1))


@given(case=cases(), connectivity=st.integers(1, 3), density=st.floats(0.2, 0.8))
@settings(max_examples=examples(100))
def test_touching_equals_labelling_the_whole_image(case, connectivity, density):
    grid, seed = case
    n_spatial = len(grid.spatial)
    connectivity = min(connectivity, n_spatial)
    mask = np.random.default_rng(seed).random(grid.shape) < density
    structure = ndimage.generate_binary_structure(n_spatial, connectivity)

    merged = merge_in_memory(
        mask,
        lambda pixels, tile: ndimage.label(pixels, structure)[0],
        grid,
        MergeOptions("touching", connectivity),
    )

    if "t" in grid.axes:
        structure = structure[None] * np.array([0, 1, 0]).reshape(3, 1, 1, 1)
    assert_same_partition(merged, ndimage.label(mask, structure)[0])


def touching_cells(shape: tuple[int, ...], seed: int, n_cells: int) -> np.ndarray:
    """Cells that tile the whole image: each pixel belongs to the nearest seed."""
    rng = np.random.default_rng(seed)
    seeds = np.zeros(shape, dtype=np.int64)
    places = rng.choice(seeds.size, size=min(n_cells, seeds.size), replace=False)
    seeds.flat[places] = np.arange(1, len(places) + 1)
    nearest = ndimage.distance_transform_edt(
        seeds == 0, return_distances=False, return_indices=True
    )
    return seeds[tuple(nearest)]


def perfect_labels(truth: np.ndarray, seed: int):
    """A function that returns the truth in its tile, under ids of its own."""

    def segment(pixels, tile):
        cut = truth[tile.read.slices].reshape(pixels.shape)
        ids, index = np.unique(cut, return_inverse=True)
        shuffled = np.random.default_rng([seed, *tile.index]).permutation(len(ids)) + 1
        return np.where(cut == 0, 0, shuffled[index.reshape(cut.shape)])

    return segment


def connected_pieces(cells: np.ndarray) -> np.ndarray:
    """Give each connected piece of a cell an id of its own."""
    pieces = np.zeros_like(cells)
    n = 0
    for cell in np.unique(cells[cells > 0]):
        found, count = ndimage.label(cells == cell, np.ones((3,) * cells.ndim))
        pieces[found > 0] = found[found > 0] + n
        n += count
    return pieces


@pytest.mark.slow
@given(
    seed=st.integers(0, 2**32 - 1),
    ndim=st.integers(1, 3),
    tile=st.tuples(*[st.integers(2, 12)] * 3),
    holes=st.booleans(),
)
@settings(max_examples=examples(60))
def test_overlap_gives_back_touching_cells_that_were_labelled_perfectly(seed, ndim, tile, holes):
    shape = {1: (60,), 2: (23, 19), 3: (9, 11, 10)}[ndim]
    cells = touching_cells(shape, seed, n_cells=max(3, int(np.prod(shape)) // 20))
    if holes:
        cells[np.random.default_rng(seed).random(shape) < 0.1] = 0
    cells = connected_pieces(cells)
    extents = [
        max(s.stop - s.start for s in box) for box in ndimage.find_objects(cells) if box is not None
    ]
    halo = -(-max(extents, default=1) // 2)
    axes = "zyx"[-ndim:]
    grid = plan_grid(axes, shape, tile_shape=tile[:ndim], overlap=halo)

    merged = merge_in_memory(cells, perfect_labels(cells, seed), grid, MergeOptions("overlap", 1))

    assert_same_partition(merged, cells)


@given(case=cases(axes_choices=("yx", "zyx")))
@settings(max_examples=examples(40))
def test_overlap_never_joins_two_cells_that_were_labelled_perfectly(case):
    grid, seed = case
    cells = touching_cells(grid.shape, seed, n_cells=8)
    merged = merge_in_memory(cells, perfect_labels(cells, seed), grid, MergeOptions("overlap", 1))
    if all(h or n == 1 for h, n in zip(grid.halo, grid.grid_shape, strict=True)):
        for label in np.unique(merged[merged > 0]):
            assert len(np.unique(cells[merged == label])) == 1


@pytest.mark.parametrize("n_remainder", range(1, 8))
def test_a_remainder_smaller_than_the_halo_neither_fuses_nor_splits(n_remainder):
    cells = np.zeros((40 + n_remainder, 40), dtype=int)
    corners = [(y, x) for y in range(0, 40 + n_remainder, 3) for x in range(0, 40, 3)]
    for label, (y, x) in enumerate(corners, start=1):
        cells[y : y + 2, x : x + 2] = label
    grid = plan_grid("yx", cells.shape, tile_shape=20, overlap=8)
    merged = merge_in_memory(cells, perfect_labels(cells, 0), grid, MergeOptions("overlap", 1))
    assert_same_partition(merged, cells)
