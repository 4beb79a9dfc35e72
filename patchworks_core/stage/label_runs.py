"""Runs of equal labels: counted, renumbered and kept by run, labels take a fraction of the time."""

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
    """Pixels of each run, whole numbers."""

    shape: tuple[int, ...]
    """Of the labels."""

    @classmethod
    def of(cls, labels: Array, *, box: tuple[int, ...] | None = None) -> LabelRuns | None:
        """Return the runs of labels; None where they gain nothing: too short, or too few.

        Parameters
        ----------
        labels : ndarray of int
        box : tuple of int, optional
            No run reaches from one box of that shape into the next, counted from the first pixel.

        Examples
        --------
        >>> runs = LabelRuns.of(np.repeat(np.array([0, 3, 0]), 20_000))
        >>> runs.ids, runs.lengths
        (array([0, 3, 0]), array([20000, 20000, 20000]))
        """
        if labels.size < MIN_PIXELS:
            return None
        flat = np.ascontiguousarray(labels).reshape(-1)
        is_last = np.empty(flat.size, dtype=bool)
        np.not_equal(flat[1:], flat[:-1], out=is_last[:-1])
        is_last[-1] = True
        if box is not None:
            _end_with_boxes(is_last.reshape(labels.shape), box)
        if np.count_nonzero(is_last) * MIN_LENGTH > flat.size:
            return None
        last = np.flatnonzero(is_last)
        return cls(flat[last], np.diff(last, prepend=-1), labels.shape)

    @property
    def starts(self) -> Array:
        """Where each run begins, counted in pixels in row-major order, int64."""
        return np.cumsum(self.lengths, dtype=np.int64) - self.lengths

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


def _end_with_boxes(is_last: Array, box: tuple[int, ...]) -> None:
    """Mark the pixels after which another box comes, in row-major order."""
    for axis, (length, n) in enumerate(zip(box, is_last.shape, strict=True)):
        if n > length:
            # Rows, planes and so on: what comes after the last of one is another box too.
            by_line = is_last.reshape(*is_last.shape[: axis + 1], -1)[..., -1]
            by_line[..., length - 1 :: length] = True
            by_line[..., -1] = True


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
    if labels.dtype == np.uint64:  # which bincount does not take
        labels = labels.astype(np.int64)
    return np.bincount(labels.reshape(-1), minlength=n_ids)


def take_ids(values: Array, labels: Array | LabelRuns) -> Array:
    """Return ``values[labels]``: what each label becomes.

    Parameters
    ----------
    values : ndarray, shape (n,)
        By id.
    labels : ndarray of int, or LabelRuns
        Ids from 0 to ``n - 1``.

    Examples
    --------
    >>> take_ids(np.array([0, 7, 9]), np.array([[0, 2], [2, 0]]))
    array([[0, 9],
           [9, 0]])
    """
    if isinstance(labels, LabelRuns):
        return labels.taken_from(values)
    runs = LabelRuns.of(labels)
    return np.take(values, labels) if runs is None else runs.taken_from(values)
