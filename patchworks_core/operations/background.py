"""Background subtraction by morphology, as operations that are exact in tiles.

A rolling ball is not here: `skimage.restoration.rolling_ball` looks no farther than its radius, and
would be exact, but takes time in proportion to the square of the radius, where the opening by a
box takes the same for every radius.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, TypeAlias

import numpy as np
import numpy.typing as npt

from patchworks_core.operations.neighbourhoods import (
    checked_whole,
    each,
    gaussian_radius,
    known_shape,
    maximum_around,
    minimum_around,
    smoothed,
)
from patchworks_core.operations.operations import Operation
from patchworks_core.operations.places import PerAxis, TilePlace, per_axis

Array: TypeAlias = npt.NDArray[Any]

TRUNCATE = 4.0
"""Where the Gaussian of `subtract_background` is cut off, in sigmas."""


def white_tophat(radius: PerAxis, *, shape: str = "box") -> Operation:
    """Return an operation that keeps what is brighter and smaller than a neighbourhood.

    The image less its opening by a flat neighbourhood: its minimum filter, then its maximum filter.

    Parameters
    ----------
    radius : int, sequence or mapping
        Of the neighbourhood, which is ``2 * radius + 1`` wide; above that of the objects.
    shape : {"box", "ball"}
        Time per pixel is the same for a box of any size, and grows with the pixels of a ball.

    Returns
    -------
    Operation
        Keeps the data type. Signed integers stop at the largest there is. Pixels that are not
        finite are left out, and are NaN in the result.

    Examples
    --------
    >>> white_tophat(1)(np.array([5, 5, 9, 5, 6, 6, 6], "uint8"))
    array([0, 0, 4, 0, 0, 0, 0], dtype=uint8)
    """
    radius = checked_whole("radius", radius, lambda v: v >= 0, "a whole number, 0 or more")
    parameters = {"radius": radius, "shape": known_shape(shape)}
    halo = each(radius, lambda r: 2 * r)
    return Operation("white_tophat", _white_tophat, parameters, halo, version="2")


def subtract_background(radius: PerAxis) -> Operation:
    """Return an operation that subtracts a smooth background and stops at 0.

    The background is the opening by a box (as in `white_tophat`), smoothed by a Gaussian with half
    the radius, which takes away the corners of the box.

    Parameters
    ----------
    radius : int, sequence or mapping
        Above that of the objects, which would be taken for background otherwise.

    Returns
    -------
    Operation
        Keeps the data type; its halo is four radii. Pixels that are not finite are left out, and
        are NaN in the result.

    Examples
    --------
    >>> subtract_background(1)(np.array([5, 5, 9, 5, 5, 5, 5], "uint8"))
    array([0, 0, 4, 0, 0, 0, 0], dtype=uint8)
    """
    radius = checked_whole("radius", radius, lambda v: v >= 0, "a whole number, 0 or more")
    return Operation(
        "subtract_background",
        _subtract_background,
        {"radius": radius},
        each(radius, lambda r: 2 * r + gaussian_radius(r / 2, TRUNCATE)),
        version="2",
    )


def _white_tophat(pixels: Array, *, place: TilePlace, radius: PerAxis, shape: str) -> Array:
    return _less(pixels, _opening(pixels, per_axis("radius", radius, place.axes), shape))


def _subtract_background(pixels: Array, *, place: TilePlace, radius: PerAxis) -> Array:
    radii = per_axis("radius", radius, place.axes)
    background = smoothed(_opening(pixels, radii, "box"), [r / 2 for r in radii], TRUNCATE)
    if pixels.dtype.kind in "bui":
        background = np.rint(background)
    return _less(pixels, np.minimum(background.astype(pixels.dtype), pixels))


def _opening(pixels: Array, radii: Sequence[float], shape: str) -> Array:
    """Return the minimum filter, then the maximum filter."""
    sizes = [2 * int(r) + 1 for r in radii]
    return maximum_around(minimum_around(pixels, sizes, shape), sizes, shape)


def _less(pixels: Array, background: Array) -> Array:
    """Return `pixels - background`, which is not negative; signed integers stop at their limit."""
    if pixels.dtype.kind == "b":
        return np.asarray(pixels & ~background)
    if pixels.dtype.kind != "i":
        return np.asarray(pixels - background)
    # Modulo 2**bits the difference is right as an unsigned number, where it always fits.
    unsigned = (pixels - background).view(pixels.dtype.str.replace("i", "u"))
    limit = unsigned.dtype.type(np.iinfo(pixels.dtype).max)
    return np.asarray(np.minimum(unsigned, limit).view(pixels.dtype))
