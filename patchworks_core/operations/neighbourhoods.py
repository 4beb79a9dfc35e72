"""What filters have in common: numbers as a person writes them, neighbourhoods, types and NaN.

A pixel that is not finite (NaN, infinite) is left out by every filter that looks around a pixel,
and is NaN in the result; those around it get what the finite ones among them give.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, TypeAlias

import numpy as np
import numpy.typing as npt

from patchworks_core.errors import ImageError
from patchworks_core.operations.places import PerAxis, per_axis
from patchworks_core.plugins.smoothing import gaussian_of_finite

Array: TypeAlias = npt.NDArray[Any]

SHAPES = ("box", "ball")
"""Neighbourhoods: all pixels of the box, or those of the ellipsoid that fits in it."""


def float_dtype(dtype: np.dtype[Any]) -> np.dtype[Any]:
    """Return float32 where it holds every value exactly (up to 16 bits) or is what came in.

    Examples
    --------
    >>> float_dtype(np.dtype("uint16")), float_dtype(np.dtype("int32"))
    (dtype('float32'), dtype('float64'))
    """
    is_narrow = dtype.itemsize <= 2 or dtype == np.float32
    return np.dtype(np.float32 if is_narrow else np.float64)


def gaussian_radius(sigma: float, truncate: float) -> int:
    """Return how far `scipy.ndimage.gaussian_filter` looks."""
    return int(truncate * float(sigma) + 0.5)


def smoothed(pixels: Array, sigmas: Sequence[float], truncate: float) -> Array:
    """Return pixels smoothed by a Gaussian, in their `float_dtype`."""
    dtype = float_dtype(pixels.dtype)
    if pixels.dtype == np.float16 or pixels.dtype.itemsize > 8:
        pixels = pixels.astype(dtype)  # scipy does not know these
    return gaussian_of_finite(pixels, sigmas, dtype=dtype, truncate=truncate)


def of_finite(pixels: Array, function: Callable[[Array], Array], fill: float) -> Array:
    """Run a filter that compares pixels, in a type that scipy knows, without what is not finite.

    Parameters
    ----------
    pixels : ndarray
    function : callable
        Of as many pixels.
    fill : float
        Stands for a pixel that is left out: what the filter never chooses among others.
    """
    if pixels.dtype.kind == "b":
        return function(pixels.view(np.uint8)).view(bool)
    if pixels.dtype.kind != "f":
        return function(pixels)
    wide = pixels if pixels.dtype.itemsize in (4, 8) else pixels.astype(float_dtype(pixels.dtype))
    is_missing = ~np.isfinite(pixels)
    if not is_missing.any():
        return function(wide).astype(pixels.dtype, copy=False)
    result = function(np.where(is_missing, wide.dtype.type(fill), wide))
    result[is_missing] = np.nan
    return result.astype(pixels.dtype, copy=False)


def maximum_around(pixels: Array, sizes: Sequence[int], shape: str) -> Array:
    """Return the maximum filter."""
    from scipy import ndimage

    around = neighbourhood(sizes, shape)
    return of_finite(
        pixels, lambda clean: np.asarray(ndimage.maximum_filter(clean, **around)), -np.inf
    )


def minimum_around(pixels: Array, sizes: Sequence[int], shape: str) -> Array:
    """Return the minimum filter."""
    from scipy import ndimage

    around = neighbourhood(sizes, shape)
    return of_finite(
        pixels, lambda clean: np.asarray(ndimage.minimum_filter(clean, **around)), np.inf
    )


def sizes_of(size: PerAxis, axes: str) -> tuple[int, ...]:
    """Return the pixels of a neighbourhood per axis; 1 where `size` does not speak of an axis."""
    return tuple(int(n) for n in per_axis("size", size, axes, missing=1))


def neighbourhood(sizes: Sequence[int], shape: str) -> dict[str, Any]:
    """Return what tells `scipy.ndimage` the neighbourhood; it is much faster for a box."""
    return {"size": tuple(sizes)} if shape == "box" else {"footprint": footprint(sizes, shape)}


def footprint(sizes: Sequence[int], shape: str) -> npt.NDArray[np.bool_]:
    """Return a neighbourhood as an array, True inside.

    Examples
    --------
    >>> footprint((3, 3), "ball").astype(int).tolist()
    [[0, 1, 0], [1, 1, 1], [0, 1, 0]]
    """
    if shape == "box":
        return np.ones(tuple(sizes), bool)
    grids = np.ogrid[tuple(slice(-(n // 2), n // 2 + 1) for n in sizes)]
    squares = [(grid / max(n // 2, 1)) ** 2 for grid, n in zip(grids, sizes, strict=True)]
    return np.asarray(sum(squares[1:], start=squares[0]) <= 1)


def known_shape(shape: str) -> str:
    """Return the shape of a neighbourhood, or raise ImageError."""
    if shape not in SHAPES:
        raise ImageError(f"the shape of a neighbourhood is one of {SHAPES!r}, got {shape!r}")
    return shape


def each(value: PerAxis, function: Callable[[float], float]) -> PerAxis:
    """Apply a function to every number.

    Examples
    --------
    >>> each({"y": 3, "x": 5}, lambda n: n // 2)
    {'y': 1, 'x': 2}
    """
    if isinstance(value, np.ndarray):
        value = value.tolist()
    if isinstance(value, Mapping):
        return {axis: function(number) for axis, number in value.items()}
    if isinstance(value, Sequence):
        return tuple(function(number) for number in value)
    return function(value)


def checked(name: str, value: PerAxis, is_right: Callable[[float], bool], rule: str) -> PerAxis:
    """Return finite numbers as they are recorded, or raise ImageError."""

    def plain(number: float) -> float:
        is_number = isinstance(number, int | float | np.number) and not isinstance(number, bool)
        if not (is_number and np.isfinite(number) and is_right(number)):
            raise ImageError(f"{name} must be {rule}, in pixels, got {value!r}")
        return number.item() if isinstance(number, np.generic) else number

    return each(value, plain)


def checked_whole(
    name: str, value: PerAxis, is_right: Callable[[float], bool], rule: str
) -> PerAxis:
    """Return whole numbers as they are recorded, or raise ImageError."""

    def is_whole(number: float) -> bool:
        return float(number).is_integer() and is_right(number)

    return each(checked(name, value, is_whole, rule), int)
