"""Says what is odd beforehand, what becomes of each tile, and raises at the end if any failed."""

from __future__ import annotations

import warnings
from collections.abc import Callable

from patchworks_core.errors import TilesFailedError
from patchworks_core.images.image import Image
from patchworks_core.machine.budget import human_bytes
from patchworks_core.machine.engine import Outcome
from patchworks_core.machine.pools import Pool
from patchworks_core.machine.progress import Progress
from patchworks_core.seams.rules import MergeOptions, warning_of
from patchworks_core.stage.staging import StagedBlock, StagingCount
from patchworks_core.tiles.grid import TileBlock, TileGrid
from patchworks_core.tiles.halos import warning_of_halo

Say = Callable[[str], None]
"""Told in words what was decided and done."""


def say_beforehand(image: Image, grid: TileGrid, options: MergeOptions, say: Say) -> None:
    """Say what an image, its tiles and the rule have that a user would want to know first.

    What is likely a mistake is a warning of the line that called the library.
    """
    for note in image.notes:
        say(note)
    if (halo := warning_of_halo(grid)) is not None:
        say(halo)
    if (gaps := image.gaps) is not None:
        if gaps.is_suspicious:
            warnings.warn(gaps.text, stacklevel=7)
        else:
            say(gaps.text)
    if (warning := warning_of(grid, options)) is not None:
        warnings.warn(warning, stacklevel=7)


class StagingLog:
    """What a call says of the tiles of its image; listens to `stage_all`."""

    def __init__(self, progress: Progress, say: Say) -> None:
        self._progress = progress
        self._say = say

    def started(self, pool: Pool, count: StagingCount) -> None:
        """Say what the tiles run on, and why."""
        n_bytes = count.bytes_of_first
        self._say(f"{pool.reason}; a tile took {human_bytes(n_bytes)}" if n_bytes else pool.reason)
        if pool.dashboard:
            self._say(f"dashboard at {pool.dashboard}")

    def finished(self, outcome: Outcome[TileBlock, StagedBlock], count: StagingCount) -> bool:
        """Say what became of one tile block; the others go on."""
        key, staged, core = outcome.item.key, outcome.value, outcome.item.core
        tile = f"tile {key} at {core.start} of {core.shape} pixels"
        if outcome.failure is not None:
            self._say(f"{tile} failed: {outcome.failure}")
        elif staged is not None and staged.n_skipped == len(outcome.item.tiles):
            self._say(f"{tile} is empty and was not segmented")
        elif staged is not None:
            self._say(f"{tile}: {staged.n_labels} labels in {outcome.seconds:.2f} s")
        self._progress("stage", count.n_done, count.n_blocks)
        return True


def check_staged(count: StagingCount, grid: TileGrid, *, way_out: str) -> None:
    """Raise TilesFailedError if any tile failed.

    Parameters
    ----------
    count : StagingCount
    grid : TileGrid
    way_out : str
        What to do then.
    """
    if not count.failures:
        return
    key, first = min(count.failures.items())
    raise TilesFailedError(
        f"{count.n_failed} of {grid.n_blocks} {grid.units} failed, the first is {key!r}: "
        f"{first}\n{first.traceback}\n{way_out}",
        {key: str(failure) for key, failure in count.failures.items()},
        first.traceback,
    )
