"""Arrays packed into one file that vouches for itself: nothing in it can be another, unseen.

1. A first line of fixed length has the length and the digest of what follows it,
2. a header: JSON, with what the writer says of the arrays, and place, type and digest of each,
3. the arrays, compressed one by one, so that one is read without the others.

A file is written under another name and then given its own, so that it is whole or not there. Its
length follows from its header: one that was cut short is noticed without reading it.
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from hashlib import blake2b
from math import prod
from typing import Any, NamedTuple

import numcodecs.zstd as zstd
import numpy as np
import numpy.typing as npt
from upath import UPath

from patchworks_core.files.storage import is_local
from patchworks_core.files.tables import DamagedError

Array = npt.NDArray[Any]

_FIRST_LINE = b"patchworks packed arrays 1 %08d %s\n"

_N_FIRST = len(_FIRST_LINE % (0, b"0" * 16))

_N_HEAD = 4096
"""Bytes read at once in the hope that the header is in them."""

_LEVEL = 1
"""Of zstd: labels hardly become smaller at a higher one."""

_PIECE = 2**16
"""Elements that are looked at together for one that is not 0."""


class PackedArray(NamedTuple):
    """Where an array lies in its file, and what it is."""

    dtype: str
    shape: tuple[int, ...]
    start: int
    """Behind the header."""

    n_bytes: int
    """0 where every element is 0: nothing is stored then."""

    digest: str


def pack(header: Mapping[str, Any], arrays: Mapping[str, Array]) -> bytes:
    """Return a file of arrays.

    Parameters
    ----------
    header : mapping
        JSON-ready.
    arrays : mapping of str to ndarray
        Numbers.

    Examples
    --------
    >>> content = pack({"tile": 3}, {"labels": np.arange(4, dtype=np.uint16)})
    >>> packed = PackedFile.of(lambda start, stop: content[start:stop])
    >>> packed.header, packed.load(["labels"])["labels"]
    ({'tile': 3}, array([0, 1, 2, 3], dtype=uint16))
    """
    pieces: list[bytes] = []
    places: dict[str, list[Any]] = {}
    start = 0
    for name, array in arrays.items():
        piece = (
            b""
            if is_background(array)
            else bytes(zstd.compress(np.ascontiguousarray(array), _LEVEL))
        )
        places[name] = [array.dtype.str, list(array.shape), start, len(piece), _digest(piece)]
        pieces.append(piece)
        start += len(piece)
    text = json.dumps({"header": header, "arrays": places}, separators=(",", ":")).encode()
    return b"".join([_FIRST_LINE % (len(text), _digest(text).encode()), text, *pieces])


def is_background(array: Array) -> bool:
    """Tell whether all elements are 0; of one that is broadcast from a number, by that alone.

    Examples
    --------
    >>> is_background(np.zeros(3)), is_background(np.array([0, -1]))
    (True, False)
    """
    if array.size and not any(array.strides):
        array = array[(slice(1),) * array.ndim]
    if not array.flags.c_contiguous:
        return not array.any()
    flat = array.reshape(-1)  # `any` of whole numbers looks at all of them
    pieces = (flat[start : start + _PIECE] for start in range(0, flat.size, _PIECE))
    return not any(piece.any() for piece in pieces)


@dataclass(frozen=True, slots=True)
class PackedFile:
    """A file of arrays that is open; its header was checked, an array is when it is loaded."""

    header: dict[str, Any]
    arrays: dict[str, PackedArray]
    _first: int
    """Where the arrays start."""

    _read: Callable[[int, int], bytes]

    @classmethod
    def of(cls, read: Callable[[int, int], bytes]) -> PackedFile:
        """Read the header of a file.

        Parameters
        ----------
        read : callable
            ``read(start, stop)`` gives bytes of the file.

        Raises
        ------
        DamagedError
            If it is not what was written.
        """
        head = read(0, _N_HEAD)
        try:
            words = head[:_N_FIRST].split()
            n_text, digest = int(words[-2]), words[-1].decode()
            is_ours = head[:_N_FIRST] == _FIRST_LINE % (n_text, digest.encode())
        except (ValueError, IndexError) as error:
            raise DamagedError("its first line is not what was written") from error
        first = _N_FIRST + n_text
        text = head[_N_FIRST:first] if first <= len(head) else read(_N_FIRST, first)
        if not is_ours or _digest(text) != digest:
            raise DamagedError("its header is not what was written")
        content = json.loads(text)
        arrays = {
            name: PackedArray(dtype, tuple(shape), *rest)
            for name, (dtype, shape, *rest) in content["arrays"].items()
        }
        return cls(content["header"], arrays, first, read)

    @property
    def n_bytes(self) -> int:
        """Length of the file."""
        return self._first + sum(array.n_bytes for array in self.arrays.values())

    def load(self, names: Iterable[str]) -> dict[str, Array]:
        """Return arrays, reading what lies from the first to the last of them at once.

        Raises
        ------
        DamagedError
            If one is not what was written.
        """
        entries = {name: self.arrays[name] for name in names}
        stored = [array for array in entries.values() if array.n_bytes]
        start = min((array.start for array in stored), default=0)
        stop = max((array.start + array.n_bytes for array in stored), default=0)
        content = self._read(self._first + start, self._first + stop) if stored else b""
        return {name: _unpacked(name, array, content, start) for name, array in entries.items()}


def _unpacked(name: str, array: PackedArray, content: bytes, start: int) -> Array:
    if not array.n_bytes:
        return np.zeros(array.shape, array.dtype)
    piece = content[array.start - start : array.start - start + array.n_bytes]
    if len(piece) != array.n_bytes or _digest(piece) != array.digest:
        raise DamagedError(f"{name} are not what was written")
    values = np.frombuffer(zstd.decompress(piece), dtype=array.dtype)
    if len(values) != prod(array.shape):
        raise DamagedError(f"{name} are {len(values)} numbers, not of shape {array.shape}")
    return values.reshape(array.shape)


@contextmanager
def open_packed(path: UPath) -> Iterator[PackedFile]:
    """Open a file of arrays; what replaces it meanwhile is not seen, on a local file system.

    Raises
    ------
    FileNotFoundError
        If there is none.
    DamagedError
        If it is not what was written.
    """
    if not is_local(path):
        yield PackedFile.of(lambda start, stop: _fetched(path, start, stop))
        return
    with open_local_packed(str(path)) as packed:
        yield packed


@contextmanager
def open_local_packed(path: str) -> Iterator[PackedFile]:
    """Open a file of arrays on a local file system, as `open_packed` does; of many, faster.

    Raises
    ------
    FileNotFoundError
        If there is none.
    DamagedError
        If it is not what was written, or not as long.
    """
    descriptor = os.open(path, os.O_RDONLY)
    try:
        packed = PackedFile.of(lambda start, stop: os.pread(descriptor, stop - start, start))
        n_there = os.fstat(descriptor).st_size
        if n_there != packed.n_bytes:
            raise DamagedError(f"{n_there} of {packed.n_bytes} bytes are there")
        yield packed
    finally:
        os.close(descriptor)


def _fetched(path: UPath, start: int, stop: int) -> bytes:
    """Read a part of an object; of one that is shorter, what is there."""
    try:
        content: bytes = path.fs.cat_file(path.path, start=start, end=stop)
    except FileNotFoundError:
        raise
    except OSError:
        if path.fs.size(path.path) > start:
            raise
        content = b""  # there is nothing, for which some stores have an error
    return content


def _digest(content: bytes) -> str:
    return blake2b(content, digest_size=8).hexdigest()


DIGEST_OF_BACKGROUND = _digest(b"")
"""Of an array of which every element is 0."""
