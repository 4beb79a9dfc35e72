"""The six steps over a whole image, each on any executor; both faces of patchworks call these.

1. plan: `patchworks_core.stage.plan.make_plan`
2. stage: `patchworks_core.stage.staging.stage_blocks`
3. pair: `patchworks_core.merge.pairing.pair_tiles`
4. look up: `look_up`
5. apply: `patchworks_core.ome_zarr.label_image.write_merged` (with publishing, step 6), or
   `patchworks_core.merge.apply.apply_lut` alone
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from math import prod
from typing import Any

import numpy as np

from patchworks_core.errors import StageError
from patchworks_core.images.image import Image
from patchworks_core.machine.pools import EachOf, Pool
from patchworks_core.merge.batches import MOST_BATCHED, blocks_at_once, regions_at_once
from patchworks_core.merge.outlines import drawn_areas
from patchworks_core.seams.edge_table import Edges
from patchworks_core.seams.lookup import LookupTable, offsets_of, renumbered
from patchworks_core.seams.rules import MergeOptions
from patchworks_core.seams.views import Outlines
from patchworks_core.stage.block_files import NOT_STAGED
from patchworks_core.stage.object_sums import ObjectSums, measure_tile, merge_objects
from patchworks_core.stage.stage import Stage
from patchworks_core.stage.third_views import views_for
from patchworks_core.stage.tile_labels import number_ids
from patchworks_core.tiles.grid import Tile, TileGrid


def look_up(
    stage: Stage,
    edges: Edges,
    options: MergeOptions,
    *,
    pool: Pool,
    allow_missing: bool = False,
    outlines: Outlines | None = None,
) -> LookupTable:
    """Decide which staged labels are one object, and number the objects.

    Parameters
    ----------
    stage : Stage
        Its counts and third views are read, and the areas where sizes are filtered.
    edges : Edges
        Of that stage.
    options : MergeOptions
        Resolved.
    pool : Pool
        Reads areas, or draws, where sizes are filtered.
    allow_missing : bool
        Take tiles that are not staged for tiles without labels.
    outlines : Outlines, optional
        How cores are drawn, where they are: sizes are filtered as they are drawn.
    """
    counts = stage.settled_counts(allow_missing=allow_missing)
    areas = None
    if outlines is not None:
        if options.filters_sizes:
            areas = drawn_areas(stage, outlines, pool)
        return renumbered(
            outlines.standing,
            areas=areas,
            min_size=options.min_size,
            max_size=options.max_size,
            sequential=options.sequential,
        )
    if options.filters_sizes:
        areas = _areas(stage, counts, pool)
    third = views_for(stage, options)
    return renumbered(
        third.standing(edges, counts, options).of_first(stage.grid.n_tiles),
        areas=areas,
        min_size=options.min_size,
        max_size=options.max_size,
        sequential=options.sequential,
    )


@dataclass(frozen=True, slots=True)
class _AreasTask:
    stage: Stage
    counts: np.ndarray[Any, Any]

    def __call__(self, numbers: Sequence[int]) -> tuple[np.ndarray[Any, Any], np.ndarray[Any, Any]]:
        """Return the tiles that have labels, and the areas of these, tile after tile."""
        stage, tiles, areas = self.stage, [], [np.zeros(0, dtype=np.int64)]
        for number in numbers:
            block = stage.grid.block_of_number(number)
            n_labels = int(self.counts[block.numbers].sum())
            if not n_labels:  # it has no labels, or is not staged
                continue
            own = stage.areas(block)
            if len(own) != n_labels:
                raise StageError(
                    f"tile block {block.key!r} at {stage.path} has {len(own)} labels now and had "
                    f"{n_labels}: it was staged again while it was merged; merge again"
                )
            tiles.append(block.numbers)
            areas.append(own)
        return np.concatenate([np.zeros(0, np.int64), *tiles]), np.concatenate(areas)


def _areas(stage: Stage, counts: np.ndarray[Any, Any], pool: Pool) -> np.ndarray[Any, Any]:
    """Return the area of every staged label, tile after tile in row-major order."""
    offsets = offsets_of(counts)
    areas = np.zeros(int(offsets[-1]), dtype=np.int64)
    batches = pool.batches(range(stage.grid.n_blocks), at_most=blocks_at_once(stage.grid))
    task = _AreasTask(stage, counts)
    for tiles, pieces in pool.map(task, batches, step="reading areas", place=stage.file_for_task()):
        starts = np.cumsum(counts[tiles]) - counts[tiles]
        for tile, start in zip(tiles, starts, strict=True):
            areas[offsets[tile] : offsets[tile + 1]] = pieces[start : start + counts[tile]]
    return areas


@dataclass(frozen=True, slots=True)
class _SumsTask:
    stage: Stage
    lut: LookupTable

    def __call__(self, numbers: Sequence[int]) -> tuple[ObjectSums, np.ndarray[Any, Any]]:
        """Return the object sums of some blocks in their order, and the merged id of each row."""
        blocks = [self.stage.grid.block_of_number(number) for number in numbers]
        sums = ObjectSums.stacked([self.stage.objects(block) for block in blocks])
        ids = [self.lut.of_tile(n)[1:] for block in blocks for n in block.numbers.tolist()]
        return sums, np.concatenate(ids)


def add_up_objects(stage: Stage, lut: LookupTable, pool: Pool) -> ObjectSums:
    """Add up the object sums of all staged tiles; the voxels are not read again.

    Workers read the sums and lay those of a batch together. Nothing is added up by them, for sums
    of floats depend on their order: it is that of the tile blocks, whoever read them.
    """
    first_tiles = stage.counts()[tuple(slice(None, None, n) for n in stage.grid.block_shape)]
    staged = np.flatnonzero(first_tiles.ravel() != NOT_STAGED).tolist()
    batches = [tuple(batch) for batch in pool.batches(staged, at_most=MOST_BATCHED)]
    parts = pool.map(
        _SumsTask(stage, lut),
        batches,
        step="reading object sums",
        is_ordered=True,
        place=stage.file_for_task(),
    )
    sums, ids = zip(*parts, strict=True) if batches else ((), ())
    return merge_objects(sums, ids)


@dataclass(frozen=True, slots=True)
class _MeasureTask:
    grid: TileGrid
    labels: Any
    image: Image

    def __call__(self, tile: Tile) -> tuple[ObjectSums, np.ndarray[Any, Any]]:
        ids, numbers = number_ids(np.asarray(self.labels[tile.core.slices]))
        sums = measure_tile(
            numbers,
            axes=self.grid.axes,
            origin=tile.core.start,
            n_labels=len(ids) - 1,
            pixels=self.image.read(tile.core),
        )
        return sums, ids[1:]


def measure_drawn(grid: TileGrid, labels: Any, image: Image, pool: Pool) -> ObjectSums:
    """Measure objects as they are drawn, tile by tile.

    Parameters
    ----------
    grid : TileGrid
    labels : zarr.Array
        The merged labels, level 0.
    image : Image
        What was segmented.
    pool : Pool
    """
    task = _MeasureTask(grid, labels, image)
    at_most = regions_at_once(prod(grid.tile_shape))
    batches = [tuple(batch) for batch in pool.batches(list(grid.tiles()), at_most=at_most)]
    # In order, for sums of floats depend on it.
    parts = pool.map(EachOf(task), batches, step="measuring objects", is_ordered=True)
    tiles = [tile for part in parts for tile in part]
    return merge_objects([sums for sums, _ in tiles], [ids for _, ids in tiles])


def ids_are_sequential(lut: LookupTable) -> bool:
    """Tell whether the merged ids of all tiles together are exactly 1..n_objects."""
    is_used = np.zeros(lut.n_objects + 1, dtype=bool)
    for number in range(len(lut.offsets) - 1):
        ids = lut.of_tile(number)
        if ids.max() > lut.n_objects:
            return False
        is_used[ids] = True
    return bool(is_used[1:].all())
