"""Which chunks of a Zarr array are stored: what is not is read as the fill value, without an error.

A chunk here is one stored object, a shard where there are shards.
"""

from __future__ import annotations

import os
import re
from collections.abc import Callable, Iterator
from math import ceil, prod
from typing import Any
from zipfile import ZipFile

import numpy as np
import zarr
from zarr.storage import FsspecStore, LocalStore, ZipStore

from patchworks_core.errors import ImageError
from patchworks_core.files.locations import check_linked_folder, check_regular_file, is_content
from patchworks_core.images.readers.gaps import gaps_in
from patchworks_core.images.readers.opened import Gaps

_METADATA = {"zarr.json", ".zarray", ".zgroup", ".zattrs", ".zmetadata"}

_MOST_LISTED, _MOST_LISTED_REMOTE = 1_000_000, 50_000
"""Chunks that are counted, so that it takes seconds; a remote store lists 1000 per request."""

_MOST_STRANGE = 1000
"""Files looked at in vain for a chunk before it is said that there is none."""


def check_chunks(array: zarr.Array[Any], where: str) -> None:
    """Raise ImageError where an array on this disk has files of which none is a chunk of its own.

    The first chunk settles it, so that few files are looked at.
    """
    strange, place = None, _place_in(array)
    for number, key in enumerate(_keys_here(array)):
        if place(key) is not None:
            return
        strange = strange or key
        if number >= _MOST_STRANGE:
            break
    if strange is not None:
        example = array.metadata.encode_chunk_key((0,) * array.ndim)
        raise ImageError(
            f"the files of a Zarr array must be chunks of its own, such as {example!r}, got "
            f"{strange!r} and no chunk in {where}; correct the metadata (chunk_key_encoding or "
            "dimension_separator), or copy the array again"
        )


def find_gaps(array: zarr.Array[Any], where: str) -> Gaps | None:
    """Return which chunks are not stored; None where all are, or nobody can count them in time."""
    is_remote = isinstance(array.store, FsspecStore)
    grid = _grid(array)
    n_chunks = prod(grid)
    if n_chunks > (_MOST_LISTED_REMOTE if is_remote else _MOST_LISTED):
        return None
    keys = _keys_remote(array) if is_remote else _keys_here(array)
    if keys is None:
        return None
    is_stored = np.zeros(grid, bool)
    for place in map(_place_in(array), keys):
        if place is not None:
            is_stored[place] = True
    if not isinstance(array.store, (LocalStore, ZipStore, FsspecStore)):
        return None
    return gaps_in(is_stored, f"chunks of {where}", array.fill_value)


def _grid(array: zarr.Array[Any]) -> tuple[int, ...]:
    """Return how many stored objects an array has per axis."""
    shape = array.shards or array.chunks
    return tuple(ceil(n / size) for n, size in zip(array.shape, shape, strict=True))


def _place_in(array: zarr.Array[Any]) -> Callable[[str], tuple[int, ...] | None]:
    """Return what gives the place in the grid of a chunk by its key; None for what is none."""
    grid = _grid(array)
    key_of_sevens = re.escape(array.metadata.encode_chunk_key((7,) * array.ndim))
    pattern = re.compile(key_of_sevens.replace("7", r"(\d+)"))

    def place(key: str) -> tuple[int, ...] | None:
        match = pattern.fullmatch(key)
        if match is None:
            return None
        indices = tuple(map(int, match.groups()))
        return indices if all(i < n for i, n in zip(indices, grid, strict=True)) else None

    return place


def _keys_here(array: zarr.Array[Any]) -> Iterator[str]:
    """Yield the files of an array in a folder or zip file, from its own folder on."""
    store = array.store
    if isinstance(store, LocalStore):
        yield from _files_below(os.path.join(store.root, array.path), "")
    elif isinstance(store, ZipStore):
        start = f"{array.path}/" if array.path else ""
        with ZipFile(store.path) as archive:
            names = archive.namelist()
        below = (name[len(start) :] for name in names if name.startswith(start))
        yield from (name for name in below if name and not name.endswith("/") and _is_own(name))


def _files_below(folder: str, start: str) -> Iterator[str]:
    """Yield files as they are listed, so that who needs the first waits for no other."""
    with os.scandir(os.path.join(folder, start)) as entries:
        for entry in entries:
            name = f"{start}{entry.name}"
            if not _is_own(name):
                continue
            if entry.is_dir():
                check_linked_folder(entry.path, folder)
                yield from _files_below(folder, f"{name}/")
            else:
                check_regular_file(entry.path, repr(folder))
                yield name


def _keys_remote(array: zarr.Array[Any]) -> list[str] | None:
    """Return the objects of an array in a store that lists them; None of a web server."""
    store = array.store
    assert isinstance(store, FsspecStore)
    protocols = (store.fs.protocol,) if isinstance(store.fs.protocol, str) else store.fs.protocol
    if {"http", "https"} & set(protocols):
        return None
    fs = blocking(store.fs)
    folder = "/".join(part for part in (store.path.rstrip("/"), array.path) if part)
    start = fs._strip_protocol(folder).rstrip("/") + "/"
    names = (str(path).removeprefix(start) for path in fs.find(folder))
    return [name for name in names if _is_own(name)]


def blocking(fs: Any) -> Any:
    """Return the blocking twin of a filesystem that Zarr uses through its event loop."""
    if hasattr(fs, "sync_fs"):
        return fs.sync_fs
    return type(fs)(*fs.storage_args, **{**fs.storage_options, "asynchronous": False})


def _is_own(name: str) -> bool:
    return name not in _METADATA and is_content(name)
