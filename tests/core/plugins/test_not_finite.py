"""Pixels that are NaN or infinite are background, and take nothing from those around them."""

from __future__ import annotations

import numpy as np
import pytest

from patchworks_core import tile_process
from patchworks_core.operations.background import subtract_background, white_tophat
from patchworks_core.operations.filters import clip_and_scale, gaussian, maximum, median, minimum
from patchworks_core.plugins.threshold import gaussian_halo
from tests.core.oracles import assert_same_partition

HOLES = (slice(40, 43), slice(75, 79)), (slice(70, 72), slice(10, 12)), (slice(0, 2), slice(40, 44))
"""Of the background, of an object, at the border."""

OPERATIONS = {
    "gaussian": gaussian(1.5),
    "median": median(5),
    "median of a ball": median(5, shape="ball"),
    "maximum": maximum(5),
    "minimum": minimum(5),
    "white_tophat": white_tophat(4),
    "subtract_background": subtract_background(6),
    "clip_and_scale": clip_and_scale(0, 100),
}


def disks():
    y, x = np.mgrid[:96, :96]
    centres = [(20, 20), (20, 70), (48, 48), (71, 11), (75, 75), (60, 30)]
    return sum(100.0 * ((y - a) ** 2 + (x - b) ** 2 <= 64) for a, b in centres) + 1


def with_holes(value):
    pixels = disks()
    for hole in HOLES:
        pixels[hole] = value
    return pixels


@pytest.mark.slow
@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("dark_objects", [False, True])
@pytest.mark.parametrize("sigma", [0, 1.5])
@pytest.mark.parametrize("function", ["threshold", "watershed"])
def test_labels_are_those_without_holes_where_pixels_are_finite(
    function, sigma, dark_objects, value
):
    pixels, clean = with_holes(value), disks()
    if dark_objects:
        pixels, clean = 200 - pixels, 200 - clean
    options = {"sigma": sigma, "dark_objects": dark_objects, "value": 150 if dark_objects else 50}
    whole, expected = (
        tile_process(p, function, tile_shape=96, parameters=options) for p in (pixels, clean)
    )
    finite = np.isfinite(pixels)
    assert not whole[~finite].any()
    touched = np.unique(expected[HOLES[1]])
    away = ~np.isin(expected, touched[touched > 0])
    assert np.count_nonzero(expected[away]) > 500
    assert_same_partition(np.where(away, whole, 0), np.where(away & finite, expected, 0))
    assert np.count_nonzero(whole[~away]) > 0.9 * np.count_nonzero(~away & finite)
    tiled = tile_process(
        pixels, function, tile_shape=48, overlap=gaussian_halo(sigma) + 20, parameters=options
    )
    assert_same_partition(tiled, whole)


@pytest.mark.parametrize("value", [np.nan, np.inf, -np.inf])
@pytest.mark.parametrize("dtype", ["f2", "f4", "f8"])
@pytest.mark.parametrize("name", OPERATIONS)
def test_operations_leave_them_out(name, dtype, value):
    pixels = with_holes(value).astype(dtype)
    result = OPERATIONS[name](pixels)
    np.testing.assert_array_equal(np.isfinite(result), np.isfinite(pixels))
    flat = np.full((30, 30), 7, dtype)
    flat[12:15, 9] = flat[0, 0] = value
    expected = OPERATIONS[name](np.full((30, 30), 7, dtype))
    np.testing.assert_allclose(
        OPERATIONS[name](flat)[np.isfinite(flat)],
        expected[np.isfinite(flat)],
        rtol=1e-5,
        atol=1e-5,
    )


def test_a_gaussian_is_the_weighted_mean_of_the_finite_pixels():
    pixels = np.array([3.0, np.nan, 9.0, 1.0, 1.0, 1.0, 1.0, 1.0, 4.0])
    padded = np.pad(pixels, 4, mode="symmetric")
    kernel = np.exp(-0.5 * np.arange(-4, 5) ** 2.0)
    windows = np.lib.stride_tricks.sliding_window_view(padded, 9)
    weights = np.where(np.isfinite(windows), kernel, 0)
    expected = (weights * np.nan_to_num(windows)).sum(axis=1) / weights.sum(axis=1)
    expected[1] = np.nan
    np.testing.assert_allclose(gaussian(1)(pixels), expected)


def test_a_median_is_that_of_the_finite_pixels():
    pixels = np.random.default_rng(0).normal(50, 10, (12, 13))
    pixels[3, 4] = pixels[8, 8] = pixels[0, 12] = np.nan
    result = median(3)(pixels)
    padded = np.pad(pixels, 1, mode="symmetric")
    windows = np.lib.stride_tricks.sliding_window_view(padded, (3, 3)).reshape(12, 13, 9)
    expected = np.where(np.isfinite(pixels), np.nanmedian(windows, axis=-1), np.nan)
    np.testing.assert_allclose(result, expected)
