"""Places that may be written to: never what is read, never more than one array."""

from __future__ import annotations

from typing import Any

import zarr
from upath import UPath

from patchworks_core.errors import PlanError
from patchworks_core.files.storage import as_path, group_format, zarr_store


def check_target(source: Any, target: UPath, *, what: str, another: str) -> None:
    """Raise PlanError where writing would replace the image it is made from, or a whole group.

    Parameters
    ----------
    source : path, URL, Zarr array, or array
        What is read.
    target : UPath
        Array that is written.
    what : str
        Is written, for the message, such as 'an array of labels'.
    another : str
        What to name another of, for the message.
    """
    if group_format(target) and isinstance(zarr.open(zarr_store(target), mode="r"), zarr.Group):
        raise PlanError(
            f"{what} does not replace a whole Zarr group, and {target} is one; name another "
            f"{another}"
        )
    if isinstance(source, zarr.Array | zarr.Group):
        source = str(source.store_path)
    if not isinstance(source, str):
        return
    read, written = str(as_path(source)), str(target)
    if read == written or read.startswith(written + "/"):
        raise PlanError(
            f"{what} is never written over what it is made from, got {written} for both; name "
            f"another {another}"
        )
