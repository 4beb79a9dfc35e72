"""Filters as operations: smoothing, medians, minima and maxima, scaling; exact in tiles.

Each is a thin wrapper over `scipy.ndimage` (small medians: `patchworks_core.plugins.medians`; large
ones of 8 bits: `skimage.filters.rank`) that knows its halo. The image is reflected at its borders
(``mode="reflect"``). Sizes are in pixels: one number for every spatial axis, one per axis counted
from the last, or by axis name; ``{"y": 3, "x": 3}`` filters the planes of a volume.

All of them release the GIL (measured by ``benchmarks/filters.py``): threads are the right workers.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
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
    neighbourhood,
    sizes_of,
    smoothed,
    without_nan,
)
from patchworks_core.operations.operations import Operation
from patchworks_core.operations.places import PerAxis, TilePlace, per_axis
from patchworks_core.statistics.statistics import ImageStatistics

Array: TypeAlias = npt.NDArray[Any]


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
        float32 of pixels of up to 16 bits and of float32, float64 of all others.

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
        Keeps the data type. A NaN makes its neighbourhood NaN.

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
        float32 of pixels of up to 16 bits and of float32, float64 of all others; NaN stays NaN.

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
    return Operation("clip_and_scale", _clip_and_scale, limits, 0, float_dtype)


def _gaussian(pixels: Array, *, place: TilePlace, sigma: PerAxis, truncate: float) -> Array:
    return smoothed(pixels, per_axis("sigma", sigma, place.axes), truncate)


def _median(pixels: Array, *, place: TilePlace, size: PerAxis, shape: str) -> Array:
    from scipy import ndimage

    sizes = sizes_of(size, place.axes)
    around = footprint(sizes, shape)
    # Types that SciPy's rank filters do not take; every value of theirs fits the other.
    wider = {"bool": np.uint8, "float16": np.float32}.get(pixels.dtype.name)
    if wider is not None:
        found = _median(pixels.astype(wider), place=place, size=size, shape=shape)
        return found.astype(pixels.dtype)
    if pixels.dtype == np.uint8 and pixels.ndim > 1:
        return _rank_median(pixels, around)
    return without_nan(
        pixels,
        lambda clean: np.asarray(ndimage.median_filter(clean, footprint=around)),
        sizes,
        shape,
    )


def _rank_median(pixels: Array, around: Array) -> Array:
    """Return the median of 8-bit pixels by a running histogram."""
    from skimage.filters import rank

    margins = [(k // 2, k // 2) for k in around.shape]
    # skimage leaves out what lies beyond the border, so the reflection is made before.
    found = rank.median(np.pad(pixels, margins, mode="symmetric"), around.astype(np.uint8))
    inside = zip(margins, pixels.shape, strict=True)
    return np.asarray(found)[tuple(slice(a, a + n) for (a, _), n in inside)]


def _maximum(pixels: Array, *, place: TilePlace, size: PerAxis, shape: str) -> Array:
    return _extreme("maximum_filter", pixels, sizes_of(size, place.axes), shape)


def _minimum(pixels: Array, *, place: TilePlace, size: PerAxis, shape: str) -> Array:
    return _extreme("minimum_filter", pixels, sizes_of(size, place.axes), shape)


def _clip_and_scale(pixels: Array, *, low: float, high: float) -> Array:
    dtype = float_dtype(pixels.dtype)
    scaled = np.subtract(pixels, low, out=pixels if pixels.dtype == dtype else None, dtype=dtype)
    scaled *= 1 / (high - low)
    return np.clip(scaled, 0, 1, out=scaled)


def _extreme(name: str, pixels: Array, sizes: Sequence[int], shape: str) -> Array:
    """Return the maximum or minimum filter."""
    from scipy import ndimage

    return without_nan(
        pixels,
        lambda clean: np.asarray(getattr(ndimage, name)(clean, **neighbourhood(sizes, shape))),
        sizes,
        shape,
    )


def _of_neighbourhood(
    name: str, function: Callable[..., Array], size: PerAxis, shape: str
) -> Operation:
    """Return an operation on the box or ball of `size` around each pixel."""
    size = checked_whole("size", size, lambda v: v >= 1 and v % 2 == 1, "an odd whole number")
    parameters = {"size": size, "shape": known_shape(shape)}
    return Operation(name, function, parameters, each(size, lambda v: int(v) // 2))
