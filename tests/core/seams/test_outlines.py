"""Outlines drawn from all tiles that saw them, against a plain drawing of the whole at once."""

from __future__ import annotations

from itertools import product

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import ndimage as ndi

from patchworks_core.pilot.in_memory import TilesInMemory
from patchworks_core.seams import outlines, views
from patchworks_core.seams.lookup import HaloOwners
from patchworks_core.seams.outlines import CRUMB, Pen, View, draw_core, spacing_of
from patchworks_core.seams.rules import MergeOptions
from patchworks_core.seams.strips import HIGH, LOW, strip_region
from patchworks_core.tiles.grid import TileGrid, plan_grid
from tests.core.oracles import assert_same_partition, edge_table, examples
from tests.core.seams.test_merge_properties import perfect_labels, touching_cells

FEATHERED = MergeOptions("overlap", 1, outline="feather")
CORES = MergeOptions("overlap", 1, outline="core")


def displaced(truth: np.ndarray, amount: float, seed: int):
    """A function that returns the truth moved by a random smooth field of each tile's own."""

    def segment(pixels, tile):
        rng = np.random.default_rng([seed, *tile.index])
        where = np.indices(pixels.shape, dtype=float)
        for axis in range(pixels.ndim):
            field = ndi.gaussian_filter(rng.standard_normal(pixels.shape), 3)
            where[axis] += amount * field / max(field.std(), 1e-9)
        cut = truth[tile.read.slices].reshape(pixels.shape)
        return ndi.map_coordinates(cut, where, order=0, mode="nearest")

    return segment


def plainly_drawn(grid: TileGrid, views: dict, spacing: tuple[float, ...]) -> np.ndarray:
    """Draw all objects over the whole image at once, from what every tile saw; slow and plain."""
    tiled = [a for a in range(grid.ndim) if grid.grid_shape[a] > 1 and grid.halo[a] >= 2]
    radius = max(1.0, min([12.0, *((grid.halo[a] - 1) * spacing[a] for a in tiled)]))
    seen_by, drawn = np.zeros(grid.shape, int), np.zeros(grid.shape, int)
    ramps = {}
    for tile, ids in views.values():
        seen_by[tile.read.slices] += 1
        drawn[tile.core.slices] = ids[tile.core.slices_from(tile.read.start)]
        ramp = np.ones(ids.shape)
        for axis in tiled:
            at, width = np.arange(ids.shape[axis]) + 0.5, 2 * grid.halo[axis]
            low = at / width if tile.read.start[axis] else np.ones(len(at))
            is_last = tile.read.stop[axis] == grid.shape[axis]
            high = np.ones(len(at)) if is_last else at[::-1] / width
            weight = np.clip(np.minimum(low, high), 1e-3, 1)
            ramp *= weight.reshape([-1 if k == axis else 1 for k in range(grid.ndim)])
        ramps[tile.number] = ramp
    shared = seen_by > 1
    best, first = np.full(grid.shape, -1e3), np.zeros(grid.shape, int)
    for g in sorted({int(g) for _, ids in views.values() for g in np.unique(ids) if g}):
        total, weights = np.zeros(grid.shape), np.zeros(grid.shape)
        for tile, ids in views.values():
            mine = ids == g
            if not mine.any():
                continue
            padded = np.pad(mine, 1, mode="edge")
            signed = (
                ndi.distance_transform_edt(padded, spacing) if not padded.all() else 99 * padded
            )
            if not padded.all():
                signed = signed - ndi.distance_transform_edt(~padded, spacing)
            signed = signed[(slice(1, -1),) * grid.ndim]
            signed = np.clip(signed - 0.5 * np.sign(signed), -radius, radius)
            total[tile.read.slices] += ramps[tile.number] * signed
            weights[tile.read.slices] += ramps[tile.number]
        score = np.where(weights > 0, total / np.maximum(weights, 1e-12), -1e3)
        better = score > best
        best[better], first[better] = score[better], g
    some, weights = np.zeros(grid.shape), np.zeros(grid.shape)
    for tile, ids in views.values():
        some[tile.read.slices] += ramps[tile.number] * (ids > 0)
        weights[tile.read.slices] += ramps[tile.number]
    inside = (best > 0) | ((some >= 0.5 * weights) & (best > -3))
    drawn[shared] = np.where(inside, first, 0)[shared]
    return drawn


def drawn_tile_by_tile(grid: TileGrid, views: dict, spacing: tuple[float, ...]) -> np.ndarray:
    """Draw every core on its own, from the tile and the strips of its neighbours."""
    pen = Pen(grid, spacing)
    drawn = np.zeros(grid.shape, int)

    def view(tile, region):
        ids = views[tile.index][1].astype(np.int32)
        occurring = np.unique(ids)
        part = ids[region.slices_from(tile.read.start)]
        return View(tile, region, part, occurring[occurring > 0])

    for tile, _ in views.values():
        others = []
        for step in product(*[(-1, 0, 1) if a in pen.axes else (0,) for a in range(grid.ndim)]):
            index = tuple(i + s for i, s in zip(tile.index, step, strict=True))
            if any(step) and index in views:
                other, axis = views[index][0], next(a for a, s in enumerate(step) if s)
                side = LOW if step[axis] > 0 else HIGH
                others.append(view(other, strip_region(grid, other, axis, side)))
        drawn[tile.core.slices] = draw_core(view(tile, tile.read), others, pen)
    return drawn


def views_of(truth: np.ndarray, grid: TileGrid, seed: int, amount: float = 1.5) -> dict:
    """Return what every tile saw, as the same objects with outlines of its own."""
    segment = displaced(truth, amount, seed)
    return {t.index: (t, segment(truth[t.read.slices], t)) for t in grid.tiles()}


@pytest.mark.parametrize(
    ("shape", "tile", "halo", "spacing"),
    [
        ((60, 70), 24, 6, (1.0, 1.0)),
        ((60, 70), 24, (9, 4), (1.0, 1.0)),
        ((60, 70), 20, 6, (2.5, 1.0)),
        ((60, 70), (60, 20), 5, (1.0, 1.0)),
        ((20, 34, 30), (10, 16, 16), (3, 5, 5), (1.0, 1.0, 1.0)),
        ((20, 34, 30), (10, 16, 16), (3, 5, 5), (3.0, 1.0, 1.0)),
    ],
)
@pytest.mark.parametrize("seed", range(2))
def test_tile_by_tile_is_what_drawing_the_whole_image_at_once_gives(
    monkeypatch, shape, tile, halo, spacing, seed
):
    truth = touching_cells(shape, seed, n_cells=25)
    truth[truth % 4 == 0] = 0
    grid = plan_grid("zyx"[-len(shape) :], shape, tile_shape=tile, overlap=halo)
    views = views_of(truth, grid, seed)
    for step in ("_without_crumbs", "_with_all_objects"):  # which the plain one does not know
        monkeypatch.setattr(outlines, step, lambda *args: None)
    plain = plainly_drawn(grid, views, spacing)
    np.testing.assert_array_equal(drawn_tile_by_tile(grid, views, spacing), plain)


@given(seed=st.integers(0, 2**32 - 1), ndim=st.integers(2, 3), holes=st.booleans())
@settings(max_examples=examples(15))
def test_where_tiles_agree_not_a_pixel_changes(seed, ndim, holes):
    shape = {2: (40, 46), 3: (14, 20, 18)}[ndim]
    truth = touching_cells(shape, seed, n_cells=20)
    if holes:
        truth[np.random.default_rng(seed).random(shape) < 0.2] = 0
    grid = plan_grid("zyx"[-ndim:], shape, tile_shape=12 if ndim == 2 else 8, overlap=3)
    tiles = TilesInMemory.stage(truth, perfect_labels(truth, seed), grid)
    np.testing.assert_array_equal(tiles.merged(FEATHERED), tiles.merged(CORES))


@pytest.mark.slow
@given(
    seed=st.integers(0, 2**32 - 1),
    kind=st.sampled_from(["2-D", "3-D", "one tiled axis", "deep"]),
    disputed=st.sampled_from([0.0, 0.2, 1.0]),
)
@settings(max_examples=examples(15))
def test_leaving_out_what_all_views_agree_on_draws_the_same(seed, kind, disputed):
    shape, tile, halo = {
        "2-D": ((40, 46), 12, 4),
        "3-D": ((14, 20, 18), 8, 3),
        "one tiled axis": ((30, 40), (30, 12), 5),
        "deep": ((14, 24, 18), (5, 12, 8), (1, 3, 2)),
    }[kind]
    truth = touching_cells(shape, seed, n_cells=20)
    truth[truth % 4 == 0] = 0
    rng = np.random.default_rng(seed)
    grid = plan_grid("zyx"[-len(shape) :], shape, tile_shape=tile, overlap=halo)
    strays = {tile.index for tile in grid.tiles() if rng.random() < disputed}
    empty = tuple(int(rng.integers(n)) for n in grid.grid_shape)
    agreeing, moved = perfect_labels(truth, seed), displaced(truth, 1.5, seed)

    def segment(pixels, tile):
        labels = (moved if tile.index in strays else agreeing)(pixels, tile)
        return labels * (tile.index != empty or disputed == 0)

    tiles = TilesInMemory.stage(truth, segment, grid)
    drawn = tiles.merged(FEATHERED)
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(views._Reader, "agree", lambda *args: False)
        np.testing.assert_array_equal(drawn, tiles.merged(FEATHERED))


def test_nothing_is_drawn_where_all_views_agree(monkeypatch):
    truth = touching_cells((40, 46), 2, n_cells=20)
    grid = plan_grid("yx", truth.shape, tile_shape=12, overlap=4)
    n_drawn = []

    def draw(own, others, pen, *, third):
        n_drawn.append(own.tile.index)
        return draw_core(own, others, pen, third=third)

    monkeypatch.setattr(views, "draw_core", draw)
    TilesInMemory.stage(truth, perfect_labels(truth, 2), grid).merged(FEATHERED)
    assert n_drawn == []

    def with_one_pixel(pixels, tile):
        labels = perfect_labels(truth, 2)(pixels, tile)
        if tile.index == (1, 1):
            labels[4, 0] = 0  # first row of the core, four pixels before its first column
        return labels

    TilesInMemory.stage(truth, with_one_pixel, grid).merged(FEATHERED)
    assert sorted(n_drawn) == [(1, 0)]


@pytest.mark.parametrize("fraction", [0.25, 0.5, 1])
def test_perfect_labels_are_neither_split_nor_fused_nor_redrawn(fraction):
    truth = touching_cells((90, 90), 3, n_cells=40)
    grid = plan_grid("yx", truth.shape, tile_shape=30, overlap=round(16 * fraction))
    tiles = TilesInMemory.stage(truth, perfect_labels(truth, 1), grid)
    assert_same_partition(tiles.merged(FEATHERED), truth)


def jumps(labels: np.ndarray, at: int) -> int:
    """Count the pixels on both sides of a vertical face that have another label behind it."""
    return int((labels[:, at - 1] != labels[:, at]).sum())


def test_outlines_jump_less_at_a_face():
    truth = touching_cells((120, 60), 1, n_cells=30)
    grid = plan_grid("yx", truth.shape, tile_shape=(-1, 30), overlap=10)
    tiles = TilesInMemory.stage(truth, displaced(truth, 2.5, 4), grid)
    before, after = jumps(tiles.merged(CORES), 30), jumps(tiles.merged(FEATHERED), 30)
    assert after <= 0.45 * before


@pytest.mark.parametrize("seed", range(8))
def test_no_object_is_drawn_away(seed):
    truth = touching_cells((64, 64), seed, n_cells=60)
    truth[truth % 5 == 0] = 0
    grid = plan_grid("yx", truth.shape, tile_shape=16, overlap=5)
    tiles = TilesInMemory.stage(truth, displaced(truth, 3, seed), grid)
    before, after = tiles.merged(CORES), tiles.merged(FEATHERED)
    assert np.unique(after).tolist() == np.unique(before).tolist()
    assert (before != after).any()


def test_what_a_neighbour_alone_saw_as_one_object_stays_where_it_would_vanish():
    grid = plan_grid("yx", (20, 40), tile_shape=20, overlap=6)
    whole = np.ones((20, 40), np.int32)
    left, right = whole[:, :26].copy(), whole[:, 14:].copy()
    right[8:11, 6:9] = 2  # a splinter in the right core that the left saw as part of the large one
    low, high = grid.tile((0, 0)), grid.tile((0, 1))
    views = {(0, 0): (low, left), (0, 1): (high, right)}
    assert (drawn_tile_by_tile(grid, views, (1.0, 1.0)) == 2).any()


def test_a_loose_crumb_goes_to_the_object_that_comes_second(monkeypatch):
    grid = plan_grid("yx", (40, 80), tile_shape=40, overlap=12)
    left, right = np.ones((40, 52), np.int32), np.ones((40, 52), np.int32)
    left[:, 36:], right[:, 8:] = 2, 2
    left[20:22, 28:30] = 2  # off its object, and the right tile saw nothing of the kind
    views = {
        (0, 0): (grid.tile((0, 0)), left),
        (0, 1): (grid.tile((0, 1)), right),
    }
    drawn = drawn_tile_by_tile(grid, views, (1.0, 1.0))
    pieces, _ = ndi.label(drawn == 2)
    assert (np.bincount(pieces.ravel())[1:] > CRUMB).all()
    monkeypatch.setattr(outlines, "CRUMB", 0)
    pieces, _ = ndi.label(drawn_tile_by_tile(grid, views, (1.0, 1.0)) == 2)
    assert (np.bincount(pieces.ravel())[1:] <= 8).any()


def test_a_label_seen_only_in_a_halo_is_its_neighbours_that_holds_half_of_it():
    rows = [
        (0, 3, 1, 1, 6, 10, 50),  # tile 0 has 2 labels in its core: 3 was seen in its halo
        (0, 3, 1, 2, 4, 10, 50),
        (0, 4, 1, 1, 4, 10, 50),  # less than half
        (0, 5, 1, 9, 10, 10, 10),  # whose partner is in no core either
        (0, 1, 2, 7, 5, 50, 5),
    ]
    owners = HaloOwners.of(edge_table(rows), np.array([2, 3, 4]))
    assert owners.of_tile(0, 2).tolist() == [2 + 1]
    assert owners.of_tile(1, 3).tolist() == []
    assert owners.of_tile(2, 4).tolist() == [0, 0, 1]


def test_lengths_of_pixels_are_relative_to_the_finest_axis():
    grid = TileGrid("tzyx", (3, 8, 8, 8), (1, 4, 4, 4), (0, 2, 2, 2))
    assert spacing_of(grid, {"z": 2.0, "y": 0.5, "x": 0.5}) == (1.0, 4.0, 1.0, 1.0)
    assert spacing_of(grid, {"y": 0.5, "x": 0.5}) == (1.0, 1.0, 1.0, 1.0)
