"""Two label images of one image: which nucleus lies in which cell.

1. `count_pairs` counts the pairs of ids in one region.
2. `PairCounts` adds up regions, and holds one row per pair that occurs.
3. `Relations` derives which object of ``b`` each object of ``a`` belongs to.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Unpack

import numpy as np
import numpy.typing as npt

from patchworks_core.calls.values import html_table
from patchworks_core.errors import ImageError
from patchworks_core.images.image_source import ImageSource
from patchworks_core.labels.options import ReadingOptions, pool_of, source_of, takes_options
from patchworks_core.labels.source import LabelSource, check_same_pixels
from patchworks_core.stage.tile_labels import number_ids
from patchworks_core.tiles.grid import SPATIAL_AXES, Tile
from patchworks_core.tiles.numbers import finite_number

if TYPE_CHECKING:
    import pyarrow as pa

Array = npt.NDArray[Any]

_PENDING_ROWS = 1 << 20
"""Rows that wait to be added up: 32 MB."""


@takes_options(ReadingOptions)
def label_relations(
    a: ImageSource,
    b: ImageSource,
    *,
    min_fraction: float = 0.0,
    **options: Unpack[ReadingOptions],
) -> Relations:
    """Tell for each object of one label image which object of another contains most of it.

    Parameters
    ----------
    a, b : array, path or URL
        Label images of the same pixels, such as nuclei and cells; each as in
        `patchworks_core.labels.postprocess.fill_holes`. Their chunks may differ.
    min_fraction : float
        Least share of an object of `a` that must lie in an object of `b` to belong to it, 0 to 1.
    **options
        `patchworks_core.labels.options.ReadingOptions` for both: `level`, `axes`, `tile_shape`,
        `max_workers`, `workers` and `progress`. Tiles are those of `a` by default.

    Returns
    -------
    Relations
        ``to_table()`` has one row per object of `a`, ``contingency`` one per pair of objects that
        have a pixel in common.

    Raises
    ------
    ImageError
        If the two have not the same axes, shape, pixel size and position.
    PlanError
        If `min_fraction` is no share.

    Notes
    -----
    Exact for any tiles. Objects are compared within one time and channel. What is held in memory
    grows with the pairs that occur, 64 bytes each, not with the image.

    Examples
    --------
    >>> import numpy as np
    >>> nuclei = np.array([[0, 1, 1, 1, 0, 2]])
    >>> cells = np.array([[7, 7, 7, 8, 8, 0]])
    >>> table = label_relations(nuclei, cells, tile_shape=(1, 2)).to_table()
    >>> table["b"].to_pylist(), table["n_b"].to_pylist()
    ([7, 0], [2, 0])
    """
    min_fraction = finite_number("min_fraction", min_fraction, least=0, most=1)
    source = source_of(a, options)
    other = source_of(b, {**options, "tile_shape": None})
    if (source.grid.axes, source.grid.shape) != (other.grid.axes, other.grid.shape):
        raise ImageError(
            f"label images that are related have the same axes and shape, got "
            f"{source.grid.axes!r} {source.grid.shape} in {source.name} and {other.grid.axes!r} "
            f"{other.grid.shape} in {other.name}; crop or resample one to the other"
        )
    check_same_pixels(source.image, other.image)
    plane_axes = {
        axis: n
        for axis, n in zip(source.grid.axes, source.grid.shape, strict=True)
        if axis not in SPATIAL_AXES
    }
    counts = PairCounts()
    with pool_of(options) as pool:
        task = _CountTask(source, other, tuple(plane_axes.values()))
        tiles = pool.map(task, source.grid.tiles(), step="relate", n=source.grid.n_tiles)
        for plane, pairs in tiles:
            counts.add(plane, pairs)
    return Relations(counts.sums(), plane_axes, min_fraction)


@dataclass(frozen=True, slots=True)
class _CountTask:
    a: LabelSource
    b: LabelSource
    planes: tuple[int, ...]
    """Times and channels there are."""

    def __call__(self, tile: Tile) -> tuple[int, Array]:
        plane = np.ravel_multi_index(self.a.plane(tile), self.planes) if self.planes else 0
        return int(plane), count_pairs(self.a.read(tile.core), self.b.read(tile.core))


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


SHOWN = 10
"""Objects of which a notebook draws the row."""


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

    def _repr_html_(self) -> str:
        table = self.to_table()
        rows = zip(*(table[name][:SHOWN].to_pylist() for name in table.column_names), strict=True)
        left_out = table.num_rows - SHOWN
        more = f"<p>and {left_out} more objects</p>" if left_out > 0 else ""
        return html_table(table.column_names, list(rows)) + more

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


def _positions(objects: Array, partners: Array) -> Array:
    """Return where each wanted (plane, id) is among sorted objects; all are there."""
    _, inverse = np.unique(np.concatenate([objects, partners]), axis=0, return_inverse=True)
    # every wanted row occurs among the objects, so an object's rank is its position
    return np.asarray(inverse).reshape(-1)[len(objects) :]
