"""What the C library's allocator keeps of the memory that was freed."""

from __future__ import annotations

import ctypes


def return_freed_memory() -> None:
    """Return memory that was freed to the system, where the C library can (glibc).

    It keeps what threads freed for what they ask for next. Another step asks for other sizes, which
    do not always fit what the step before left, and would come on top of it. Takes milliseconds.
    """
    trim = getattr(_C_LIBRARY, "malloc_trim", None)
    if trim is not None:
        trim(0)


def _c_library() -> ctypes.CDLL | None:
    try:
        return ctypes.CDLL(None)  # what this process has loaded
    except (OSError, TypeError):  # TypeError: on Windows
        return None


_C_LIBRARY = _c_library()
