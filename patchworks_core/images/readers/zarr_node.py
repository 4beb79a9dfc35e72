"""Zarr v2 and v3: finding the array or group, plain arrays, and what identifies their content.

A folder, a URL, or a local zip file that holds one (``.ozx``, ``.ome.zarr.zip``, ``.zarr.zip``).
"""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from dataclasses import replace
from functools import partial
from itertools import product
from typing import Any
from zipfile import BadZipFile, ZipFile

import numpy as np
import zarr
import zarr.errors
from upath import UPath
from zarr.storage import FsspecStore, LocalStore, ZipStore

from patchworks_core.errors import ImageError
from patchworks_core.files.locations import (
    FRESH,
    file_stamp,
    folder_stamp,
    is_remote,
    locate,
    remote_folder_stamp,
    split_scene,
    split_zip,
    without_reader,
)
from patchworks_core.images.readers.images_within import (
    check_one_image,
    images_within,
    plate_fields,
)
from patchworks_core.images.readers.ngff import (
    LABELS,
    MULTISCALES,
    PLATE,
    describes,
    ome_attributes,
)
from patchworks_core.images.readers.node_paths import (
    MAX_METADATA_BYTES,
    METADATA_FILES,
    check_metadata_files,
    member,
)
from patchworks_core.images.readers.ome_zarr import open_multiscale
from patchworks_core.images.readers.opened import (
    MAX_CHUNK_BYTES,
    Opened,
    axes_notes,
    check_level,
    check_size,
    choose_scene,
    file_axes,
)
from patchworks_core.images.readers.zarr_chunks import blocking, check_chunks, find_gaps
from patchworks_core.images.readers.zarr_decoding import bounded
from patchworks_core.tiles.grid import AXES

_LEGAL_NAMES = {**{axis: axis for axis in AXES}, "time": "t", "channel": "c"}
_MAX_LISTED = 10


def open_zarr(url: str, level: int, axes: str | None) -> Opened:
    """Open a Zarr array, or a group that is OME-Zarr, from a path, a URL, or within a zip file."""
    location, scene = split_scene(url)
    return open_node(_node_at(location), level, axes, repr(url), scene)


def zarr_images(url: str) -> list[str]:
    """Return the location of every image in a Zarr array or group."""
    location, scene = split_scene(url)
    node = _node_at(location)
    images = [""] if isinstance(node, zarr.Array) else images_within(node, repr(url))
    if images is None:
        assert isinstance(node, zarr.Group)
        raise _no_image(node, repr(url))
    return [url] if scene is not None else [location + image for image in images]


def fields_of_plate(location: str | os.PathLike[str] | UPath) -> list[str]:
    """Return the path of every field of an OME-Zarr plate.

    Parameters
    ----------
    location : str, os.PathLike or UPath
        Path or URL of the plate, 0.4 or 0.5; within a zip file too.

    Returns
    -------
    list of str
        Such as ``B/03/0``, in the order of the metadata; open one as ``<plate>/B/03/0``. A well
        that is not written yet has none.

    Raises
    ------
    ImageError
        If there is no plate, or its metadata are not valid.
    """
    url = locate(location)
    node = _node_at(url)
    if not isinstance(node, zarr.Group) or not describes(node, PLATE):
        raise ImageError(f"a plate is an OME-Zarr group with 'plate' metadata, got none at {url!r}")
    return plate_fields(node, repr(url))


def _node_at(url: str) -> zarr.Array[Any] | zarr.Group:
    """Open the Zarr node at a path or URL."""
    try:
        if is_remote(url):
            store = FsspecStore.from_url(url, storage_options=dict(FRESH), read_only=True)
            return _open(store)
        in_zip = split_zip(url)
        if in_zip is not None and os.path.isfile(in_zip[0]):
            return _node_in_zip(*in_zip)
        check_metadata_files(url, repr(url))
        return _open(url)
    except zarr.errors.NodeNotFoundError as error:
        raise ImageError(
            f"no Zarr array or group at {url!r}; check the path, and that zarr.json, .zarray or "
            ".zgroup is there"
        ) from error
    except ImportError as error:
        raise ImageError(without_reader(url, error)) from error
    except (ValueError, OSError, BadZipFile) as error:
        raise ImageError(f"cannot open Zarr at {url!r}: {error}") from error


def _open(store: Any, path: str | None = None) -> zarr.Array[Any] | zarr.Group:
    """Open a Zarr node by its own metadata: a consolidated copy may be of an older state."""
    return zarr.open(store, path=path, mode="r", use_consolidated=False)


def _node_in_zip(file: str, inner: str) -> zarr.Array[Any] | zarr.Group:
    """Open a Zarr node in a zip file, at its root or below the one folder that it holds."""
    store = ZipStore(file, mode="r")
    try:
        with ZipFile(file) as archive:
            names = archive.namelist()
            _check_no_bomb(archive, file)
        tops = {name.partition("/")[0] for name in names}
        top = "" if tops & set(METADATA_FILES) or len(tops) != 1 else tops.pop()
        return _open(store, path="/".join(part for part in (top, inner) if part))
    except BaseException:
        if store._is_open:
            store.close()
        raise


def _check_no_bomb(archive: ZipFile, file: str) -> None:
    """Raise ImageError where something in a zip file would fill the memory when it is taken out."""
    for entry in archive.infolist():
        is_metadata = os.path.basename(entry.filename) in METADATA_FILES
        most = MAX_METADATA_BYTES if is_metadata else MAX_CHUNK_BYTES
        if entry.file_size > most:
            raise ImageError(
                f"what is in a zip file is taken out whole and may have {most} bytes, got "
                f"{entry.file_size} of {entry.filename!r} in {file!r}; write it in smaller chunks"
            )


def open_node(
    node: zarr.Array[Any] | zarr.Group,
    level: int,
    axes: str | None,
    where: str,
    scene: str | None = None,
) -> Opened:
    """Open a Zarr array, or a group that is OME-Zarr, or holds such images: then the `scene`."""
    if isinstance(node, zarr.Array):
        if scene is not None:
            choose_scene(scene, [""], where)
        return _open_array(node, level, axes, where)
    if node.metadata.consolidated_metadata is not None:
        fresh = _open(node.store, path=node.path)
        assert isinstance(fresh, zarr.Group)
        node = fresh
    images = images_within(node, where)
    if images is None:
        raise _no_image(node, where)
    if describes(node, MULTISCALES):
        number = 0 if scene is None else choose_scene(scene, _multiscale_names(node), where)
        opened = open_multiscale(
            node, level, axes, where, lambda array: partial(zarr_stamp, array), number
        )
        check_chunks(opened.pixels, where)
        gaps = partial(find_gaps, opened.pixels, where)
        return replace(opened, pixels=bounded(opened.pixels), gaps=gaps)
    paths = [image[1:] for image in images]
    if scene is None:
        check_one_image(node, images, where)
    path = paths[0 if scene is None else choose_scene(scene, paths, where)]
    inner = member(node, path, where)
    if inner is None:
        raise ImageError(f"the metadata name an image {path!r} that is not in {where}")
    opened = open_node(inner, level, axes, where)
    return replace(opened, is_label_image=opened.is_label_image or describes(node, LABELS))


def _multiscale_names(group: zarr.Group) -> list[str]:
    """Return the name of every multiscale of a group, empty where it has none."""
    multiscales = ome_attributes(group)[1][MULTISCALES]
    if not isinstance(multiscales, list):
        return [""]
    return [str(m.get("name", "")) if isinstance(m, dict) else "" for m in multiscales]


def _no_image(group: zarr.Group, where: str) -> ImageError:
    """Say what is in a group whose metadata name no image."""
    members = sorted(group.members(max_depth=3))
    images = [
        name for name, m in members if isinstance(m, zarr.Group) and describes(m, MULTISCALES)
    ]
    if images:
        return ImageError(
            f"a Zarr group of several images is not one image, got {where} with images "
            f"{_listed(images)}; name one, such as path/{images[0]}"
        )
    arrays = [name for name, member in members if isinstance(member, zarr.Array)]
    if not arrays:
        return ImageError(f"a Zarr group needs an array to be an image, got none in {where}")
    return ImageError(
        f"a Zarr group without OME-Zarr metadata is not an image, got {where} with arrays "
        f"{_listed(arrays)}; name one, such as path/{arrays[0]}"
    )


def _listed(names: Sequence[str]) -> str:
    more = f" and {len(names) - _MAX_LISTED} more" if len(names) > _MAX_LISTED else ""
    return ", ".join(map(repr, names[:_MAX_LISTED])) + more


def _open_array(array: zarr.Array[Any], level: int, axes: str | None, where: str) -> Opened:
    """Open an array without OME-Zarr metadata of its own."""
    names = _dimension_names(array)
    letters = file_axes(names, array.shape, axes, where)
    check_level(level, [array.shape], where)
    check_size(array.shape, array.chunks, array.dtype.itemsize, where)
    check_chunks(array, where)
    return Opened(
        pixels=bounded(array),
        axes=letters,
        format=f"Zarr v{array.metadata.zarr_format}",
        stamp=partial(zarr_stamp, array),
        chunks=tuple(array.chunks),
        notes=axes_notes(names, letters, axes, where.strip("'")),
        gaps=partial(find_gaps, array, where),
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

    Files and remote objects by size and time of change or ETag, a zip file as one file; what has
    neither, such as an array in memory, by its pixels.
    """
    store = array.store
    if isinstance(store, LocalStore):
        yield from folder_stamp(os.path.join(store.root, array.path))
    elif isinstance(store, ZipStore):
        yield from file_stamp(os.path.abspath(store.path))
        yield array.path.encode()
    elif isinstance(store, FsspecStore):
        folder = "/".join(part for part in (store.path.rstrip("/"), array.path) if part)
        yield from remote_folder_stamp(blocking(store.fs), folder, METADATA_FILES)
    else:
        starts = (range(0, n, c) for n, c in zip(array.shape, array.chunks, strict=True))
        for corner in product(*starts):
            box = tuple(slice(a, a + c) for a, c in zip(corner, array.chunks, strict=True))
            yield np.ascontiguousarray(array[box]).tobytes()
