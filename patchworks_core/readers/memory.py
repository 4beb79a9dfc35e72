"""Arrays that are already in the process (NumPy, Dask) and ``.npy`` files, which are mapped."""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial

import dask.array
import dask.base
import numpy as np
import numpy.typing as npt

from patchworks_core.errors import ImageError
from patchworks_core.readers.locations import file_stamp, is_remote
from patchworks_core.readers.opened import Opened, check_level, file_axes


def open_numpy(array: npt.NDArray[np.generic], level: int, axes: str | None) -> Opened:
    """Open a NumPy array; its bytes are its identity."""
    where = "a NumPy array"
    letters = file_axes(None, array.shape, axes, where)
    check_level(level, [array.shape], where)
    return Opened(array, letters, "NumPy array", partial(_content, array))


def open_dask(array: dask.array.Array, level: int, axes: str | None) -> Opened:
    """Open a Dask array; its Dask token is its identity."""
    where = "a Dask array"
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
    """Map a ``.npy`` file into memory; pixels are read when sliced."""
    if is_remote(url):
        raise ImageError(
            f"a .npy file is mapped, so it must be on a local disk, got {url!r}; "
            "copy it here, or write it as Zarr"
        )
    try:
        array = np.load(url, mmap_mode="r", allow_pickle=False)
    except ValueError as error:
        raise ImageError(f"cannot map {url!r} as a .npy file: {error}") from error
    letters = file_axes(None, array.shape, axes, repr(url))
    check_level(level, [array.shape], repr(url))
    return Opened(array, letters, "NumPy file", partial(file_stamp, url))


def _content(array: npt.NDArray[np.generic]) -> Iterator[bytes]:
    """Yield the bytes of an array in C order, one index of the first axis at a time."""
    for part in array:
        yield np.ascontiguousarray(part).tobytes()


def _dask_token(array: dask.array.Array) -> Iterator[bytes]:
    yield dask.base.tokenize(array).encode()
