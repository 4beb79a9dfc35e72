"""The local mean: how a pixel of a lower resolution is made from those of the one above."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np


def local_mean(pixels: np.ndarray[Any, Any], step: Sequence[int]) -> np.ndarray[Any, Any]:
    """Average boxes of 2 pixels along every axis whose step is 2.

    Parameters
    ----------
    pixels : ndarray
    step : sequence of int
        1 or 2 per axis.

    Returns
    -------
    ndarray
        Of the same type; whole numbers are rounded, half to even. The last box of an axis of odd
        length is one pixel thick.

    Examples
    --------
    >>> local_mean(np.array([[1, 2, 9], [3, 4, 9]], "u1"), (2, 2))
    array([[2, 9]], dtype=uint8)
    """
    # float32 holds sums of up to 8 values of 16 bits exactly.
    is_small = pixels.dtype.itemsize <= 2 or pixels.dtype == np.float32
    means: Any = pixels.astype(np.float32 if is_small else np.float64)
    for axis, n in enumerate(step):
        if n == 1:
            continue
        every = [slice(None)] * means.ndim
        every[axis] = slice(0, None, 2)
        first = means[tuple(every)].copy()
        every[axis] = slice(1, None, 2)
        second = means[tuple(every)]
        paired = (*every[:axis], slice(0, second.shape[axis]))
        # Halves are added, so that no sum overflows.
        first[paired] /= 2
        first[paired] += second / 2
        means = first
    if pixels.dtype.kind == "f":
        return np.asarray(means, pixels.dtype)
    return _rounded(means, pixels.dtype)


def _rounded(means: Any, dtype: np.dtype[Any]) -> np.ndarray[Any, Any]:
    """Round to whole numbers of a type, within what it holds."""
    rounded: Any = np.rint(means)
    if dtype.kind == "b" or dtype.itemsize < 8:
        return np.asarray(rounded.astype(dtype))
    # The largest 64-bit number is no float64: what rounds beyond it is that number.
    limits = np.iinfo(dtype)
    inside = rounded < float(limits.max)
    return np.where(inside, np.where(inside, rounded, 0).astype(dtype), limits.max)
