"""Sizing: tile shapes, halos and workers that fit what this process was granted.

1. Memory per worker is the granted memory, less a reserve, divided by the workers.
2. A tile starts as one chunk of the image, so that no chunk is decoded by two tiles except for the
   halo, and grows by whole chunks along its shortest axis for as long as it fits.
3. What fits is what `patchworks_core.machine.budget.block_bytes` says a tile takes: pixels with
   halo, the function's own working memory, labels and strips.
"""

from __future__ import annotations

from collections.abc import Sequence
from math import ceil, prod
from numbers import Integral
from typing import Any

import numpy as np
import numpy.typing as npt

from patchworks_core.calls.spellings import also_spelled
from patchworks_core.errors import PlanError
from patchworks_core.machine.budget import (
    FUNCTION_BYTES_PER_PIXEL,
    block_bytes,
    decide_workers,
    granted_cores,
    granted_memory_bytes,
    human_bytes,
)
from patchworks_core.machine.devices import Device, granted_devices
from patchworks_core.machine.progress import say_aloud
from patchworks_core.tiles.grid import SPATIAL_AXES, plan_grid
from patchworks_core.tiles.numbers import finite_number, whole_number

MEMORY_FRACTION = 0.8
"""Share of the granted memory that tiles may take; the rest is for everything else."""

COPIES_OF_A_TILE = 4
"""Buffers as large as a tile that a function is taken to hold, where only bytes are known."""

MAX_TILE_PIXELS = 1 << 24
"""Tiles are not made larger than 4096 x 4096 pixels: progress, retries and balance suffer."""

UNKNOWN_VRAM_BYTES = 4 << 30
"""Assumed free on a GPU whose memory cannot be read."""

MIN_TILE_EXTENT = 32
"""Tiles are not made narrower than this, pixels, unless the image is."""


@also_spelled({"available_memory": "memory_bytes", "gpu_memory": "vram_bytes"})
def auto_tile_shape(
    shape: Sequence[int],
    dtype: npt.DTypeLike,
    *,
    axes: str | None = None,
    chunks: Sequence[int] | None = None,
    overlap: Sequence[int] | int = 0,
    n_workers: int | None = None,
    memory_bytes: int | None = None,
    function_bytes_per_pixel: int = FUNCTION_BYTES_PER_PIXEL,
    plane_wise: bool = False,
    use_gpu: bool = False,
    vram_bytes: int | None = None,
    target_bytes: int | None = None,
    n_channels: int = 1,
    verbose: bool = False,
) -> tuple[int, ...]:
    """Choose a tile that fits the memory of each worker, a whole number of chunks.

    Parameters
    ----------
    shape : sequence of int
        Pixels of the image per axis.
    dtype : dtype
        Of its pixels.
    axes : str, optional
        Some of ``tczyx``; by default the last of ``zyx``.
    chunks : sequence of int, optional
        Pixels of a storage chunk per axis.
    overlap : int or sequence of int
        Halo on each side, pixels.
    n_workers : int, optional
        Tiles at once; by default the granted cores less one.
    memory_bytes : int, optional
        Memory for all workers together; by default 80 % of what was granted.
    function_bytes_per_pixel : int
        What the segmentation function takes for every pixel it sees, beyond input and labels.
    plane_wise : bool
        One whole plane per tile, for functions that need to see all of it.
    use_gpu : bool
        Whether a tile, with what the function takes, must fit the memory of a GPU too. There are
        then by default as many workers as GPUs.
    vram_bytes : int, optional
        Free memory of the smallest GPU; by default asked of NVML, and 4 GiB where it cannot say.
    target_bytes : int, optional
        Most bytes of a tile's pixels, whatever the memory; without halo.
    n_channels : int
        Channels that the function sees at once: its pixels take so many times the memory.
    verbose : bool
        Say on standard error what was chosen.

    Returns
    -------
    tuple of int
        Pixels of a tile per axis; 1 along time and channel.

    Raises
    ------
    PlanError
        If not even a small tile fits, or a whole plane does not.

    Examples
    --------
    >>> auto_tile_shape((9000, 9000), "u2", chunks=(512, 512), n_workers=4, memory_bytes=10**9)
    (1536, 1536)
    >>> auto_tile_shape((3, 64, 500, 500), "u1", axes="tzyx", n_workers=1, memory_bytes=2 * 10**9)
    (1, 64, 500, 500)
    """
    letters = axes_of(shape, axes)
    devices = granted_devices() if use_gpu else ()
    workers = len(devices) or max(1, granted_cores().value - 1)
    if n_workers is not None:
        workers = whole_number("n_workers", n_workers, least=1)
    total = memory_bytes
    if memory_bytes is not None:
        total = int(finite_number("memory_bytes", memory_bytes, least=0))
    if total is None:
        total = int(MEMORY_FRACTION * granted_memory_bytes().value)
    usable = total // workers
    if use_gpu:
        usable = min(usable, usable_vram(devices, vram_bytes))
    per_pixel = whole_number("function_bytes_per_pixel", function_bytes_per_pixel)
    channels, itemsize = whole_number("n_channels", n_channels, least=1), np.dtype(dtype).itemsize
    most = None if target_bytes is None else whole_number("target_bytes", target_bytes, least=1)

    def needed(tile: Sequence[int]) -> int:
        grid = plan_grid(letters, shape, tile_shape=tile, overlap=overlap)
        in_function = per_pixel + (channels - 1) * (per_pixel + itemsize)
        return block_bytes(grid, np.dtype(dtype), function_bytes_per_pixel=in_function)

    def fits(tile: Sequence[int]) -> bool:
        pixels = prod(tile) * itemsize * channels
        return needed(tile) <= usable and (most is None or pixels <= most)

    units = _units(shape, letters, chunks)
    if not plane_wise:
        tile = _grown(shape, letters, units, fits, usable)
    else:
        tile = tuple(n if axis in "yx" else 1 for n, axis in zip(shape, letters, strict=True))
    if plane_wise and needed(tile) > usable:
        flat = "".join(axis for axis in letters if axis in "yx")
        inner = [n for n, axis in zip(shape, letters, strict=True) if axis in flat]
        cut = auto_tile_shape(
            inner,
            dtype,
            axes=flat,
            overlap=min(64, *inner),
            n_workers=1,
            memory_bytes=usable,
            function_bytes_per_pixel=per_pixel,
        )
        raise PlanError(
            f"a whole plane of {tuple(inner)!r} pixels needs {human_bytes(needed(tile))} and "
            f"each of {workers} workers has {human_bytes(usable)}; cut the planes, for example "
            f"tile_shape={(1,) * (len(shape) - len(cut)) + cut!r} with overlap of one object's "
            "diameter, or use fewer workers"
        )
    if verbose:
        say_aloud(
            f"tiles of {tile} pixels (axes {letters!r}), {human_bytes(needed(tile))} each of the "
            f"{human_bytes(usable)} that each of {workers} workers has"
        )
    return tile


def usable_vram(devices: Sequence[Device], vram_bytes: int | None) -> int:
    """Return the bytes that a tile may take on the smallest of some GPUs."""
    free = min((device.free_bytes for device in devices), default=UNKNOWN_VRAM_BYTES)
    if vram_bytes is not None:
        free = int(finite_number("vram_bytes", vram_bytes, least=0))
    return int(MEMORY_FRACTION * free)


def axes_of(shape: Sequence[int], axes: str | None) -> str:
    """Return the axes as they were said, or the last of ``zyx`` for up to three."""
    if axes is None and 1 <= len(shape) <= 3:
        return SPATIAL_AXES[-len(shape) :]
    if axes is None or len(axes) != len(shape):
        raise PlanError(
            f"axes needs one letter of 'tczyx' for each of the {len(shape)} axes of shape "
            f"{tuple(shape)!r}, got {axes!r}"
        )
    return axes


def _units(shape: Sequence[int], axes: str, chunks: Sequence[int] | None) -> tuple[int, ...]:
    """Return what a tile is a whole number of, per axis: chunks, or pieces of a whole image."""
    pieces = chunks or tuple(1 if axis == "z" else 256 for axis in axes)
    return tuple(
        min(max(1, int(c)), int(n)) if axis in SPATIAL_AXES else 1
        for c, n, axis in zip(pieces, shape, axes, strict=True)
    )


def _grown(
    shape: Sequence[int], axes: str, units: tuple[int, ...], fits: Any, usable: int
) -> tuple[int, ...]:
    """Grow a tile by whole units along its shortest axis, for as long as it fits."""
    tile = _shrunk(axes, units, fits, usable)
    open_axes = [i for i, axis in enumerate(axes) if axis in SPATIAL_AXES]
    while open_axes:
        axis = min(open_axes, key=lambda i: (tile[i], i))
        grown = list(tile)
        grown[axis] = min(int(shape[axis]), tile[axis] + units[axis])
        if grown[axis] > tile[axis] and prod(grown) <= MAX_TILE_PIXELS and fits(grown):
            tile = tuple(grown)
        else:
            open_axes.remove(axis)
    return tile


def _shrunk(axes: str, units: tuple[int, ...], fits: Any, usable: int) -> tuple[int, ...]:
    """Return one unit, or a half, a quarter, ... of it where a whole one does not fit."""
    tile = list(units)
    while not fits(tile):
        widest = max(range(len(tile)), key=lambda i: tile[i])
        if tile[widest] <= MIN_TILE_EXTENT:
            raise PlanError(
                f"not even a tile of {tuple(tile)!r} pixels (axes {axes!r}) fits the "
                f"{human_bytes(usable)} that each worker has; use fewer workers or a smaller "
                "overlap, or ask for more memory"
            )
        tile[widest] = max(MIN_TILE_EXTENT, ceil(tile[widest] / 2))
    return tuple(tile)


def auto_overlap(
    diameter: float,
    safety: float = 1.0,
    voxel_size: Sequence[float] | float | None = None,
) -> int | tuple[int, ...]:
    """Return the halo for objects of a diameter: one diameter on each side.

    Half a diameter is where split and fused objects become rare; at one diameter every object that
    is cut by a face is seen whole from one side.

    Parameters
    ----------
    diameter : float
        Of a large object, in pixels; of the finest axis, where pixels are not as long as wide.
    safety : float
        So many diameters; more than 1 for long or irregular objects.
    voxel_size : float or sequence of float, optional
        Distance between pixels per axis, in any unit: the halo is smaller where they lie farther
        apart.

    Returns
    -------
    int, or tuple of int per axis of `voxel_size`

    Raises
    ------
    PlanError
        If a length is not above 0.

    Examples
    --------
    >>> auto_overlap(17.5)
    18
    >>> auto_overlap(30, voxel_size=(2.0, 0.1, 0.1))
    (2, 30, 30)
    """
    if np.ndim(safety):
        raise PlanError(f"safety is a number, got {safety!r}; say voxel_size={safety!r}")
    sizes = (1.0,) if voxel_size is None else tuple(np.atleast_1d(voxel_size).tolist())
    for name, lengths in (("diameter", [diameter]), ("safety", [safety]), ("voxel_size", sizes)):
        for length in lengths:
            if finite_number(name, length, least=0) == 0:
                raise PlanError(f"{name} must be above 0, got {length!r}")
    reach = diameter * safety * min(sizes)
    # Lengths such as 0.1 are not exact, and must not cost a pixel.
    halo = tuple(ceil(round(reach / size, 6)) for size in sizes)
    return halo[0] if voxel_size is None or np.ndim(voxel_size) == 0 else halo


def safe_worker_count(
    tile_shape: Sequence[int] | int | None = None,
    dtype: npt.DTypeLike | None = None,
    *,
    tile_nbytes: int | None = None,
    overlap: Sequence[int] | int = 0,
    function_bytes_per_pixel: int = FUNCTION_BYTES_PER_PIXEL,
    measured_bytes: int = 0,
    at_most: int | None = None,
    use_gpu: bool = False,
    fn_overhead: float = COPIES_OF_A_TILE,
    ram_fraction: float = MEMORY_FRACTION,
) -> int:
    """Return how many tiles fit the granted cores and memory at once, at least 1.

    Parameters
    ----------
    tile_shape : sequence of int
        Pixels of a tile, spatial axes. A single number without `dtype` is `tile_nbytes`.
    dtype : dtype
        Of the image.
    tile_nbytes : int, optional
        Bytes of a tile's pixels, in place of shape and type.
    overlap : int or sequence of int
        Halo on each side, pixels; of a tile with a shape.
    function_bytes_per_pixel : int
        As in `auto_tile_shape`; of a tile with a shape.
    measured_bytes : int
        What a tile was seen to take, if that is more.
    at_most : int, optional
        What the user set.
    use_gpu : bool
        One tile at once on each GPU that this process may use, or on the one that is not there.
    fn_overhead : float
        Buffers as large as the tile that are there at once, for a tile of `tile_nbytes`.
    ram_fraction : float
        Share of the granted memory that tiles may take.

    Raises
    ------
    PlanError
        If not even one tile fits.

    Examples
    --------
    >>> safe_worker_count((64, 64), "uint8", at_most=1)
    1
    >>> safe_worker_count(tile_nbytes=10_000_000, at_most=1)
    1
    """
    if at_most is not None:
        at_most = whole_number("at_most", at_most, least=1)
    measured_bytes = whole_number("measured_bytes", measured_bytes)
    if isinstance(tile_shape, Integral) and dtype is None and tile_nbytes is None:
        tile_shape, tile_nbytes = None, int(tile_shape)
    if (tile_shape is None) == (tile_nbytes is None) or (tile_shape is None) != (dtype is None):
        raise PlanError(
            "a tile is said by its shape and dtype, or by tile_nbytes, got "
            f"tile_shape={tile_shape!r}, dtype={dtype!r} and tile_nbytes={tile_nbytes!r}"
        )
    if tile_nbytes is not None:
        copies = finite_number("fn_overhead", fn_overhead, least=1)
        needed = int(copies * whole_number("tile_nbytes", tile_nbytes))
    else:
        needed = _bytes_of_a_tile(tile_shape, dtype, overlap, function_bytes_per_pixel)
    n_devices = len(granted_devices()) if use_gpu else 0
    limits = [n for n in (at_most, max(1, n_devices) if use_gpu else None) if n is not None]
    return decide_workers(
        max(needed, measured_bytes),
        cores=granted_cores(),
        memory=granted_memory_bytes(),
        memory_fraction=finite_number("ram_fraction", ram_fraction, least=0.01, most=1),
        at_most=min(limits, default=None),
    ).count


def _bytes_of_a_tile(
    tile_shape: Any, dtype: Any, overlap: Sequence[int] | int, per_pixel: int
) -> int:
    """Return what a tile with its whole halo takes."""
    per_pixel = whole_number("function_bytes_per_pixel", per_pixel)
    tile = tuple(np.atleast_1d(tile_shape).tolist())
    # Three tiles per axis: the one in the middle has its whole halo.
    shape = [3 * n for n in tile]
    grid = plan_grid(axes_of(tile, None), shape, tile_shape=tile, overlap=overlap)
    return block_bytes(grid, np.dtype(dtype), function_bytes_per_pixel=per_pixel)
