"""Holes: background components that a single object encloses, told from pieces of them.

A component that is cut by tiles is known in pieces. What is kept of a piece adds up, as with
objects: its pixels, whether it touches the border of the image, and the smallest and the largest id
beside it. It is a hole where these two are one id and no piece touches the border:

1. `hole_evidence` gathers what one tile knows, with one pixel around it.
2. `HoleEvidence.add` combines the rows of one component.
3. `HoleEvidence.owners` decides.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from patchworks_core.tiles.regions import Region

Array = npt.NDArray[Any]

NO_NEIGHBOUR = np.iinfo(np.int64).max
"""Lowest neighbour of a component that has none."""


@dataclass(frozen=True, slots=True, eq=False)
class HoleEvidence:
    """What is known of background components: columns with one row per component."""

    size: Array
    """Pixels, int64."""

    touches_border: Array
    """Whether a pixel lies at the border of the image, bool."""

    lowest: Array
    """Smallest id beside a pixel, int64; `NO_NEIGHBOUR` without one."""

    highest: Array
    """Largest id beside a pixel, int64; 0 without one."""

    @classmethod
    def none(cls, n: int) -> HoleEvidence:
        """Return `n` rows of which nothing is known."""
        return cls(
            np.zeros(n, np.int64),
            np.zeros(n, bool),
            np.full(n, NO_NEIGHBOUR, np.int64),
            np.zeros(n, np.int64),
        )

    def add(self, other: HoleEvidence, rows: Array) -> None:
        """Add the evidence of another region, whose rows are `rows` here."""
        np.add.at(self.size, rows, other.size)
        np.logical_or.at(self.touches_border, rows, other.touches_border)
        np.minimum.at(self.lowest, rows, other.lowest)
        np.maximum.at(self.highest, rows, other.highest)

    def owners(self, max_size: int | None) -> Array:
        """Return the id that fills each component; 0 where it stays background.

        Parameters
        ----------
        max_size : int, optional
            Larger components are no holes.
        """
        is_hole = ~self.touches_border & (self.lowest == self.highest)
        if max_size is not None:
            is_hole &= self.size <= max_size
        return np.where(is_hole, self.lowest, 0)


def hole_evidence(
    background: Array,
    labels: Array,
    *,
    core: Region,
    shape: Sequence[int],
    axes: Sequence[int],
    n: int,
) -> HoleEvidence:
    """Return what one tile knows of the background components in it.

    Parameters
    ----------
    background : ndarray of int
        Components of the background in the core, 0 (objects) and 1..n.
    labels : ndarray of int
        Objects in the core and, within the image, one pixel around it along `axes`.
    core : Region
        Place of the core in the image.
    shape : sequence of int
        Of the image.
    axes : sequence of int
        Positions of the spatial axes. An axis one pixel thick has no border.
    n : int
        Number of components.
    """
    found = HoleEvidence.none(n)
    found.size[:] = np.bincount(background.reshape(-1), minlength=n + 1)[1:]
    # Where the core is at the border there is no pixel around it; nothing is there to be beside.
    around = [
        (int(i in axes and core.start[i] == 0), int(i in axes and core.stop[i] == shape[i]))
        for i in range(len(shape))
    ]
    padded = np.pad(labels, around)
    for axis in axes:
        for side, is_border in enumerate(around[axis]):
            if is_border and shape[axis] > 1:
                plane = background.take(-side, axis=axis)
                found.touches_border[plane[plane > 0] - 1] = True
            beside = padded[_beside(background.shape, axes, axis, side)]
            met = (background > 0) & (beside > 0)
            rows, ids = background[met] - 1, beside[met].astype(np.int64)
            np.minimum.at(found.lowest, rows, ids)
            np.maximum.at(found.highest, rows, ids)
    return found


def _beside(shape: Sequence[int], axes: Sequence[int], axis: int, side: int) -> tuple[slice, ...]:
    """Return where the neighbours below (side 0) or above (1) lie in an array padded by one."""
    index = [slice(1, size + 1) if i in axes else slice(size) for i, size in enumerate(shape)]
    index[axis] = slice(2 * side, 2 * side + shape[axis])
    return tuple(index)
