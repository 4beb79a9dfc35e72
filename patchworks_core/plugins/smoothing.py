"""A Gaussian that leaves out pixels that are not finite, the same for functions and operations."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

Array = npt.NDArray[Any]


def gaussian_of_finite(
    pixels: Array, sigmas: Sequence[float], *, dtype: npt.DTypeLike, truncate: float
) -> Array:
    """Smooth with a Gaussian; what is not finite has no weight, and is NaN in the result.

    Parameters
    ----------
    pixels : ndarray
        Of a type that scipy knows.
    sigmas : sequence of float
        Per axis, pixels; 0 leaves an axis as it is.
    dtype : dtype
        Of the result, a float.
    truncate : float
        Where the Gaussian is cut off, in sigmas.

    Notes
    -----
    Normalised convolution: the weights of the pixels that are left out are shared by the others.
    Pixels out of reach of any that is left out have the bits that they have without it, so that
    tiles agree.

    References
    ----------
    Knutsson, H. and Westin, C.-F., "Normalized and differential convolution", CVPR (1993).

    Examples
    --------
    >>> line = np.array([4, 4, np.nan, 4, np.inf])
    >>> gaussian_of_finite(line, [1], dtype="f4", truncate=4).round(3)
    array([ 4.,  4., nan,  4., nan], dtype=float32)
    """
    from scipy import ndimage

    how: dict[str, Any] = {"mode": "reflect", "truncate": truncate}
    is_missing = ~np.isfinite(pixels) if pixels.dtype.kind == "f" else np.zeros(1, bool)
    if not is_missing.any():
        return np.asarray(ndimage.gaussian_filter(pixels, sigmas, output=dtype, **how))
    filled = np.where(is_missing, 0, pixels)
    smoothed = np.asarray(ndimage.gaussian_filter(filled, sigmas, output=dtype, **how))
    weight = 1 - ndimage.gaussian_filter(is_missing.astype(np.float64), sigmas, **how)
    weight[is_missing] = np.nan
    return np.asarray(smoothed / weight, dtype=dtype)
