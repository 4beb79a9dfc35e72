"""Filters of label images on one region, such as a tile with its halo: arrays in, arrays out.

Each answers from what lies within a bounded reach of a pixel, so a tile that is read with a halo of
that reach gives the same pixels as the whole image would. Nothing is assumed beyond the region:

- `open_objects` reaches twice the radius. An object goes on beyond the border of the image.
- `expand_objects` reaches the distance. Of two objects equally near, the smaller id has the pixel.
"""

from __future__ import annotations

from collections.abc import Sequence
from math import floor
from typing import Any

import numpy as np
import numpy.typing as npt

from patchworks_core.errors import ImageError
from patchworks_core.stage.tile_labels import number_ids

Array = npt.NDArray[Any]

SAME_DISTANCE = 1e-9
"""Lengths that differ by less than this share are the same: what rounding makes of equal ones."""

_SQUARE_STEPS = 1 << 20
"""Squared pixel sizes are whole multiples of the smallest one by this, at most."""

_LARGEST_COST = 1 << 40
"""Squared distances in these steps stay below it, which leaves 22 bits for the id."""


def reach_of(length: float, spacing: Sequence[float]) -> tuple[int, ...]:
    """Return how many pixels a length goes per axis.

    Examples
    --------
    >>> reach_of(3.0, (2.0, 1.0, 0.3))
    (1, 3, 10)
    """
    # More slack than any comparison has: a pixel too many in a halo changes nothing.
    return tuple(floor(length * (1 + 2e-6) / size) for size in spacing)


def open_objects(labels: Array, radius: float, spacing: Sequence[float]) -> Array:
    """Keep of each object what a disk or ball that fits into it covers.

    Parameters
    ----------
    labels : ndarray of int
        Labels >= 0, spatial axes only.
    radius : float
        Of the ball, in the unit of `spacing`; pixels at that very distance belong to it.
    spacing : sequence of float
        Size of a pixel per axis.

    Returns
    -------
    ndarray of int
        As `labels`; the ids of what is left are unchanged.

    Notes
    -----
    The morphological opening of each object on its own. What lies beyond the region counts as more
    of the object, so an object cut off by the border is not rounded there.

    Examples
    --------
    >>> spur = np.array([[0, 5, 5, 5, 0, 0, 0], [0, 5, 5, 5, 5, 5, 5], [0, 5, 5, 5, 0, 0, 0]])
    >>> open_objects(spur, 1, (1, 1))
    array([[0, 5, 5, 5, 0, 0, 0],
           [0, 5, 5, 5, 5, 0, 0],
           [0, 5, 5, 5, 0, 0, 0]])
    """
    from scipy import ndimage

    _, numbers = number_ids(labels)
    kept = np.zeros(labels.shape, dtype=bool)
    for number, box in enumerate(ndimage.find_objects(numbers), start=1):
        # The pixel of another label that is nearest to an object is face-adjacent to it.
        around = tuple(slice(max(0, s.start - 1), s.stop + 1) for s in box)
        kept[around] |= _open(numbers[around] == number, radius, spacing)
    return np.where(kept, labels, 0)


def _open(inside: Array, radius: float, spacing: Sequence[float]) -> Array:
    """Open one mask; beyond the array lies more of it."""
    from scipy import ndimage

    if inside.all():
        return inside
    limit = radius * (1 + SAME_DISTANCE)
    centres: Array = ndimage.distance_transform_edt(inside, sampling=spacing) > limit
    if not centres.any():
        return centres
    opened: Array = ndimage.distance_transform_edt(~centres, sampling=spacing) <= limit
    return opened & inside


def expand_objects(labels: Array, distance: float, spacing: Sequence[float]) -> Array:
    """Grow objects into the background, never into each other.

    Parameters
    ----------
    labels : ndarray of int
        Labels >= 0, spatial axes only.
    distance : float
        How far, between pixel centres, in the unit of `spacing`.
    spacing : sequence of float
        Size of a pixel per axis.

    Returns
    -------
    ndarray of int64
        A background pixel within `distance` of an object has the id of the nearest one, and the
        smallest id of those equally near.

    Notes
    -----
    The smallest (squared distance, id) over all offsets, in that order, is found one axis after the
    other: both parts add up along the axes. Squared distances are whole numbers, so that equal
    ones are equal wherever the region lies; where pixels are not as long as wide, they are rounded
    to a millionth.

    Examples
    --------
    >>> expand_objects(np.array([9, 0, 0, 0, 0, 0, 4, 0, 3]), 2, (1,))
    array([9, 9, 9, 0, 4, 4, 4, 3, 3])
    """
    reach = reach_of(distance, spacing)
    weights, limit = _whole_squares(distance, spacing, reach)
    ids, numbers = number_ids(labels)
    # cost and number in one integer, so that one minimum compares both
    base = len(ids)
    farthest = limit + 1 + sum(r * r * w for r, w in zip(reach, weights, strict=True))
    if farthest * base > np.iinfo(np.int64).max:
        raise ImageError(
            f"labels in one tile must be fewer to be grown by {distance!r}, got {base - 1}; "
            "use smaller tiles"
        )
    is_small = farthest * base <= np.iinfo(np.int32).max
    key = numbers.astype(np.int32 if is_small else np.int64)
    key[numbers == 0] = (limit + 1) * base
    candidate = np.empty_like(key)
    for axis, (n, weight) in enumerate(zip(reach, weights, strict=True)):
        near = key.copy()
        for k in range(1, min(n, labels.shape[axis] - 1) + 1):
            np.add(near, k * k * weight * base, out=candidate)
            low, high = _shifted(labels.ndim, axis, k)
            np.minimum(key[low], candidate[high], out=key[low])
            np.minimum(key[high], candidate[low], out=key[high])
    squared, number = np.divmod(key, base)
    grown: Array = ids[np.where(squared <= limit, number, 0)]
    return grown


def _whole_squares(
    distance: float, spacing: Sequence[float], reach: Sequence[int]
) -> tuple[list[int], int]:
    """Return squared pixel sizes as whole numbers, and the largest squared distance in them.

    They depend on the distance and the pixel size alone, not on what a tile holds.
    """
    squares = [(size / min(spacing)) ** 2 for size in spacing]
    if all(square == 1 for square in squares):
        steps, slack = 1, SAME_DISTANCE
    else:
        farthest = sum(r * r * q for r, q in zip(reach, squares, strict=True))
        steps = max(1, min(_SQUARE_STEPS, floor(_LARGEST_COST / max(farthest, 1))))
        slack = 1 / steps
    weights = [round(square * steps) for square in squares]
    return weights, floor((distance / min(spacing)) ** 2 * steps * (1 + slack))


def _shifted(ndim: int, axis: int, k: int) -> tuple[tuple[slice, ...], tuple[slice, ...]]:
    """Return indexes of all pixels but the last k of an axis, and of all but the first k."""
    low, high = [slice(None)] * ndim, [slice(None)] * ndim
    low[axis], high[axis] = slice(None, -k), slice(k, None)
    return tuple(low), tuple(high)
