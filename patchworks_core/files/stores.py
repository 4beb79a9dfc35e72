"""Stores: where the pixels of anything that is read are kept, however it was opened.

1. `places_of` walks through what is read (a path, a Zarr node, a mapped file, every task of a Dask
   graph) and returns each `Place` it finds.
2. `Place.clash` tells whether writing to a path would change what is read there.

Places are compared, not strings: a symbolic link, ``..``, a relative path, or an object store that
was opened as a store instead of as a URL lead to the same place.
"""

from __future__ import annotations

import io
import os
import posixpath
import re
import sys
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, fields, is_dataclass
from functools import partial
from pathlib import PurePath
from types import FunctionType, MethodType, ModuleType
from typing import Any

import numpy as np
import zarr
from fsspec import AbstractFileSystem
from fsspec.core import OpenFile
from upath import UPath
from zarr.abc.store import Store
from zarr.storage import FsspecStore, LocalStore, StorePath, WrapperStore, ZipStore

from patchworks_core.files.locations import filesystem, is_remote, split_scene, split_zip
from patchworks_core.files.storage import as_path, group_format, is_local, zarr_store

_LOCAL = frozenset({"file", "local", ""})

_WRAPPERS = frozenset({"dir", "cached", "blockcache", "filecache", "simplecache"})
"""Filesystems that lead to another one, which they keep as `fs`."""


@dataclass(frozen=True, slots=True)
class Place:
    """A file, a folder or an object that is read."""

    protocol: str
    """``file``, or the protocol of an object store, such as ``s3``."""

    path: str
    """Real path, or bucket and key."""

    is_folder: bool = True
    """Whether everything below it is read too."""

    @classmethod
    def of(cls, location: Any, *, is_folder: bool = True) -> Place:
        """Return the place of a path or URL."""
        path = as_path(location)
        if is_local(path):
            return cls("file", os.path.realpath(str(path)), is_folder)
        return cls.on(path.fs, path.path, is_folder=is_folder)

    @classmethod
    def on(cls, fs: Any, path: str, *, is_folder: bool = True) -> Place:
        """Return the place of a path on an fsspec filesystem, whatever it is wrapped in."""
        fs = getattr(fs, "sync_fs", fs)
        while _protocols(fs) & _WRAPPERS:
            path = posixpath.join(fs.path, path) if "dir" in _protocols(fs) else path
            fs = getattr(fs.fs, "sync_fs", fs.fs)
        if "zip" in _protocols(fs) and hasattr(fs.fo, "fs"):
            return cls.on(fs.fo.fs, fs.fo.path, is_folder=False)
        protocol = sorted(_protocols(fs))[0]
        path = str(fs._strip_protocol(path))
        if _LOCAL & _protocols(fs):
            return cls("file", os.path.realpath(path), is_folder)
        return cls(protocol, posixpath.normpath(path.strip("/")), is_folder)

    def __str__(self) -> str:
        return self.path if self.protocol == "file" else f"{self.protocol}://{self.path}"

    def clash(self, target: UPath) -> str | None:
        """Say how a target and this place are one; None where they have nothing in common.

        Returns
        -------
        str or None
            ``is``, ``holds`` or ``lies in``.

        Examples
        --------
        >>> Place.of("memory://plate/raw").clash(as_path("memory://plate"))
        'holds'
        >>> Place.of("memory://plate/raw").clash(as_path("memory://plate/rawer"))
        """
        written = Place.of(target)
        if written.protocol != self.protocol:
            return None
        mine, theirs = _steps(self), _steps(written)
        if mine[-1] & theirs[-1]:
            return "is"
        if any(step & theirs[-1] for step in mine[:-1]):
            return "holds"
        if self.is_folder and any(step & mine[-1] for step in theirs[:-1]):
            return "lies in"
        return None


def places_of(read: Any) -> list[Place]:
    """Return every place that is read.

    Parameters
    ----------
    read : path, URL, Zarr array or group, NumPy array, Dask array, or what is made of these
        Of a Dask array every store in its graph counts, whether it came in by ``from_zarr``,
        ``from_array``, a function that was mapped over it, or a task written by hand. Arrays in
        memory have no place.
    """
    places: dict[Place, None] = {}
    for place in _walk(read, set()):
        places.setdefault(place)
    return list(places)


def _protocols(fs: AbstractFileSystem) -> frozenset[str]:
    names = (fs.protocol,) if isinstance(fs.protocol, str) else fs.protocol
    return frozenset("s3" if name == "s3a" else name for name in names)


def _steps(place: Place) -> list[frozenset[Any]]:
    """Return what identifies each folder down to the place: its path, and its number on the disk.

    The number tells that two paths are one folder where the path does not: a folder that is
    mounted twice, a disk that makes no difference between upper and lower case.
    """
    parts = place.path.strip("/").split("/")
    paths = ["/".join(parts[: n + 1]) for n in range(len(parts))]
    if place.protocol != "file":
        return [frozenset({path}) for path in paths]
    return [frozenset({path, *_number_of(f"/{path}")}) for path in paths]


def _number_of(path: str) -> Iterator[tuple[int, int]]:
    try:
        status = os.stat(path)
    except OSError:  # not there, or not ours to look at
        return
    yield status.st_dev, status.st_ino


def _walk(value: Any, visited: set[int]) -> Iterator[Place]:
    """Yield the places behind a value, and behind all it is made of."""
    waiting = [value]
    kept = []  # an object that went away would lend its id to another
    while waiting:
        value = waiting.pop()
        if value is None or isinstance(value, _PLAIN) or id(value) in visited:
            continue
        visited.add(id(value))
        kept.append(value)
        if isinstance(value, str | os.PathLike | UPath):
            yield from _named(value, whole=len(kept) == 1)
        elif isinstance(value, zarr.Array | zarr.Group):
            yield from _node(value)
        elif isinstance(value, StorePath):
            yield from _stored(value.store, value.path)
        elif isinstance(value, Store):
            yield from _stored(value, "")
        elif isinstance(value, np.ndarray):
            if isinstance(value, np.memmap) and value.filename is not None:
                yield Place.of(os.fspath(value.filename), is_folder=False)
            waiting.extend(value.ravel() if value.dtype.hasobject else ())
            waiting.append(value.base)
        elif isinstance(value, OpenFile):
            yield Place.on(value.fs, value.path, is_folder=False)
        elif isinstance(value, io.IOBase):
            name = getattr(value, "name", None)
            waiting.append(os.path.abspath(name) if isinstance(name, str) else None)
        elif type(value).__module__.partition(".")[0] == "h5py":
            yield Place.of(value.file.filename, is_folder=False)
        else:
            waiting.extend(_parts(value))


_PLAIN = (
    *(bool, int, float, complex, bytes, slice, np.dtype, np.generic, type, ModuleType),
    AbstractFileSystem,
)
"""Types that hold no place."""


def _parts(value: Any) -> Iterable[Any]:
    """Return what a value is made of."""
    # Graphs and layers of Dask are mappings too, and looking into one as such makes all its tasks.
    if (graphs := sys.modules.get("dask.highlevelgraph")) is not None:
        if isinstance(value, graphs.HighLevelGraph):
            return list(value.layers.values())
        if isinstance(value, graphs.Layer):
            return _attributes(value)
    if isinstance(value, Mapping):
        return list(value.values())
    if isinstance(value, list | tuple | set | frozenset):
        return [*value, *(_attributes(value) if hasattr(value, "__dict__") else ())]
    if isinstance(value, partial):
        return [value.func, *value.args, *value.keywords.values()]
    if isinstance(value, MethodType):
        return [value.__self__, value.__func__]
    if isinstance(value, FunctionType):
        cells = [cell.cell_contents for cell in value.__closure__ or () if _is_filled(cell)]
        return [*cells, *(value.__defaults__ or ()), *(value.__kwdefaults__ or {}).values()]
    return _attributes(value)


def _is_filled(cell: Any) -> bool:
    try:
        return cell.cell_contents is not None
    except ValueError:  # a function that is defined and not yet assigned
        return False


def _attributes(value: Any) -> list[Any]:
    """Return what an object keeps, whether in a dictionary, in slots, or in fields."""
    names = {name for kind in type(value).__mro__ for name in _slots_of(kind)}
    if is_dataclass(value):
        names |= {field.name for field in fields(value)}
    kept = [getattr(value, name, None) for name in sorted(names)]
    return [*kept, *getattr(value, "__dict__", {}).values()]


def _slots_of(kind: type) -> Iterable[str]:
    slots = kind.__dict__.get("__slots__", ())
    return (slots,) if isinstance(slots, str) else slots


_URL = re.compile(r"[\w+.-]+(::[\w+.-]+)*://\S+")
"""Text within a graph that may be a URL; text that only holds one, such as XML, is none."""


def _named(location: str | os.PathLike[str] | UPath, *, whole: bool) -> Iterator[Place]:
    """Yield the place that a text names; text within a graph counts where it looks like a path.

    Of a folder that is found within a graph nobody can tell what is read of it: writing into it is
    allowed, replacing it is not.
    """
    text = os.fspath(location) if not isinstance(location, UPath) else str(location)
    if not isinstance(text, str):
        return
    if not whole and not isinstance(location, PurePath) and "/" not in text:
        return
    if is_remote(text):
        if whole or _URL.fullmatch(text):
            yield from _remote(split_scene(text)[0], whole=whole)
        return
    file = split_scene(text.removeprefix("file://"))[0]
    zipped = split_zip(file)
    if zipped and os.path.isfile(zipped[0]):
        file = zipped[0]
    try:
        exists = os.path.lexists(file)
    except ValueError:  # a text with a zero in it
        return
    if exists or whole:
        yield from _folder(as_path(file), whole=whole)


def _remote(url: str, *, whole: bool) -> Iterator[Place]:
    try:
        fs, path = filesystem(url)
    except ValueError:
        if whole:
            raise
        return  # a text in a graph that only looks like a URL
    if whole:
        yield from _folder(as_path(url), whole=True)
    else:
        yield Place.on(fs, path, is_folder=False)


def _folder(path: UPath, *, whole: bool) -> Iterator[Place]:
    """Yield the place of a path, and where it is a Zarr group the arrays that are its image."""
    if not whole or not path.is_dir() or group_format(path) is None:
        yield Place.of(path, is_folder=whole and not path.is_dir())
        return
    yield from _node(zarr.open(zarr_store(path, read_only=True), mode="r"))


def _node(node: zarr.Array[Any] | zarr.Group) -> Iterator[Place]:
    """Yield the place of an array; of a group itself, and of the arrays that are its image."""
    if isinstance(node, zarr.Array):
        yield from _stored(node.store, node.path)
        return
    yield from _stored(node.store, node.path, is_folder=False)
    attributes = node.attrs.asdict()
    ome = attributes.get("ome", attributes)
    for multiscale in _list_in(ome, "multiscales"):
        for dataset in _list_in(multiscale, "datasets"):
            if isinstance(dataset, dict) and isinstance(dataset.get("path"), str):
                yield from _stored(node.store, posixpath.join(node.path, dataset["path"]))


def _list_in(mapping: Any, name: str) -> list[Any]:
    value = mapping.get(name) if isinstance(mapping, dict) else None
    return value if isinstance(value, list) else []


def _stored(store: Any, path: str, *, is_folder: bool = True) -> Iterator[Place]:
    """Yield the place of a path in a Zarr store; a store in memory has none."""
    while isinstance(store, WrapperStore):
        store = store._store
    if isinstance(store, LocalStore):
        yield Place.of(os.path.join(store.root, path), is_folder=is_folder)
    elif isinstance(store, ZipStore):
        yield Place.of(os.path.abspath(store.path), is_folder=False)
    elif isinstance(store, FsspecStore):
        yield Place.on(store.fs, posixpath.join(store.path, path), is_folder=is_folder)
    else:
        yield from _walk(list(_attributes(store)), set())
