"""Apply: staged labels become merged labels, tile by tile.

1. `apply_lut` gives batches of tile blocks to workers, which have the lookup table in common: each
   block takes its slice of it, gathers, and writes. That is one read and one write of the volume.
2. A record per block, written after its pixels, says from what it was made: the digests of its
   staged labels and its slice of the table; and what was stored: a digest of its chunks. A block
   whose record is unchanged is not written again, so a killed apply continues, a small repair
   rewrites little, and a chunk that was damaged is written again.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

import numpy as np
from upath import UPath

from patchworks_core.files.array_writer import ArrayWriter
from patchworks_core.files.storage import ZarrFormat, create_array, open_array
from patchworks_core.machine.pools import Pool
from patchworks_core.merge.batches import blocks_at_once
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
    ids: np.ndarray[Any, Any]
    """Merged ids of the local ones of each tile, one tile after the other."""
    starts: np.ndarray[Any, Any]
    """Where those of each tile begin in `ids`."""
    made_from: bytes
    was_written: bool
    outlines: BlockOutlines | None = None


@dataclass(frozen=True, slots=True)
class _ApplyTask:
    """Bring some blocks to what they should be; carries what is known of all."""

    stage: Stage
    lut: LookupTable
    labels: ArrayWriter
    records: ArrayWriter
    outlines: Outlines | None
    digests: np.ndarray[Any, Any]
    """Of each tile, in row-major order."""
    view_digests: np.ndarray[Any, Any]
    """Of the strips of each tile, and of the third views behind them."""
    published: ArrayWriter | None
    """Records of the labels that these were a copy of."""

    def __call__(self, numbers: Sequence[int]) -> list[int]:
        """Write those that are outdated; return the numbers of those that are rewritten.

        A worker may have died when it had written some of them, and these are what they will be.
        """
        blocks = [self.stage.grid.block_of_number(number) for number in numbers]
        records = _read_records(self.records, blocks)
        published = records if self.published is None else _read_records(self.published, blocks)
        rewritten = []
        for number, block, record, before in zip(numbers, blocks, records, published, strict=True):
            item = self._outdated(block, record)
            if item is not None:
                self._write(item)
            if item is not None or record != before:
                rewritten.append(number)
        return rewritten

    def _outdated(self, block: TileBlock, record: np.uint64 | None) -> _BlockToApply | None:
        """Return what is to be written of a block; None where its record is what it would be."""
        own = self.digests[block.numbers]
        ids, starts = self.lut.of_tiles(block.numbers)
        drawn = None
        if self.outlines is None:
            made_from = _made_from(own, ids)
        else:
            drawn = self.outlines.of_block(block, self.lut)
            made_from = _digest(drawn.content(own, self.view_digests))
        was_written = bool(record != NOT_WRITTEN)
        if was_written and record == _record(made_from, self.labels.digest(block.core)):
            return None
        return _BlockToApply(block, ids, starts, made_from, was_written, drawn)

    def _write(self, item: _BlockToApply) -> None:
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

    def _record(self, block: TileBlock, record: np.uint64) -> None:
        place = _place_of_record(block)
        self.records.write(place, np.full(place.shape, record))

    def _merged(self, item: _BlockToApply, dtype: np.dtype[Any]) -> np.ndarray[Any, Any] | None:
        """Return the merged labels of a block's core; None where there are none."""
        block = item.block
        if item.outlines is not None:
            drawn = draw_block(self.stage, block, item.outlines)
            if drawn is not None:
                return take_ids(item.outlines.ids.astype(dtype, copy=False), drawn)
        # A block without labels may be one that is not staged.
        if len(item.ids) == len(item.starts):
            return None
        staged = self.stage.kept_labels(block)
        ids = item.ids.astype(dtype, copy=False)
        if isinstance(staged, LabelRuns) or len(item.starts) == 1:
            return take_ids(np.delete(ids, item.starts[1:]), staged)
        merged = np.zeros(block.core.shape, dtype=dtype)
        for tile, own in zip(block.tiles, np.split(ids, item.starts[1:]), strict=True):
            place = tile.core.slices_from(block.core.start)
            merged[place] = take_ids(own, staged[place])
        return merged


def apply_lut(
    stage: Stage,
    lut: LookupTable,
    *,
    labels: UPath,
    records: UPath,
    pool: Pool,
    outlines: Outlines | None = None,
    published: UPath | None = None,
) -> Iterator[TileBlock]:
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
    published : UPath, optional
        Records of the labels that the array is a copy of.

    Yields
    ------
    TileBlock
        Each that was rewritten.
    """
    digests = stage.digests().ravel()
    task = _ApplyTask(
        stage,
        lut,
        ArrayWriter.of(labels),
        ArrayWriter.of(records),
        outlines,
        digests,
        digests if outlines is None else _view_digests(stage, outlines),
        None if published is None else ArrayWriter.of(published),
    )
    batches = pool.batches(range(stage.grid.n_blocks), at_most=blocks_at_once(stage.grid))
    step = "writing merged labels"
    for numbers in pool.map(task, batches, step=step, place=stage.file_for_task()):
        for number in numbers:
            yield stage.grid.block_of_number(number)


def _view_digests(stage: Stage, outlines: Outlines) -> np.ndarray[Any, Any]:
    """Return what `BlockOutlines.content` digests of strips and third views."""
    return np.concatenate([stage.strip_digests().ravel(), outlines.third_digests])


def _place_of_record(block: TileBlock) -> Region:
    return Region(block.index, tuple(i + 1 for i in block.index))


def _read_records(records: ArrayWriter, blocks: Sequence[TileBlock]) -> list[np.uint64 | None]:
    """Read the records of blocks; one that is damaged is not known."""
    if records.level is None:
        # Zarr asks a store for all at once; one by one, it looks at the metadata each time.
        places = tuple(np.array([block.index for block in blocks]).T)
        with suppress(RuntimeError, ValueError):  # what codecs raise
            return list(np.asarray(open_array(records.path).vindex[places]))
    return [_read_record(records, block) for block in blocks]


def _read_record(records: ArrayWriter, block: TileBlock) -> np.uint64 | None:
    """Read the record of a block; one that is damaged is not known."""
    try:
        return np.uint64(records.read(_place_of_record(block)).item())
    except (RuntimeError, ValueError):  # what codecs raise
        return None


def _made_from(digests: np.ndarray[Any, Any], ids: np.ndarray[Any, Any]) -> bytes:
    """Digest what a block's merged labels are made from."""
    content = np.ascontiguousarray(digests).tobytes()
    return _digest(content + ids.astype(np.int64).tobytes())


def _digest(content: bytes) -> bytes:
    return hashlib.blake2b(content, digest_size=8).digest()


def _record(made_from: bytes, stored: bytes) -> np.uint64:
    """Return the record of a block: from what it was made, and what is stored of it; never 0."""
    digest = _digest(made_from + stored)
    return np.uint64(int.from_bytes(digest, "little") or 1)
