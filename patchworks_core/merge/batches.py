"""How much of an image a worker is given at once by the steps after staging.

A task on a cluster costs a few milliseconds beside what it does, so it is to take half a second or
so; no longer, for it is done again where its worker dies.
"""

from __future__ import annotations

from math import prod

from patchworks_core.tiles.grid import TileGrid

MOST_BATCHED = 64
"""Tile blocks that are worked on together: one by one, calls would take longer than pixels."""

_PIXELS_BATCHED = 64 * 2**20


def blocks_at_once(grid: TileGrid) -> int:
    """Return how many tile blocks are worked on together."""
    pixels = prod(grid.tile_shape) * prod(grid.block_shape)
    return max(1, min(MOST_BATCHED, _PIXELS_BATCHED // pixels))


def regions_at_once(pixels: int) -> int:
    """Return how many regions of so many pixels are worked on together."""
    return max(1, _PIXELS_BATCHED // max(1, pixels))
