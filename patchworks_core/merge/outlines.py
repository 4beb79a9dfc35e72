"""Outlines of a stage: how its cores are drawn, and how large objects are when they are."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from patchworks_core.machine.pools import Pool
from patchworks_core.seams.edge_table import EdgeTable
from patchworks_core.seams.rules import MergeOptions
from patchworks_core.seams.views import BlockOutlines, Outlines, draw_block
from patchworks_core.stage.block_files import NOT_STAGED
from patchworks_core.stage.stage import Stage
from patchworks_core.tiles.grid import TileBlock

Array = npt.NDArray[Any]


def outlines_of(
    stage: Stage, edges: EdgeTable, options: MergeOptions, *, allow_missing: bool = False
) -> Outlines | None:
    """Return how the cores of a stage are drawn; None where each tile draws its own.

    Parameters
    ----------
    stage : Stage
    edges : EdgeTable
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
    )


@dataclass(frozen=True, slots=True)
class _CountTask:
    stage: Stage

    def __call__(self, item: tuple[TileBlock, BlockOutlines]) -> tuple[Array, Array]:
        block, outlines = item
        drawn = draw_block(self.stage, block, outlines)
        return outlines.ids, np.bincount(drawn.reshape(-1), minlength=len(outlines.ids))


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
    blocks = ((block, outlines.of_block(block, outlines.standing)) for block in stage.grid.blocks())
    for ids, pixels in pool.map(_CountTask(stage), blocks, step="drawing outlines"):
        areas[ids] += pixels
    return areas[1:]
