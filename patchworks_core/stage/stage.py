"""The stage: staged labels, strips, object sums and counts of every tile block, on disk.

Layout under one folder::

    labels/           local ids, int32, one chunk per tile block
    strips/<axis>/    both strips of every tile, low side then high side
    objects/<block>   object sums of a block's tiles, Parquet
    digests/          of each tile's labels
    pixels/           checksum of what each tile read
    counts/           labels of each tile; -1 where the tile was not staged

The count is written last: it is the commit record of the tile. A tile without it was not staged,
whatever else is on disk.

What is damaged is never merged: chunks have checksums, labels are held against their digest, and
the tables of object sums against theirs. The count of a damaged tile is taken back, so that the
tile is staged again by whoever stages what is missing.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import numpy as np
import pyarrow as pa
from upath import UPath

from patchworks_core.errors import PlanError, StageError
from patchworks_core.files.storage import (
    Location,
    as_path,
    create_array,
    remove,
    write_bytes,
    write_text,
)
from patchworks_core.files.tables import DamagedError, bytes_of_table, table_of
from patchworks_core.seams.strips import HIGH, LOW, Side, cut_strip, slot_shape, strip_axes
from patchworks_core.stage.arrays import NOT_STAGED, PIXELS, layouts_of, open_checked, pixels_of
from patchworks_core.stage.object_sums import ObjectSums
from patchworks_core.stage.plan import Plan
from patchworks_core.stage.tile_labels import NumberedLabels
from patchworks_core.tiles.grid import Tile, TileBlock, TileGrid

_STORED_STRIPS = b"strips"
"""Key in the metadata of object sums: the strips of the block that are not empty. Strips that are
lost read as empty ones; version 0.1.0 did not record this."""

PARTS = frozenset(
    {"labels", "strips", "objects", "digests", PIXELS, "counts", "plan.json", "image.npy"}
)
"""What a stage consists of; a folder that holds anything else is not replaced by one."""


@dataclass(frozen=True, slots=True)
class StagedTile:
    """What is kept of one tile."""

    tile: Tile
    labels: NumberedLabels
    objects: ObjectSums

    pixels: int = 0
    """Checksum of the pixels that it read; 0 where it read none."""


class Stage:
    """The staged labels of one plan.

    Make one with `Stage.create` or `Stage.open`. It may be used from several threads, and pickles
    as its location.
    """

    def __init__(self, location: Location, plan: Plan) -> None:
        self.path = as_path(location)
        self.plan = plan
        self.grid: TileGrid = plan.grid
        arrays = {
            layout.name: open_checked(self.path, layout)
            for layout in layouts_of(self.grid)
            if layout.name != PIXELS or (self.path / PIXELS).exists()
        }
        self._pixels = arrays.get(PIXELS)
        self._labels, self._counts = arrays["labels"], arrays["counts"]
        self._digests = arrays["digests"]
        self._strips = {
            axis: arrays[f"strips/{self.grid.axes[axis]}"] for axis in strip_axes(self.grid)
        }

    def __reduce__(self) -> tuple[Any, ...]:
        return _reopen, (self.path, self.plan.to_json())

    @classmethod
    def create(cls, location: Location, plan: Plan) -> Stage:
        """Create an empty stage for `plan`, replacing the stage that is there.

        Raises
        ------
        StageError
            If the folder holds what is no part of a stage.
        """
        path, grid = as_path(location), plan.grid
        _check_stage_only(path)
        # The record of the plan goes first and comes last: what lies between is no stage.
        for name in ("plan.json", "objects", "strips"):
            remove(path / name)
        for layout in layouts_of(grid):
            create_array(
                path / layout.name,
                shape=layout.shape,
                chunks=layout.chunks,
                dtype=layout.dtype,
                fill_value=layout.fill_value,
                axes=layout.axes,
                checksum=True,
            )
        write_text(path / "plan.json", plan.to_json())
        return cls(path, plan)

    @classmethod
    def open(cls, location: Location, plan: Plan) -> Stage:
        """Open the stage of `plan`.

        Raises
        ------
        StageError
            If there is none, or it is the stage of another plan.
        """
        path = as_path(location)
        record = path / "plan.json"
        if not record.exists():
            raise StageError(f"no stage at {path}; stage the tiles of the image first")
        staged = Plan.read(record)
        if staged.fingerprint != plan.fingerprint:
            raise StageError(
                f"the stage at {path} was made by another plan ({plan.difference(staged)}); its "
                "tiles cannot be mixed with this plan's: stage again, or restore the old plan"
            )
        return cls(path, plan)

    @classmethod
    def open_or_create(cls, location: Location, plan: Plan) -> Stage:
        """Open the stage of `plan`, or replace what is there by an empty one."""
        try:
            return cls.open(location, plan)
        # None, of another plan, or damaged: nobody can say what its tiles are of.
        except (PlanError, StageError):
            return cls.create(location, plan)

    def forget(self, block: TileBlock) -> None:
        """Take back the commit record of a block, before it is staged again."""
        self._counts[self._tile_slices(block)] = NOT_STAGED

    def write(self, block: TileBlock, tiles: Sequence[StagedTile]) -> None:
        """Write the tiles of a block, their counts last.

        Parameters
        ----------
        block : TileBlock
        tiles : sequence of StagedTile
            One per tile of the block, in its order.
        """
        labels = np.zeros(block.core.shape, dtype=np.int32)
        counts = np.zeros(self._tile_box(block), dtype=np.int64)
        digests = np.zeros(counts.shape, dtype=np.uint64)
        pixels = np.zeros(counts.shape, dtype=np.uint64)
        for staged in tiles:
            tile = staged.tile
            core = staged.labels.pixels[tile.core.relative_to(tile.read.start).slices]
            labels[tile.core.relative_to(block.core.start).slices] = core
            place = self._place(block, tile)
            counts[place] = staged.labels.n_core
            digests[place] = digest_of_labels(core)
            pixels[place] = staged.pixels
        self._labels[block.core.slices] = labels
        stored = [name for axis in self._strips for name in self._write_strips(block, tiles, axis)]
        sums = pa.concat_tables([staged.objects.to_table() for staged in tiles])
        self._write_objects(block, sums, stored)
        self._digests[self._tile_slices(block)] = digests
        if self._pixels is not None:
            self._pixels[self._tile_slices(block)] = pixels
        self._counts[self._tile_slices(block)] = counts

    def _write_strips(
        self, block: TileBlock, tiles: Sequence[StagedTile], axis: int
    ) -> Iterator[str]:
        """Write the strips of one axis; yield the names of those that are not empty."""
        slot = slot_shape(self.grid, axis)
        box = [s * n for s, n in zip(slot, self._tile_box(block), strict=True)]
        for side in (LOW, HIGH):
            strips = np.zeros(box, dtype=np.int32)
            for staged in tiles:
                place = self._place(block, staged.tile)
                target = tuple(slice(i * s, (i + 1) * s) for i, s in zip(place, slot, strict=True))
                strips[target] = cut_strip(self.grid, staged.tile, staged.labels.pixels, axis, side)
            first = block.tiles[0].index
            where = tuple(slice(i * s, i * s + n) for i, s, n in zip(first, slot, box, strict=True))
            self._strips[axis][(side, *where)] = strips
            if strips.any():
                yield _strips_name(axis, side)

    def _write_objects(self, block: TileBlock, sums: pa.Table, stored: Sequence[str]) -> None:
        """Write the object sums of a block, and which of its strips are not empty."""
        record = {**(sums.schema.metadata or {}), _STORED_STRIPS: " ".join(stored).encode()}
        content = bytes_of_table(sums.replace_schema_metadata(record))
        write_bytes(self._objects_path(block), content)

    def counts(self) -> np.ndarray[Any, Any]:
        """Return the labels of each tile, int64, shape ``grid_shape``; -1 is not staged.

        A count that cannot be read is none: its tile was not staged.
        """
        try:
            return pixels_of(self._counts, ...)
        except DamagedError:
            counts = np.full(self.grid.grid_shape, NOT_STAGED, dtype=np.int64)
            for block in self.grid.blocks():
                with suppress(DamagedError):
                    place = self._tile_slices(block)
                    counts[place] = pixels_of(self._counts, place)
            return counts

    def digests(self) -> np.ndarray[Any, Any]:
        """Return the digest of the labels of each tile, uint64, shape ``grid_shape``.

        Raises
        ------
        StageError
            If one is damaged.
        """
        try:
            return pixels_of(self._digests, ...)
        except DamagedError:
            for block in self.grid.blocks():
                with self._reading("the digests", block):
                    pixels_of(self._digests, self._tile_slices(block))
            raise

    def pixel_checksums(self, block: TileBlock | None = None) -> np.ndarray[Any, Any]:
        """Return the checksum of what each tile read, 0 where nobody knows.

        Returns
        -------
        ndarray of uint64
            Shape ``grid_shape``; of a block one per tile, in their order.
        """
        if self._pixels is None:
            checksums = np.zeros(self.grid.grid_shape, dtype=np.uint64)
            return checksums if block is None else checksums[self._tile_slices(block)].ravel()
        try:
            if block is None:
                return pixels_of(self._pixels, ...)
            return pixels_of(self._pixels, self._tile_slices(block)).ravel()
        except DamagedError as error:
            raise StageError(
                f"the checksums of pixels at {self.path} are damaged ({error}); stage the image "
                "again: call with resume=False, or plan it again"
            ) from error

    def content(self) -> str:
        """Return a digest of all staged labels; it changes when any tile is staged otherwise."""
        content = hashlib.blake2b(self.plan.fingerprint.encode(), digest_size=16)
        content.update(np.ascontiguousarray(self.counts()).data)
        content.update(np.ascontiguousarray(self.digests()).data)
        return content.hexdigest()

    def settled_counts(self, *, allow_missing: bool = False) -> np.ndarray[Any, Any]:
        """Return the labels of each tile in row-major order, int64, shape (n_tiles,).

        Parameters
        ----------
        allow_missing : bool
            Take a tile that is not staged for one without labels.

        Raises
        ------
        StageError
            If a tile is not staged and that is not allowed, naming the first ones.
        """
        missing = [] if allow_missing else self.missing_blocks()
        if missing:
            shown = ", ".join(missing[:5]) + (", ..." if len(missing) > 5 else "")
            raise StageError(
                f"{len(missing)} of {self.grid.n_blocks} tile blocks are not staged at "
                f"{self.path}: {shown}; stage them before merging"
            )
        return np.asarray(np.maximum(self.counts().ravel(), 0))

    def missing_blocks(self) -> list[str]:
        """Return the keys of the blocks without a commit record, in row-major order."""
        missing = np.argwhere(self.counts() == NOT_STAGED) // np.array(self.grid.block_shape)
        return [self.grid.block_key(index) for index in np.unique(missing, axis=0)]

    def labels(self, block: TileBlock) -> np.ndarray[Any, Any]:
        """Return the staged labels of a block's core, int32; of one that is not staged, anything.

        Raises
        ------
        StageError
            If they are damaged.
        """
        with self._reading("the labels", block):
            try:
                return self._checked_labels(block)
            except DamagedError:
                counts = pixels_of(self._counts, self._tile_slices(block))
                if (counts != NOT_STAGED).any():
                    raise
        return np.zeros(block.core.shape, dtype=np.int32)

    def _checked_labels(self, block: TileBlock) -> np.ndarray[Any, Any]:
        """Return the labels of a block; raise DamagedError where their digests are of others."""
        labels = pixels_of(self._labels, block.core.slices)
        digests = pixels_of(self._digests, self._tile_slices(block))
        for tile in block.tiles:
            core = labels[tile.core.relative_to(block.core.start).slices]
            if digest_of_labels(core) != digests[self._place(block, tile)]:
                raise DamagedError(f"those of tile {tile.index} are not those that were staged")
        return labels

    def strip(self, index: tuple[int, ...], axis: int, side: Side) -> np.ndarray[Any, Any]:
        """Return one strip of the tile at `index`, int32, shape `slot_shape`.

        Raises
        ------
        StageError
            If it is damaged.
        """
        slot = slot_shape(self.grid, axis)
        where = tuple(slice(i * s, (i + 1) * s) for i, s in zip(index, slot, strict=True))
        numbers = zip(index, self.grid.block_shape, strict=True)
        block = self.grid.block(tuple(i // n for i, n in numbers))
        with self._reading("the strips", block):
            strip = pixels_of(self._strips[axis], (side, *where))
            if not strip.any():
                self._check_not_lost(block, axis, side)
        return strip

    def _check_not_lost(self, block: TileBlock, axis: int, side: Side) -> None:
        """Raise DamagedError where the strips of a block are gone, which read as empty ones."""
        record = self._objects_table(block).schema.metadata or {}
        stored = record.get(_STORED_STRIPS, b"").decode().split()
        if _strips_name(axis, side) not in stored:
            return
        slot = slot_shape(self.grid, axis)
        tiles = zip(self._tile_slices(block), slot, strict=True)
        where = tuple(slice(tile.start * s, tile.stop * s) for tile, s in tiles)
        if not pixels_of(self._strips[axis], (side, *where)).any():
            raise DamagedError(f"those across axis {self.grid.axes[axis]!r} are lost")

    def objects(self, block: TileBlock) -> ObjectSums:
        """Return the object sums of a block, one row per label, tile after tile.

        Raises
        ------
        StageError
            If they are damaged, or lost.
        """
        with self._reading("the object sums", block):
            try:
                return ObjectSums.from_table(self._objects_table(block))
            except StageError as error:
                raise DamagedError(str(error)) from error

    def _objects_table(self, block: TileBlock) -> pa.Table:
        """Return the object sums as they were written; raise DamagedError where they are not."""
        try:
            return table_of(self._objects_path(block).read_bytes())
        except FileNotFoundError as error:
            raise DamagedError(f"{error.filename!r} is lost") from error

    @contextmanager
    def _reading(self, what: str, block: TileBlock) -> Iterator[None]:
        """Say which block is damaged, and take back its count so that it is staged again."""
        try:
            yield
        except DamagedError as error:
            try:
                self.forget(block)
                way_out = "it counts as not staged now: call again, or run "
                way_out += "'patchworks retry' on its image"
            except Exception as fault:  # a stage that can only be read
                way_out = f"it must be staged again, which could not be noted ({fault!r})"
            raise StageError(
                f"{what} of tile block {block.key!r} at {self.path} are damaged ({error}); "
                f"{way_out}"
            ) from error

    def _objects_path(self, block: TileBlock) -> Any:
        return self.path / "objects" / f"{block.key}.parquet"

    def _tile_box(self, block: TileBlock) -> tuple[int, ...]:
        """Tiles of the block per axis; blocks at the end of an axis may be smaller."""
        first, last = block.tiles[0].index, block.tiles[-1].index
        return tuple(b - a + 1 for a, b in zip(first, last, strict=True))

    def _tile_slices(self, block: TileBlock) -> tuple[slice, ...]:
        first, last = block.tiles[0].index, block.tiles[-1].index
        return tuple(slice(a, b + 1) for a, b in zip(first, last, strict=True))

    def _place(self, block: TileBlock, tile: Tile) -> tuple[int, ...]:
        return tuple(i - f for i, f in zip(tile.index, block.tiles[0].index, strict=True))


def _check_stage_only(path: UPath) -> None:
    """Raise StageError where a folder holds what is no part of a stage."""
    if not path.exists():
        return
    names = {inner.name for inner in path.iterdir()} if path.is_dir() else {path.name}
    # What starts with a dot is litter: of file managers, of removals that were cut short.
    others = sorted(n for n in names - PARTS if not n.startswith(".") and not n.endswith(".part"))
    if others:
        raise StageError(
            f"a stage replaces nothing but a stage, and {path} holds {others[0]!r}, which is no "
            "part of one; name another folder, or move that elsewhere"
        )


def _strips_name(axis: int, side: Side) -> str:
    return f"{axis}/{side}"


@lru_cache(maxsize=8)
def _reopen(path: UPath, plan: str) -> Stage:
    """Open a stage once per worker process, not once per tile."""
    return Stage(path, Plan.from_json(plan))


def digest_of_labels(labels: np.ndarray[Any, Any]) -> np.uint64:
    """Digest the labels of one tile."""
    content = hashlib.blake2b(np.ascontiguousarray(labels).data, digest_size=8).digest()
    return np.uint64(int.from_bytes(content, "little"))
