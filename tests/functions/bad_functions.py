"""A segmentation function that does to its process, on some tiles, what none should do."""

import ctypes
import os
import sys
import time

import numpy as np

HANGS, CRASHES, ENDS, EATS, EXITS = range(50_001, 50_006)
"""Values of objects at which `bad` does so."""


def bad(tile):
    """The true labels, unless the tile holds one of the objects above."""
    if (tile == HANGS).any():
        time.sleep(600)
    if (tile == CRASHES).any():
        ctypes.string_at(0)
    if (tile == ENDS).any():
        os._exit(3)
    if (tile == EATS).any():
        pages = np.ones(600_000_000, np.uint8)
        time.sleep(600)
        del pages
    if (tile == EXITS).any():
        sys.exit("bad")
    return tile.astype(np.int64)
