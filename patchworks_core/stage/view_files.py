"""Files of third views, beside those of the tile blocks.

``blocks/<generation>/views/<face>.view``, each whole or not there:

===========  ==================================================================================
``pixels``   local ids over all that the view read; of its core 1..count
``rows/*``   columns of its rows with the tiles under it (`patchworks_core.seams.third_views`)
===========  ==================================================================================

The header has a digest of the plan and of all that was staged of the tiles under the view. Where
one of these was staged otherwise since, the view is *stale*: no evidence until it is staged again.
Versions that know of no third views leave the folder alone.
"""

from __future__ import annotations

import hashlib
import logging
from collections.abc import Iterator
from contextlib import suppress

import numpy as np
import numpy.typing as npt
from upath import UPath

from patchworks_core.errors import StageError
from patchworks_core.files.packed import PackedFile, open_packed, pack
from patchworks_core.files.storage import write_bytes
from patchworks_core.files.tables import DamagedError
from patchworks_core.seams.edge_table import EdgeTable
from patchworks_core.seams.third_views import FaceOfTiles, ThirdView
from patchworks_core.tiles.grid import TileGrid

log = logging.getLogger("patchworks_core")

VIEWS = "views"
"""Folder of the files, in that of the tile blocks."""

_SUFFIX = ".view"

_COLUMNS = ("tile_a", "id_a", "id_b", "intersection", "area_a", "area_b", "contact", "order")

_STORED = {name: f"rows/{name}" for name in _COLUMNS}
"""Under what name each is stored."""


def write_view(
    blocks: UPath,
    grid: TileGrid,
    face: FaceOfTiles,
    pixels: npt.NDArray[np.int32],
    count: int,
    rows: EdgeTable,
    *,
    made_by: str,
) -> None:
    """Write the file of a third view.

    Parameters
    ----------
    blocks : UPath
        Folder of the tile blocks.
    grid : TileGrid
    face : FaceOfTiles
    pixels : ndarray of int32
        Its local ids, over what it read.
    count : int
        Labels in its core.
    rows : EdgeTable
    made_by : str
        Digest of the plan, and of the tiles under the view (`TileMarks`).
    """
    key = face.key(grid)
    header = {
        "face": [face.low, face.high, face.axis],
        "view": key,
        "made_by": made_by,
        "count": count,
    }
    columns = {stored: getattr(rows, name) for name, stored in _STORED.items()}
    write_bytes(_path(blocks, key), pack(header, {"pixels": pixels, **columns}))


def read_pixels(blocks: UPath, key: str) -> npt.NDArray[np.int32]:
    """Return the local ids of a third view.

    Raises
    ------
    StageError
        If they are not what was written; the file is removed then, if it can be.
    """
    path = _path(blocks, key)
    try:
        with open_packed(path) as packed:
            return packed.load(["pixels"])["pixels"]
    except (DamagedError, FileNotFoundError) as error:
        with suppress(OSError):
            path.unlink(missing_ok=True)
        raise StageError(
            f"the third view of face {key!r} at {path} is damaged ({error}) and is left out from "
            "now on: merge again, or mend again to stage it anew"
        ) from error


def keys_of_views(blocks: UPath) -> list[str]:
    """Return the names of the third views that have a file, in order."""
    folder = blocks / VIEWS
    try:
        names = [path.name for path in folder.iterdir()]
    except (FileNotFoundError, NotADirectoryError):
        return []
    return sorted(name.removesuffix(_SUFFIX) for name in names if name.endswith(_SUFFIX))


def content_of_views(blocks: UPath) -> bytes:
    """Return a digest of the third views that have a file; nothing where none has.

    Of one that `read_views` leaves out as damaged it has the name alone: what is made with it and
    what is made without it are not made of the same.
    """
    keys = keys_of_views(blocks)
    content = hashlib.blake2b(digest_size=16)
    for key in keys:
        content.update(key.encode())
        with suppress(DamagedError, FileNotFoundError), open_packed(_path(blocks, key)) as packed:
            packed.load(_STORED.values())
            content.update(packed.header["made_by"].encode())
            content.update(_digest(packed))
    return content.digest() if keys else b""


def read_views(blocks: UPath) -> Iterator[tuple[ThirdView, str]]:
    """Yield each third view with what it was made by; a damaged one is logged, and none."""
    for key in keys_of_views(blocks):
        try:
            with open_packed(_path(blocks, key)) as packed:
                if packed.header["view"] != key:
                    raise DamagedError(f"it is that of {packed.header['view']!r}")
                yield _view_in(packed), packed.header["made_by"]
        except FileNotFoundError:  # removed meanwhile
            continue
        except DamagedError as error:
            log.warning(
                "the third view of face %s in %s is damaged (%s) and is left out; mend again to "
                "stage it anew",
                key,
                blocks / VIEWS,
                error,
            )


def _view_in(packed: PackedFile) -> ThirdView:
    arrays = packed.load(_STORED.values())
    zeros = np.zeros(len(arrays["rows/id_a"]), dtype=np.int64)
    others = dict.fromkeys(("tile_b", "connectivity", "axis", "plane_a", "plane_b"), zeros)
    rows = EdgeTable(**others, **{name: arrays[stored] for name, stored in _STORED.items()})
    face = FaceOfTiles(*packed.header["face"])
    return ThirdView(face, packed.header["count"], rows, int.from_bytes(_digest(packed), "little"))


def _digest(packed: PackedFile) -> bytes:
    digests = "".join(packed.arrays[name].digest for name in sorted(packed.arrays))
    return hashlib.blake2b(digests.encode(), digest_size=8).digest()


def _path(blocks: UPath, key: str) -> UPath:
    return blocks / VIEWS / f"{key}{_SUFFIX}"
