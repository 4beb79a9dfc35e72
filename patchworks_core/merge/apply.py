"""Apply: staged labels become merged labels, tile by tile.

1. `apply_lut` gives each tile block its slice of the lookup table, gathers, and writes: one read
   and one write of the volume.
2. A record per block, written after its pixels, says from what it was made: the digests of its
   staged labels and its slice of the table; and what was stored: a digest of its chunks. A block
   whose record is unchanged is not written again, so a killed apply continues, a small repair
   rewrites little, and a chunk that was damaged is written again.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
from upath import UPath

from patchworks_core.files.array_writer import ArrayWriter
from patchworks_core.files.storage import ZarrFormat, create_array, open_array
from patchworks_core.machine.engine import Outcome
from patchworks_core.machine.pools import Pool
from patchworks_core.seams.lookup import LookupTable
from patchworks_core.seams.views import BlockOutlines, Outlines, draw_block
from patchworks_core.stage.label_runs import LabelRuns, take_ids
from patchworks_core.stage.stage import Stage
from patchworks_core.tiles.grid import TileBlock, TileGrid
from patchworks_core.tiles.regions import Region

NOT_WRITTEN = np.uint64(0)
"""Record of a block whose merged labels are not there."""


def create_apply_records(path: UPath, grid: TileGrid, *, zarr_format: ZarrFormat = 3) -> None:
    """Create the records of which blocks are written; none is."""
    create_array(
        path,
        shape=grid.blocks_shape,
        chunks=(1,) * grid.ndim,
        dtype=np.uint64,
        zarr_format=zarr_format,
    )


@dataclass(frozen=True, slots=True)
class _BlockToApply:
    block: TileBlock
    luts: tuple[np.ndarray[Any, Any], ...]
    made_from: bytes
    was_written: bool
    outlines: BlockOutlines | None = None


@dataclass(frozen=True, slots=True)
class _ApplyTask:
    stage: Stage
    labels: ArrayWriter
    records: ArrayWriter

    def __call__(self, item: _BlockToApply) -> str:
        block = item.block
        merged = self._merged(item, self.labels.dtype)
        if item.was_written:
            # Killed between the pixels and their record, the old one must not vouch for them.
            self._record(block, NOT_WRITTEN)
        if merged is None:
            stored = self.labels.erase(block.core)
        else:
            stored = self.labels.write(block.core, merged)
        self._record(block, _record(item.made_from, stored))
        return block.key

    def _record(self, block: TileBlock, record: np.uint64) -> None:
        place = Region(block.index, tuple(i + 1 for i in block.index))
        self.records.write(place, np.full(place.shape, record))

    def _merged(self, item: _BlockToApply, dtype: np.dtype[Any]) -> np.ndarray[Any, Any] | None:
        """Return the merged labels of a block's core; None where there are none."""
        block = item.block
        if item.outlines is not None:
            drawn = draw_block(self.stage, block, item.outlines)
            return take_ids(item.outlines.ids.astype(dtype, copy=False), drawn)
        # A block without labels may be one that is not staged.
        if all(len(lut) == 1 for lut in item.luts):
            return None
        staged = self.stage.kept_labels(block)
        if isinstance(staged, LabelRuns) or len(item.luts) == 1:
            ids = np.concatenate([item.luts[0], *(lut[1:] for lut in item.luts[1:])])
            return take_ids(ids.astype(dtype, copy=False), staged)
        merged = np.zeros(block.core.shape, dtype=dtype)
        for tile, lut in zip(block.tiles, item.luts, strict=True):
            place = tile.core.relative_to(block.core.start).slices
            merged[place] = take_ids(lut.astype(dtype, copy=False), staged[place])
        return merged


def apply_lut(
    stage: Stage,
    lut: LookupTable,
    *,
    labels: UPath,
    records: UPath,
    pool: Pool,
    outlines: Outlines | None = None,
) -> Iterator[Outcome[Any, str]]:
    """Write merged labels into an array, skipping blocks that are already what they will be.

    Parameters
    ----------
    stage : Stage
    lut : LookupTable
        Of that stage.
    labels : UPath
        The array, made by `create_label_array`; its type must hold ``lut.max_id``.
    records : UPath
        The records beside it, made by `create_apply_records`.
    pool : Pool
    outlines : Outlines, optional
        How cores are drawn; None leaves them as their tiles did.

    Yields
    ------
    Outcome
        The key of each block that was rewritten; its `item.block` is the block.
    """
    task = _ApplyTask(stage, ArrayWriter.of(labels), ArrayWriter.of(records))
    outdated = _outdated(stage, lut, task.labels, _read_records(records), outlines)
    yield from pool.outcomes(task, outdated)


def _read_records(path: UPath) -> np.ndarray[Any, Any]:
    """Read the records; where some are damaged, none counts."""
    records = open_array(path)
    try:
        return np.asarray(records[...])
    except (RuntimeError, ValueError):  # what codecs raise
        return np.full(records.shape, NOT_WRITTEN)


def _outdated(
    stage: Stage,
    lut: LookupTable,
    labels: ArrayWriter,
    records: np.ndarray[Any, Any],
    outlines: Outlines | None,
) -> Iterator[_BlockToApply]:
    """Yield the blocks whose record is not what it would be now."""
    digests = stage.digests().ravel()
    strips = digests if outlines is None else stage.strip_digests().ravel()
    for block in stage.grid.blocks():
        own = digests[block.numbers]
        luts: tuple[np.ndarray[Any, Any], ...] = ()
        drawn = None
        if outlines is None:
            luts = tuple(lut.of_tile(tile.number) for tile in block.tiles)
            made_from = _made_from(own, luts)
        else:
            drawn = outlines.of_block(block, lut)
            made_from = _digest(drawn.content(own, strips))
        record = records[block.index]
        was_written = bool(record != NOT_WRITTEN)
        if not was_written or record != _record(made_from, labels.digest(block.core)):
            yield _BlockToApply(block, luts, made_from, was_written, drawn)


def _made_from(digests: np.ndarray[Any, Any], luts: tuple[np.ndarray[Any, Any], ...]) -> bytes:
    """Digest what a block's merged labels are made from."""
    content = np.ascontiguousarray(digests).tobytes()
    return _digest(content + b"".join(lut.astype(np.int64).tobytes() for lut in luts))


def _digest(content: bytes) -> bytes:
    return hashlib.blake2b(content, digest_size=8).digest()


def _record(made_from: bytes, stored: bytes) -> np.uint64:
    """Return the record of a block: from what it was made, and what is stored of it; never 0."""
    digest = _digest(made_from + stored)
    return np.uint64(int.from_bytes(digest, "little") or 1)
