"""The edge table: boundary pairs as columns, and as a table on disk."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, fields
from functools import cache
from typing import TYPE_CHECKING, Any

import numpy as np

if TYPE_CHECKING:
    import pyarrow as pa


@dataclass(frozen=True, slots=True)
class EdgeTable:
    """Boundary pairs, one row per two labels that met across a face; columns of equal length.

    A label at a face that met none has a row too, whose other id is 0.
    """

    tile_a: np.ndarray[Any, Any]
    """Number of the tile that comes first, int64."""

    id_a: np.ndarray[Any, Any]
    """Local id there, int32; beyond the tile's count where it was seen only in the halo."""

    tile_b: np.ndarray[Any, Any]
    """Number of the other tile, int64."""

    id_b: np.ndarray[Any, Any]
    """Local id there, int32."""

    intersection: np.ndarray[Any, Any]
    """Pixels that both tiles saw and gave to these two labels, int64."""

    area_a: np.ndarray[Any, Any]
    """Pixels of `id_a` in the region both saw, int64."""

    area_b: np.ndarray[Any, Any]
    """Pixels of `id_b` in the region both saw, int64."""

    contact: np.ndarray[Any, Any]
    """Pixel pairs of the two in contact across the cores, at the smallest connectivity, int64."""

    connectivity: np.ndarray[Any, Any]
    """Smallest connectivity at which the two touch, int8; 0 where they do not."""

    axis: np.ndarray[Any, Any]
    """Axis across which the cores abut, int8."""

    order: np.ndarray[Any, Any]
    """Axes crossed, int8: 1 for a face, 2 for an edge, 3 for a corner."""

    plane_a: np.ndarray[Any, Any]
    """Pixels of `id_a` in its core's plane at the face, int64; 0 at edges and corners."""

    plane_b: np.ndarray[Any, Any]
    """Pixels of `id_b` in its core's plane at the face, int64; 0 at edges and corners."""

    def __len__(self) -> int:
        return len(self.tile_a)

    @property
    def iou(self) -> np.ndarray[Any, Any]:
        """Intersection over union of each pair in the region both tiles saw, float64."""
        union = self.area_a + self.area_b - self.intersection
        iou: np.ndarray[Any, Any] = self.intersection / np.maximum(union, 1)
        return iou

    @property
    def is_pair(self) -> np.ndarray[Any, Any]:
        """Whether a row holds two labels, and not one that met none; bool."""
        pair: np.ndarray[Any, Any] = (self.id_a > 0) & (self.id_b > 0)
        return pair

    def select(self, rows: np.ndarray[Any, Any]) -> EdgeTable:
        """Return the rows that a mask or index names."""
        return EdgeTable(*(getattr(self, f.name)[rows] for f in fields(self)))

    def to_arrow(self) -> pa.Table:
        """Return the table as Arrow columns."""
        import pyarrow as pa

        return pa.table({f.name: getattr(self, f.name) for f in fields(self)})

    @classmethod
    def from_arrow(cls, table: pa.Table) -> EdgeTable:
        """Read what `to_arrow` wrote.

        Raises
        ------
        ValueError
            If a column is missing.
        """
        missing = {f.name for f in fields(cls)} - set(table.column_names)
        if missing:
            raise ValueError(f"not an edge table: columns {sorted(missing)!r} are missing")
        return cls(
            *(
                table[f.name].to_numpy().astype(_DTYPES.get(f.name, np.int64), copy=False)
                for f in fields(cls)
            )
        )

    @classmethod
    @cache
    def empty(cls) -> EdgeTable:
        """Return a table without rows."""
        return cls(*(np.zeros(0, dtype=_DTYPES.get(f.name, np.int64)) for f in fields(cls)))

    @classmethod
    def concatenate(cls, tables: Iterable[EdgeTable]) -> EdgeTable:
        """Join tables, in row-major order of the tiles whatever order they come in."""
        columns = [[getattr(t, f.name) for f in fields(cls)] for t in (cls.empty(), *tables)]
        joined = cls(*(np.concatenate(c) for c in zip(*columns, strict=True)))
        order = np.lexsort((joined.id_b, joined.id_a, joined.tile_b, joined.tile_a))
        return joined.select(order)


_DTYPES = {
    "id_a": np.int32,
    "id_b": np.int32,
    "connectivity": np.int8,
    "axis": np.int8,
    "order": np.int8,
}
