"""Holes of each plane are filled as if the plane were the image, whatever the tiles."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import ndimage

from patchworks_core import fill_holes


def labels_of(seed, shape=(4, 24, 30)):
    noise = ndimage.gaussian_filter(np.random.default_rng(seed).random(shape), (0, 1, 1))
    return ndimage.label(noise > np.percentile(noise, 45), ndimage.generate_binary_structure(3, 1))[
        0
    ]


@pytest.mark.slow
@settings(max_examples=8)
@given(seed=st.integers(0, 99), tile=st.sampled_from([(1, 9, 9), (2, 10, 30), (3, 7, 11)]))
def test_each_plane_is_filled_as_an_image_of_its_own(seed, tile):
    labels = labels_of(seed)
    filled = fill_holes(labels, per_plane=True, tile_shape=tile)
    expected = np.stack([fill_holes(plane) for plane in labels])
    np.testing.assert_array_equal(filled, expected)
    assert (filled != labels).any()


def test_a_tunnel_is_a_hole_of_planes_only():
    tube = np.zeros((3, 7, 7), int)
    tube[:, 1:6, 1:6] = 4
    tube[:, 3, 3] = 0
    np.testing.assert_array_equal(fill_holes(tube), tube)
    assert (fill_holes(tube, per_plane=True)[:, 3, 3] == 4).all()
    assert (fill_holes(tube, per_plane=True, max_size=0) == tube).all()


@pytest.mark.parametrize(("axes", "shape"), [("yx", (24, 30)), ("tyx", (4, 24, 30))])
def test_without_z_it_changes_nothing(axes, shape):
    labels = labels_of(3).reshape(-1)[: np.prod(shape)].reshape(shape)
    one = fill_holes(labels, axes=axes, per_plane=True, tile_shape=10)
    np.testing.assert_array_equal(one, fill_holes(labels, axes=axes, tile_shape=10))
