"""Boundary pairs: every two staged labels that may be one object, with the evidence.

Faces, edges and corners that lie alike in their tiles are compared together (`_alike`), because one
by one the calls would take longer than the pixels:

1. `_Strips` lays the strips of both tiles over each other. Where both saw the same pixels,
   `_overlap` counts the pixels two labels have in common and the area of each; where a halo is 0
   the two abutting planes stand in for the pixels they would have shared.
2. `_contact` counts the pixel pairs in contact across the cores, and finds the smallest
   connectivity at which the two touch.
3. `_planes` counts the pixels of each label in its own core's plane at the face. A label that lies
   there and met no other is listed with id 0 for its partner: no rule joins it, and whoever judges
   the seams has to know of it.

Nothing is decided here: a rule reads the table (`patchworks_core.seams.rules`), so another rule
needs no new pass over the pixels.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from itertools import product
from math import prod
from typing import Any

import numpy as np
import numpy.typing as npt

from patchworks_core.seams.edge_table import EdgeTable
from patchworks_core.seams.paired_runs import PairedRuns
from patchworks_core.seams.strips import HIGH, LOW, Side, part_of_strip, slot_shape, smallest_strip
from patchworks_core.tiles.grid import Face, TileGrid
from patchworks_core.tiles.regions import Region

Array = npt.NDArray[Any]

StripReader = Callable[[Array, int, Side], Array]
"""Gives the strips of tiles on an axis and side, stacked: of indexes of shape (n, ndim)."""

_MAX_PIXELS = 2**20
"""Of the strips that are compared together."""

_MAX_IDS = 2**22
"""Of the faces that are compared together."""


def compare_faces(
    grid: TileGrid,
    tiles: Array,
    strips: StripReader,
    *,
    missing: Array | None = None,
    blank: Array | None = None,
) -> EdgeTable:
    """Compare what two tiles saw around each face, edge or corner that they share.

    Parameters
    ----------
    grid : TileGrid
    tiles : ndarray of int
        Shape (n, ndim): indexes of tiles, of which each is compared with its neighbours that come
        later in row-major order.
    strips : callable
        ``strips(indexes, axis, side)`` gives the strips of tiles.
    missing : ndarray of int, optional
        Numbers of tiles that are left out.
    blank : ndarray of bool, shape (n_tiles,), optional
        Of which tiles all strips are known to be background: nothing is read where no label of
        another could be in a row.

    Returns
    -------
    EdgeTable
        Per face one row per pair of labels with pixels in common or in contact, and one per label
        in the plane of the face that has neither.
    """
    tables = []
    for step in grid.steps:
        neighbours = tiles + step
        inside = ((neighbours >= 0) & (neighbours < grid.grid_shape)).all(axis=1)
        low, high = tiles[inside], neighbours[inside]
        if missing is not None and len(missing):
            left_out = [np.isin(_numbers(grid, index), missing) for index in (low, high)]
            low, high = low[~np.logical_or(*left_out)], high[~np.logical_or(*left_out)]
        if blank is not None:
            # A label beside none has a row where the two share a plane.
            without = np.logical_and if np.count_nonzero(step) == 1 else np.logical_or
            is_needed = ~without(*(blank[_numbers(grid, index)] for index in (low, high)))
            low, high = low[is_needed], high[is_needed]
        for alike in _alike(grid, low, high):
            face = Face(grid.tile(low[alike[0]]), grid.tile(high[alike[0]]), step)
            n = max(1, _MAX_PIXELS // prod(slot_shape(grid, smallest_strip(grid, step))))
            for first in range(0, len(alike), n):
                together = alike[first : first + n]
                tables.append(_compare(grid, face, low[together], high[together], strips))
    return EdgeTable.concatenate(tables)


def _numbers(grid: TileGrid, indexes: Array) -> Array:
    """Return the numbers of tiles."""
    numbers: Array = np.ravel_multi_index(tuple(indexes.T), grid.grid_shape)
    return numbers


def _alike(grid: TileGrid, low: Array, high: Array) -> list[Array]:
    """Group faces by where they lie in their tiles: all of a group have the same strip slices."""
    if not len(low):
        return []
    kinds = [_kinds(grid, axis) for axis in range(grid.ndim)]
    lies = [kinds[axis][i] for index in (low, high) for axis, i in enumerate(index.T)]
    _, group = np.unique(np.stack(lies, axis=1), axis=0, return_inverse=True)
    order = np.argsort(group.ravel(), kind="stable")
    return np.split(order, np.flatnonzero(np.diff(group.ravel()[order])) + 1)


def _kinds(grid: TileGrid, axis: int) -> Array:
    """Return a number for each tile along an axis, the same where core and halo are as long."""
    size, halo = grid.shape[axis], grid.halo[axis]
    start = np.arange(grid.grid_shape[axis]) * grid.tile_shape[axis]
    stop = np.minimum(start + grid.tile_shape[axis], size)
    shapes = [stop - start, np.minimum(start, halo), np.minimum(size - stop, halo)]
    _, kinds = np.unique(np.stack(shapes), axis=1, return_inverse=True)
    return kinds.ravel()


@dataclass(frozen=True, slots=True)
class _Strips:
    """The strips of both tiles at faces that lie alike, the faces along the first axis."""

    grid: TileGrid
    face: Face
    """One of them."""

    low: Array
    high: Array

    width: int
    """Above every local id."""

    def views(self, region_a: Region, region_b: Region) -> tuple[Array, Array]:
        """Return a region of each tile at `face`, and what lies alike at the others."""
        axis, low, high = _strips_at(self.grid, self.face)
        a = part_of_strip(self.grid, self.face.low, self.low, axis, low, region_a)
        return a, part_of_strip(self.grid, self.face.high, self.high, axis, high, region_b)

    def keys(self, ids: Array, at: Array) -> Array:
        """Return ids that are those of one face only, int64, of the pixels where `at` holds."""
        number = np.flatnonzero(at) // max(1, prod(at.shape[1:]))
        keys: Array = number * self.width + ids[at]
        return keys

    def count(self, ids: Array) -> Array:
        """Return the pixels of each key, those of background as 0."""
        keys = self.keys(ids, ids != 0)
        return np.bincount(keys, minlength=len(ids) * self.width)

    def pairs(self, a: Array, b: Array, at: Array) -> Array:
        """Pack the two ids of every pixel where `at` holds into one int64."""
        packed: Array = self.keys(a, at) * self.width + b[at]
        return packed


def _strips_at(grid: TileGrid, face: Face) -> tuple[int, Side, Side]:
    """Return which strips are compared: their axis, and the sides of the two tiles."""
    axis = smallest_strip(grid, face.step)
    return (axis, HIGH, LOW) if face.step[axis] > 0 else (axis, LOW, HIGH)


def _compare(grid: TileGrid, face: Face, low: Array, high: Array, strips: StripReader) -> EdgeTable:
    """Compare faces that lie as `face` does, between the tiles at `low` and `high`."""
    axis, *sides = _strips_at(grid, face)
    strips_a, strips_b = strips(low, axis, sides[0]), strips(high, axis, sides[1])
    width = int(max(strips_a.max(initial=0), strips_b.max(initial=0))) + 1
    # A pair is packed with its face and, in `_contact`, with the order of contact; pixels are
    # counted by face and id.
    most = max(1, min(2**59 // width**2, _MAX_IDS // width))
    if len(low) > most:
        half = len(low) // 2
        parts = (slice(half), slice(half, None))
        return EdgeTable.concatenate(
            _compare(grid, face, low[part], high[part], strips) for part in parts
        )
    both = _Strips(grid, face, strips_a, strips_b, width)
    regions = _regions_seen_by_both(grid, face)
    overlap = _overlap(both, *regions) if regions else _Overlap.nothing()
    contact = _contact(both)
    if not (face.is_plane or len(overlap.pairs) or len(contact["pairs"])):
        return EdgeTable.empty()  # as most corners are
    tiles = _numbers(grid, low), _numbers(grid, high)
    return _rows(face, tiles, overlap, contact, _planes(both), width=width)


@dataclass(frozen=True, slots=True)
class _Overlap:
    """Labels with pixels in common: packed pair, pixels in common, and the area of each."""

    pairs: Array
    intersection: Array
    areas_a: Array
    areas_b: Array

    @classmethod
    def nothing(cls) -> _Overlap:
        zero = np.zeros(0, dtype=np.int64)
        return cls(zero, zero, zero, zero)


def _regions_seen_by_both(grid: TileGrid, face: Face) -> tuple[Region, Region] | None:
    """Return the region each tile compares, or None where the two saw nothing in common.

    It is the same region for both, except where the halo is 0 and two abutting planes stand in.
    """
    low, high = [], []
    for axis, step in enumerate(face.step):
        halo, size = grid.halo[axis], grid.shape[axis]
        a, b = face.low.core, face.high.core
        if step == 0:
            bounds = (max(0, a.start[axis] - halo), min(size, a.stop[axis] + halo))
            low.append(bounds)
            high.append(bounds)
            continue
        border = a.stop[axis] if step > 0 else a.start[axis]
        if halo:
            bounds = (max(0, border - halo), min(size, border + halo))
            low.append(bounds)
            high.append(bounds)
        elif face.is_plane:
            low.append((a.stop[axis] - 1, a.stop[axis]))
            high.append((b.start[axis], b.start[axis] + 1))
        else:
            return None
    return _region(low), _region(high)


def _region(bounds: list[tuple[int, int]]) -> Region:
    return Region(tuple(a for a, _ in bounds), tuple(b for _, b in bounds))


def _overlap(strips: _Strips, region_a: Region, region_b: Region) -> _Overlap:
    """Count the pixels that each two labels have in common, and the pixels of each label."""
    runs = PairedRuns.of(*strips.views(region_a, region_b))
    n_keys = len(strips.low) * strips.width
    keys_a, keys_b = (runs.index * strips.width + ids for ids in (runs.a, runs.b))
    both = (runs.a != 0) & (runs.b != 0)
    packed = keys_a[both] * strips.width + runs.b[both]
    pairs, at = np.unique(packed, return_inverse=True)
    areas = (
        _pixels(keys[ids != 0], runs.lengths[ids != 0], n_keys)
        for keys, ids in ((keys_a, runs.a), (keys_b, runs.b))
    )
    return _Overlap(pairs, _pixels(at.ravel(), runs.lengths[both], len(pairs)), *areas)


def _pixels(keys: Array, lengths: Array, n_keys: int) -> npt.NDArray[np.int64]:
    """Return the pixels of each key, given runs; sums of float64 are exact up to 2**53 pixels."""
    return np.bincount(keys, weights=lengths, minlength=n_keys).astype(np.int64)


def _contact(strips: _Strips) -> dict[str, Array]:
    """Find the pairs of labels in contact, with the smallest connectivity and its pixel pairs."""
    keys, orders = [], []
    for region_a, region_b, order in _abutting_regions(strips.grid, strips.face):
        a, b = strips.views(region_a, region_b)
        touching = (a != 0) & (b != 0)
        if touching.any():
            packed = strips.pairs(a, b, touching)
            keys.append(packed)
            orders.append(np.full(len(packed), order, dtype=np.int8))
    if not keys:
        nothing = np.zeros(0, dtype=np.int64)
        return {"pairs": nothing, "connectivity": nothing.astype(np.int8), "contact": nothing}
    key = np.concatenate(keys)
    # Pack the order below the pair, so that one sort gives the counts per pair and order and
    # the smallest order of a pair comes first.
    key_and_order, counts = np.unique(key * 8 + np.concatenate(orders), return_counts=True)
    pairs, first = np.unique(key_and_order // 8, return_index=True)
    return {
        "pairs": pairs,
        "connectivity": (key_and_order[first] % 8).astype(np.int8),
        "contact": counts[first],
    }


def _abutting_regions(grid: TileGrid, face: Face) -> Iterator[tuple[Region, Region, int]]:
    """Yield the pixels of each core that are in contact, for every direction of contact.

    The direction is fixed on the axes that are crossed, and -1, 0 or 1 on the other spatial axes,
    clipped to the cores: beyond them lies another tile, which has a face of its own.
    """
    choices = [
        (step,) if step or axis not in grid.spatial else (-1, 0, 1)
        for axis, step in enumerate(face.step)
    ]
    for shift in product(*choices):
        low, high = [], []
        for axis, (step, move) in enumerate(zip(face.step, shift, strict=True)):
            start, stop = face.low.core.start[axis], face.low.core.stop[axis]
            if step:
                pixel = stop - 1 if step > 0 else start
                low.append((pixel, pixel + 1))
            else:
                low.append((max(start, start - move), min(stop, stop - move)))
            high.append((low[-1][0] + move, low[-1][1] + move))
        if all(a < b for a, b in low):
            yield _region(low), _region(high), sum(map(abs, shift))


def _planes(strips: _Strips) -> tuple[Array, Array]:
    """Count the pixels of each label in its core's plane at the face."""
    face = strips.face
    if not face.is_plane:
        nothing = np.zeros(len(strips.low) * strips.width, dtype=np.int64)
        return nothing, nothing
    low, high = (list(zip(c.start, c.stop, strict=True)) for c in (face.low.core, face.high.core))
    border = face.high.core.start[face.axis]
    low[face.axis], high[face.axis] = (border - 1, border), (border, border + 1)
    a, b = strips.views(_region(low), _region(high))
    return strips.count(a), strips.count(b)


def _rows(
    face: Face,
    tiles: tuple[Array, Array],
    overlap: _Overlap,
    contact: dict[str, Array],
    planes: tuple[Array, Array],
    *,
    width: int,
) -> EdgeTable:
    """Join what overlaps and what touches into one row per pair, and add who met none."""
    met = np.union1d(overlap.pairs, contact["pairs"]).astype(np.int64)
    met_b = met // width**2 * width + met % width
    lone_a = np.setdiff1d(np.flatnonzero(planes[0]), met // width)
    lone_b = np.setdiff1d(np.flatnonzero(planes[1]), met_b)
    of_b_alone = lone_b // width * width**2 + lone_b % width
    pairs = np.sort(np.concatenate([met, lone_a * width, of_b_alone]))
    number, key_a, b = pairs // width**2, pairs // width, pairs % width
    a, key_b = key_a % width, number * width + b
    n = len(pairs)

    def column(keys: Array, values: Array, dtype: type) -> Array:
        filled: Array = np.zeros(n, dtype=dtype)
        filled[np.searchsorted(pairs, keys)] = values
        return filled

    def areas(values: Array, keys: Array, ids: Array) -> Array:
        return np.where(ids > 0, values[keys], 0) if len(values) else np.zeros(n, dtype=np.int64)

    return EdgeTable(
        tile_a=tiles[0][number].astype(np.int64),
        id_a=a.astype(np.int32),
        tile_b=tiles[1][number].astype(np.int64),
        id_b=b.astype(np.int32),
        intersection=column(overlap.pairs, overlap.intersection, np.int64),
        area_a=areas(overlap.areas_a, key_a, a),
        area_b=areas(overlap.areas_b, key_b, b),
        contact=column(contact["pairs"], contact["contact"], np.int64),
        connectivity=column(contact["pairs"], contact["connectivity"], np.int8),
        axis=np.full(n, face.axis, dtype=np.int8),
        order=np.full(n, sum(map(abs, face.step)), dtype=np.int8),
        plane_a=planes[0][key_a],
        plane_b=planes[1][key_b],
    )
