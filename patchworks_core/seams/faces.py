"""Figures of the seams: for each face of tiles, how far the two agree on the objects there.

A *face object* is a label in the plane of a face, in the core of either tile. It is scored by the
IoU with its mutual best partner in the region both tiles saw, 0 without; a pair counts once.
What is decided from them, see `patchworks_core.seams.judge`.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from patchworks_core.seams.edge_table import EdgeTable
from patchworks_core.seams.rules import best_partners
from patchworks_core.tiles.grid import TileGrid

Array = npt.NDArray[Any]

AGREES = 0.9
"""IoU from which two tiles agree on an object, as a share of the axis's median."""

FOUND = 0.5
"""IoU from which an object was found again: above it a partner is the only one."""

STRAIGHT = 0.75
"""Open length on a face that is a cut, in roots of the object's area: a disk of 20 pixels that
ends just at a face lies along it for 0.5."""


def tile_key(grid: TileGrid, number: int) -> str:
    """Return the name of a tile; its block's, where a block is one tile.

    Examples
    --------
    >>> tile_key(TileGrid("yx", (8, 8), (4, 4), (0, 0)), 2)
    'y001x000'
    """
    index = np.unravel_index(number, grid.grid_shape)
    width = max(3, len(str(max(grid.grid_shape) - 1)))
    return "".join(f"{a}{i:0{width}d}" for a, i in zip(grid.axes, index, strict=True))


@dataclass(frozen=True, slots=True, eq=False)
class SeamFaces:
    """Figures of every face with objects; columns of equal length."""

    tile_a: Array
    """Number of the tile that comes first."""

    tile_b: Array
    """Number of the other."""

    axis: Array
    """Axis across which they abut."""

    n_objects: Array
    """Face objects."""

    n_disagree: Array
    """Of them, those on which the tiles do not agree."""

    n_found: Array
    """Of them, those whose mutual best partner has an IoU of at least `FOUND`."""

    agreement: Array
    """Mean IoU with the mutual best partner, 0 without; 0 to 1."""

    n_orphans: Array
    """Labels in the plane of the face whose best partner is below the rule's `min_iou`."""

    n_cuts: Array
    """Labels that end at the face in a straight line."""

    def __len__(self) -> int:
        return len(self.tile_a)


@dataclass(frozen=True, slots=True)
class AxisSeams:
    """Figures of the seams across one axis."""

    axis: str
    n_faces: int
    n_objects: int
    share_found: float
    """Share of face objects that have a mutual best partner with an IoU of at least `FOUND`."""

    median_iou: float
    """Over the face objects that have a mutual best partner."""

    low_iou: float
    """Tenth percentile, over the same."""

    limit: float
    """IoU from which an object agrees."""

    n_disagree: int
    n_orphans: int
    n_cuts: int


def measure_faces(
    grid: TileGrid, edges: EdgeTable, joined: Array, *, min_iou: float
) -> tuple[tuple[AxisSeams, ...], SeamFaces]:
    """Sum up the face objects of an image, per axis and per face.

    Parameters
    ----------
    grid : TileGrid
    edges : EdgeTable
        Rows of order 1.
    joined : ndarray of bool
        Rows that the rule joined.
    min_iou : float
        A label whose best partner is below it is an orphan.
    """
    overlaps = _Seen.of(edges, joined, grid)
    limits = {
        int(a): _limit(overlaps.iou[(overlaps.axis == a) & (overlaps.iou > 0)])
        for a in np.unique(overlaps.axis)
    }
    disagrees = overlaps.iou < np.array([limits[int(a)] for a in overlaps.axis])
    faces = _faces(overlaps, disagrees, min_iou)
    return tuple(_axis(grid, a, limit, overlaps, faces) for a, limit in limits.items()), faces


def count_contested(edges: EdgeTable, joined: Array) -> int:
    """Count the joins of two labels that each have a mutual best partner elsewhere at the face."""
    best_a, best_b = best_partners(edges)
    good = best_a & best_b & (edges.iou >= FOUND)
    taken = np.ones(len(edges), dtype=bool)
    for side in "ab":
        groups = _label_groups(edges, side)
        taken &= (np.bincount(groups, good) > 0)[groups] if len(groups) else taken
    return int((joined & taken & ~good).sum())


@dataclass(frozen=True, slots=True, eq=False)
class _Seen:
    """Face objects, and labels at faces, each with its face."""

    face: Array
    """Face of each object: position in `tile_a` and `tile_b`."""

    axis: Array
    iou: Array
    tile_a: Array
    tile_b: Array
    axis_of_face: Array
    label_face: Array
    """Face of each label in the plane."""

    label_iou: Array
    """With its best partner."""

    label_is_cut: Array

    @classmethod
    def of(cls, edges: EdgeTable, joined: Array, grid: TileGrid) -> _Seen:
        """List them from the rows of order 1."""
        best_a, best_b = best_partners(edges)
        mutual = best_a & best_b & (edges.intersection > 0)
        in_a, in_b = edges.plane_a > 0, edges.plane_b > 0
        lone = [best_a & in_a & ~mutual, best_b & in_b & ~mutual]
        rows = np.concatenate([np.flatnonzero(m) for m in (mutual & (in_a | in_b), *lone)])
        iou = np.where(mutual, edges.iou, 0.0)
        keys = edges.tile_a * grid.n_tiles + edges.tile_b
        _, first, face = np.unique(keys, return_index=True, return_inverse=True)
        labels = np.concatenate([np.flatnonzero(best_a & in_a), np.flatnonzero(best_b & in_b)])
        cuts = [
            _is_cut(edges, joined, grid, side)[best]
            for side, best in (("a", best_a & in_a), ("b", best_b & in_b))
        ]
        return cls(
            face[rows],
            edges.axis[rows],
            iou[rows],
            edges.tile_a[first],
            edges.tile_b[first],
            edges.axis[first],
            face[labels],
            edges.iou[labels],
            np.concatenate(cuts),
        )


def _label_groups(edges: EdgeTable, side: str) -> Array:
    """Return a number per row: the same for rows of one label at one face."""
    columns = np.stack([edges.tile_a, edges.tile_b, getattr(edges, f"id_{side}")])
    return np.unique(columns, axis=1, return_inverse=True)[1].reshape(-1)


def _is_cut(edges: EdgeTable, joined: Array, grid: TileGrid, side: str) -> Array:
    """Tell, per row, whether its label ends at the face in a line long for its size."""
    groups = _label_groups(edges, side)
    closed = np.bincount(groups, np.where(joined, edges.contact, 0))
    plane, area = getattr(edges, f"plane_{side}"), getattr(edges, f"area_{side}")
    n_axes = max(1, sum(grid.tile_shape[axis] > 1 for axis in grid.spatial))
    has_halo = np.array(grid.halo)[edges.axis] > 0
    # closed has no entry where there are no rows
    left = plane - (closed[groups] if len(groups) else 0)
    cut: Array = has_halo & (left > STRAIGHT * area ** ((n_axes - 1) / n_axes)) & (left >= 4)
    return cut


def _limit(iou: Array) -> float:
    """Return the IoU from which an object agrees, given those of all mutual partners."""
    return AGREES * min(1.0, float(np.median(iou))) if len(iou) else AGREES


def _faces(overlaps: _Seen, disagrees: Array, min_iou: float) -> SeamFaces:
    n = len(overlaps.tile_a)
    n_objects = np.bincount(overlaps.face, minlength=n)
    total = np.bincount(overlaps.face, overlaps.iou, minlength=n)
    kept = n_objects > 0
    columns = (
        overlaps.tile_a,
        overlaps.tile_b,
        overlaps.axis_of_face,
        n_objects,
        np.bincount(overlaps.face[disagrees], minlength=n),
        np.bincount(overlaps.face[overlaps.iou >= FOUND], minlength=n),
        total / np.maximum(n_objects, 1),
        np.bincount(overlaps.label_face[overlaps.label_iou < min_iou], minlength=n),
        np.bincount(overlaps.label_face[overlaps.label_is_cut], minlength=n),
    )
    return SeamFaces(*(column[kept] for column in columns))


def _axis(grid: TileGrid, axis: int, limit: float, overlaps: _Seen, faces: SeamFaces) -> AxisSeams:
    iou, here = overlaps.iou[overlaps.axis == axis], faces.axis == axis
    low, median = np.percentile(iou[iou > 0], [10, 50]) if (iou > 0).any() else (0.0, 0.0)
    return AxisSeams(
        axis=grid.axes[axis],
        n_faces=int(here.sum()),
        n_objects=len(iou),
        share_found=float((iou >= FOUND).mean()),
        median_iou=float(median),
        low_iou=float(low),
        limit=limit,
        n_disagree=int(faces.n_disagree[here].sum()),
        n_orphans=int(faces.n_orphans[here].sum()),
        n_cuts=int(faces.n_cuts[here].sum()),
    )


@dataclass(frozen=True, slots=True)
class SizeReport:
    """Objects across seams held against those inside tiles."""

    limit: float | None
    """Pixels from which an object is larger than the rest; None where too few lie inside tiles."""

    n_large: int
    """Objects of more than one tile beyond it."""

    n_large_inside: int
    """Objects inside tiles beyond it: how often that is so without a seam."""


def judge_sizes(area: Array, n_tiles: Array) -> SizeReport:
    """Count the objects across seams that are far larger than those inside tiles.

    Parameters
    ----------
    area : ndarray
        Pixels of each object.
    n_tiles : ndarray of int
        Staged labels merged into each.

    Returns
    -------
    SizeReport

    Notes
    -----
    The limit is the median of the logarithm of the sizes inside tiles and 4 times its spread
    (median absolute deviation, scaled to a standard deviation, at least 0.2 octaves). Where fewer
    than 20 objects lie inside tiles, or fewer than half, those that do are not like the rest, and
    nothing is judged. A vessel may well be larger than any cell: it is a figure, not an alarm.

    Examples
    --------
    >>> area = np.array([100] * 30 + [2000])
    >>> judge_sizes(area, np.array([1] * 30 + [9])).n_large
    1
    """
    size, inside = np.log2(np.maximum(area, 1)), np.asarray(n_tiles) == 1
    if inside.sum() < max(20, len(size) / 2):
        return SizeReport(None, 0, 0)
    median = np.median(size[inside])
    spread = max(0.2, 1.4826 * float(np.median(np.abs(size[inside] - median))))
    large = size > median + 4 * spread
    return SizeReport(
        float(2 ** (median + 4 * spread)), int((large & ~inside).sum()), int((large & inside).sum())
    )
