"""Which tiles have signal: exact maxima of what each tile reads, from one pass over the image.

1. `measure_tiles` reads what each tile reads (core and halo), takes its maximum, and counts the
   pixels of its core: the image's own histogram comes with it.
2. `background_threshold` reads off that histogram how bright the background gets.
3. A tile is empty where no pixel that it reads is above the threshold. Halo included: the faint rim
   of a bright neighbour is still found.

The maxima are kept beside the image and belong to its fingerprint, so another threshold costs
nothing and a changed image is measured again.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from hashlib import blake2b
from typing import Any

import numpy as np
import numpy.typing as npt
from upath import UPath

from patchworks_core.calls.values import Values
from patchworks_core.files.records import read_mapping
from patchworks_core.files.storage import as_path, write_text
from patchworks_core.images.image import DEFAULT_CHANNEL, DEFAULT_LEVEL, Image, open_image
from patchworks_core.images.image_source import ImageSource
from patchworks_core.machine.pools import Compute
from patchworks_core.statistics.measuring import measure_tiles
from patchworks_core.statistics.statistics import ImageStatistics
from patchworks_core.tiles.grid import TileGrid, plan_grid
from patchworks_core.tiles.numbers import finite_number

RECORD_VERSION = 1
"""Of the layout of the record beside the image."""

NOISE_WIDTHS = 5.0
"""Background is taken to reach this many standard deviations above its most frequent value; of a
million Gaussian pixels fewer than one is brighter."""


@dataclass(frozen=True, slots=True, eq=False)
class EmptyTiles(Values):
    """Which tiles of an image have signal; ``empty["n_tiles"]`` is ``empty.n_tiles``."""

    threshold: float
    """A tile is empty where no pixel that it reads is above this."""

    n_tiles: int
    """Tiles in all."""

    n_occupied: int
    """Tiles with a pixel above the threshold."""

    occupancy: npt.NDArray[np.bool_]
    """Tiles per axis of the image; True where a tile is occupied."""

    maxima: npt.NDArray[Any]
    """The brightest finite pixel that each tile reads; NaN where it reads none."""

    statistics: ImageStatistics
    """Of the whole image; they came with the same pass."""

    @property
    def empty_tiles(self) -> frozenset[int]:
        """Numbers of the tiles that are empty, in row-major order from 0."""
        return frozenset(np.flatnonzero(~self.occupancy.ravel()).tolist())

    @property
    def empty_fraction(self) -> float:
        """Share of the tiles that are empty."""
        return 1 - self.n_occupied / self.n_tiles

    def __str__(self) -> str:
        return (
            f"{self.n_tiles - self.n_occupied} of {self.n_tiles} tiles are empty "
            f"({self.empty_fraction:.0%}): no pixel that they read is above {self.threshold:g}"
        )


def estimate_empty_tiles(
    image: ImageSource,
    tile_shape: Sequence[int] | int,
    threshold: float | None = None,
    channel: int | str | None = DEFAULT_CHANNEL,
    level: int = DEFAULT_LEVEL,
    *,
    overlap: Sequence[int] | int = 0,
    axes: str | None = None,
    cache: bool = True,
) -> EmptyTiles:
    """Tell which tiles of an image hold nothing above a threshold; exact, every pixel is looked at.

    Parameters
    ----------
    image : array, path, URL or Image
        As in `tile_process`.
    tile_shape, overlap
        As in `patchworks_core.tiles.grid.plan_grid`.
    threshold : float, optional
        Brightest value that is background. By default that of `background_threshold`.
    channel, level, axes
        As in `tile_process`.
    cache : bool
        Keep the maxima beside the image, in a hidden file, and use them while the image is
        unchanged. An image in memory, or in a place that cannot be written to, is measured anew.

    Returns
    -------
    EmptyTiles

    Examples
    --------
    >>> pixels = np.zeros((8, 8), dtype="u1")
    >>> pixels[5, 6] = 9
    >>> found = estimate_empty_tiles(pixels, 4)
    >>> found.occupancy.astype(int), found.empty_fraction
    (array([[0, 0],
           [0, 1]]), 0.75)
    """
    opened = open_image(image, channel=channel, level=level, axes=axes)
    grid = plan_grid(opened.axes, opened.shape, tile_shape=tile_shape, overlap=overlap)
    return find_empty_tiles(opened, grid, threshold=threshold, cache=cache)


def find_empty_tiles(
    image: Image,
    grid: TileGrid,
    *,
    threshold: float | None = None,
    compute: Compute | None = None,
    cache: bool = True,
) -> EmptyTiles:
    """Do as `estimate_empty_tiles`, for the tiles of a grid.

    Parameters
    ----------
    image : Image
    grid : TileGrid
        Of that image.
    threshold : float, optional
    compute : Compute, optional
        What the image is read on; one thread by default.
    cache : bool
    """
    if threshold is not None:
        finite_number("the threshold of empty tiles", threshold)
    record = _record_path(image, grid) if cache else None
    measured = _read_record(record, image) if record is not None else None
    if measured is None:
        with (compute or Compute(1, only_here=True)).open(grid, image.dtype) as pool:
            measured = measure_tiles(image, grid, pool)
        if record is not None:
            _write_record(record, image, *measured)
    maxima, statistics = measured
    if threshold is None:
        threshold = background_threshold(statistics)
    occupancy = (maxima > threshold).reshape(grid.grid_shape)
    return EmptyTiles(
        threshold=float(threshold),
        n_tiles=grid.n_tiles,
        n_occupied=int(np.count_nonzero(occupancy)),
        occupancy=occupancy,
        maxima=maxima.reshape(grid.grid_shape),
        statistics=statistics,
    )


def background_threshold(statistics: ImageStatistics) -> float:
    """Return how bright the background of an image gets, erring on the dark side.

    Background is the image's most frequent value and the noise around it. How far noise reaches
    is seen below that value, where there are no objects: `NOISE_WIDTHS` times the spread there, and
    not farther up than the darkest pixel is down. An image that has more below its most frequent
    value than above it has dark objects, or no background: then only tiles without any contrast
    are empty.

    Examples
    --------
    >>> from patchworks_core.tiles.regions import Region
    >>> from patchworks_core.statistics.measuring import measure
    >>> pixels = np.random.default_rng(0).normal(100, 3, (256, 256)).round().astype("u2")
    >>> whole = [Region((0, 0), (256, 256))]
    >>> 110 < background_threshold(measure(open_image(pixels), whole)) < 118
    True
    """
    values, counts = statistics.bins.values, statistics.counts
    mode = float(values[int(np.argmax(counts))])
    below = mode - float(statistics.minimum)
    if below > float(statistics.maximum) - mode:
        return float(statistics.minimum)
    darker = values < mode
    n_darker = int(counts[darker].sum())
    if not n_darker:
        return mode
    # The spread of one side of a symmetric distribution around its mode.
    spread = np.sqrt(float((counts[darker] * (mode - values[darker]) ** 2).sum()) / n_darker)
    return mode + min(below, NOISE_WIDTHS * float(spread))


def _record_path(image: Image, grid: TileGrid) -> UPath | None:
    """Return where the maxima of an image are kept; None for an image in memory."""
    if image.url is None:
        return None
    place = as_path(image.url)
    what = json.dumps([image.channel, image.level, grid.to_dict()], sort_keys=True)
    digest = blake2b(what.encode(), digest_size=6).hexdigest()
    return place.parent / f".{place.name}.occupancy-{digest}.json"


def _read_record(path: UPath, image: Image) -> tuple[npt.NDArray[Any], ImageStatistics] | None:
    """Return what was measured of just this content, or None; a damaged record counts as none."""
    try:
        record = read_mapping(path)
    except OSError:  # a place that may not be looked at
        return None
    expected = (RECORD_VERSION, image.fingerprint)
    if record is None or (record.get("record_version"), record.get("fingerprint")) != expected:
        return None
    try:
        maxima = [np.nan if m is None else m for m in record["maxima"]]
        return np.array(maxima, dtype=np.float64), ImageStatistics.from_dict(record["statistics"])
    except (KeyError, TypeError, ValueError):
        return None


def _write_record(
    path: UPath, image: Image, maxima: npt.NDArray[Any], statistics: ImageStatistics
) -> None:
    record = {
        "record_version": RECORD_VERSION,
        "fingerprint": image.fingerprint,
        "maxima": [
            m if ok else None for m, ok in zip(maxima.tolist(), np.isfinite(maxima), strict=True)
        ],
        "statistics": statistics.to_dict(),
    }
    try:
        write_text(path, json.dumps(record) + "\n")
    except OSError:  # a place that can only be read; the measurement is good all the same
        return
