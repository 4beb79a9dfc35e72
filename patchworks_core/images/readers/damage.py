"""What an error of a library says of a file: that it is damaged, or that it may be read later."""

from __future__ import annotations

import struct
from collections.abc import Iterator
from contextlib import contextmanager
from zipfile import BadZipFile

from tifffile import TiffFileError

from patchworks_core.errors import ImageError
from patchworks_core.files.locations import CREDENTIALS, is_of_object_store
from patchworks_core.machine.faults import kind_of

_CODECS = {"_lzma", "imagecodecs", "numcodecs", "zlib"}
"""Modules whose errors say that compressed bytes are not what they should be."""

_OF_CONTENT = (
    *(ValueError, TypeError, LookupError, ArithmeticError, AttributeError, AssertionError),
    *(NotImplementedError, RecursionError, EOFError, struct.error, BadZipFile, TiffFileError),
)
"""What damaged content makes a library raise; what a network raises is none of these."""


def is_of_a_codec(error: Exception) -> bool:
    """Tell whether an error says that compressed bytes are not what they should be."""
    if isinstance(error, RuntimeError) and "decompress" in str(error):
        return True
    return type(error).__module__.partition(".")[0] in _CODECS


def is_damage(error: Exception) -> bool:
    """Tell whether an error, of what reads a file, will come again: the content is at fault.

    Examples
    --------
    >>> is_damage(ValueError("cannot reshape")), is_damage(FileNotFoundError(2, "no such file"))
    (True, True)
    >>> is_damage(TimeoutError()), is_damage(MemoryError())
    (False, False)
    """
    if kind_of(error) == "transient":
        return False
    return is_of_a_codec(error) or isinstance(error, (*_OF_CONTENT, OSError))


@contextmanager
def damage_refused(where: str) -> Iterator[None]:
    """Turn whatever is raised while something is opened into an ImageError that names it."""
    try:
        yield
    except ImageError:
        raise
    # What a damaged header makes a reader raise is of any kind: KeyError, SyntaxError, ...
    except Exception as error:
        if is_of_object_store(error):
            raise ImageError(f"cannot open {where}: {error}; {CREDENTIALS}") from error
        raise ImageError(
            f"cannot open {where}, its metadata are damaged or of a kind that is not read: "
            f"{type(error).__name__}: {error}"
        ) from error
