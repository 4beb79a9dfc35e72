"""Zarr v2 and v3: finding the array or group, plain arrays, and what identifies their content."""

from __future__ import annotations

import os
from collections.abc import Iterator
from functools import partial
from itertools import product
from typing import Any

import numpy as np
import zarr
import zarr.errors
from zarr.storage import FsspecStore, LocalStore

from patchworks_core.errors import ImageError
from patchworks_core.grid import AXES
from patchworks_core.readers.locations import folder_stamp, is_remote, remote_folder_stamp
from patchworks_core.readers.ome_zarr import is_multiscale, open_multiscale
from patchworks_core.readers.opened import Opened, check_level, file_axes

METADATA_FILES = ("zarr.json", ".zarray", ".zgroup", ".zattrs")
"""Names that make a folder a Zarr node."""

_LEGAL_NAMES = {**{axis: axis for axis in AXES}, "time": "t", "channel": "c"}
_MAX_LISTED = 10


def open_zarr(url: str, level: int, axes: str | None) -> Opened:
    """Open a Zarr array, or a group that is OME-Zarr, from a local path or a URL."""
    store: Any = url
    try:
        if is_remote(url):
            store = FsspecStore.from_url(url, read_only=True)
        node = zarr.open(store, mode="r")
    except zarr.errors.NodeNotFoundError as error:
        raise ImageError(
            f"no Zarr array or group at {url!r}; check the path, and that zarr.json, .zarray or "
            ".zgroup is there"
        ) from error
    except (ImportError, ValueError, OSError) as error:
        raise ImageError(f"cannot open Zarr at {url!r}: {error}") from error
    return open_node(node, level, axes, repr(url))


def open_node(
    node: zarr.Array[Any] | zarr.Group, level: int, axes: str | None, where: str
) -> Opened:
    """Open a Zarr array, or a group that is OME-Zarr."""
    if isinstance(node, zarr.Array):
        return _open_array(node, level, axes, where)
    if is_multiscale(node):
        return open_multiscale(node, level, axes, where, lambda array: partial(zarr_stamp, array))
    arrays = sorted(name for name, member in node.members(max_depth=3) if _is_array(member))
    if not arrays:
        raise ImageError(f"a Zarr group needs an array to be an image, got none in {where}")
    listed = ", ".join(map(repr, arrays[:_MAX_LISTED]))
    more = f" and {len(arrays) - _MAX_LISTED} more" if len(arrays) > _MAX_LISTED else ""
    raise ImageError(
        f"a Zarr group without OME-Zarr metadata is not an image, got {where} with arrays "
        f"{listed}{more}; name one, such as path/{arrays[0]}"
    )


def _is_array(member: object) -> bool:
    return isinstance(member, zarr.Array)


def _open_array(array: zarr.Array[Any], level: int, axes: str | None, where: str) -> Opened:
    """Open an array without OME-Zarr metadata of its own."""
    letters = file_axes(_dimension_names(array), array.shape, axes, where)
    check_level(level, [array.shape], where)
    return Opened(
        pixels=array,
        axes=letters,
        format=f"Zarr v{array.metadata.zarr_format}",
        stamp=partial(zarr_stamp, array),
        chunks=tuple(array.chunks),
    )


def _dimension_names(array: zarr.Array[Any]) -> list[str] | None:
    """Return the letters that the array names its dimensions by, None unless all are legal."""
    names = getattr(array.metadata, "dimension_names", None)
    names = names or array.attrs.asdict().get("_ARRAY_DIMENSIONS")
    if not isinstance(names, (list, tuple)) or len(names) != array.ndim:
        return None
    letters = [_LEGAL_NAMES.get(str(name).lower(), "") for name in names]
    return letters if all(letters) and len(set(letters)) == len(letters) else None


def zarr_stamp(array: zarr.Array[Any]) -> Iterator[bytes]:
    """Yield what identifies the content of an array, metadata files included.

    Files and remote objects by size and time of change or ETag; what has neither, such as an
    array in memory or in a zip file, by its pixels.
    """
    store = array.store
    if isinstance(store, LocalStore):
        yield from folder_stamp(os.path.join(store.root, array.path))
    elif isinstance(store, FsspecStore):
        folder = "/".join(part for part in (store.path.rstrip("/"), array.path) if part)
        yield from remote_folder_stamp(_blocking(store.fs), folder, METADATA_FILES)
    else:
        starts = (range(0, n, c) for n, c in zip(array.shape, array.chunks, strict=True))
        for corner in product(*starts):
            box = tuple(slice(a, a + c) for a, c in zip(corner, array.chunks, strict=True))
            yield np.ascontiguousarray(array[box]).tobytes()


def _blocking(fs: Any) -> Any:
    """Return the blocking twin of a filesystem that Zarr uses through its event loop."""
    if hasattr(fs, "sync_fs"):
        return fs.sync_fs
    return type(fs)(*fs.storage_args, **{**fs.storage_options, "asynchronous": False})
