"""Decoded chunks are kept for the tiles beside: with a halo, a tile reads parts of its neighbours'.

Tiles as large as a chunk read parts of 9 chunks, in volumes of 27, and each would be read and
decoded as often. A chunk that is read whole is not kept: nobody else wants it, or it was cut
before. There is one cache for a process, and what it keeps of an array goes with the array.
"""

from __future__ import annotations

import os
import threading
import weakref
from collections import OrderedDict
from collections.abc import Iterable
from contextlib import suppress
from dataclasses import dataclass, field, replace
from itertools import count
from math import prod
from typing import Any, Self, TypeAlias

import zarr
from zarr.core.array_spec import ArraySpec
from zarr.core.buffer import NDBuffer
from zarr.core.codec_pipeline import BatchedCodecPipeline, fill_value_or_default
from zarr.core.common import concurrent_map
from zarr.core.config import config
from zarr.storage import LocalStore, MemoryStore, StorePath

from patchworks_core.machine.budget import granted_cores, granted_memory_bytes

_ChunkRead: TypeAlias = tuple[Any, ArraySpec, Any, Any, bool]
"""What Zarr says of one chunk: where its bytes are, its type and shape, which of its pixels go
where, and whether those are all."""

SHARE_OF_MEMORY = 0.1
"""Of the granted memory, that decoded chunks may take in as many processes as there are cores;
what tiles may take leaves twice as much (`machine.sizing`)."""


class ChunkCache:
    """Decoded chunks of arrays; those that nobody read for longest are given up first."""

    def __init__(self, most_bytes: int | None = None) -> None:
        """Keep at most so many bytes; by default a share of what this process was granted."""
        self._most_bytes = most_bytes
        self._chunks: OrderedDict[tuple[int, str], NDBuffer] = OrderedDict()
        self._n_bytes = 0
        self._lock = threading.RLock()  # an array may be collected while a chunk is kept

    @property
    def most_bytes(self) -> int:
        """Bytes that are kept at most, decided when the first chunk is to be."""
        if self._most_bytes is None:
            granted = granted_memory_bytes().value
            self._most_bytes = int(SHARE_OF_MEMORY * granted) // granted_cores().value
        return self._most_bytes

    @property
    def n_bytes(self) -> int:
        """Bytes that are kept now."""
        return self._n_bytes

    def find(self, array: int, chunk: str) -> NDBuffer | None:
        """Return a chunk of an array, None where it is not kept."""
        with self._lock:
            pixels = self._chunks.get((array, chunk))
            if pixels is not None:
                self._chunks.move_to_end((array, chunk))
            return pixels

    def keep(self, array: int, chunk: str, pixels: NDBuffer) -> None:
        """Keep a chunk, unless it alone is too large."""
        with self._lock:
            n_bytes = _bytes_of(pixels)
            if (array, chunk) in self._chunks or n_bytes > self.most_bytes:
                return
            self._chunks[array, chunk] = pixels
            self._n_bytes += n_bytes
            while self._n_bytes > self.most_bytes:
                self._n_bytes -= _bytes_of(self._chunks.popitem(last=False)[1])

    def forget(self, array: int) -> None:
        """Keep nothing more of an array."""
        with self._lock:
            for key in [key for key in self._chunks if key[0] == array]:
                self._n_bytes -= _bytes_of(self._chunks.pop(key))


def _bytes_of(pixels: NDBuffer) -> int:
    return prod(pixels.shape) * pixels.dtype.itemsize


CHUNKS = ChunkCache()
"""Those of this process."""

_NUMBERS = count()


@dataclass(frozen=True)
class KeepingPipeline(BatchedCodecPipeline):
    """Decodes a chunk once, of which tiles read parts.

    Shards are not kept: Zarr decodes no more of them than is asked for.
    """

    array: int = field(default_factory=lambda: next(_NUMBERS))
    """Which array this is, among those of this process."""

    @classmethod
    def like(cls, plain: BatchedCodecPipeline, **options: Any) -> Self:
        """Return one of the same steps."""
        steps = (plain.array_array_codecs, plain.array_bytes_codec, plain.bytes_bytes_codecs)
        return cls(*steps, plain.batch_size, **options)

    def __post_init__(self) -> None:
        weakref.finalize(self, CHUNKS.forget, self.array)

    async def read(
        self, batch_info: Iterable[_ChunkRead], out: NDBuffer, drop_axes: tuple[int, ...] = ()
    ) -> Any:
        """Read chunks, or parts of them, into an array; return which are stored."""
        others, parts = {}, {}
        for number, chunk in enumerate(batch_info):
            stored, *_, is_whole = chunk
            name = _name_of(stored)
            if (
                name is None
                or self.supports_partial_decode
                or (is_whole and CHUNKS.find(self.array, name) is None)
            ):
                others[number] = chunk
            else:
                parts[number] = (chunk, name, out, drop_axes)
        read: Any = super().read
        of_others = await read(others.values(), out, drop_axes)
        of_parts = await concurrent_map(
            parts.values(), self._read_part, config.get("async.concurrency")
        )
        if of_others is None:  # of Zarr 3.1, which does not ask
            return None
        status = dict(zip([*others, *parts], [*of_others, *of_parts], strict=True))
        return tuple(status[number] for number in sorted(status))

    async def _read_part(
        self, chunk: _ChunkRead, name: str, out: NDBuffer, drop_axes: tuple[int, ...]
    ) -> dict[str, str]:
        """Read a part of a chunk, which is kept by that name; return whether it is stored."""
        stored, spec, inside, place, _ = chunk
        pixels = CHUNKS.find(self.array, name)
        if pixels is None:
            content = await stored.get(spec.prototype)
            if content is None:  # nobody wrote it
                out[place] = fill_value_or_default(spec)
                return {"status": "missing"}
            (pixels,) = await self.decode([(content, spec)])
            assert pixels is not None
            CHUNKS.keep(self.array, name, pixels)
        part = pixels[inside]
        out[place] = part.squeeze(axis=drop_axes) if drop_axes else part
        return {"status": "present"}


def _name_of(stored: Any) -> str | None:
    """Return the path of a chunk, with what tells whether its file was written again.

    When its entry was changed is part of that, which no program sets back. None where nothing
    tells: in memory, or in a store that is open for writing.
    """
    if not isinstance(stored, StorePath):
        return None
    store = stored.store
    if isinstance(store, LocalStore):
        with suppress(OSError):
            status = os.stat(os.path.join(store.root, stored.path))
            times = f"{status.st_mtime_ns} {status.st_ctime_ns}"
            return f"{stored.path} {times} {status.st_size} {status.st_ino}"
        return None
    return None if isinstance(store, MemoryStore) or not store.read_only else stored.path


def keeping(array: zarr.Array[Any]) -> zarr.Array[Any]:
    """Return the same array, of which chunks that are read in parts are decoded once."""
    plain = array._async_array.codec_pipeline
    if type(plain) is not BatchedCodecPipeline:
        return array
    return with_pipeline(array, KeepingPipeline.like(plain))


def keeping_anew(array: Any) -> Any:
    """Return the same array, of which nothing is kept yet; one that keeps nothing as it is."""
    pipeline = array._async_array.codec_pipeline if isinstance(array, zarr.Array) else None
    if not isinstance(pipeline, KeepingPipeline):
        return array
    return with_pipeline(array, replace(pipeline, array=next(_NUMBERS)))


def with_pipeline(array: zarr.Array[Any], pipeline: BatchedCodecPipeline) -> zarr.Array[Any]:
    """Return the same array, decoded by other means."""
    twin = replace(array._async_array)
    object.__setattr__(twin, "codec_pipeline", pipeline)
    return zarr.Array(twin)
