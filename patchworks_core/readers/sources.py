"""Which reader a source needs: by type for objects, by folder or extension for paths and URLs."""

from __future__ import annotations

import os
from typing import Any

import dask.array
import numpy as np
import zarr
from upath import UPath

from patchworks_core.errors import ImageError
from patchworks_core.readers import memory, raster, tiff, zarr_node
from patchworks_core.readers.locations import filesystem, is_remote, locate
from patchworks_core.readers.opened import Opened

SUPPORTED = "OME-Zarr, Zarr, TIFF (OME, ImageJ, SVS, BigTIFF), PNG, JPEG, BMP, .npy"
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
    if isinstance(source, (np.ndarray, dask.array.Array, zarr.Array, zarr.Group)):
        return None
    raise ImageError(
        "an image is opened from a path, a URL, a NumPy, Dask or Zarr array, or a Zarr group, "
        f"got {type(source).__name__}"
    )


def open_source(source: Any, level: int, axes: str | None) -> Opened:
    """Open any source with the reader it needs."""
    url = source_url(source)
    if url is not None:
        return _open_url(url, level, axes)
    if isinstance(source, np.ndarray):
        return memory.open_numpy(source, level, axes)
    if isinstance(source, dask.array.Array):
        return memory.open_dask(source, level, axes)
    return zarr_node.open_node(source, level, axes, f"Zarr at {str(source.store_path)!r}")


def _open_url(url: str, level: int, axes: str | None) -> Opened:
    """Open a path or URL: a folder is Zarr, a file is what its extension says."""
    extension = os.path.splitext(url)[1].lower()
    known = {**dict.fromkeys(tiff.EXTENSIONS, tiff.open_tiff)}
    known |= dict.fromkeys(raster.FORMATS, raster.open_raster)
    known |= {".npy": memory.open_npy}
    if is_remote(url):
        if extension not in known:
            return zarr_node.open_zarr(url, level, axes)
        fs, path = filesystem(url)
        if not fs.exists(path):
            raise ImageError(f"no image at {url!r}; check the URL")
    elif not os.path.exists(url):
        raise ImageError(f"no image at {url!r}; check the path")
    elif os.path.isdir(url):
        if not any(os.path.exists(os.path.join(url, n)) for n in zarr_node.METADATA_FILES):
            raise ImageError(
                f"a folder is an image only if it is Zarr, got {url!r} without zarr.json, .zarray "
                "or .zgroup; name a file or a Zarr folder"
            )
        return zarr_node.open_zarr(url, level, axes)
    if extension not in known:
        raise ImageError(
            f"cannot read {extension or 'a file without extension'!r} ({url!r}); "
            f"supported: {SUPPORTED}"
        )
    return known[extension](url, level, axes)
