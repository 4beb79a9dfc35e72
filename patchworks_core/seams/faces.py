"""Figures of the seams: for each face of tiles, how far the two agree on the objects there.

A *face object* is a label in the plane of a face, in the core of either tile. It is scored by the
IoU with its mutual best partner in the region both tiles saw, 0 without; a pair counts once.
What is decided from them, see `patchworks_core.seams.judge`.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, fields
from typing import Any

import numpy as np
import numpy.typing as npt

from patchworks_core.seams.edge_table import EdgeTable
from patchworks_core.seams.rules import best_partners, labels_at_faces
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


@dataclass(frozen=True, slots=True)
class SeamFigures:
    """Figures of all seams of an image."""

    axes: tuple[AxisSeams, ...]
    faces: SeamFaces

    n_joined: int
    """Rows that the rule joined."""

    n_contested: int
    """Of them, those of two labels that each have a mutual best partner elsewhere at the face."""

    n_crossing: int
    """Pairs of labels in contact across a face that both tiles saw as one object (`FOUND`)."""

    n_unjoined: int
    """Of them, those that the rule did not join: objects that are cut."""


def measure_faces(
    grid: TileGrid, parts: Iterable[tuple[EdgeTable, Array]], *, min_iou: float
) -> SeamFigures:
    """Sum up the face objects of an image, per axis and per face.

    Parameters
    ----------
    grid : TileGrid
    parts : iterable of (EdgeTable, ndarray of bool)
        Rows of order 1, all those of a face in one part, and which of them the rule joined.
    min_iou : float
        A label whose best partner is below it is an orphan.
    """
    objects = _FaceObjects.stacked(
        [_FaceObjects.of(part, joined, grid, min_iou) for part, joined in parts]
    )
    axis = objects.axis[objects.face]
    ious = {int(a): objects.iou[axis == a] for a in np.unique(axis)}
    limits = {a: _limit(iou[iou > 0]) for a, iou in ious.items()}
    disagrees = objects.iou < np.array([limits.get(a, AGREES) for a in range(len(grid.axes))])[axis]
    faces = _faces(objects, disagrees)
    axes = (_axis(grid, a, limit, ious[a], faces) for a, limit in limits.items())
    counted = ("n_joined", "n_contested", "n_crossing", "n_unjoined")
    figures = {name: int(getattr(objects, name).sum()) for name in counted}
    return SeamFigures(tuple(axes), faces, **figures)


@dataclass(frozen=True, slots=True, eq=False)
class _FaceObjects:
    """Face objects of some faces, and what was counted at each face."""

    face: Array
    """Face of each object, int32: position in the columns below."""

    iou: Array
    """Of each object."""

    tile_a: Array
    tile_b: Array
    axis: Array
    total: Array
    """Sum of the IoU of the objects."""

    n_orphans: Array
    n_cuts: Array
    n_joined: Array
    n_contested: Array
    n_crossing: Array
    n_unjoined: Array

    @classmethod
    def of(cls, edges: EdgeTable, joined: Array, grid: TileGrid, min_iou: float) -> _FaceObjects:
        """List them from the rows of order 1."""
        best_a, best_b = best_partners(edges)
        mutual = best_a & best_b & (edges.intersection > 0)
        in_a, in_b = edges.plane_a > 0, edges.plane_b > 0
        lone = [best_a & in_a & ~mutual, best_b & in_b & ~mutual]
        rows = np.concatenate([np.flatnonzero(m) for m in (mutual & (in_a | in_b), *lone)])
        all_iou = edges.iou
        iou = np.where(mutual, all_iou, 0.0)
        keys = edges.tile_a * grid.n_tiles + edges.tile_b
        _, first, face = np.unique(keys, return_index=True, return_inverse=True)
        face, n = face.reshape(-1).astype(np.int32), len(first)
        labels = {"a": np.flatnonzero(best_a & in_a), "b": np.flatnonzero(best_b & in_b)}
        both = np.concatenate(list(labels.values()))
        cuts = [at[_is_cut(edges, joined, grid, side)[at]] for side, at in labels.items()]
        good = best_a & best_b & (all_iou >= FOUND)
        contested = _is_contested(edges, joined, good)
        crossing = good & (edges.contact > 0)
        return cls(
            face[rows],
            iou[rows],
            edges.tile_a[first],
            edges.tile_b[first],
            edges.axis[first],
            np.bincount(face[rows], iou[rows], minlength=n),
            np.bincount(face[both[all_iou[both] < min_iou]], minlength=n),
            np.bincount(face[np.concatenate(cuts)], minlength=n),
            np.bincount(face[joined], minlength=n),
            np.bincount(face[contested], minlength=n),
            np.bincount(face[crossing], minlength=n),
            np.bincount(face[crossing & ~joined], minlength=n),
        )

    @classmethod
    def stacked(cls, parts: Sequence[_FaceObjects]) -> _FaceObjects:
        """Lay parts one behind the other, and put the faces in order of their tiles."""
        parts = parts or [cls(*(np.zeros(0, dtype) for dtype in _DTYPES_OF_NONE))]
        starts = np.cumsum([0, *(len(part.tile_a) for part in parts)])
        columns = {
            f.name: np.concatenate([getattr(part, f.name) for part in parts])
            for f in fields(cls)
            if f.name != "face"
        }
        face = np.concatenate(
            [part.face + np.int32(start) for part, start in zip(parts, starts[:-1], strict=True)]
        )
        order = np.lexsort((columns["tile_b"], columns["tile_a"]))
        if (np.diff(order) < 0).any():
            place = np.empty(len(order), dtype=np.int32)
            place[order] = np.arange(len(order), dtype=np.int32)
            face = place[face]
            for name in columns.keys() - {"iou"}:
                columns[name] = columns[name][order]
        return cls(face, **columns)


_DTYPES_OF_NONE = (np.int32, float, int, int, np.int8, float, int, int, int, int, int, int)
"""Of the columns of `_FaceObjects`."""


def _is_contested(edges: EdgeTable, joined: Array, good: Array) -> Array:
    """Tell which joins are of two labels that each have a mutual best partner elsewhere."""
    taken = np.ones(len(edges), dtype=bool)
    for side in "ab":
        groups = _label_groups(edges, side)
        taken &= (np.bincount(groups, good) > 0)[groups] if len(groups) else taken
    return joined & taken & ~good


def _label_groups(edges: EdgeTable, side: str) -> Array:
    """Return a number per row, 0 and on: the same for rows of one label at one face."""
    labels = labels_at_faces(edges, getattr(edges, f"id_{side}"))
    return np.unique(labels, return_inverse=True)[1].reshape(-1)


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


def _faces(objects: _FaceObjects, disagrees: Array) -> SeamFaces:
    n = len(objects.tile_a)
    n_objects = np.bincount(objects.face, minlength=n)
    kept = n_objects > 0
    columns = (
        objects.tile_a,
        objects.tile_b,
        objects.axis,
        n_objects,
        np.bincount(objects.face[disagrees], minlength=n),
        np.bincount(objects.face[objects.iou >= FOUND], minlength=n),
        objects.total / np.maximum(n_objects, 1),
        objects.n_orphans,
        objects.n_cuts,
    )
    return SeamFaces(*(column[kept] for column in columns))


def _axis(grid: TileGrid, axis: int, limit: float, iou: Array, faces: SeamFaces) -> AxisSeams:
    here = faces.axis == axis
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
