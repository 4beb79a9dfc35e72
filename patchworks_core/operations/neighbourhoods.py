"""What filters have in common: numbers as a person writes them, neighbourhoods, types and NaN."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any, TypeAlias

import numpy as np
import numpy.typing as npt

from patchworks_core.errors import ImageError
from patchworks_core.operations.places import PerAxis, per_axis

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
    from scipy import ndimage

    dtype = float_dtype(pixels.dtype)
    if pixels.dtype == np.float16 or pixels.dtype.itemsize > 8:
        pixels = pixels.astype(dtype)  # scipy does not know these
    return np.asarray(
        ndimage.gaussian_filter(pixels, sigmas, output=dtype, mode="reflect", truncate=truncate)
    )


def without_nan(
    pixels: Array, function: Callable[[Array], Array], sizes: Sequence[int], shape: str
) -> Array:
    """Run a filter that compares pixels, in a type that scipy knows; a NaN spreads over `sizes`.

    What scipy makes of a NaN depends on the pixels before it, and so on the tile.
    """
    from scipy import ndimage

    if pixels.dtype.kind == "b":
        return function(pixels.view(np.uint8)).view(bool)
    if pixels.dtype.kind != "f":
        return function(pixels)
    known = pixels if pixels.dtype.itemsize in (4, 8) else pixels.astype(float_dtype(pixels.dtype))
    nan = np.isnan(pixels)
    if not nan.any():
        return function(known).astype(pixels.dtype, copy=False)
    result = function(np.where(nan, 0, known)).astype(pixels.dtype, copy=False)
    spread = ndimage.maximum_filter(nan.view(np.uint8), **neighbourhood(sizes, shape))
    result[spread > 0] = np.nan
    return result


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
