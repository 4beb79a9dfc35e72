"""Merge rules: which rows of the edge table say "one object".

A rule reads the table and the counts of the tiles and returns a mask of rows, so
changing it costs a lookup table and an apply, no segmentation.

- ``touching``: any contact across the cores at the given connectivity. Exact for functions that
  label connected components; on tissue whose cells touch it fuses them.
- ``overlap``: the two tiles saw the same pixels on both sides of the face. What every pair says for
  or against one object is weighed together (`patchworks_core.seams.joins`).
- ``overlap-pairs``: as ``overlap`` was up to version 0.1: each pair for itself. Two labels are one
  object where each is the other's best partner and their IoU is at least `min_iou`; across an edge
  or corner of tiles they must touch as well.
- ``none``: nothing is joined.
"""

from __future__ import annotations

from dataclasses import asdict, dataclass, replace
from typing import Any, Literal

import numpy as np

from patchworks_core.errors import PlanError
from patchworks_core.seams.edge_table import Edges, EdgeTable
from patchworks_core.seams.joins import WeighedLabels
from patchworks_core.seams.lookup import LookupTable, components, offsets_of, standing_of
from patchworks_core.seams.strips import LEAST_HALO, feathered_axes
from patchworks_core.tiles.grid import TileGrid
from patchworks_core.tiles.numbers import finite_number, whole_number

MergeRule = Literal["auto", "touching", "overlap", "overlap-pairs", "none"]

RULES: tuple[MergeRule, ...] = ("auto", "touching", "overlap", "overlap-pairs", "none")

Outline = Literal["auto", "feather", "core"]

OUTLINES: tuple[Outline, ...] = ("auto", "feather", "core")

BY_OVERLAP = ("overlap", "overlap-pairs")
"""Rules that compare what two tiles said of the same pixels."""


@dataclass(frozen=True, slots=True)
class MergeOptions:
    """How staged labels become objects; not part of what a stage is, so free to change."""

    rule: MergeRule = "auto"
    """``auto`` is resolved against the function and the grid by `resolve`."""

    connectivity: int | None = None
    """Contact that counts for ``touching``: 1 is across faces only; None is the function's."""

    min_iou: float = 0.3
    """How much two views must agree, 0 to 1: the least IoU for ``overlap-pairs``; ``overlap``, for
    which a pair is one piece of evidence among others, asks for `joins.TRUST` less, and for more
    where labels do not touch. A higher one joins less."""

    min_size: int = 0
    """Merged objects of fewer pixels become background."""

    sequential: bool = True
    """True gives ids 1..N; False keeps ids that other objects' merging does not shift."""

    max_size: int | None = None
    """Merged objects of more pixels become background; None is no limit."""

    outline: Outline = "auto"
    """``feather`` draws outlines from all tiles that saw them, ``core`` as the tile that owns the
    pixels did; ``auto`` is resolved by `resolve`."""

    def __post_init__(self) -> None:
        if self.rule not in RULES:
            raise PlanError(f"merge must be one of {RULES!r}, got {self.rule!r}")
        if self.outline not in OUTLINES:
            raise PlanError(f"outline must be one of {OUTLINES!r}, got {self.outline!r}")
        # As plain numbers, which a record can hold; those of NumPy are none for JSON.
        plain: dict[str, float] = {
            "min_iou": finite_number("min_iou", self.min_iou, least=0, most=1),
            "min_size": whole_number("min_size in pixels", self.min_size),
        }
        if self.connectivity is not None:
            plain["connectivity"] = whole_number("connectivity", self.connectivity, least=1, most=3)
        if self.max_size is not None:
            plain["max_size"] = whole_number("max_size in pixels", self.max_size)
        for name, value in plain.items():
            object.__setattr__(self, name, value)
        if self.max_size is not None and self.max_size < max(1, self.min_size):
            raise PlanError(
                f"max_size must be at least 1 and at least min_size={self.min_size!r} pixels, got "
                f"{self.max_size!r}; every object would be dropped"
            )

    @property
    def filters_sizes(self) -> bool:
        """True where objects may be dropped for their size."""
        return self.min_size > 1 or self.max_size is not None

    @property
    def feathers(self) -> bool:
        """True where outlines are drawn from all tiles that saw them."""
        return self.outline == "feather"

    def resolve(
        self,
        grid: TileGrid,
        *,
        declared: MergeRule,
        connectivity: int | None,
        outline: Outline = "auto",
    ) -> MergeOptions:
        """Return the options with ``auto`` and None decided.

        Parameters
        ----------
        grid : TileGrid
        declared : str
            The rule that the segmentation function declares.
        connectivity : int or None
            The connectivity its labels have, if it says.
        outline : {"auto", "feather", "core"}
            The outline that the function declares.

        Returns
        -------
        MergeOptions

        Raises
        ------
        PlanError
            If the connectivity asked for is not the one the function's labels have, or outlines
            cannot be feathered as asked.
        """
        rule = self.rule if self.rule != "auto" else declared
        if rule == "auto":
            rule = "overlap" if any(grid.halo) else "touching"
        n_spatial = len(grid.spatial)
        resolved = min(self.connectivity or connectivity or 1, n_spatial)
        if connectivity is not None and resolved != min(connectivity, n_spatial):
            raise PlanError(
                f"merge connectivity {self.connectivity} is not the connectivity {connectivity} of "
                "the function's own labels: objects cut at a seam would be joined by another rule "
                "than those inside tiles; give the function and the merge the same"
            )
        drawn = _resolved_outline(grid, rule, self.outline, outline)
        return replace(self, rule=rule, connectivity=resolved, outline=drawn)

    def to_dict(self) -> dict[str, Any]:
        """Return the options as JSON-ready values."""
        values = asdict(self)
        if self.rule not in BY_OVERLAP and self.outline != "feather":
            del values["outline"]  # as version 0.1 recorded them, which drew no other
        return values

    @classmethod
    def from_dict(cls, record: dict[str, Any]) -> MergeOptions:
        """Return what `to_dict` recorded, also up to version 0.1, whose ``overlap`` was another."""
        if "outline" not in record:
            record = {**record, "outline": "core"}
            if record.get("rule") == "overlap":
                record["rule"] = "overlap-pairs"
        return cls(**record)


def _resolved_outline(grid: TileGrid, rule: str, outline: Outline, declared: Outline) -> Outline:
    """Return how outlines are drawn; raise PlanError where they cannot be drawn as asked."""
    tiled = [axis for axis in grid.spatial if grid.grid_shape[axis] > 1]
    axes = feathered_axes(grid)
    if outline != "feather":
        chosen = declared if outline == "auto" else outline
        is_feathered = rule in BY_OVERLAP if chosen == "feather" else rule == "overlap"
        return "feather" if chosen != "core" and is_feathered and axes else "core"
    if rule not in BY_OVERLAP:
        raise PlanError(
            f"outline='feather' draws objects from what tiles saw of each other's pixels, which "
            f"merge={rule!r} does not look at; merge='overlap', or leave outline out"
        )
    if tiled and not axes:
        raise PlanError(
            f"outline='feather' needs an overlap of {LEAST_HALO} pixels or more on a tiled axis, "
            f"got {grid.halo!r} for axes {grid.axes!r}; give overlap, or leave outline out"
        )
    return "feather" if axes else "core"


def warning_of(grid: TileGrid, options: MergeOptions) -> str | None:
    """Return what to say of resolved options that are weaker than they seem, or None.

    Where tiles have no halo on an axis they saw no pixel in common there, and ``overlap`` has to be
    content with how well their abutting planes agree.
    """
    blind = [
        grid.axes[axis]
        for axis in grid.spatial
        if grid.grid_shape[axis] > 1 and not grid.halo[axis]
    ]
    if options.rule not in BY_OVERLAP or not blind or not any(grid.halo):
        return None
    return (
        f"merge={options.rule!r} with no halo on axis {', '.join(map(repr, blind))}: labels are "
        "joined there where the planes on the two sides agree, which says less than what two tiles "
        "saw of the same pixels; give overlap on that axis, or merge='touching'"
    )


@dataclass(frozen=True, slots=True, eq=False)
class Joins:
    """Which rows of an edge table join two labels into one object, told part by part."""

    counts: np.ndarray[Any, Any]
    options: MergeOptions

    weighed: WeighedLabels | None
    """By ``overlap``, what all rows together say; other rules decide each face for itself."""

    @classmethod
    def of(cls, edges: Edges, counts: np.ndarray[Any, Any], options: MergeOptions) -> Joins:
        """Decide.

        Parameters
        ----------
        edges : Edges
        counts : ndarray of int64, shape (n_tiles,)
            Labels of each tile; ids beyond it were seen only in a halo and are never joined.
        options : MergeOptions
            Resolved: not ``auto``.
        """
        if options.rule == "auto":
            raise PlanError(f"merge rule {options.rule!r} must be resolved before it is used")
        if options.rule != "overlap":
            return cls(counts, options, None)
        return cls(counts, options, WeighedLabels.of(edges, counts, min_iou=options.min_iou))

    def rows(self, part: EdgeTable) -> np.ndarray[Any, Any]:
        """Return which rows of a part join two labels, bool."""
        if self.weighed is not None:
            return self.weighed.rows(part, self.counts)
        if self.options.rule == "none":
            return np.zeros(len(part), dtype=bool)
        if self.options.rule == "touching":
            reach = self.options.connectivity or 1
            return (part.connectivity > 0) & (part.connectivity <= reach)
        in_core = (part.id_a <= self.counts[part.tile_a]) & (part.id_b <= self.counts[part.tile_b])
        best_of_a, best_of_b = best_partners(part)
        # Around an edge or corner two tiles see few pixels of an object, and chance overlaps of
        # those join neighbours; the tiles between them have said more unless the object crosses
        # just there.
        meets = (part.order == 1) | (part.contact > 0)
        agrees = (part.iou >= self.options.min_iou) & (part.intersection > 0)
        joined: np.ndarray[Any, Any] = best_of_a & best_of_b & in_core & meets & agrees
        return joined

    def standing(self, edges: Edges) -> LookupTable:
        """Return every object by the staged id of its first label; the table is not sequential."""
        if self.weighed is not None:
            return self.weighed.standing()
        offsets = offsets_of(self.counts)
        pairs = []
        for part in edges.parts():
            rows = np.flatnonzero(self.rows(part))
            a = offsets[part.tile_a[rows]] + part.id_a[rows]
            pairs.append((a, offsets[part.tile_b[rows]] + part.id_b[rows]))
        return standing_of(offsets, *components(pairs))


def joined_pairs(
    edges: EdgeTable, counts: np.ndarray[Any, Any], options: MergeOptions
) -> np.ndarray[Any, Any]:
    """Return which rows of a whole table join two labels into one object, as `Joins`."""
    return Joins.of(edges, counts, options).rows(edges)


def best_partners(edges: EdgeTable) -> tuple[np.ndarray[Any, Any], np.ndarray[Any, Any]]:
    """Return the rows that hold the best partner of each label a, and of each label b, as masks.

    One row per label and face; a row in both is two labels that are each other's best partner.
    """
    return _is_best(edges, edges.id_a, edges.id_b), _is_best(edges, edges.id_b, edges.id_a)


def _is_best(
    edges: EdgeTable, of: np.ndarray[Any, Any], partner: np.ndarray[Any, Any]
) -> np.ndarray[Any, Any]:
    """Return the rows that hold the best partner of each label `of` at each face.

    Ties go to the larger intersection, then to the smaller id, so that the result is one row.
    """
    best = np.zeros(len(edges), dtype=bool)
    if not len(edges):
        return best
    labels = labels_at_faces(edges, of)
    order = np.lexsort((partner, -edges.intersection, -edges.iou, labels))
    first = np.ones(len(order), dtype=bool)
    first[1:] = labels[order[1:]] != labels[order[:-1]]
    best[order[first]] = True
    return best


def labels_at_faces(edges: EdgeTable, ids: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
    """Return a number per row, int64: the same for rows with one of `ids` at one face, ascending.

    Parameters
    ----------
    edges : EdgeTable
    ids : ndarray of int32
        Of its rows: `id_a` or `id_b`.
    """
    if not len(edges):
        return np.zeros(0, dtype=np.int64)
    keys = edges.tile_a * (int(edges.tile_b.max()) + 1) + edges.tile_b
    steps = np.diff(keys)
    if (steps < 0).any():  # rows in no order, or of the tiles of several blocks
        face = np.unique(keys, return_inverse=True)[1].reshape(-1)
    else:
        face = np.concatenate([np.zeros(1, dtype=np.int64), np.cumsum(steps > 0)])
    return np.asarray(face * (int(ids.max()) + 1) + ids)
