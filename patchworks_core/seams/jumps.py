"""Jumps: by how many pixels outlines move from one side of a face to the other."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt

Array = npt.NDArray[Any]


def jumps_of_planes(low: Array, high: Array) -> Array:
    """Return by how much the ends of every object move between two planes that abut.

    Parameters
    ----------
    low, high : ndarray of int, shape (n,) or (m, n)
        Objects in the planes on the two sides of a face; 0 is background.

    Returns
    -------
    ndarray of int64
        Two per object and line, for objects that are in that line on both sides.

    Examples
    --------
    >>> jumps_of_planes(np.array([0, 7, 7, 7, 0, 2]), np.array([7, 7, 7, 7, 0, 0]))
    array([1, 0])
    """
    width = int(max(low.max(initial=0), high.max(initial=0))) + 1
    (keys, *ends), (other_keys, *other_ends) = (_ends(plane, width) for plane in (low, high))
    _, mine, theirs = np.intersect1d(keys, other_keys, assume_unique=True, return_indices=True)
    moves = [np.abs(a[mine] - b[theirs]) for a, b in zip(ends, other_ends, strict=True)]
    return np.stack(moves, axis=1).reshape(-1)


def _ends(plane: Array, width: int) -> tuple[Array, Array, Array]:
    """Return a key per line and object, and where the object begins and stops in that line."""
    lines = plane.reshape(-1, plane.shape[-1]).astype(np.int64)
    row, column = np.nonzero(lines)
    key = row * width + lines[row, column]
    keys, first = np.unique(key, return_index=True)
    last = np.unique(key[::-1], return_index=True)[1]
    return keys, column[first], column[::-1][last]
