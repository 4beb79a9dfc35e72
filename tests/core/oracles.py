"""Merging without a disk, and what its result is compared with."""

from __future__ import annotations

import numpy as np

from patchworks_core.grid import TileGrid
from patchworks_core.labels import check_labels, number_labels
from patchworks_core.lut import build_lut
from patchworks_core.pairs import EdgeTable, compare_face
from patchworks_core.rules import MergeOptions, joined_pairs
from patchworks_core.strips import cut_strip


def merge_in_memory(image, function, grid: TileGrid, options: MergeOptions) -> np.ndarray:
    """Stage, pair, look up and apply in memory; function sees the spatial axes of a tile."""
    numbered = {}
    for tile in grid.tiles():
        pixels = image[tile.read.slices]
        shape = tuple(pixels.shape[axis] for axis in grid.spatial)
        labels = check_labels(function(pixels.reshape(shape), tile), shape=shape, where="")
        core = tile.core.relative_to(tile.read.start)
        numbered[tile.index] = number_labels(labels.reshape(pixels.shape), core, where="")

    def strips(index, axis, side):
        return cut_strip(grid, grid.tile(index), numbered[index].pixels, axis, side)

    edges = EdgeTable.concatenate(
        compare_face(grid, face, strips) for tile in grid.tiles() for face in grid.faces_above(tile)
    )
    counts = np.array([numbered[tile.index].n_core for tile in grid.tiles()])
    lut = build_lut(edges.select(joined_pairs(edges, counts, options)), counts)
    merged = np.zeros(grid.shape, dtype=np.int64)
    for tile in grid.tiles():
        core = tile.core.relative_to(tile.read.start)
        merged[tile.core.slices] = lut.of_tile(tile.number)[numbered[tile.index].pixels[core.slices]]
    return merged


def assert_same_partition(labels: np.ndarray, truth: np.ndarray) -> None:
    """Assert that two label images have the same background and the same objects, ids aside."""
    labels, truth = np.asarray(labels), np.asarray(truth)
    np.testing.assert_array_equal(labels == 0, truth == 0)
    inside = truth != 0
    pairs = np.unique(np.stack([labels[inside], truth[inside]]), axis=1)
    n_labels, n_truth = len(np.unique(pairs[0])), len(np.unique(pairs[1]))
    assert pairs.shape[1] == n_labels == n_truth, (
        f"{n_truth} true objects became {n_labels}, in {pairs.shape[1]} combinations"
    )


def f1_at(labels: np.ndarray, truth: np.ndarray, min_iou: float = 0.5) -> float:
    """Object F1: a label is right where its IoU with a true object is above `min_iou`."""
    from skimage.metrics import contingency_table

    common = contingency_table(truth, labels).tocsr()
    area_truth = np.asarray(common.sum(axis=1)).ravel()
    area_labels = np.asarray(common.sum(axis=0)).ravel()
    rows, columns = common.nonzero()
    inside = (rows > 0) & (columns > 0)
    rows, columns = rows[inside], columns[inside]
    intersection = np.asarray(common[rows, columns]).ravel()
    iou = intersection / (area_truth[rows] + area_labels[columns] - intersection)
    n_truth = np.count_nonzero(area_truth[1:])
    n_labels = np.count_nonzero(area_labels[1:])
    right = int((iou > min_iou).sum())
    return 2 * right / (n_truth + n_labels) if n_truth + n_labels else 1.0
