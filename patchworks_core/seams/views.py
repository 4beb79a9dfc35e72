"""Views of tiles: which objects every tile saw, and the cores that are drawn from that.

1. `Outlines.of` names the objects, also those of labels that were seen only in a halo.
2. `Outlines.of_block` gathers what one tile block needs: small tables of ids, no pixels.
3. `draw_block` reads its labels, and the strips of the tiles around. Where all that was seen of a
   core is the same (`_Reader.agree`), drawing would change nothing, and nothing is drawn; elsewhere
   `patchworks_core.seams.outlines` draws.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import product
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt

from patchworks_core.seams.edge_table import EdgeTable
from patchworks_core.seams.lookup import HaloOwners, LookupTable, build_lut
from patchworks_core.seams.outlines import Pen, View, common_region, draw_core, spacing_of
from patchworks_core.seams.paired_runs import PairedRuns
from patchworks_core.seams.rules import MergeOptions, joined_pairs
from patchworks_core.seams.strips import (
    HIGH,
    LOW,
    Side,
    part_of_strip,
    smallest_strip,
    strip_of_tile,
    strip_region,
)
from patchworks_core.tiles.grid import Tile, TileBlock, TileGrid
from patchworks_core.tiles.regions import Region

Array = npt.NDArray[Any]

_VERSION = b"feather 1"
"""Another where the same strips would be drawn otherwise, so that blocks are written again."""


class StagedPixels(Protocol):
    """What was kept of the tiles of a grid."""

    @property
    def grid(self) -> TileGrid:
        """Where the tiles are."""

    def labels(self, block: TileBlock) -> Array:
        """Return the local ids of a block's core."""

    def strips(
        self, block: TileBlock, places: Sequence[tuple[int, Side]] | None = None
    ) -> dict[tuple[int, Side], Array]:
        """Return strips of a block, those of its tiles side by side."""


@dataclass(frozen=True, slots=True)
class BlockOutlines:
    """What one tile block is drawn from, beside its pixels."""

    objects: dict[int, npt.NDArray[np.int32]]
    """By number of the tile, its own and those around: the object of each local id, and 0 last.
    Objects are numbered 1..n in ascending order of their staged ids; missing tiles are left out."""

    ids: Array
    """The merged id of each object, 0 first."""

    pen: Pen

    def content(self, digests: Array, strip_digests: Array) -> bytes:
        """Return a digest of what is drawn."""
        content = hashlib.blake2b(_VERSION, digest_size=16)
        content.update(repr((self.pen.spacing, self.pen.axes)).encode())
        numbers = sorted(self.objects)
        content.update(np.array(numbers, dtype=np.int64).data)
        content.update(np.ascontiguousarray(digests).data)
        content.update(np.ascontiguousarray(strip_digests[numbers]).data)
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

    @classmethod
    def of(
        cls,
        grid: TileGrid,
        edges: EdgeTable,
        counts: Array,
        options: MergeOptions,
        *,
        pixel_size: Mapping[str, float] | None = None,
        missing: frozenset[int] = frozenset(),
    ) -> Outlines:
        """Return how outlines are drawn.

        Parameters
        ----------
        grid : TileGrid
        edges : EdgeTable
        counts : ndarray of int64, shape (n_tiles,)
            Labels of each tile.
        options : MergeOptions
            Resolved.
        pixel_size : mapping of str to float, optional
            Lengths in one unit, by axis name.
        missing : frozenset of int
            Numbers of tiles that are holes, in which nothing is drawn.
        """
        pairs = edges.select(joined_pairs(edges, counts, options))
        return cls(
            grid,
            build_lut(pairs, counts, sequential=False),
            HaloOwners.of(edges, counts),
            Pen(grid, spacing_of(grid, pixel_size or {})),
            missing,
        )

    def of_block(self, block: TileBlock, lut: LookupTable) -> BlockOutlines:
        """Return what a block is drawn from, given the table of merged ids."""
        numbers = {tile.number for tile in block.tiles}
        for tile in block.tiles:
            around = tiles_around(self.grid, tile, self.pen.axes)
            numbers |= {self.grid.tile(index).number for index, _ in around}
        staged = {number: self._of_tile(number) for number in sorted(numbers - self.missing)}
        occurring = np.unique(np.concatenate([np.zeros(1, np.int64), *staged.values()]))
        objects = {
            number: np.searchsorted(occurring, ids).astype(np.int32)
            for number, ids in staged.items()
        }
        return BlockOutlines(objects, lut.of_staged(occurring), self.pen)

    def _of_tile(self, number: int) -> Array:
        """Return the standing id of each local id of a tile, and 0 for those beyond."""
        core = self.standing.of_tile(number).astype(np.int64)
        owners = self.owners.of_tile(number, len(core) - 1)
        return np.concatenate([core, self.standing.of_staged(owners), np.zeros(1, np.int64)])


def tiles_around(
    grid: TileGrid, tile: Tile, axes: tuple[int, ...]
) -> Iterator[tuple[tuple[int, ...], tuple[int, Side]]]:
    """Yield the neighbours of a tile across some axes: index, and which strip of each faces it."""
    choices = [(-1, 0, 1) if axis in axes else (0,) for axis in range(grid.ndim)]
    for step in product(*choices):
        index = tuple(i + s for i, s in zip(tile.index, step, strict=True))
        if any(step) and all(0 <= i < n for i, n in zip(index, grid.grid_shape, strict=True)):
            axis = next(axis for axis, s in enumerate(step) if s)
            yield index, (axis, LOW if step[axis] > 0 else HIGH)


def draw_block(
    stage: StagedPixels, block: TileBlock, outlines: BlockOutlines
) -> npt.NDArray[np.int32] | None:
    """Return the objects of a block's core, as numbered in `outlines`.

    None where no core of the block is drawn: each is as its tile has it.
    """
    reader = _Reader(stage, block, outlines)
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
        drawn[place] = draw_core(reader.whole_view(tile), others, outlines.pen)
    return drawn


class _Reader:
    """Reads what tiles saw, every array once, for the tiles of one block."""

    def __init__(self, stage: StagedPixels, block: TileBlock, outlines: BlockOutlines) -> None:
        self.stage, self.block, self.outlines = stage, block, outlines
        self._strips: dict[tuple[tuple[int, ...], tuple[int, Side]], Array] = {}
        self._labels: Array | None = None

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
        if self._labels is None:
            self._labels = self.stage.labels(self.block)
        return self._labels[tile.core.slices_from(self.block.core.start)]

    def agree(self, tile: Tile) -> bool:
        """Tell whether the neighbours of a tile saw the same objects in its core as the tile."""
        objects = self.outlines.objects
        for other, _ in self.staged_around(tile):
            common = common_region(tile.core, other.read)
            if common is None or not (objects[tile.number].any() or objects[other.number].any()):
                continue
            theirs = self._seen_by(other, tile, common)
            runs = PairedRuns.of(self.labels(tile)[common.slices_from(tile.core.start)], theirs)
            own = np.take(objects[tile.number], runs.a, mode="clip")
            if (own != np.take(objects[other.number], runs.b, mode="clip")).any():
                return False
        return True

    def _seen_by(self, other: Tile, tile: Tile, region: Region) -> Array:
        """Return the local ids that a neighbour saw in a region of a tile's core."""
        if not self.outlines.objects[other.number].any():
            return _background(region.shape)
        grid = self.stage.grid
        steps = [a - b for a, b in zip(tile.index, other.index, strict=True)]
        axis = smallest_strip(grid, steps)
        return self._strip(other, (axis, HIGH if steps[axis] > 0 else LOW), region)

    def view(self, tile: Tile, place: tuple[int, Side]) -> View:
        """Return what a tile saw in one strip."""
        region = strip_region(self.stage.grid, tile, *place)
        return self._view(tile, region, lambda: self._strip(tile, place, region))

    def whole_view(self, tile: Tile) -> View:
        """Return what a tile saw of its core and its halos."""
        axes = self.outlines.pen.axes
        bounds = [
            (r.start[axis], r.stop[axis])
            for axis in range(self.stage.grid.ndim)
            for r in (tile.read if axis in axes else tile.core,)
        ]
        region = Region(tuple(a for a, _ in bounds), tuple(b for _, b in bounds))

        def pixels() -> Array:
            ids = np.zeros(region.shape, dtype=np.int32)
            places = [place for _, place in tiles_around(self.stage.grid, tile, axes)]
            for axis, side in dict.fromkeys(places):
                mine: tuple[int, Side] = (axis, HIGH if side == LOW else LOW)
                part = strip_region(self.stage.grid, tile, *mine)
                inside = Region(
                    tuple(map(max, part.start, region.start)),
                    tuple(map(min, part.stop, region.stop)),
                )
                ids[inside.slices_from(region.start)] = self._strip(tile, mine, inside)
            ids[tile.core.slices_from(region.start)] = self.labels(tile)
            return ids

        return self._view(tile, region, pixels)

    def _view(self, tile: Tile, region: Region, pixels: Callable[[], Array]) -> View:
        objects = self.outlines.objects[tile.number]
        occurring = np.unique(objects)
        occurring = occurring[occurring > 0]
        if not len(occurring):
            return View(tile, region, np.zeros(region.shape, dtype=np.int32), occurring)
        return View(tile, region, np.take(objects, pixels(), mode="clip"), occurring)

    def _strip(self, tile: Tile, place: tuple[int, Side], region: Region) -> Array:
        grid, (axis, side) = self.stage.grid, place
        index = grid.block_index_of(tile.index)
        if (index, place) not in self._strips:
            self._strips[index, place] = self.stage.strips(grid.block(index), [place])[place]
        strip = strip_of_tile(grid, self._strips[index, place], tile.index, axis)
        return part_of_strip(grid, tile, strip, axis, side, region)


def _background(shape: tuple[int, ...]) -> Array:
    """Return labels of background, which take no memory."""
    return np.broadcast_to(np.zeros((), dtype=np.uint16), shape)
