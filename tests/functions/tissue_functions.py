"""Segmentation functions of the tests' tissue, whose pixel values are the true ids.

They live in a module of their own because a plan names a function by its import path, and workers
in other processes import it by that path.
"""

import os
from pathlib import Path

import numpy as np

MARK = 60_000
"""Value of the object that `fails_at_mark` cannot segment."""

MENDED = "PATCHWORKS_TEST_MENDED"
"""Variable that names a file; while the file is missing, `fails_at_mark` fails."""


def perfect(tile):
    """The true labels."""
    return tile.astype(np.int64)


def above(tile, level=0):
    """The true labels of objects whose id is beyond `level`."""
    return np.where(tile > level, tile, 0).astype(np.int64)


def fails_at_mark(tile):
    """The true labels, except where the marked object is seen before the cause is mended."""
    if (tile == MARK).any() and not Path(os.environ[MENDED]).exists():
        raise ValueError("cannot segment [b]marked[/b] object")
    return tile.astype(np.int64)


def negative(tile):
    """What no segmentation function may return."""
    return np.full(tile.shape, -1)
