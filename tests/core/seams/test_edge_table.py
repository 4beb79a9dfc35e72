"""The edge table in parts: the same parts however the rows come, and no tile in two of them."""

from __future__ import annotations

from itertools import pairwise

import numpy as np
import pytest

from patchworks_core.seams.edge_table import EdgeTable, SelectedEdges, StackedEdges, divided
from tests.core.oracles import InParts, edge_table, random_table


def rows(parts) -> list[list[int]]:
    return [part.tile_a.tolist() for part in parts]


@pytest.mark.parametrize(
    ("n_rows", "expected"),
    [
        (1, [[0, 0], [1], [2, 2, 2], [4]]),
        (3, [[0, 0, 1], [2, 2, 2], [4]]),
        (4, [[0, 0, 1, 2, 2, 2], [4]]),
        (9, [[0, 0, 1, 2, 2, 2, 4]]),
    ],
)
@pytest.mark.parametrize("cuts", [(), (2,), (2, 3, 6), (0, 3, 3, 7)])
def test_parts_end_with_tiles_and_are_the_same_however_rows_come(n_rows, expected, cuts):
    edges = edge_table([(tile, 1, tile + 1, i + 1) for i, tile in enumerate([0, 0, 1, 2, 2, 2, 4])])
    bounds = [0, *cuts, 7]
    tables = [edges.select(slice(a, b)) for a, b in pairwise(bounds)]
    assert rows(divided(tables, n_rows=n_rows)) == expected
    assert not list(divided([EdgeTable.empty()], n_rows=n_rows))


def test_edges_of_several_and_a_selection_go_through_in_parts():
    edges = EdgeTable.concatenate([random_table(1, 60, 5, 9)])
    both = StackedEdges((InParts(edges, 7), edges))
    assert len(both) == 2 * len(edges) == len(EdgeTable.stacked(both.parts()))
    faces = SelectedEdges(both, lambda part: part.order == 1)
    assert len(faces) == 2 * int((edges.order == 1).sum())


def test_the_schema_is_that_of_the_columns():
    edges = random_table(1, 20, 5, 9)
    written = EdgeTable.from_arrow(EdgeTable.empty().to_arrow().cast(EdgeTable.schema()))
    assert written.to_arrow().schema == EdgeTable.schema()
    assert np.array_equal(edges.to_arrow()["tile_a"].to_numpy(), edges.tile_a)
