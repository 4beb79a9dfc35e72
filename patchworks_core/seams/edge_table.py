"""The edge table: boundary pairs as columns, in one table or in parts.

Of a large image it has 75 bytes a row in all, so nobody holds it whole: who needs it goes through
`Edges.parts`. All rows of a tile and the tiles behind it are in one part, so that what is decided
face by face (`patchworks_core.seams.rules`) is decided within a part.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, fields
from functools import cache
from typing import TYPE_CHECKING, Any, Protocol

import numpy as np

if TYPE_CHECKING:
    import pyarrow as pa


PART_ROWS = 2**17
"""Of a part, and those of its last tile beyond: 10 MB, which a pass over many parts takes once."""


class Edges(Protocol):
    """Boundary pairs, in one table or more."""

    def __len__(self) -> int:
        """Return the number of rows."""

    def parts(self) -> Iterator[EdgeTable]:
        """Yield all rows in order; those with one `tile_a` are in one part."""


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

    def select(self, rows: np.ndarray[Any, Any] | slice) -> EdgeTable:
        """Return the rows that a mask, index or slice names."""
        return EdgeTable(*(getattr(self, f.name)[rows] for f in fields(self)))

    def parts(self) -> Iterator[EdgeTable]:
        """Yield this table, which is a part of itself."""
        yield self

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
    def schema(cls) -> pa.Schema:
        """Return names and types of the columns as Arrow has them."""
        import pyarrow as pa

        return pa.schema(
            [(f.name, pa.from_numpy_dtype(_DTYPES.get(f.name, np.int64))) for f in fields(cls)]
        )

    @classmethod
    @cache
    def empty(cls) -> EdgeTable:
        """Return a table without rows."""
        return cls(*(np.zeros(0, dtype=_DTYPES.get(f.name, np.int64)) for f in fields(cls)))

    @classmethod
    def stacked(cls, tables: Iterable[EdgeTable]) -> EdgeTable:
        """Lay tables one behind the other."""
        columns = [[getattr(t, f.name) for f in fields(cls)] for t in (cls.empty(), *tables)]
        return cls(*(np.concatenate(c) for c in zip(*columns, strict=True)))

    @classmethod
    def concatenate(cls, tables: Iterable[EdgeTable]) -> EdgeTable:
        """Join tables, in row-major order of the tiles whatever order they come in."""
        joined = cls.stacked(tables)
        order = np.lexsort((joined.id_b, joined.id_a, joined.tile_b, joined.tile_a))
        return joined.select(order)


def divided(tables: Iterable[EdgeTable], *, n_rows: int = PART_ROWS) -> Iterator[EdgeTable]:
    """Cut tables into parts: the same ones, however the rows are spread over the tables.

    Parameters
    ----------
    tables : iterable of EdgeTable
        Of whole tiles, in order.
    n_rows : int
        A part ends with the tile that makes it so long.
    """
    begun, n_begun = list[EdgeTable](), 0
    for table in tables:
        begun.append(table)
        n_begun += len(table)
        if n_begun < n_rows:
            continue
        whole = EdgeTable.stacked(begun) if len(begun) > 1 else table
        start = 0
        while (stop := _end_of_part(whole.tile_a, start + n_rows)) is not None:
            yield whole.select(slice(start, stop))
            start = stop
        begun, n_begun = [whole.select(slice(start, None))], len(whole) - start
    if n_begun:
        yield EdgeTable.stacked(begun)


def _end_of_part(tiles: np.ndarray[Any, Any], least: int) -> int | None:
    """Return where a tile ends at or behind a row; None where there are not so many rows."""
    if least > len(tiles):
        return None
    others = np.flatnonzero(tiles[least:] != tiles[least - 1])
    return least + int(others[0]) if len(others) else len(tiles)


@dataclass(frozen=True, slots=True)
class StackedEdges:
    """Edges one behind the other."""

    of: tuple[Edges, ...]

    def __len__(self) -> int:
        return sum(map(len, self.of))

    def parts(self) -> Iterator[EdgeTable]:
        """Yield the parts of each."""
        for edges in self.of:
            yield from edges.parts()


@dataclass(frozen=True, slots=True)
class SelectedEdges:
    """The rows of edges that a condition holds for."""

    edges: Edges
    condition: Callable[[EdgeTable], np.ndarray[Any, Any]]
    """Gives a mask of the rows of a part."""

    def __len__(self) -> int:
        return sum(map(len, self.parts()))

    def parts(self) -> Iterator[EdgeTable]:
        """Yield what is left of each part."""
        for part in self.edges.parts():
            yield part.select(self.condition(part))


_DTYPES = {
    "id_a": np.int32,
    "id_b": np.int32,
    "connectivity": np.int8,
    "axis": np.int8,
    "order": np.int8,
}
