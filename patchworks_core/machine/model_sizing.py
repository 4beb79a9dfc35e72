"""Tile shapes for models whose memory is known: Cellpose."""

from __future__ import annotations

from collections.abc import Sequence
from math import ceil, prod
from typing import Any

import numpy.typing as npt

from patchworks_core.machine.devices import granted_devices
from patchworks_core.machine.sizing import MEMORY_FRACTION, auto_overlap, auto_tile_shape, axes_of
from patchworks_core.tiles.numbers import finite_number, whole_number

CELLPOSE_BYTES_PER_PIXEL = 260
"""Host memory of Cellpose's dynamics (70 to 230 bytes per pixel, measured on versions 3 and 4) and
of its normalised copy of the tile."""

CELLPOSE_DIAMETER = 30.0
"""Pixels that Cellpose scales objects to (``diam_mean`` of the stock models)."""

UNKNOWN_VRAM_BYTES = 4 << 30
"""Assumed free on a GPU whose memory cannot be read."""


def auto_tile_shape_cellpose(
    shape: Sequence[int],
    dtype: npt.DTypeLike,
    diameter: float | None = None,
    do_3D: bool = False,
    use_gpu: bool = False,
    *,
    axes: str | None = None,
    chunks: Sequence[int] | None = None,
    n_workers: int | None = None,
    memory_bytes: int | None = None,
    vram_bytes: int | None = None,
) -> tuple[int, ...]:
    """Choose a tile for Cellpose: planes for its 2-D networks, blocks for ``do_3D``.

    Parameters
    ----------
    shape, dtype, axes, chunks, n_workers, memory_bytes
        As in `auto_tile_shape`; on a GPU the workers are by default as many as there are GPUs.
    diameter : float, optional
        Of the objects, pixels. Cellpose enlarges images of objects under 30 pixels, and so does
        what it takes.
    do_3D : bool
        True gives blocks; False one plane, or a part of it, per tile.
    use_gpu : bool
        Whether the dynamics run on a GPU, whose free memory then counts as well.
    vram_bytes : int, optional
        Free memory of the smallest GPU; by default asked of NVML, and 4 GiB where it cannot say.

    Returns
    -------
    tuple of int

    Raises
    ------
    PlanError
        As `auto_tile_shape`.

    Examples
    --------
    >>> auto_tile_shape_cellpose((40, 9000, 9000), "u2", 30, n_workers=1, memory_bytes=10**9)
    (1, 1792, 1792)
    """
    letters = axes_of(shape, axes)
    n_axes = 3 if do_3D and "z" in letters else 2
    if diameter is not None:
        finite_number("diameter", diameter, least=0)
    if n_workers is not None:
        n_workers = whole_number("n_workers", n_workers, least=1)
    if vram_bytes is not None:
        vram_bytes = int(finite_number("vram_bytes", vram_bytes, least=0))
    enlarged = max(1.0, CELLPOSE_DIAMETER / diameter) ** n_axes if diameter else 1.0
    per_pixel = ceil(CELLPOSE_BYTES_PER_PIXEL * enlarged)
    devices = granted_devices() if use_gpu else ()
    workers = n_workers or (len(devices) or None)
    flat = (
        shape
        if n_axes == 3
        else [1 if a == "z" else n for n, a in zip(shape, letters, strict=True)]
    )
    pieces = None if chunks is None else [min(c, n) for c, n in zip(chunks, flat, strict=True)]
    halo = auto_overlap(diameter or CELLPOSE_DIAMETER)
    options: dict[str, Any] = {
        "axes": letters,
        "chunks": pieces,
        "overlap": halo,
        "function_bytes_per_pixel": per_pixel,
    }
    tile = auto_tile_shape(flat, dtype, n_workers=workers, memory_bytes=memory_bytes, **options)
    if not use_gpu:
        return tile
    free_bytes = [device.free_bytes for device in devices]
    free = min(free_bytes, default=UNKNOWN_VRAM_BYTES) if vram_bytes is None else vram_bytes
    on_device = auto_tile_shape(
        flat, dtype, n_workers=1, memory_bytes=int(MEMORY_FRACTION * free), **options
    )
    return min(tile, on_device, key=prod)
