"""Outlines: a tile's core drawn from all that saw it, so that outlines do not jump at its faces.

Two tiles that see an object differently draw it differently, and where each writes its core alone,
the outline has a step at the face. `draw_core` lays what the tile saw over what its neighbours saw
of the same pixels (their strips), and where they disagree:

1. In each view an object is a signed distance to its edge, at most `reach` (`_signed_distance`).
2. A view weighs the less the nearer a pixel lies to the border of what its tile read (`_ramp`).
3. A pixel goes to the object whose weighted mean distance is largest, where that is inside; or
   where half of the weight sees something, to one whose edge is at most `GAP` away (`_Contest`).
4. Crumbs go to whom comes second (`_without_crumbs`), and an object is never drawn away: where none
   of it would be left in the tile that has most of it, its core stays (`_with_all_objects`).

Where all views agree nothing changes: perfect labels stay as they are. A core depends on the tile
and its neighbours only, so tiles are drawn in any order, by whomever.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from math import ceil
from typing import Any

import numpy as np
import numpy.typing as npt

from patchworks_core.seams.strips import feathered_axes
from patchworks_core.tiles.grid import Tile, TileGrid
from patchworks_core.tiles.regions import Region

Array = npt.NDArray[Any]

REACH = 12.0
"""Pixels of the finest axis up to which the distance to an edge counts."""

GAP = 3.0
"""Pixels of the finest axis over which a gap between objects that moved apart is closed."""

CRUMB = 8
"""Pixels of a loose piece that is none."""

_LEAST_WEIGHT = 1e-3


@dataclass(frozen=True, slots=True)
class View:
    """What one tile saw of a region, as objects."""

    tile: Tile

    region: Region
    """Part of what the tile reads: its strip at the core that is drawn, or all around its own."""

    ids: npt.NDArray[np.int32]
    """Objects, of the region's shape; 0 is background. Numbers 1..n that all views share."""

    objects: npt.NDArray[np.int32]
    """Objects that the tile saw anywhere, ascending, without 0."""


@dataclass(frozen=True, slots=True)
class Pen:
    """How outlines of a grid are drawn."""

    grid: TileGrid

    spacing: tuple[float, ...]
    """Length of a pixel per axis, of the finest spatial axis 1."""

    axes: tuple[int, ...] = field(init=False)
    """Those of `feathered_axes`."""

    reach: float = field(init=False)
    """Distances beyond count as this: no view ends nearer."""

    def __post_init__(self) -> None:
        axes = feathered_axes(self.grid)
        ends = [(self.grid.halo[axis] - 1) * self.spacing[axis] for axis in axes]
        object.__setattr__(self, "axes", axes)
        object.__setattr__(self, "reach", max(1.0, min([REACH, *ends])))

    def margin(self, length: float) -> tuple[int, ...]:
        """Return the pixels per axis that lie within a length."""
        return tuple(
            ceil(length / step) + 1
            if self.grid.shape[axis] > 1 and axis in self.grid.spatial
            else 0
            for axis, step in enumerate(self.spacing)
        )


def spacing_of(grid: TileGrid, lengths: Mapping[str, float]) -> tuple[float, ...]:
    """Return the length of a pixel per axis, the finest spatial axis being 1.

    Parameters
    ----------
    grid : TileGrid
    lengths : mapping of str to float
        In one unit, by axis name; where one is missing, pixels are taken to be as long as wide.
    """
    names = [grid.axes[axis] for axis in grid.spatial if grid.shape[axis] > 1]
    if not names or not all(lengths.get(name) for name in names):
        return (1.0,) * len(grid.axes)
    finest = min(lengths[name] for name in names)
    return tuple(lengths[name] / finest if name in names else 1.0 for name in grid.axes)


def draw_core(
    own: View, others: Sequence[View], pen: Pen, *, third: Sequence[View] = ()
) -> npt.NDArray[np.int32]:
    """Return the objects of a tile's core.

    Parameters
    ----------
    own : View
        Of the tile, over all it reads.
    others : sequence of View
        Of its neighbours, each over its strip, by the number of their tiles.
    pen : Pen
    third : sequence of View
        Third views; those that saw nothing of the core say nothing.
    """
    core = own.tile.core
    drawn = own.ids[core.slices_from(own.region.start)].copy()
    disputed = np.zeros(core.shape, dtype=bool)
    third = [view for view in third if common_region(core, view.tile.read) is not None]
    for other in (*others, *third):
        common = common_region(core, other.tile.read)
        if common is not None:
            theirs = other.ids[common.slices_from(other.region.start)]
            place = common.slices_from(core.start)
            disputed[place] |= theirs != drawn[place]
    if not disputed.any():
        return drawn
    views = sorted([own, *others, *third], key=lambda view: view.tile.number)
    contest = _Contest.of(core, disputed, views, pen)
    before = drawn.copy()
    drawn[disputed] = contest.winners()
    _without_crumbs(drawn, disputed, contest, own.tile, pen)
    _with_all_objects(drawn, before, own, others)
    return drawn


def common_region(a: Region, b: Region) -> Region | None:
    """Return the pixels of both regions; None where there are none."""
    start = tuple(map(max, a.start, b.start))
    stop = tuple(map(min, a.stop, b.stop))
    return Region(start, stop) if all(i < j for i, j in zip(start, stop, strict=True)) else None


def _widened(region: Region, margin: Sequence[int]) -> Region:
    """Return a region with a margin; it may reach beyond the end of the image."""
    return Region(
        tuple(max(0, a - m) for a, m in zip(region.start, margin, strict=True)),
        tuple(b + m for b, m in zip(region.stop, margin, strict=True)),
    )


@dataclass(slots=True)
class _Contest:
    """Which object has each disputed pixel, and which comes second; pixels in row-major order."""

    place: npt.NDArray[np.int64]
    """Number of each pixel of the core among the disputed, -1 elsewhere."""

    sees_something: npt.NDArray[np.bool_]
    """Whether half of the weight at a pixel is of views that have an object there."""

    best: Array
    first: Array
    second_best: Array
    second: Array

    @classmethod
    def of(cls, core: Region, disputed: Array, views: Sequence[View], pen: Pen) -> _Contest:
        """Let all objects near the disputed pixels contest them."""
        n = int(np.count_nonzero(disputed))
        place = np.full(core.shape, -1, dtype=np.int64)
        place[disputed] = np.arange(n)
        something, weight = np.zeros(n), np.zeros(n)
        ramps = [_ramp(view, pen) for view in views]
        for view, ramp in zip(views, ramps, strict=True):
            common = common_region(core, view.tile.read)
            if common is None:
                continue
            numbers = place[common.slices_from(core.start)]
            at = numbers >= 0
            values = _at(ramp, view.tile.read, common)[at]
            is_object = view.ids[common.slices_from(view.region.start)][at] > 0
            weight[numbers[at]] += values
            something[numbers[at]] += values * is_object
        low = np.full((2, n), -np.inf)
        none = np.zeros((2, n), dtype=np.int32)
        contest = cls(place, something >= 0.5 * weight, low[0], none[0], low[1], none[1])
        for entrant in _entrants(core, place, views, pen):
            contest._enter(entrant, core, views, ramps, pen)
        return contest

    def _enter(
        self,
        entrant: _Entrant,
        core: Region,
        views: Sequence[View],
        ramps: Sequence[Sequence[Array]],
        pen: Pen,
    ) -> None:
        """Let one object contest the disputed pixels near it."""
        number, box = entrant.number, entrant.box
        numbers = self.place[box.slices_from(core.start)]
        at = numbers >= 0
        total, weight = np.zeros(box.shape), np.zeros(box.shape)
        for view, ramp in zip(views, ramps, strict=True):
            common = common_region(box, view.tile.read)
            if common is None or not _holds(view.objects, number):
                continue
            place = common.slices_from(box.start)
            if not at[place].any():
                continue
            values = _at(ramp, view.tile.read, common)
            total[place] += values * _signed_distance(view, entrant, common, pen)
            weight[place] += values
        at &= weight > 0
        where, score = numbers[at], total[at] / weight[at]
        better = score > self.best[where]
        won, lost = where[better], where[~better]
        self.second[won], self.second_best[won] = self.first[won], self.best[won]
        self.first[won], self.best[won] = number, score[better]
        runner_up = score[~better] > self.second_best[lost]
        self.second[lost[runner_up]] = number
        self.second_best[lost[runner_up]] = score[~better][runner_up]

    def winners(self) -> Array:
        """Return the object of each disputed pixel."""
        return self._drawn(self.first, self.best)

    def runners_up(self) -> Array:
        """Return the object that each disputed pixel would have without the winner."""
        return self._drawn(self.second, self.second_best)

    def _drawn(self, number: Array, score: Array) -> Array:
        return np.where((score > 0) | (self.sees_something & (score > -GAP)), number, 0)


def _holds(objects: npt.NDArray[np.int32], number: int) -> bool:
    at = int(np.searchsorted(objects, number))
    return at < len(objects) and int(objects[at]) == number


@dataclass(frozen=True, slots=True)
class _Entrant:
    """One object that contests pixels."""

    number: int

    box: Region
    """Of the disputed pixels that it is near."""

    extent: Region
    """One pixel more than all of it that any view has within reach of disputed pixels."""


def _entrants(core: Region, place: Array, views: Sequence[View], pen: Pen) -> Iterator[_Entrant]:
    """Yield the objects near disputed pixels, in ascending order."""
    from scipy import ndimage

    margin = pen.margin(GAP)
    disputed = np.argwhere(place >= 0)
    whole = Region(
        tuple((disputed.min(axis=0) + core.start).tolist()),
        tuple((disputed.max(axis=0) + 1 + core.start).tolist()),
    )
    bounds: dict[int, list[Region]] = {}
    for view in views:
        common = common_region(_widened(whole, pen.margin(pen.reach)), view.region)
        if common is None:
            continue
        ids = view.ids[common.slices_from(view.region.start)]
        for number, box in enumerate(ndimage.find_objects(ids), start=1):
            if box is not None:
                start = [s.start + c for s, c in zip(box, common.start, strict=True)]
                stop = [s.stop + c for s, c in zip(box, common.start, strict=True)]
                bounds.setdefault(number, []).append(Region(tuple(start), tuple(stop)))
    for number in sorted(bounds):
        start = np.min([box.start for box in bounds[number]], axis=0)
        stop = np.max([box.stop for box in bounds[number]], axis=0)
        extent = Region(tuple(start.tolist()), tuple(stop.tolist()))
        near = common_region(whole, _widened(extent, margin))
        box = near and _bounds(place[near.slices_from(core.start)] >= 0, near.start)
        if box is not None:
            yield _Entrant(number, box, _widened(extent, [min(1, m) for m in margin]))


def _bounds(mask: Array, origin: Sequence[int]) -> Region | None:
    """Return the smallest region that holds all of a mask which begins at `origin`."""
    start, stop = [], []
    for axis, first in enumerate(origin):
        others = tuple(i for i in range(mask.ndim) if i != axis)
        at = np.flatnonzero(mask.any(axis=others))
        if not len(at):
            return None
        start.append(first + int(at[0]))
        stop.append(first + int(at[-1]) + 1)
    return Region(tuple(start), tuple(stop))


def _ramp(view: View, pen: Pen) -> list[Array]:
    """Return how much a view weighs along each axis of what its tile reads.

    It falls towards the border of the read, two halos wide, but not at the image's own border.
    """
    ramps = []
    for axis, n in enumerate(view.tile.read.shape):
        weight = np.ones(n)
        if axis in pen.axes:
            inside = np.arange(n) + 0.5
            width = 2 * pen.grid.halo[axis]
            if view.tile.read.start[axis] > 0:
                weight = np.minimum(weight, inside / width)
            if view.tile.read.stop[axis] < pen.grid.shape[axis]:
                weight = np.minimum(weight, inside[::-1] / width)
        ramps.append(np.maximum(weight, _LEAST_WEIGHT))
    return ramps


def _at(ramp: Sequence[Array], read: Region, region: Region) -> Array:
    """Return the weight of a view at each pixel of a region."""
    weight = np.ones(region.shape)
    for axis, place in enumerate(region.slices_from(read.start)):
        weight *= ramp[axis][place].reshape([-1 if i == axis else 1 for i in range(len(ramp))])
    return weight


def _signed_distance(view: View, entrant: _Entrant, region: Region, pen: Pen) -> Array | float:
    """Return how far inside (above 0) or outside an object the pixels of a region are in a view."""
    from scipy import ndimage

    reachable = common_region(_widened(region, pen.margin(pen.reach)), view.region)
    assert reachable is not None
    inside = common_region(reachable, entrant.extent) or region  # beyond, nothing is of the object
    near = Region(
        tuple(map(min, inside.start, region.start)), tuple(map(max, inside.stop, region.stop))
    )
    mask = view.ids[near.slices_from(view.region.start)] == entrant.number
    n = int(np.count_nonzero(mask))
    if n in (0, mask.size):
        return pen.reach if n else -pen.reach
    distance = ndimage.distance_transform_edt(mask, sampling=pen.spacing)
    distance -= ndimage.distance_transform_edt(~mask, sampling=pen.spacing)
    distance = distance[region.slices_from(near.start)]
    # An edge lies half a pixel from the centres on its two sides.
    signed: Array = np.clip(distance - 0.5 * np.sign(distance), -pen.reach, pen.reach)
    return signed


def _without_crumbs(drawn: Array, disputed: Array, contest: _Contest, tile: Tile, pen: Pen) -> None:
    """Give the pixels of loose crumbs to the object that comes second there.

    A piece at a face may go on behind it, and a piece that all views have is no crumb.
    """
    from skimage.measure import label as connected_regions

    thick = [n for n in drawn.shape if n > 1] or [1]
    regions = connected_regions(drawn.reshape(thick)).reshape(drawn.shape)
    sizes = np.bincount(regions.reshape(-1))
    contested = np.bincount(regions[disputed], minlength=len(sizes))
    is_crumb = (sizes <= CRUMB) & (sizes == contested)
    is_crumb[0] = False
    for axis in pen.grid.spatial:
        planes = np.moveaxis(regions, axis, 0)
        if tile.index[axis] > 0:
            is_crumb[planes[0]] = False
        if tile.index[axis] < pen.grid.grid_shape[axis] - 1:
            is_crumb[planes[-1]] = False
    crumbs = is_crumb[regions]
    drawn[crumbs] = contest.runners_up()[contest.place[crumbs]]


def _with_all_objects(drawn: Array, before: Array, own: View, others: Sequence[View]) -> None:
    """Put back the core of objects of which nothing would be left in the tile that has most.

    The tile of an object's largest piece always puts it back, as no neighbour shows more of it.
    """
    n = int(max(before.max(), drawn.max())) + 1
    pixels = np.bincount(before.reshape(-1), minlength=n)
    elsewhere = np.zeros(n, dtype=np.int64)
    if not _gone(drawn, pixels > 0).any():
        return
    for other in others:
        core = common_region(other.tile.core, other.region)
        if core is not None:
            ids = other.ids[core.slices_from(other.region.start)].reshape(-1)
            elsewhere = np.maximum(elsewhere, np.bincount(ids, minlength=n)[:n])
    ours = (pixels > 0) & (pixels >= elsewhere)
    while (gone := _gone(drawn, ours)).any():  # what is put back may cover all of another
        back = gone[before]
        drawn[back] = before[back]


def _gone(drawn: Array, numbers: npt.NDArray[np.bool_]) -> npt.NDArray[np.bool_]:
    """Return which of the objects no pixel is of; never background."""
    gone: npt.NDArray[np.bool_] = numbers & (
        np.bincount(drawn.reshape(-1), minlength=len(numbers)) == 0
    )
    gone[0] = False
    return gone
