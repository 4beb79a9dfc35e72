"""Chunks of a Zarr array, read and decoded in no more memory than a chunk may have.

A few bytes can be decoded to very many, and a link in place of a chunk can lead to what has no
end. Zarr reads a chunk whole and decodes it whole, whatever comes out. Here an array gets codecs
that stop: what is stored and what comes out may be some times as large as the pixels, and no more.
Whole chunks on this disk are read past Zarr (`read_chunks`).

An array whose codecs another package runs (``codec_pipeline.path`` of Zarr's configuration) is
left as it is.
"""

from __future__ import annotations

import asyncio
import bz2
import gzip
import io
import lzma
import os
import zlib
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, replace
from itertools import product
from math import ceil, prod
from typing import Any

import imagecodecs
import numcodecs
import numpy as np
import numpy.typing as npt
import zarr
from numcodecs.abc import Codec as Numcodec
from zarr.abc.codec import BytesBytesCodec, Codec
from zarr.codecs import BytesCodec, ShardingCodec
from zarr.codecs._v2 import V2Codec
from zarr.core.array_spec import ArraySpec
from zarr.core.buffer import Buffer
from zarr.core.buffer.cpu import as_numpy_array_wrapper
from zarr.core.codec_pipeline import BatchedCodecPipeline
from zarr.core.metadata import ArrayV2Metadata
from zarr.storage import LocalStore, StorePath

from patchworks_core.errors import ImageError
from patchworks_core.files.locations import check_regular_file
from patchworks_core.images.readers.chunk_cache import KeepingPipeline, with_pipeline
from patchworks_core.tiles.regions import Region

_SPARE_BYTES = 1 << 20
"""Headers, check sums, and an index of chunks that are stored together."""

_SMALL_CHUNK = 1 << 20
"""Bytes up to which handing chunks to other threads takes longer than to decode them."""

_WAY_OUT = "it is damaged or was made to fill the memory; copy it again from where it was written"

_BY_STREAM = ("gzip", "bz2", "lzma")
"""Codecs of which Python reads as far as it is asked to."""

_IN_PLACE = (numcodecs.Zstd, numcodecs.Blosc)
"""Codecs that decode into an array that is there; what is made of them may give another."""


def most_bytes(n_pixels: int, itemsize: int) -> int:
    """Return how many bytes a chunk may have, stored or decoded, whatever its codecs do."""
    return 2 * n_pixels * itemsize + _SPARE_BYTES


class BoundedCodec(Numcodec):  # type: ignore[misc]
    """A codec that refuses what would be decoded to more bytes than it should."""

    codec_id = "patchworks.bounded"

    def __init__(self, codec: Any, most: int) -> None:
        self.codec = codec
        self.most = most

    def encode(self, buf: Any) -> Any:
        """Encode as the codec does."""
        return self.codec.encode(buf)

    def decode(self, buf: Any, out: Any = None) -> Any:
        """Decode.

        Raises
        ------
        ImageError
            If it would be more than `most` bytes, or is cut short where the codec would not see it.
        """
        name = str(self.codec.codec_id)
        if name in _BY_STREAM:
            with self._opened(name, io.BytesIO(buf)) as file:
                return self._checked(file.read(self.most + 1))
        if name == "zlib":
            return self._inflated(buf)
        n_bytes = _n_decoded(name, bytes(memoryview(buf)[:20]))
        if n_bytes is None and name == "zstd":
            return imagecodecs.zstd_decode(buf, out=self.most)
        if n_bytes is not None and n_bytes > self.most:
            raise _too_large(n_bytes, self.most)
        if name == "blosc":
            _check_whole_blosc(buf)
        return self.codec.decode(buf, out)

    def _opened(self, name: str, stored: io.BytesIO) -> Any:
        """Return a file that decodes what is stored as far as it is read."""
        if name == "gzip":
            return gzip.GzipFile(fileobj=stored)
        if name == "bz2":
            return bz2.BZ2File(stored)
        options = self.codec.get_config()
        return lzma.LZMAFile(stored, format=options["format"], filters=options["filters"])

    def _inflated(self, stored: Any) -> bytes:
        """Decode zlib, which looks at its check sum where the stream ends."""
        decoder = zlib.decompressobj()
        content = self._checked(decoder.decompress(stored, self.most + 1))
        if not decoder.eof:
            raise ImageError(f"a chunk of this array, in zlib, is cut short; {_WAY_OUT}")
        return content

    def _checked(self, content: bytes) -> bytes:
        if len(content) > self.most:
            raise _too_large(len(content), self.most)
        return content


def _n_decoded(name: str, head: bytes) -> int | None:
    """Return how many bytes a block says it will be; None where it does not say."""
    if name == "blosc" and len(head) >= 16:
        return int.from_bytes(head[4:8], "little")
    if name == "lz4" and len(head) >= 4:
        return int.from_bytes(head[:4], "little")
    if name == "zstd" and len(head) >= 5:
        # RFC 8878, section 3.1.1.1: descriptor, window, dictionary, content size.
        flag, is_single, has_dictionary = head[4] >> 6, head[4] >> 5 & 1, head[4] & 3
        size = (is_single, 2, 4, 8)[flag]
        start = 5 + (not is_single) + (0, 1, 2, 4)[has_dictionary]
        if size == 0:
            return None
        return int.from_bytes(head[start : start + size], "little") + (256 if size == 2 else 0)
    return None


def _check_whole_blosc(block: Any) -> None:
    """Raise ImageError where a block is shorter than it says: what lies behind it would be read."""
    content = memoryview(block).cast("B")
    n_bytes = int.from_bytes(content[12:16], "little") if len(content) >= 16 else 16
    if len(content) < n_bytes:
        raise ImageError(
            f"a chunk of this array says that it is stored in {n_bytes} bytes, got "
            f"{len(content)}; {_WAY_OUT}"
        )


def _too_large(n_bytes: int, most: int) -> ImageError:
    return ImageError(
        f"a chunk of this array may be decoded to {most} bytes, got {n_bytes} or more; {_WAY_OUT}"
    )


@dataclass(frozen=True)
class _BoundedStep(BytesBytesCodec):
    """A codec of Zarr v3 that is decoded by a bounded one."""

    codec: BytesBytesCodec
    bounded: BoundedCodec
    is_fixed_size = False

    def to_dict(self) -> dict[str, Any]:
        return self.codec.to_dict()

    def compute_encoded_size(self, input_byte_length: int, chunk_spec: ArraySpec) -> int:
        return self.codec.compute_encoded_size(input_byte_length, chunk_spec)

    async def _decode_single(self, chunk_bytes: Buffer, chunk_spec: ArraySpec) -> Buffer:
        return await asyncio.to_thread(
            as_numpy_array_wrapper, self.bounded.decode, chunk_bytes, chunk_spec.prototype
        )

    async def _encode_single(self, chunk_bytes: Buffer, chunk_spec: ArraySpec) -> Buffer | None:
        return await self.codec._encode_single(chunk_bytes, chunk_spec)


@dataclass(frozen=True)
class _BoundedPipeline(KeepingPipeline):
    """Looks at what is stored on this disk before it is read."""

    most: int = 0

    async def read(self, batch_info: Iterable[Any], out: Any, drop_axes: Any = ()) -> Any:
        chunks = list(batch_info)
        for getter, *_ in chunks:
            if isinstance(getter, StorePath) and isinstance(getter.store, LocalStore):
                _check_stored(os.path.join(getter.store.root, getter.path), self.most)
        return await super().read(chunks, out, drop_axes)


def _check_stored(path: str, most: int) -> None:
    """Raise ImageError where a chunk is no file, or larger than any of its pixels could be."""
    try:
        n_bytes = os.stat(path).st_size
    except OSError:
        return  # not stored, or Zarr says why
    check_regular_file(path, repr(os.path.dirname(path)))
    if n_bytes > most:
        raise ImageError(
            f"a chunk of this array may have {most} bytes, got {n_bytes} of {path!r}; {_WAY_OUT}"
        )


def bounded(array: zarr.Array[Any]) -> zarr.Array[Any]:
    """Return the same array, whose chunks are read and decoded in bounded memory."""
    pipeline = array._async_array.codec_pipeline
    if type(pipeline) is not BatchedCodecPipeline:
        return array
    metadata, itemsize = array.metadata, array.dtype.itemsize
    most = most_bytes(prod(array.shards or array.chunks), itemsize)
    codecs: tuple[Codec, ...]
    if isinstance(metadata, ArrayV2Metadata):
        compressor: Any = metadata.compressor and BoundedCodec(metadata.compressor, most)
        codecs = (V2Codec(filters=metadata.filters, compressor=compressor),)
    else:
        codecs = tuple(_bounded_step(codec, most, itemsize) for codec in metadata.codecs)
    plain = BatchedCodecPipeline.from_codecs(codecs)
    return with_pipeline(array, _BoundedPipeline.like(plain, most=most))


def _bounded_step(codec: Any, most: int, itemsize: int) -> Any:
    """Return a codec of Zarr v3, bounded where a few bytes may become many."""
    if isinstance(codec, ShardingCodec):
        inner = most_bytes(prod(codec.chunk_shape), itemsize)
        steps = tuple(_bounded_step(step, inner, itemsize) for step in codec.codecs)
        return replace(codec, codecs=steps)
    if not isinstance(codec, BytesBytesCodec):
        return codec
    content: dict[str, Any] = dict(codec.to_dict())
    name = str(content["name"]).removeprefix("numcodecs.")
    if name not in (*_BY_STREAM, "zlib", "zstd", "blosc", "lz4"):
        return codec
    # What a codec of Zarr v3 adds to the options, such as a check sum, is of encoding.
    is_own = hasattr(codec, "codec_config")
    options = dict(content.get("configuration") or {}) if is_own else {}
    return _BoundedStep(codec, BoundedCodec(numcodecs.get_codec({"id": name, **options}), most))


def read_chunks(array: Any, index: tuple[slice, ...]) -> npt.NDArray[Any] | None:
    """Read whole chunks of an array on this disk, in the calling thread.

    Zarr gives each chunk to its event loop and from there to another thread, which takes as long
    again as decoding where several threads read.

    Parameters
    ----------
    array : zarr.Array
    index : tuple of slice
        Pixels that are read, one entry per axis.

    Returns
    -------
    ndarray or None
        The caller's own, in the byte order of the array. None where Zarr is to read it: parts of
        chunks, other codecs, a chunk that is not as long as it should be; and large chunks, of
        which it decodes several side by side.

    Raises
    ------
    ImageError
        If what is stored may not be decoded (`BoundedCodec`).
    """
    pipeline = _pipeline_of_files(array)
    if pipeline is None:
        return None
    region = _region_of_chunks(index, array.shape, array.chunks)
    steps = _steps_of(array, pipeline)
    if region is None or steps is None:
        return None
    codec, dtype = steps
    is_one = region.size <= prod(array.chunks)
    if not is_one and prod(array.chunks) * dtype.itemsize > _SMALL_CHUNK:
        return None
    pixels = np.empty(region.shape, dtype)
    for chunk in region.pieces(array.chunks):
        place = tuple(a // n for a, n in zip(chunk.start, array.chunks, strict=True))
        path = _path_of(array, place)
        _check_stored(path, pipeline.most)
        part = pixels[chunk.slices_from(region.start)]
        if not _read_into(part, path, array, codec):
            return None
    return pixels


def stores_none(array: Any, index: tuple[slice, ...]) -> bool:
    """Tell whether an array on this disk stores no chunk of some pixels, which are 0 then.

    Parameters
    ----------
    array : zarr.Array
    index : tuple of slice
        Pixels, one entry per axis.

    Returns
    -------
    bool
        False too where nobody knows without reading.
    """
    if _pipeline_of_files(array) is None:
        return False
    if array.fill_value not in (0, None) or not _fills_gaps(array):
        return False
    places = places_of_chunks(index, array.shards or array.chunks)
    return not any(_is_stored(_path_of(array, place)) for place in places)


def places_of_chunks(
    index: tuple[slice, ...], chunks: tuple[int, ...]
) -> Iterator[tuple[int, ...]]:
    """Yield the places, in their grid, of the chunks that hold some pixels.

    Examples
    --------
    >>> list(places_of_chunks((slice(3, 5), slice(0, 4)), (4, 4)))
    [(0, 0), (1, 0)]
    """
    parts = zip(index, chunks, strict=True)
    return product(*(range(part.start // n, ceil(part.stop / n)) for part, n in parts))


def _pipeline_of_files(array: Any) -> _BoundedPipeline | None:
    """Return what decodes the chunk files of an array on this disk; None where others read it."""
    pipeline = array._async_array.codec_pipeline if isinstance(array, zarr.Array) else None
    # What is made of a store may read other bytes than lie there, such as those of encrypted files.
    if not isinstance(pipeline, _BoundedPipeline) or type(array.store) is not LocalStore:
        return None
    return pipeline


def _path_of(array: zarr.Array[Any], place: tuple[int, ...]) -> str:
    """Return the file of a chunk, or of chunks that are stored together."""
    key = array.metadata.encode_chunk_key(place)
    return os.path.join(array.store.root, array.path, key)  # type: ignore[attr-defined]


def _is_stored(path: str) -> bool:
    """Tell whether something is there, or may be."""
    try:
        os.stat(path)
    except FileNotFoundError:
        return False
    except OSError:
        pass  # which reading says
    return True


def _region_of_chunks(
    index: tuple[slice, ...], shape: tuple[int, ...], chunks: tuple[int, ...]
) -> Region | None:
    """Return the region that an index is, None where it is not whole chunks."""
    for part, n, size in zip(index, shape, chunks, strict=True):
        if part.start % size or (part.stop % size and part.stop != n):
            return None
    return Region(tuple(part.start for part in index), tuple(part.stop for part in index))


def _read_into(
    part: npt.NDArray[Any], path: str, array: zarr.Array[Any], codec: BoundedCodec | None
) -> bool:
    """Read a chunk into its pixels of an array; False where Zarr is to say what is wrong."""
    try:
        with open(path, "rb") as file:
            stored = file.read()
    except FileNotFoundError:  # nobody wrote it
        if not _fills_gaps(array):
            return False
        part[...] = 0 if array.fill_value is None else array.fill_value
        return True
    is_in_place = part.shape == array.chunks and part.flags.c_contiguous
    chunk = part if is_in_place else np.empty(array.chunks, part.dtype)
    if codec is None:
        if len(stored) != chunk.nbytes:
            return False
        chunk.reshape(-1).view(np.uint8)[:] = np.frombuffer(stored, np.uint8)
    else:
        if _n_decoded(str(codec.codec.codec_id), stored[:20]) != chunk.nbytes:
            return False
        codec.decode(stored, chunk)
    if not is_in_place:
        part[...] = chunk[tuple(map(slice, part.shape))]
    return True


def _fills_gaps(array: zarr.Array[Any]) -> bool:
    """Tell whether a chunk that is not stored is one of fill values; later Zarr can be told not."""
    options = getattr(array._async_array, "config", None)
    return bool(getattr(options, "read_missing_chunks", True))


def _steps_of(
    array: zarr.Array[Any], pipeline: BatchedCodecPipeline
) -> tuple[BoundedCodec | None, np.dtype[Any]] | None:
    """Return the codec of an array, if any, and the type it decodes to.

    None where there are several, or one that does not decode into an array that is there.
    """
    last, metadata = pipeline.array_bytes_codec, array.metadata
    codecs: tuple[Any, ...]
    if type(last) is BytesCodec:
        codecs = tuple(getattr(step, "bounded", step) for step in pipeline.bytes_bytes_codecs)
        endian: Any = last.endian  # of Zarr 3.1 a member of an enumeration, later its value
        is_big = getattr(endian, "value", endian) == "big"
        dtype = array.dtype.newbyteorder(">" if is_big else "<")
    elif isinstance(metadata, ArrayV2Metadata) and isinstance(last, V2Codec):
        codecs = (*(last.filters or ()), *([last.compressor] if last.compressor else ()))
        dtype = metadata.dtype.to_native_dtype()
    else:
        return None
    is_by_row = not pipeline.array_array_codecs and getattr(metadata, "order", "C") == "C"
    if not is_by_row or len(codecs) > 1:
        return None
    codec = codecs[0] if codecs else None
    if codec is None:
        return None, dtype
    is_in_place = isinstance(codec, BoundedCodec) and type(codec.codec) in _IN_PLACE
    return (codec, dtype) if is_in_place else None
