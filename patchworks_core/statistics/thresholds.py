"""Global thresholds from a histogram.

The same formulas as `skimage.filters`, which has no histogram form of `li` and sums the other two
in float32: at 10**10 pixels that moves their result.
"""

from __future__ import annotations

from collections.abc import Callable
from math import log
from typing import Any

import numpy as np
import numpy.typing as npt

Array = npt.NDArray[Any]


def otsu(counts: Array, values: Array) -> float:
    """Return the value that maximises the variance between the two classes.

    Parameters
    ----------
    counts : ndarray of int64
        Pixels per bin; the first and last are not 0, and there are at least two.
    values : ndarray
        Value that stands for each bin, increasing.

    Returns
    -------
    float
        Pixels up to and including this value are background.

    References
    ----------
    Otsu, N., "A threshold selection method from gray-level histograms", IEEE Trans. SMC 9 (1979).

    Examples
    --------
    >>> otsu(np.array([5, 1, 0, 1, 5]), np.arange(5))
    1.0
    """
    weight = np.cumsum(counts).astype(np.float64)
    relative = values - values[0]
    moment = np.cumsum(counts * relative, dtype=np.float64)
    below, above = weight[:-1], weight[-1] - weight[:-1]
    difference = moment[:-1] / below - (moment[-1] - moment[:-1]) / above
    return float(values[np.argmax(below * above * difference**2)])


def yen(counts: Array, values: Array) -> float:
    """Return the value that maximises Yen's entropic correlation.

    Parameters and result are as in `otsu`.

    References
    ----------
    Yen, J.-C., Chang, F.-J. and Chang, S., "A new criterion for automatic multilevel
    thresholding", IEEE Trans. on Image Processing 4 (1995).

    Examples
    --------
    >>> yen(np.array([5, 1, 0, 1, 5]), np.arange(5))
    1.0
    """
    share = counts / counts.sum()
    below = np.cumsum(share)
    above = np.cumsum(share[::-1])[::-1]
    squares_below = np.cumsum(share**2)
    squares_above = np.cumsum(share[::-1] ** 2)[::-1]
    # summed from its own end: 1 - below would be rounding noise in the tail
    within = below[:-1] * above[1:]
    criterion = np.log(within**2 / (squares_below[:-1] * squares_above[1:]))
    return float(values[np.argmax(criterion)])


def li(counts: Array, values: Array) -> float:
    """Return Li's minimum cross-entropy threshold, by its fixed-point iteration.

    Parameters and result are as in `otsu`. The iteration starts at the mean and stops when it
    moves by less than 0.5 between integers, or half the smallest distance between other values.

    References
    ----------
    Li, C.H. and Tam, P.K.S., "An iterative algorithm for minimum cross entropy thresholding",
    Pattern Recognition Letters 18 (1998).

    Examples
    --------
    >>> round(li(np.array([50, 10, 0, 1, 5]), np.arange(5)), 2)
    0.5
    """
    occupied = counts > 0
    relative = (values[occupied] - values[0]).astype(np.float64)
    weight = np.cumsum(counts[occupied]).astype(np.float64)
    moment = np.cumsum(counts[occupied] * relative)
    whole = np.issubdtype(values.dtype, np.integer)
    tolerance = 0.5 if whole else np.diff(relative).min() / 2
    guess, previous = moment[-1] / weight[-1], np.inf
    while abs(guess - previous) > tolerance:
        previous = guess
        last_below = np.searchsorted(relative, guess, side="right") - 1
        mean_below = moment[last_below] / weight[last_below]
        if mean_below == 0:  # only the minimum is left below: the logarithm ends the iteration
            break
        mean_above = (moment[-1] - moment[last_below]) / (weight[-1] - weight[last_below])
        guess = (mean_below - mean_above) / (log(mean_below) - log(mean_above))
    return float(guess + values[0])


METHODS: dict[str, Callable[[Array, Array], float]] = {"otsu": otsu, "li": li, "yen": yen}
"""Threshold methods by name."""
