"""Pairing: the table of edges of a stage, gathered from workers and never held whole.

1. A worker compares the tiles of a batch of tile blocks (`_PairTask`).
2. Few rows go back to the driver. Where all batches together may have more than `ROWS_HELD`, a
   worker leaves its rows in a file of the stage, and sends back where they are: an `EdgeFile`.
3. `PairedTiles` gives all rows in the order of their tile blocks, in the same parts for any number
   of workers; its files are gone when it is closed, or with the next `Stage.clean` after a kill.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass, fields
from math import prod
from typing import Any

import numpy as np
from upath import UPath

from patchworks_core.errors import StageError
from patchworks_core.files.faults import storing
from patchworks_core.files.packed import open_packed, pack
from patchworks_core.files.storage import is_local, write_bytes
from patchworks_core.files.tables import DamagedError
from patchworks_core.machine.allocator import return_freed_memory
from patchworks_core.machine.pools import Pool
from patchworks_core.merge.batches import MOST_BATCHED
from patchworks_core.seams.edge_table import EdgeTable, divided
from patchworks_core.seams.pairs import compare_faces
from patchworks_core.seams.strips import Side, slot_shape, strip_axes, strips_of_tiles
from patchworks_core.stage.block_files import NOT_STAGED, digest_of_blank_strips
from patchworks_core.stage.stage import Stage
from patchworks_core.tiles.grid import TileGrid

Array = np.ndarray[Any, Any]

ROWS_HELD = 2**20
"""That come back to the driver at most, which are 80 MB."""

_BYTES_BATCHED = 8 * 2**20
"""Of the strips of tile blocks that are paired together."""

_NAME = "pairs"
"""First word of the names of files of rows."""

_COLUMNS = tuple(field.name for field in fields(EdgeTable))


@dataclass(frozen=True, slots=True)
class EdgeFile:
    """Rows that a worker left in a file."""

    path: UPath
    n_rows: int
    n_parts: int

    def __len__(self) -> int:
        return self.n_rows

    @classmethod
    def write(cls, path: UPath, edges: EdgeTable) -> EdgeFile:
        """Write rows in parts."""
        parts = list(divided([edges]))
        arrays = {
            f"{number}/{name}": getattr(part, name)
            for number, part in enumerate(parts)
            for name in _COLUMNS
        }
        with storing(path.parent, path):
            write_bytes(path, pack({"rows": len(edges)}, arrays))
        return cls(path, len(edges), len(parts))

    def parts(self) -> Iterator[EdgeTable]:
        """Yield the rows in parts.

        Raises
        ------
        StageError
            If they are not what was written, or gone.
        """
        for number in range(self.n_parts):
            try:
                with open_packed(self.path) as packed:
                    if packed.header["rows"] != self.n_rows:
                        raise DamagedError("it is that of other rows")
                    arrays = packed.load([f"{number}/{name}" for name in _COLUMNS])
            except (DamagedError, FileNotFoundError) as error:
                raise StageError(
                    f"rows of the table of edges, in {self.path}, are damaged or gone ({error!r}); "
                    "merge again, which pairs the tiles anew"
                ) from error
            yield EdgeTable(*(arrays[f"{number}/{name}"] for name in _COLUMNS))


class PairedTiles:
    """The table of edges of a stage, until it is closed."""

    def __init__(self, batches: Sequence[EdgeTable | EdgeFile], place: UPath) -> None:
        self._batches = tuple(batches)
        self._place = place

    def __len__(self) -> int:
        return sum(map(len, self._batches))

    def parts(self) -> Iterator[EdgeTable]:
        """Yield the rows in order of the tile blocks of `tile_a`, then of tiles and ids.

        Raises
        ------
        StageError
            If some are damaged or gone.
        """
        yield from divided(part for batch in self._batches for part in batch.parts())

    def __enter__(self) -> PairedTiles:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Remove the files."""
        if any(isinstance(batch, EdgeFile) for batch in self._batches):
            _remove_files(self._place)


@dataclass(frozen=True, slots=True)
class _PairTask:
    stage: Stage
    missing: Array
    """Numbers of tiles that are not staged; whatever strips they have are not compared."""

    blank: Array
    """Whether all strips of a tile are background, by its number."""

    place: UPath
    """Where rows of a batch are, its number aside."""

    rows_held: int
    """Rows that are sent back."""

    def __call__(self, batch: Sequence[Sequence[int]]) -> tuple[int, EdgeTable | EdgeFile]:
        """Return the first tile block of some groups, and their rows."""
        first = batch[0][0]
        edges = EdgeTable.stacked(self._compared(numbers) for numbers in batch)
        if len(edges) <= self.rows_held:
            return first, edges
        return first, EdgeFile.write(_file_of_batch(self.place, first), edges)

    def _compared(self, numbers: Sequence[int]) -> EdgeTable:
        """Return the rows of a group of tile blocks, by the blocks of their first tiles."""
        grid = self.stage.grid
        blocks = [grid.block_of_number(number) for number in numbers]
        indexes = np.concatenate([block.indexes for block in blocks])
        reading = _StripReading(self.stage, {block.index for block in blocks})
        edges = compare_faces(grid, indexes, reading, missing=self.missing, blank=self.blank)
        if prod(grid.block_shape) == 1:
            return edges
        tiles = np.stack(np.unravel_index(edges.tile_a, grid.grid_shape), axis=1)
        block_of = np.ravel_multi_index(tuple((tiles // grid.block_shape).T), grid.blocks_shape)
        return edges.select(np.argsort(block_of, kind="stable"))


class _StripReading:
    """Reads strips of tiles, those of each tile block once."""

    def __init__(self, stage: Stage, own: Collection[tuple[int, ...]]) -> None:
        """Read the strips of a stage, for the tile blocks at `own`."""
        self._stage = stage
        self._is_of_one = prod(stage.grid.block_shape) == 1
        # Most strips are asked for of blocks of many tiles, and of those that are compared with
        # one another; without a halo they are thin, and opening files takes longest.
        self._is_read_whole = not self._is_of_one or not any(stage.grid.halo)
        self._own = own if len(own) > 1 else ()
        self._kept: dict[tuple[tuple[int, ...], int, Side], Array] = {}

    def __call__(self, tiles: Array, axis: int, side: Side) -> Array:
        """Return the strips of tiles on an axis and side, stacked."""
        if self._is_of_one:
            strips = [self._of_block(place, axis, side) for place in map(tuple, tiles.tolist())]
            return np.stack(strips)
        grid = self._stage.grid
        places, block_of = np.unique(tiles // grid.block_shape, axis=0, return_inverse=True)
        groups = [np.flatnonzero(block_of.ravel() == i) for i in range(len(places))]
        parts = [
            strips_of_tiles(grid, self._of_block(place, axis, side), tiles[group], axis)
            for place, group in zip(map(tuple, places.tolist()), groups, strict=True)
        ]
        if len(parts) == 1:
            return parts[0]
        stacked = np.empty((len(tiles), *parts[0].shape[1:]), np.result_type(*parts))
        for group, part in zip(groups, parts, strict=True):
            stacked[group] = part
        return stacked

    def _of_block(self, place: tuple[int, ...], axis: int, side: Side) -> Array:
        """Return the strips of a block's tiles on an axis and side, side by side."""
        if (place, axis, side) not in self._kept:
            is_whole = self._is_read_whole or place in self._own
            block = self._stage.grid.block(place)
            strips = self._stage.strips(block, None if is_whole else [(axis, side)])
            self._kept.update({(place, *of): strip for of, strip in strips.items()})
        return self._kept[place, axis, side]


def pair_tiles(stage: Stage, *, pool: Pool, allow_missing: bool = False) -> PairedTiles:
    """Compare the strips of all tiles that share a face, an edge or a corner.

    Returns
    -------
    PairedTiles
        To be closed when nobody needs it any more.

    Raises
    ------
    StageError
        If a tile is not staged and that is not allowed.
    """
    missing = np.zeros(0, dtype=np.int64)
    if allow_missing:
        counts = stage.counts().ravel()
        missing = np.flatnonzero(counts == NOT_STAGED)
    else:
        counts = stage.settled_counts()
    grid, blank = stage.grid, _blank_tiles(stage, counts)
    if is_local(stage.path):  # threads would read a store side by side
        pool = pool.for_small_steps()
    groups = pool.batches(range(grid.n_blocks), at_most=_blocks_paired_at_once(grid))
    batches = pool.batches(groups, at_most=1)
    place = stage.file_for_task(_NAME)
    task = _PairTask(stage, missing, blank, place, ROWS_HELD // max(1, len(batches)))
    try:
        paired = dict(pool.map(task, batches, step="pairing tiles", place=stage.file_for_task()))
    except BaseException:
        with suppress(OSError):  # what it was stopped by is what is said
            _remove_files(place)
        raise
    return_freed_memory()
    return PairedTiles([paired[first] for first in sorted(paired)], place)


def _blank_tiles(stage: Stage, counts: Array) -> Array:
    """Tell of each tile whether all its strips are known to be background."""
    if not any(stage.grid.halo):  # a tile sees nothing but its core
        return np.asarray(counts == 0)
    return np.asarray(stage.strip_digests().ravel() == digest_of_blank_strips(stage.grid))


def _blocks_paired_at_once(grid: TileGrid) -> int:
    """Return how many blocks are paired together: a quarter of them, or fewer."""
    strips = [prod(slot_shape(grid, axis)) for axis in strip_axes(grid)]
    n_bytes = 2 * np.dtype(np.uint16).itemsize * sum(strips) * prod(grid.block_shape)
    return max(1, min(MOST_BATCHED, grid.n_blocks // 4, _BYTES_BATCHED // max(1, n_bytes)))


def _file_of_batch(place: UPath, first: int) -> UPath:
    """Return the file of the batch that begins with a tile block."""
    return place.with_name(place.name.replace(_NAME, f"{_NAME}-{first:08d}", 1))


def _remove_files(place: UPath) -> None:
    """Remove the files of all batches."""
    ending = place.name.removeprefix(_NAME)
    if not place.parent.is_dir():
        return
    for path in list(place.parent.iterdir()):
        if path.name.startswith(_NAME) and path.name.endswith(ending):
            path.unlink(missing_ok=True)
