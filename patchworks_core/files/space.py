"""Free space where tiles are staged: looked at before, and while it fills."""

from __future__ import annotations

import logging
import os
import shutil
import time

from upath import UPath

from patchworks_core.errors import StorageError
from patchworks_core.files.storage import is_local
from patchworks_core.machine.budget import human_bytes

log = logging.getLogger("patchworks_core")

BYTES_PER_PIXEL = 2
"""Of staged labels before they are packed, at most tiles: uint16."""

TIMES_AGAIN = 2
"""It is said once more when so many times less is free than when it was last said."""

SECONDS_BETWEEN = 60.0
"""Nor is it said again sooner: what fills a disk within seconds is told of once."""


def free_bytes(path: UPath) -> int | None:
    """Return what is free where `path` is, or will be; None where nobody knows."""
    if not is_local(path):
        return None
    folder = str(path)
    while not os.path.isdir(folder):
        folder = os.path.dirname(folder)
    try:
        return shutil.disk_usage(folder).free
    except OSError:
        return None


class SpaceWatch:
    """Compares what a stage will take with what is free, and says so while there is time.

    Parameters
    ----------
    path : UPath
        Of the stage.
    n_blocks : int
        Tile blocks of the image.
    """

    def __init__(self, path: UPath, *, n_blocks: int) -> None:
        self._path = path
        self._n_blocks = n_blocks
        self._said_at: int | None = None
        self._said_when = 0.0

    def check_before(self, n_pixels: int) -> None:
        """Raise StorageError where not even one tile block of so many pixels would fit."""
        free = free_bytes(self._path)
        if n_pixels and free is not None and free < BYTES_PER_PIXEL * n_pixels:
            raise StorageError(
                f"{human_bytes(free)} are free at {str(self._path)!r}, and one tile block may take "
                f"{human_bytes(BYTES_PER_PIXEL * n_pixels)}; nothing was staged"
            )

    def look(self, n_bytes: int, *, n_done: int, n_left: int) -> None:
        """Warn where what is left will not fit, going by what the blocks so far took.

        Parameters
        ----------
        n_bytes : int
            Of the files of the blocks that are done.
        n_done, n_left : int
            Blocks.
        """
        # The merged labels are about as large as the stage, and there while it is.
        needed = n_bytes * (n_left + self._n_blocks) // max(1, n_done)
        free = free_bytes(self._path)
        if free is None or needed <= free:
            return
        now = time.monotonic()
        is_new = self._said_at is None or (
            free * TIMES_AGAIN < self._said_at and now - self._said_when >= SECONDS_BETWEEN
        )
        if is_new:
            self._said_at, self._said_when = free, now
            log.warning(
                "%s are free at %s, and about %s more are needed: %d tile blocks are to be staged, "
                "and the merged labels take as much as the stage; make room, or stop and begin "
                "again on another disk (stage_dir=; of patchworks segment, --output; of a home, "
                "store: {root: ...})",
                human_bytes(free),
                self._path,
                human_bytes(needed),
                n_left,
            )
