"""Confluent tissue with a known truth, and functions that disagree with themselves between tiles.

The cells are a relaxed Voronoi diagram: every pixel belongs to a cell and every cell touches its
neighbours, which is the hard case for a merge. What a tile sees is made from the truth, so that the
disagreement between two tiles is known exactly:

1. Every boundary is displaced by a smooth random field of the tile's own (`displaced`).
2. Some cells are split in two or joined to a neighbour (`split_and_joined`).
3. Some of the fragments that the border of the read cuts off go to a neighbour (`ragged`).
4. The ids are shuffled (`shuffled`), so that nothing can be won by comparing them.

All of it is a function of the seed and of the region read, hence the same for whoever asks.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
from scipy import ndimage
from scipy.spatial import cKDTree

from patchworks_core.tiles.regions import Region

Labels = npt.NDArray[np.int32]


@dataclass(frozen=True, slots=True)
class Disagreement:
    """How much a function's view of the same pixels differs from tile to tile."""

    displacement: float = 0
    """Root mean square of the distance, per axis, between where two tiles see the same boundary;
    each of them is off the truth by 1 / sqrt(2) of it. Pixels."""

    error_rate: float = 0
    """Share of the cells of a tile that are split in two, and share joined to a neighbour."""

    absorbed: float = 0
    """Share of fragments at the border of a read, less than a quarter of their cell, that go to a
    neighbour."""


PERFECT = Disagreement()
MILD = Disagreement(displacement=1, absorbed=0.5)


def hard(diameter: float) -> Disagreement:
    """Return a disagreement of an eighth of a cell's diameter, with cells split and joined."""
    return Disagreement(displacement=diameter / 8, error_rate=0.03, absorbed=0.5)


def voronoi_tissue(shape: tuple[int, ...], *, diameter: float, seed: int) -> Labels:
    """Return cells that fill an image: a Voronoi diagram, relaxed twice towards equal sizes.

    Parameters
    ----------
    shape : tuple of int
        Pixels per axis.
    diameter : float
        Of the disk or ball that has the mean size of a cell, pixels.
    seed : int

    Returns
    -------
    ndarray of int32
        Ids 1..n, no background.
    """
    rng = np.random.default_rng(seed)
    size = np.pi / 4 * diameter**2 if len(shape) == 2 else np.pi / 6 * diameter**3
    n_cells = round(np.prod(shape) / size)
    pixels = np.stack(np.meshgrid(*map(np.arange, shape), indexing="ij"), axis=-1)
    pixels = pixels.reshape(-1, len(shape)).astype(np.float32)
    centres = rng.random((n_cells, len(shape))) * shape
    for _ in range(2):
        nearest = cKDTree(centres).query(pixels[::7], workers=1)[1]
        n = np.maximum(np.bincount(nearest, minlength=n_cells), 1)
        sums = [np.bincount(nearest, pixels[::7, a], minlength=n_cells) for a in range(len(shape))]
        centres = np.stack(sums, axis=1) / n[:, None]
    nearest = cKDTree(centres).query(pixels, workers=1)[1]
    return np.unique(nearest, return_inverse=True)[1].reshape(shape).astype(np.int32) + 1


@dataclass(frozen=True, slots=True)
class TileView:
    """A function that labels a region of an image whose truth is known, with its own errors."""

    truth: npt.NDArray[Any]
    """True ids, 0 is background."""

    disagreement: Disagreement
    smoothness: float
    """Standard deviation of the Gaussian that smooths the displacement, pixels."""

    seed: int

    def __call__(self, region: Region) -> Labels:
        """Return the labels of a region: the same for the same region."""
        rng = np.random.default_rng([self.seed, *region.start, *region.stop])
        labels = self.truth[region.slices].astype(np.int32)
        how = self.disagreement
        if how.displacement:
            labels = displaced(labels, how.displacement / np.sqrt(2), self.smoothness, rng)
        if how.error_rate:
            labels = split_and_joined(labels, how.error_rate, rng)
        if how.absorbed:
            labels = ragged(labels, self.truth, how.absorbed, rng)
        return shuffled(labels, rng)


def displaced(labels: Labels, amount: float, smoothness: float, rng: np.random.Generator) -> Labels:
    """Move every boundary by a smooth random field of the given root mean square per axis."""
    where = np.indices(labels.shape, dtype=np.float32)
    margin = round(3 * smoothness)  # else the field is stronger at the border of the region
    inside = (slice(margin, -margin),) * labels.ndim
    for axis in range(labels.ndim):
        noise = rng.standard_normal([n + 2 * margin for n in labels.shape], dtype=np.float32)
        field = ndimage.gaussian_filter(noise, smoothness, truncate=3)[inside]
        where[axis] += field * (amount / field.std())
    moved = ndimage.map_coordinates(labels, where, order=0, mode="nearest")
    return np.asarray(moved, np.int32)


def split_and_joined(labels: Labels, rate: float, rng: np.random.Generator) -> Labels:
    """Split some cells by a plane through their middle, and join as many to a neighbour."""
    ids = np.unique(labels[labels > 0])
    fate = rng.random(len(ids))
    result = labels.copy()
    boxes = ndimage.find_objects(labels)
    new = int(labels.max()) + 1
    for cell in ids[fate < rate]:
        box = boxes[cell - 1]
        inside = np.argwhere(labels[box] == cell)
        side = (inside - inside.mean(axis=0)) @ rng.standard_normal(labels.ndim)
        half = tuple(inside[side > 0].T)
        result[box][half] = new
        new += 1
    partner = _neighbours(labels)
    for cell in ids[(fate >= rate) & (fate < 2 * rate)]:
        if cell in partner:
            result[result == cell] = partner[cell]
    return result


def ragged(
    labels: Labels, truth: npt.NDArray[Any], share: float, rng: np.random.Generator
) -> Labels:
    """Give some of the fragments of less than a quarter of their cell to a neighbour."""
    whole = np.bincount(truth.ravel(), minlength=int(labels.max()) + 1)
    seen = np.bincount(labels.ravel(), minlength=len(whole))
    known = np.flatnonzero(whole > 0)
    fragments = known[(seen[known] > 0) & (4 * seen[known] < whole[known]) & (known > 0)]
    partner = _neighbours(labels)
    result = labels.copy()
    for cell in fragments[rng.random(len(fragments)) < share]:
        if cell in partner:
            result[result == cell] = partner[cell]
    return result


def shuffled(labels: npt.NDArray[Any], rng: np.random.Generator) -> Labels:
    """Give the labels ids 1..n in random order; 0 stays 0."""
    ids, index = np.unique(labels, return_inverse=True)
    new = rng.permutation(len(ids)).astype(np.int32) + 1
    return np.where(labels == 0, 0, new[index.reshape(labels.shape)]).astype(np.int32)


def _neighbours(labels: Labels) -> dict[int, int]:
    """Return the neighbour with the longest contact, of each cell that has one."""
    pairs = []
    for axis in range(labels.ndim):
        moved = np.moveaxis(labels, axis, 0)
        a, b = moved[:-1].ravel(), moved[1:].ravel()
        at = (a != b) & (a > 0) & (b > 0)
        pairs += [np.stack([a[at], b[at]]), np.stack([b[at], a[at]])]
    (of, partner), length = np.unique(np.concatenate(pairs, axis=1), axis=1, return_counts=True)
    order = np.lexsort((partner, -length, of))
    cells, first = np.unique(of[order], return_index=True)
    return dict(zip(cells.tolist(), partner[order][first].tolist(), strict=True))
