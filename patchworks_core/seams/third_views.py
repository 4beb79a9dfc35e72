"""Third views: what one more tile, centred on a face, saw of the objects on both of its sides.

A third view is of no tile of the grid and owns no pixel. It is one more witness::

    |<--- core of low --->|<--- core of high -->|
              |<------ third view ------>|          and a halo all around

1. `third_tile` says where it lies: as large as a tile, clipped at the image.
2. `compare_with_tiles` counts the pixels its labels have in common with those of each tile whose
   core it saw: rows as of a face (`patchworks_core.seams.pairs`).
3. `ThirdViews.evidence` lays these rows beside those of the faces, so that `overlap` weighs all of
   them (`patchworks_core.seams.joins`); other rules look at two tiles at a face, and at no third.
4. Outlines are drawn from third views as from any (`patchworks_core.seams.outlines`).
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass, fields, replace
from typing import Any

import numpy as np
import numpy.typing as npt

from patchworks_core.seams.edge_table import Edges, EdgeTable, StackedEdges
from patchworks_core.seams.faces import tile_key
from patchworks_core.seams.lookup import LookupTable
from patchworks_core.seams.outlines import common_region
from patchworks_core.seams.rules import Joins, MergeOptions
from patchworks_core.tiles.grid import Tile, TileGrid
from patchworks_core.tiles.regions import Region

Array = npt.NDArray[Any]

NamedTile = tuple[str, Tile]
"""Key and tile of a third view."""


@dataclass(frozen=True, slots=True, order=True)
class FaceOfTiles:
    """A face, by the numbers of its two tiles."""

    low: int
    high: int
    axis: int
    """Across which they abut."""

    def key(self, grid: TileGrid) -> str:
        """Return the name of the face, which is that of its third view.

        Examples
        --------
        >>> FaceOfTiles(0, 1, 1).key(TileGrid("yx", (8, 8), (4, 4), (0, 0)))
        'y000x000+y000x001'
        """
        return f"{tile_key(grid, self.low)}+{tile_key(grid, self.high)}"


@dataclass(frozen=True, slots=True, eq=False)
class ThirdView:
    """What is known of one third view; its pixels are read where they are drawn."""

    face: FaceOfTiles

    count: int
    """Labels in its core."""

    rows: EdgeTable
    """A row per label of a tile and label of the view with pixels in common; `tile_b` is 0."""

    digest: int
    """Of its labels and rows."""


def third_tile(grid: TileGrid, face: FaceOfTiles, number: int) -> Tile:
    """Return the tile of a third view: centred on the face, of the shape of a tile.

    Parameters
    ----------
    grid : TileGrid
    face : FaceOfTiles
    number : int
        It gets; those of tiles come before.
    """
    low, high = (_tile(grid, n) for n in (face.low, face.high))
    start, stop = list(low.core.start), list(low.core.stop)
    length = grid.tile_shape[face.axis]
    first = high.core.start[face.axis] - length // 2
    start[face.axis] = max(0, first)
    stop[face.axis] = min(grid.shape[face.axis], first + length)
    core = Region(tuple(start), tuple(stop))
    return Tile((-1,) * grid.ndim, number, core, core.grow(grid.halo, within=grid.shape))


def tiles_under(grid: TileGrid, region: Region) -> list[Tile]:
    """Return the tiles whose cores hold a pixel of a region, in row-major order."""
    first = [a // t for a, t in zip(region.start, grid.tile_shape, strict=True)]
    n = [(b - 1) // t - f + 1 for b, t, f in zip(region.stop, grid.tile_shape, first, strict=True)]
    return [grid.tile([f + i for f, i in zip(first, at, strict=True)]) for at in np.ndindex(*n)]


def compare_with_tiles(
    grid: TileGrid,
    view: Tile,
    ids: Array,
    count: int,
    ids_of: Callable[[Tile], tuple[Region, Array]],
) -> EdgeTable:
    """Count the pixels that labels of a third view and of the tiles under it have in common.

    Parameters
    ----------
    grid : TileGrid
    view : Tile
        Of the third view.
    ids : ndarray of int
        Its local ids, of the shape of what it read.
    count : int
        Labels in its core: ids 1..count.
    ids_of : callable
        ``ids_of(tile)`` gives a region, and the local ids of the tile there.

    Returns
    -------
    EdgeTable
        `contact` is 1 where the view's core lies over the tile's, 0 elsewhere.

    Notes
    -----
    Labels in the view's core are compared there alone, and with half of the tile's halo: functions
    err most at the border of what they read, and a sliver of a neighbour that a label has there
    would join the two. Labels of the view's halo alone are compared in all of it, so that they get
    the object that they are of.
    """
    half = [n // 2 for n in grid.halo]
    tables = []
    for tile in tiles_under(grid, view.read):
        region, theirs = ids_of(tile)
        trusted = common_region(region, tile.core.grow(half, within=grid.shape))
        assert trusted is not None
        for of_view, is_core in ((view.core, True), (view.read, False)):
            both = common_region(trusted if is_core else region, of_view)
            if both is None:
                continue
            a = theirs[both.slices_from(region.start)].reshape(-1).astype(np.int64)
            b = ids[both.slices_from(view.read.start)].reshape(-1).astype(np.int64)
            rows = _rows(tile.number, a, b, is_over=common_region(tile.core, view.core) is not None)
            tables.append(rows.select((rows.id_b <= count) == is_core))
    return EdgeTable.concatenate(tables)


def _rows(number: int, a: Array, b: Array, *, is_over: bool) -> EdgeTable:
    """Return the rows of one tile: ids `a` are its own, `b` the view's of the same pixels."""
    width = int(b.max(initial=0)) + 1
    common = (a > 0) & (b > 0)
    pairs, n_common = np.unique(a[common] * width + b[common], return_counts=True)
    id_a, id_b, n = pairs // width, pairs % width, len(pairs)
    zeros = np.zeros(n, dtype=np.int64)
    columns = {
        **dict.fromkeys((f.name for f in fields(EdgeTable)), zeros),
        "tile_a": np.full(n, number, dtype=np.int64),
        "id_a": id_a,
        "id_b": id_b,
        "intersection": n_common.astype(np.int64),
        "area_a": np.bincount(a)[id_a],
        "area_b": np.bincount(b)[id_b],
        "contact": np.full(n, int(is_over), dtype=np.int64),
        "order": np.ones(n, dtype=np.int8),
    }
    return EdgeTable(**columns)


def _tile(grid: TileGrid, number: int) -> Tile:
    return grid.tile([int(i) for i in np.unravel_index(number, grid.grid_shape)])


@dataclass(frozen=True, slots=True)
class ThirdViews:
    """The third views of an image, in the order of their faces."""

    grid: TileGrid
    views: tuple[ThirdView, ...] = ()

    @classmethod
    def of(cls, grid: TileGrid, views: Iterable[ThirdView]) -> ThirdViews:
        """Put views in order, whatever order they come in."""
        return cls(grid, tuple(sorted(views, key=lambda view: view.face)))

    def __len__(self) -> int:
        return len(self.views)

    @property
    def keys(self) -> tuple[str, ...]:
        """Name of each view."""
        return tuple(view.face.key(self.grid) for view in self.views)

    @property
    def tiles(self) -> tuple[Tile, ...]:
        """The tile of each view; numbers go on behind those of the grid."""
        n = self.grid.n_tiles
        return tuple(third_tile(self.grid, v.face, n + i) for i, v in enumerate(self.views))

    def over_tiles(self) -> dict[int, tuple[NamedTile, ...]]:
        """Return the views that read a pixel of a tile's core, by number of the tile."""
        over: dict[int, list[NamedTile]] = {}
        for key, view in zip(self.keys, self.tiles, strict=True):
            for tile in tiles_under(self.grid, view.read):
                over.setdefault(tile.number, []).append((key, view))
        return {number: tuple(views) for number, views in over.items()}

    @property
    def digests(self) -> npt.NDArray[np.uint64]:
        """Digest of each view."""
        return np.array([view.digest for view in self.views], dtype=np.uint64)

    def evidence(self, edges: Edges, counts: Array) -> tuple[Edges, Array]:
        """Return the rows of faces with those of third views behind them, and labels of all.

        Parameters
        ----------
        edges : Edges
        counts : ndarray of int64, shape (n_tiles,)
            Labels of each tile.
        """
        if not self.views:
            return edges, counts
        numbered = EdgeTable.stacked(
            replace(view.rows, tile_b=np.full(len(view.rows), self.grid.n_tiles + i))
            for i, view in enumerate(self.views)
        )
        n_labels = [view.count for view in self.views]
        all_counts = np.concatenate([counts, np.array(n_labels, np.int64)])
        return StackedEdges((edges, numbered)), all_counts

    def joins(self, edges: Edges, counts: Array, options: MergeOptions) -> Joins:
        """Return which rows join two labels; third views have a say in it.

        Parameters
        ----------
        edges, counts, options
            As in `patchworks_core.seams.rules.Joins`.
        """
        return Joins.of(*self.evidence(edges, counts), options)

    def standing(self, edges: Edges, counts: Array, options: MergeOptions) -> LookupTable:
        """Return every object by the staged id of its first label.

        Parameters
        ----------
        edges, counts, options
            As in `joins`.

        Returns
        -------
        LookupTable
            Not sequential. The labels of third views come behind those of tiles, so that an object
            has the id of one of these where it can.
        """
        all_edges, all_counts = self.evidence(edges, counts)
        return Joins.of(all_edges, all_counts, options).standing(all_edges)
