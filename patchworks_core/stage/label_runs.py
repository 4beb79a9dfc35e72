"""Runs of equal labels: counted and renumbered by run, labels take a fraction of the time."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

Array = npt.NDArray[Any]

MIN_LENGTH = 12
"""Pixels of a mean run below which it is quicker to go by pixel."""

MIN_PIXELS = 2**15
"""Pixels below which it is quicker to go by pixel."""


@dataclass(frozen=True, slots=True)
class LabelRuns:
    """The runs of equal ids in labels, in row-major order."""

    ids: Array
    """Of each run, in the type of the labels."""

    lengths: Array
    """Pixels of each run, int64."""

    shape: tuple[int, ...]
    """Of the labels."""

    @classmethod
    def of(cls, labels: Array) -> LabelRuns | None:
        """Return the runs of labels; None where they gain nothing: too short, or too few.

        Examples
        --------
        >>> runs = LabelRuns.of(np.repeat(np.array([0, 3, 0]), 20_000))
        >>> runs.ids, runs.lengths
        (array([0, 3, 0]), array([20000, 20000, 20000]))
        """
        if labels.size < MIN_PIXELS:
            return None
        flat = np.ascontiguousarray(labels).reshape(-1)
        is_last = flat[1:] != flat[:-1]
        if (np.count_nonzero(is_last) + 1) * MIN_LENGTH > flat.size:
            return None
        first = np.flatnonzero(is_last) + 1
        starts = np.concatenate([[0], first])
        lengths = np.diff(starts, append=flat.size)
        return cls(flat[starts], lengths, labels.shape)

    def counts(self, n_ids: int) -> Array:
        """Return the pixels of each id below `n_ids`, int64; all ids are below 2**63."""
        # Sums of float64 are exact up to 2**53 pixels.
        ids = self.ids.astype(np.int64, copy=False)
        return np.bincount(ids, weights=self.lengths, minlength=n_ids).astype(np.int64)

    @property
    def labels(self) -> Array:
        """The labels themselves."""
        return np.repeat(self.ids, self.lengths).reshape(self.shape)

    def taken_from(self, values: Array) -> Array:
        """Return ``values[labels]``, in the shape of the labels."""
        return np.repeat(values[self.ids], self.lengths).reshape(self.shape)


def count_ids(labels: Array, n_ids: int) -> Array:
    """Return the pixels of each id below `n_ids`, int64.

    Parameters
    ----------
    labels : ndarray of int
        Ids from 0 to ``n_ids - 1``.
    n_ids : int

    Examples
    --------
    >>> count_ids(np.array([[0, 2], [2, 0]]), 4)
    array([2, 0, 2, 0])
    """
    runs = LabelRuns.of(labels)
    if runs is not None:
        return runs.counts(n_ids)
    if labels.dtype == np.uint64:  # which bincount does not take
        labels = labels.astype(np.int64)
    return np.bincount(labels.reshape(-1), minlength=n_ids)


def take_ids(values: Array, labels: Array) -> Array:
    """Return ``values[labels]``: what each label becomes.

    Parameters
    ----------
    values : ndarray, shape (n,)
        By id.
    labels : ndarray of int
        Ids from 0 to ``n - 1``.

    Examples
    --------
    >>> take_ids(np.array([0, 7, 9]), np.array([[0, 2], [2, 0]]))
    array([[0, 9],
           [9, 0]])
    """
    runs = LabelRuns.of(labels)
    return np.take(values, labels) if runs is None else runs.taken_from(values)
