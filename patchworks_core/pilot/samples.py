"""Samples of an image for a pilot: boxes of neighbouring tiles with signal, segmented untiled."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from math import ceil, prod
from typing import Any

import numpy as np
import numpy.typing as npt

from patchworks_core.errors import PlanError
from patchworks_core.images.image import Image
from patchworks_core.pilot.agreement import Agreement, compare_objects
from patchworks_core.plugins.segmentation import LabelFunction
from patchworks_core.stage.tile_labels import check_labels
from patchworks_core.statistics.measuring import measure
from patchworks_core.tiles.grid import SPATIAL_AXES, TileGrid, plan_grid
from patchworks_core.tiles.numbers import whole_number
from patchworks_core.tiles.regions import Region

Array = npt.NDArray[Any]

LARGE = 90
"""Percentile of the objects' extents that is a large object."""

MAX_PIXELS = 2**23
"""Largest region, pixels; the tiles of the pilot are halved until regions fit."""

PROBE_PIXELS = 2**18
"""What is read of a region to see whether it has signal."""


@dataclass(frozen=True, slots=True, eq=False)
class Sample:
    """One region: its pixels, the labels without tiles, and which of them meet a seam."""

    pixels: Array
    untiled: Array
    """Ids 1..n."""

    tile_shape: tuple[int, ...]
    axes: str
    at_seams: Array
    """Ids that meet a seam."""

    @classmethod
    def of(cls, image: Image, function: LabelFunction, region: Region, grid: TileGrid) -> Sample:
        """Read a region and segment it without tiles."""
        pixels = image.read(region)
        shape = tuple(pixels.shape[axis] for axis in grid.spatial)
        labels = function(pixels.reshape(shape).copy())
        where = f"image {image.url or 'in memory'!r}, region {region.start} to {region.stop}"
        untiled = check_labels(labels, shape=shape, where=where).reshape(pixels.shape)
        # Ids without gaps, so that counting by id takes no more memory than the labels.
        untiled = np.unique(untiled, return_inverse=True)[1].reshape(untiled.shape) + (
            0 if (untiled == 0).any() else 1
        )
        tiles = tuple(min(t, n) for t, n in zip(grid.tile_shape, pixels.shape, strict=True))
        at_seams = _ids_at_seams(untiled, tiles)
        return cls(pixels, untiled, tiles, grid.axes, at_seams)

    def compare(self, merged: Array) -> tuple[Agreement, Agreement]:
        """Hold merged labels against the untiled ones: all objects, and those at seams."""
        ids = _ids_at_seams(merged, self.tile_shape)
        at_seams = compare_objects(
            np.where(np.isin(self.untiled, self.at_seams), self.untiled, 0),
            np.where(np.isin(merged, ids), merged, 0),
        )
        return compare_objects(self.untiled, merged), at_seams


def _ids_at_seams(labels: Array, tile_shape: tuple[int, ...]) -> Array:
    """Return the ids that have a pixel on either side of a face."""
    at_faces = [np.zeros(0, dtype=labels.dtype)]
    for axis, (size, tile) in enumerate(zip(labels.shape, tile_shape, strict=True)):
        for face in range(tile, size, tile):
            at_faces.append(np.unique(np.take(labels, [face - 1, face], axis=axis)))
    ids = np.unique(np.concatenate(at_faces))
    return ids[ids > 0]


def pilot_grid(image: Image, tile_shape: Sequence[int] | int, max_pixels: int) -> TileGrid:
    """Return the grid asked for, its tiles halved until regions fit."""
    grid = plan_grid(image.axes, image.shape, tile_shape=tile_shape)
    if all(grid.grid_shape[axis] == 1 for axis in grid.spatial):
        raise PlanError(
            f"a pilot needs seams, and an image of shape {image.shape} is one tile of "
            f"{grid.tile_shape}; give a smaller tile_shape, or segment it without overlap"
        )
    tiles = list(grid.tile_shape)
    while prod(min(2 * t, n) for t, n in zip(tiles, grid.shape, strict=True)) > max_pixels:
        longest = max(grid.spatial, key=lambda axis: min(2 * tiles[axis], grid.shape[axis]))
        tiles[longest] = ceil(min(tiles[longest], grid.shape[longest]) / 2)
    return TileGrid(grid.axes, grid.shape, tuple(tiles), (0,) * grid.ndim)


def sample_regions(
    image: Image, grid: TileGrid, n_regions: int, seed: int
) -> tuple[list[Region], list[Region]]:
    """Draw boxes of tiles, disjoint and with most signal first; return them and what was probed."""
    n_regions = whole_number("n_regions", n_regions, least=1)
    window = [
        min(2, n) if axis in SPATIAL_AXES else 1
        for axis, n in zip(grid.axes, grid.grid_shape, strict=True)
    ]
    places = [n - w + 1 for n, w in zip(grid.grid_shape, window, strict=True)]
    drawn = np.random.default_rng(seed).choice(
        prod(places), min(prod(places), 8 * n_regions), replace=False
    )
    corners = [tuple(int(i) for i in np.unravel_index(d, places)) for d in drawn]
    boxes = [_box(grid, corner, window) for corner in corners]
    probes = [_probe(grid, box) for box in boxes]
    threshold = measure(image, probes).threshold("otsu")
    signal = [float((image.read(probe) > threshold).mean()) for probe in probes]
    picks: list[int] = []
    for i in np.argsort(-np.array(signal), kind="stable"):
        if len(picks) < n_regions and not any(_overlap(boxes[i], boxes[j]) for j in picks):
            picks.append(int(i))
    return [boxes[i] for i in picks], probes


def _box(grid: TileGrid, corner: Sequence[int], window: Sequence[int]) -> Region:
    """Return the pixels of a box of tiles."""
    start = tuple(c * t for c, t in zip(corner, grid.tile_shape, strict=True))
    stop = tuple(
        min(n, (c + w) * t)
        for c, w, t, n in zip(corner, window, grid.tile_shape, grid.shape, strict=True)
    )
    return Region(start, stop)


def _probe(grid: TileGrid, box: Region) -> Region:
    """Return the middle of a box, where its tiles meet."""
    size = round(PROBE_PIXELS ** (1 / len(grid.spatial)))
    middle = [(a + b) // 2 for a, b in zip(box.start, box.stop, strict=True)]
    return Region(
        tuple(max(a, m - size // 2) for a, m in zip(box.start, middle, strict=True)),
        tuple(min(b, max(m + size // 2, m + 1)) for b, m in zip(box.stop, middle, strict=True)),
    )


def _overlap(a: Region, b: Region) -> bool:
    return all(
        max(s, t) < min(u, v) for s, t, u, v in zip(a.start, b.start, a.stop, b.stop, strict=True)
    )


def object_extent(grid: TileGrid, samples: Sequence[Sample]) -> tuple[int, ...]:
    """Return the extent of a large object per axis, of those that the regions show whole."""
    from scipy import ndimage

    whole: list[list[int]] = []
    cut: list[list[int]] = []
    for sample in samples:
        for box in ndimage.find_objects(sample.untiled):
            at_border = any(
                box[axis].start == 0 or box[axis].stop == sample.untiled.shape[axis]
                for axis in grid.spatial
                if grid.grid_shape[axis] > 1
            )
            (cut if at_border else whole).append([s.stop - s.start for s in box])
    sizes = whole or cut
    if not sizes:
        return (0,) * grid.ndim
    return tuple(ceil(size) for size in np.percentile(sizes, LARGE, axis=0))
