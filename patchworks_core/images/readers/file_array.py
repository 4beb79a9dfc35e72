"""Uncompressed pixels of a file, read where they are asked for.

Not mapped into memory: where a mapped file is cut short by another program, looking at it ends the
process, and with it whatever else the process works on. Here it is an error.
"""

from __future__ import annotations

import os
import weakref
from collections.abc import Iterable, Sequence
from itertools import islice, product
from math import prod
from typing import Any

import numpy as np
import numpy.typing as npt

from patchworks_core.errors import ImageError

MAX_WASTE = 4
"""Pixels that are read for each one asked for, where reading them is one span."""

SMALL_SPAN, LARGE_SPAN = 1 << 16, 1 << 26
"""Bytes: a span of fewer may waste more, one of more may waste nothing."""


class FileArray:
    """An array in a file, in C order; has `shape`, `dtype`, and slicing by slices and numbers."""

    def __init__(
        self, path: str, dtype: npt.DTypeLike, shape: Sequence[int], offset: int = 0
    ) -> None:
        self.path = path
        self.dtype: np.dtype[Any] = np.dtype(dtype)
        self.shape = tuple(int(n) for n in shape)
        self.offset = int(offset)
        self._descriptor = os.open(path, os.O_RDONLY | getattr(os, "O_CLOEXEC", 0))
        weakref.finalize(self, os.close, self._descriptor)

    @classmethod
    def of(cls, mapped: np.memmap[Any, Any]) -> Any:
        """Return what a memory map shows; one in Fortran order is transposed."""
        path = os.fspath(mapped.filename)  # type: ignore[arg-type]
        if mapped.flags.c_contiguous:
            return cls(path, mapped.dtype, mapped.shape, mapped.offset)
        return Transposed(cls(path, mapped.dtype, mapped.shape[::-1], mapped.offset))

    @property
    def ndim(self) -> int:
        """Number of axes."""
        return len(self.shape)

    @property
    def size(self) -> int:
        """Number of pixels."""
        return prod(self.shape)

    def __array__(self, dtype: Any = None, copy: bool | None = None) -> Any:
        return np.asarray(self[...], dtype=dtype)

    def __getitem__(self, key: Any) -> npt.NDArray[Any]:
        """Read a part.

        Raises
        ------
        ImageError
            If the file is shorter than it was when it was opened.
        """
        keys, numbers = _slices(key, self.shape)
        ranges = [range(*k.indices(n)) for k, n in zip(keys, self.shape, strict=True)]
        if any(r.step < 1 for r in ranges):
            raise IndexError(f"an array in a file is read forwards, got {key!r}")
        shape = tuple(len(r) for r in ranges)
        pixels = np.empty(shape, self.dtype)
        if pixels.size:
            self._read(ranges, pixels)
        return pixels.reshape([n for i, n in enumerate(shape) if i not in numbers])

    def _read(self, ranges: list[range], pixels: npt.NDArray[Any]) -> None:
        """Fill an array, one span of the file after the other."""
        item = self.dtype.itemsize
        strides = [prod(self.shape[i + 1 :]) for i in range(self.ndim)]
        outer = self._n_outer(ranges, strides)
        n_spans = prod(len(r) for r in ranges[:outer])
        parts = pixels.reshape(n_spans, *pixels.shape[outer:])
        first = sum(r.start * s for r, s in zip(ranges[outer:], strides[outer:], strict=True))
        places = (
            self.offset + item * (first + sum(i * s for i, s in zip(place, strides, strict=False)))
            for place in product(*ranges[:outer])
        )
        n = _span(ranges[outer:], strides[outer:])
        if n * n_spans == pixels.size:  # spans hold nothing but what is asked for
            self._fill(parts.reshape(-1).view(np.uint8).data, n * item, places)
            return
        n_at_once = max(1, LARGE_SPAN // (n * item))
        steps = [r.step * s * item for r, s in zip(ranges[outer:], strides[outer:], strict=True)]
        for start in range(0, n_spans, n_at_once):
            part = parts[start : start + n_at_once]
            spans = np.empty((len(part), n), self.dtype)
            self._fill(spans.reshape(-1).view(np.uint8).data, n * item, islice(places, len(part)))
            part[...] = np.lib.stride_tricks.as_strided(spans, part.shape, [n * item, *steps])

    def _n_outer(self, ranges: list[range], strides: list[int]) -> int:
        """Return how many axes are gone through one by one; of the others a span is read at once.

        A span holds what is asked for and what lies between: little of that, or little in all.
        """
        outer = self.ndim
        while outer:
            inner = ranges[outer - 1 :]
            span, n_wanted = _span(inner, strides[outer - 1 :]), prod(len(r) for r in inner)
            if span > MAX_WASTE * n_wanted and span * self.dtype.itemsize > SMALL_SPAN:
                break
            if span * self.dtype.itemsize > LARGE_SPAN and span > n_wanted:
                break
            outer -= 1
        return outer

    def _fill(self, buffer: memoryview, n_bytes: int, places: Iterable[int]) -> None:
        """Read so many bytes from each place, one after the other into a buffer."""
        for start, place in zip(range(0, len(buffer), n_bytes), places, strict=True):
            left, at = buffer[start : start + n_bytes], place
            while left:
                n_read = os.preadv(self._descriptor, [left], at)
                if not n_read:
                    raise ImageError(
                        f"{self.path!r} ends {len(left)} bytes before the pixels that were asked "
                        "for: it was cut short after it was opened; restore it, and open it again"
                    )
                left, at = left[n_read:], at + n_read


class Transposed:
    """An array with its axes in the opposite order."""

    def __init__(self, array: FileArray) -> None:
        self.array = array
        self.dtype, self.shape = array.dtype, array.shape[::-1]
        self.ndim, self.size = array.ndim, array.size

    def __array__(self, dtype: Any = None, copy: bool | None = None) -> Any:
        return np.asarray(self[...], dtype=dtype)

    def __getitem__(self, key: Any) -> npt.NDArray[Any]:
        """Read a part."""
        keys, numbers = _slices(key, self.shape)
        part = self.array[tuple(keys[::-1])].transpose()
        return part.reshape([n for i, n in enumerate(part.shape) if i not in numbers])


def _slices(key: Any, shape: tuple[int, ...]) -> tuple[list[slice], set[int]]:
    """Return one slice per axis, and the axes that a number was given for."""
    keys = list(key) if isinstance(key, tuple) else [key]
    if Ellipsis in keys:
        at = keys.index(Ellipsis)
        keys[at : at + 1] = [slice(None)] * (len(shape) - len(keys) + 1)
    keys += [slice(None)] * (len(shape) - len(keys))
    if len(keys) > len(shape):
        raise IndexError(f"an array of shape {shape} has no index {key!r}")
    numbers = {i for i, k in enumerate(keys) if not isinstance(k, slice)}
    for i in numbers:
        n = int(keys[i])
        if not -shape[i] <= n < shape[i]:
            raise IndexError(f"index {n} is beyond axis {i} of an array of shape {shape}")
        keys[i] = slice(n % shape[i], n % shape[i] + 1)
    return keys, numbers


def _span(ranges: Sequence[range], strides: Sequence[int]) -> int:
    """Return the pixels from the first to the last one that is asked for."""
    return 1 + sum((len(r) - 1) * r.step * s for r, s in zip(ranges, strides, strict=True))
