"""Third views of a stage: those that are of its tiles as they are staged now."""

from __future__ import annotations

import hashlib
import logging
from typing import Any

import numpy as np
import numpy.typing as npt

from patchworks_core.seams.rules import MergeOptions
from patchworks_core.seams.third_views import (
    FaceOfTiles,
    ThirdView,
    ThirdViews,
    third_tile,
    tiles_under,
)
from patchworks_core.stage.stage import Stage
from patchworks_core.stage.view_files import keys_of_views, read_views

log = logging.getLogger("patchworks_core")

RULE = "overlap"
"""The rule that hears third views."""


class TileMarks:
    """What was staged of the tiles of an image, as one digest per view of it."""

    def __init__(self, stage: Stage) -> None:
        self._grid, self._plan = stage.grid, stage.plan.fingerprint
        columns = (stage.counts(), stage.digests(), stage.strip_digests(), stage.pixel_checksums())
        self._marks: npt.NDArray[np.uint64] = np.stack(
            [np.asarray(column).reshape(-1).astype(np.uint64) for column in columns], axis=1
        )

    def of(self, face: FaceOfTiles) -> str:
        """Return a digest of the plan, and of all that the third view of a face depends on."""
        read = third_tile(self._grid, face, 0).read
        numbers = [tile.number for tile in tiles_under(self._grid, read)]
        content = hashlib.blake2b(self._plan.encode(), digest_size=16)
        content.update(np.ascontiguousarray(self._marks[numbers]).data)
        return content.hexdigest()


def staged_views(stage: Stage) -> ThirdViews:
    """Return the third views of a stage that are not stale, and log how many are."""
    if not keys_of_views(stage.blocks_folder):
        return ThirdViews(stage.grid)
    marks = TileMarks(stage)
    current, stale = list[ThirdView](), list[ThirdView]()
    for view, made_by in read_views(stage.blocks_folder):
        (current if marks.of(view.face) == made_by else stale).append(view)
    if stale:
        log.warning(
            "%d third views at %s are of tiles that were staged again since, and are left out "
            "(face %s); mend again to stage them anew",
            len(stale),
            stage.path,
            stale[0].face.key(stage.grid),
        )
    return ThirdViews.of(stage.grid, current)


def views_for(stage: Stage, options: MergeOptions) -> ThirdViews:
    """Return the third views that a merge hears: those of the stage by `RULE`, else none."""
    return staged_views(stage) if options.rule == RULE else ThirdViews(stage.grid)


def views_content(stage: Stage) -> dict[str, Any]:
    """Return what labels are made from beside tiles, JSON-ready; empty without third views."""
    views = staged_views(stage)
    return {"third_views": [f"{digest:016x}" for digest in views.digests.tolist()]} if views else {}
