"""Counts tiles as they are staged, says what became of each, and remembers which failed."""

from __future__ import annotations

from collections.abc import Callable

from patchworks_core.errors import TilesFailedError
from patchworks_core.machine.engine import Failure, Outcome
from patchworks_core.machine.progress import Progress
from patchworks_core.stage.staging import StagedBlock
from patchworks_core.tiles.grid import TileBlock

Say = Callable[[str], None]
"""Told in words what was decided and done."""


class TileCount:
    """How far the tiles of one image are."""

    def __init__(self, progress: Progress, say: Say, n_blocks: int) -> None:
        self._progress = progress
        self._say = say
        self._n_blocks = n_blocks
        self._done = 0
        self._failures: dict[str, Failure] = {}

    def count(self, outcome: Outcome[TileBlock, StagedBlock]) -> None:
        """Count one tile block, and say what became of it."""
        self._done += 1
        key, staged = outcome.item.key, outcome.value
        if outcome.failure is not None:
            self._failures[key] = outcome.failure
            self._say(f"tile {key} failed: {outcome.failure}")
        elif staged is not None and staged.n_skipped == len(outcome.item.tiles):
            self._say(f"tile {key} is empty and was not segmented")
        elif staged is not None:
            self._say(f"tile {key}: {staged.n_labels} labels in {outcome.seconds:.2f} s")
        self._progress("stage", self._done, self._n_blocks)

    def check(self, n_blocks: int, *, way_out: str) -> None:
        """Raise TilesFailedError if any failed.

        Parameters
        ----------
        n_blocks : int
            Tile blocks of the image.
        way_out : str
            What to do then.
        """
        if not self._failures:
            return
        key, first = min(self._failures.items())
        raise TilesFailedError(
            f"{len(self._failures)} of {n_blocks} tiles failed, the first is {key!r}: "
            f"{first}\n{first.traceback}\n{way_out}",
            {key: str(failure) for key, failure in self._failures.items()},
        )
