"""Half-open boxes of pixels: the one way a place in an image is written down."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import product
from math import prod


@dataclass(frozen=True, slots=True)
class Region:
    """A half-open box: pixel ``i`` is inside where ``start <= i < stop`` on every axis.

    Examples
    --------
    >>> core = Region((0, 4), (4, 8))
    >>> core.shape
    (4, 4)
    >>> core.grow((1, 1), within=(8, 8))
    Region(start=(0, 3), stop=(5, 8))
    """

    start: tuple[int, ...]
    """First pixel inside, per axis."""

    stop: tuple[int, ...]
    """First pixel beyond, per axis."""

    def __post_init__(self) -> None:
        if len(self.start) != len(self.stop):
            raise ValueError(f"a region needs one start and one stop per axis, got {self}")
        for a, b in zip(self.start, self.stop, strict=True):  # a loop: there are many regions
            if a < 0 or b < a:
                raise ValueError(f"a region needs 0 <= start <= stop on every axis, got {self}")

    def pieces(self, shape: Sequence[int]) -> Iterator[Region]:
        """Yield the boxes of `shape` it is cut into from its start; those at its end are smaller.

        Examples
        --------
        >>> [piece.stop for piece in Region((2, 0), (5, 3)).pieces((2, 3))]
        [(4, 3), (5, 3)]
        """
        starts = (range(a, b, n) for a, b, n in zip(self.start, self.stop, shape, strict=True))
        for start in product(*starts):
            ends = (min(b, a + n) for a, b, n in zip(start, self.stop, shape, strict=True))
            yield Region(start, tuple(ends))

    @property
    def shape(self) -> tuple[int, ...]:
        """Pixels per axis."""
        return tuple(b - a for a, b in zip(self.start, self.stop, strict=True))

    @property
    def size(self) -> int:
        """Pixels in all."""
        return prod(self.shape)

    @property
    def slices(self) -> tuple[slice, ...]:
        """The region as an index into the image."""
        return tuple(slice(a, b) for a, b in zip(self.start, self.stop, strict=True))

    def slices_from(self, origin: Sequence[int]) -> tuple[slice, ...]:
        """Return the region as an index into an array whose first pixel lies at `origin`."""
        bounds = zip(self.start, self.stop, origin, strict=True)
        return tuple([slice(a - o, b - o) for a, b, o in bounds])

    def grow(self, halo: Sequence[int], *, within: Sequence[int]) -> Region:
        """Add `halo` pixels on each side, clipped to an image of shape `within`."""
        return Region(
            tuple(max(0, a - h) for a, h in zip(self.start, halo, strict=True)),
            tuple(min(n, b + h) for b, h, n in zip(self.stop, halo, within, strict=True)),
        )

    def relative_to(self, origin: Sequence[int]) -> Region:
        """Return the same box counted from `origin` instead of from the image's first pixel."""
        return Region(
            tuple(a - o for a, o in zip(self.start, origin, strict=True)),
            tuple(b - o for b, o in zip(self.stop, origin, strict=True)),
        )

    def take(self, axes: Sequence[int]) -> Region:
        """Keep only `axes`, in that order."""
        return Region(tuple(self.start[i] for i in axes), tuple(self.stop[i] for i in axes))
