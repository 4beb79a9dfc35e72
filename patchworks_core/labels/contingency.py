"""Pixels that two label images have in common, per pair of objects, and who lies in whom.

1. `count_pairs` counts the pairs of ids in one region.
2. `PairCounts` adds up regions, and holds one row per pair that occurs.
3. `Relations` derives which object of ``b`` each object of ``a`` belongs to.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from patchworks_core.stage.tile_labels import number_ids

if TYPE_CHECKING:
    import pyarrow as pa

Array = npt.NDArray[Any]

_PENDING_ROWS = 1 << 20
"""Rows that wait to be added up: 32 MB."""


def count_pairs(a: Array, b: Array) -> Array:
    """Count the pixels of each pair of ids that occurs, background with background aside.

    Parameters
    ----------
    a, b : ndarray of int
        Labels >= 0 of the same shape.

    Returns
    -------
    ndarray of int64, shape (n, 3)
        Id in `a`, id in `b`, pixels; 0 is background.

    Examples
    --------
    >>> count_pairs(np.array([7, 7, 0, 0]), np.array([3, 0, 0, 3]))
    array([[0, 3, 1],
           [7, 0, 1],
           [7, 3, 1]])
    """
    ids_a, rows = number_ids(a)
    ids_b, columns = number_ids(b)
    keys = rows.astype(np.int64) * len(ids_b) + columns
    pairs, counts = np.unique(keys[keys > 0], return_counts=True)
    row, column = np.divmod(pairs, len(ids_b))
    return np.stack([ids_a[row], ids_b[column], counts], axis=1).astype(np.int64)


class PairCounts:
    """Counts of pairs, added up region by region; memory grows with the pairs that occur."""

    def __init__(self) -> None:
        self._sums = np.zeros((0, 4), np.int64)
        self._pending: list[Array] = []
        self._n_pending = 0

    def add(self, plane: int, pairs: Array) -> None:
        """Add what `count_pairs` returned for a region of one time and channel."""
        self._pending.append(np.insert(pairs, 0, plane, axis=1))
        self._n_pending += len(pairs)
        if self._n_pending > max(_PENDING_ROWS, len(self._sums)):
            self.sums()

    def sums(self) -> Array:
        """Return int64, shape (n, 4): plane, id in a, id in b, pixels; sorted, each pair once."""
        rows = np.concatenate([self._sums, *self._pending])
        rows = rows[np.lexsort((rows[:, 2], rows[:, 1], rows[:, 0]))]
        starts = _starts(rows[:, :3])
        self._sums = rows[starts]
        if len(starts):
            self._sums[:, 3] = np.add.reduceat(rows[:, 3], starts)
        self._pending, self._n_pending = [], 0
        return self._sums


def _starts(rows: Array) -> Array:
    """Return where a row differs from the one before it."""
    new = np.ones(len(rows), bool)
    new[1:] = (rows[1:] != rows[:-1]).any(axis=1)
    return np.flatnonzero(new)


@dataclass(frozen=True, slots=True, eq=False)
class Relations:
    """How the objects of two label images overlap."""

    counts: Array
    """int64, shape (n, 4): plane, id in a, id in b, pixels; as `PairCounts.sums`."""

    plane_axes: dict[str, int]
    """Length of each axis that is not spatial; a plane is one index along all of them."""

    min_fraction: float = 0.0
    """Least share of an object of a that must lie in an object of b to belong to it."""

    @property
    def contingency(self) -> pa.Table:
        """Every pair that has a pixel in common.

        `t` and `c` where there are such axes, `a`, `b` and `overlap_pixels`. Id 0 is background,
        so that the rows of an id add up to its size.
        """
        plane, a, b, overlap = self.counts.T
        return self._table(plane, {"a": a, "b": b, "overlap_pixels": overlap})

    def to_table(self) -> pa.Table:
        """Return one row per object of a, by ascending id within each time and channel.

        Returns
        -------
        pyarrow.Table
            `t` and `c` where there are such axes; `a`, `area_a_pixels` (a volume, where there is
            z); `b`, the object that has most of it, the smaller id of two that have the same, 0
            where none has `min_fraction` of it; `area_b_pixels`, `overlap_pixels`,
            `fraction_of_a` (overlap over area of a) and `iou` with that b, 0 without one;
            `n_b`, the objects of b that have a pixel of it, however few.
        """
        inside = self.counts[(self.counts[:, 1] > 0) & (self.counts[:, 2] > 0)]
        objects, area = _totals(self.counts, 1)
        objects_b, areas_b = _totals(self.counts, 2)
        # by plane and a, then by falling overlap, then by b: the first of each a is its best
        order = np.lexsort((inside[:, 2], -inside[:, 3], inside[:, 1], inside[:, 0]))
        inside = inside[order]
        starts = _starts(inside[:, :2])
        rows = _positions(objects, inside[starts][:, [0, 1]])
        columns = {
            name: np.zeros(len(objects), np.int64) for name in ("b", "area_b", "overlap", "n_b")
        }
        columns["n_b"][rows] = np.diff(np.append(starts, len(inside)))
        best = inside[starts]
        kept = best[:, 3] / area[rows] >= self.min_fraction
        best, rows = best[kept], rows[kept]
        columns["b"][rows], columns["overlap"][rows] = best[:, 2], best[:, 3]
        columns["area_b"][rows] = areas_b[_positions(objects_b, best[:, [0, 2]])]
        overlap = columns["overlap"]
        union = area + columns["area_b"] - overlap
        return self._table(
            objects[:, 0],
            {
                "a": objects[:, 1],
                "area_a_pixels": area,
                "b": columns["b"],
                "area_b_pixels": columns["area_b"],
                "overlap_pixels": overlap,
                "fraction_of_a": overlap / area,
                "iou": overlap / union,
                "n_b": columns["n_b"],
            },
        )

    def _table(self, plane: Array, columns: dict[str, Array]) -> pa.Table:
        """Return columns with the plane spelled out."""
        import pyarrow as pa

        where: dict[str, Array] = {}
        if self.plane_axes:
            indexes = np.unravel_index(plane, tuple(self.plane_axes.values()))
            where = {
                name: i.astype(np.int64) for name, i in zip(self.plane_axes, indexes, strict=True)
            }
        columns = {**where, **columns}
        return pa.table({name: np.ascontiguousarray(values) for name, values in columns.items()})


def _totals(counts: Array, column: int) -> tuple[Array, Array]:
    """Return (plane, id) of each object of one image, sorted, and its pixels."""
    rows = counts[counts[:, column] > 0][:, [0, column, 3]]
    rows = rows[np.lexsort((rows[:, 1], rows[:, 0]))]
    starts = _starts(rows[:, :2])
    if not len(starts):
        return rows[:, :2], rows[:, 2]
    return rows[starts][:, :2], np.add.reduceat(rows[:, 2], starts)


def _positions(objects: Array, wanted: Array) -> Array:
    """Return where each wanted (plane, id) is among sorted objects; all are there."""
    _, inverse = np.unique(np.concatenate([objects, wanted]), axis=0, return_inverse=True)
    # every wanted row occurs among the objects, so an object's rank is its position
    return np.asarray(inverse).reshape(-1)[len(objects) :]
