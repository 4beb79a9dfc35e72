"""What people write in a call, and what is meant: tile shapes, sizes, progress, GPUs."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, Literal

import numpy as np

from patchworks_core.errors import PlanError
from patchworks_core.images.image import Image
from patchworks_core.machine.budget import granted_cores, granted_memory_bytes
from patchworks_core.machine.devices import Gpus, devices_for
from patchworks_core.machine.pools import Compute
from patchworks_core.machine.sizing import MEMORY_FRACTION, auto_tile_shape
from patchworks_core.pilot.trials import ASSUMED_HALO

TileShape = (
    Sequence[int]
    | int
    | Literal["auto"]
    | Callable[[tuple[int, ...], np.dtype[Any]], "Sequence[int] | int | str | None"]
    | None
)
"""How a tile shape may be given."""

MIN_CHUNK = 32
"""Chunks narrower than this make no sense as tiles: per-tile costs would rule."""


def shape_of_tiles(
    tile_shape: TileShape, image: Image, overlap: Any, compute: Compute
) -> Sequence[int] | int:
    """Return the tile that is meant.

    Raises
    ------
    PlanError
        If it is left to the image's chunks and they make no sense as tiles.
    """
    if tile_shape is None:
        return _chunks_as_tiles(image)
    if isinstance(tile_shape, str):
        if tile_shape != "auto":
            raise PlanError(f"tile_shape in words can only be 'auto', got {tile_shape!r}")
        n_workers = compute.max_workers or max(1, granted_cores().value - 1)
        granted = compute.memory or granted_memory_bytes()
        memory = int(MEMORY_FRACTION * granted.value)
        return auto_tile_shape(
            image.shape,
            image.dtype,
            axes=image.axes,
            chunks=image.chunks,
            overlap=ASSUMED_HALO if isinstance(overlap, str) else overlap,
            n_workers=n_workers,
            memory_bytes=max(0, memory - n_workers * compute.bytes_beside_tiles),
        )
    if callable(tile_shape):
        shape: Any = tile_shape(image.shape, image.dtype)
        if callable(shape):
            raise PlanError(f"tile_shape must return a tile shape, got another function {shape!r}")
        return shape_of_tiles(shape, image, overlap, compute)
    return tile_shape


def _chunks_as_tiles(image: Image) -> tuple[int, ...]:
    chunks = image.chunks
    if chunks is None:
        raise PlanError(
            f"the image of shape {image.shape} has no chunks to take as tiles; "
            "give tile_shape, for example 1024, 'auto', or -1 for one tile"
        )
    flat = [n for n, axis in zip(chunks, image.axes, strict=True) if axis in "yx"]
    if any(n < MIN_CHUNK for n in flat):
        raise PlanError(
            f"the image's chunks {chunks} are too small to be tiles; give tile_shape, a few "
            "hundred pixels per axis or more, or 'auto'"
        )
    return tuple(n if axis in "zyx" else 1 for n, axis in zip(chunks, image.axes, strict=True))


def has_gpu(wants_gpu: bool, gpus: Gpus = None) -> bool:
    """Return whether a GPU is wanted and there is one; say so once where there is none."""
    return bool(devices_for(wants_gpu, gpus))
