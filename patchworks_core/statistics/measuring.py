"""Measuring: every pixel of an image is read once, and the statistics of the whole come out.

Pixels whose range is not known beforehand (floats, integers of more than 16 bits) are read twice:
first for their minimum and maximum, then for the histogram between the two.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from patchworks_core.images.image import Image
from patchworks_core.machine.pools import Pool
from patchworks_core.statistics.bins import Bins
from patchworks_core.statistics.statistics import (
    ImageStatistics,
    TileStatistics,
    limits,
    no_pixels,
    statistics_of,
    tile_statistics,
)
from patchworks_core.tiles.grid import TileGrid
from patchworks_core.tiles.regions import Region

DOING = "measuring the image"
"""What is done, as errors name it."""


def measure(image: Image, regions: Sequence[Region], pool: Pool | None = None) -> ImageStatistics:
    """Measure an image region by region.

    Parameters
    ----------
    image : Image
    regions : sequence of Region
        A partition of the image, such as the cores of its tile blocks in row-major order.
    pool : Pool, optional
        What the regions are read on; the calling thread by default.

    Returns
    -------
    ImageStatistics

    Raises
    ------
    ImageError
        If no pixel is finite.

    Examples
    --------
    >>> from patchworks_core.images.image import open_image
    >>> pixels = np.arange(12, dtype="uint8").reshape(3, 4)
    >>> halves = [Region((0, 0), (3, 2)), Region((0, 2), (3, 4))]
    >>> statistics = measure(open_image(pixels), halves)
    >>> statistics.mean, statistics.percentile(50), statistics.tile_maximum
    (5.5, 5.0, array([ 9, 11], dtype=uint8))
    """
    reads = [(region, region) for region in regions]
    return _measure(image, reads, pool)[1]


def measure_tiles(
    image: Image, grid: TileGrid, pool: Pool
) -> tuple[npt.NDArray[np.float64], ImageStatistics]:
    """Measure an image, and how bright the brightest pixel is that each tile reads.

    Returns
    -------
    maxima : (n_tiles,) float64 array
        In row-major order; NaN where a tile reads no finite pixel.
    statistics : ImageStatistics
    """
    return _measure(image, [(tile.read, tile.core) for tile in grid.tiles()], pool)


@dataclass(frozen=True, slots=True)
class _MeasureTask:
    """Measure a region: the maximum of what is read, and the limits or counts of its core."""

    image: Image
    bins: Bins | None

    def __call__(self, reads: tuple[Region, Region]) -> tuple[float, Any]:
        region, core = reads
        pixels = self.image.read(region)
        owned = pixels[core.slices_from(region.start)]
        of_core: Any = limits(owned) if self.bins is None else tile_statistics(owned, self.bins)
        if region == core and self.bins is not None:
            maximum = of_core.maximum
        else:
            maximum = (limits(pixels) or (None, None))[1]
        return np.nan if maximum is None else float(maximum), of_core


def _measure(
    image: Image, reads: Sequence[tuple[Region, Region]], pool: Pool | None
) -> tuple[npt.NDArray[np.float64], ImageStatistics]:
    """Measure pairs of a region that is read and the core that counts, in their order."""

    def results(bins: Bins | None) -> Iterator[tuple[float, Any]]:
        task = _MeasureTask(image, bins)
        if pool is None:
            return map(task, reads)
        n = len(reads)
        return pool.map(task, reads, step="measure", n=n, doing=DOING, is_ordered=True)

    bins = Bins.for_dtype(image.dtype)
    if bins is None:
        pairs = [pair for _, pair in results(None) if pair is not None]
        if not pairs:
            raise no_pixels(sum(core.size for _, core in reads), len(reads))
        bins = Bins.for_range(min(a for a, _ in pairs), max(b for _, b in pairs), image.dtype)
    maxima: list[float] = []

    def counted(bins: Bins) -> Iterator[TileStatistics]:
        """Yield what is counted of each core, and keep the maxima."""
        for maximum, tile in results(bins):
            maxima.append(maximum)
            yield tile

    statistics = statistics_of(counted(bins), bins, image.dtype)
    return np.array(maxima, dtype=np.float64), statistics
