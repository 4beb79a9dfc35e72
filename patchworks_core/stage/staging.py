"""Staging: the function runs once on each tile, and what it saw is kept."""

from __future__ import annotations

import time
from collections.abc import Generator, Iterable, Mapping
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from patchworks_core.errors import StageError
from patchworks_core.images.image import Image
from patchworks_core.machine.engine import Outcome
from patchworks_core.machine.peak import PeakMemory
from patchworks_core.machine.pools import Pool
from patchworks_core.plugins.segmentation import LabelFunction, Segmentation
from patchworks_core.stage.object_sums import measure_tile
from patchworks_core.stage.stage import Stage, StagedTile
from patchworks_core.stage.tile_labels import check_labels, number_labels
from patchworks_core.tiles.grid import Tile, TileBlock


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


@dataclass(frozen=True, slots=True)
class _StageTask:
    image: Image
    stage: Stage
    function: LabelFunction
    empty: frozenset[int] = frozenset()
    """Numbers of tiles without signal."""

    companions: tuple[tuple[str, Image], ...] = ()
    """Other channels of the image, with the keyword that gets their pixels."""

    def __call__(self, block: TileBlock) -> StagedBlock:
        with PeakMemory() as peak:
            staged = self._stage(block)
        return replace(staged, peak_bytes=peak.bytes)

    def _stage(self, block: TileBlock) -> StagedBlock:
        start = time.perf_counter()
        self.stage.forget(block)
        n_skipped = sum(tile.number in self.empty for tile in block.tiles)
        pixels, beside = None, {}
        if n_skipped < len(block.tiles):
            pixels = self.image.read(block.read)
            beside = {name: other.read(block.read) for name, other in self.companions}
        read = time.perf_counter()
        tiles = [
            self._without_labels(tile)
            if pixels is None or tile.number in self.empty
            else self._segment(block, tile, pixels, beside)
            for tile in block.tiles
        ]
        segmented = time.perf_counter()
        self.stage.write(block, tiles)
        return StagedBlock(
            key=block.key,
            n_labels=sum(tile.labels.n_core for tile in tiles),
            n_pixels_read=0 if pixels is None else block.read.size,
            seconds_reading=read - start,
            seconds_segmenting=segmented - read,
            seconds_writing=time.perf_counter() - segmented,
            peak_bytes=0,
            n_skipped=n_skipped,
        )

    def _without_labels(self, tile: Tile) -> StagedTile:
        """Return a tile of background."""
        nothing = np.zeros(tile.read.shape, dtype=np.int32)
        core = tile.core.relative_to(tile.read.start)
        objects = measure_tile(
            nothing[core.slices],
            axes=self.stage.grid.axes,
            origin=tile.core.start,
            n_labels=0,
            pixels=nothing[core.slices],
        )
        return StagedTile(tile, number_labels(nothing, core, where=""), objects)

    def _segment(
        self,
        block: TileBlock,
        tile: Tile,
        pixels: np.ndarray[Any, Any],
        beside: Mapping[str, np.ndarray[Any, Any]],
    ) -> StagedTile:
        """Run the function once on what a tile reads; it sees the spatial axes only."""
        grid = self.stage.grid
        where = f"image {self.image.url or 'in memory'!r}, tile {tile.index}"
        place = tile.read.relative_to(block.read.start).slices
        seen = pixels[place]
        shape = tuple(seen.shape[axis] for axis in grid.spatial)
        # A copy, because a function may write into its input and the next tile shares pixels.
        others = {name: found[place].reshape(shape).copy() for name, found in beside.items()}
        labels = self.function(seen.reshape(shape).copy(), **others)
        checked = check_labels(labels, shape=shape, where=where).reshape(seen.shape)
        core = tile.core.relative_to(tile.read.start)
        numbered = number_labels(checked, core, where=where)
        objects = measure_tile(
            numbered.pixels[core.slices],
            axes=grid.axes,
            origin=tile.core.start,
            n_labels=numbered.n_core,
            pixels=seen[core.slices],
        )
        return StagedTile(tile, numbered, objects)


def companions_of(segmentation: Segmentation, image: Image) -> dict[str, Image]:
    """Return the other channels that a function is given beside its tile, by keyword.

    Raises
    ------
    ImageError
        If the image has no such channel.
    """
    return {name: image.other_channel(c) for name, c in segmentation.companions.items()}


def stage_blocks(
    image: Image,
    stage: Stage,
    function: LabelFunction,
    blocks: Iterable[TileBlock],
    *,
    pool: Pool,
    empty: Iterable[int] = (),
    companions: Mapping[str, Image] | None = None,
) -> Generator[Outcome[TileBlock, StagedBlock], None, None]:
    """Segment tile blocks and stage what comes out; a block that fails stops no other.

    Parameters
    ----------
    image : Image
        What ``stage.plan`` was made for.
    stage : Stage
    function : callable
        Of one tile, parameters bound (`Segmentation.bind`).
    blocks : iterable of TileBlock
    pool : Pool
    empty : iterable of int
        Numbers of tiles without signal: they are staged without labels, and not segmented.
    companions : mapping of str to Image, optional
        Other channels that the function is given, by keyword (`companions_of`).

    Yields
    ------
    Outcome
        One per block, as they complete.

    Raises
    ------
    StageError
        If the image is not the one that was planned.
    """
    if image.fingerprint != stage.plan.image.fingerprint:
        raise StageError(
            f"image {image.url!r} changed after it was planned (its content had fingerprint "
            f"{stage.plan.image.fingerprint!r}, now {image.fingerprint!r}); plan it again"
        )
    others = tuple((companions or {}).items())
    task = _StageTask(image, stage, function, frozenset(empty), others)
    yield from pool.outcomes(task, blocks)
