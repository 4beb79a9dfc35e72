"""Boundary pairs: every two staged labels that may be one object, with the evidence.

For each face, edge and corner that two tiles share:

1. `compare_face` lays the two tiles' strips over each other. Where both saw the same pixels it
   counts the pixels two labels have in common and the area of each (`_overlap`); where a halo is 0
   the two abutting planes stand in for the pixels they would have shared.
2. It counts the pixel pairs in contact across the cores (`_contact`), and the smallest connectivity
   at which the two touch.
3. It counts the pixels of each label in its own core's plane at the face (`_planes`). A label that
   lies there and met no other is listed with id 0 for its partner: no rule joins it, and whoever
   judges the seams has to know of it.

Nothing is decided here: a rule reads the table (`patchworks_core.seams.rules`), so another rule
needs no new pass over the pixels.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from itertools import product
from typing import Any

import numpy as np

from patchworks_core.seams.edge_table import EdgeTable
from patchworks_core.seams.strips import HIGH, LOW, Side, part_of_strip
from patchworks_core.tiles.grid import Face, TileGrid
from patchworks_core.tiles.regions import Region

StripReader = Callable[[tuple[int, ...], int, Side], np.ndarray[Any, Any]]
"""Gives the strip of the tile at an index, on an axis and side."""


def compare_face(grid: TileGrid, face: Face, strips: StripReader) -> EdgeTable:
    """Compare what two tiles saw around the face, edge or corner they share.

    Parameters
    ----------
    grid : TileGrid
    face : Face
    strips : callable
        ``strips(index, axis, side)`` gives the strip of the tile at `index`.

    Returns
    -------
    EdgeTable
        One row per pair of labels with pixels in common or in contact, by id, and one per label
        in the plane of the face that has neither.
    """
    axis = face.axis
    strip_a = strips(face.low.index, axis, HIGH)
    strip_b = strips(face.high.index, axis, LOW)

    def views(region_a: Region, region_b: Region) -> tuple[np.ndarray, np.ndarray]:
        a = part_of_strip(grid, face.low, strip_a, axis, HIGH, region_a)
        return a, part_of_strip(grid, face.high, strip_b, axis, LOW, region_b)

    width = int(max(strip_a.max(initial=0), strip_b.max(initial=0))) + 1
    regions = _regions_seen_by_both(grid, face)
    overlap = _overlap(*views(*regions), width=width) if regions else _Overlap.nothing()
    contact = _contact(grid, face, views, width=width)
    if not (face.is_plane or len(overlap.pairs) or len(contact["pairs"])):
        return EdgeTable.empty()  # as most corners are
    planes = _planes(face, views, width=width)
    return _rows(face, overlap, contact, planes, width=width)


@dataclass(frozen=True, slots=True)
class _Overlap:
    """Labels with pixels in common: packed pair, pixels in common, and the area of each."""

    pairs: np.ndarray[Any, Any]
    intersection: np.ndarray[Any, Any]
    areas_a: np.ndarray[Any, Any]
    areas_b: np.ndarray[Any, Any]

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


def _overlap(a: np.ndarray[Any, Any], b: np.ndarray[Any, Any], *, width: int) -> _Overlap:
    """Count the pixels that each two labels have in common, and the pixels of each label."""
    both = (a != 0) & (b != 0)
    pairs, intersection = np.unique(_pack(a[both], b[both], width), return_counts=True)
    return _Overlap(
        pairs,
        intersection,
        np.bincount(a.ravel(), minlength=width),
        np.bincount(b.ravel(), minlength=width),
    )


def _pack(a: np.ndarray[Any, Any], b: np.ndarray[Any, Any], width: int) -> np.ndarray[Any, Any]:
    """Pack two local ids below `width` into one int64 key."""
    packed: np.ndarray[Any, Any] = a.astype(np.int64) * width + b
    return packed


def _contact(
    grid: TileGrid,
    face: Face,
    views: Callable[[Region, Region], tuple[np.ndarray, np.ndarray]],
    *,
    width: int,
) -> dict[str, np.ndarray[Any, Any]]:
    """Find the pairs of labels in contact, with the smallest connectivity and its pixel pairs."""
    keys, orders = [], []
    for region_a, region_b, order in _abutting_regions(grid, face):
        a, b = views(region_a, region_b)
        touching = (a != 0) & (b != 0)
        if touching.any():
            packed = _pack(a[touching], b[touching], width)
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


def _planes(
    face: Face,
    views: Callable[[Region, Region], tuple[np.ndarray, np.ndarray]],
    *,
    width: int,
) -> tuple[np.ndarray[Any, Any], np.ndarray[Any, Any]]:
    """Count the pixels of each label in its core's plane at the face, background apart."""
    counts = np.zeros((2, width), dtype=np.int64)
    if face.is_plane:
        low, high = (
            list(zip(c.start, c.stop, strict=True)) for c in (face.low.core, face.high.core)
        )
        border = face.high.core.start[face.axis]
        low[face.axis], high[face.axis] = (border - 1, border), (border, border + 1)
        for row, view in zip(counts, views(_region(low), _region(high)), strict=True):
            row[:] = np.bincount(view.ravel(), minlength=width)
        counts[:, 0] = 0
    return counts[0], counts[1]


def _rows(
    face: Face,
    overlap: _Overlap,
    contact: dict[str, np.ndarray[Any, Any]],
    planes: tuple[np.ndarray[Any, Any], np.ndarray[Any, Any]],
    *,
    width: int,
) -> EdgeTable:
    """Join what overlaps and what touches into one row per pair, and add who met none."""
    met = np.union1d(overlap.pairs, contact["pairs"]).astype(np.int64)
    lone_a = np.setdiff1d(np.flatnonzero(planes[0]), met // width)
    lone_b = np.setdiff1d(np.flatnonzero(planes[1]), met % width)
    pairs = np.sort(np.concatenate([met, lone_a * width, lone_b]))
    a, b = pairs // width, pairs % width
    n = len(pairs)

    def column(keys: np.ndarray, values: np.ndarray, dtype: type) -> np.ndarray[Any, Any]:
        filled: np.ndarray[Any, Any] = np.zeros(n, dtype=dtype)
        filled[np.searchsorted(pairs, keys)] = values
        return filled

    def areas(values: np.ndarray, ids: np.ndarray) -> np.ndarray[Any, Any]:
        return np.where(ids > 0, values[ids], 0) if len(values) else np.zeros(n, dtype=np.int64)

    return EdgeTable(
        tile_a=np.full(n, face.low.number, dtype=np.int64),
        id_a=a.astype(np.int32),
        tile_b=np.full(n, face.high.number, dtype=np.int64),
        id_b=b.astype(np.int32),
        intersection=column(overlap.pairs, overlap.intersection, np.int64),
        area_a=areas(overlap.areas_a, a),
        area_b=areas(overlap.areas_b, b),
        contact=column(contact["pairs"], contact["contact"], np.int64),
        connectivity=column(contact["pairs"], contact["connectivity"], np.int8),
        axis=np.full(n, face.axis, dtype=np.int8),
        order=np.full(n, sum(map(abs, face.step)), dtype=np.int8),
        plane_a=planes[0][a],
        plane_b=planes[1][b],
    )
