"""Fill the holes of objects, however many tiles a hole crosses.

1. The background of each tile is labelled, and components that meet at seams become one: staging,
   pairing and lookup are those of any label image.
2. Each tile tells what it knows of the components in it, with one pixel around its core
   (`patchworks_core.labels.holes`); rows of one component are added up by the lookup table.
3. Each tile is written with the ids that its holes belong to.

The labels are read three times. What is held in memory is some 50 bytes per background component
and the labels of the tiles in work.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
from upath import UPath

from patchworks_core.files.label_arrays import create_label_array
from patchworks_core.files.replacing import Working
from patchworks_core.files.storage import ZarrFormat, open_array
from patchworks_core.labels.holes import HoleEvidence, hole_evidence
from patchworks_core.labels.source import LabelSource
from patchworks_core.labels.writing import Destination, integer_type, written
from patchworks_core.machine.engine import results
from patchworks_core.machine.pools import Pool
from patchworks_core.merge.steps import look_up, pair_tiles
from patchworks_core.plugins.segmentation import declare, segmentation_of
from patchworks_core.seams.lookup import LookupTable
from patchworks_core.seams.rules import MergeOptions
from patchworks_core.stage.plan import make_plan
from patchworks_core.stage.stage import Stage
from patchworks_core.stage.staging import Staging, stage_blocks
from patchworks_core.tiles.grid import TileBlock

Array = npt.NDArray[Any]

BESIDE = MergeOptions("touching", 1)
"""Background goes on across faces of pixels: a hole is closed by a ring that holds at corners."""


@declare(merge="touching", version="1")
def label_background(tile: Array) -> Array:
    """Label the components of the background of one tile, by faces of pixels."""
    from scipy import ndimage

    components: Array = ndimage.label(tile == 0)[0]
    return components


def write_filled(
    source: LabelSource,
    max_size: int | None,
    *,
    to: Destination,
    pool: Pool,
) -> Any:
    """Write labels whose holes are filled; arguments as in `patchworks_core.labels.postprocess`."""

    def make(working: Working, zarr_format: ZarrFormat) -> None:
        stage, lut = _background(source, working.folder / "stage.zarr", pool)
        evidence, largest = _evidence(source, stage, lut, pool)
        owners = np.concatenate([[0], evidence.owners(max_size)])
        dtype = integer_type(largest)
        create_label_array(working.new, source.grid, dtype, zarr_format=zarr_format)
        items = (
            _BlockToFill(block, owners[lut.of_tile(block.tiles[0].number)])
            for block in stage.grid.blocks()
        )
        task = _FillTask(source, stage, working.new)
        for _ in pool.map(task, items, step="fill", n=stage.grid.n_blocks):
            pass

    return written(source, to, make)


def _background(source: LabelSource, path: UPath, pool: Pool) -> tuple[Stage, LookupTable]:
    """Stage the components of the background, and look up which are one."""
    plan = make_plan(
        source.image, segmentation_of(label_background), tile_shape=source.grid.tile_shape
    )
    stage = Stage.create(path, plan)
    staging = Staging(source.image, stage, label_background)
    outcomes = stage_blocks(staging, stage.grid.blocks(), pool=pool)
    done = results(outcomes, doing="labelling the background")
    for n, _ in enumerate(done, start=1):
        pool.progress("background", n, stage.grid.n_blocks)
    edges = pair_tiles(stage, pool=pool)
    return stage, look_up(stage, edges, BESIDE)


@dataclass(frozen=True, slots=True)
class _EvidenceTask:
    source: LabelSource
    stage: Stage

    def __call__(self, block: TileBlock) -> tuple[int, HoleEvidence, int]:
        grid = self.source.grid
        halo = self.source.halo((1,) * len(grid.spatial))
        labels = self.source.read(block.core.grow(halo, within=grid.shape))
        background = self.stage.labels(block)
        evidence = hole_evidence(
            background,
            labels,
            core=block.core,
            shape=grid.shape,
            axes=grid.spatial,
            n=int(background.max()),
        )
        return block.tiles[0].number, evidence, int(labels.max())


def _evidence(
    source: LabelSource, stage: Stage, lut: LookupTable, pool: Pool
) -> tuple[HoleEvidence, int]:
    """Add up the evidence of all tiles; also return the largest id."""
    found, largest = HoleEvidence.none(lut.n_objects), 0
    task = _EvidenceTask(source, stage)
    tiles = pool.map(task, stage.grid.blocks(), step="find holes", n=stage.grid.n_blocks)
    for number, evidence, top in tiles:
        found.add(evidence, lut.of_tile(number)[1:] - 1)
        largest = max(largest, top)
    return found, largest


@dataclass(frozen=True, slots=True)
class _BlockToFill:
    block: TileBlock
    owners: Array
    """The id that fills each staged component; position 0 is 0."""


@dataclass(frozen=True, slots=True)
class _FillTask:
    source: LabelSource
    stage: Stage
    target: UPath

    def __call__(self, item: _BlockToFill) -> None:
        labels = self.source.read(item.block.core)
        if item.owners.any():
            # Components lie where no object is, so that nothing is added to an id.
            labels = labels + item.owners[self.stage.labels(item.block)]
        target = open_array(self.target, mode="r+")
        target[item.block.core.slices] = labels.astype(target.dtype, copy=False)
