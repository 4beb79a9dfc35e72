"""Jumps of outlines between two planes, on planes made by hand."""

from __future__ import annotations

import numpy as np
import pytest

from patchworks_core.seams.jumps import jumps_of_planes


@pytest.mark.parametrize(
    ("low", "high", "moves"),
    [
        ([0, 5, 5, 0], [0, 5, 5, 0], [0, 0]),
        ([0, 5, 5, 0], [5, 5, 0, 0], [1, 1]),
        ([5, 5, 0, 3], [0, 5, 5, 3], [0, 0, 1, 1]),
        ([5, 5, 0, 0], [0, 0, 7, 7], []),
        ([0, 0, 0, 0], [0, 0, 7, 7], []),
    ],
)
def test_ends_of_objects_on_both_sides_are_compared(low, high, moves):
    assert sorted(jumps_of_planes(np.array(low), np.array(high)).tolist()) == moves


def test_each_line_of_a_plane_counts():
    low, high = np.zeros((2, 5), int), np.zeros((2, 5), int)
    low[:, 1:3] = 4
    high[0, 1:3], high[1, 1:5] = 4, 4
    assert jumps_of_planes(low, high).tolist() == [0, 0, 0, 2]
