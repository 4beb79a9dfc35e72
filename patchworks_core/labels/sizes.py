"""Objects removed for their size, and the rest renumbered: one read to count, one to write.

1. Each tile counts the pixels of the ids in it; counts of one id and one time add up.
2. Removal and new numbers become one lookup table.
3. Each tile is written with its slice of the table.
"""

from __future__ import annotations

from dataclasses import dataclass
from math import ceil, floor, prod
from typing import Any

import numpy as np
import numpy.typing as npt
from upath import UPath

from patchworks_core.errors import PlanError
from patchworks_core.files.label_arrays import create_label_array
from patchworks_core.files.replacing import Working
from patchworks_core.files.storage import ZarrFormat, open_array
from patchworks_core.labels.source import LabelSource, LengthUnit, check_unit, sizes_um
from patchworks_core.labels.writing import Destination, integer_type, written
from patchworks_core.machine.pools import Pool
from patchworks_core.stage.tile_labels import number_ids
from patchworks_core.tiles.grid import Tile

Array = npt.NDArray[Any]

_ROUNDING = 1e-9
"""A size this close to a whole number of pixels is that number."""


@dataclass(frozen=True, slots=True)
class SizeLimits:
    """Which sizes are kept, in pixels."""

    least: int
    """Fewer pixels are too few."""

    most: int | None
    """More pixels are too many; None is no limit."""

    @classmethod
    def of(
        cls,
        source: LabelSource,
        min_size: float | None,
        max_size: float | None,
        unit: LengthUnit,
    ) -> SizeLimits:
        """Return limits in pixels.

        Raises
        ------
        PlanError
            If a limit is below 0, or nothing lies between them.
        ImageError
            If they are micrometers and the image is not calibrated.
        """
        check_unit(unit)
        for name, value in (("min_size", min_size), ("max_size", max_size)):
            if value is not None and not value >= 0:
                raise PlanError(f"{name} must be 0 or more, got {value!r}")
        if min_size is not None and max_size is not None and min_size > max_size:
            raise PlanError(
                f"min_size must be at most max_size, got {min_size!r} and {max_size!r}; every "
                "object would be removed"
            )
        has_limits = min_size is not None or max_size is not None
        pixel = prod(sizes_um(source.image)) if unit == "micrometers" and has_limits else 1.0
        least = ceil((min_size or 0) / pixel * (1 - _ROUNDING))
        if max_size is None or max_size == np.inf:
            return cls(least, None)
        return cls(least, floor(max_size / pixel * (1 + _ROUNDING)))

    def keep(self, sizes: Array) -> Array:
        """Return which sizes are kept, bool."""
        kept: Array = sizes >= self.least
        return kept if self.most is None else kept & (sizes <= self.most)


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
        task = _WriteTask(source, working.new)
        for _ in pool.map(task, items, step="write", n=len(items)):
            pass

    return written(source, to, make)


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
        found, rows = np.unique(np.concatenate([ids[n] for n in numbers]), return_inverse=True)
        total = np.zeros(len(found), np.int64)
        np.add.at(total, rows, np.concatenate([sizes[n] for n in numbers]))
        stays = found[limits.keep(total)]
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
    target: UPath

    def __call__(self, item: _TileToWrite) -> None:
        _, numbers = number_ids(self.source.read(item.tile.core))
        target = open_array(self.target, mode="r+")
        target[item.tile.core.slices] = item.lut.astype(target.dtype)[numbers]
