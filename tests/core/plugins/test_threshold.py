"""Smoothing before a threshold, on every axis alike or on each."""

from __future__ import annotations

import numpy as np
import pytest
from scipy import ndimage

from patchworks_core import SegmentationError, tile_process
from patchworks_core.plugins.threshold import threshold
from patchworks_core.plugins.watershed import watershed
from tests.core.oracles import assert_same_partition


@pytest.mark.parametrize("function", [threshold, watershed])
def test_smoothing_may_differ_by_axis(function):
    noise = np.random.default_rng(1).random((6, 40, 40))
    tile = ndimage.gaussian_filter(noise, (1, 2, 2)).astype("f4")
    value = float(np.median(tile))
    even = function(tile, value=value, sigma=2.0)
    np.testing.assert_array_equal(even, function(tile, value=value, sigma=(2.0, 2.0, 2.0)))
    uneven = function(tile, value=value, sigma=(0.0, 2.0, 2.0))
    assert (uneven != even).any()
    plane = function(tile[:1], value=value, sigma=[9.0, 2.0, 2.0])
    np.testing.assert_array_equal(plane[0], function(tile[0], value=value, sigma=2.0))
    for sigma in ((1.0, 2.0), (1.0, -1.0, 1.0), -1):
        with pytest.raises(SegmentationError, match="0 or more pixels, one number or 3, got"):
            function(tile, value=value, sigma=sigma)


def test_a_smoothing_by_axis_is_recorded_with_the_labels(tmp_path):
    pixels = np.random.default_rng(1).random((2, 20, 20)).astype("f4")
    whole = threshold(pixels, value=0.5, sigma=(0.0, 1.0, 1.0))
    parameters = {"value": 0.5, "sigma": [0.0, 1.0, 1.0]}
    tiled = tile_process(
        pixels, "threshold", parameters=parameters, tile_shape=(1, 10, 10), overlap=4
    )
    assert_same_partition(tiled, whole)
