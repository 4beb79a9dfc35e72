"""Staging: the function runs once on each tile, and what it saw is kept.

1. `Staging` stages one tile block: read, segment, check, number, measure, write.
2. `stage_blocks` does so for many on a pool; one that fails stops no other.
3. `stage_all` stages what an image lacks. Where it is not decided how many may run at once, the
   first runs alone, and what it took decides for the rest.
4. `StagingCount` counts what became of them; whoever listens is told with each.
"""

from __future__ import annotations

import time
from collections.abc import Generator, Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass, field, replace
from typing import Any, Protocol

import numpy as np

from patchworks_core.errors import StageError, StorageError, TileOutputError
from patchworks_core.files.space import SpaceWatch
from patchworks_core.images.image import Image
from patchworks_core.machine.allocator import return_freed_memory
from patchworks_core.machine.engine import Failure, Outcome
from patchworks_core.machine.peak import PeakMemory
from patchworks_core.machine.pools import Pool
from patchworks_core.machine.worker_processes import begin_next
from patchworks_core.plugins.segmentation import LabelFunction, Segmentation
from patchworks_core.stage.block_files import StagedTile
from patchworks_core.stage.object_sums import ObjectSums, measure_tile
from patchworks_core.stage.pixel_checksums import checksum_of_pixels, checksum_of_zeros
from patchworks_core.stage.stage import Stage
from patchworks_core.stage.tile_labels import (
    NumberedLabels,
    check_labels,
    number_labels,
    without_labels,
)
from patchworks_core.tiles.grid import Tile, TileBlock, TileGrid


@dataclass(frozen=True, slots=True)
class StagedBlock:
    """What came of staging one tile block."""

    key: str
    n_labels: int
    n_pixels_read: int
    seconds_reading: float
    seconds_segmenting: float
    seconds_writing: float
    peak_bytes: int
    """By how much the process grew meanwhile; of this tile alone if none ran beside it."""

    n_skipped: int = 0
    """Tiles of the block that have no signal and were not segmented."""

    n_bytes: int = 0
    """Of its file."""


@dataclass(frozen=True, slots=True)
class Staging:
    """Stages tile blocks of one image."""

    image: Image
    """What ``stage.plan`` was made for."""

    stage: Stage
    """Where it is kept."""

    function: LabelFunction
    """Of one tile, parameters bound (`Segmentation.bind`)."""

    empty: frozenset[int] = frozenset()
    """Numbers of tiles without signal: they are staged without labels, and not segmented."""

    other_channels: Mapping[str, Image] = field(default_factory=dict)
    """Other channels that the function is given, by keyword (`other_channels_of`)."""

    measures: bool = False
    """Keep the object sums of each tile, for a table; their areas are kept in any case."""

    leaves_gaps: bool = False
    """The function labels nothing where all is 0: a tile that is not stored needs no reading."""

    def __call__(self, block: TileBlock) -> StagedBlock:
        """Stage one tile block."""
        with PeakMemory() as peak:
            staged = self._stage(block)
        return replace(staged, peak_bytes=peak.bytes)

    def _stage(self, block: TileBlock) -> StagedBlock:
        start = time.perf_counter()
        self.stage.forget(block)
        n_skipped = sum(tile.number in self.empty for tile in block.tiles)
        pixels: np.ndarray[Any, Any] | None = None
        beside: dict[str, np.ndarray[Any, Any]] = {}
        unread = self._unread(block)
        if len(unread) < len(block.tiles):
            pixels, beside = self.read(block)
        read = time.perf_counter()
        tiles = []
        for tile in block.tiles:
            if pixels is None or tile.number in unread:
                tiles.append(self._without_labels(tile, unread[tile.number]))
                continue
            if tiles:
                begin_next()  # what is limited is the time of a tile
            tiles.append(self._segment(block, tile, pixels, beside))
        segmented = time.perf_counter()
        n_bytes = self.stage.write(block, tiles)
        return StagedBlock(
            key=block.key,
            n_labels=sum(tile.labels.n_core for tile in tiles),
            n_pixels_read=0 if pixels is None else block.read.size,
            seconds_reading=read - start,
            seconds_segmenting=segmented - read,
            seconds_writing=time.perf_counter() - segmented,
            peak_bytes=0,
            n_skipped=n_skipped,
            n_bytes=n_bytes,
        )

    def read(
        self, block: TileBlock
    ) -> tuple[np.ndarray[Any, Any], dict[str, np.ndarray[Any, Any]]]:
        """Read the pixels of a block, and those of the other channels by keyword."""
        others = self.other_channels.items()
        return self.image.read(block.read), {n: other.read(block.read) for n, other in others}

    def _unread(self, block: TileBlock) -> dict[int, int]:
        """Return the numbers of tiles that need no reading, and the checksum of what each reads.

        It is 0, which nobody took, of a tile without signal.
        """
        unread = {tile.number: 0 for tile in block.tiles if tile.number in self.empty}
        if self.leaves_gaps and not self.other_channels:
            for tile in block.tiles:
                if tile.number not in unread and self.image.is_unstored(tile.read):
                    n_bytes = tile.read.size * self.image.dtype.itemsize
                    unread[tile.number] = checksum_of_zeros(n_bytes)
        return unread

    def _without_labels(self, tile: Tile, checksum: int) -> StagedTile:
        """Return a tile of background, given the checksum of what it reads."""
        labels = without_labels(tile.read.shape)
        return StagedTile(tile, labels, self._measure(tile, labels, labels.pixels), checksum)

    def _measure(
        self, tile: Tile, labels: NumberedLabels, pixels: np.ndarray[Any, Any]
    ) -> ObjectSums | None:
        """Measure the labels of a core on its pixels, where that is asked for."""
        if not self.measures:
            return None
        core = tile.core.slices_from(tile.read.start)
        return measure_tile(
            labels.pixels[core],
            axes=self.stage.grid.axes,
            origin=tile.core.start,
            n_labels=labels.n_core,
            pixels=pixels[core],
        )

    def _segment(
        self,
        block: TileBlock,
        tile: Tile,
        pixels: np.ndarray[Any, Any],
        beside: Mapping[str, np.ndarray[Any, Any]],
    ) -> StagedTile:
        """Segment a tile of a block, given what the block read."""
        place = tile.read.slices_from(block.read.start)
        own = pixels[place]
        others = {name: other[place] for name, other in beside.items()}
        is_alone = len(block.tiles) == 1
        try:
            labels, checksum = self._labels(
                tile,
                own,
                others,
                where=f"tile {tile.index}",
                # A function may write into its input, and the next tile shares pixels.
                is_shared=not is_alone or self.measures,
                # One that is a block by itself is written before the function is called again.
                keeps=not is_alone,
            )
        except Exception as error:
            # What is said to have failed is the block.
            if not is_alone and not isinstance(error, TileOutputError):
                error.add_note(f"in tile {tile.index}, {self.stage.grid.box(tile.core)}")
            raise
        return StagedTile(tile, labels, self._measure(tile, labels, own), checksum)

    def see(self, tile: Tile, *, where: str) -> NumberedLabels:
        """Segment what a tile reads that is none of the grid; `where` names it in errors."""
        others = {name: other.read(tile.read) for name, other in self.other_channels.items()}
        labels, _ = self._labels(
            tile, self.image.read(tile.read), others, where=where, is_shared=False
        )
        return labels

    def _labels(
        self,
        tile: Tile,
        own: np.ndarray[Any, Any],
        others: Mapping[str, np.ndarray[Any, Any]],
        *,
        where: str,
        is_shared: bool,
        keeps: bool = True,
    ) -> tuple[NumberedLabels, int]:
        """Run the function once on what a tile reads; it sees the spatial axes only.

        Returned with a checksum of what it read.
        """
        where = f"image {self.image.url or 'in memory'!r}, {where}"
        shape = tuple(own.shape[axis] for axis in self.stage.grid.spatial)
        inside = own.reshape(shape)
        others = {name: other.reshape(shape) for name, other in others.items()}
        if is_shared:
            inside = inside.copy()
            others = {name: other.copy() for name, other in others.items()}
        checksum = checksum_of_pixels([inside, *others.values()])
        labels = check_labels(self.function(inside, **others), shape=shape, where=where)
        numbered = number_labels(
            labels.reshape(own.shape), tile.core_inside, where=where, keeps=keeps
        )
        return numbered, checksum


def other_channels_of(segmentation: Segmentation, image: Image) -> dict[str, Image]:
    """Return the other channels that a function is given beside its tile, by keyword.

    Raises
    ------
    ImageError
        If the image has no such channel.
    """
    return {name: image.other_channel(c) for name, c in segmentation.other_channels.items()}


def check_planned(staging: Staging) -> None:
    """Raise StageError where the image is not the one that was planned."""
    image, planned = staging.image, staging.stage.plan.image
    if image.fingerprint != planned.fingerprint:
        raise StageError(
            f"image {image.url!r} changed after it was planned (its content had fingerprint "
            f"{planned.fingerprint!r}, now {image.fingerprint!r}); plan it again"
        )


def stage_blocks(
    staging: Staging, blocks: Iterable[TileBlock], *, pool: Pool
) -> Generator[Outcome[TileBlock, StagedBlock], None, None]:
    """Stage tile blocks; one that fails stops no other.

    Parameters
    ----------
    staging : Staging
    blocks : iterable of TileBlock
    pool : Pool

    Yields
    ------
    Outcome
        One per block, as they complete.

    Raises
    ------
    StageError
        If the image is not the one that was planned.
    """
    check_planned(staging)
    yield from pool.outcomes(staging, blocks)


class TileCompute(Protocol):
    """What decides where tiles run: a call's own `Compute`, or what a deployment has."""

    @property
    def is_decided(self) -> bool:
        """True where what a tile takes would not change how many are worked on at once."""

    def alone(self) -> TileCompute:
        """Return one worker of the same kind."""

    def open(
        self, grid: TileGrid, dtype: np.dtype[Any], *, measured_bytes: int = 0
    ) -> AbstractContextManager[Pool]:
        """Open a pool for tiles of which one took `measured_bytes`; 0 is not known."""


@dataclass(slots=True)
class StagingCount:
    """What became of the tile blocks of one image so far."""

    n_blocks: int
    """To be staged."""

    n_done: int = 0
    """Of which it is known what became of them, failed ones too."""

    n_pixels: int = 0
    """In their cores."""

    bytes_of_first: int = 0
    """What the first took, where it ran alone to show that; otherwise 0."""

    n_bytes: int = 0
    """In their files."""

    failures: dict[str, Failure] = field(default_factory=dict)
    """Why blocks failed, by key."""

    @property
    def n_failed(self) -> int:
        """Blocks that failed."""
        return len(self.failures)

    @property
    def n_left(self) -> int:
        """Blocks of which it is not known yet."""
        return self.n_blocks - self.n_done

    def add(self, outcome: Outcome[TileBlock, StagedBlock]) -> None:
        """Count one block.

        Raises
        ------
        StorageError
            If it could not be kept: no other one could.
        """
        self.n_done += 1
        self.n_pixels += outcome.item.core.size
        if outcome.value is not None:
            self.n_bytes += outcome.value.n_bytes
        if outcome.failure is None:
            return
        self.failures[outcome.item.key] = outcome.failure
        if outcome.failure.is_of_storage:
            raise StorageError(
                f"staging stopped when {self.n_done - self.n_failed} of {self.n_blocks} tile "
                f"blocks were done: {outcome.failure.message}"
            )


class StagingListener(Protocol):
    """Whoever is told how `stage_all` goes."""

    def started(self, pool: Pool, count: StagingCount) -> None:
        """Hear what the rest, or all, runs on."""

    def finished(self, outcome: Outcome[TileBlock, StagedBlock], count: StagingCount) -> bool:
        """Hear what became of one block, which is counted already; False stops the others."""


@contextmanager
def stage_all(
    staging: Staging,
    blocks: Sequence[TileBlock],
    compute: TileCompute,
    listener: StagingListener,
) -> Iterator[tuple[Pool, StagingCount]]:
    """Stage tile blocks, the first alone where what it takes decides for the rest.

    Parameters
    ----------
    staging : Staging
    blocks : sequence of TileBlock
    compute : TileCompute
        Where they run.
    listener : StagingListener
        Told of each block; it may stop the others.

    Yields
    ------
    pool : Pool
        What the rest ran on; its workers stay for what comes then.
    count : StagingCount
        What became of all.

    Raises
    ------
    StageError
        If the image is not the one that was planned.
    StorageError
        If what is staged cannot be kept.
    """
    count = StagingCount(len(blocks))
    space = SpaceWatch(staging.stage.path, n_blocks=staging.stage.grid.n_blocks)
    space.check_before(len(blocks) and blocks[0].core.size)
    goes_on = True
    if not compute.is_decided and len(blocks) > 1:
        for outcome in stage_alone(staging, blocks[:1], compute):
            count.bytes_of_first = outcome.value.peak_bytes if outcome.value else 0
            count.add(outcome)
            space.look(count.n_bytes, n_done=count.n_done, n_left=count.n_left)
            goes_on = listener.finished(outcome, count)
        blocks = blocks[1:]
    taken = count.bytes_of_first
    with compute.open(staging.stage.grid, staging.image.dtype, measured_bytes=taken) as pool:
        listener.started(pool, count)
        outcomes = stage_blocks(staging, blocks if goes_on else (), pool=pool)
        for outcome in outcomes:
            count.add(outcome)
            space.look(count.n_bytes, n_done=count.n_done, n_left=count.n_left)
            if not listener.finished(outcome, count):
                break
        outcomes.close()
        return_freed_memory()
        yield pool, count


def stage_alone(
    staging: Staging, blocks: Iterable[TileBlock], compute: TileCompute
) -> Generator[Outcome[TileBlock, StagedBlock], None, None]:
    """Stage tile blocks one after the other, so that what each takes is seen."""
    with compute.alone().open(staging.stage.grid, staging.image.dtype) as pool:
        yield from stage_blocks(staging, blocks, pool=replace(pool, window=1))
