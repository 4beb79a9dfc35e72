"""Outlines of a stage: how its cores are drawn, how large objects are then, how far they jump."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from patchworks_core.machine.pools import Pool
from patchworks_core.merge.batches import blocks_at_once
from patchworks_core.seams.edge_table import Edges
from patchworks_core.seams.jumps import jumps_of_planes
from patchworks_core.seams.lookup import LookupTable
from patchworks_core.seams.rules import MergeOptions
from patchworks_core.seams.strips import strip_axes
from patchworks_core.seams.views import Outlines, draw_block
from patchworks_core.stage.block_files import NOT_STAGED
from patchworks_core.stage.stage import Stage
from patchworks_core.stage.third_views import views_for
from patchworks_core.tiles.grid import Face, Tile, TileGrid
from patchworks_core.tiles.regions import Region

Array = npt.NDArray[Any]


def outlines_of(
    stage: Stage, edges: Edges, options: MergeOptions, *, allow_missing: bool = False
) -> Outlines | None:
    """Return how the cores of a stage are drawn; None where each tile draws its own.

    Parameters
    ----------
    stage : Stage
    edges : Edges
        Of that stage.
    options : MergeOptions
        Resolved.
    allow_missing : bool
        Take tiles that are not staged for holes, in which nothing is drawn.
    """
    if not options.feathers:
        return None
    counts = stage.settled_counts(allow_missing=allow_missing)
    missing = np.flatnonzero(stage.counts().ravel() == NOT_STAGED) if allow_missing else ()
    image = stage.plan.image
    is_one_unit = len({image.unit.get(name) for name in image.pixel_size}) == 1
    return Outlines.of(
        stage.grid,
        edges,
        counts,
        options,
        pixel_size=image.pixel_size if is_one_unit else None,
        missing=frozenset(int(number) for number in missing),
        third=views_for(stage, options),
    )


MAX_FACES = 64
"""Faces at which jumps are measured, spread over the image."""


@dataclass(frozen=True, slots=True)
class Jumps:
    """By how many pixels outlines that cross a face move there, in the mean; None without any."""

    by_cores: float | None
    """Where every tile draws its own core."""

    drawn: float | None
    """As they are drawn."""


def jumps_of(stage: Stage, lut: LookupTable, labels: Any) -> Jumps:
    """Measure jumps at some faces of an image, with and without its outlines drawn anew.

    Parameters
    ----------
    stage : Stage
        Without missing tiles.
    lut : LookupTable
        Of that stage.
    labels : zarr.Array
        The merged labels, level 0.
    """
    by_cores, drawn = [], []
    for face in _some_faces(stage.grid):
        planes = [_plane(face, side) for side in (face.low, face.high)]
        written = (np.asarray(labels[plane.slices]).squeeze(face.axis) for plane in planes)
        drawn.append(jumps_of_planes(*written))
        cores = [_core_of(stage, tile, lut) for tile in (face.low, face.high)]
        parts = (
            core[plane.slices_from(tile.core.start)].squeeze(face.axis)
            for core, plane, tile in zip(cores, planes, (face.low, face.high), strict=True)
        )
        by_cores.append(jumps_of_planes(*parts))
    return Jumps(*(_mean(moves) for moves in (by_cores, drawn)))


def _some_faces(grid: TileGrid) -> Iterator[Face]:
    """Yield the faces above some tiles, spread over the image."""
    axes = strip_axes(grid)
    n_tiles = -(-MAX_FACES // max(1, len(axes)))
    for number in np.unique(np.linspace(0, grid.n_tiles - 1, n_tiles).astype(int)):
        index = tuple(int(i) for i in np.unravel_index(number, grid.grid_shape))
        for axis in axes:
            if index[axis] + 1 < grid.grid_shape[axis]:
                step = tuple(int(i == axis) for i in range(grid.ndim))
                above = tuple(i + s for i, s in zip(index, step, strict=True))
                yield Face(grid.tile(index), grid.tile(above), step)


def _plane(face: Face, tile: Tile) -> Region:
    """Return the pixels of a tile's core at a face."""
    start, stop = list(tile.core.start), list(tile.core.stop)
    if tile.number == face.low.number:
        start[face.axis] = stop[face.axis] - 1
    else:
        stop[face.axis] = start[face.axis] + 1
    return Region(tuple(start), tuple(stop))


def _core_of(stage: Stage, tile: Tile, lut: LookupTable) -> Array:
    """Return the merged labels of a core as its tile drew it."""
    block = stage.grid.block(stage.grid.block_index_of(tile.index))
    core = stage.labels(block)[tile.core.slices_from(block.core.start)]
    merged: Array = np.take(lut.of_tile(tile.number), core)
    return merged


def _mean(moves: list[Array]) -> float | None:
    every = np.concatenate([*moves, np.zeros(0, np.int64)])
    return float(every.mean()) if len(every) else None


@dataclass(frozen=True, slots=True)
class _CountTask:
    stage: Stage
    outlines: Outlines

    def __call__(self, numbers: Sequence[int]) -> tuple[Array, Array]:
        """Return the objects of some blocks, and the pixels of each as it is drawn."""
        ids, pixels = [], []
        for number in numbers:
            block = self.stage.grid.block_of_number(number)
            outlines = self.outlines.of_block(block, self.outlines.standing)
            drawn = draw_block(self.stage, block, outlines)
            if drawn is None:
                luts = [self.outlines.standing.of_tile(tile.number)[1:] for tile in block.tiles]
                ids.append(np.concatenate(luts))
                pixels.append(self.stage.areas(block) if len(ids[-1]) else ids[-1])
                continue
            ids.append(outlines.ids)
            pixels.append(np.bincount(drawn.reshape(-1), minlength=len(outlines.ids)))
        return np.concatenate(ids), np.concatenate(pixels)


def drawn_areas(stage: Stage, outlines: Outlines, pool: Pool) -> npt.NDArray[np.int64]:
    """Return the pixels of every object as it is drawn, at the staged id of its first label.

    Parameters
    ----------
    stage : Stage
    outlines : Outlines
        Of that stage.
    pool : Pool

    Returns
    -------
    ndarray of int64, shape (n_staged,)
        0 of labels that are joined to an earlier one.
    """
    areas = np.zeros(outlines.standing.n_staged + 1, dtype=np.int64)
    batches = pool.batches(range(stage.grid.n_blocks), at_most=blocks_at_once(stage.grid))
    task = _CountTask(stage, outlines)
    for ids, pixels in pool.map(
        task, batches, step="drawing outlines", place=stage.file_for_task()
    ):
        np.add.at(areas, ids, pixels)
    return areas[1:]
