"""Mending: one more view of faces at which two tiles disagree, for the merge that follows.

1. `Mending.faces` chooses faces by the seam report: agreement is of the two tiles alone, so that
   the same faces are chosen again, whatever views there are.
2. `mend_faces` stages the third view of each that has none, or a stale one, on a pool. Each has a
   file of its own: one that fails stops no other, and a killed call is continued by the next.

The merge reads what is there (`patchworks_core.stage.third_views`).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field

import numpy as np

from patchworks_core.errors import PlanError, StageError, TilesFailedError
from patchworks_core.machine.engine import Failure
from patchworks_core.machine.pools import Pool
from patchworks_core.seams.edge_table import Edges
from patchworks_core.seams.judge import SeamReport, judge_seams
from patchworks_core.seams.rules import MergeOptions
from patchworks_core.seams.staged_pixels import PixelReader
from patchworks_core.seams.strips import feathered_axes
from patchworks_core.seams.third_views import FaceOfTiles, compare_with_tiles, third_tile
from patchworks_core.stage.stage import Stage
from patchworks_core.stage.staging import Staging, check_planned
from patchworks_core.stage.third_views import RULE, TileMarks, staged_views
from patchworks_core.stage.view_files import write_view
from patchworks_core.tiles.grid import TileGrid
from patchworks_core.tiles.numbers import finite_number, whole_number

MIN_AGREEMENT = 0.75
"""Mean IoU of the objects at a face below which it is mended unless said otherwise."""


@dataclass(frozen=True, slots=True)
class Mending:
    """Which faces get a third view."""

    n_faces: int | None = None
    """At most so many, the worst; None is no limit."""

    min_agreement: float = MIN_AGREEMENT
    """Mean IoU of the objects at a face, as its two tiles saw them, below which it is mended."""

    def __post_init__(self) -> None:
        if self.n_faces is not None:
            whole_number("faces to mend", self.n_faces, least=1)
        finite_number("min_agreement", self.min_agreement, least=0, most=1)

    def faces(self, grid: TileGrid, report: SeamReport) -> list[FaceOfTiles]:
        """Return the faces to mend, the worst first.

        Parameters
        ----------
        grid : TileGrid
        report : SeamReport
            Of the tiles of `grid`.
        """
        faces, axes = report.faces, feathered_axes(grid)
        listed = np.isin(faces.axis, axes) & (faces.agreement < self.min_agreement)
        rows = np.flatnonzero(listed)
        order = np.lexsort((faces.tile_b[rows], faces.tile_a[rows], faces.agreement[rows]))
        return [
            FaceOfTiles(int(faces.tile_a[i]), int(faces.tile_b[i]), int(faces.axis[i]))
            for i in rows[order][: self.n_faces]
        ]


@dataclass(frozen=True, slots=True)
class Mended:
    """What came of a call."""

    faces: tuple[str, ...]
    """The faces that were chosen, the worst first."""

    n_views: int
    """Third views that were staged by this call: calls of the function."""

    agreement: float | None
    """Mean IoU of the objects at the faces that were chosen, as two tiles saw them."""

    failures: dict[str, Failure] = field(default_factory=dict)
    """Why third views failed, by face."""

    def check(self) -> None:
        """Raise TilesFailedError where a third view failed."""
        if not self.failures:
            return
        face, first = min(self.failures.items())
        raise TilesFailedError(
            f"{len(self.failures)} of {len(self.faces)} third views failed, the first of face "
            f"{face!r}: {first}; nothing was merged and the labels are as they were. Mend again "
            "when the cause is mended: the others are kept",
            {face: str(failure) for face, failure in self.failures.items()},
        )


def mend_faces(
    staging: Staging,
    edges: Edges,
    options: MergeOptions,
    mending: Mending,
    *,
    pool: Pool,
    say: Callable[[int, int], None] = lambda done, total: None,
) -> Mended:
    """Stage third views of the faces at which tiles disagree, where they have none.

    Parameters
    ----------
    staging : Staging
        What staged the tiles; none may be missing.
    edges : Edges
        Of the stage.
    options : MergeOptions
        Resolved.
    mending : Mending
    pool : Pool
        For the function.
    say : callable
        Told how many of how many are done.

    Raises
    ------
    PlanError
        If the rule hears no third views, or tiles have no halo to compare them by.
    StageError
        If a tile is not staged, or the image is not the one that was planned.
    """
    stage, grid = staging.stage, staging.stage.grid
    _check(grid, options)
    check_planned(staging)
    report = judge_seams(grid, edges, stage.settled_counts(), options)
    chosen = mending.faces(grid, report)
    marks = TileMarks(stage)
    task = _ViewTask(staging, {face: marks.of(face) for face in chosen})
    missing = _without_view(stage, chosen)
    failures: dict[str, Failure] = {}
    for done, outcome in enumerate(pool.outcomes(task, missing), start=1):
        if outcome.failure is not None:
            failures[outcome.item.key(grid)] = outcome.failure
        say(done, len(missing))
    return Mended(
        tuple(face.key(grid) for face in chosen),
        len(missing) - len(failures),
        _agreement(report, chosen),
        failures,
    )


def faces_to_mend(
    stage: Stage, edges: Edges, options: MergeOptions, mending: Mending
) -> list[FaceOfTiles]:
    """Return the faces that `mend_faces` would stage third views of, the worst first.

    Raises
    ------
    PlanError, StageError
        As `mend_faces`.
    """
    _check(stage.grid, options)
    report = judge_seams(stage.grid, edges, stage.settled_counts(), options)
    return _without_view(stage, mending.faces(stage.grid, report))


def _without_view(stage: Stage, faces: list[FaceOfTiles]) -> list[FaceOfTiles]:
    current = {view.face for view in staged_views(stage).views}
    return [face for face in faces if face not in current]


def _check(grid: TileGrid, options: MergeOptions) -> None:
    """Raise PlanError where third views would be of no use."""
    if options.rule != RULE:
        raise PlanError(
            f"mending adds what a third view saw, which merge={options.rule!r} does not look at; "
            f"merge by {RULE!r}"
        )
    if not feathered_axes(grid):
        raise PlanError(
            "mending compares what tiles saw of the same pixels, and they have no overlap of 2 "
            f"pixels or more on a tiled axis (halo {grid.halo!r} for axes {grid.axes!r}); plan "
            "with an overlap"
        )


def _agreement(report: SeamReport, faces: list[FaceOfTiles]) -> float | None:
    """Return the mean IoU of the objects at some faces."""
    pairs = {(face.low, face.high) for face in faces}
    tiles = zip(report.faces.tile_a.tolist(), report.faces.tile_b.tolist(), strict=True)
    rows = [i for i, pair in enumerate(tiles) if pair in pairs]
    if not rows:
        return None
    return float(np.average(report.faces.agreement[rows], weights=report.faces.n_objects[rows]))


@dataclass(frozen=True, slots=True)
class _ViewTask:
    """Stages the third view of a face."""

    staging: Staging
    made_by: dict[FaceOfTiles, str]
    """What each is made by, as it was when the faces were chosen."""

    def __call__(self, face: FaceOfTiles) -> None:
        stage, grid = self.staging.stage, self.staging.stage.grid
        view = third_tile(grid, face, grid.n_tiles)
        key = face.key(grid)
        labels = self.staging.see(view, where=f"third view of face {key!r}")
        reader = PixelReader(stage, feathered_axes(grid))
        rows = compare_with_tiles(
            grid,
            view,
            labels.pixels,
            labels.n_core,
            lambda tile: (reader.region(tile), reader.ids(tile)),
        )
        if not stage.is_current:
            raise StageError(
                f"the stage at {stage.path} was begun anew by another call while the third view of "
                f"face {key!r} was worked on; it is left out"
            )
        write_view(
            stage.blocks_folder,
            grid,
            face,
            labels.pixels.astype(np.int32),
            labels.n_core,
            rows,
            made_by=self.made_by[face],
        )
