"""The file of one tile block: everything that is kept of its tiles, committed at once.

============  =================================================================================
``labels``    of the core, the tiles side by side, or their runs (`block_labels`)
``strips/*``  by axis and side, the strips of its tiles side by side
``areas``     pixels of each label in the core, tile after tile
``whole``     where objects are measured: sums of coordinates, box starts and box stops
``real``      where objects are measured: sums, minima and maxima of intensity
============  =================================================================================

The header has the plan, and of each tile its count and a checksum of the pixels that it read.
Nothing is stored of arrays that are all 0: an empty tile is a header.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from patchworks_core.errors import StageError
from patchworks_core.files.packed import DIGEST_OF_BACKGROUND, PackedFile, pack
from patchworks_core.files.tables import DamagedError
from patchworks_core.seams.strips import (
    HIGH,
    LOW,
    Side,
    cut_planes,
    cut_strip,
    slot_shape,
    slot_slices,
    strip_axes,
)
from patchworks_core.stage.block_labels import (
    arrays_of_labels,
    counted_over_block,
    digest_of_labels,
)
from patchworks_core.stage.label_runs import LabelRuns
from patchworks_core.stage.object_sums import ObjectSums
from patchworks_core.stage.tile_labels import NumberedLabels
from patchworks_core.tiles.grid import Tile, TileBlock, TileGrid

Array = npt.NDArray[Any]

NOT_STAGED = -1
"""Count of a tile that has no commit record."""

_SIDES: tuple[Side, Side] = (LOW, HIGH)


@dataclass(frozen=True, slots=True)
class StagedTile:
    """What is kept of one tile."""

    tile: Tile
    labels: NumberedLabels

    objects: ObjectSums | None = None
    """None where nobody asks for more than areas."""

    pixels: int = 0
    """Checksum of the pixels that it read; 0 where it read none."""


@dataclass(frozen=True, slots=True)
class BlockSummary:
    """What the header of a block's file says."""

    plan: str
    """Fingerprint of the plan that it was staged by."""

    counts: tuple[int, ...]
    """Labels of each tile."""

    pixels: tuple[int, ...]
    """Checksum of what each tile read."""

    digest: int
    """Of the labels."""

    strips: int
    """Digest of the strips."""

    n_bytes: int
    """Length of the file."""

    @classmethod
    def of(cls, packed: PackedFile, *, key: str) -> BlockSummary:
        """Read the header of the file of the block that `key` names.

        Raises
        ------
        DamagedError
            If it is that of another one.
        """
        header = packed.header
        if header["block"] != key:
            raise DamagedError(f"it is that of tile block {header['block']!r}")
        return cls(
            header["plan"],
            tuple(header["counts"]),
            tuple(header["pixels"]),
            digest_of_labels(packed),
            _digest_of_strips(packed),
            packed.n_bytes,
        )


def pack_summaries(keys: Sequence[str], summaries: Sequence[BlockSummary], marks: Array) -> bytes:
    """Return a file of what the headers of blocks say.

    Parameters
    ----------
    keys : sequence of str
        Of the blocks.
    summaries : sequence of BlockSummary
        One per key.
    marks : ndarray of int64, shape (n, any)
        What is to be kept beside each.
    """
    plans = sorted({summary.plan for summary in summaries})
    whole = [(plans.index(s.plan), s.n_bytes, len(s.counts)) for s in summaries]
    arrays = {
        "keys": np.frombuffer("\n".join(keys).encode(), dtype=np.uint8),
        "marks": marks,
        "whole": np.array(whole, dtype=np.int64),
        "digests": np.array([(s.digest, s.strips) for s in summaries], dtype=np.uint64),
        "counts": np.array([n for s in summaries for n in s.counts], dtype=np.int64),
        "pixels": np.array([n for s in summaries for n in s.pixels], dtype=np.uint64),
    }
    return pack({"plans": plans}, arrays)


def unpack_summaries(packed: PackedFile) -> tuple[list[str], list[BlockSummary], Array]:
    """Return keys, summaries and marks as `pack_summaries` was given them.

    Raises
    ------
    DamagedError
        If they are not what was written.
    """
    arrays = packed.load(packed.arrays)
    keys = arrays["keys"].tobytes().decode().split("\n")
    plans = packed.header["plans"]
    counts, pixels = arrays["counts"].tolist(), arrays["pixels"].tolist()
    summaries, first = [], 0
    for (plan, n_bytes, n), (digest, strips) in zip(
        arrays["whole"].tolist(), arrays["digests"].tolist(), strict=True
    ):
        of_tiles = tuple(counts[first : first + n]), tuple(pixels[first : first + n])
        summaries.append(BlockSummary(plans[plan], *of_tiles, digest, strips, n_bytes))
        first += n
    return keys, summaries, arrays["marks"]


def encode_block(
    grid: TileGrid, block: TileBlock, tiles: Sequence[StagedTile], *, plan: str
) -> bytes:
    """Return the file of a block.

    Parameters
    ----------
    grid : TileGrid
    block : TileBlock
    tiles : sequence of StagedTile
        One per tile of the block, in its order.
    plan : str
        Fingerprint of the plan.
    """
    objects = [staged.objects for staged in tiles if staged.objects is not None]
    header = {
        "plan": plan,
        "block": block.key,
        "counts": [staged.labels.n_core for staged in tiles],
        "pixels": [staged.pixels for staged in tiles],
        "measured": objects[0].measured if objects else None,
    }
    labels = _labels_of(block, tiles)
    arrays: dict[str, Array] = {}
    for axis in strip_axes(grid):
        for side in _SIDES:
            strips = _strips_of(grid, block, tiles, labels, axis, side)
            arrays[_strips_name(axis, side)] = strips
    arrays["areas"] = np.concatenate([staged.labels.areas for staged in tiles])
    if objects:
        arrays["whole"] = np.concatenate([np.hstack(_whole(sums)) for sums in objects])
        arrays["real"] = np.concatenate([np.stack(_real(sums), axis=1) for sums in objects])
    return pack(header, {**arrays, **arrays_of_labels(_as_kept(grid, tiles, labels))})


def _labels_of(block: TileBlock, tiles: Sequence[StagedTile]) -> Array:
    """Return the labels of a block's core, local ids."""
    filled = [staged for staged in tiles if staged.labels.n_core]
    if not filled:
        return _background(block.core.shape)
    cores = [
        staged.labels.pixels[staged.tile.core.slices_from(staged.tile.read.start)]
        for staged in filled
    ]
    if len(tiles) == 1:
        return cores[0]
    labels = np.zeros(block.core.shape, dtype=np.result_type(*cores))
    for staged, core in zip(filled, cores, strict=True):
        labels[staged.tile.core.slices_from(block.core.start)] = core
    return labels


def _as_kept(grid: TileGrid, tiles: Sequence[StagedTile], labels: Array) -> Array | LabelRuns:
    """Return the labels of a block's core, or their runs counted over its tiles."""
    counts = [staged.labels.n_core for staged in tiles]
    if not any(counts):
        return labels
    if len(tiles) == 1:
        return labels if tiles[0].labels.core_runs is None else tiles[0].labels.core_runs
    runs = LabelRuns.of(labels, box=grid.tile_shape)
    return labels if runs is None else counted_over_block(runs, counts, grid.tile_shape)


def _background(shape: tuple[int, ...]) -> Array:
    """Return labels of background, which take no memory."""
    return np.broadcast_to(np.zeros((), dtype=np.uint16), shape)


def _strips_of(
    grid: TileGrid,
    block: TileBlock,
    tiles: Sequence[StagedTile],
    labels: Array,
    axis: int,
    side: Side,
) -> Array:
    """Return the strips of a block's tiles across one axis, side by side; `labels` of its core."""
    slot, first = slot_shape(grid, axis), block.tiles[0].index
    sizes = [last - f + 1 for f, last in zip(first, block.tiles[-1].index, strict=True)]
    shape = tuple(n * s for n, s in zip(sizes, slot, strict=True))
    filled = [staged for staged in tiles if staged.labels.n_seen]
    if not filled:
        return _background(shape)
    if len(tiles) == 1:
        only = tiles[0].labels
        return cut_strip(grid, tiles[0].tile, only.pixels, axis, side, only.dtype)
    if not any(grid.halo):
        return cut_planes(grid, block, labels, axis, side)
    strips = np.zeros(shape, dtype=np.result_type(*(s.labels.pixels.dtype for s in filled)))
    for staged in filled:
        place = slot_slices(staged.tile.index, first, slot)
        strips[place] = cut_strip(grid, staged.tile, staged.labels.pixels, axis, side)
    return strips


def _digest_of_strips(packed: PackedFile) -> int:
    names = (name for name in packed.arrays if name.startswith("strips/"))
    return _digest_of([packed.arrays[name].digest for name in names])


def digest_of_blank_strips(grid: TileGrid) -> int:
    """Return the digest of strips (`BlockSummary.strips`) that are all background."""
    return _digest_of([DIGEST_OF_BACKGROUND] * len(_SIDES) * len(strip_axes(grid)))


def _digest_of(digests: Sequence[str]) -> int:
    content = hashlib.blake2b("".join(digests).encode(), digest_size=8)
    return int.from_bytes(content.digest(), "little")


def strips_in(
    grid: TileGrid, packed: PackedFile, places: Sequence[tuple[int, Side]] | None = None
) -> dict[tuple[int, Side], Array]:
    """Return strips of a block, by axis and side; all of them by default."""
    if places is None:
        places = [(axis, side) for axis in strip_axes(grid) for side in _SIDES]
    arrays = packed.load([_strips_name(axis, side) for axis, side in places])
    return {(axis, side): arrays[_strips_name(axis, side)] for axis, side in places}


def objects_in(axes: str, packed: PackedFile) -> ObjectSums:
    """Return the object sums of a block, one row per label, tile after tile.

    Raises
    ------
    DamagedError
        If they are not what was written.
    StageError
        If the tiles were staged without.
    """
    counts, measured = packed.header["counts"], packed.header["measured"]
    if measured is None:
        raise StageError(
            f"the objects of tile block {packed.header['block']!r} were not measured when it was "
            "staged; stage the image again with Staging(measures=True)"
        )
    arrays = packed.load(["areas", "whole", "real"])
    position_sum, start, stop = np.split(arrays["whole"], 3, axis=1)
    intensity_sum, intensity_min, intensity_max = np.ascontiguousarray(arrays["real"].T)
    return ObjectSums(
        axes,
        measured,
        np.concatenate([np.arange(1, n + 1, dtype=np.int64) for n in counts]),
        arrays["areas"],
        position_sum,
        start,
        stop,
        intensity_sum,
        intensity_min,
        intensity_max,
        n_tiles=np.ones(sum(counts), np.int64),
    )


def _whole(sums: ObjectSums) -> tuple[Array, Array, Array]:
    return sums.position_sum, sums.start, sums.stop


def _real(sums: ObjectSums) -> tuple[Array, Array, Array]:
    return sums.intensity_sum, sums.intensity_min, sums.intensity_max


def _strips_name(axis: int, side: Side) -> str:
    return f"strips/{axis}/{side}"
