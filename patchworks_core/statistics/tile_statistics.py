"""What one tile adds to the statistics of its image: counts, limits, and sums that are exact."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any, TypeAlias

import numpy as np
import numpy.typing as npt

from patchworks_core.statistics.bins import Bins, count_values, finite_pieces

Array: TypeAlias = npt.NDArray[Any]


def limits(pixels: Array) -> tuple[Any, Any] | None:
    """Return the smallest and largest finite pixel, or None where there is none."""
    found = [(piece.min(), piece.max()) for piece in finite_pieces(pixels) if piece.size]
    if not found:
        return None
    return min(low for low, _ in found).item(), max(high for _, high in found).item()


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
