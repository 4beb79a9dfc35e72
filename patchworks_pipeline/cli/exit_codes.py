"""Exit codes: few, and each says who has something to do.

What a program needs to know is whether the same call may do later, a person must decide something,
or tiles are to be staged again. Of several images a command ends with the highest of their codes.
"""

import errno

from patchworks_core.errors import (
    ClusterError,
    ImageError,
    PlanError,
    SegmentationError,
    StorageError,
    TileOutputError,
    TilesFailedError,
)
from patchworks_core.machine.interrupts import EXIT_CODE_OF_INTERRUPT, EXIT_CODE_OF_SIGTERM

DONE, OTHER_FAILURE, BAD_INPUT, TILES_FAILED = range(4)

MEANINGS = {
    DONE: "done",
    OTHER_FAILURE: "the machine failed, or another call is at the image: the same call may do "
    "later",
    BAD_INPUT: "the image, an option or a setting is wrong, or what was changed by hand would be "
    "replaced: a person has to decide",
    TILES_FAILED: "tiles failed, or are missing: all others are kept, and retry takes up the rest",
    EXIT_CODE_OF_INTERRUPT: "Ctrl-C: what is staged is kept",
    EXIT_CODE_OF_SIGTERM: "SIGTERM: what is staged is kept",
}
"""Every exit code, and what it means."""

_OF_THE_MACHINE = {errno.ENOSPC, errno.EDQUOT, errno.EIO, errno.EMFILE, errno.ENOMEM}
"""What the operating system says that no other input would mend."""

_BY_NAME = {
    **{
        error.__name__: BAD_INPUT
        for error in (ClusterError, ImageError, PlanError, SegmentationError, TileOutputError)
    },
    TilesFailedError.__name__: TILES_FAILED,
}
"""Of errors that a step of a run raised, of which the books keep the name."""


def code_of(error: BaseException) -> int:
    """Return the exit code of an error of the project, or of the operating system."""
    if isinstance(error, TilesFailedError):
        return TILES_FAILED
    is_of_machine = isinstance(error, OSError) and error.errno in _OF_THE_MACHINE
    # What was done in a worker comes back without the number.
    is_of_machine |= isinstance(error, StorageError) and error.errno is None
    return OTHER_FAILURE if is_of_machine else BAD_INPUT


def code_of_step(error_type: str) -> int:
    """Return the exit code where a step of a run raised an error of that name.

    Examples
    --------
    >>> code_of_step("PlanError"), code_of_step("StorageError")
    (2, 1)
    """
    return _BY_NAME.get(error_type, OTHER_FAILURE)


def meanings() -> str:
    """Return every exit code in one line, for ``--help``."""
    return "Exit codes: " + "; ".join(f"{code} {words}" for code, words in MEANINGS.items()) + "."
