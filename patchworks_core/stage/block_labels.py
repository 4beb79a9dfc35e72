"""The labels of a tile block as its file keeps them: by their runs, or pixel by pixel.

Runs, where they are long enough (`LabelRuns.of`), are a fiftieth of the pixels: they take a quarter
of the time to pack, and merged labels are made of them without looking for runs again. Their ids
are counted over the tiles of the block, so that one table gives the merged id of all:

==================  ===========================================================================
``labels``          local ids, each tile its own 1..n; where there are no runs
``runs/ids``        of each run: the local id, and the labels of the tiles before; 0 is background
``runs/lengths``    pixels of each run
==================  ===========================================================================
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from hashlib import blake2b
from math import prod
from typing import Any

import numpy as np
import numpy.typing as npt

from patchworks_core.files.packed import PackedFile
from patchworks_core.files.tables import DamagedError
from patchworks_core.stage.label_runs import LabelRuns
from patchworks_core.tiles.grid import TileBlock

Array = npt.NDArray[Any]

_IDS, _LENGTHS = "runs/ids", "runs/lengths"


def arrays_of_labels(labels: Array | LabelRuns) -> dict[str, Array]:
    """Return what a file keeps of labels, or of runs whose ids are counted over the block."""
    if not isinstance(labels, LabelRuns):
        return {"labels": labels}
    return {_IDS: _smallest(labels.ids), _LENGTHS: _smallest(labels.lengths)}


def _smallest(values: Array) -> Array:
    """Return numbers in the smallest unsigned type that holds them, 16 bits or more."""
    largest = int(values.max(initial=0))
    return values.astype(np.promote_types(np.min_scalar_type(largest), np.uint16), copy=False)


def counted_over_block(runs: LabelRuns, counts: Sequence[int], box: tuple[int, ...]) -> LabelRuns:
    """Return runs of local ids with ids counted over the tiles.

    Parameters
    ----------
    runs : LabelRuns
        Of the block's core; none reaches from one tile into the next.
    counts : sequence of int
        Labels of each tile, in row-major order.
    box : tuple of int
        Shape of a tile.
    """
    n_tiles = [-(-n // length) for n, length in zip(runs.shape, box, strict=True)]
    pixel = np.unravel_index(runs.starts, runs.shape)
    place = tuple(at // length for at, length in zip(pixel, box, strict=True))
    before = np.cumsum([0, *counts[:-1]])[np.ravel_multi_index(place, tuple(n_tiles))]
    return replace(runs, ids=np.where(runs.ids > 0, runs.ids + before, 0))


def labels_in(packed: PackedFile, block: TileBlock) -> Array | LabelRuns:
    """Return the labels of a block as they are kept; ids of runs are counted over the block.

    Raises
    ------
    DamagedError
        If they are not what was written.
    """
    if _IDS not in packed.arrays:
        return packed.load(["labels"])["labels"]
    arrays = packed.load([_IDS, _LENGTHS])
    runs = LabelRuns(arrays[_IDS], arrays[_LENGTHS], block.core.shape)
    if runs.lengths.sum(dtype=np.int64) != prod(runs.shape):
        raise DamagedError(f"runs of labels do not make up a block of shape {runs.shape}")
    return runs


def local_labels(labels: Array | LabelRuns, counts: Sequence[int]) -> Array:
    """Return the local ids of each pixel, given what is kept and the labels of each tile."""
    if not isinstance(labels, LabelRuns):
        return labels
    dtype = np.uint16 if max(counts) <= np.iinfo(np.uint16).max else np.int32
    ids = [np.zeros(1, dtype), *(np.arange(1, n + 1, dtype=dtype) for n in counts)]
    return labels.taken_from(np.concatenate(ids))


def digest_of_labels(packed: PackedFile) -> int:
    """Return a digest of the labels as they are kept; 64 bits."""
    if _IDS not in packed.arrays:
        return int(packed.arrays["labels"].digest, 16)
    digests = packed.arrays[_IDS].digest + packed.arrays[_LENGTHS].digest
    return int.from_bytes(blake2b(digests.encode(), digest_size=8).digest(), "little")
