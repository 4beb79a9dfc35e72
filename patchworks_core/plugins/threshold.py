"""Connected components above a global threshold."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from math import ceil, inf
from typing import Any, Literal

import numpy as np
import numpy.typing as npt

from patchworks_core.errors import SegmentationError
from patchworks_core.plugins.segmentation import declare
from patchworks_core.plugins.smoothing import gaussian_of_finite
from patchworks_core.statistics.background import has_bright_background
from patchworks_core.statistics.statistics import ImageStatistics

Array = npt.NDArray[Any]

DarkObjects = bool | Literal["auto"]
"""Whether objects are darker than their background; ``auto`` asks the statistics of the image."""

TRUNCATE = 4.0
"""Where Gaussian filters are cut off, in sigmas; `scipy.ndimage` defaults to the same."""


Sigma = float | Sequence[float]
"""How far a Gaussian reaches, pixels: on every axis, or on each axis of a tile."""


def gaussian_halo(sigma: float) -> int:
    """Return the halo, pixels, with which smoothing in tiles equals smoothing the whole image.

    Examples
    --------
    >>> gaussian_halo(1.5)
    6
    """
    return ceil(TRUNCATE * sigma)


def same_as_before(
    version: str, parameters: Mapping[str, Any], statistics: ImageStatistics
) -> bool:
    """Tell whether version 1 gave the same labels of an image.

    It took objects for bright unless told otherwise, and a pixel that is not finite spoilt those
    around it.
    """
    is_chosen = parameters.get("dark_objects", "auto") != "auto"
    is_same_sense = is_chosen or not has_bright_background(statistics)
    return version == "1" and statistics.n_not_finite == 0 and is_same_sense


@declare(merge="touching", version="2", same_as_before=same_as_before, workers="threads")
def threshold(
    tile: Array,
    *,
    statistics: ImageStatistics | None = None,
    method: str = "otsu",
    value: float | None = None,
    sigma: Sigma = 0.0,
    connectivity: int = 1,
    dark_objects: DarkObjects = "auto",
) -> npt.NDArray[np.int32]:
    """Label the connected components above a threshold of the whole image, or below it.

    Parameters
    ----------
    tile : ndarray
        Pixels of one tile, 1-D to 3-D.
    statistics : ImageStatistics, optional
        Statistics of the whole image, from which `method` takes the threshold, and `dark_objects`
        whether objects are dark.
    method : {"otsu", "li", "yen"}, default "otsu"
        How the threshold is found.
    value : float, optional
        The threshold itself, in place of that of `method`.
    sigma : float or sequence of float, default 0
        Gaussian smoothing before the threshold, pixels; or one for each axis of the tile. Axes one
        pixel thick are not smoothed.
    connectivity : int, default 1
        1 joins pixels that share a face, the number of axes those that share a corner. The merge
        must use the same.
    dark_objects : bool or "auto", default "auto"
        True labels what is at or below the threshold, False what is above it. By default objects
        are dark where `statistics` say that the background of the whole image is bright
        (`patchworks_core.statistics.background`), and bright where nothing says so.

    Returns
    -------
    ndarray of int32, shape of `tile`

    Raises
    ------
    SegmentationError
        If there is neither a `value` nor `statistics`, or a parameter is out of range.

    Notes
    -----
    Merged with the rule "touching" the result equals that on the whole image to the pixel, given
    a halo of at least ``ceil(4 * sigma)`` (`gaussian_halo`). Pixels that are not finite are
    background, and those around them are smoothed without them.

    There is no minimum size here: of an object cut by a seam each tile sees a piece, and would drop
    it for being small. Small objects are dropped after the merge (``min_size`` of the plan).

    Examples
    --------
    >>> threshold(np.array([0, 9, 9, 0, 7], "uint8"), value=5)
    array([0, 1, 1, 0, 2], dtype=int32)
    """
    from scipy import ndimage

    if not 1 <= connectivity <= tile.ndim:
        raise SegmentationError(
            f"connectivity must be 1 to {tile.ndim} for a tile of {tile.ndim} axes,"
            f" got {connectivity!r}"
        )
    is_dark = are_dark(dark_objects, statistics)
    level = decided_threshold(statistics, method=method, value=value, dark_objects=is_dark)
    mask = foreground(smooth(tile, sigma), level, dark_objects=is_dark)
    labels = np.empty(tile.shape, np.int32)
    structure = ndimage.generate_binary_structure(tile.ndim, connectivity)
    ndimage.label(mask, structure=structure, output=labels)
    return labels


def are_dark(dark_objects: DarkObjects, statistics: ImageStatistics | None) -> bool:
    """Return whether objects are dark: as is said, or as the whole image shows; never a tile.

    Raises
    ------
    SegmentationError
        If it is said in other words.

    Examples
    --------
    >>> are_dark(True, None), are_dark("auto", None)
    (True, False)
    """
    if isinstance(dark_objects, str) and dark_objects == "auto":
        return statistics is not None and has_bright_background(statistics)
    if not isinstance(dark_objects, (bool, np.bool_)):
        raise SegmentationError(f"dark_objects is True, False or 'auto', got {dark_objects!r}")
    return bool(dark_objects)


def decided_threshold(
    statistics: ImageStatistics | None,
    *,
    method: str,
    value: float | None,
    dark_objects: bool = False,
) -> float:
    """Return `value`, or the threshold of the whole image; never one from a tile.

    An image of one value, such as an empty well, has no objects: infinity, which nothing exceeds,
    or minus infinity for dark objects.

    Raises
    ------
    SegmentationError
        If there is neither.

    Examples
    --------
    >>> decided_threshold(None, method="otsu", value=5)
    5.0
    """
    if value is not None:
        return float(value)
    if statistics is None:
        raise SegmentationError(
            f"the {method!r} threshold is taken from the whole image, never from a tile, and got"
            " statistics=None and value=None; pass value=, or statistics= from image_statistics"
        )
    if statistics.minimum == statistics.maximum:
        return -inf if dark_objects else inf
    return statistics.threshold(method)


def smooth(tile: Array, sigma: Sigma, *, spacing: tuple[float, ...] | None = None) -> Array:
    """Smooth with a Gaussian of `sigma` pixels of the finest axis; 0 returns the tile as it is.

    Sigmas for each axis are in pixels of that axis. Pixels that are not finite have no weight, and
    are NaN in the result.

    Raises
    ------
    SegmentationError
        If a sigma is negative, or they are not one for each axis of the tile.

    Examples
    --------
    >>> smooth(np.array([0, 0, 8, 0, 0], "uint8"), 0.5).round(1)
    array([0. , 0.9, 6.3, 0.9, 0. ], dtype=float32)
    """
    lengths = spacing or (1.0,) * tile.ndim
    if isinstance(sigma, Sequence):
        per_axis = [*sigma]
    else:
        per_axis = [sigma * min(lengths) / length for length in lengths]
    if len(per_axis) != tile.ndim or not all(value >= 0 for value in per_axis):
        raise SegmentationError(
            f"sigma must be 0 or more pixels, one number or {tile.ndim}, got {sigma!r}"
        )
    if not any(per_axis):
        return tile
    sigmas = [s if size > 1 else 0.0 for s, size in zip(per_axis, tile.shape, strict=True)]
    # float32 holds every 8- and 16-bit value exactly, at half the memory
    precise = tile.dtype.kind != "b" and tile.dtype.itemsize > 2 and tile.dtype != np.float32
    output = np.float64 if precise else np.float32
    return gaussian_of_finite(tile.astype(output), sigmas, dtype=output, truncate=TRUNCATE)


def sigma_of_axes(sigma: Sigma, keeps: Sequence[bool]) -> Sigma:
    """Return the sigma of a tile without some of its axes."""
    if not isinstance(sigma, Sequence) or len(sigma) != len(keeps):
        return sigma
    return [value for value, keep in zip(sigma, keeps, strict=True) if keep]


def foreground(pixels: Array, level: float, *, dark_objects: bool) -> npt.NDArray[np.bool_]:
    """Return which finite pixels lie above `level`, or at or below it for dark objects.

    Examples
    --------
    >>> foreground(np.array([1, 2, 3]), 2, dark_objects=True)
    array([ True,  True, False])
    """
    mask = np.asarray(pixels <= level if dark_objects else pixels > level)
    return mask & np.isfinite(pixels) if pixels.dtype.kind == "f" else mask
