"""What went wrong at the seams of a merged label image whose truth is known.

The truth is cut along the tile grid. Each *piece* of a true object is held by the label that has
most of its pixels (by none, where that is background):

- an object that crosses a seam is *split* where its pieces are held by more than one label;
- an object that touches a seam is *fused* where a label that holds one of its pieces also holds a
  piece of another object.

Pieces smaller than the disagreement can resolve are left out (`min_piece`), and objects with them
that have no other.
"""

from __future__ import annotations

from dataclasses import dataclass, fields
from typing import Any

import numpy as np
import numpy.typing as npt
from skimage.metrics import contingency_table

from patchworks_core.pilot.agreement import compare_objects
from patchworks_core.tiles.grid import TileGrid

Labels = npt.NDArray[Any]


@dataclass(frozen=True, slots=True)
class Score:
    """Counts, which can be added over images and seeds."""

    n_crossing: int = 0
    """True objects with pieces in more than one tile."""

    n_split: int = 0
    """Of those, held by more than one label."""

    n_touching: int = 0
    """True objects with a pixel on either side of a seam."""

    n_fused: int = 0
    """Of those, sharing a label with another object."""

    matched: float = 0
    """Sum of IoU over the objects at seams that are matched (IoU above 0.5)."""

    n_matched: int = 0
    """Objects at seams that are matched."""

    n_missed: int = 0
    """True objects at seams that are not."""

    n_extra: int = 0
    """Labels at seams that are not matched to any true object."""

    n_same: int = 0
    """Objects matched between the tiled and the untiled result."""

    n_both: int = 0
    """Objects of the two results together."""

    def __add__(self, other: Score) -> Score:
        return Score(*(getattr(self, f.name) + getattr(other, f.name) for f in fields(self)))

    @property
    def split(self) -> float:
        """Share of crossing objects that are split."""
        return self.n_split / max(self.n_crossing, 1)

    @property
    def fuse(self) -> float:
        """Share of touching objects that are fused."""
        return self.n_fused / max(self.n_touching, 1)

    @property
    def pq(self) -> float:
        """Panoptic quality of the objects at seams (Kirillov et al., CVPR 2019)."""
        n = self.n_matched + (self.n_missed + self.n_extra) / 2
        return self.matched / n if n else 1.0

    @property
    def f1(self) -> float:
        """Object F1 at IoU 0.5 against the untiled result."""
        return 2 * self.n_same / self.n_both if self.n_both else 1.0


def score(
    truth: Labels, merged: Labels, untiled: Labels, grid: TileGrid, *, min_piece: int
) -> Score:
    """Compare a merged label image with the truth at the seams, and with the untiled result."""
    crossing, split, touching, fused = _pieces(truth, merged, grid, min_piece)
    matched = _matched(truth, merged)
    at_seam = seam_pixels(grid)
    true_ids = _ids(truth[at_seam])
    true_ids = true_ids[np.isin(true_ids, touching)]
    found_ids = _ids(merged[at_seam])
    same = compare_objects(untiled, merged)
    hits = [matched[0][t] for t in true_ids.tolist() if t in matched[0]]
    return Score(
        n_crossing=len(crossing),
        n_split=len(split),
        n_touching=len(touching),
        n_fused=len(fused),
        matched=sum(hits),
        n_matched=len(hits),
        n_missed=len(true_ids) - len(hits),
        n_extra=sum(i not in matched[1] for i in found_ids.tolist()),
        n_same=same.n_matched,
        n_both=same.n_truth + same.n_found,
    )


def seam_pixels(grid: TileGrid) -> npt.NDArray[np.bool_]:
    """Return the pixels on either side of a face."""
    at = np.zeros(grid.shape, bool)
    for axis in grid.spatial:
        for border in range(grid.tile_shape[axis], grid.shape[axis], grid.tile_shape[axis]):
            np.moveaxis(at, axis, 0)[border - 1 : border + 1] = True
    return at


def _pieces(
    truth: Labels, merged: Labels, grid: TileGrid, min_piece: int
) -> tuple[Labels, Labels, Labels, Labels]:
    """Return the ids of the objects that cross, are split, touch, and are fused."""
    tile = np.zeros(grid.shape, np.int64)
    for t in grid.tiles():
        tile[t.core.slices] = t.number
    inside = truth > 0
    keys, piece = np.unique(
        truth[inside].astype(np.int64) * grid.n_tiles + tile[inside], return_inverse=True
    )
    width = int(merged.max(initial=0)) + 1
    held, n = np.unique(piece * width + merged[inside], return_counts=True)
    order = np.lexsort((-n, held // width))
    first = np.unique((held // width)[order], return_index=True)[1]
    holder = (held % width)[order][first]
    counts = np.bincount(piece)
    owner = keys // grid.n_tiles
    big = counts >= min_piece
    owner, holder = owner[big], holder[big]

    ids, n_pieces = np.unique(owner, return_counts=True)
    crossing = ids[n_pieces > 1]
    links = np.unique(np.stack([owner, holder])[:, holder > 0], axis=1)
    split = _repeated(links[0])
    shared = np.isin(links[1], _repeated(links[1]))
    touching = np.intersect1d(ids, _ids(truth[seam_pixels(grid)]))
    return crossing, split, touching, np.intersect1d(touching, links[0][shared])


def _repeated(values: Labels) -> Labels:
    found, n = np.unique(values, return_counts=True)
    return found[n > 1]


def _ids(labels: Labels) -> Labels:
    found = np.unique(labels)
    return found[found > 0]


def _matched(truth: Labels, merged: Labels) -> tuple[dict[int, float], set[int]]:
    """Return the IoU of every true object that is matched, and the labels that match one."""
    common = contingency_table(truth, merged).tocoo()
    inside = (common.row > 0) & (common.col > 0)
    rows, columns, n = common.row[inside], common.col[inside], common.data[inside]
    union = np.bincount(truth.ravel())[rows] + np.bincount(merged.ravel())[columns] - n
    good = 2 * n > union
    iou = (n / union)[good].tolist()
    return dict(zip(rows[good].tolist(), iou, strict=True)), set(columns[good].tolist())
