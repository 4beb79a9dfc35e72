"""Images of which every object is known, made from a seed: what `bench_seams.py` cuts into tiles.

`SETS` has them by name. Each is a label image, 0 is background, and the diameter of a usual object,
of which halos are fractions. What a tile sees of one is made by `tissue.TileView`.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
import numpy.typing as npt
from scipy import ndimage
from scipy.spatial import cKDTree

Labels = npt.NDArray[np.int32]


@dataclass(frozen=True, slots=True)
class SeamSet:
    """One kind of image."""

    name: str
    axes: str
    shape: tuple[int, ...]
    tile_shape: tuple[int, ...]
    diameter: float
    make: Callable[[tuple[int, ...], float, np.random.Generator], Labels]

    def truth(self, seed: int) -> Labels:
        """Return the label image of a seed, ids 1..n."""
        return numbered(self.make(self.shape, self.diameter, np.random.default_rng(seed)))


def tissue(
    shape: tuple[int, ...], diameter: float, rng: np.random.Generator, *, spread: float = 0.45
) -> Labels:
    """Return cells that fill an image, their sizes widely spread: a power diagram.

    `spread` is the standard deviation of the logarithm of the radii.
    """
    size = np.pi / 4 * diameter**2 if len(shape) == 2 else np.pi / 6 * diameter**3
    n = round(np.prod(shape) / size)
    centres = rng.random((n, len(shape))) * shape
    weights = (diameter / 2 * rng.lognormal(0, spread, n)) ** 2
    pixels = np.indices(shape).reshape(len(shape), -1).T
    distance, nearest = cKDTree(centres).query(pixels, k=min(24, n), workers=1)
    best = (distance**2 - weights[nearest]).argmin(axis=1)
    cells = np.take_along_axis(nearest, best[:, None], axis=1)[:, 0]
    return cells.reshape(shape).astype(np.int32) + 1


def nested(shape: tuple[int, ...], diameter: float, rng: np.random.Generator) -> Labels:
    """Return cells with a nucleus in each, which is an object of its own."""
    cells = tissue(shape, 1.6 * diameter, rng, spread=0.3)
    edge = np.zeros(shape, bool)
    for axis in range(len(shape)):
        edge |= np.diff(cells, axis=axis, append=-1) != 0
    depth = ndimage.distance_transform_edt(~edge)
    deepest = ndimage.maximum(depth, cells, np.arange(cells.max() + 1))
    nucleus = depth > 0.5 * deepest[cells]
    return np.where(nucleus, cells + cells.max(), cells).astype(np.int32)


def discs(shape: tuple[int, ...], diameter: float, rng: np.random.Generator) -> Labels:
    """Return discs of widely spread sizes that do not overlap, on background."""
    labels = np.zeros(shape, np.int32)
    grid = np.indices(shape)
    for label in range(1, 4000):
        centre = rng.random(len(shape)) * shape
        radius = diameter / 2 * rng.lognormal(0, 0.3)
        low = np.maximum(0, (centre - radius - 1).astype(int))
        box = tuple(
            slice(a, b) for a, b in zip(low, (centre + radius + 2).astype(int), strict=True)
        )
        offset = grid[(slice(None), *box)] - centre.reshape(-1, *(1,) * len(shape))
        disc = (offset**2).sum(axis=0) < radius**2
        if not labels[box][disc].any():
            labels[box][disc] = label
    return labels


def fibres(shape: tuple[int, ...], diameter: float, rng: np.random.Generator) -> Labels:
    """Return long curved fibres, half a diameter thick, one over the other."""
    labels = np.zeros(shape, np.int32)
    n = round(np.prod(shape) / (6 * diameter**2))
    for label in range(1, n + 1):
        path = _path(shape, rng, round(8 * diameter), bend=0.06)
        labels[_within(shape, path, diameter / 4)] = label
    return _connected(labels)


def vessels(shape: tuple[int, ...], diameter: float, rng: np.random.Generator) -> Labels:
    """Return trees of vessels that branch and get thinner, each through many tiles."""
    labels = np.zeros(shape, np.int32)
    for label in range(1, 13):
        ends = [(rng.random(len(shape)) * shape, rng.uniform(0, 2 * np.pi), diameter / 3)]
        while ends:
            start, angle, radius = ends.pop()
            path = _path(shape, rng, round(6 * diameter), 0.04, start, angle)
            free = _within(shape, path, radius) & (labels == 0)
            labels[free] = label
            if radius > diameter / 8 and len(path) > 4:
                ends += [(path[-1], angle + turn, radius * 0.75) for turn in (-0.6, 0.6)]
    return _connected(labels)


def _path(
    shape: tuple[int, ...],
    rng: np.random.Generator,
    length: int,
    bend: float,
    start: npt.NDArray[Any] | None = None,
    angle: float | None = None,
) -> npt.NDArray[Any]:
    """Return a curve of points one pixel apart, up to where it leaves the image."""
    start = rng.random(2) * shape if start is None else start
    angle = rng.uniform(0, 2 * np.pi) if angle is None else angle
    angles = angle + np.cumsum(rng.normal(0, bend, length))
    points = start + np.cumsum(np.stack([np.sin(angles), np.cos(angles)], axis=1), axis=0)
    outside = np.flatnonzero((points < 0).any(axis=1) | (points >= shape).any(axis=1))
    return np.concatenate([start[None], points[: outside[0] if len(outside) else None]])


def _within(shape: tuple[int, ...], path: npt.NDArray[Any], radius: float) -> npt.NDArray[np.bool_]:
    """Return the pixels within `radius` of a curve."""
    beside = np.ones(shape, bool)
    beside[tuple(np.clip(path.astype(int), 0, np.array(shape) - 1).T)] = False
    return np.asarray(ndimage.distance_transform_edt(beside) <= radius)


def _connected(labels: Labels) -> Labels:
    """Return the pieces of each object as objects of their own, without the smallest."""
    pieces = np.zeros_like(labels)
    n = 0
    for label, box in enumerate(ndimage.find_objects(labels), start=1):
        if box is None:
            continue
        piece, _ = ndimage.label(labels[box] == label)
        sizes = np.bincount(piece.ravel())
        kept = np.flatnonzero(sizes >= 20)
        for k in kept[kept > 0]:
            n += 1
            pieces[box][piece == k] = n
    return pieces


def numbered(labels: npt.NDArray[Any]) -> Labels:
    """Give the labels ids 1..n; 0 stays 0."""
    ids, index = np.unique(labels, return_inverse=True)
    has_background = ids[0] == 0
    return (index.reshape(labels.shape) + (not has_background)).astype(np.int32)


SETS = {
    chosen.name: chosen
    for chosen in (
        SeamSet("tissue", "yx", (512, 512), (128, 128), 24, tissue),
        SeamSet("nested", "yx", (512, 512), (128, 128), 24, nested),
        SeamSet("discs", "yx", (512, 512), (128, 128), 24, discs),
        SeamSet("fibres", "yx", (512, 512), (128, 128), 24, fibres),
        SeamSet("vessels", "yx", (512, 512), (128, 128), 24, vessels),
        SeamSet("tissue, 3-D", "zyx", (64, 96, 96), (32, 48, 48), 16, partial(tissue, spread=0.25)),
        SeamSet("discs, 3-D", "zyx", (64, 96, 96), (32, 48, 48), 16, discs),
    )
}
