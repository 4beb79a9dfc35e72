"""The façade for seams of a label image from anywhere: whether objects end where tiles meet.

1. At every seam, the objects on one side that have no pixel on the other are counted, and at planes
   midway between seams, which are the control (`count_ends`).
2. An axis whose objects end at seams far more often than within tiles shows its tiles.

Nothing is needed but the labels and the shape of the tiles. Of labels that patchworks merged, the
pipeline says more: it knows what two tiles saw of the same pixels (`patchworks_core.seams.judge`).
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from patchworks_core.calls.spellings import also_spelled
from patchworks_core.calls.values import Values, html_table
from patchworks_core.images.image import DEFAULT_LEVEL
from patchworks_core.images.image_source import ImageSource
from patchworks_core.labels.source import LabelSource
from patchworks_core.machine.pools import Pool
from patchworks_core.machine.progress import Progress
from patchworks_core.machine.workers import WorkerKind, Workers
from patchworks_core.tiles.grid import SPATIAL_AXES, plan_grid
from patchworks_core.tiles.numbers import whole_number
from patchworks_core.tiles.regions import Region

Array = npt.NDArray[Any]

SIGNIFICANCE = 0.01
"""Chance that an axis of sound labels is called poor."""

EXCESS = 2.0
"""Times the share within tiles from which objects end too often at seams."""

N_WORST = 10
"""Seams that are named."""


@dataclass(frozen=True, slots=True, eq=False)
class SeamsOfAxis(Values):
    """Objects that end at the seams across one axis, and within its tiles."""

    axis: str
    n_seams: int
    """Planes at which two tiles meet."""

    seam_labels: int
    """Objects at either side of a seam, each time they are at one."""

    seam_orphans: int
    """Of them, those without a pixel on the other side."""

    interior_labels: int
    """The same at planes midway between two seams."""

    interior_orphans: int

    @property
    def seam_rate(self) -> float | None:
        """Share of the objects at seams that end there; None without any."""
        return self.seam_orphans / self.seam_labels if self.seam_labels else None

    @property
    def interior_rate(self) -> float | None:
        """Share of the objects at planes within tiles that end there; None without any."""
        return self.interior_orphans / self.interior_labels if self.interior_labels else None

    @property
    def ratio(self) -> float | None:
        """How many times as often objects end at seams; None where none ends within tiles."""
        rates = self.seam_rate, self.interior_rate
        return rates[0] / rates[1] if rates[0] is not None and rates[1] else None

    @property
    def is_poor(self) -> bool:
        """True where objects end at seams more often than chance and the control explain."""
        if not self.seam_labels or not self.interior_labels:
            return False
        from scipy.stats import binom

        expected = max(EXCESS * (self.interior_orphans + 1) / (self.interior_labels + 2), 0.02)
        chance = binom.sf(self.seam_orphans - 1, self.seam_labels, min(1.0, expected))
        return bool(chance < SIGNIFICANCE)


@dataclass(frozen=True, slots=True, eq=False)
class LabelSeams(Values):
    """What `seam_report` counted."""

    axes: dict[str, SeamsOfAxis]
    """By name of the axis, of those that are cut."""

    worst_seams: list[dict[str, Any]]
    """Seams with most objects that end there: `axis`, `position` and `orphans`."""

    @property
    def agrees(self) -> bool:
        """True where no axis shows its tiles."""
        return not self.problems()

    def problems(self) -> list[str]:
        """Return in words what is wrong with the seams."""
        return [
            f"along {name} {seams.seam_rate:.0%} of the objects at seams end there, and "
            f"{seams.interior_rate:.0%} within tiles; use a larger overlap, or merge='overlap'"
            for name, seams in self.axes.items()
            if seams.is_poor
        ]

    def _repr_html_(self) -> str:
        names = ("axis", "n_seams", "seam_labels", "seam_rate", "interior_rate", "is_poor")
        rows = [[seams[name] for name in names] for seams in self.axes.values()]
        words = "".join(f"<p>{problem}</p>" for problem in self.problems())
        return html_table(names, rows) + words

    def __str__(self) -> str:
        rows = [
            f"{name}: {seams.seam_orphans} of {seams.seam_labels} objects end at {seams.n_seams} "
            f"seams, {seams.interior_orphans} of {seams.interior_labels} within tiles"
            for name, seams in self.axes.items()
        ]
        return "\n".join([*rows, *self.problems()]) or "one tile, no seam"


@dataclass(frozen=True, slots=True)
class _Face:
    """Two planes of pixels that touch, of one tile's width."""

    axis: int
    position: int
    """Of the upper plane."""

    is_seam: bool
    region: Region


@also_spelled(
    {"min_voxels": "min_pixels", "n_workers": "max_workers"},
    absent={
        "component": "name the array in the path: 'scan.zarr/labels/cells/0'",
        "max_faces": "every seam is read",
        "warn_ratio": "problems() says what is wrong, by chance and by ratio",
    },
)
def seam_report(
    labels: ImageSource,
    tile_shape: Sequence[int] | int,
    *,
    min_pixels: int = 4,
    level: int = DEFAULT_LEVEL,
    axes: str | None = None,
    max_workers: int = 1,
    workers: WorkerKind = "threads",
    progress: Progress | None = None,
) -> LabelSeams:
    """Tell whether objects of a label image end where the tiles met that it was made of.

    Parameters
    ----------
    labels : array, path or URL
        As in `patchworks_core.labels.postprocess.fill_holes`; whoever made and merged them.
    tile_shape : int or tuple of int
        Pixels of a tile, without halo, as in `tile_process`.
    min_pixels : int
        Objects of fewer pixels in a plane are not counted there: they only graze it.
    level, axes, max_workers, workers, progress
        As in `patchworks_core.labels.options.ReadingOptions`.

    Returns
    -------
    LabelSeams
        ``axes`` has the counts of each axis, ``problems()`` says what is wrong.

    Raises
    ------
    ImageError, PlanError
        If these are no labels, or the tiles are none of them.

    Notes
    -----
    An object ends at a plane where none of the pixels across from its own there has its id. Every
    seam is read, two planes of it at a time.

    Examples
    --------
    >>> import numpy as np
    >>> labels = np.repeat([[1, 1, 1, 2, 2, 2, 3, 3]], 4, axis=0)  # cut between 2 and 3 only
    >>> report = seam_report(labels, (4, 6))
    >>> report.axes["x"].seam_orphans, report.axes["x"].seam_labels
    (2, 2)
    """
    whole_number("min_pixels", min_pixels, least=1)
    source = LabelSource.open(labels, level=level, axes=axes, tile_shape=tile_shape)
    faces = list(_faces(source))
    orphans: dict[tuple[int, int], int] = {}
    counts = {
        (axis, is_seam): np.zeros(2, np.int64)
        for axis in source.grid.spatial
        for is_seam in (True, False)
    }
    with Pool.open(Workers(max_workers, workers), progress) as pool:
        task = _FaceTask(source, min_pixels)
        for face, n, n_ends in pool.map(task, faces, step="seams", n=len(faces)):
            counts[face.axis, face.is_seam] += (n, n_ends)
            if face.is_seam:
                key = face.axis, face.position
                orphans[key] = orphans.get(key, 0) + n_ends
    names = source.grid.axes
    of_axes = {}
    for axis in sorted({face.axis for face in faces}):
        seams = {face.position for face in faces if face.axis == axis and face.is_seam}
        at, within = counts[axis, True], counts[axis, False]
        of_axes[names[axis]] = SeamsOfAxis(names[axis], len(seams), *map(int, [*at, *within]))
    worst = sorted(((n, key) for key, n in orphans.items() if n), reverse=True)[:N_WORST]
    return LabelSeams(
        of_axes,
        [{"axis": names[axis], "position": p, "orphans": n} for n, (axis, p) in worst],
    )


def _faces(source: LabelSource) -> Iterator[_Face]:
    """Yield the seams across every axis, and planes midway between them, tile by tile."""
    grid = source.grid
    whole = plan_grid(grid.axes, grid.shape, tile_shape=grid.tile_shape)
    for tile in whole.tiles():
        for axis in grid.spatial:
            if grid.grid_shape[axis] == 1 or grid.axes[axis] not in SPATIAL_AXES:
                continue
            first, size = tile.core.start[axis], tile.core.shape[axis]
            if first:
                yield _face(tile.core, axis, first, is_seam=True)
            if size > 2:
                yield _face(tile.core, axis, first + size // 2, is_seam=False)


def _face(core: Region, axis: int, position: int, *, is_seam: bool) -> _Face:
    start, stop = [*core.start], [*core.stop]
    start[axis], stop[axis] = position - 1, position + 1
    return _Face(axis, position, is_seam, Region(tuple(start), tuple(stop)))


@dataclass(frozen=True, slots=True)
class _FaceTask:
    source: LabelSource
    min_pixels: int

    def __call__(self, face: _Face) -> tuple[_Face, int, int]:
        planes = np.moveaxis(self.source.read(face.region), face.axis, 0)
        below, above = planes[0].reshape(-1), planes[1].reshape(-1)
        n, n_ends = count_ends(below, above, self.min_pixels)
        m, m_ends = count_ends(above, below, self.min_pixels)
        return face, n + m, n_ends + m_ends


def count_ends(plane: Array, across: Array, min_pixels: int) -> tuple[int, int]:
    """Count the objects in a plane, and those without a pixel across from one of theirs.

    Parameters
    ----------
    plane, across : ndarray of int
        Labels of two planes that touch, of the same shape.
    min_pixels : int
        Objects of fewer pixels in `plane` are left out.

    Examples
    --------
    >>> count_ends(np.array([5, 5, 0, 7, 7]), np.array([5, 0, 0, 6, 6]), 2)
    (2, 1)
    """
    ids, n_pixels = np.unique(plane[plane > 0], return_counts=True)
    ids = ids[n_pixels >= min_pixels]
    goes_on = np.unique(plane[(plane > 0) & (plane == across)])
    return len(ids), int(len(ids) - np.isin(ids, goes_on).sum())
