"""Arrays that are already in the process (NumPy, Dask) and ``.npy`` files, which are mapped."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property, partial
from typing import TYPE_CHECKING, Any, TypeGuard

import numpy as np
import numpy.typing as npt

from patchworks_core.errors import ImageError
from patchworks_core.files.locations import file_stamp, folder_stamp, is_remote
from patchworks_core.files.stores import places_of
from patchworks_core.images.readers.file_array import FileArray
from patchworks_core.images.readers.opened import Opened, axes_notes, check_level, file_axes

if TYPE_CHECKING:
    import dask.array


def is_dask_array(source: Any) -> TypeGuard[dask.array.Array]:
    """Tell whether something is a Dask array, without importing Dask where nobody has."""
    module = sys.modules.get("dask.array")
    return module is not None and isinstance(source, module.Array)


@dataclass(frozen=True)
class MappedArray:
    """An array in memory that was also put into a file, which other processes map."""

    path: str
    """Of a ``.npy`` file on this machine."""

    @cached_property
    def _array(self) -> npt.NDArray[Any]:
        return np.asarray(np.load(self.path, mmap_mode="r", allow_pickle=False))

    def __reduce__(self) -> tuple[Any, ...]:
        return MappedArray, (self.path,)

    @property
    def shape(self) -> tuple[int, ...]:
        """Pixels per axis."""
        return self._array.shape

    @property
    def dtype(self) -> np.dtype[Any]:
        """Type of the pixels."""
        return self._array.dtype

    def __getitem__(self, index: Any) -> npt.NDArray[Any]:
        return np.asarray(self._array[index])


@dataclass(frozen=True)
class OverlappingBlocks:
    """A Dask array whose blocks hold what their neighbours hold too, as an array without that.

    ``dask.array.overlap.overlap(image, depth, boundary="none")`` makes such blocks. Read what a
    tile reads, core and halo, and it is the block of that tile.
    """

    array: dask.array.Array

    depth: tuple[int, ...]
    """Pixels that a block holds of each of its two neighbours, per axis."""

    def __post_init__(self) -> None:
        for axis, sizes in enumerate(self.cores):
            if min(sizes) < 1 or len({*sizes[:-1]}) > 1 or sizes[-1] > sizes[0]:
                raise ImageError(
                    f"blocks that overlap by {self.depth} have cores of one shape, smaller only at "
                    f"the end of an axis, got {sizes} along axis {axis}; make them by "
                    "dask.array.overlap.overlap(..., boundary='none'), of chunks of one shape"
                )

    @property
    def cores(self) -> tuple[tuple[int, ...], ...]:
        """Pixels of each block without what its neighbours hold too, per axis."""
        return tuple(
            tuple(
                int(n) - depth * (i > 0) - depth * (i < len(sizes) - 1) for i, n in enumerate(sizes)
            )
            for sizes, depth in zip(self.array.chunks, self.depth, strict=True)
        )

    @property
    def shape(self) -> tuple[int, ...]:
        """Pixels per axis."""
        return tuple(sum(sizes) for sizes in self.cores)

    @property
    def chunksize(self) -> tuple[int, ...]:
        """Pixels of the first core, per axis."""
        return tuple(sizes[0] for sizes in self.cores)

    @property
    def dtype(self) -> np.dtype[Any]:
        """Type of the pixels."""
        dtype: np.dtype[Any] = np.dtype(self.array.dtype)
        return dtype

    def __getitem__(self, index: tuple[slice, ...]) -> npt.NDArray[Any]:
        bounds = [part.indices(n)[:2] for part, n in zip(index, self.shape, strict=True)]
        held = (self._block_with(axis, *bound) for axis, bound in enumerate(bounds))
        places = [place for place in held if place is not None]
        if len(places) < len(bounds):  # more than a block holds: what the cores say
            from dask.array.overlap import trim_overlap

            boundary = dict.fromkeys(range(len(self.depth)), "none")
            depth = dict(enumerate(self.depth))
            trimmed = trim_overlap(self.array, depth, boundary)
            return np.asarray(trimmed[index])
        block = self.array.blocks[tuple(number for number, _ in places)]
        return np.asarray(
            block[tuple(slice(a - f, b - f) for (a, b), (_, f) in zip(bounds, places, strict=True))]
        )

    def _block_with(self, axis: int, start: int, stop: int) -> tuple[int, int] | None:
        """Return number and first pixel of the block that holds a range, most of it in its core."""
        best: tuple[int, int, int] | None = None
        depth, first = self.depth[axis], 0
        for number, size in enumerate(self.cores[axis]):
            low, high = max(0, first - depth), min(self.shape[axis], first + size + depth)
            own = min(stop, first + size) - max(start, first)
            if low <= start and stop <= high and (best is None or own > best[0]):
                best = (own, number, low)
            first += size
        return None if best is None else (best[1], best[2])


def open_overlapping(blocks: OverlappingBlocks, level: int, axes: str | None) -> Opened:
    """Open blocks that overlap as the image that they are of."""
    where = "a Dask array of overlapping blocks"
    letters = file_axes(None, blocks.shape, axes, where)
    check_level(level, [blocks.shape], where)
    return Opened(
        blocks, letters, "Dask array", partial(_dask_token, blocks.array), chunks=blocks.chunksize
    )


def open_mapped(mapped: MappedArray, level: int, axes: str | None) -> Opened:
    """Open an array that another process put into a file."""
    return open_numpy(mapped[...], level, axes)


def open_numpy(array: npt.NDArray[np.generic], level: int, axes: str | None) -> Opened:
    """Open a NumPy array; its bytes are its identity."""
    where = "a NumPy array"
    if np.ma.is_masked(array):
        raise ImageError(
            f"an image has a value at every pixel, got {where} with a mask; give the masked pixels "
            "a value first, such as image.filled(0)"
        )
    letters = file_axes(None, array.shape, axes, where)
    check_level(level, [array.shape], where)
    return Opened(array, letters, "NumPy array", partial(_content, array))


def open_dask(array: dask.array.Array, level: int, axes: str | None) -> Opened:
    """Open a Dask array; its Dask token and the local files that it reads are its identity."""
    where = "a Dask array"
    if isinstance(array._meta, np.ma.MaskedArray):
        raise ImageError(
            f"an image has a value at every pixel, got {where} of masked arrays; give the masked "
            "pixels a value first, such as dask.array.ma.filled(image, 0)"
        )
    if any(not isinstance(n, int) for n in array.shape):
        raise ImageError(
            f"an image needs a known shape, got {array.shape!r} in {where}; "
            "call compute_chunk_sizes() on it first"
        )
    letters = file_axes(None, array.shape, axes, where)
    check_level(level, [array.shape], where)
    return Opened(
        array,
        letters,
        "Dask array",
        partial(_dask_token, array),
        chunks=tuple(int(n) for n in array.chunksize),
    )


def open_npy(url: str, level: int, axes: str | None) -> Opened:
    """Open a ``.npy`` file; pixels are read when sliced."""
    if is_remote(url):
        raise ImageError(
            f"a .npy file must be on a local disk, got {url!r}; copy it here, or write it as Zarr"
        )
    try:
        array = FileArray.of(np.load(url, mmap_mode="r", allow_pickle=False))
    except ValueError as error:
        raise ImageError(f"cannot read {url!r} as a .npy file: {error}") from error
    letters = file_axes(None, array.shape, axes, repr(url))
    check_level(level, [array.shape], repr(url))
    notes = axes_notes(None, letters, axes, url)
    return Opened(array, letters, "NumPy file", partial(file_stamp, url), notes=notes)


def _content(array: npt.NDArray[np.generic]) -> Iterator[bytes]:
    """Yield the bytes of an array in C order, one index of the first axis at a time."""
    for part in array:
        yield np.ascontiguousarray(part).tobytes()


def _dask_token(array: dask.array.Array) -> Iterator[bytes]:
    """Yield the name of the graph, and what identifies the files behind it.

    A graph that reads a file has the same name whatever the file holds. What lies on an object
    store is not asked for.
    """
    from dask.base import tokenize

    yield tokenize(array).encode()
    for place in sorted(places_of(array), key=str):
        if place.protocol == "file" and os.path.exists(place.path):
            is_folder = os.path.isdir(place.path)
            yield from folder_stamp(place.path) if is_folder else file_stamp(place.path)
