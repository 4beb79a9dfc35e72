"""What is kept of an error as text: the line of the user's that it came from, and not too much."""

from __future__ import annotations

import os
import socket
import sysconfig
import traceback

MESSAGE_LENGTH = 2000
"""Characters of a message that are kept."""

TRACEBACK_LENGTH = 6000
"""Characters of a traceback that are kept."""


def shortened(text: str, length: int) -> str:
    """Return a text of which the middle is left out where it is longer.

    Examples
    --------
    >>> print(shortened("abcdefghij", 4))
    ab
    ... 6 characters left out ...
    ij
    """
    if len(text) <= length:
        return text
    half = length // 2
    return f"{text[:half]}\n... {len(text) - 2 * half} characters left out ...\n{text[-half:]}"


def message_of(error: BaseException) -> str:
    """Return the text of an error and its notes, at most `MESSAGE_LENGTH` of it.

    Examples
    --------
    >>> error = ValueError("no cells")
    >>> error.add_note("tile (0, 3)")
    >>> message_of(error)
    'no cells (tile (0, 3))'
    """
    notes = "; ".join(map(str, getattr(error, "__notes__", ())))
    return shortened(f"{error} ({notes})" if notes else str(error), MESSAGE_LENGTH)


def traceback_of(error: BaseException) -> str:
    """Return where an error came from, at most `TRACEBACK_LENGTH` of it."""
    return shortened("".join(traceback.format_exception(error)), TRACEBACK_LENGTH)


def own_line(error: BaseException) -> str:
    """Return the innermost line of the user's that an error went through, in words; else nothing.

    The user's is what is neither installed, nor of Python, nor of patchworks.
    """
    for frame in reversed(traceback.extract_tb(error.__traceback__)):
        if _is_users(frame.filename):
            code = f": {shortened(frame.line, 200)}" if frame.line else ""
            return f"{os.path.basename(frame.filename)}, line {frame.lineno}, {frame.name}{code}"
    return ""


def _is_users(file: str) -> bool:
    ours = os.path.dirname(os.path.dirname(os.path.dirname(os.path.abspath(__file__))))
    packages = [os.path.join(ours, name) for name in ("patchworks_core", "patchworks_pipeline")]
    paths = sysconfig.get_paths()
    roots = [*packages, *(paths[name] for name in ("stdlib", "platstdlib", "purelib", "platlib"))]
    if file.startswith("<frozen"):
        return False
    whole = os.path.realpath(file)
    return not any(whole.startswith(os.path.realpath(root) + os.sep) for root in roots)


def not_reached(what: str) -> str:
    """Return what to say where a worker does not find what it is to work on."""
    return (
        f"{what} is gone, or not to be reached from {socket.gethostname()!r}: every worker of a "
        "cluster reads and writes it; let it lie on a file system, or in an object store, that all "
        "of them share, or work without the cluster"
    )
