"""The six steps without a disk: for images that fit in memory, pilots, tests and benchmarks.

The labels of the tiles are made once; each rule then merges the same ones.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from patchworks_core.seams.edge_table import EdgeTable
from patchworks_core.seams.lookup import LookupTable, build_lut, renumbered
from patchworks_core.seams.pairs import compare_faces
from patchworks_core.seams.rules import MergeOptions, joined_pairs
from patchworks_core.seams.strips import Side, cut_strip
from patchworks_core.seams.views import Outlines, draw_block
from patchworks_core.stage.tile_labels import NumberedLabels, check_labels, number_labels
from patchworks_core.tiles.grid import Tile, TileBlock, TileGrid

TileFunction = Callable[[np.ndarray[Any, Any], Tile], np.ndarray[Any, Any]]
"""``function(pixels, tile)`` gives the labels of what a tile reads; it sees the spatial axes."""


@dataclass(frozen=True, slots=True)
class TilesInMemory:
    """Staged labels of every tile of an image, and what was seen at their seams."""

    grid: TileGrid

    labels: dict[tuple[int, ...], NumberedLabels]
    """By index of the tile."""

    edges: EdgeTable

    @classmethod
    def stage(
        cls, image: np.ndarray[Any, Any], function: TileFunction, grid: TileGrid, *, where: str = ""
    ) -> TilesInMemory:
        """Segment every tile of an image and compare them at the seams.

        Parameters
        ----------
        image : ndarray
            Of the grid's shape.
        function : callable
            ``function(pixels, tile)``.
        grid : TileGrid
        where : str
            What an error calls the image.

        Raises
        ------
        SegmentationError
            If the function returned what are no labels, naming the tile.
        """
        labels = {}
        for tile in grid.tiles():
            name = f"{where}tile {tile.index}"
            pixels = image[tile.read.slices]
            shape = tuple(pixels.shape[axis] for axis in grid.spatial)
            # A copy, because a function may write into its input and the next tile shares pixels.
            checked = check_labels(
                function(pixels.reshape(shape).copy(), tile), shape=shape, where=name
            )
            labels[tile.index] = number_labels(
                checked.reshape(pixels.shape), tile.core_inside, where=name
            )

        def strips(tiles: np.ndarray[Any, Any], axis: int, side: Side) -> np.ndarray[Any, Any]:
            indexes = map(tuple, tiles.tolist())
            return np.stack(
                [cut_strip(grid, grid.tile(i), labels[i].pixels, axis, side) for i in indexes]
            )

        tiles = np.array([tile.index for tile in grid.tiles()])
        return cls(grid, labels, compare_faces(grid, tiles, strips))

    @property
    def counts(self) -> np.ndarray[Any, Any]:
        """Labels of each tile in row-major order, int64."""
        return np.array([self.labels[t.index].n_core for t in self.grid.tiles()], dtype=np.int64)

    def lut(self, options: MergeOptions) -> LookupTable:
        """Return the lookup table of a resolved rule; ``min_size`` does not apply here."""
        joined = joined_pairs(self.edges, self.counts, options)
        return build_lut(self.edges.select(joined), self.counts, sequential=options.sequential)

    def merged(self, options: MergeOptions) -> np.ndarray[Any, Any]:
        """Return the merged labels by a resolved rule, int64, of the grid's shape."""
        if options.feathers:
            return self._drawn(options)
        lut = self.lut(options)
        merged = np.zeros(self.grid.shape, dtype=np.int64)
        for tile in self.grid.tiles():
            core = tile.core.relative_to(tile.read.start)
            pixels = self.labels[tile.index].pixels[core.slices]
            merged[tile.core.slices] = lut.of_tile(tile.number)[pixels]
        return merged

    def _drawn(self, options: MergeOptions) -> np.ndarray[Any, Any]:
        """Return the merged labels, outlines drawn from all tiles that saw them."""
        outlines = Outlines.of(self.grid, self.edges, self.counts, options)
        lut = renumbered(
            outlines.standing,
            areas=None,
            min_size=0,
            max_size=None,
            sequential=options.sequential,
        )
        merged = np.zeros(self.grid.shape, dtype=np.int64)
        pixels = _PixelsInMemory(self)
        for block in self.grid.blocks():
            drawing = outlines.of_block(block, lut)
            drawn = draw_block(pixels, block, drawing)
            if drawn is None:
                (tile,) = block.tiles
                merged[block.core.slices] = lut.of_tile(tile.number)[pixels.labels(block)]
            else:
                merged[block.core.slices] = drawing.ids[drawn]
        return merged


@dataclass(frozen=True, slots=True)
class _PixelsInMemory:
    """What is kept of tiles, for grids whose blocks are one tile."""

    tiles: TilesInMemory

    @property
    def grid(self) -> TileGrid:
        return self.tiles.grid

    def labels(self, block: TileBlock) -> np.ndarray[Any, Any]:
        """Return the local ids of a block's core."""
        (tile,) = block.tiles
        core = tile.core.relative_to(tile.read.start)
        return self.tiles.labels[tile.index].pixels[core.slices]

    def strips(
        self, block: TileBlock, places: Sequence[tuple[int, Side]] | None = None
    ) -> dict[tuple[int, Side], np.ndarray[Any, Any]]:
        """Return strips of a block."""
        (tile,) = block.tiles
        pixels = self.tiles.labels[tile.index].pixels
        return {place: cut_strip(self.grid, tile, pixels, *place) for place in places or ()}

    def third_view(self, key: str) -> np.ndarray[Any, Any]:
        """Return the local ids of a third view; there is none."""
        raise KeyError(key)
