"""What the operating system says of a place that is written to, in words.

A full disk, a place that is not ours, or one that is gone is nothing that another tile or another
try would mend: it becomes a `StorageError`, which ends a call in one line.
"""

from __future__ import annotations

import errno
import os
import re
from collections.abc import Iterator
from contextlib import contextmanager

from upath import UPath

from patchworks_core.errors import StorageError

_ALWAYS = {errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EIO, errno.ESTALE, errno.ENOTCONN}
"""Of a place, wherever they come from: a write into an open file does not say its name."""

_BY_NAME = {errno.EACCES, errno.EPERM, errno.ENOENT, errno.ENOTDIR, errno.ENODEV, errno.ENXIO}
"""Of a place where they name a file in it; they may be about anything else that is opened."""


_PART = re.compile(r"\.[0-9a-f]{32}\.part(ial)?$")
"""Ending of the name under which a file is written at first."""


@contextmanager
def storing(*places: UPath, doing: str = "") -> Iterator[None]:
    """Raise StorageError where a place cannot be written to; other errors pass as they are.

    Parameters
    ----------
    *places : UPath
        What is written; the first is named where the system names none.
    doing : str
        What is done, for the message.

    Raises
    ------
    StorageError
    """
    try:
        yield
    except StorageError:
        raise
    except OSError as error:
        if not _is_about(error, places):
            raise
        name = _PART.sub("", str(error.filename or places[0]))
        words = (error.strerror or os.strerror(error.errno or 0)).lower()
        what = f"{doing} failed: " if doing else ""
        raise StorageError(f"{what}{words}: {name!r}", error.errno) from error


def _is_about(error: OSError, places: tuple[UPath, ...]) -> bool:
    """Tell whether an error says that one of the places cannot be written to."""
    if error.errno in _ALWAYS:
        return True
    if error.errno not in _BY_NAME or error.filename is None:
        return False
    names = [str(name) for name in (error.filename, error.filename2) if name is not None]
    # In the place, beside it (locks, folders of work), or a folder that holds it.
    return any(
        name.startswith(str(place)) or str(place).startswith(os.path.join(name, ""))
        for name in names
        for place in places
    )
