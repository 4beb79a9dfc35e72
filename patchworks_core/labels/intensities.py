"""Intensities of objects in one channel: sums of pieces, and what is derived from them.

As in `patchworks_core.stage.object_sums`, what is kept of a piece adds up. The standard deviation
needs the sum of squares, which is kept as whole numbers: of floats it would depend on the tiles.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from patchworks_core.stage.object_sums import combine_rows

Array = npt.NDArray[Any]

_LARGEST_SQUARES = 1 << 62
"""Sums of squares that could be beyond it are not trusted to int64."""


@dataclass(frozen=True, slots=True, eq=False)
class IntensitySums:
    """Columns with one row per object, of one channel."""

    total: Array
    """Sum of the pixels, float64; exact for integers up to 2**53."""

    lowest: Array
    """Smallest pixel, float64."""

    highest: Array
    """Largest pixel, float64."""

    squares: Array | None
    """Sum of the squared pixels, int64; None unless pixels are integers of 16 bits at most."""

    @classmethod
    def of_tile(cls, numbers: Array, pixels: Array, n: int) -> IntensitySums:
        """Measure the objects of one tile.

        Parameters
        ----------
        numbers : ndarray of int
            0 (background) and 1..n.
        pixels : ndarray
            Of the same shape. A NaN makes its object's NaN.
        n : int
            Number of objects.

        Examples
        --------
        >>> sums = IntensitySums.of_tile(np.array([1, 1, 0]), np.array([3, 5, 9], "u1"), 1)
        >>> sums.total, sums.squares
        (array([8.]), array([34]))
        """
        inside = np.flatnonzero(numbers)
        rows = numbers.reshape(-1)[inside].astype(np.intp) - 1
        exact = pixels.reshape(-1)[inside]
        values = exact.astype(np.float64)
        squares = None
        if pixels.dtype.kind in "bui" and pixels.dtype.itemsize <= 2:
            squares = combine_rows(np.add, exact.astype(np.int64) ** 2, rows, n, 0)
        return cls(
            np.bincount(rows, weights=values, minlength=n).astype(np.float64),
            combine_rows(np.minimum, values, rows, n, np.inf),
            combine_rows(np.maximum, values, rows, n, -np.inf),
            squares,
        )

    @classmethod
    def merge(cls, pieces: Sequence[IntensitySums], rows: Array, n: int) -> IntensitySums:
        """Combine the rows of tiles that are one object.

        Parameters
        ----------
        pieces : sequence of IntensitySums
            At least one, all of one channel.
        rows : ndarray of int
            The row of the result for each row of all pieces together.
        n : int
            Rows of the result.
        """

        def combine(ufunc: np.ufunc, name: str, initial: float) -> Array:
            values = np.concatenate([getattr(piece, name) for piece in pieces])
            return combine_rows(ufunc, values, rows, n, initial)

        has_squares = all(piece.squares is not None for piece in pieces)
        return cls(
            combine(np.add, "total", 0),
            combine(np.minimum, "lowest", np.inf),
            combine(np.maximum, "highest", -np.inf),
            combine(np.add, "squares", 0) if has_squares else None,
        )

    def columns(self, area: Array, suffix: str) -> dict[str, Array]:
        """Return the columns people read.

        Parameters
        ----------
        area : ndarray of int64
            Pixels of each object.
        suffix : str
            Put behind the name of each column.
        """
        by_name = {
            "mean": self.total / area,
            "sum": self.total,
            "min": self.lowest,
            "max": self.highest,
        }
        if self.squares is not None:
            by_name["std"] = self._deviation(area)
        return {f"intensity_{name}{suffix}": values for name, values in by_name.items()}

    def _deviation(self, area: Array) -> Array:
        """Return the standard deviation over the pixels, from whole numbers without rounding."""
        n = area.astype(object)
        spread = n * np.asarray(self.squares).astype(object)
        spread -= self.total.astype(np.int64).astype(object) ** 2
        deviation: Array = np.sqrt(spread.astype(np.float64)) / area
        extreme = np.maximum(np.abs(self.lowest), np.abs(self.highest))
        deviation[extreme**2 * area > _LARGEST_SQUARES] = np.nan
        return deviation
