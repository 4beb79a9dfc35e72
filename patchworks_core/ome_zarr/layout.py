"""How pixels are laid out in files: chunks, shards, and the unit that one task handles.

A chunk is compressed as a whole; a shard is one file of many chunks. What one task handles is a
box of whole shards, or of whole chunks where there are no shards: it is written by one task only,
and what it takes in memory does not depend on the size of the image.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from math import ceil, prod
from typing import Literal

from patchworks_core.errors import PlanError
from patchworks_core.images.image import Image
from patchworks_core.tiles.grid import SPATIAL_AXES, TileGrid
from patchworks_core.tiles.numbers import whole_number

ShardsWanted = Sequence[int] | Literal["auto"] | None
"""Pixels of a shard per axis; ``auto`` chooses, None is a file per chunk."""

SHARD_BYTES = 1 << 26
"""Shards have at most this many bytes before compression: 64 MB, a file of 10 to 60 MB."""

UNIT_BYTES = 1 << 28
"""A unit grows to at most this many bytes where the chunks of the source are larger: 256 MB."""

COPIES = 4
"""Most copies of a unit that one task holds: read, reordered, cut into chunks, and compressed."""


@dataclass(frozen=True, slots=True)
class Layout:
    """Files of one array, and what is handled at once."""

    shape: tuple[int, ...]
    """Pixels of the array, per axis."""

    chunks: tuple[int, ...]
    """Pixels of a chunk, per axis."""

    shards: tuple[int, ...] | None
    """Pixels of a shard, per axis; whole chunks. None is a file per chunk."""

    unit: tuple[int, ...]
    """Pixels that one task handles, per axis; whole files, or the array."""

    itemsize: int
    """Bytes of a pixel."""

    def grid(self, axes: str) -> TileGrid:
        """Return the units as tiles without halo."""
        unit = tuple(min(u, n) for u, n in zip(self.unit, self.shape, strict=True))
        return TileGrid(axes, self.shape, unit, (0,) * len(axes))

    def fitted(self, shape: tuple[int, ...]) -> Layout:
        """Return the layout for an array of another shape: nothing is larger than it need be."""
        chunks = tuple(min(c, n) for c, n in zip(self.chunks, shape, strict=True))
        shards = self.shards and _whole(chunks, self.shards, shape)
        unit = _whole(shards or chunks, self.unit, shape)
        return Layout(shape, chunks, shards, unit, self.itemsize)

    def peak_bytes(self, n_workers: int) -> int:
        """Return the most memory that the pixels of `n_workers` tasks take at once."""
        unit = prod(min(u, n) for u, n in zip(self.unit, self.shape, strict=True))
        return n_workers * COPIES * unit * self.itemsize


def layout_of(image: Image, chunks: Sequence[int] | None, shards: ShardsWanted) -> Layout:
    """Choose the layout of an image.

    Raises
    ------
    PlanError
        If chunks or shards do not fit the axes of the image.

    Examples
    --------
    >>> import numpy as np
    >>> from patchworks_core.images.image import open_image
    >>> layout = layout_of(open_image(np.zeros((3000, 4000), "u2")), None, "auto")
    >>> layout.chunks, layout.shards
    ((512, 512), (3072, 4096))
    """
    itemsize = image.dtype.itemsize
    if chunks is None:
        chunks = _default_chunks(image.axes, image.shape)
    chunks = _checked("chunks", chunks, image)
    chunks = tuple(min(c, n) for c, n in zip(chunks, image.shape, strict=True))
    grown = _grown(image.axes, image.shape, chunks, itemsize)
    shard = None
    if shards is not None:
        shard = grown if isinstance(shards, str) else _checked("shards", shards, image)
        if any(s % c for s, c in zip(shard, chunks, strict=True)):
            raise PlanError(f"a shard holds whole chunks, got {shard!r} of chunks {chunks!r}")
        shard = _whole(chunks, shard, image.shape)
    unit = _over_source(shard or grown, image)
    return Layout(image.shape, chunks, shard, unit, itemsize)


def _default_chunks(axes: str, shape: Sequence[int]) -> tuple[int, ...]:
    sizes = dict(zip(axes, shape, strict=True))
    side, depth = (256, 16) if sizes.get("z", 1) > 1 else (512, 1)
    return tuple({"z": depth, "y": side, "x": side}.get(axis, 1) for axis in axes)


def _checked(name: str, values: Sequence[int], image: Image) -> tuple[int, ...]:
    """Return chunks or shards as a tuple, or raise PlanError."""
    sizes = tuple(whole_number(name, value, least=1) for value in values)
    if len(sizes) != len(image.axes) or min(sizes, default=0) < 1:
        raise PlanError(f"{name} needs one size per axis of {image.axes!r}, got {values!r}")
    for axis, size in zip(image.axes, sizes, strict=True):
        if axis not in SPATIAL_AXES and size != 1:
            raise PlanError(f"{name} hold one index of axis {axis!r}, got {size} in {values!r}")
    return sizes


def _grown(
    axes: str, shape: Sequence[int], chunks: Sequence[int], itemsize: int
) -> tuple[int, ...]:
    """Return chunks doubled along x, y and z in turn, up to `SHARD_BYTES`."""
    grown = list(chunks)
    while True:
        spatial = [i for i, axis in enumerate(axes) if axis in SPATIAL_AXES]
        can_grow = [i for i in spatial if grown[i] < shape[i]]
        if not can_grow or 2 * prod(grown) * itemsize > SHARD_BYTES:
            return _whole(chunks, grown, shape)
        fewest = min(reversed(can_grow), key=lambda i: grown[i] // chunks[i])
        grown[fewest] *= 2


def _over_source(unit: tuple[int, ...], image: Image) -> tuple[int, ...]:
    """Return the unit grown over larger chunks of the source, which are else decoded repeatedly."""
    grown = list(unit)
    for i, chunk in enumerate(image.chunks or unit):
        candidate = [
            *grown[:i],
            unit[i] * ceil(min(chunk, image.shape[i]) / unit[i]),
            *grown[i + 1 :],
        ]
        is_spatial = image.axes[i] in SPATIAL_AXES
        if is_spatial and prod(candidate) * image.dtype.itemsize <= UNIT_BYTES:
            grown = candidate
    return tuple(grown)


def _whole(part: Sequence[int], box: Sequence[int], shape: Sequence[int]) -> tuple[int, ...]:
    """Return a box of whole parts, no larger than covers the shape."""
    return tuple(p * ceil(min(b, n) / p) for p, b, n in zip(part, box, shape, strict=True))
