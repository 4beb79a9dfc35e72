"""Per-object sums of one tile, and their exact combination across tiles.

An object cut by faces is measured in pieces. What is kept of a piece adds up: pixels, sums of
coordinates, boxes, sums and extremes of intensity. Everything else (centroid, mean, diameter) is
derived once, from the sums of the merged object (`patchworks_core.merge.objects`):

1. `measure_tile` measures the staged labels of one tile, in coordinates of the image.
2. `merge_objects` combines the rows that the lookup table gives one id.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass, fields
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from patchworks_core.errors import StageError

if TYPE_CHECKING:
    import pyarrow as pa

Array = npt.NDArray[Any]


@dataclass(frozen=True, slots=True, eq=False)
class ObjectSums:
    """Columns of numbers that add up, one row per object."""

    axes: str
    """Axis names, in array order."""

    measured: bool
    """True where the intensity columns come from pixels."""

    label: npt.NDArray[np.int64]
    """Id of the object: 1..n in a tile, the merged id after `merge_objects`."""

    area: npt.NDArray[np.int64]
    """Pixels of the object."""

    position_sum: npt.NDArray[np.int64]
    """Sum of the image coordinates of its pixels, shape (n, axes)."""

    start: npt.NDArray[np.int64]
    """First coordinate of its box, shape (n, axes)."""

    stop: npt.NDArray[np.int64]
    """First coordinate beyond its box, shape (n, axes)."""

    intensity_sum: npt.NDArray[np.float64]
    """Sum of its pixels, NaN where not measured. Exact for integers up to 2**53."""

    intensity_min: npt.NDArray[np.float64]
    """Smallest of its pixels, NaN where not measured."""

    intensity_max: npt.NDArray[np.float64]
    """Largest of its pixels, NaN where not measured."""

    n_tiles: npt.NDArray[np.int64]
    """Number of staged labels merged into it."""

    def __len__(self) -> int:
        return len(self.label)

    @classmethod
    def stacked(cls, sums: Sequence[ObjectSums]) -> ObjectSums:
        """Lay the rows of tiles, at least one, behind each other; nothing is added up.

        Raises
        ------
        StageError
            If tiles differ in their axes or in whether they were measured.
        """
        axes, measured = _kind_of(sums)
        columns = {
            field.name: np.concatenate([getattr(s, field.name) for s in sums])
            for field in fields(cls)[2:]
        }
        return cls(axes, measured, **columns)

    def to_table(self) -> pa.Table:
        """Return the sums as a table; `from_table` reads it back."""
        import pyarrow as pa

        columns: dict[str, Array] = {}
        for name, values in self._columns().items():
            if values.ndim == 1:
                columns[name] = values
            else:
                for i, axis in enumerate(self.axes):
                    columns[f"{name}_{axis}"] = np.ascontiguousarray(values[:, i])
        record = json.dumps({"axes": self.axes, "measured": self.measured})
        return pa.table(columns).replace_schema_metadata({"patchworks": record})

    @classmethod
    def from_table(cls, table: pa.Table) -> ObjectSums:
        """Read what `to_table` wrote.

        Raises
        ------
        StageError
            If the table has no record of its axes, or lacks a column.
        """
        metadata = table.schema.metadata or {}
        try:
            record = json.loads(metadata[b"patchworks"])
            axes, columns = record["axes"], {}
            for field in fields(cls)[2:]:
                if field.name in ("position_sum", "start", "stop"):
                    names = [f"{field.name}_{axis}" for axis in axes]
                    columns[field.name] = np.stack([table[n].to_numpy() for n in names], axis=1)
                else:
                    columns[field.name] = table[field.name].to_numpy()
            return cls(axes=axes, measured=record["measured"], **columns)
        except (TypeError, ValueError, RecursionError) as error:
            raise StageError(
                f"not a table of object sums: its record is {metadata[b'patchworks'][:60]!r}; "
                "stage the tile again"
            ) from error
        except KeyError as error:
            raise StageError(
                f"not a table of object sums: {error} is missing from columns"
                f" {table.column_names}; stage the tile again"
            ) from error

    def _columns(self) -> dict[str, Array]:
        return {field.name: getattr(self, field.name) for field in fields(self)[2:]}


def measure_tile(
    labels: Array,
    *,
    axes: str,
    origin: Sequence[int],
    n_labels: int,
    pixels: Array | None = None,
) -> ObjectSums:
    """Measure every label of one tile.

    Parameters
    ----------
    labels : ndarray of int
        Staged labels of the core, 0 and 1..n_labels.
    axes : str
        Axis names of `labels`; time and channel are axes one thick.
    origin : sequence of int
        Image coordinates of the first pixel.
    n_labels : int
        Number of labels; each occurs.
    pixels : ndarray, optional
        Real pixels of the same shape, to measure intensity on. A NaN makes its object's NaN.

    Returns
    -------
    ObjectSums

    Examples
    --------
    >>> tile = np.array([[0, 1, 1], [2, 0, 1]])
    >>> sums = measure_tile(tile, axes="yx", origin=(10, 20), n_labels=2)
    >>> sums.area, sums.start
    (array([3, 1]), array([[10, 21],
           [11, 20]]))
    """
    inside = np.flatnonzero(labels)
    rows = labels.reshape(-1)[inside].astype(np.intp) - 1
    area = np.bincount(rows, minlength=n_labels).astype(np.int64)
    start, stop = _boxes(labels, n_labels)
    first = np.asarray(origin, np.int64)
    position_sum = area[:, None] * first
    # row-major coordinates of the labelled pixels, peeled off from the last axis
    rest = inside
    for axis in reversed(range(labels.ndim)):
        if labels.shape[axis] == 1:
            continue
        rest, coordinate = np.divmod(rest, labels.shape[axis])
        # weights are summed in float64: exact, a tile's sums stay far below 2**53
        total = np.bincount(rows, weights=coordinate, minlength=n_labels)
        position_sum[:, axis] += total.astype(np.int64)
    return ObjectSums(
        axes,
        pixels is not None,
        np.arange(1, n_labels + 1, dtype=np.int64),
        area,
        position_sum,
        first + start,
        first + stop,
        *_intensities(pixels, inside, rows, n_labels),
        n_tiles=np.ones(n_labels, np.int64),
    )


def _boxes(labels: Array, n_labels: int) -> tuple[Array, Array]:
    """Return start and stop of the box of each label, shape (n_labels, axes), within the tile."""
    from scipy import ndimage

    # find_objects takes no 64-bit unsigned labels; a tile's local ids always fit
    boxes = ndimage.find_objects(labels.astype(np.int32, copy=False), max_label=n_labels)
    corners = np.array([[(s.start, s.stop) for s in box] for box in boxes if box], np.int64)
    corners = corners.reshape(n_labels, labels.ndim, 2)
    return corners[..., 0], corners[..., 1]


def combine_rows(ufunc: np.ufunc, values: Array, rows: Array, n: int, initial: float) -> Array:
    """Return the sum or extreme of `values` per row.

    Parameters
    ----------
    ufunc : numpy.ufunc
        Such as ``numpy.add``.
    values : ndarray, shape (m, ...)
    rows : ndarray of int, shape (m,)
        Row that each value goes into.
    n : int
        Number of rows.
    initial : float
        The value that changes nothing.
    """
    result = np.full((n, *values.shape[1:]), initial, values.dtype)
    with np.errstate(invalid="ignore"):  # NaN pixels, or not measured
        ufunc.at(result, rows, values)
    return result


def _intensities(
    pixels: Array | None, inside: Array, rows: Array, n: int
) -> tuple[Array, Array, Array]:
    """Return sum, minimum and maximum per row; NaN without pixels."""
    if pixels is None:
        return np.full(n, np.nan), np.full(n, np.nan), np.full(n, np.nan)
    values = pixels.reshape(-1)[inside].astype(np.float64)
    return (
        np.bincount(rows, weights=values, minlength=n).astype(np.float64),
        combine_rows(np.minimum, values, rows, n, np.inf),
        combine_rows(np.maximum, values, rows, n, -np.inf),
    )


_COMBINE: dict[str, tuple[np.ufunc, float]] = {
    "area": (np.add, 0),
    "position_sum": (np.add, 0),
    "start": (np.minimum, np.iinfo(np.int64).max),
    "stop": (np.maximum, 0),
    "intensity_sum": (np.add, 0),
    "intensity_min": (np.minimum, np.inf),
    "intensity_max": (np.maximum, -np.inf),
    "n_tiles": (np.add, 0),
}
"""How the rows of one object become one, and the value that changes nothing."""


def merge_objects(sums: Sequence[ObjectSums], ids: Sequence[Array]) -> ObjectSums:
    """Combine the rows of tiles that are one object.

    Parameters
    ----------
    sums : sequence of ObjectSums
        Sums of each tile, at least one; they may themselves be merged.
    ids : sequence of ndarray of int
        Merged id of each row of each of `sums`; rows with 0 are dropped.

    Returns
    -------
    ObjectSums
        One row per merged id, sorted by it.

    Raises
    ------
    StageError
        If tiles differ in their axes or in whether they were measured, or an id is missing.

    Notes
    -----
    All but `intensity_sum` are integers or extremes and so the same for any tiling. That one is
    exact for integer pixels, and for real pixels summed in the order given.

    Examples
    --------
    >>> tiles = [measure_tile(np.ones((2, 3), int), axes="yx", origin=(0, x), n_labels=1)
    ...          for x in (0, 3)]
    >>> merged = merge_objects(tiles, [np.array([7]), np.array([7])])
    >>> merged.label, merged.area, merged.stop, merged.n_tiles
    (array([7]), array([12]), array([[2, 6]]), array([2]))
    """
    axes, measured = _kind_of(sums)
    counts = [(len(s), len(i)) for s, i in zip(sums, ids, strict=True)]
    wrong = next((k for k, (rows, n_ids) in enumerate(counts) if rows != n_ids), None)
    if wrong is not None:
        n_objects, n_given = counts[wrong]
        raise StageError(
            f"each object of a tile needs one merged id, got {n_given} for the {n_objects} objects"
            f" of tile number {wrong}; build the lookup table again"
        )
    given_ids = np.concatenate(ids).astype(np.int64)
    kept = np.flatnonzero(given_ids)
    label, rows = np.unique(given_ids[kept], return_inverse=True)
    columns: dict[str, Array] = {}
    for name, (ufunc, initial) in _COMBINE.items():
        values = np.concatenate([getattr(s, name) for s in sums])[kept]
        columns[name] = combine_rows(ufunc, values, rows, len(label), initial)
    return ObjectSums(axes, measured, label, **columns)


def _kind_of(sums: Sequence[ObjectSums]) -> tuple[str, bool]:
    """Return the axes of all, and whether they are measured."""
    kinds = sorted({(s.axes, s.measured) for s in sums})
    if len(kinds) != 1:
        raise StageError(
            f"objects of one image have the same axes and are all measured or none, got {kinds};"
            " stage the image again"
        )
    return kinds[0]
