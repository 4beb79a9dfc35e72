"""How right the seams are, judged without ground truth from what two tiles said of the same pixels.

1. `measure_faces` scores the objects at every face by how far the two tiles agree on them. An
   object *agrees* where its IoU reaches 0.9 times the median of its axis.
2. `_find_faults` names tiles and faces where far more objects disagree than at the other faces of
   the image. The faces of the image are each other's control: what a function does at every seam
   is no fault of one tile.
3. What outliers cannot show is judged by itself: an axis whose seams are poor everywhere, joins
   that contradict what the tiles saw (`SeamFigures.n_contested`), and objects that both tiles saw
   and the rule did not join (`SeamFigures.n_unjoined`), as where nothing is joined at all.
4. `seam_faces.judge_sizes` counts the objects across seams that are far larger than those inside
   tiles.

A test is binomial and corrected for the number of faces and tiles, so a few odd objects at a face
that has few raise no alarm.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from patchworks_core.seams.edge_table import Edges, EdgeTable
from patchworks_core.seams.faces import (
    AxisSeams,
    SeamFaces,
    measure_faces,
    tile_key,
)
from patchworks_core.seams.rules import BY_OVERLAP, MergeOptions, MergeRule
from patchworks_core.seams.third_views import ThirdViews
from patchworks_core.tiles.grid import TileGrid

Array = npt.NDArray[Any]

EXPECTED = 0.05
"""Least share of disagreeing objects that is taken for ordinary."""

POOR = 0.1
"""Share of objects not found again from which the seams of an axis are poor."""

SIGNIFICANCE = 0.01
"""Chance of an alarm about a sound image."""

MIN_OBJECTS = 4
"""Fewer face objects are not judged."""

EXCESS = 2
"""Times the expected share that must disagree at a fault: objects of one tile go wrong together,
and where much is wrong everywhere, no tile is to blame."""

_JOINED_BY = "merge by 'overlap', or where tiles have no overlap by 'touching'"
"""What joins objects that a rule left cut."""

MAX_FAULTS = 20
"""Faults that are named."""


@dataclass(frozen=True, slots=True)
class SeamFault:
    """A tile, or a face, at odds with its neighbours as the rest of the image is not."""

    where: str
    """``tile y001x002`` or ``face y000x001|y000x002``."""

    faces: tuple[str, ...]
    """The faces, by the keys of their tiles."""

    n_objects: int
    n_disagree: int
    expected: float
    """Share that disagrees at the other faces."""


@dataclass(frozen=True, slots=True)
class SeamReport:
    """How right the seams of one image are."""

    axes: tuple[AxisSeams, ...]
    faces: SeamFaces
    faults: tuple[SeamFault, ...]
    n_joined: int
    """Pairs at faces that the rule joined."""

    n_contested: int
    """Of them, those of two labels that both are somebody else's mutual best partner."""

    poor_axes: tuple[str, ...]
    """Axes along which too many objects are not found again anywhere."""

    n_crossing: int
    """Pairs in contact across a face that both tiles saw as one object."""

    n_unjoined: int
    """Of them, those that the rule did not join: objects that are cut."""

    rule: MergeRule
    """By which they were joined, or not."""

    @property
    def agrees(self) -> bool:
        """True where nothing speaks against the seams."""
        return not self.problems()

    @property
    def n_objects(self) -> int:
        """Face objects in all."""
        return int(self.faces.n_objects.sum())

    @property
    def agreement(self) -> float | None:
        """Mean IoU over all face objects, 0 to 1; None where there are none."""
        n = self.n_objects
        return float((self.faces.agreement * self.faces.n_objects).sum() / n) if n else None

    def worst_faces(self, n: int = 10) -> list[str]:
        """Return the keys of faces of the faults, worst fault first."""
        return [face for fault in self.faults for face in fault.faces][:n]

    def problems(self) -> list[str]:
        """Say what is wrong, worst first, each with what may help."""
        words = [
            f"{fault.where}: {fault.n_disagree} of {fault.n_objects} objects at its seams disagree "
            f"(elsewhere {fault.expected:.0%}); look at {', '.join(fault.faces)}"
            for fault in self.faults
        ]
        if _exceeds(self.n_unjoined, self.n_crossing, EXPECTED, 1):
            way_out = "lower min_iou" if self.rule in BY_OVERLAP else _JOINED_BY
            words.append(
                f"{self.n_unjoined} of {self.n_crossing} objects across seams are cut there: both "
                f"tiles saw them, and merge={self.rule!r} does not join them; {way_out}"
            )
        for axis in self.axes:
            if axis.axis in self.poor_axes:
                words.append(
                    f"axis {axis.axis}: only {axis.share_found:.0%} of {axis.n_objects} objects at "
                    "seams are found again by the neighbour; first use an overlap of one diameter "
                    "of a large object, then a function with global thresholds"
                )
        if _exceeds(self.n_contested, self.n_joined, EXPECTED, 1):
            words.append(
                f"{self.n_contested} of {self.n_joined} joins at seams are of labels that the two "
                "tiles saw as different objects; merge by 'overlap'"
            )
        return words

    def to_dict(self) -> dict[str, Any]:
        """Return the figures as JSON-ready values; of the faces, only those of faults."""
        return {
            "agrees": self.agrees,
            "agreement": self.agreement,
            "n_objects": self.n_objects,
            "n_orphans": int(self.faces.n_orphans.sum()),
            "n_straight_cuts": int(self.faces.n_cuts.sum()),
            "n_joined": self.n_joined,
            "n_contested": self.n_contested,
            "n_unjoined": self.n_unjoined,
            "axes": [asdict(axis) for axis in self.axes],
            "faults": [asdict(fault) for fault in self.faults],
            "problems": self.problems(),
        }

    def of_tiles(self, grid: TileGrid) -> Array:
        """Return the mean agreement at each tile's faces, shape ``grid_shape``; NaN without."""
        tiles = np.concatenate([self.faces.tile_a, self.faces.tile_b])
        weights = np.tile(self.faces.n_objects, 2)
        n = np.bincount(tiles, weights, minlength=grid.n_tiles)
        total = np.bincount(tiles, weights * np.tile(self.faces.agreement, 2), grid.n_tiles)
        mean: Array = np.divide(total, n, out=np.full(grid.n_tiles, np.nan), where=n > 0)
        per_tile: Array = mean.reshape(grid.grid_shape)
        return per_tile


def judge_seams(
    grid: TileGrid,
    edges: Edges,
    counts: Array,
    options: MergeOptions,
    third: ThirdViews | None = None,
) -> SeamReport:
    """Judge the seams of an image by its edge table; no pixel is read.

    Parameters
    ----------
    grid : TileGrid
    edges : Edges
        Of all faces.
    counts : ndarray of int64, shape (n_tiles,)
        Labels of each tile.
    options : MergeOptions
        Resolved: not ``auto``.
    third : ThirdViews, optional
        They have a say in what is joined; how far two tiles agree they do not change.

    Returns
    -------
    SeamReport

    Notes
    -----
    Where the halo of an axis is 0, the two planes that abut stand in for the pixels both would have
    seen. Objects end and move between two planes, so such an axis is never called poor, and has no
    cuts; its faces are compared with each other all the same.
    """
    joins = (ThirdViews(grid) if third is None else third).joins(edges, counts, options)

    def at_faces() -> Iterator[tuple[EdgeTable, Array]]:
        for part in edges.parts():
            at_face = part.order == 1
            yield part.select(at_face), joins.rows(part)[at_face]

    figures = measure_faces(grid, at_faces(), min_iou=options.min_iou)
    faces = figures.faces
    faults, ordinary = _find_faults(grid, faces)
    return SeamReport(
        axes=figures.axes,
        faces=faces,
        faults=tuple(faults),
        n_joined=figures.n_joined,
        n_contested=figures.n_contested,
        poor_axes=tuple(axis for axis in grid.axes if _is_poor(grid, axis, faces, ordinary)),
        n_crossing=figures.n_crossing,
        n_unjoined=figures.n_unjoined,
        rule=options.rule,
    )


def _is_poor(grid: TileGrid, axis: str, faces: SeamFaces, ordinary: Array) -> bool:
    """Tell whether the faces across an axis are poor, those of faults apart."""
    number = grid.axes.index(axis)
    here = ordinary & (faces.axis == number)
    n, n_matched = int(faces.n_objects[here].sum()), int(faces.n_found[here].sum())
    return grid.halo[number] > 0 and _exceeds(n - n_matched, n, POOR, len(grid.spatial))


def _exceeds(k: int, n: int, expected: float, n_tests: int) -> bool:
    """Tell whether k of n is more than the expected share gives by chance."""
    return n >= MIN_OBJECTS and bool(_upper_tail(k, n, expected) * n_tests < SIGNIFICANCE)


def _find_faults(grid: TileGrid, faces: SeamFaces) -> tuple[list[SeamFault], Array]:
    """Name what is furthest from the other faces, set its faces aside, and look again.

    A tile is held against the faces of all other tiles, a face against all other faces; what is
    less likely by chance is named, so that a bad tile is one fault and not one per neighbour.
    Returned with a mask of the faces that are left.
    """
    n_tests = grid.n_tiles + len(faces)
    left, faults = np.ones(len(faces), dtype=bool), list[SeamFault]()
    while left.any() and len(faults) < MAX_FAULTS:
        per_axis = left[:, None] * np.eye(len(grid.axes))[faces.axis]
        n, k = faces.n_objects[:, None] * per_axis, faces.n_disagree[:, None] * per_axis
        p_face, e_face = _chance(n, k, n.sum(axis=0), k.sum(axis=0))
        p_tile, e_tile = _chance(
            _by_tile(grid, faces, n), _by_tile(grid, faces, k), n.sum(axis=0), k.sum(axis=0)
        )
        if min(p_face.min(), p_tile.min()) * n_tests >= SIGNIFICANCE:
            break
        if p_tile.min() < p_face.min():
            worst = int(p_tile.argmin())
            rows, expected = (faces.tile_a == worst) | (faces.tile_b == worst), e_tile[worst]
            where = f"tile {tile_key(grid, worst)}"
        else:
            worst = int(p_face.argmin())
            rows, expected = np.arange(len(faces)) == worst, e_face[worst]
            where = f"face {_face_key(grid, faces, worst)}"
        rows &= left
        faults.append(_fault(grid, faces, rows, where, float(expected)))
        left &= ~rows
    return faults, left


def _by_tile(grid: TileGrid, faces: SeamFaces, values: Array) -> Array:
    """Sum rows of faces over the faces of each tile, shape (n_tiles, axes)."""
    total = np.zeros((grid.n_tiles, values.shape[1]))
    np.add.at(total, faces.tile_a, values)
    np.add.at(total, faces.tile_b, values)
    return total


def _fault(grid: TileGrid, faces: SeamFaces, rows: Array, where: str, expected: float) -> SeamFault:
    """Describe a fault; of a tile's faces, those no worse than the rest are not named."""
    shown = rows & (faces.n_disagree > expected * faces.n_objects)
    return SeamFault(
        where=where,
        faces=tuple(_face_key(grid, faces, int(i)) for i in np.flatnonzero(shown)),
        n_objects=int(faces.n_objects[rows].sum()),
        n_disagree=int(faces.n_disagree[rows].sum()),
        expected=expected,
    )


def _face_key(grid: TileGrid, faces: SeamFaces, i: int) -> str:
    return f"{tile_key(grid, int(faces.tile_a[i]))}|{tile_key(grid, int(faces.tile_b[i]))}"


def _chance(n: Array, k: Array, n_all: Array, k_all: Array) -> tuple[Array, Array]:
    """Return how likely so many disagree by chance, and the share expected, per row.

    Parameters
    ----------
    n, k : ndarray, shape (rows, axes)
        Objects and disagreeing objects of each tile or face, per axis.
    n_all, k_all : ndarray, shape (axes,)
        Those of the image; what remains without the row is what it is held against.
    """
    rest = (k_all - k) / np.maximum(n_all - n, 1)
    total, matched = n.sum(axis=1), k.sum(axis=1)
    expected = np.maximum(EXPECTED, (n * rest).sum(axis=1) / np.maximum(total, 1))
    chance = np.where(
        (total >= MIN_OBJECTS) & (matched >= EXCESS * expected * total),
        _upper_tail(matched, total, expected),
        1.0,
    )
    return chance, expected


def _upper_tail(k: Any, n: Any, share: Any) -> Any:
    """Return how likely `k` or more of `n` are, of a binomial distribution.

    That is ``scipy.stats.binom.sf(k - 1, n, share)``, to the last bit and without an import of
    a second.
    """
    from scipy.special import betainc

    return np.where(k > 0, betainc(np.maximum(k, 1), n - np.maximum(k, 1) + 1, share), 1.0)
