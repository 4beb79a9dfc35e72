"""Segmentation functions of the tests' tissue, whose pixel values are the true ids.

They live in a module of their own because a plan names a function by its import path, and workers
in other processes import it by that path.
"""

import os
import time
from hashlib import blake2b
from pathlib import Path

import numpy as np

from patchworks_core import declare
from patchworks_core.plugins.segmentation import Declaration

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


@declare(version="1", other_channels={"nuclei": "nuclei_channel"}, workers="threads")
def with_nuclei(tile, *, nuclei_channel=None, nuclei=None, nuclei_statistics=None):
    """The true labels of pixels whose nuclei channel is above its mean over the whole image."""
    return np.where(nuclei > nuclei_statistics.mean, tile, 0).astype(np.int64)


def only_signal(tile):
    """The true labels; a tile without any is an error."""
    if not tile.any():
        raise ValueError("no signal")
    return tile.astype(np.int64)


def waits(tile):
    """The true labels, after ten minutes."""
    time.sleep(600)
    return tile.astype(np.int64)


def waits_until_mended(tile):
    """The true labels, after ten minutes, or at once when the cause is mended."""
    if not Path(os.environ[MENDED]).exists():
        time.sleep(600)
    return tile.astype(np.int64)


COUNTED = "PATCHWORKS_TEST_COUNTED"
"""Variable that names the file in which `counted` notes the tiles that it labels."""


def counted(tile):
    """The true labels, after a moment; each tile is noted once it is labelled."""
    time.sleep(0.02)
    digest = blake2b(tile.tobytes(), digest_size=8).hexdigest()
    with open(os.environ[COUNTED], "a") as notes:
        notes.write(f"{digest}\n")
    return tile.astype(np.int64)


NOTED = "PATCHWORKS_TEST_NOTED"
"""Variable that names the file in which `noted` notes what it does, a line for each beginning and
end."""

IDS = 100
"""Of each image in `noted`: the n-th has ids from n times that."""


def noted(tile):
    """The true labels, after a fifth of a second; the tile and the processes are noted."""
    digest = blake2b(tile.tobytes(), digest_size=8).hexdigest()
    line = f"{int(tile.max()) // IDS - 1} {digest} {os.getpid()} {os.getppid()}\n"
    for word in ("begun", "done"):
        with open(os.environ[NOTED], "a") as notes:
            notes.write(f"{word} {line}")
        if word == "begun":
            time.sleep(0.2)
    return tile.astype(np.int64)


def mask(tile):
    """What no segmentation function may return: where there is an object."""
    return tile > 0


@declare(version="1", workers="threads")
def wavering(tile):
    """The true labels, moved by one pixel or two as the number of pixels that are seen has it."""
    moved = np.roll(tile.astype(np.int64), int(tile.astype(np.int64).sum()) % 5 - 2, axis=0)
    return np.roll(moved, int(tile.astype(np.int64).sum()) % 3 - 1, axis=1)


for harmless in (perfect, above, fails_at_mark, negative, only_signal, counted, mask):
    # No decorator: their versions are digests of their source, and recorded in homes made before.
    harmless.patchworks = Declaration(workers="threads")


RECORD = "PATCHWORKS_TEST_RECORD"
"""Variable that names a file in which `recorded` writes a line for each tile."""


@declare(version="1")
def recorded(tile):
    """The true labels, after a while; the SLURM job, the start and the end are written down."""
    start = time.time()
    time.sleep(1.0)
    job = os.environ.get("SLURM_JOB_ID", "none")
    with open(os.environ[RECORD], "a") as file:
        file.write(f"{job} {start} {time.time()}\n")
    return tile.astype(np.int64)
