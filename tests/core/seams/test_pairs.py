"""The evidence of pairs, held against counting pixel by pixel."""

from __future__ import annotations

from collections import Counter
from dataclasses import fields
from itertools import product

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from patchworks_core.seams.edge_table import EdgeTable
from patchworks_core.seams.pairs import compare_faces
from patchworks_core.seams.strips import cut_strip
from patchworks_core.tiles.grid import TileGrid, plan_grid


@st.composite
def staged(draw):
    """A grid, and what each tile saw over all it read, by index."""
    axes = draw(st.sampled_from(["x", "yx", "zyx", "tyx"]))
    longest = {1: 30, 2: 14, 3: 7}[len(axes)]
    shape = [draw(st.integers(1, longest)) for _ in axes]
    largest = [1 if axis == "t" else n for axis, n in zip(axes, shape, strict=True)]
    tile_shape = [draw(st.integers(1, n)) for n in largest]
    halo = [draw(st.integers(0, 4)) for _ in axes]
    grid = plan_grid(axes, shape, tile_shape=tile_shape, overlap=halo)
    rng = np.random.default_rng(draw(st.integers(0, 99)))
    return grid, {tile.index: rng.integers(0, 4, tile.read.shape) for tile in grid.tiles()}


def compare(grid: TileGrid, seen: dict, missing=(), blank=None, asked=None) -> EdgeTable:
    def strips(tiles, axis, side):
        indexes = list(map(tuple, tiles.tolist()))
        if asked is not None:
            asked.update(indexes)
        return np.stack([cut_strip(grid, grid.tile(i), seen[i], axis, side) for i in indexes])

    tiles = np.array([tile.index for tile in grid.tiles()])
    return compare_faces(grid, tiles, strips, missing=np.array(missing, dtype=int), blank=blank)


def pixel_by_pixel(grid: TileGrid, seen: dict) -> list[tuple[int, ...]]:
    """Return the rows of the edge table as a person would count them."""
    rows = []
    for low, step in product(grid.tiles(), grid.steps):
        index = tuple(np.add(low.index, step))
        if index not in seen:
            continue
        high = grid.tile(index)
        crossed = [axis for axis, s in enumerate(step) if s]

        def at(tile, place):
            return int(seen[tile.index][tuple(np.subtract(place, tile.read.start))])

        both, area_a, area_b = Counter(), Counter(), Counter()
        for place, partner in _seen_by_both(grid, low, high, step):
            a, b = at(low, place), at(high, partner)
            area_a[a] += 1
            area_b[b] += 1
            both[a, b] += bool(a and b)
        contact = Counter()
        for place in product(*map(range, low.core.start, low.core.stop)):
            for move in product((-1, 0, 1), repeat=grid.ndim):
                is_across = all(m == s for m, s in zip(move, step, strict=True) if s)
                is_spatial = all(axis in grid.spatial for axis, m in enumerate(move) if m)
                other = tuple(np.add(place, move))
                if is_across and is_spatial and _within(high.core, other):
                    a, b = at(low, place), at(high, other)
                    contact[a, b, sum(map(abs, move))] += bool(a and b)
        plane_a, plane_b = Counter(), Counter()
        if len(crossed) == 1:
            plane_a = _plane(low, crossed[0], low.core.stop[crossed[0]] - 1, at)
            plane_b = _plane(high, crossed[0], high.core.start[crossed[0]], at)
        pairs = {pair for pair, n in both.items() if n} | {k[:2] for k, n in contact.items() if n}
        pairs |= {(a, 0) for a in plane_a if a and a not in {p for p, _ in pairs}}
        pairs |= {(0, b) for b in plane_b if b and b not in {q for _, q in pairs}}
        for a, b in pairs:
            orders = [order for order in (1, 2, 3) if contact[a, b, order]]
            least = min(orders, default=0)
            rows.append(
                (
                    *(low.number, a, high.number, b, both[a, b], a and area_a[a], b and area_b[b]),
                    *(contact[a, b, least], least, crossed[0], len(crossed)),
                    *(a and plane_a[a], b and plane_b[b]),
                )
            )
    return sorted(rows)


def _within(core, place):
    return all(a <= p < b for a, p, b in zip(core.start, place, core.stop, strict=True))


def _plane(tile, axis, at_face, at):
    core = [range(a, b) for a, b in zip(tile.core.start, tile.core.stop, strict=True)]
    core[axis] = range(at_face, at_face + 1)
    return Counter(at(tile, place) for place in product(*core))


def _seen_by_both(grid, low, high, step):
    """Yield each pixel that both read around the face; without a halo, those that abut."""
    bands, shift = [], [0] * grid.ndim
    for axis, s in enumerate(step):
        start, stop = low.core.start[axis], low.core.stop[axis]
        if s == 0:
            bands.append(range(low.read.start[axis], low.read.stop[axis]))
            continue
        border, halo = (stop if s > 0 else start), grid.halo[axis]
        if halo:
            reach = max(0, border - halo), min(grid.shape[axis], border + halo)
        elif sum(map(abs, step)) == 1:
            reach, shift[axis] = (border - 1, border), 1
        else:
            return
        bands.append(range(*reach))
    for place in product(*bands):
        yield place, tuple(np.add(place, shift))


@given(staged())
@settings(max_examples=60)
def test_the_table_is_what_counting_pixels_gives(case):
    grid, seen = case
    table = compare(grid, seen)
    columns = [getattr(table, field.name).tolist() for field in fields(table)]
    assert sorted(zip(*columns, strict=True)) == pixel_by_pixel(grid, seen)


def test_tiles_that_are_missing_have_no_row():
    grid = plan_grid("yx", (12, 12), tile_shape=4, overlap=1)
    seen = {tile.index: np.ones(tile.read.shape, int) for tile in grid.tiles()}
    whole, holed = compare(grid, seen), compare(grid, seen, missing=[4])
    assert 4 in whole.tile_a
    kept = (whole.tile_a != 4) & (whole.tile_b != 4)
    assert holed.to_arrow().equals(whole.select(kept).to_arrow())


@given(staged(), st.floats(0, 1), st.integers(0, 99))
@settings(max_examples=60)
def test_blank_tiles_are_left_out_without_losing_a_row(case, share, seed):
    grid, seen = case
    blank = np.random.default_rng(seed).random(grid.n_tiles) < share
    for tile in grid.tiles():
        if blank[tile.number]:
            seen[tile.index][...] = 0
    table = compare(grid, seen, blank=blank)
    columns = [getattr(table, field.name).tolist() for field in fields(table)]
    assert sorted(zip(*columns, strict=True)) == pixel_by_pixel(grid, seen)


def test_of_blank_tiles_side_by_side_nothing_is_read():
    grid = plan_grid("yx", (12, 20), tile_shape=4, overlap=1)
    seen = {tile.index: np.zeros(tile.read.shape, int) for tile in grid.tiles()}
    seen[0, 0][...] = 1
    blank = np.array([tile.index != (0, 0) for tile in grid.tiles()])
    asked: set[tuple[int, ...]] = set()
    table = compare(grid, seen, blank=blank, asked=asked)
    assert len(table) == 2
    assert asked == {(0, 0), (0, 1), (1, 0)}  # the corner shows no label of one alone


def test_ids_beyond_what_is_packed_with_many_faces_are_compared_in_parts():
    grid = plan_grid("x", (400,), tile_shape=4, overlap=2)
    seen = {tile.index: np.full(tile.read.shape, tile.number % 5 + 1) for tile in grid.tiles()}
    seen[50,][:] = 2**25  # its square leaves room for few faces in an int64
    pair = compare(grid, seen)
    pair = pair.select(pair.is_pair)
    assert len(pair) == 99
    assert (pair.id_a == [seen[n,][0] for n in range(99)]).all()
    assert (pair.id_b == [seen[n + 1,][0] for n in range(99)]).all()
    assert (pair.intersection == 4).all()
