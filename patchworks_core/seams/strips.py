"""Strips: what a tile saw around each of its faces, kept so that seams never need the voxels again.

A strip is cut from the labels over all the tile read, while they are still in memory. It holds one
halo on both sides of the face (one pixel on the tile's own side where the halo is 0) and, along the
face, the core and its halo. Every strip of an axis fills a slot of one fixed shape, placed by the
face and by the tile's core, so the slots of two neighbours line up pixel for pixel::

      tile a                      |face               tile b
    ..........[ a's strip: halo   |   halo ]
              [ b's strip: halo   |   halo ]..........
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache
from math import prod
from typing import Any, Literal

import numpy as np
import numpy.typing as npt

from patchworks_core.tiles.grid import Tile, TileBlock, TileGrid
from patchworks_core.tiles.regions import Region

LOW: Literal[0] = 0
"""The side of a tile where the axis starts."""

HIGH: Literal[1] = 1
"""The side of a tile where the axis stops."""

Side = Literal[0, 1]


LEAST_HALO = 2
"""Pixels of halo from which two tiles' views of an outline say more than their cores."""


def feathered_axes(grid: TileGrid) -> tuple[int, ...]:
    """Return the axes across which tiles saw enough of each other's cores to draw outlines by."""
    return tuple(axis for axis in strip_axes(grid) if grid.halo[axis] >= LEAST_HALO)


def strip_region(grid: TileGrid, tile: Tile, axis: int, side: Side) -> Region:
    """Return the pixels that a strip holds of what its tile reads."""
    bounds = zip(slot_region(grid, tile, axis, side), tile.read.start, tile.read.stop, strict=True)
    inside = [(max(a, r), min(b, s)) for (a, b), r, s in bounds]
    return Region(tuple(a for a, _ in inside), tuple(b for _, b in inside))


def strip_axes(grid: TileGrid) -> tuple[int, ...]:
    """Return the axes that have faces: spatial, and more than one tile long."""
    return tuple(axis for axis in grid.spatial if grid.grid_shape[axis] > 1)


def slot_shape(grid: TileGrid, axis: int) -> tuple[int, ...]:
    """Return the pixels of a strip's slot: its depth on `axis`, core and halo on the others."""
    sizes = [t + 2 * h for t, h in zip(grid.tile_shape, grid.halo, strict=True)]
    sizes[axis] = 2 * grid.halo[axis] or 1
    return tuple(sizes)


def slot_region(grid: TileGrid, tile: Tile, axis: int, side: Side) -> tuple[tuple[int, int], ...]:
    """Return where the slot lies in the image, (start, stop) per axis; may reach beyond it."""
    slot = _slot(grid.tile_shape, grid.halo, axis, side, tile.core.shape[axis])
    return tuple((c + a, c + b) for c, (a, b) in zip(tile.core.start, slot, strict=True))


def _slot(
    tile_shape: tuple[int, ...], halo: tuple[int, ...], axis: int, side: Side, core: int
) -> list[tuple[int, int]]:
    """Return where a slot lies, counted from the start of a core of `core` pixels on `axis`."""
    bounds = [(-h, t + h) for t, h in zip(tile_shape, halo, strict=True)]
    face, deep = (0 if side == LOW else core), halo[axis]
    if deep:
        bounds[axis] = (face - deep, face + deep)
    else:
        bounds[axis] = (0, 1) if side == LOW else (face - 1, face)
    return bounds


def smallest_strip(grid: TileGrid, step: Sequence[int]) -> int:
    """Return the axis of the smallest strip that holds what two tiles see of each other.

    Strips across every axis that lies between the two do.

    Parameters
    ----------
    grid : TileGrid
    step : sequence of int
        From one tile to the other, per axis.
    """
    crossed = [axis for axis, n in enumerate(step) if n]
    return min(crossed, key=lambda axis: prod(slot_shape(grid, axis)))


def cut_strip(
    grid: TileGrid,
    tile: Tile,
    labels: np.ndarray[Any, Any],
    axis: int,
    side: Side,
    dtype: npt.DTypeLike | None = None,
) -> np.ndarray[Any, Any]:
    """Cut one strip out of the labels a tile saw.

    Parameters
    ----------
    grid : TileGrid
    tile : Tile
    labels : ndarray of int
        Local ids over all the tile read, shape ``tile.read.shape``.
    axis : int
        Axis of the face.
    side : LOW or HIGH
        Which of the two faces on that axis.
    dtype : dtype, optional
        Of the strip; None is that of `labels`.

    Returns
    -------
    ndarray
        Shape `slot_shape`; 0 beyond what the tile read, and everywhere at the image's border.
    """
    slot = np.zeros(slot_shape(grid, axis), dtype=labels.dtype if dtype is None else dtype)
    last = grid.grid_shape[axis] - 1
    if tile.index[axis] == (0 if side == LOW else last):
        return slot
    core, read = tile.core, tile.read
    bounds = zip(core.start, core.stop, read.start, read.stop, strict=True)
    lies = tuple((a - r, b - a, s - b) for a, b, r, s in bounds)
    target, source = _slices_of_strip(grid.tile_shape, grid.halo, axis, side, lies)
    slot[target] = labels[source]
    return slot


def cut_planes(
    grid: TileGrid, block: TileBlock, labels: np.ndarray[Any, Any], axis: int, side: Side
) -> np.ndarray[Any, Any]:
    """Cut the strips of all tiles of a block at once, where tiles have no halo.

    Parameters
    ----------
    grid : TileGrid
        Its halo is 0 on every axis.
    block : TileBlock
    labels : ndarray of int
        Local ids of the block's core.
    axis, side
        As in `cut_strip`.

    Returns
    -------
    ndarray, type of `labels`
        What `cut_strip` gives of each tile, side by side.
    """
    tiles, depth = grid.tile_slices(block.index), grid.tile_shape[axis]
    starts = np.arange(0, labels.shape[axis], depth)
    planes = starts if side == LOW else np.minimum(starts + depth, labels.shape[axis]) - 1
    there = labels.take(planes, axis=axis)
    slots = zip(tiles, slot_shape(grid, axis), strict=True)
    strips = np.zeros([(t.stop - t.start) * n for t, n in slots], dtype=labels.dtype)
    strips[tuple(map(slice, there.shape))] = there
    at_border = 0 if side == LOW else grid.grid_shape[axis] - 1
    if tiles[axis].start <= at_border < tiles[axis].stop:
        strips[(slice(None),) * axis + (at_border - tiles[axis].start,)] = 0
    return strips


@lru_cache(maxsize=1024)
def _slices_of_strip(
    tile_shape: tuple[int, ...],
    halo: tuple[int, ...],
    axis: int,
    side: Side,
    lies: tuple[tuple[int, int, int], ...],
) -> tuple[tuple[slice, ...], tuple[slice, ...]]:
    """Return where a strip has its pixels, and where the tile reads them.

    Parameters
    ----------
    tile_shape, halo : tuple of int
        Of the grid.
    axis, side
        As in `cut_strip`.
    lies : tuple of (int, int, int)
        Per axis what the tile reads before its core, the core, and what it reads behind it.
    """
    target, source = [], []
    slot = _slot(tile_shape, halo, axis, side, lies[axis][1])
    for (first, last), (before, core, behind) in zip(slot, lies, strict=True):
        start, stop = max(first, -before), min(last, core + behind)
        target.append(slice(start - first, stop - first))
        source.append(slice(start + before, stop + before))
    return tuple(target), tuple(source)


def part_of_strip(
    grid: TileGrid,
    tile: Tile,
    strip: np.ndarray[Any, Any],
    axis: int,
    side: Side,
    region: Region,
) -> np.ndarray[Any, Any]:
    """Return what `strip` holds of `region`, which is given in image coordinates.

    Axes before those of the grid are kept whole, so that several strips may be asked at once.
    """
    origin = [start for start, _ in slot_region(grid, tile, axis, side)]
    bounds = zip(region.start, region.stop, origin, strict=True)
    index: Any = (..., *(slice(a - o, b - o) for a, b, o in bounds))
    part: np.ndarray[Any, Any] = strip[index]
    return part


def strip_of_tile(
    grid: TileGrid, strips: np.ndarray[Any, Any], index: Sequence[int], axis: int
) -> np.ndarray[Any, Any]:
    """Return the strip of one tile from those of its block."""
    first = [place.start for place in grid.tile_slices(grid.block_index_of(index))]
    return strips[slot_slices(index, first, slot_shape(grid, axis))]


def strips_of_tiles(
    grid: TileGrid, strips: np.ndarray[Any, Any], indexes: np.ndarray[Any, Any], axis: int
) -> np.ndarray[Any, Any]:
    """Return the strips of several tiles of one block from those of the block, stacked."""
    first = [place.start for place in grid.tile_slices(grid.block_index_of(indexes[0]))]
    slot = slot_shape(grid, axis)
    counts = [n // s for n, s in zip(strips.shape, slot, strict=True)]
    by_tile = strips.reshape([n for pair in zip(counts, slot, strict=True) for n in pair])
    by_tile = by_tile.transpose([*range(0, 2 * len(slot), 2), *range(1, 2 * len(slot), 2)])
    stacked: np.ndarray[Any, Any] = by_tile[tuple((indexes - first).T)]
    return stacked


def slot_slices(
    index: Sequence[int], first: Sequence[int], slot: Sequence[int]
) -> tuple[slice, ...]:
    """Return where the slot of a tile lies among those of its block, which begins at `first`."""
    places = ((i - f) for i, f in zip(index, first, strict=True))
    return tuple(slice(i * s, (i + 1) * s) for i, s in zip(places, slot, strict=True))
