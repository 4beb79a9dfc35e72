"""Segmentation functions that fail in the ways that machines make them fail."""

import os
import signal
import time
from pathlib import Path

import numpy as np

from patchworks_core.plugins.segmentation import Declaration

SEGFAULTS, TAKES_MEMORY, IS_KILLED = 50_001, 50_002, 50_003
"""Values of objects on which `crashes` fails so."""

MENDED = "PATCHWORKS_TEST_MENDED"
"""Variable that names a file; while the file is missing, `crashes` crashes."""

KILLED_ONCE = "PATCHWORKS_TEST_KILLED"
"""Variable that names a file; it is made when the worker was killed once."""

TOO_MUCH_BYTES = 3_000_000_000


def crashes(tile):
    """The true labels, unless the tile holds one of the objects above."""
    mended = Path(os.environ[MENDED]).exists()
    if (tile == SEGFAULTS).any() and not mended:
        os.kill(os.getpid(), signal.SIGSEGV)
    if (tile == TAKES_MEMORY).any() and not mended:
        pages = np.ones(TOO_MUCH_BYTES, dtype=np.uint8)
        time.sleep(30)  # until the nanny looks
        del pages
    if (tile == IS_KILLED).any() and not Path(os.environ[KILLED_ONCE]).exists():
        Path(os.environ[KILLED_ONCE]).touch()
        os.kill(os.getpid(), signal.SIGKILL)
    return tile.astype(np.int64)


def on_device(tile):
    """The true labels; leaves a mark of which device was used, from when to when."""
    folder = Path(os.environ["PATCHWORKS_TEST_DEVICES"])
    device = os.environ.get("CUDA_VISIBLE_DEVICES", "none")
    start = time.time()
    time.sleep(0.05)
    (folder / f"{device}-{os.getpid()}-{start}").write_text(f"{device} {start} {time.time()}")
    return tile.astype(np.int64)


on_device.patchworks = Declaration(version="1", gpu=True)


def out_of_memory_once(tile):
    """The true labels; one tile runs out of memory, once."""
    try:
        Path(os.environ[KILLED_ONCE]).touch(exist_ok=False)
    except FileExistsError:
        return tile.astype(np.int64)
    raise MemoryError("cannot allocate")


out_of_memory_once.patchworks = Declaration(workers="threads")
