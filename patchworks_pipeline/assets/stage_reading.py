"""The stage as it was at one moment: its counts and digests are read once.

Each is a small file per tile block, so that reading them is most of what a step costs that asks for
them ten times; and what is asked in between belongs together only if it is of one moment.
"""

from collections.abc import Callable
from functools import cached_property
from typing import Any

import numpy as np
from upath import UPath

from patchworks_core.errors import PlanError, StageError
from patchworks_core.stage.block_listing import SUFFIX
from patchworks_core.stage.plan import PLAN_AGAIN, STAGE_AGAIN, Plan
from patchworks_core.stage.stage import Stage
from patchworks_core.stage.stage_folder import BLOCKS
from patchworks_pipeline.records import ImageFolder


class StageReading(Stage):
    """A stage that is read only; open another where tiles are staged meanwhile."""

    @cached_property
    def _arrays(self) -> dict[str, np.ndarray[Any, Any]]:
        """What was read, by the name of what reads it."""
        return {}

    def _once(self, read: Callable[[], np.ndarray[Any, Any]]) -> np.ndarray[Any, Any]:
        if read.__name__ not in self._arrays:
            self._arrays[read.__name__] = _frozen(read())
        return self._arrays[read.__name__]

    def counts(self) -> np.ndarray[Any, Any]:
        """Return the labels of each tile, int64, shape ``grid_shape``; -1 is not staged."""
        return self._once(super().counts)

    def digests(self) -> np.ndarray[Any, Any]:
        """Return the digest of the labels of each tile, uint64, shape ``grid_shape``."""
        return self._once(super().digests)

    def strip_digests(self) -> np.ndarray[Any, Any]:
        """Return the digest of the strips of each tile, uint64, shape ``grid_shape``."""
        return self._once(super().strip_digests)

    def pixel_checksums(self) -> np.ndarray[Any, Any]:
        """Return the checksum of what each tile read, uint64, shape ``grid_shape``."""
        return self._once(super().pixel_checksums)


def read_once(stage: Stage) -> StageReading:
    """Return a stage as it is when its counts and digests are first asked for."""
    return StageReading(stage.path, stage.plan)


def _frozen(values: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
    values.flags.writeable = False
    return values


def what_is_replaced(folder: ImageFolder, plan: Plan) -> str | None:
    """Return what of an image's stage cannot be kept under a plan, in words; None where all can."""
    path = folder.path / "stage.zarr"
    if not (path / "plan.json").exists():
        return None
    try:
        Stage.open(path, plan)
    except (PlanError, StageError) as why:
        files = [file for begun in _entries(path / BLOCKS) for file in _entries(begun)]
        n_blocks = sum(file.name.endswith(SUFFIX) for file in files)
        # What to do about it is done here.
        words = str(why).removesuffix(STAGE_AGAIN).removesuffix(f"; {PLAN_AGAIN}")
        return (
            f"a stage with {n_blocks} tile blocks is replaced by an empty one: {words}; all tiles "
            "are staged again"
        )
    return None


def _entries(folder: UPath) -> list[UPath]:
    return list(folder.iterdir()) if folder.is_dir() else []
