"""Which reader a source needs: by type for objects, by folder or extension for paths and URLs."""

from __future__ import annotations

import os
from collections.abc import Callable
from importlib.util import find_spec
from typing import Any

import numpy as np
import zarr
from upath import UPath

from patchworks_core.errors import ImageError
from patchworks_core.files.locations import (
    check_regular_file,
    filesystem,
    is_remote,
    locate,
    split_scene,
    split_zip,
)
from patchworks_core.files.replacing import put_back
from patchworks_core.files.storage import as_path
from patchworks_core.images.readers import bioio, memory, raster, tiff, zarr_node
from patchworks_core.images.readers.damage import damage_refused
from patchworks_core.images.readers.node_paths import METADATA_FILES
from patchworks_core.images.readers.opened import Opened, choose_scene

SUPPORTED = (
    "OME-Zarr, Zarr, TIFF (OME, ImageJ, SVS, BigTIFF), PNG, JPEG, BMP, .npy, Zarr in a zip file "
    "(.ome.zarr.zip, .ozx); with the extra bioio LIF, ND2 and others"
)
"""What can be opened by path, for people."""


def source_url(source: Any) -> str | None:
    """Return the absolute path or URL of a source, None for an object in memory.

    Raises
    ------
    ImageError
        If the source is nothing that can be opened.
    """
    if isinstance(source, (str, os.PathLike, UPath)):
        return locate(source)
    arrays = (np.ndarray, zarr.Array, zarr.Group)
    in_memory = (*arrays, memory.MappedArray, memory.OverlappingBlocks)
    if isinstance(source, in_memory) or memory.is_dask_array(source):
        return None
    raise ImageError(
        "an image is opened from a path, a URL, a NumPy, Dask or Zarr array, or a Zarr group, "
        f"got {type(source).__name__}"
    )


def list_images(location: str | os.PathLike[str] | UPath) -> list[str]:
    """Return the path or URL of every image at a location, each of which `open_image` opens.

    Parameters
    ----------
    location : str, os.PathLike or UPath
        Path or URL of an image, or of what holds several: an OME-Zarr plate or well, what
        bioformats2raw wrote, a group of labels, or of several multiscales; a TIFF or a file of a
        microscope with several images.

    Returns
    -------
    list of str
        Such as ``/data/plate.ome.zarr/B/03/0`` or ``/data/a.tif#1``, in the order of the metadata.
        What is not written yet is left out. One image is listed as itself, and so is a
        well with metadata that are not valid: opening it says why.

    Raises
    ------
    ImageError
        If nothing is there, or the metadata name no image, or are not valid.
    """
    url = locate(location)
    with damage_refused(repr(url)):
        return _list_images(url)


def _list_images(url: str) -> list[str]:
    file, scene = _file_of(url)
    extension = os.path.splitext(file)[1].lower()
    if not is_remote(url) or extension in _files():
        _check_there(url, file)
    if scene is None and extension in tiff.EXTENSIONS and not os.path.isdir(file):
        return tiff.tiff_images(url)
    if is_remote(url):
        is_zarr = extension not in _files() and extension not in bioio.PLUGINS
    else:
        is_zarr = os.path.isdir(file) or split_zip(file) is not None
    if is_zarr:
        return zarr_node.zarr_images(url)
    return bioio.bioio_images(url) if extension in bioio.PLUGINS and scene is None else [url]


def open_source(source: Any, level: int, axes: str | None) -> Opened:
    """Open any source with the reader it needs.

    Raises
    ------
    ImageError
        If it is not there, is of no kind that is read, or is damaged.
    """
    url = source_url(source)
    with damage_refused(repr(url) if url else f"an image in memory of {type(source).__name__}"):
        return _open_source(source, level, axes)


def _open_source(source: Any, level: int, axes: str | None) -> Opened:
    url = source_url(source)
    if url is not None:
        return _open_url(url, level, axes)
    if isinstance(source, np.ndarray):
        return memory.open_numpy(source, level, axes)
    if memory.is_dask_array(source):
        return memory.open_dask(source, level, axes)
    if isinstance(source, memory.OverlappingBlocks):
        return memory.open_overlapping(source, level, axes)
    if isinstance(source, memory.MappedArray):
        return memory.open_mapped(source, level, axes)
    return zarr_node.open_node(source, level, axes, f"Zarr at {str(source.store_path)!r}")


def _open_url(url: str, level: int, axes: str | None) -> Opened:
    """Open a path or URL: a folder is Zarr, a file is what its extension says."""
    file, scene = _file_of(url)
    extension = os.path.splitext(file)[1].lower()
    readers = _files()
    if is_remote(url) and extension not in readers:
        return _open_remote_folder(url, level, axes)
    _check_there(url, file)
    if not is_remote(url) and os.path.isdir(file):
        if not any(os.path.exists(os.path.join(file, n)) for n in METADATA_FILES):
            raise ImageError(
                f"a folder is an image only if it is Zarr, got {url!r} without zarr.json, .zarray "
                "or .zgroup; name a file or a Zarr folder"
            )
        return zarr_node.open_zarr(url, level, axes)
    if not is_remote(url):
        check_regular_file(file, repr(url))
    if split_zip(file) and not is_remote(url):
        return zarr_node.open_zarr(url, level, axes)
    if extension in readers:
        if scene is not None and extension not in tiff.EXTENSIONS:
            choose_scene(scene, [""], repr(url))
            url = file
        return readers[extension](url, level, axes)
    if extension in bioio.PLUGINS or find_spec("bioio"):
        return bioio.open_bioio(url, level, axes)
    raise ImageError(
        f"cannot read {extension or 'a file without extension'!r} ({url!r}); supported: {SUPPORTED}"
    )


def _check_there(url: str, file: str) -> None:
    """Raise ImageError where the file or folder that a path or URL leads to is not there."""
    if is_remote(url):
        fs, path = filesystem(file)
        if not fs.exists(path):
            raise ImageError(f"no image at {url!r}; check the URL")
    elif not os.path.exists(file) and not put_back(as_path(file)):
        raise ImageError(f"no image at {url!r}; check the path")


def _files() -> dict[str, Callable[[str, int, str | None], Opened]]:
    """Return the reader of every extension that is read without bioio."""
    return {
        **dict.fromkeys(tiff.EXTENSIONS, tiff.open_tiff),
        **dict.fromkeys(raster.FORMATS, raster.open_raster),
        ".npy": memory.open_npy,
    }


def _file_of(url: str) -> tuple[str, str | None]:
    """Return the file or folder that a path leads to, such as a zip file, and the scene in it."""
    location, scene = split_scene(url)
    zipped = None if is_remote(url) else split_zip(location)
    return (zipped[0] if zipped and os.path.isfile(zipped[0]) else location), scene


def _open_remote_folder(url: str, level: int, axes: str | None) -> Opened:
    """Open what is no file of a known extension: Zarr, or nothing that can be read from afar."""
    extension = os.path.splitext(split_scene(url)[0])[1].lower()
    if split_zip(url) or extension in bioio.PLUGINS:
        raise ImageError(
            f"{extension!r} files are read from a local disk, got {url!r}; copy it here, or "
            "convert it to OME-Zarr there"
        )
    return zarr_node.open_zarr(url, level, axes)
