"""Round objects above a global threshold, touching ones split at their necks.

1. Smooth, and take what lies above a threshold of the whole image, or below it where the background
   is bright (`threshold`'s own functions).
2. Fill small holes, so that a dark spot inside an object does not look like its border.
3. Distance to the background, smoothed a little so that a rough outline makes no extra summits.
4. One seed per summit (`find_seeds`), by rules that look no further than `min_distance`.
5. Flood from the seeds, within the mask.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from patchworks_core.errors import SegmentationError
from patchworks_core.plugins.segmentation import declare
from patchworks_core.plugins.threshold import (
    DarkObjects,
    Sigma,
    are_dark,
    decided_threshold,
    foreground,
    same_as_before,
    sigma_of_axes,
    smooth,
)
from patchworks_core.statistics.statistics import ImageStatistics

Array = npt.NDArray[Any]


@declare(version="2", same_as_before=same_as_before, outline="core", workers="threads")
def watershed(
    tile: Array,
    *,
    statistics: ImageStatistics | None = None,
    method: str = "otsu",
    value: float | None = None,
    sigma: Sigma = 1.0,
    min_distance: float = 5,
    spacing: Sequence[float] | None = None,
    dark_objects: DarkObjects = "auto",
    hole_size: int = 30,
) -> npt.NDArray[np.int32]:
    """Label round objects, such as nuclei, that may touch each other.

    Parameters
    ----------
    tile : ndarray
        Pixels of one tile, 2-D or 3-D; a 3-D tile one pixel thick is segmented as 2-D.
    statistics : ImageStatistics, optional
        Statistics of the whole image, from which `method` takes the threshold, and `dark_objects`
        whether objects are dark.
    method : {"otsu", "li", "yen"}, default "otsu"
        How the threshold is found.
    value : float, optional
        The threshold itself, in place of that of `method`.
    sigma : float or sequence of float, default 1
        Gaussian smoothing of the pixels and of the distances, in pixels of the finest axis; or one
        for each axis of the tile, in pixels of that axis. Use 2 for noisy volumes.
    min_distance : float, default 5
        Summits of the distance nearer than this are one object: about the radius of a small
        object, in pixels of the finest axis.
    spacing : sequence of float, optional
        Pixel size per axis, in any unit; by default the same on every axis.
    dark_objects : bool or "auto", default "auto"
        True labels what is at or below the threshold, False what is above it. By default objects
        are dark where `statistics` say that the background of the whole image is bright
        (`patchworks_core.statistics.background`), and bright where nothing says so.
    hole_size : int, default 30
        Holes of at most this many pixels are filled.

    Returns
    -------
    ndarray of int32, shape of `tile`

    Raises
    ------
    SegmentationError
        If there is neither a `value` nor `statistics`, or a parameter is out of range.

    Notes
    -----
    Nothing is normalised per tile. Pixels that are not finite are background, and those around them
    are smoothed without them. An object's labels are those of the whole image if the tile
    holds it, and those it touches, whole, with ``4 * sigma + min_distance`` to spare: choose a halo
    wider than the largest object. Objects cut by the tile's border may be split otherwise there.

    Examples
    --------
    >>> y, x = np.ogrid[:30, :50]
    >>> disks = ((y - 15) ** 2 + (x - 15) ** 2 < 100) | ((y - 15) ** 2 + (x - 33) ** 2 < 100)
    >>> int(watershed(disks, value=0.5).max())
    2
    """
    lengths = _checked_spacing(tile, spacing, min_distance)
    thick = tuple(size > 1 for size in tile.shape)
    if not all(thick) and any(thick):
        return watershed(
            tile.squeeze(),
            statistics=statistics,
            method=method,
            value=value,
            sigma=sigma_of_axes(sigma, thick),
            min_distance=min_distance,
            spacing=[length for length, keep in zip(lengths, thick, strict=True) if keep],
            dark_objects=dark_objects,
            hole_size=hole_size,
        ).reshape(tile.shape)
    from scipy import ndimage
    from skimage import segmentation

    is_dark = are_dark(dark_objects, statistics)
    level = decided_threshold(statistics, method=method, value=value, dark_objects=is_dark)
    mask = foreground(smooth(tile, sigma, spacing=lengths), level, dark_objects=is_dark)
    mask = _fill_holes(mask, hole_size)
    relative = [length / min(lengths) for length in lengths]
    distance = np.asarray(ndimage.distance_transform_edt(mask, sampling=relative))
    distance = smooth(distance, sigma, spacing=lengths)
    radii = [max(1, round(min_distance / length)) for length in relative]
    seeds = find_seeds(distance, mask, radii)
    flood: Any = segmentation.watershed
    labels = np.asarray(flood(-distance, seeds, mask=mask), dtype=np.int32)
    if tile.dtype.kind == "f":  # filled with a hole, one of them shaped no object
        labels[~np.isfinite(tile)] = 0
    return labels


def find_seeds(
    distance: Array, mask: npt.NDArray[np.bool_], radii: Sequence[int]
) -> npt.NDArray[np.int32]:
    """Return one numbered seed per summit of `distance`, at least one per component of `mask`.

    Parameters
    ----------
    distance : ndarray
        Smoothed distance to the background.
    mask : ndarray of bool
        Where there may be seeds.
    radii : sequence of int
        A summit is the highest within a box reaching this far on each side, pixels per axis.

    Returns
    -------
    ndarray of int32

    Notes
    -----
    `skimage.feature.peak_local_max` decides between equal summits in the order in which it meets
    them, which depends on the tile. Here equal summits of one component that lie within reach of
    each other are one seed, so a flat top, or a ridge, is one object.

    Examples
    --------
    >>> hills = np.array([0, 1, 3, 3, 1, 0, 1, 0])
    >>> find_seeds(hills, hills > 0, [1])
    array([0, 0, 1, 1, 0, 0, 2, 0], dtype=int32)
    """
    from scipy import ndimage

    components, n = ndimage.label(mask)
    box = [2 * radius + 1 for radius in radii]
    summits = mask & (distance == ndimage.maximum_filter(distance, size=box, mode="nearest"))
    # a small object beside a large one has no summit of its own within reach: its highest will do
    summits |= _highest_where_none(distance, components, n, summits)
    everywhere = np.ones((3,) * mask.ndim)
    reach = ndimage.maximum_filter(summits, size=[max(1, radius) for radius in radii])
    groups, n_groups = ndimage.label(reach, structure=everywhere)
    at = np.flatnonzero(summits)
    key = components.reshape(-1)[at].astype(np.int64) * (n_groups + 1) + groups.reshape(-1)[at]
    seeds = np.zeros(mask.shape, np.int32)
    seeds.reshape(-1)[at] = np.unique(key, return_inverse=True)[1] + 1
    return seeds


def _highest_where_none(
    distance: Array, components: Array, n: int, summits: npt.NDArray[np.bool_]
) -> npt.NDArray[np.bool_]:
    """Return the highest pixels of the components that have no summit."""
    without = np.ones(n + 1, bool)
    without[components[summits]] = False
    without[0] = False
    if not without.any():
        return np.zeros(summits.shape, bool)
    inside = np.flatnonzero(without[components])
    rows, heights = components.reshape(-1)[inside], distance.reshape(-1)[inside]
    highest = np.full(n + 1, -np.inf)
    np.maximum.at(highest, rows, heights)
    result = np.zeros(summits.shape, bool)
    result.reshape(-1)[inside[heights == highest[rows]]] = True
    return result


def _fill_holes(mask: npt.NDArray[np.bool_], hole_size: int) -> npt.NDArray[np.bool_]:
    """Fill holes of at most `hole_size` pixels; what reaches the border of the tile is none."""
    from scipy import ndimage

    if hole_size < 1:
        return mask
    holes, n = ndimage.label(~mask)
    fill = np.bincount(holes.reshape(-1), minlength=n + 1) <= hole_size
    fill[0] = False
    for axis in range(mask.ndim):
        for end in (0, -1):
            fill[np.take(holes, end, axis=axis)] = False
    return np.asarray(mask | fill[holes])


def _checked_spacing(
    tile: Array, spacing: Sequence[float] | None, min_distance: float
) -> tuple[float, ...]:
    """Return one pixel size per axis, or raise."""
    lengths = (1.0,) * tile.ndim if spacing is None else tuple(float(s) for s in spacing)
    if len(lengths) != tile.ndim or not all(length > 0 for length in lengths):
        raise SegmentationError(
            f"spacing needs one value above 0 for each of the {tile.ndim} axes of the tile,"
            f" got {spacing!r}"
        )
    if not min_distance > 0:
        raise SegmentationError(f"min_distance must be above 0 pixels, got {min_distance!r}")
    return lengths
