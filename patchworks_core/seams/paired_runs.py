"""Runs of pixels in which two views of one region have the same pair of labels.

Labels are constant over many pixels in a row, so what is counted or compared of two views is so by
run: two comparisons of neighbours per pixel, and the rest for a few pixels in a hundred.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

Array = npt.NDArray[Any]


@dataclass(frozen=True, slots=True)
class PairedRuns:
    """The runs of two views, in row-major order; no run reaches across the first axis."""

    a: Array
    """Label of each run in one view, in the type of the view."""

    b: Array
    """In the other."""

    index: npt.NDArray[np.int64]
    """Of each run, where it lies on the first axis."""

    lengths: npt.NDArray[np.int64]
    """Pixels of each run."""

    @classmethod
    def of(cls, a: Array, b: Array) -> PairedRuns:
        """Return the runs of two label arrays of one shape.

        Examples
        --------
        >>> runs = PairedRuns.of(np.array([[1, 1, 0], [0, 0, 2]]), np.array([[3, 3, 3], [3, 3, 3]]))
        >>> runs.a.tolist(), runs.b.tolist(), runs.index.tolist(), runs.lengths.tolist()
        ([1, 0, 0, 2], [3, 3, 3, 3], [0, 0, 1, 1], [2, 1, 2, 1])
        """
        flat_a, flat_b = (np.ascontiguousarray(view).reshape(-1) for view in (a, b))
        n_pixels = max(1, flat_a.size // max(1, len(a)))
        is_first = np.ones(flat_a.size, dtype=bool)
        np.not_equal(flat_a[1:], flat_a[:-1], out=is_first[1:])
        is_first[1:] |= flat_b[1:] != flat_b[:-1]
        is_first[::n_pixels] = True
        first = np.flatnonzero(is_first)
        lengths = np.diff(first, append=flat_a.size)
        return cls(flat_a[first], flat_b[first], first // n_pixels, lengths)
