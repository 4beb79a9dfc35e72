"""Writing regions of Zarr arrays that patchworks made itself, and reading them back.

Whole chunks of a plain array on a local file system (no shards, zstd alone) are encoded and written
here, each under another name first, as Zarr would: an event loop, its threads and a look at the
metadata for each region cost more than the pixels do. Anything else goes through Zarr.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numcodecs.zstd as zstd
import numpy as np
import numpy.typing as npt
from upath import UPath

from patchworks_core.files.faults import storing
from patchworks_core.files.packed import is_background
from patchworks_core.files.storage import is_local, open_array, write_bytes
from patchworks_core.tiles.regions import Region

Array = npt.NDArray[Any]


@dataclass(frozen=True, slots=True)
class ArrayWriter:
    """Writes and reads regions of one array; make one with `of`, send it to workers."""

    path: UPath
    shape: tuple[int, ...]
    chunks: tuple[int, ...]
    dtype: np.dtype[Any]

    level: int | None
    """Of zstd; None where Zarr is to write."""

    prefix: tuple[str, ...]
    """Folder of the chunks, below `path`."""

    @classmethod
    def of(cls, path: UPath) -> ArrayWriter:
        """Look at the metadata of an array.

        Raises
        ------
        FileNotFoundError
            If there is none.
        """
        array = open_array(path)
        metadata: dict[str, Any] = dict(array.metadata.to_dict())
        is_whole = array.dtype.kind in "iub"  # of -0.0 and NaN, Zarr has rules of its own
        level = _level_of(metadata) if is_local(path) and is_whole else None
        prefix = ("c",) if array.metadata.zarr_format == 3 else ()
        dtype = np.dtype(array.dtype)
        return cls(path, array.shape, array.chunks, dtype, level, prefix)

    def write(self, region: Region, values: Array) -> bytes:
        """Write pixels of `region`; chunks of background alone are not stored.

        Returns
        -------
        bytes
            What `digest` returns now.

        Raises
        ------
        StorageError
            If they cannot be written where the array is.
        """
        values = values.astype(self.dtype, copy=False)
        with storing(self.path):
            if self.level is None or not self._is_whole(region):
                open_array(self.path, mode="r+")[region.slices] = values
                return b""
            return _digest(
                self._write_chunk(chunk, values[chunk.slices_from(region.start)])
                for chunk in region.pieces(self.chunks)
            )

    def erase(self, region: Region) -> bytes:
        """Make `region` background.

        Returns
        -------
        bytes
            What `digest` returns now.

        Raises
        ------
        StorageError
            If that cannot be written where the array is.
        """
        if self.level is None or not self._is_whole(region):
            return self.write(region, np.zeros(region.shape, dtype=self.dtype))
        with storing(self.path):
            return _digest(self._remove_chunk(chunk) for chunk in region.pieces(self.chunks))

    def read(self, region: Region) -> Array:
        """Return what was written of `region`.

        Raises
        ------
        RuntimeError, ValueError
            If what is stored is damaged.
        """
        if self.level is None or not self._is_whole(region):
            return np.asarray(open_array(self.path)[region.slices])
        values = np.zeros(region.shape, dtype=self.dtype)
        for chunk in region.pieces(self.chunks):
            if stored := self._read_chunk(chunk):
                pixels = np.frombuffer(zstd.decompress(stored), self.dtype).reshape(self.chunks)
                inside = tuple(slice(n) for n in chunk.shape)
                values[chunk.slices_from(region.start)] = pixels[inside]
        return values

    def digest(self, region: Region) -> bytes:
        """Return a digest of what is stored of `region`, as it is stored; empty where Zarr writes.

        There are ten to fifty times fewer bytes than pixels, and nothing is decoded.
        """
        if self.level is None or not self._is_whole(region):
            return b""
        return _digest(self._read_chunk(chunk) for chunk in region.pieces(self.chunks))

    def _read_chunk(self, chunk: Region) -> bytes:
        try:
            return self._chunk_path(chunk).read_bytes()
        except FileNotFoundError:
            return b""

    def _remove_chunk(self, chunk: Region) -> bytes:
        self._chunk_path(chunk).unlink(missing_ok=True)
        return b""

    def _chunk_path(self, chunk: Region) -> Path:
        numbers = [str(a // c) for a, c in zip(chunk.start, self.chunks, strict=True)]
        return Path(os.path.join(str(self.path), *self.prefix, *numbers))

    def _is_whole(self, region: Region) -> bool:
        """Tell whether a region is chunks, up to the border of the array."""
        bounds = zip(region.start, region.stop, self.chunks, self.shape, strict=True)
        return all(a % c == 0 and (b % c == 0 or b == n) for a, b, c, n in bounds)

    def _write_chunk(self, chunk: Region, pixels: Array) -> bytes:
        """Write a chunk, or remove one of background; return what is stored of it."""
        pixels = np.ascontiguousarray(pixels)  # looking at pixels that are not takes longer
        if is_background(pixels):
            return self._remove_chunk(chunk)
        if pixels.shape != self.chunks:  # at the border of the array
            whole = np.zeros(self.chunks, dtype=self.dtype)
            whole[tuple(slice(n) for n in pixels.shape)] = pixels
            pixels = whole
        content = bytes(zstd.compress(pixels, self.level))
        write_bytes(self._chunk_path(chunk), content)
        return content


def _digest(stored: Iterable[bytes]) -> bytes:
    """Return a digest of what is stored of chunks; nothing is, of background."""
    digest = hashlib.blake2b(digest_size=8)
    for content in stored:
        digest.update(len(content).to_bytes(8, "little") + content)
    return digest.digest()


def _level_of(metadata: dict[str, Any]) -> int | None:
    """Return the level of zstd where nothing else is done to a chunk; None where something is."""
    if metadata.get("fill_value") not in (0, 0.0):
        return None
    if metadata["zarr_format"] == 2:
        compressor = metadata.get("compressor") or {}
        is_plain = (
            compressor.get("id") == "zstd"
            and not compressor.get("checksum")
            and not metadata.get("filters")
            and metadata.get("order") == "C"
            and metadata.get("dimension_separator") == "/"
        )
        return int(compressor["level"]) if is_plain else None
    codecs = [dict(codec) for codec in metadata["codecs"]]
    if [codec["name"] for codec in codecs] != ["bytes", "zstd"]:
        return None
    order, packing = (codec.get("configuration") or {} for codec in codecs)
    key = {"name": "default", "configuration": {"separator": "/"}}
    is_plain = (
        order.get("endian", "little") == "little"
        and not packing.get("checksum")
        and metadata["chunk_key_encoding"] == key
        and metadata["chunk_grid"]["name"] == "regular"
    )
    return int(packing["level"]) if is_plain else None
