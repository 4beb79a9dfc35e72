"""Arrays of labels: cut so that no two tile blocks write one chunk."""

from __future__ import annotations

from collections.abc import Sequence
from math import prod
from typing import Any

import numpy as np
import zarr
import zarr.errors
from upath import UPath

from patchworks_core.errors import PlanError
from patchworks_core.files.storage import ZarrFormat, create_array, zarr_store
from patchworks_core.tiles.grid import TileGrid
from patchworks_core.tiles.numbers import whole_number

CHUNK_PIXELS = 1 << 18
"""Aim for chunks of at most this many pixels (512 x 512): 1 MB of int32."""


def output_chunks(grid: TileGrid) -> tuple[int, ...]:
    """Return chunks that divide a tile's core, of at most `CHUNK_PIXELS` where it divides so far.

    Where tiles are smaller than that, a chunk is several tiles of one block.

    Examples
    --------
    >>> output_chunks(TileGrid("yx", (4096, 4096), (2048, 1024), (0, 0)))
    (512, 512)
    >>> output_chunks(TileGrid("yx", (4096, 4096), (128, 128), (0, 0), block_shape=(4, 8)))
    (512, 512)
    """
    chunks = list(grid.tile_shape)
    tiles = list(grid.block_shape)
    while even := [axis for axis, n in enumerate(tiles) if n % 2 == 0]:
        shortest = min(even, key=lambda axis: chunks[axis])
        if 2 * prod(chunks) > CHUNK_PIXELS:
            break
        chunks[shortest] *= 2
        tiles[shortest] //= 2
    while prod(chunks) > CHUNK_PIXELS:
        longest = max(range(len(chunks)), key=lambda axis: chunks[axis])
        divisor = next((d for d in (2, 3, 5, 7) if chunks[longest] % d == 0), None)
        if divisor is None:
            break
        chunks[longest] //= divisor
    return tuple(chunks)


def check_chunks(grid: TileGrid, chunks: Sequence[int]) -> tuple[int, ...]:
    """Return the chunks that labels are to have.

    Raises
    ------
    PlanError
        If a tile is not a whole number of them, so that two tiles would write one.
    """
    sizes = tuple(whole_number("output_chunks", n, least=1) for n in chunks)
    fits = len(sizes) == len(grid.axes) and all(
        tile % size == 0 or tile >= n
        for size, tile, n in zip(sizes, grid.tile_shape, grid.shape, strict=True)
    )
    if not fits:
        raise PlanError(
            f"a tile is whole chunks, got output_chunks={tuple(chunks)!r} for tiles of "
            f"{grid.tile_shape} (axes {grid.axes!r}); give sizes that divide these, or leave it out"
        )
    return sizes


def create_label_array(
    path: UPath,
    grid: TileGrid,
    dtype: np.dtype[Any],
    *,
    zarr_format: ZarrFormat = 3,
    chunks: Sequence[int] | None = None,
) -> None:
    """Create the array of merged labels at `path`, replacing what is there."""
    create_array(
        path,
        shape=grid.shape,
        chunks=output_chunks(grid) if chunks is None else check_chunks(grid, chunks),
        dtype=dtype,
        axes=grid.axes,
        zarr_format=zarr_format,
    )


def open_label_group(path: UPath) -> ZarrFormat:
    """Make the Zarr group at `path` if it is not there, and return its format.

    Raises
    ------
    PlanError
        If an array is there.
    """
    try:
        return zarr.open_group(zarr_store(path), mode="a").metadata.zarr_format
    except zarr.errors.ContainsArrayError as error:
        raise PlanError(
            f"labels are written into a Zarr group, and {path} is an array; name another write_to"
        ) from error
