"""Filters as operations: smoothing, medians, minima and maxima, scaling; exact in tiles.

Each is a thin wrapper over `scipy.ndimage` (small medians: `patchworks_core.plugins.medians`; large
ones of 8 bits: `skimage.filters.rank`) that knows its halo. The image is reflected at its borders
(``mode="reflect"``). Sizes are in pixels: one number for every spatial axis, one per axis counted
from the last, or by axis name; ``{"y": 3, "x": 3}`` filters the planes of a volume.

All of them release the GIL (measured by ``benchmarks/filters.py``): threads are the right workers.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, TypeAlias

import numpy as np
import numpy.typing as npt

from patchworks_core.errors import ImageError
from patchworks_core.operations.neighbourhoods import (
    checked,
    checked_whole,
    each,
    float_dtype,
    footprint,
    gaussian_radius,
    known_shape,
    maximum_around,
    minimum_around,
    of_finite,
    sizes_of,
    smoothed,
)
from patchworks_core.operations.operations import Operation
from patchworks_core.operations.places import PerAxis, TilePlace, per_axis
from patchworks_core.statistics.statistics import ImageStatistics

Array: TypeAlias = npt.NDArray[Any]

_PIECE = 1 << 20
"""Pixels of neighbourhoods that are sorted at a time."""


def gaussian(sigma: PerAxis, *, truncate: float = 4.0) -> Operation:
    """Return an operation that smooths with a Gaussian.

    Parameters
    ----------
    sigma : float, sequence or mapping
        Pixels; 0 leaves an axis as it is.
    truncate : float, default 4
        The Gaussian is cut off at so many sigmas; the halo is that, rounded.

    Returns
    -------
    Operation
        float32 of pixels of up to 16 bits and of float32, float64 of all others. Pixels that are
        not finite have no weight, and are NaN in the result.

    Raises
    ------
    ImageError
        If a number is negative.

    Examples
    --------
    >>> gaussian((1.5, 2)).halo_of("yx")
    (6, 8)
    """
    sigma = checked("sigma", sigma, lambda v: v >= 0, "0 or more")
    if not truncate > 0:
        raise ImageError(f"truncate must be above 0 sigmas, got {truncate!r}")
    return Operation(
        "gaussian",
        _gaussian,
        {"sigma": sigma, "truncate": truncate},
        each(sigma, lambda v: gaussian_radius(v, truncate)),
        float_dtype,
        version="2",
    )


def median(size: PerAxis = 3, *, shape: str = "box") -> Operation:
    """Return an operation that takes the median of a neighbourhood.

    Parameters
    ----------
    size : int, sequence or mapping
        Odd.
    shape : {"box", "ball"}
        A ball holds the pixels at most half of `size` away: a disk in planes.

    Returns
    -------
    Operation
        Keeps the data type. Pixels that are not finite are left out, and are NaN in the result; of
        an even number of others the median is the mean of the middle two.

    Raises
    ------
    ImageError
        If a size is not odd, or there is no such shape.

    Notes
    -----
    8-bit pixels go through `skimage.filters.rank`, all others through
    `scipy.ndimage.median_filter`, where values of more than 53 bits are rounded.

    Examples
    --------
    >>> median(3)(np.array([[0, 0, 0], [0, 9, 0], [0, 0, 0]])).max()
    np.int64(0)
    """
    return _of_neighbourhood("median", _median, size, shape)


def maximum(size: PerAxis = 3, *, shape: str = "box") -> Operation:
    """Return an operation that takes the maximum of a neighbourhood, as `median` does.

    Examples
    --------
    >>> maximum(3)(np.array([0, 0, 5, 0, 1, 0]))
    array([0, 5, 5, 5, 1, 1])
    """
    return _of_neighbourhood("maximum", _maximum, size, shape)


def minimum(size: PerAxis = 3, *, shape: str = "box") -> Operation:
    """Return an operation that takes the minimum of a neighbourhood, as `median` does.

    Examples
    --------
    >>> minimum(3)(np.array([7, 7, 7, 0, 7, 7]))
    array([7, 7, 0, 0, 0, 7])
    """
    return _of_neighbourhood("minimum", _minimum, size, shape)


def clip_and_scale(
    low: float | None = None,
    high: float | None = None,
    *,
    statistics: ImageStatistics | None = None,
    percentiles: tuple[float, float] = (1.0, 99.8),
) -> Operation:
    """Return an operation that brings the values from `low` to `high` to 0 to 1, and clips.

    Parameters
    ----------
    low, high : float, optional
        Values of the pixels.
    statistics : ImageStatistics, optional
        Of the whole image, from which a missing `low` or `high` is taken; never of a tile.
    percentiles : tuple of float
        Which of its percentiles they are.

    Returns
    -------
    Operation
        float32 of pixels of up to 16 bits and of float32, float64 of all others; what is not
        finite is NaN.

    Raises
    ------
    ImageError
        If they are not known, or `high` is not above `low`.

    Examples
    --------
    >>> clip_and_scale(10, 30)(np.array([0, 15, 99], "uint8"))
    array([0.  , 0.25, 1.  ], dtype=float32)
    """
    if statistics is not None:
        low = statistics.percentile(percentiles[0]) if low is None else low
        high = statistics.percentile(percentiles[1]) if high is None else high
    if low is None or high is None:
        raise ImageError(
            f"clip_and_scale needs low and high, got {low!r} and {high!r}; pass both, or the "
            "statistics= of the whole image to take percentiles from"
        )
    if not low < high:
        raise ImageError(f"clip_and_scale needs low < high, got {low!r} and {high!r}")
    limits = {"low": float(low), "high": float(high)}
    return Operation("clip_and_scale", _clip_and_scale, limits, 0, float_dtype, version="2")


def _gaussian(pixels: Array, *, place: TilePlace, sigma: PerAxis, truncate: float) -> Array:
    return smoothed(pixels, per_axis("sigma", sigma, place.axes), truncate)


def _median(pixels: Array, *, place: TilePlace, size: PerAxis, shape: str) -> Array:
    from scipy import ndimage

    sizes = sizes_of(size, place.axes)
    around = footprint(sizes, shape)
    # Types that SciPy's rank filters do not take; every value of theirs fits the other.
    wider = {"bool": np.uint8, "float16": np.float32}.get(pixels.dtype.name)
    if wider is not None:
        median = _median(pixels.astype(wider), place=place, size=size, shape=shape)
        return median.astype(pixels.dtype)
    if pixels.dtype == np.uint8 and pixels.ndim > 1:
        return _rank_median(pixels, around)
    result = of_finite(
        pixels, lambda clean: np.asarray(ndimage.median_filter(clean, footprint=around)), 0
    )
    if pixels.dtype.kind == "f":
        _leave_out(pixels, around, result)
    return result


def _leave_out(pixels: Array, around: Array, result: Array) -> None:
    """Write the median of the finite pixels where the neighbourhood of one holds others."""
    from scipy import ndimage

    is_missing = ~np.isfinite(pixels)
    if not is_missing.any():
        return
    meets = ndimage.maximum_filter(is_missing.view(np.uint8), footprint=around) > 0
    places, offsets = np.argwhere(meets & ~is_missing), np.argwhere(around)
    margins = [(k // 2, k // 2) for k in around.shape]
    padded = np.pad(np.where(is_missing, np.nan, pixels), margins, mode="symmetric")
    step = max(1, _PIECE // len(offsets))
    for first in range(0, len(places), step):
        part = places[first : first + step]
        windows = padded[tuple((part[:, None] + offsets).transpose(2, 0, 1))]
        result[tuple(part.T)] = np.nanmedian(windows, axis=1)


def _rank_median(pixels: Array, around: Array) -> Array:
    """Return the median of 8-bit pixels by a running histogram."""
    from skimage.filters import rank

    margins = [(k // 2, k // 2) for k in around.shape]
    # skimage leaves out what lies beyond the border, so the reflection is made before.
    median = rank.median(np.pad(pixels, margins, mode="symmetric"), around.astype(np.uint8))
    inside = zip(margins, pixels.shape, strict=True)
    return np.asarray(median)[tuple(slice(a, a + n) for (a, _), n in inside)]


def _maximum(pixels: Array, *, place: TilePlace, size: PerAxis, shape: str) -> Array:
    return maximum_around(pixels, sizes_of(size, place.axes), shape)


def _minimum(pixels: Array, *, place: TilePlace, size: PerAxis, shape: str) -> Array:
    return minimum_around(pixels, sizes_of(size, place.axes), shape)


def _clip_and_scale(pixels: Array, *, low: float, high: float) -> Array:
    dtype = float_dtype(pixels.dtype)
    is_missing = ~np.isfinite(pixels) if pixels.dtype.kind == "f" else np.zeros(1, bool)
    scaled = np.subtract(pixels, low, out=pixels if pixels.dtype == dtype else None, dtype=dtype)
    scaled *= 1 / (high - low)
    np.clip(scaled, 0, 1, out=scaled)
    if is_missing.any():
        scaled[is_missing] = np.nan
    return scaled


def _of_neighbourhood(
    name: str, function: Callable[..., Array], size: PerAxis, shape: str
) -> Operation:
    """Return an operation on the box or ball of `size` around each pixel."""
    size = checked_whole("size", size, lambda v: v >= 1 and v % 2 == 1, "an odd whole number")
    parameters = {"size": size, "shape": known_shape(shape)}
    halo = each(size, lambda v: int(v) // 2)
    return Operation(name, function, parameters, halo, version="2")
