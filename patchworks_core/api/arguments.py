"""What people write in a call, and what is meant: tile shapes, sizes, progress, GPUs."""

from __future__ import annotations

import sys
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from math import ceil, floor, prod
from typing import Any, Literal, get_args

import numpy as np

from patchworks_core.errors import PlanError
from patchworks_core.images.calibration import MICROMETERS
from patchworks_core.images.image import Image
from patchworks_core.machine.budget import granted_cores, granted_memory_bytes
from patchworks_core.machine.devices import granted_devices
from patchworks_core.machine.pools import Compute
from patchworks_core.machine.progress import Progress, no_progress, progress_bars
from patchworks_core.machine.sizing import MEMORY_FRACTION, auto_tile_shape
from patchworks_core.tiles.grid import SPATIAL_AXES

TileShape = (
    Sequence[int]
    | int
    | Literal["auto"]
    | Callable[[tuple[int, ...], np.dtype[Any]], "Sequence[int] | int"]
    | None
)
"""How a tile shape may be given."""

SizeUnit = Literal["pixels", "micrometers"]

MIN_CHUNK = 32
"""Chunks narrower than this make no sense as tiles: per-tile costs would rule."""

ASSUMED_HALO = 32
"""Halo that ``tile_shape="auto"`` leaves room for, where a pilot is yet to find it."""


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
        memory = int(MEMORY_FRACTION * granted_memory_bytes().value)
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
        return tile_shape(image.shape, image.dtype)
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


def in_pixels(
    size: float | None, unit: SizeUnit, image: Image, *, round_up: bool = True
) -> int | None:
    """Return an object's size in pixels.

    Parameters
    ----------
    size : float or None
        Length, area or volume, by how many spatial axes the image has.
    unit : {"pixels", "micrometers"}
    image : Image
        Its calibration counts.
    round_up : bool
        Which way a fraction of a pixel goes.

    Raises
    ------
    PlanError
        If the image does not say how large its pixels are, or the unit is unknown.

    Examples
    --------
    >>> from patchworks_core.images.image import open_image
    >>> in_pixels(12, "pixels", open_image(np.zeros((4, 4))))
    12
    """
    if unit not in get_args(SizeUnit):
        raise PlanError(f"size_unit must be one of {get_args(SizeUnit)!r}, got {unit!r}")
    if not size:
        return None if size is None else 0
    pixel = 1.0
    if unit == "micrometers":
        axes = [axis for axis in image.axes if axis in SPATIAL_AXES]
        lengths = [
            image.pixel_size.get(axis, 0) * MICROMETERS.get(image.unit.get(axis, ""), 0)
            for axis in axes
        ]
        if not all(lengths):
            raise PlanError(
                f"sizes in micrometers need the pixel size of axes {axes!r}, and "
                f"{image.url or 'the image in memory'!r} says {image.pixel_size!r} in "
                f"{image.unit!r}; give sizes in pixels"
            )
        pixel = prod(lengths)
    # A hair of tolerance, so that 1.0 um2 over pixels of 0.1 x 0.1 um is 100 pixels and not 101.
    pixels = round(size / pixel, 6)
    return ceil(pixels) if round_up else floor(pixels)


def has_gpu(wanted: bool) -> bool:
    """Return whether a GPU is wanted and there is one; say so once where there is none."""
    if not wanted:
        return False
    found = bool(granted_devices())
    if not found:
        warnings.warn("no GPU found; the function runs on the CPU", stacklevel=3)
    return found


@contextmanager
def progress_of(progress: bool | Progress) -> Iterator[Progress]:
    """Give the function to tell of progress: bars, the caller's own, or none."""
    if progress is True:
        with progress_bars("patchworks") as show:
            yield show
    else:
        yield progress or no_progress


def say_aloud(text: str) -> None:
    """Say something on standard error."""
    print(text, file=sys.stderr, flush=True)
