"""Pictures of an image and of its merged labels: where to look, and what it looks like there.

Nothing here reads a whole volume: a picture shows one plane, whole where it is small enough, else
a window of it.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from patchworks_core.images.image import Image
from patchworks_core.pictures.drawing import flatten, overlay, png_bytes, thumbnail
from patchworks_core.tiles.grid import TileGrid
from patchworks_core.tiles.regions import Region

MAX_OVERVIEW = 8192
"""Longest side of the window an overview reads, pixels."""

WINDOW = 640
"""Side of the window in which outlines are drawn, pixels."""


def overview_region(axes: str, shape: tuple[int, ...]) -> Region:
    """Return the middle plane of an image, at most `MAX_OVERVIEW` on a side, around its centre."""
    return plane_region(axes, shape, tuple(n // 2 for n in shape), MAX_OVERVIEW)


def plane_region(axes: str, shape: tuple[int, ...], centre: tuple[int, ...], size: int) -> Region:
    """Return the plane through `centre`, `size` pixels wide in y and x, within the image.

    Examples
    --------
    >>> plane_region("zyx", (10, 100, 100), (5, 50, 95), 40)
    Region(start=(5, 30, 60), stop=(6, 70, 100))
    """
    start, stop = [], []
    for axis, n, c in zip(axes, shape, centre, strict=True):
        if axis in "yx":
            a = max(0, min(c - size // 2, n - size))
            start.append(a)
            stop.append(min(n, a + size))
        else:
            c = 0 if axis in "tc" else min(c, n - 1)
            start.append(c)
            stop.append(c + 1)
    return Region(tuple(start), tuple(stop))


def seam_region(grid: TileGrid, counts: np.ndarray[Any, Any]) -> Region:
    """Return a window around a corner of the tile with most objects: where seams can be judged.

    Parameters
    ----------
    grid : TileGrid
    counts : ndarray of int, shape ``grid.grid_shape``
        Labels of each tile.
    """
    first = tuple(0 if axis in "tc" else slice(None) for axis in grid.axes)
    kept = np.zeros_like(counts)
    kept[first] = counts[first]
    fullest = grid.tile(np.unravel_index(int(kept.argmax()), kept.shape))  # type: ignore[arg-type]
    centre = []
    for axis, a, b, n in zip(
        grid.axes, fullest.core.start, fullest.core.stop, grid.shape, strict=True
    ):
        seam = a if a else b if b < n else (a + b) // 2
        centre.append(seam if axis in "yx" else (a + b) // 2)
    return plane_region(grid.axes, grid.shape, tuple(centre), WINDOW)


def image_picture(image: Image) -> bytes:
    """Return a PNG thumbnail of the middle plane of an image."""
    region = overview_region(image.axes, image.shape)
    return png_bytes(thumbnail(flatten(image.read(region), image.axes)))


def overlay_picture(image: Image, labels: Any, grid: TileGrid, region: Region) -> bytes:
    """Return a PNG of objects over pixels with the tile grid drawn on it.

    Parameters
    ----------
    image : Image
    labels : array-like
        Merged labels, sliced by region; shape of the grid.
    grid : TileGrid
    region : Region
        One plane, or a window of one.
    """
    lines = {axis: _grid_lines(grid, region, axis) for axis in "yx"}
    return png_bytes(
        overlay(
            flatten(image.read(region), grid.axes),
            flatten(np.asarray(labels[region.slices]), grid.axes),
            grid_lines_y=lines["y"],
            grid_lines_x=lines["x"],
        )
    )


def _grid_lines(grid: TileGrid, region: Region, axis: str) -> list[int]:
    """Return where the faces of tiles cross a region, counted from its first pixel."""
    if axis not in grid.axes:
        return []
    i = grid.axes.index(axis)
    step, start, stop = grid.tile_shape[i], region.start[i], region.stop[i]
    return [face - start for face in range(step, grid.shape[i], step) if start < face < stop]
