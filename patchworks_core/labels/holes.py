"""Fill the holes of objects, however many tiles a hole crosses.

1. The background of each tile is labelled, and components that meet at seams become one: staging,
   pairing and lookup are those of any label image.
2. `hole_evidence` tells what a tile knows of the components in it, with one pixel around its core:
   their pixels, whether they touch the border of the image, and the smallest and the largest id
   beside them. `HoleEvidence.add` adds up the pieces of one component.
3. `HoleEvidence.owners` decides: a hole is what touches no border and has one id beside it. Each
   tile is written with the ids that its holes belong to.

The labels are read three times. What is held in memory is some 50 bytes per background component
and the labels of the tiles in work.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
from upath import UPath

from patchworks_core.files.array_writer import ArrayWriter
from patchworks_core.files.label_arrays import create_label_array
from patchworks_core.files.replacing import Working
from patchworks_core.files.storage import ZarrFormat
from patchworks_core.labels.source import LabelSource
from patchworks_core.labels.writing import Destination, integer_type, written
from patchworks_core.machine.engine import results
from patchworks_core.machine.pools import Pool
from patchworks_core.merge.pairing import pair_tiles
from patchworks_core.merge.steps import look_up
from patchworks_core.plugins.segmentation import declare, segmentation_of
from patchworks_core.seams.edge_table import Edges, SelectedEdges
from patchworks_core.seams.lookup import LookupTable
from patchworks_core.seams.rules import MergeOptions
from patchworks_core.stage.plan import make_plan, tile_by_tile
from patchworks_core.stage.stage import Stage
from patchworks_core.stage.staging import Staging, stage_blocks
from patchworks_core.tiles.grid import SPATIAL_AXES, TileBlock
from patchworks_core.tiles.regions import Region

Array = npt.NDArray[Any]

MERGING = MergeOptions("touching", 1)
"""Background goes on across faces of pixels: a hole is closed by a ring that holds at corners."""

NO_NEIGHBOUR = np.iinfo(np.int64).max
"""Lowest neighbour of a component that has none."""


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
    per_plane: bool = False,
    to: Destination,
    pool: Pool,
) -> Any:
    """Write labels whose holes are filled; arguments as in `patchworks_core.labels.postprocess`."""
    along = "yx" if per_plane else SPATIAL_AXES

    def make(working: Working, zarr_format: ZarrFormat) -> None:
        stage, lut = _background(source, working.folder / "stage.zarr", along, pool)
        evidence, largest = _evidence(source, stage, lut, along, pool)
        owners = np.concatenate([[0], evidence.owners(max_size)])
        dtype = integer_type(largest)
        create_label_array(working.new, source.grid, dtype, zarr_format=zarr_format)
        items = (
            _BlockToFill(block, owners[lut.of_tile(block.tiles[0].number)])
            for block in stage.grid.blocks()
        )
        task = _FillTask(source, stage, ArrayWriter.of(working.new))
        for _ in pool.map(task, items, step="fill", n=stage.grid.n_blocks):
            pass

    return written(source, to, make, pool)


@declare(merge="touching", version="1")
def label_background_of_planes(tile: Array) -> Array:
    """Label the components of the background of each plane of one tile, by faces of pixels."""
    from scipy import ndimage

    structure = ndimage.generate_binary_structure(tile.ndim, 1)
    if tile.ndim == 3:
        structure[[0, 2]] = False
    components: Array = ndimage.label(tile == 0, structure)[0]
    return components


def _background(
    source: LabelSource, path: UPath, along: str, pool: Pool
) -> tuple[Stage, LookupTable]:
    """Stage the components of the background along some axes, and look up which are one."""
    function = label_background if "z" in along else label_background_of_planes
    tiles = source.grid.tile_shape
    # Evidence and owners are of the components of one tile.
    plan = tile_by_tile(make_plan(source.image, segmentation_of(function), tile_shape=tiles))
    stage = Stage.create(path, plan)
    staging = Staging(source.image, stage, function)
    outcomes = stage_blocks(staging, stage.grid.blocks(), pool=pool)
    done = results(outcomes, doing="labelling the background")
    for n, _ in enumerate(done, start=1):
        pool.progress("background", n, stage.grid.n_blocks)
    with pair_tiles(stage, pool=pool) as pairs:
        edges: Edges = pairs
        if "z" not in along and "z" in stage.grid.axes:
            across = stage.grid.axes.index("z")
            edges = SelectedEdges(pairs, lambda part: part.axis != across)
        return stage, look_up(stage, edges, MERGING, pool=pool)


@dataclass(frozen=True, slots=True)
class _EvidenceTask:
    source: LabelSource
    stage: Stage
    along: str

    def __call__(self, block: TileBlock) -> tuple[int, HoleEvidence, int]:
        grid = self.source.grid
        halo = tuple(int(axis in self.along) for axis in grid.axes)
        labels = self.source.read(block.core.grow(halo, within=grid.shape))
        background = self.stage.labels(block)
        evidence = hole_evidence(
            background,
            labels,
            core=block.core,
            shape=grid.shape,
            axes=[i for i, axis in enumerate(grid.axes) if axis in self.along],
            n=int(background.max()),
        )
        return block.tiles[0].number, evidence, int(labels.max())


def _evidence(
    source: LabelSource, stage: Stage, lut: LookupTable, along: str, pool: Pool
) -> tuple[HoleEvidence, int]:
    """Add up the evidence of all tiles; also return the largest id."""
    total, largest = HoleEvidence.none(lut.n_objects), 0
    task = _EvidenceTask(source, stage, along)
    tiles = pool.map(task, stage.grid.blocks(), step="find holes", n=stage.grid.n_blocks)
    for number, evidence, top in tiles:
        total.add(evidence, lut.of_tile(number)[1:] - 1)
        largest = max(largest, top)
    return total, largest


@dataclass(frozen=True, slots=True)
class _BlockToFill:
    block: TileBlock
    owners: Array
    """The id that fills each staged component; position 0 is 0."""


@dataclass(frozen=True, slots=True)
class _FillTask:
    source: LabelSource
    stage: Stage
    target: ArrayWriter

    def __call__(self, item: _BlockToFill) -> None:
        labels = self.source.read(item.block.core)
        if item.owners.any():
            # Components lie where no object is, so that nothing is added to an id.
            labels = labels + item.owners[self.stage.labels(item.block)]
        self.target.write(item.block.core, labels)


@dataclass(frozen=True, slots=True, eq=False)
class HoleEvidence:
    """What is known of background components: columns with one row per component."""

    size: Array
    """Pixels, int64."""

    touches_border: Array
    """Whether a pixel lies at the border of the image, bool."""

    lowest: Array
    """Smallest id beside a pixel, int64; `NO_NEIGHBOUR` without one."""

    highest: Array
    """Largest id beside a pixel, int64; 0 without one."""

    @classmethod
    def none(cls, n: int) -> HoleEvidence:
        """Return `n` rows of which nothing is known."""
        return cls(
            np.zeros(n, np.int64),
            np.zeros(n, bool),
            np.full(n, NO_NEIGHBOUR, np.int64),
            np.zeros(n, np.int64),
        )

    def add(self, other: HoleEvidence, rows: Array) -> None:
        """Add the evidence of another region, whose rows are `rows` here."""
        np.add.at(self.size, rows, other.size)
        np.logical_or.at(self.touches_border, rows, other.touches_border)
        np.minimum.at(self.lowest, rows, other.lowest)
        np.maximum.at(self.highest, rows, other.highest)

    def owners(self, max_size: int | None) -> Array:
        """Return the id that fills each component; 0 where it stays background.

        Parameters
        ----------
        max_size : int, optional
            Larger components are no holes.
        """
        is_hole = ~self.touches_border & (self.lowest == self.highest)
        if max_size is not None:
            is_hole &= self.size <= max_size
        return np.where(is_hole, self.lowest, 0)


def hole_evidence(
    background: Array,
    labels: Array,
    *,
    core: Region,
    shape: Sequence[int],
    axes: Sequence[int],
    n: int,
) -> HoleEvidence:
    """Return what one tile knows of the background components in it.

    Parameters
    ----------
    background : ndarray of int
        Components of the background in the core, 0 (objects) and 1..n.
    labels : ndarray of int
        Objects in the core and, within the image, one pixel around it along `axes`.
    core : Region
        Place of the core in the image.
    shape : sequence of int
        Of the image.
    axes : sequence of int
        Positions of the spatial axes. An axis one pixel thick has no border.
    n : int
        Number of components.
    """
    evidence = HoleEvidence.none(n)
    evidence.size[:] = np.bincount(background.reshape(-1), minlength=n + 1)[1:]
    # Where the core is at the border there is no pixel around it; nothing is there to be beside.
    around = [
        (int(i in axes and core.start[i] == 0), int(i in axes and core.stop[i] == shape[i]))
        for i in range(len(shape))
    ]
    padded = np.pad(labels, around)
    for axis in axes:
        for side, is_border in enumerate(around[axis]):
            if is_border and shape[axis] > 1:
                plane = background.take(-side, axis=axis)
                evidence.touches_border[plane[plane > 0] - 1] = True
            beside = padded[_beside(background.shape, axes, axis, side)]
            met = (background > 0) & (beside > 0)
            rows, ids = background[met] - 1, beside[met].astype(np.int64)
            np.minimum.at(evidence.lowest, rows, ids)
            np.maximum.at(evidence.highest, rows, ids)
    return evidence


def _beside(shape: Sequence[int], axes: Sequence[int], axis: int, side: int) -> tuple[slice, ...]:
    """Return where the neighbours below (side 0) or above (1) lie in an array padded by one."""
    index = [slice(1, size + 1) if i in axes else slice(size) for i, size in enumerate(shape)]
    index[axis] = slice(2 * side, 2 * side + shape[axis])
    return tuple(index)
