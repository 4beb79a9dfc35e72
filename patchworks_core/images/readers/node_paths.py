"""What the metadata of a Zarr group may lead to: files within it, and nothing that is no file."""

from __future__ import annotations

import os
from typing import Any

import zarr
from zarr.storage import LocalStore

from patchworks_core.errors import ImageError
from patchworks_core.files.locations import check_regular_file, is_within

METADATA_FILES = ("zarr.json", ".zarray", ".zgroup", ".zattrs")
"""Names that make a folder a Zarr node."""

MAX_METADATA_BYTES = 2**28
"""Of a file of metadata, which is read whole; of the largest plate they are a tenth."""


def path_within(path: object, where: str) -> str:
    """Return a path of the metadata, which must not lead out of its group.

    Raises
    ------
    ImageError
        If it is no relative path, or has a part that is empty, ``.`` or ``..``.
    """
    if not isinstance(path, str) or any(part in ("", ".", "..") for part in path.split("/")):
        raise ImageError(
            f"a path in the metadata must lie within its group, got {path!r} in {where}; correct it"
        )
    return path


def member(group: zarr.Group, path: str, where: str) -> zarr.Array[Any] | zarr.Group | None:
    """Return what is at a path of the metadata, None where nothing is.

    Raises
    ------
    ImageError
        If the path leads out of the group, or what is there cannot be read.
    """
    path_within(path, where)
    if isinstance(group.store, LocalStore):
        check_metadata_files(os.path.join(group.store.root, group.path, path), where)
    try:
        node: zarr.Array[Any] | zarr.Group | None = group.get(path)
    except (ValueError, TypeError, LookupError, OSError) as error:
        raise ImageError(
            f"the metadata of {path!r} in {where} cannot be read, half-written or damaged: "
            f"{type(error).__name__}: {error}; write them again"
        ) from error
    if node is not None:
        check_within(group, node, where)
    return node


def check_metadata_files(folder: str, where: str) -> None:
    """Raise ImageError where metadata in a local folder are no files, or too long to be read."""
    for name in METADATA_FILES:
        file = os.path.join(folder, name)
        check_regular_file(file, where)
        if os.path.exists(file) and os.path.getsize(file) > MAX_METADATA_BYTES:
            raise ImageError(
                f"metadata are read whole and may have {MAX_METADATA_BYTES} bytes, got "
                f"{os.path.getsize(file)} of {file!r} in {where}; write them again"
            )


def check_within(group: zarr.Group, node: zarr.Array[Any] | zarr.Group, where: str) -> None:
    """Raise ImageError where a symbolic link leads from a group on this disk out of it."""
    if not isinstance(group.store, LocalStore):
        return
    folder, path = (os.path.join(group.store.root, n.path) for n in (group, node))
    if not is_within(path, [folder]):
        raise ImageError(
            f"an image lies within its folder, got a link from {path!r} to "
            f"{os.path.realpath(path)!r} in {where}; copy what is there into the folder"
        )
