"""The Zarr arrays of a stage: what each is like, and what is damaged of one.

Chunks have checksums, and metadata follow from the grid, so that damage to either is an error and
never other pixels. What cannot be seen here is a chunk that is lost, which reads as 0.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import zarr
from upath import UPath

from patchworks_core.errors import StageError
from patchworks_core.files.storage import open_array
from patchworks_core.files.tables import DamagedError
from patchworks_core.seams.strips import slot_shape, strip_axes
from patchworks_core.tiles.grid import TileGrid

PIXELS = "pixels"
"""Array of checksums of what each tile read; 0 where it read nothing. Version 0.1.0 had none."""

NOT_STAGED = -1
"""Count of a tile that has no commit record."""


@dataclass(frozen=True, slots=True)
class ArrayLayout:
    """What one array of a stage is like; it follows from the grid."""

    name: str
    shape: tuple[int, ...]
    chunks: tuple[int, ...]
    dtype: type
    fill_value: int = 0
    axes: str | None = None


def layouts_of(grid: TileGrid) -> Iterator[ArrayLayout]:
    """Yield the arrays of a stage."""
    blocks = [min(b, n) for b, n in zip(grid.block_shape, grid.grid_shape, strict=True)]
    cores = zip(grid.tile_shape, blocks, grid.shape, strict=True)
    chunks = tuple(min(t * b, n) for t, b, n in cores)
    yield ArrayLayout("labels", grid.shape, chunks, np.int32, axes=grid.axes)
    for axis in strip_axes(grid):
        slot = slot_shape(grid, axis)
        yield ArrayLayout(
            f"strips/{grid.axes[axis]}",
            (2, *(s * n for s, n in zip(slot, grid.grid_shape, strict=True))),
            (1, *(s * b for s, b in zip(slot, blocks, strict=True))),
            np.int32,
        )
    yield ArrayLayout("digests", grid.grid_shape, tuple(blocks), np.uint64)
    yield ArrayLayout(PIXELS, grid.grid_shape, tuple(blocks), np.uint64)
    yield ArrayLayout("counts", grid.grid_shape, tuple(blocks), np.int64, NOT_STAGED)


def open_checked(path: UPath, layout: ArrayLayout) -> zarr.Array[Any]:
    """Open an array of a stage; raise StageError where its metadata are not what was written."""
    wrong = "is lost"
    try:
        array = open_array(path / layout.name, mode="r+")
        wrong = _difference(array, layout)
    except FileNotFoundError:
        pass
    except (OSError, MemoryError):
        raise
    except Exception as error:  # damaged metadata may raise anything
        wrong = f"cannot be opened ({type(error).__name__}: {error})"
    if wrong:
        raise StageError(
            f"the stage at {path} is damaged: its array {layout.name!r} {wrong}; stage the image "
            "again: call with resume=False, or plan it again"
        )
    return array


def _difference(array: zarr.Array[Any], layout: ArrayLayout) -> str:
    """Say what of the metadata of an array is not what was written; nothing where all is."""
    metadata: dict[str, Any] = dict(array.metadata.to_dict())
    codecs = [dict(codec) for codec in metadata.get("codecs", ())]
    actual = {
        "shape": array.shape,
        "chunks": array.chunks,
        "dtype": array.dtype,
        "fill_value": int(array.fill_value),
        "chunk keys": metadata.get("chunk_key_encoding"),
        "codecs": [codec["name"] for codec in codecs],
        "byte order": codecs[0].get("configuration") if codecs else None,
    }
    expected = {
        "shape": layout.shape,
        "chunks": layout.chunks,
        "dtype": np.dtype(layout.dtype),
        "fill_value": layout.fill_value,
        "chunk keys": {"name": "default", "configuration": {"separator": "/"}},
        "codecs": ["bytes", "zstd"],
        "byte order": {"endian": "little"},
    }
    wrong = [name for name in expected if actual[name] != expected[name]]
    return f"has {wrong[0]} {actual[wrong[0]]!r}, not {expected[wrong[0]]!r}" if wrong else ""


def pixels_of(array: zarr.Array[Any], place: Any) -> np.ndarray[Any, Any]:
    """Read a part of an array; raise DamagedError where a chunk cannot be decoded."""
    try:
        return np.asarray(array[place])
    except (OSError, MemoryError):
        raise
    except Exception as error:  # a damaged chunk may raise anything
        raise DamagedError(f"{type(error).__name__}: {error}") from error
