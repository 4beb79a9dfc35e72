"""Tile shapes for models whose memory is known: Cellpose."""

from __future__ import annotations

from collections.abc import Sequence
from math import ceil

import numpy.typing as npt

from patchworks_core.calls.spellings import also_spelled
from patchworks_core.machine.sizing import auto_overlap, auto_tile_shape, axes_of
from patchworks_core.tiles.numbers import finite_number, whole_number

CELLPOSE_BYTES_PER_PIXEL = 260
"""Host memory of Cellpose's dynamics (70 to 230 bytes per pixel, measured on versions 3 and 4) and
of its normalised copy of the tile."""

CELLPOSE_DIAMETER = 30.0
"""Pixels that Cellpose scales objects to (``diam_mean`` of the stock models)."""


@also_spelled(
    {"available_memory": "memory_bytes", "gpu_memory": "vram_bytes"},
    absent={
        "model_memory_bytes": "give vram_bytes= less what the model takes",
        "cellpose_memory_factor": "it was measured; give function_bytes_per_pixel= to "
        "auto_tile_shape for another",
    },
)
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
    anisotropy: float | None = None,
    n_channels: int = 1,
    verbose: bool = False,
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
        As in `auto_tile_shape`.
    anisotropy : float, optional
        Distance of planes over that of pixels, for ``do_3D``: Cellpose makes so many planes of one.
    n_channels : int
        As in `auto_tile_shape`.
    verbose : bool
        Say on standard error what was chosen.

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
    planes = 1.0
    if anisotropy is not None:
        planes = max(1.0, finite_number("anisotropy", anisotropy, least=0)) if do_3D else 1.0
    enlarged = max(1.0, CELLPOSE_DIAMETER / diameter) ** n_axes if diameter else 1.0
    per_pixel = ceil(CELLPOSE_BYTES_PER_PIXEL * enlarged * planes)
    flat = (
        shape
        if n_axes == 3
        else [1 if a == "z" else n for n, a in zip(shape, letters, strict=True)]
    )
    pieces = None if chunks is None else [min(c, n) for c, n in zip(chunks, flat, strict=True)]
    return auto_tile_shape(
        flat,
        dtype,
        axes=letters,
        chunks=pieces,
        overlap=auto_overlap(diameter or CELLPOSE_DIAMETER),
        function_bytes_per_pixel=per_pixel,
        n_workers=n_workers,
        memory_bytes=memory_bytes,
        use_gpu=use_gpu,
        vram_bytes=vram_bytes,
        n_channels=n_channels,
        verbose=verbose,
    )
