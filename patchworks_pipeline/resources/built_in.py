"""What holds where nobody chose: for the settings of a home, and for commands that know no home."""

from typing import Final, Literal

from patchworks_core.machine.workers import WorkerKind
from patchworks_core.seams.rules import MergeOptions, MergeRule, Outline

_OPTIONS = MergeOptions()

FUNCTION: Final = "watershed"

TILE_SHAPE: Final = 1024
"""Pixels, along every spatial axis."""

OVERLAP: Final = 32
"""Pixels on each side of a tile."""

MERGE: Final[MergeRule] = _OPTIONS.rule

MIN_IOU: Final = _OPTIONS.min_iou

OUTLINE: Final[Outline] = _OPTIONS.outline

MIN_SIZE: Final = _OPTIONS.min_size
"""Pixels."""

WORKER_KIND: Final[WorkerKind] = "threads"
"""Of commands that know no home, and of steps that call no segmentation function."""

TileWorkerKind = Literal["auto", "threads", "processes"]

TILE_WORKER_KIND: Final[TileWorkerKind] = "auto"
"""As the segmentation function declares, which is processes where it declares nothing."""
