"""Exact statistics of a whole image from one streaming pass over its tiles.

A threshold taken from a tile differs from the next tile's, and the seam shows. So the histogram of
the whole image is measured first, tile by tile, and every tile is given the same numbers:

1. `Bins` decides which value falls where, before any pixel is seen (`Bins.for_dtype`), or after a
   first pass for minimum and maximum where the dtype is too wide for that (`Bins.for_range`).
2. `tile_statistics` counts one tile. What it returns adds up, in integers only, so the result is
   the same for any tiling and any order.
3. `ImageStatistics` answers: percentiles and global thresholds.

`patchworks_core.statistics.measuring` reads the image.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from functools import cached_property
from math import ceil, sqrt
from typing import Any, TypeAlias

import numpy as np
import numpy.typing as npt

from patchworks_core.errors import ImageError
from patchworks_core.statistics.bins import Bins, count_values, finite_pieces
from patchworks_core.statistics.thresholds import METHODS

Array: TypeAlias = npt.NDArray[Any]


def limits(pixels: Array) -> tuple[Any, Any] | None:
    """Return the smallest and largest finite pixel, or None where there is none."""
    extremes = [(piece.min(), piece.max()) for piece in finite_pieces(pixels) if piece.size]
    if not extremes:
        return None
    return min(low for low, _ in extremes).item(), max(high for _, high in extremes).item()


@dataclass(frozen=True, slots=True, eq=False)
class TileStatistics:
    """What one tile adds to the statistics of the image; two of them add up with ``+``."""

    counts: npt.NDArray[np.int64]
    """Finite pixels per bin."""

    minimum: int | float | None
    """Smallest finite pixel, None where there is none."""

    maximum: int | float | None
    """Largest finite pixel, None where there is none."""

    n_not_finite: int
    """Pixels that are NaN or infinite."""

    sum: int
    """Sum of the finite pixels, counted from the start of the bins in their `step`."""

    sum_squares: int
    """Sum of the squares of the same numbers."""

    def __add__(self, other: TileStatistics) -> TileStatistics:
        lows = [m for m in (self.minimum, other.minimum) if m is not None]
        highs = [m for m in (self.maximum, other.maximum) if m is not None]
        return TileStatistics(
            self.counts + other.counts,
            min(lows, default=None),
            max(highs, default=None),
            self.n_not_finite + other.n_not_finite,
            self.sum + other.sum,
            self.sum_squares + other.sum_squares,
        )


def _exact_sum(numbers: npt.NDArray[np.int64]) -> int:
    """Sum numbers in [0, 2**62] without wrapping: the halves are summed apart."""
    return (int((numbers >> 31).sum()) << 31) + int((numbers & (2**31 - 1)).sum())


def tile_statistics(pixels: Array, bins: Bins) -> TileStatistics:
    """Measure one tile.

    Parameters
    ----------
    pixels : ndarray
        Pixels the tile owns (its core), of any shape.
    bins : Bins
        Bins that hold every finite pixel of the image.

    Returns
    -------
    TileStatistics

    Raises
    ------
    ImageError
        As `count_values`.

    Examples
    --------
    >>> tile = tile_statistics(np.array([[1, 2], [2, 9]], "uint8"), Bins.for_dtype("uint8"))
    >>> (tile + tile).sum, tile.maximum
    (28, 9)
    """
    counts = count_values(pixels, bins)
    total = squares = 0
    if bins.is_exact:
        occupied = np.flatnonzero(counts)
        pairs = list(zip(occupied.tolist(), counts[occupied].tolist(), strict=True))
        total = sum(i * n for i, n in pairs)
        squares = sum(i * i * n for i, n in pairs)
    else:
        for piece in finite_pieces(pixels):
            steps = (piece.astype(np.float64) - float(bins.start)) / bins.step
            numbers = np.rint(steps).astype(np.int64)
            total += _exact_sum(numbers)
            squares += _exact_sum(numbers * numbers)
    low, high = limits(pixels) or (None, None)
    n_not_finite = pixels.size - int(counts.sum())
    return TileStatistics(counts, low, high, n_not_finite, total, squares)


@dataclass(frozen=True, eq=False)
class ImageStatistics:
    """Statistics of a whole image, the same however it was tiled.

    The histogram, minimum and maximum are exact. So are mean and std where the bins are exact;
    otherwise they are those of the pixels rounded to the range of the image divided by 2**24,
    summed in integers, so that they do not depend on the order of summation either.
    """

    dtype: str
    """Data type of the pixels."""

    bins: Bins
    """Where each count belongs."""

    counts: npt.NDArray[np.int64]
    """Finite pixels per bin."""

    minimum: int | float
    """Smallest finite pixel."""

    maximum: int | float
    """Largest finite pixel."""

    mean: float
    """Mean of the finite pixels."""

    std: float
    """Standard deviation of the finite pixels (divided by n)."""

    n_pixels: int
    """Pixels of the image, finite or not."""

    n_not_finite: int
    """Pixels that are NaN or infinite."""

    tile_maximum: Array
    """Largest finite pixel of each region measured, in their order; NaN where there is none."""

    @cached_property
    def _cumulative(self) -> npt.NDArray[np.int64]:
        return np.cumsum(self.counts)

    def percentile(self, q: float) -> float:
        """Return the smallest value that at least `q` percent of the finite pixels do not exceed.

        That is ``numpy.percentile(..., method="inverted_cdf")``, exact where bins hold one value
        each and otherwise within one bin; always between minimum and maximum.

        Raises
        ------
        ImageError
            If `q` is not within 0 to 100.
        """
        if not 0 <= q <= 100:
            raise ImageError(f"a percentile needs 0 <= q <= 100, got {q!r}")
        if q in (0, 100):
            return float(self.minimum if q == 0 else self.maximum)
        rank = max(1, ceil(q * int(self._cumulative[-1]) / 100))
        value = float(self.bins.values[np.searchsorted(self._cumulative, rank)])
        return min(max(value, float(self.minimum)), float(self.maximum))

    def threshold(self, method: str = "otsu") -> float:
        """Return the global threshold; foreground is what lies above it.

        Parameters
        ----------
        method : {"otsu", "li", "yen"}, default "otsu"
            Named as in `skimage.filters`, whose result on the whole image it equals where bins
            bins hold one value each. The threshold of an image of one value is that value, so
            that nothing lies above it.

        Raises
        ------
        ImageError
            If the method is unknown.
        """
        if method not in METHODS:
            raise ImageError(f"a threshold method is one of {sorted(METHODS)}, got {method!r}")
        if method not in self._thresholds:
            self._thresholds[method] = self._threshold(method)
        return self._thresholds[method]

    @cached_property
    def _thresholds(self) -> dict[str, float]:
        """Those that were asked for; every tile asks again."""
        return {}

    def _threshold(self, method: str) -> float:
        occupied = np.flatnonzero(self.counts)
        span = slice(occupied[0], occupied[-1] + 1)
        if occupied.size == 1:  # one value, or values that share a bin
            return float(self.minimum)
        return METHODS[method](self.counts[span], self.bins.values[span])

    def to_dict(self) -> dict[str, Any]:
        """Return JSON-ready values, the counts trimmed to where they are not 0."""
        occupied = np.flatnonzero(self.counts)
        first, last = int(occupied[0]), int(occupied[-1])
        finite = np.isfinite(self.tile_maximum).tolist()
        maxima = self.tile_maximum.tolist()
        return {
            "dtype": self.dtype,
            "bins": {"start": self.bins.start, "width": self.bins.width, "n": self.bins.n},
            "first_bin": first,
            "counts": self.counts[first : last + 1].tolist(),
            "minimum": self.minimum,
            "maximum": self.maximum,
            "mean": self.mean,
            "std": self.std,
            "n_pixels": self.n_pixels,
            "n_not_finite": self.n_not_finite,
            "tile_maximum": [m if ok else None for m, ok in zip(maxima, finite, strict=True)],
        }

    @classmethod
    def from_dict(cls, record: dict[str, Any]) -> ImageStatistics:
        """Read what `to_dict` wrote.

        Raises
        ------
        ImageError
            If a field is missing or unknown.
        """
        try:
            fields = dict(record)
            bins = Bins(**fields.pop("bins"))
            first, occupied = fields.pop("first_bin"), fields.pop("counts")
            counts = np.zeros(bins.n, np.int64)
            counts[first : first + len(occupied)] = occupied
            maxima = _maxima(fields.pop("tile_maximum"), fields["dtype"])
            return cls(bins=bins, counts=counts, tile_maximum=maxima, **fields)
        except (KeyError, TypeError, ValueError) as error:
            raise ImageError(
                f"not the record of image statistics: {_names(record)} ({error!r});"
                " measure the image again"
            ) from error


def _names(record: Any) -> str:
    return repr(sorted(record)) if isinstance(record, dict) else repr(record)


def _maxima(values: Sequence[int | float | None], dtype: npt.DTypeLike) -> Array:
    """Return the tile maxima as an array: in the dtype of the image, or float64 with NaN."""
    if np.dtype(dtype).kind in "biu" and None not in values:
        return np.asarray(values, dtype)
    return np.asarray([np.nan if v is None else v for v in values], np.float64)


def statistics_of(
    tiles: Iterable[TileStatistics], bins: Bins, dtype: npt.DTypeLike
) -> ImageStatistics:
    """Add up the tiles of an image that were measured with the same bins.

    Raises
    ------
    ImageError
        If no pixel is finite.
    """
    total: TileStatistics | None = None
    maxima = []
    for tile in tiles:
        maxima.append(tile.maximum)
        total = tile if total is None else total + tile
    if total is None or total.minimum is None or total.maximum is None:
        raise no_pixels(0 if total is None else total.n_not_finite, len(maxima))
    n = int(total.counts.sum())
    return ImageStatistics(
        dtype=np.dtype(dtype).name,
        bins=bins,
        counts=total.counts,
        minimum=total.minimum,
        maximum=total.maximum,
        mean=float(bins.start) + bins.step * (total.sum / n),
        std=bins.step * sqrt(n * total.sum_squares - total.sum**2) / n,
        n_pixels=n + total.n_not_finite,
        n_not_finite=total.n_not_finite,
        tile_maximum=_maxima(maxima, dtype),
    )


def no_pixels(n_pixels: int, n_regions: int) -> ImageError:
    """Return the error of an image that has nothing to measure."""
    return ImageError(
        f"statistics need at least one finite pixel, got none among {n_pixels} pixels in"
        f" {n_regions} regions; check that this is the right image and level"
    )
