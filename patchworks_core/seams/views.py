"""Views of tiles: which objects every tile saw, and the cores that are drawn from that.

1. `Outlines.of` names the objects, also those of labels that were seen only in a halo.
2. `Outlines.of_block` gathers what one tile block needs: small tables of ids, no pixels.
3. `draw_block` reads its labels, the strips of the tiles around and the third views over it. Where
   all that was seen of a core is the same (`_Reader.agree`), drawing would change nothing, and
   nothing is drawn; elsewhere `patchworks_core.seams.outlines` draws.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
import numpy.typing as npt

from patchworks_core.seams.edge_table import Edges
from patchworks_core.seams.lookup import HaloOwners, LookupTable
from patchworks_core.seams.outlines import Pen, View, common_region, draw_core, spacing_of
from patchworks_core.seams.paired_runs import PairedRuns
from patchworks_core.seams.rules import MergeOptions
from patchworks_core.seams.staged_pixels import PixelReader, StagedPixels, tiles_around
from patchworks_core.seams.strips import HIGH, LOW, Side, smallest_strip, strip_region
from patchworks_core.seams.third_views import NamedTile, ThirdViews
from patchworks_core.tiles.grid import Tile, TileBlock, TileGrid
from patchworks_core.tiles.regions import Region

Array = npt.NDArray[Any]

_VERSION = b"feather 1"
"""Another where the same strips would be drawn otherwise, so that blocks are written again."""


@dataclass(frozen=True, slots=True)
class BlockOutlines:
    """What one tile block is drawn from, beside its pixels."""

    objects: dict[int, npt.NDArray[np.int32]]
    """By number of the tile, its own and those around: the object of each local id, and 0 last.
    Objects are numbered 1..n in ascending order of their staged ids; missing tiles are left out."""

    ids: Array
    """The merged id of each object, 0 first."""

    pen: Pen

    third: tuple[NamedTile, ...] = ()
    """Third views over the block: the key and tile of each."""

    def content(self, digests: Array, view_digests: Array) -> bytes:
        """Return a digest of what is drawn.

        Parameters
        ----------
        digests : ndarray of uint64
            Of the labels of the block's tiles.
        view_digests : ndarray of uint64
            Of the strips of all tiles, and of the third views behind them.
        """
        content = hashlib.blake2b(_VERSION, digest_size=16)
        content.update(repr((self.pen.spacing, self.pen.axes)).encode())
        numbers = sorted(self.objects)
        content.update(np.array(numbers, dtype=np.int64).data)
        content.update(np.ascontiguousarray(digests).data)
        content.update(np.ascontiguousarray(view_digests[numbers]).data)
        for number in numbers:
            content.update(self.objects[number].data)
        content.update(np.ascontiguousarray(self.ids.astype(np.int64)).data)
        return content.digest()


@dataclass(frozen=True, slots=True)
class Outlines:
    """How the cores of a stage are drawn."""

    grid: TileGrid

    standing: LookupTable
    """Every object by the staged id of its first label; none is dropped."""

    owners: HaloOwners
    pen: Pen

    missing: frozenset[int]
    """Numbers of tiles that are not staged."""

    third_digests: npt.NDArray[np.uint64]
    """Of each third view."""

    over: Mapping[int, tuple[NamedTile, ...]]
    """Third views over each tile, by its number; tiles without are left out."""

    all_standing: LookupTable
    """As `standing`, with the labels of third views behind those of tiles."""

    @classmethod
    def of(
        cls,
        grid: TileGrid,
        edges: Edges,
        counts: Array,
        options: MergeOptions,
        *,
        pixel_size: Mapping[str, float] | None = None,
        missing: frozenset[int] = frozenset(),
        third: ThirdViews | None = None,
    ) -> Outlines:
        """Return how outlines are drawn.

        Parameters
        ----------
        grid : TileGrid
        edges : Edges
        counts : ndarray of int64, shape (n_tiles,)
            Labels of each tile.
        options : MergeOptions
            Resolved.
        pixel_size : mapping of str to float, optional
            Lengths in one unit, by axis name.
        missing : frozenset of int
            Numbers of tiles that are holes, in which nothing is drawn.
        third : ThirdViews, optional
            What more was seen of faces.
        """
        third = ThirdViews(grid) if third is None else third
        standing = third.standing(edges, counts, options)
        return cls(
            grid,
            standing.of_first(grid.n_tiles) if third.views else standing,
            HaloOwners.of(*third.evidence(edges, counts)),
            Pen(grid, spacing_of(grid, pixel_size or {})),
            missing,
            third.digests,
            third.over_tiles(),
            standing,
        )

    def of_block(self, block: TileBlock, lut: LookupTable) -> BlockOutlines:
        """Return what a block is drawn from, given the table of merged ids."""
        numbers = {tile.number for tile in block.tiles}
        for tile in block.tiles:
            around = tiles_around(self.grid, tile, self.pen.axes)
            numbers |= {self.grid.tile(index).number for index, _ in around}
        over = [self.over.get(tile.number, ()) for tile in block.tiles]
        third = {view.number: (key, view) for views in over for key, view in views}
        numbers |= third.keys()
        staged = {number: self._of_tile(number) for number in sorted(numbers - self.missing)}
        occurring = np.unique(np.concatenate([np.zeros(1, np.int64), *staged.values()]))
        objects = {
            number: np.searchsorted(occurring, ids).astype(np.int32)
            for number, ids in staged.items()
        }
        views = tuple(third[number] for number in sorted(third))
        return BlockOutlines(objects, lut.of_staged(occurring), self.pen, views)

    def _of_tile(self, number: int) -> Array:
        """Return the standing id of each local id of a tile, and 0 for those beyond.

        What a third view alone saw is no object.
        """
        core = self.all_standing.of_tile(number).astype(np.int64)
        owners = self.owners.of_tile(number, len(core) - 1)
        ids = np.concatenate([core, self.all_standing.of_staged(owners), np.zeros(1, np.int64)])
        return np.where(ids > self.standing.n_staged, 0, ids)


def draw_block(
    stage: StagedPixels, block: TileBlock, outlines: BlockOutlines
) -> npt.NDArray[np.int32] | None:
    """Return the objects of a block's core, as numbered in `outlines`.

    None where no core of the block is drawn: each is as its tile has it.
    """
    reader = _Reader(stage, outlines)
    staged = [tile for tile in block.tiles if tile.number in outlines.objects]
    disputed = {tile.number for tile in staged if not reader.agree(tile)}
    if not disputed:
        return None
    drawn = np.zeros(block.core.shape, dtype=np.int32)
    for tile in staged:
        place = tile.core.slices_from(block.core.start)
        if tile.number not in disputed:
            objects = outlines.objects[tile.number]
            drawn[place] = np.take(objects, reader.labels(tile), mode="clip")
            continue
        others = [reader.view(*neighbour) for neighbour in reader.staged_around(tile)]
        third = reader.third_views(tile)
        drawn[place] = draw_core(reader.whole_view(tile), others, outlines.pen, third=third)
    return drawn


class _Reader:
    """Reads what tiles saw, as objects of one block."""

    def __init__(self, stage: StagedPixels, outlines: BlockOutlines) -> None:
        self.stage, self.outlines = stage, outlines
        self._pixels = PixelReader(stage, outlines.pen.axes)
        self._third: dict[str, Array] = {}

    def staged_around(self, tile: Tile) -> Iterator[tuple[Tile, tuple[int, Side]]]:
        """Yield the neighbours of a tile that are staged, and which strip of each faces it."""
        for index, place in tiles_around(self.stage.grid, tile, self.outlines.pen.axes):
            neighbour = self.stage.grid.tile(index)
            if neighbour.number in self.outlines.objects:
                yield neighbour, place

    def labels(self, tile: Tile) -> Array:
        """Return the local ids of a tile's core; of a tile without objects, background."""
        if not self.outlines.objects[tile.number].any():
            return _background(tile.core.shape)
        return self._pixels.labels(tile)

    def agree(self, tile: Tile) -> bool:
        """Tell whether neighbours and third views saw the same objects in a core as its tile."""
        around = [
            (other.number, other.read, partial(self._seen_by, other, tile))
            for other, _ in self.staged_around(tile)
        ]
        third = [
            (view.number, view.read, partial(self._seen_in_third, key, view))
            for key, view in self.outlines.third
        ]
        return all(self._agrees(tile, *witness) for witness in (*around, *third))

    def _agrees(
        self, tile: Tile, number: int, read: Region, ids_in: Callable[[Region], Array]
    ) -> bool:
        """Tell whether another saw the same objects in a tile's core, where it read of it."""
        objects = self.outlines.objects
        common = common_region(tile.core, read)
        if common is None or not (objects[tile.number].any() or objects[number].any()):
            return True
        labels = self.labels(tile)[common.slices_from(tile.core.start)]
        runs = PairedRuns.of(labels, ids_in(common))
        own = np.take(objects[tile.number], runs.a, mode="clip")
        return bool((own == np.take(objects[number], runs.b, mode="clip")).all())

    def _seen_by(self, other: Tile, tile: Tile, region: Region) -> Array:
        """Return the local ids that a neighbour saw in a region of a tile's core."""
        if not self.outlines.objects[other.number].any():
            return _background(region.shape)
        grid = self.stage.grid
        steps = [a - b for a, b in zip(tile.index, other.index, strict=True)]
        axis = smallest_strip(grid, steps)
        return self._pixels.strip(other, (axis, HIGH if steps[axis] > 0 else LOW), region)

    def _seen_in_third(self, key: str, view: Tile, region: Region) -> Array:
        """Return the local ids of a third view in a region that it read."""
        if key not in self._third:
            self._third[key] = self.stage.third_view(key)
        return self._third[key][region.slices_from(view.read.start)]

    def view(self, tile: Tile, place: tuple[int, Side]) -> View:
        """Return what a tile saw in one strip."""
        region = strip_region(self.stage.grid, tile, *place)
        return self._view(tile, region, lambda: self._pixels.strip(tile, place, region))

    def whole_view(self, tile: Tile) -> View:
        """Return what a tile saw of its core and its halos."""
        return self._view(tile, self._pixels.region(tile), lambda: self._pixels.ids(tile))

    def third_views(self, tile: Tile) -> list[View]:
        """Return the third views of a tile's core, over all that they read."""
        return [
            self._view(view, view.read, partial(self._seen_in_third, key, view, view.read))
            for key, view in self.outlines.third
            if common_region(tile.core, view.read) is not None
        ]

    def _view(self, tile: Tile, region: Region, pixels: Callable[[], Array]) -> View:
        objects = self.outlines.objects[tile.number]
        occurring = np.unique(objects)
        occurring = occurring[occurring > 0]
        if not len(occurring):
            return View(tile, region, np.zeros(region.shape, dtype=np.int32), occurring)
        return View(tile, region, np.take(objects, pixels(), mode="clip"), occurring)


def _background(shape: tuple[int, ...]) -> Array:
    """Return labels of background, which take no memory."""
    return np.broadcast_to(np.zeros((), dtype=np.uint16), shape)
