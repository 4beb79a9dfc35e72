"""How many blocks tiles are grouped into."""

from __future__ import annotations

from collections.abc import Sequence
from math import ceil, prod

from patchworks_core.tiles.grid import LEAST_BLOCKS, TileGrid

_PIXELS_OF_A_BLOCK = 1 << 20

_PIXELS_OF_A_LARGE_BLOCK = 1 << 26

_FEW_TILES = 512
"""That are blocks of their own even where they are small: one that fails takes no other along."""

_MANY_BLOCKS = 1 << 16
"""Above which blocks become larger before there are more of them."""


def enough_blocks(shape: Sequence[int]) -> int:
    """Return into how many blocks tiles are grouped: each of a megapixel or more, and 64 of few.

    What a block costs beside its pixels is then little, and there is work for many workers. Each
    has a file, so of the largest images blocks are larger, up to 64 megapixels.

    Examples
    --------
    >>> enough_blocks((2048, 2048)), enough_blocks((1024, 4096, 4096))
    (64, 16384)
    >>> enough_blocks((1_000_000, 1_000_000)), enough_blocks((100_000, 100_000, 100_000))
    (65536, 14901161)
    """
    n_pixels = prod(shape)
    n = min(n_pixels // _PIXELS_OF_A_BLOCK, _MANY_BLOCKS)
    return max(LEAST_BLOCKS, n, n_pixels // _PIXELS_OF_A_LARGE_BLOCK)


def blocks_of_small_tiles(grid: TileGrid) -> int:
    """Return into how many blocks, at most, the tiles of a grid go where there are many.

    For what has a cost for each block that pixels have not, such as a partition. Up to 512 tiles,
    and tiles of more than half a megapixel, are blocks of their own; more are grouped until blocks
    have about a megapixel, or 64 are left (fewer, where doubling a block goes past that).

    Examples
    --------
    >>> from patchworks_core.tiles.grid import plan_grid
    >>> grids = [plan_grid("yx", (10_000, 10_000), tile_shape=n) for n in (1024, 512, 128)]
    >>> [blocks_of_small_tiles(grid) for grid in grids]
    [100, 400, 98]
    >>> blocks_of_small_tiles(plan_grid("yx", (3_000, 3_000), tile_shape=100))
    64
    """
    if grid.n_tiles <= _FEW_TILES:
        return grid.n_tiles
    together = max(1, _PIXELS_OF_A_BLOCK // prod(grid.tile_shape))
    return min(grid.n_tiles, max(LEAST_BLOCKS, ceil(grid.n_tiles / together)))
