"""Checksums of the pixels that a tile read: they tell whether an image is still the same.

They are no digests, because those would take longer than reading: CRC-32C is done by the processor,
at some 10 GB/s. Which kind a checksum is of stands in its highest bits.
"""

from __future__ import annotations

import zlib
from collections.abc import Iterable
from functools import lru_cache
from typing import Any

import google_crc32c
import numpy as np

_CRC32 = 1 << 32
"""Bit of a checksum by zlib, as every one was until version 0.2."""

_CRC32C = 1 << 33


def checksum_of_pixels(arrays: Iterable[np.ndarray[Any, Any]]) -> int:
    """Return a checksum of pixels; it is never 0.

    Examples
    --------
    >>> pixels = np.arange(4, dtype=np.uint16)
    >>> checksum_of_pixels([pixels]) == checksum_of_pixels([pixels[:2], pixels[2:]])
    True
    """
    return _checksum(arrays, _CRC32C if google_crc32c.implementation == "c" else _CRC32)


@lru_cache(maxsize=64)
def checksum_of_zeros(n_bytes: int) -> int:
    """Return the checksum of pixels that are all 0, given their bytes.

    Examples
    --------
    >>> checksum_of_zeros(8) == checksum_of_pixels([np.zeros((2, 2), dtype=np.uint16)])
    True
    """
    return checksum_of_pixels([np.zeros(n_bytes, dtype=np.uint8)])


def is_of_pixels(checksum: int, arrays: Iterable[np.ndarray[Any, Any]]) -> bool:
    """Tell whether a checksum is that of pixels; 0, which nobody took, is of any."""
    return not checksum or checksum == _checksum(arrays, checksum & (_CRC32 | _CRC32C))


def _checksum(arrays: Iterable[np.ndarray[Any, Any]], kind: int) -> int:
    checksum = 0
    for pixels in arrays:
        content = np.ascontiguousarray(pixels).reshape(-1).view(np.uint8)
        if kind == _CRC32C:
            checksum = google_crc32c.extend(checksum, content)
        else:
            checksum = zlib.crc32(content.data, checksum)
    return checksum | kind
