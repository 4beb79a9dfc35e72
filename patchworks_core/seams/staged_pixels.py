"""Pixels of staged tiles: what a tile saw over all it read, put together from core and strips."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import product
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt

from patchworks_core.seams.strips import (
    HIGH,
    LOW,
    Side,
    part_of_strip,
    strip_of_tile,
    strip_region,
)
from patchworks_core.tiles.grid import Tile, TileBlock, TileGrid
from patchworks_core.tiles.regions import Region

Array = npt.NDArray[Any]


class StagedPixels(Protocol):
    """What was kept of the tiles of a grid."""

    @property
    def grid(self) -> TileGrid:
        """Where the tiles are."""

    def labels(self, block: TileBlock) -> Array:
        """Return the local ids of a block's core."""

    def strips(
        self, block: TileBlock, places: Sequence[tuple[int, Side]] | None = None
    ) -> dict[tuple[int, Side], Array]:
        """Return strips of a block, those of its tiles side by side."""

    def third_view(self, key: str) -> Array:
        """Return the local ids of a third view over all it read."""


def tiles_around(
    grid: TileGrid, tile: Tile, axes: tuple[int, ...]
) -> Iterator[tuple[tuple[int, ...], tuple[int, Side]]]:
    """Yield the neighbours of a tile across some axes: index, and which strip of each faces it."""
    choices = [(-1, 0, 1) if axis in axes else (0,) for axis in range(grid.ndim)]
    for step in product(*choices):
        index = tuple(i + s for i, s in zip(tile.index, step, strict=True))
        if any(step) and all(0 <= i < n for i, n in zip(index, grid.grid_shape, strict=True)):
            axis = next(axis for axis, s in enumerate(step) if s)
            yield index, (axis, LOW if step[axis] > 0 else HIGH)


class PixelReader:
    """Reads what tiles saw, every array once.

    Parameters
    ----------
    stage : StagedPixels
    axes : tuple of int
        Across which halos count (`feathered_axes`).
    """

    def __init__(self, stage: StagedPixels, axes: tuple[int, ...]) -> None:
        self.stage, self.axes = stage, axes
        self._strips: dict[tuple[tuple[int, ...], tuple[int, Side]], Array] = {}
        self._labels: dict[tuple[int, ...], Array] = {}

    def region(self, tile: Tile) -> Region:
        """Return the core of a tile with its halos across the axes that count."""
        bounds = [
            (r.start[axis], r.stop[axis])
            for axis in range(self.stage.grid.ndim)
            for r in (tile.read if axis in self.axes else tile.core,)
        ]
        return Region(tuple(a for a, _ in bounds), tuple(b for _, b in bounds))

    def ids(self, tile: Tile) -> Array:
        """Return the local ids of a tile, int32, of the shape of `region`."""
        grid, region = self.stage.grid, self.region(tile)
        ids = np.zeros(region.shape, dtype=np.int32)
        places = [place for _, place in tiles_around(grid, tile, self.axes)]
        for axis, side in dict.fromkeys(places):
            own: tuple[int, Side] = (axis, HIGH if side == LOW else LOW)
            part = strip_region(grid, tile, *own)
            inside = Region(
                tuple(map(max, part.start, region.start)),
                tuple(map(min, part.stop, region.stop)),
            )
            ids[inside.slices_from(region.start)] = self.strip(tile, own, inside)
        ids[tile.core.slices_from(region.start)] = self.labels(tile)
        return ids

    def labels(self, tile: Tile) -> Array:
        """Return the local ids of a tile's core."""
        block = self.stage.grid.block(self.stage.grid.block_index_of(tile.index))
        if block.index not in self._labels:
            self._labels[block.index] = self.stage.labels(block)
        return self._labels[block.index][tile.core.slices_from(block.core.start)]

    def strip(self, tile: Tile, place: tuple[int, Side], region: Region) -> Array:
        """Return what a strip of a tile holds of a region."""
        grid, (axis, side) = self.stage.grid, place
        index = grid.block_index_of(tile.index)
        if (index, place) not in self._strips:
            self._strips[index, place] = self.stage.strips(grid.block(index), [place])[place]
        strip = strip_of_tile(grid, self._strips[index, place], tile.index, axis)
        return part_of_strip(grid, tile, strip, axis, side, region)
