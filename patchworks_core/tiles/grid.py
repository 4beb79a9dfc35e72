"""The tile grid: which pixels each tile owns, reads, and shares.

Cores partition the image: every pixel belongs to exactly one. A tile reads its core plus a halo,
so the segmentation function sees context, and writes its core only. Two tiles whose cores abut
share a face, and an object cut by that face carries two ids until the merge::

    |<------ read ------>|
    |halo|     core      |halo|
                    |halo|     core      |halo|
                         ^ face

Tiles are grouped into blocks, boxes of neighbouring tiles that are read, committed and retried
together. A block is one tile unless tiles are so many that per-tile costs would rule.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, field
from functools import cached_property
from itertools import product
from math import ceil, prod
from operator import index
from typing import Any

import numpy as np
import numpy.typing as npt

from patchworks_core.errors import PlanError
from patchworks_core.tiles.numbers import whole_number
from patchworks_core.tiles.regions import Region

SPATIAL_AXES = "zyx"
"""Axes that are tiled, given a halo, and merged across."""

LEAST_BLOCKS = 64
"""So many blocks need not be grouped any more, so that there is work for many workers."""

_MOST_PIXELS = 1 << 22
"""Of a block that is larger than it would be, to hold whole chunks."""

AXES = "tc" + SPATIAL_AXES
"""Axes an image may have (OME-NGFF names), in the order NGFF asks for."""


@dataclass(frozen=True, slots=True)
class Tile:
    """One unit of work: read `read`, segment it, keep and write `core`."""

    index: tuple[int, ...]
    """Position in the grid, per axis."""

    number: int
    """Position in the grid in row-major order."""

    core: Region
    """Pixels this tile owns."""

    read: Region
    """Pixels this tile reads: `core` plus the halo, clipped to the image."""

    @property
    def core_inside(self) -> Region | None:
        """The core, counted from the first pixel that is read; None where that is all of them."""
        return None if self.core == self.read else self.core.relative_to(self.read.start)


@dataclass(frozen=True, slots=True)
class Face:
    """Where the cores of two tiles abut, in a plane, along an edge, or at a corner."""

    low: Tile
    """The tile that comes first in row-major order."""

    high: Tile
    """The tile that comes later."""

    step: tuple[int, ...]
    """`high.index - low.index`: -1, 0 or 1 per axis, the first that is not 0 being 1."""

    @property
    def axis(self) -> int:
        """Axis across which the cores abut; the first of them at an edge or corner."""
        return next(axis for axis, step in enumerate(self.step) if step)

    @property
    def is_plane(self) -> bool:
        """True where the tiles share a whole plane, not only an edge or a corner."""
        return sum(map(abs, self.step)) == 1


@dataclass(frozen=True)
class TileBlock:
    """A box of neighbouring tiles: the unit of I/O, commit, retry and partition."""

    key: str
    """Name of the block within its image, such as ``z000y003x011``; sorts in row-major order."""

    index: tuple[int, ...]
    """Position in the grid of blocks, per axis."""

    core: Region
    """Pixels the tiles own together."""

    read: Region
    """Pixels the tiles read together."""

    grid: TileGrid = field(repr=False)
    """What it is a block of."""

    @cached_property
    def tiles(self) -> tuple[Tile, ...]:
        """The tiles, in row-major order."""
        return tuple(self.grid.tile(index) for index in product(*self._ranges))

    @property
    def indexes(self) -> npt.NDArray[np.int64]:
        """Positions of the tiles in the grid, shape (n_tiles, ndim)."""
        axes = np.meshgrid(*(np.arange(r.start, r.stop) for r in self._ranges), indexing="ij")
        return np.stack([axis.reshape(-1) for axis in axes], axis=1)

    @property
    def numbers(self) -> npt.NDArray[np.int64]:
        """Numbers of the tiles in the grid, shape (n_tiles,)."""
        return np.asarray(np.ravel_multi_index(tuple(self.indexes.T), self.grid.grid_shape))

    @property
    def _ranges(self) -> tuple[range, ...]:
        return tuple(range(s.start, s.stop) for s in self.grid.tile_slices(self.index))

    def __getstate__(self) -> dict[str, Any]:
        return {name: value for name, value in vars(self).items() if name != "tiles"}


@dataclass(frozen=True)
class TileGrid:
    """The plan of tiles over an n-D image with named axes.

    Time and channel are stepped one index at a time and never given a halo. A tile one pixel
    thick on an axis has no halo there, so that a plane-wise function sees one plane.

    Raises
    ------
    PlanError
        If the values do not describe a grid.

    Examples
    --------
    >>> grid = TileGrid(axes="yx", shape=(100, 60), tile_shape=(40, 40), halo=(8, 8))
    >>> grid.grid_shape, grid.n_tiles
    ((3, 2), 6)
    >>> grid.tile((2, 1)).core
    Region(start=(80, 40), stop=(100, 60))
    >>> grid.tile((2, 1)).read
    Region(start=(72, 32), stop=(100, 60))
    """

    axes: str
    """Axis names, a subset of ``tczyx`` in that order."""

    shape: tuple[int, ...]
    """Pixels of the image, per axis."""

    tile_shape: tuple[int, ...]
    """Pixels of a core, per axis; the last tile of an axis may be smaller."""

    halo: tuple[int, ...]
    """Context read on each side of a core, pixels per axis."""

    block_shape: tuple[int, ...] = ()
    """Tiles per block, per axis; empty means one tile."""

    def __post_init__(self) -> None:
        if not self.block_shape:
            object.__setattr__(self, "block_shape", (1,) * len(self.axes))
        self._check()

    def _check(self) -> None:
        """Raise PlanError, naming the first rule that is broken."""
        positions = [AXES.find(axis) for axis in self.axes]
        if -1 in positions or positions != sorted(set(positions)) or not self.axes:
            raise PlanError(f"axes must be some of {AXES!r} in that order, got {self.axes!r}")
        for name in ("shape", "tile_shape", "halo", "block_shape"):
            values = getattr(self, name)
            if len(values) != len(self.axes):
                raise PlanError(f"{name} needs one value per axis of {self.axes!r}, got {values!r}")
            if not all(isinstance(v, int) for v in values):
                raise PlanError(f"{name} must hold whole numbers, got {values!r}")
            if min(values) < (0 if name == "halo" else 1):
                bound = "0 or more" if name == "halo" else "at least 1"
                raise PlanError(f"{name} must be {bound} on every axis, got {values!r}")
        for axis, size, tile, halo in zip(
            self.axes, self.shape, self.tile_shape, self.halo, strict=True
        ):
            if axis not in SPATIAL_AXES and tile != 1:
                raise PlanError(f"a tile holds one index of axis {axis!r}, got tile size {tile}")
            if halo and (axis not in SPATIAL_AXES or tile == 1):
                raise PlanError(f"a tile 1 thick on axis {axis!r} has no halo there, got {halo}")
            if tile > size:
                raise PlanError(f"a tile of {tile} does not fit axis {axis!r} of {size} pixels")

    @property
    def ndim(self) -> int:
        """Number of axes."""
        return len(self.axes)

    @cached_property
    def spatial(self) -> tuple[int, ...]:
        """Positions of the spatial axes."""
        return tuple(i for i, axis in enumerate(self.axes) if axis in SPATIAL_AXES)

    @cached_property
    def grid_shape(self) -> tuple[int, ...]:
        """Tiles per axis."""
        return tuple(ceil(n / t) for n, t in zip(self.shape, self.tile_shape, strict=True))

    @property
    def n_tiles(self) -> int:
        """Number of tiles."""
        return prod(self.grid_shape)

    @cached_property
    def blocks_shape(self) -> tuple[int, ...]:
        """Blocks per axis."""
        return tuple(ceil(n / b) for n, b in zip(self.grid_shape, self.block_shape, strict=True))

    def box(self, region: Region) -> str:
        """Return the pixels of a region, per axis, in words.

        Examples
        --------
        >>> grid = plan_grid("yx", (40, 40), tile_shape=20)
        >>> grid.box(grid.tile((0, 1)).core)
        'y 0:20, x 20:40'
        """
        bounds = zip(self.axes, region.start, region.stop, strict=True)
        return ", ".join(f"{axis} {start}:{stop}" for axis, start, stop in bounds)

    @property
    def units(self) -> str:
        """What `n_blocks` counts, in words: tiles, or blocks of some where they share a file."""
        return "tiles" if self.n_blocks == self.n_tiles else "tile blocks"

    @property
    def n_blocks(self) -> int:
        """Number of tile blocks."""
        return prod(self.blocks_shape)

    @property
    def read_factor(self) -> float:
        """Pixels the segmentation function sees, as a multiple of the pixels of the image.

        Counts the clipping at the borders of the image exactly, from per-axis sums.
        """
        factors = []
        for size, tile, halo in zip(self.shape, self.tile_shape, self.halo, strict=True):
            starts = range(0, size, tile)
            read = sum(min(size, min(size, s + tile) + halo) - max(0, s - halo) for s in starts)
            factors.append(read / size)
        return prod(factors)

    def tile(self, index: Sequence[int]) -> Tile:
        """Return the tile at a position in the grid."""
        start = tuple(i * t for i, t in zip(index, self.tile_shape, strict=True))
        stop = tuple(
            min(n, a + t) for a, t, n in zip(start, self.tile_shape, self.shape, strict=True)
        )
        core = Region(start, stop)
        number = 0
        for i, n in zip(index, self.grid_shape, strict=True):
            number = number * n + i
        read = core.grow(self.halo, within=self.shape) if any(self.halo) else core
        return Tile(tuple(index), number, core, read)

    def tiles(self) -> Iterator[Tile]:
        """Yield every tile in row-major order."""
        return (self.tile(index) for index in np.ndindex(self.grid_shape))

    def block(self, index: Sequence[int]) -> TileBlock:
        """Return the tile block at a position in the grid of blocks."""
        places = zip(self.tile_slices(index), self.tile_shape, self.shape, strict=True)
        bounds = [(p.start * size, min(n, p.stop * size)) for p, size, n in places]
        core = Region(tuple(a for a, _ in bounds), tuple(b for _, b in bounds))
        read = core.grow(self.halo, within=self.shape)
        return TileBlock(self.block_key(index), tuple(index), core, read, self)

    def block_index_of(self, index: Sequence[int]) -> tuple[int, ...]:
        """Return the position of the block that holds the tile at `index`."""
        return tuple(i // n for i, n in zip(index, self.block_shape, strict=True))

    def tile_slices(self, index: Sequence[int]) -> tuple[slice, ...]:
        """Return where the tiles of a block stand among all tiles, by its position."""
        sizes = zip(index, self.block_shape, self.grid_shape, strict=True)
        return tuple(slice(i * b, min(n, (i + 1) * b)) for i, b, n in sizes)

    def block_of_number(self, number: int) -> TileBlock:
        """Return the tile block that has `number` before it in row-major order."""
        return self.block(tuple(map(int, np.unravel_index(number, self.blocks_shape))))

    def blocks(self) -> Iterator[TileBlock]:
        """Yield every tile block in row-major order."""
        return (self.block(index) for index in np.ndindex(self.blocks_shape))

    def block_keys(self) -> list[str]:
        """Return the key of every block, in row-major order."""
        return [self.block_key(index) for index in np.ndindex(self.blocks_shape)]

    def block_of_key(self, key: str) -> TileBlock:
        """Return the block that `key` names.

        Raises
        ------
        PlanError
            If the grid has no such block.
        """
        index = self.block_index_of_key.get(key)
        if index is None:
            keys = self.block_keys()
            raise PlanError(
                f"no tile block {key!r} in this grid, whose blocks are {keys[0]!r} to {keys[-1]!r}"
            )
        return self.block(index)

    @cached_property
    def block_index_of_key(self) -> dict[str, tuple[int, ...]]:
        """The position of every block, by its key."""
        return {self.block_key(index): index for index in np.ndindex(self.blocks_shape)}

    def block_key(self, index: Sequence[int]) -> str:
        """Return the name of the block at a position in the grid of blocks."""
        width = max(3, len(str(max(self.blocks_shape) - 1)))
        return "".join(f"{axis}{i:0{width}d}" for axis, i in zip(self.axes, index, strict=True))

    @property
    def steps(self) -> list[tuple[int, ...]]:
        """How the index of a neighbour later in row-major order differs, per axis."""
        choices = [(-1, 0, 1) if axis in SPATIAL_AXES else (0,) for axis in self.axes]
        return [step for step in product(*choices) if step > (0,) * self.ndim]

    def to_dict(self) -> dict[str, Any]:
        """Return the grid as JSON-ready values."""
        return asdict(self)

    @classmethod
    def from_dict(cls, record: dict[str, Any]) -> TileGrid:
        """Read what `to_dict` wrote; every value is checked again.

        Raises
        ------
        PlanError
            If a field is missing, unknown, or breaks a rule of the grid.
        """
        try:
            fields: dict[str, Any] = {
                name: value if isinstance(value, str) else tuple(value)
                for name, value in record.items()
            }
            return cls(**fields)
        except (AttributeError, TypeError) as error:
            raise PlanError(f"not the record of a tile grid: {record!r} ({error})") from error


def plan_grid(
    axes: str,
    shape: Sequence[int],
    *,
    tile_shape: Sequence[int] | int,
    overlap: Sequence[int] | int = 0,
    max_blocks: int | None = None,
    chunks: Sequence[int] | None = None,
) -> TileGrid:
    """Make a grid from what a person writes: scalars, short tuples, -1 for a whole axis.

    Parameters
    ----------
    axes : str
        Axis names of the label image, some of ``tczyx``.
    shape : sequence of int
        Pixels of the image, per axis.
    tile_shape : int or sequence of int
        Pixels of a core. A scalar applies to every spatial axis, a shorter sequence to the last
        axes (the others take the whole axis, or one index of time and channel); -1 is the whole
        axis. Larger than the image means the whole axis.
    overlap : int or sequence of int
        Halo on each side of a core, pixels, by the same rules; a shorter sequence leaves 0 on the
        first axes. Ignored on axes of one tile, which have no neighbour, and where tiles are one
        pixel thick.
    max_blocks : int, optional
        Group tiles into blocks so that there are at most this many.
    chunks : sequence of int, optional
        Pixels of the image's chunks, per axis. Blocks then grow until they hold whole chunks, while
        64 of them are left and they stay below four megapixels: a chunk that several blocks read
        is decoded several times.

    Returns
    -------
    TileGrid

    Raises
    ------
    PlanError
        If the values do not describe a grid.

    Examples
    --------
    >>> plan_grid("tyx", (5, 100, 60), tile_shape=40, overlap=8).tile_shape
    (1, 40, 40)
    >>> plan_grid("zyx", (8, 100, 60), tile_shape=(-1, 40, 40), overlap=8).halo
    (0, 8, 8)
    """
    shape = tuple(int(n) for n in shape)
    if len(shape) != len(axes):
        raise PlanError(f"shape needs one value per axis of {axes!r}, got {shape!r}")
    spatial = [i for i, axis in enumerate(axes) if axis in SPATIAL_AXES]
    sizes = _per_axis("tile_shape", tile_shape, axes, missing=-1)
    halos = _per_axis("overlap", overlap, axes, missing=0)
    tile, halo = [], []
    for i, (size, t, h) in enumerate(zip(shape, sizes, halos, strict=True)):
        whole = size if i in spatial else 1
        tile.append(whole if t == -1 else min(t, size))
        halo.append(0 if tile[-1] in (1, size) or i not in spatial else min(h, size))
    grid = TileGrid(axes, shape, tuple(tile), tuple(halo))
    block = (1,) * grid.ndim
    if max_blocks is not None:
        block = _block_shape(grid, whole_number("max_blocks", max_blocks, least=1), chunks)
    if chunks is not None:
        block = _whole_chunks(grid, block, chunks)
    return TileGrid(grid.axes, grid.shape, grid.tile_shape, grid.halo, block)


def _per_axis(name: str, value: Sequence[int] | int, axes: str, *, missing: int) -> list[int]:
    """Expand a scalar or a short sequence to one value per axis."""
    if isinstance(value, bool):
        raise PlanError(f"{name} must hold whole numbers, got {value!r}")
    if isinstance(value, (int, np.integer)):
        return [int(value) if axis in SPATIAL_AXES else missing for axis in axes]
    try:
        values = [index(v) for v in value]
    except TypeError as error:
        raise PlanError(f"{name} must hold whole numbers, got {value!r}") from error
    if not 1 <= len(values) <= len(axes):
        raise PlanError(
            f"{name} needs one value, or one per axis of {axes!r} counted from the last, "
            f"got {tuple(values)!r}"
        )
    return [missing] * (len(axes) - len(values)) + values


def _block_shape(grid: TileGrid, max_blocks: int, chunks: Sequence[int] | None) -> tuple[int, ...]:
    """Double the block along the axis with most blocks until there are few enough.

    Axes along which it is shorter than a chunk come first; before that spatial axes do, so that a
    block is one time point and one channel while it can be.
    """
    block = [1] * grid.ndim
    while True:
        counts = _block_counts(grid, block)
        if prod(counts) <= max_blocks:
            return tuple(block)
        candidates = [i for i in grid.spatial if counts[i] > 1] or range(grid.ndim)
        candidates = [i for i in candidates if _is_in_a_chunk(grid, block, chunks, i)] or candidates
        widest = max(candidates, key=lambda i: counts[i])
        block[widest] *= 2


def _whole_chunks(grid: TileGrid, block: tuple[int, ...], chunks: Sequence[int]) -> tuple[int, ...]:
    """Double a block along the axes on which it is shorter than a chunk, while many are left."""
    for axis in reversed(grid.spatial):
        while _is_in_a_chunk(grid, block, chunks, axis):
            larger = (*block[:axis], 2 * block[axis], *block[axis + 1 :])
            n_pixels = prod(n * t for n, t in zip(larger, grid.tile_shape, strict=True))
            if prod(_block_counts(grid, larger)) < LEAST_BLOCKS or n_pixels > _MOST_PIXELS:
                break
            block = larger
    return block


def _block_counts(grid: TileGrid, block: Sequence[int]) -> list[int]:
    return [ceil(n / b) for n, b in zip(grid.grid_shape, block, strict=True)]


def _is_in_a_chunk(
    grid: TileGrid, block: Sequence[int], chunks: Sequence[int] | None, axis: int
) -> bool:
    """Tell whether two blocks along an axis lie in one chunk."""
    length = 2 * block[axis] * grid.tile_shape[axis]
    return chunks is not None and length <= chunks[axis] and block[axis] < grid.grid_shape[axis]
