"""A stage as version 0.1.0 laid it out: it is read, its blocks are taken back, none is added.

::

    labels/           local ids, int32, one chunk per tile block
    strips/<axis>/    both strips of every tile, low side then high side
    objects/<block>   object sums of a block's tiles, Parquet
    digests/          of each tile's labels
    pixels/           checksum of what each tile read; not in the oldest
    counts/           labels of each tile; -1 where the tile was not staged

Chunks have checksums, and metadata follow from the grid, so that damage to either is an error and
never other pixels. A chunk that is lost reads as 0, which the digests tell.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt
import zarr
from upath import UPath

from patchworks_core.errors import StageError
from patchworks_core.files.storage import open_array
from patchworks_core.files.tables import DamagedError, table_of
from patchworks_core.seams.strips import HIGH, LOW, Side, slot_shape, strip_axes
from patchworks_core.stage.block_files import NOT_STAGED
from patchworks_core.stage.object_sums import ObjectSums
from patchworks_core.tiles.grid import TileBlock, TileGrid

if TYPE_CHECKING:
    import pyarrow as pa

Array = npt.NDArray[Any]

PIXELS = "pixels"
"""Array of checksums of what each tile read; 0 where it read nothing."""

_STORED_STRIPS = b"strips"
"""Key in the metadata of object sums: the strips of the block that are not empty. Strips that are
lost read as empty ones; the oldest stages did not record this."""

PARTS = frozenset({"labels", "strips", "objects", "digests", PIXELS, "counts"})
"""Names in the folder of such a stage."""


@dataclass(frozen=True, slots=True)
class ArrayLayout:
    """What one array of a stage is like; it follows from the grid."""

    name: str
    shape: tuple[int, ...]
    chunks: tuple[int, ...]
    dtype: type
    fill_value: int = 0


def layouts_of(grid: TileGrid) -> Iterator[ArrayLayout]:
    """Yield the arrays of a stage."""
    blocks = [min(b, n) for b, n in zip(grid.block_shape, grid.grid_shape, strict=True)]
    cores = zip(grid.tile_shape, blocks, grid.shape, strict=True)
    chunks = tuple(min(t * b, n) for t, b, n in cores)
    yield ArrayLayout("labels", grid.shape, chunks, np.int32)
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


class FirstLayout:
    """The arrays and tables of such a stage."""

    def __init__(self, path: UPath, grid: TileGrid) -> None:
        self.path, self.grid = path, grid
        self._arrays = {
            layout.name: open_checked(path, layout)
            for layout in layouts_of(grid)
            if layout.name != PIXELS or (path / PIXELS).exists()
        }

    @classmethod
    def at(cls, path: UPath, grid: TileGrid) -> FirstLayout | None:
        """Return what a folder holds in this layout; None where it holds nothing of it.

        Raises
        ------
        StageError
            If it is damaged.
        """
        return cls(path, grid) if any((path / name).exists() for name in PARTS) else None

    def counts(self) -> Array:
        """Return the labels of each tile; a count that cannot be read is none."""
        counts = np.full(self.grid.grid_shape, NOT_STAGED, dtype=np.int64)
        for index in np.ndindex(self.grid.blocks_shape):
            counts[self.grid.tile_slices(index)] = self.counts_of(index)
        return counts

    def counts_of(self, index: tuple[int, ...]) -> Array:
        """Return the labels of each tile of a block."""
        place = self.grid.tile_slices(index)
        try:
            return pixels_of(self._arrays["counts"], place)
        except DamagedError:
            return np.full([s.stop - s.start for s in place], NOT_STAGED, dtype=np.int64)

    def digests(self, index: tuple[int, ...]) -> Array:
        """Return the digest of the labels of each tile of a block."""
        return pixels_of(self._arrays["digests"], self.grid.tile_slices(index))

    def pixel_checksums(self, index: tuple[int, ...]) -> Array:
        """Return the checksum of what each tile of a block read, 0 where nobody knows."""
        place = self.grid.tile_slices(index)
        if PIXELS not in self._arrays:
            return np.zeros([s.stop - s.start for s in place], dtype=np.uint64)
        return pixels_of(self._arrays[PIXELS], place)

    def labels(self, block: TileBlock) -> Array:
        """Return the labels of a block's core; raise DamagedError where they are others."""
        labels = pixels_of(self._arrays["labels"], block.core.slices)
        digests = self.digests(block.index).ravel()
        for tile, digest in zip(block.tiles, digests, strict=True):
            core = labels[tile.core.slices_from(block.core.start)]
            if digest_of_labels(core) != digest:
                raise DamagedError(f"those of tile {tile.index} are not those that were staged")
        return labels

    def strips(self, block: TileBlock) -> dict[tuple[int, Side], Array]:
        """Return the strips of a block, those of its tiles side by side."""
        stored = (self._table(block).schema.metadata or {}).get(_STORED_STRIPS, b"").decode()
        strips: dict[tuple[int, Side], Array] = {}
        for axis in strip_axes(self.grid):
            slot = slot_shape(self.grid, axis)
            tiles = zip(self.grid.tile_slices(block.index), slot, strict=True)
            where = tuple(slice(tile.start * s, tile.stop * s) for tile, s in tiles)
            for side in (LOW, HIGH):
                array = self._arrays[f"strips/{self.grid.axes[axis]}"]
                strip = strips[axis, side] = pixels_of(array, (side, *where))
                if f"{axis}/{side}" in stored.split() and not strip.any():
                    raise DamagedError(f"those across axis {self.grid.axes[axis]!r} are lost")
        return strips

    def objects(self, block: TileBlock) -> ObjectSums:
        """Return the object sums of a block, one row per label, tile after tile."""
        try:
            sums = ObjectSums.from_table(self._table(block))
        except StageError as error:
            raise DamagedError(str(error)) from error
        core, n_labels = block.core, int(self.counts_of(block.index).sum())
        is_inside = (sums.start >= core.start).all() and (sums.stop <= core.stop).all()
        if len(sums) != n_labels or not is_inside:
            raise DamagedError("they are those of another tile block")
        return sums

    def forget(self, block: TileBlock) -> None:
        """Take back the count of a block."""
        self._arrays["counts"][self.grid.tile_slices(block.index)] = NOT_STAGED

    def _table(self, block: TileBlock) -> pa.Table:
        try:
            return table_of((self.path / "objects" / f"{block.key}.parquet").read_bytes())
        except FileNotFoundError as error:
            raise DamagedError(f"{error.filename!r} is lost") from error


def digest_of_labels(labels: Array) -> np.uint64:
    """Digest the labels of one tile."""
    content = hashlib.blake2b(np.ascontiguousarray(labels).data, digest_size=8).digest()
    return np.uint64(int.from_bytes(content, "little"))
