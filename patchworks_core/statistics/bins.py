"""Value bins of a histogram, decided before any pixel is counted."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from math import isfinite
from typing import Any, TypeAlias

import numpy as np
import numpy.typing as npt

from patchworks_core.errors import ImageError

Array: TypeAlias = npt.NDArray[Any]

MAX_BINS = 65_536
"""Bins of a histogram: one per value of a 16-bit image, 512 KiB of counts."""

FIXED_POINT_STEPS = 2**24
"""Steps the bins are divided in for mean and std where they are not exact; a float32 mantissa."""

PIECE = 2**18
"""Pixels binned at a time, so that the temporaries stay in the cache whatever the tile."""


@dataclass(frozen=True, slots=True)
class Bins:
    """Equal value bins: bin ``i`` holds the values from ``start + i * width`` up to the next.

    Whole `start` and `width` are bins of integers, width 1 being one bin per value. The last bin
    of other bins includes its upper end.

    Examples
    --------
    >>> Bins.for_dtype("int8")
    Bins(start=-128, width=1, n=256)
    >>> Bins.for_range(0.0, 1.0, "float32").n
    65536
    """

    start: int | float
    """Lower end of the first bin."""

    width: int | float
    """Values per bin."""

    n: int
    """Number of bins."""

    def __post_init__(self) -> None:
        if not (self.n >= 1 and self.width > 0 and isfinite(self.start) and isfinite(self.width)):
            raise ImageError(f"bins need a finite start, a width above 0 and n >= 1, got {self!r}")

    @property
    def is_exact(self) -> bool:
        """True where every bin is one integer."""
        return isinstance(self.start, int) and isinstance(self.width, int) and self.width == 1

    @property
    def values(self) -> Array:
        """The value that stands for each bin: the integer itself, or the middle of the bin."""
        positions = np.arange(self.n)
        if self.is_exact:
            return self.start + positions
        whole = isinstance(self.start, int) and isinstance(self.width, int)
        middle = (self.width - 1) / 2 if whole else self.width / 2
        return np.asarray(self.start + positions * float(self.width) + middle)

    @property
    def step(self) -> float:
        """Resolution of mean and std, in values."""
        return 1.0 if self.is_exact else float(self.width) * self.n / FIXED_POINT_STEPS

    @classmethod
    def for_dtype(cls, dtype: npt.DTypeLike) -> Bins | None:
        """Return one bin per value of `dtype`, or None where it is wider than 16 bits."""
        dtype = np.dtype(dtype)
        if dtype.kind == "b":
            return cls(0, 1, 2)
        if dtype.kind in "iu" and dtype.itemsize <= 2:
            limits = np.iinfo(dtype)
            return cls(int(limits.min), 1, int(limits.max) - int(limits.min) + 1)
        return None

    @classmethod
    def for_range(cls, minimum: float, maximum: float, dtype: npt.DTypeLike) -> Bins:
        """Return bins that hold every value from `minimum` to `maximum`.

        Integers get one bin per value where the range allows it, otherwise bins a whole number
        wide, so that none holds more values than another. Floats get 65,536 bins.

        Raises
        ------
        ImageError
            If the range is not finite or is reversed.
        """
        if not (minimum <= maximum and isfinite(float(maximum) - float(minimum))):
            raise ImageError(
                f"bins need a finite range with minimum <= maximum, got {minimum!r} to {maximum!r};"
                " rescale the image to a range its dtype can span"
            )
        if np.dtype(dtype).kind in "biu":
            n_values = int(maximum) - int(minimum) + 1
            width = -(-n_values // MAX_BINS)
            return cls(int(minimum), width, -(-n_values // width))
        float_width = (float(maximum) - float(minimum)) / MAX_BINS
        if float_width == 0:  # constant, or a range too small to be divided
            return cls(float(minimum), 1.0, 1)
        return cls(float(minimum), float_width, MAX_BINS)


def finite_pieces(pixels: Array) -> Iterable[Array]:
    """Yield the finite pixels in flat pieces.

    Raises
    ------
    ImageError
        If the pixels are not boolean, integer or real.

    Examples
    --------
    >>> [piece.tolist() for piece in finite_pieces(np.array([[1.0, np.nan], [3.0, np.inf]]))]
    [[1.0, 3.0]]
    """
    if pixels.dtype.kind not in "biuf":
        raise ImageError(
            f"statistics need boolean, integer or real pixels, got dtype {pixels.dtype};"
            " convert the image first"
        )
    flat = pixels.reshape(-1)
    for first in range(0, flat.size, PIECE):
        piece = flat[first : first + PIECE]
        yield piece[np.isfinite(piece)] if piece.dtype.kind == "f" else piece


def _bin_positions(values: Array, bins: Bins) -> Array:
    """Return the bin of each of `values`; those outside are an error."""
    if bins.is_exact and values.dtype.kind in "biu":
        if values.dtype.itemsize < 8:
            positions = values.astype(np.int64) - int(bins.start)
        else:  # wraps to a negative, so an outsider, where the difference exceeds 63 bits
            positions = (values - np.asarray(bins.start, values.dtype)).astype(np.int64)
        highest = bins.n - 1
    else:
        scaled = (values.astype(np.float64) - float(bins.start)) / float(bins.width)
        # the maximum lies on the upper end of the last bin, so position n is still inside
        positions = np.floor(np.clip(scaled, -1, bins.n + 1)).astype(np.int64)
        highest = bins.n
    if values.size and (positions.min() < 0 or positions.max() > highest):
        raise ImageError(
            f"the bins hold {bins.start!r} to {bins.start + bins.width * bins.n!r}, got pixels from"
            f" {values.min().item()!r} to {values.max().item()!r}; measure with bins=None to have"
            " the range measured first"
        )
    return np.minimum(positions, bins.n - 1)


def count_values(pixels: Array, bins: Bins) -> npt.NDArray[np.int64]:
    """Count the finite pixels in each bin.

    Parameters
    ----------
    pixels : ndarray
        Boolean, integer or real pixels of any shape.
    bins : Bins
        Bins that hold every finite pixel.

    Returns
    -------
    ndarray of int64, shape (bins.n,)
        NaN and infinities are in no bin.

    Raises
    ------
    ImageError
        If a finite pixel lies outside the bins, or the pixels are complex or objects.

    Examples
    --------
    >>> count_values(np.array([0, 2, 2, 3]), Bins(0, 1, 4))
    array([1, 0, 2, 1])
    """
    counts = np.zeros(bins.n, np.int64)
    for piece in finite_pieces(pixels):
        counts += np.bincount(_bin_positions(piece, bins), minlength=bins.n)
    return counts
