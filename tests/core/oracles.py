"""Merging without a disk, and what its result is compared with."""

from __future__ import annotations

import os
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np

from patchworks_core.pilot.in_memory import TilesInMemory
from patchworks_core.seams.edge_table import EdgeTable, divided
from patchworks_core.seams.rules import MergeOptions
from patchworks_core.tiles.grid import TileGrid


def examples(n: int) -> int:
    """Return how many examples a property is tried on: ten times as many at night."""
    return 10 * n if os.environ.get("HYPOTHESIS_PROFILE") == "nightly" else n


def merge_in_memory(image, function, grid: TileGrid, options: MergeOptions) -> np.ndarray:
    """Stage, pair, look up and apply in memory; function sees the spatial axes of a tile."""
    return TilesInMemory.stage(image, function, grid).merged(options)


def edge_table(rows) -> EdgeTable:
    """Make an edge table of rows (tile a, id a, tile b, id b[, intersection, area a, area b[,
    connectivity]]).
    """
    columns = np.array([[*row, *(0, 1, 1, 0)[len(row) - 4 :]] for row in rows], dtype=np.int64)
    columns = columns.reshape(len(rows), 8).T
    one = np.ones(len(rows), dtype=np.int8)
    return EdgeTable(
        *columns[:7],
        contact=columns[7],
        connectivity=columns[7],
        axis=one,
        order=one,
        plane_a=columns[7],
        plane_b=columns[7],
    )


def random_table(seed: int, n_rows: int, n_tiles: int, n_labels: int) -> EdgeTable:
    rng = np.random.default_rng(seed)
    rows = {}
    for _ in range(n_rows):
        a, b = sorted(rng.choice(n_tiles, 2, replace=False).tolist())
        key = a, int(rng.integers(1, n_labels + 2)), b, int(rng.integers(1, n_labels + 2))
        areas = rng.integers(5, 60, 2)
        common = int(rng.integers(0, areas.min() + 1))
        rows[key] = (*key, common, *areas.tolist(), int(rng.integers(0, 2)))
    edges = edge_table(list(rows.values()))
    edges.order[:] = rng.integers(1, 3, len(edges))
    edges.contact[:] = rng.integers(0, 2, len(edges))
    return edges


@dataclass(frozen=True)
class InParts:
    """A table of edges in parts of at least so many rows."""

    table: EdgeTable
    n_rows: int

    def __len__(self) -> int:
        return len(self.table)

    def parts(self) -> Iterator[EdgeTable]:
        return divided([self.table], n_rows=self.n_rows)


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
