"""What a halo costs: how many times the pixels of the image a function sees for it."""

from patchworks_core.tiles.grid import TileGrid

MANY = 8
"""Times the pixels of the image from which it is said: what a halo of half a tile makes in 3-D."""


def warning_of_halo(grid: TileGrid) -> str | None:
    """Return what to say of a halo that is large for its tiles, or None.

    Examples
    --------
    >>> from patchworks_core.tiles.grid import plan_grid
    >>> warning_of_halo(plan_grid("yx", (4096, 4096), tile_shape=256, overlap=64))
    >>> warning_of_halo(plan_grid("yx", (4096, 4096), tile_shape=16, overlap=64))[:87]
    "a halo of (64, 64) around tiles of (16, 16) (axes 'yx') shows the function 80 times the"
    """
    if grid.read_factor <= MANY:
        return None
    return (
        f"a halo of {grid.halo} around tiles of {grid.tile_shape} (axes {grid.axes!r}) shows the "
        f"function {grid.read_factor:.0f} times the pixels of the image; larger tiles, or a "
        "smaller overlap, take less time: say tile_shape= or overlap="
    )
