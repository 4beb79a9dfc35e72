"""Objects removed for their size, and the rest renumbered: one read to count, one to write.

1. Each tile counts the pixels of the ids in it; counts of one id and one time add up.
2. Removal and new numbers become one lookup table.
3. Each tile is written with its slice of the table.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from patchworks_core.files.array_writer import ArrayWriter
from patchworks_core.files.label_arrays import create_label_array
from patchworks_core.files.replacing import Working
from patchworks_core.files.storage import ZarrFormat
from patchworks_core.images.calibration import SizeLimits
from patchworks_core.labels.source import LabelSource
from patchworks_core.labels.writing import Destination, integer_type, written
from patchworks_core.machine.pools import Pool
from patchworks_core.stage.tile_labels import number_ids
from patchworks_core.tiles.grid import Tile

Array = npt.NDArray[Any]


def write_sized(
    source: LabelSource,
    limits: SizeLimits,
    *,
    sequential: bool,
    to: Destination,
    pool: Pool,
) -> Any:
    """Write labels without objects beyond limits; see `patchworks_core.labels.postprocess`."""

    def make(working: Working, zarr_format: ZarrFormat) -> None:
        ids, sizes = _count(source, pool)
        luts = _look_up(source, ids, sizes, limits, sequential=sequential)
        largest = max((int(lut.max()) for lut in luts), default=0)
        dtype = integer_type(largest)
        create_label_array(working.new, source.grid, dtype, zarr_format=zarr_format)
        # A tile without objects is background, which need not be written.
        items = [
            _TileToWrite(tile, lut)
            for tile, lut in zip(source.grid.tiles(), luts, strict=True)
            if lut.any()
        ]
        task = _WriteTask(source, ArrayWriter.of(working.new))
        for _ in pool.map(task, items, step="write", n=len(items)):
            pass

    return written(source, to, make, pool)


@dataclass(frozen=True, slots=True)
class _CountTask:
    source: LabelSource

    def __call__(self, tile: Tile) -> tuple[int, Array, Array]:
        ids, numbers = number_ids(self.source.read(tile.core))
        return tile.number, ids[1:], np.bincount(numbers.reshape(-1), minlength=len(ids))[1:]


def _count(source: LabelSource, pool: Pool) -> tuple[list[Array], list[Array]]:
    """Return the ids in each tile, ascending, and their pixels there."""
    n = source.grid.n_tiles
    ids, sizes = [np.zeros(0, np.int64)] * n, [np.zeros(0, np.int64)] * n
    for number, of_tile, counts in pool.map(
        _CountTask(source), source.grid.tiles(), step="count", n=n
    ):
        ids[number], sizes[number] = of_tile, counts
    return ids, sizes


def _look_up(
    source: LabelSource,
    ids: list[Array],
    sizes: list[Array],
    limits: SizeLimits,
    *,
    sequential: bool,
) -> list[Array]:
    """Return the new id of each id of each tile; position 0 is background."""
    planes: dict[tuple[int, ...], list[int]] = {}
    for tile in source.grid.tiles():
        planes.setdefault(source.plane(tile), []).append(tile.number)
    kept: list[Array] = [np.zeros(0, np.int64)] * len(ids)
    for numbers in planes.values():
        all_ids, rows = np.unique(np.concatenate([ids[n] for n in numbers]), return_inverse=True)
        total = np.zeros(len(all_ids), np.int64)
        np.add.at(total, rows, np.concatenate([sizes[n] for n in numbers]))
        stays = all_ids[limits.keep(total)]
        for n in numbers:
            kept[n] = np.where(np.isin(ids[n], stays), ids[n], 0)
    left = np.unique(np.concatenate([np.zeros(1, np.int64), *kept]))
    new = [np.searchsorted(left, k) if sequential else k for k in kept]
    return [np.concatenate([np.zeros(1, np.int64), k]) for k in new]


@dataclass(frozen=True, slots=True)
class _TileToWrite:
    tile: Tile
    lut: Array


@dataclass(frozen=True, slots=True)
class _WriteTask:
    source: LabelSource
    target: ArrayWriter

    def __call__(self, item: _TileToWrite) -> None:
        _, numbers = number_ids(self.source.read(item.tile.core))
        self.target.write(item.tile.core, item.lut.astype(self.target.dtype)[numbers])
