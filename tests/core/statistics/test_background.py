"""Bright backgrounds are told from dark ones, and fluorescence is never taken for brightfield."""

from __future__ import annotations

import numpy as np
import pytest
import skimage.data
from scipy import ndimage

from patchworks_core.operations.filtering import image_statistics
from patchworks_core.statistics.background import has_bright_background

SHAPE = (256, 256)

COVERED = (0.02, 0.1, 0.3, 0.5, 0.7, 0.9)
"""Share of the field of view that objects cover."""


def objects(covered, seed=0):
    field = ndimage.gaussian_filter(np.random.default_rng(seed).normal(size=SHAPE), 5)
    return field > np.quantile(field, 1 - covered)


def fluorescence(covered, *, light=120.0, blur=1.0, spread=0.25, seed=0):
    """Return cells that differ in brightness, on empty background, with the noise of photons."""
    rng = np.random.default_rng(seed)
    ids, n = ndimage.label(objects(covered, seed))
    brightness = rng.normal(1, spread, n + 1).clip(0.4)
    brightness[0] = 0
    photons = rng.poisson(ndimage.gaussian_filter(brightness[ids] * light, blur) + 15)
    return (photons + rng.normal(0, 2, SHAPE)).clip(0, 255).astype("u1")


def brightfield(covered, *, light=220.0, depth=140.0, blur=1.5, seed=0):
    rng = np.random.default_rng(seed)
    absorbed = ndimage.gaussian_filter(objects(covered, seed) * depth, blur)
    return (light - absorbed + rng.normal(0, 3, SHAPE)).clip(0, 255).astype("u1")


def is_bright(pixels):
    return has_bright_background(image_statistics(pixels))


@pytest.mark.parametrize("covered", [0.02, 0.1, 0.3])
@pytest.mark.parametrize("light", [130, 220, 262], ids=["dim", "bright", "cut off"])
@pytest.mark.parametrize("blur", [0, 1.5])
def test_absorbing_objects_lie_on_a_bright_background(covered, light, blur):
    pixels = brightfield(covered, light=light, depth=light * 0.5, blur=blur)
    assert is_bright(pixels)
    assert is_bright(pixels.astype("u2") * 200)
    assert is_bright(pixels.astype("f4") / 255)
    assert not is_bright(255 - pixels)


@pytest.mark.parametrize("noise", [0, 4])
def test_objects_without_noise_may_lie_on_a_bright_background(noise):
    pixels = np.random.default_rng(0).normal(220, noise, SHAPE).clip(0, 255)
    pixels[objects(0.1)] = 90
    assert is_bright(pixels.astype("u1"))
    assert not is_bright(255 - pixels.astype("u1"))


@pytest.mark.parametrize("covered", COVERED)
@pytest.mark.parametrize("spread", [0, 0.25])
@pytest.mark.parametrize("blur", [0, 1, 3])
def test_fluorescence_is_never_taken_for_brightfield(covered, spread, blur):
    pixels = fluorescence(covered, spread=spread, blur=blur)
    assert not is_bright(pixels)
    assert not is_bright(pixels.astype("u2") * 16 + 100)
    assert not is_bright(pixels.astype("f8"))


@pytest.mark.parametrize("covered", [0.02, 0.1, 0.3, 0.5, 0.7])
@pytest.mark.parametrize("light", [250, 600, 3000])
@pytest.mark.parametrize("blur", [0, 1, 3])
def test_saturated_fluorescence_is_never_taken_for_brightfield(covered, light, blur):
    assert not is_bright(fluorescence(covered, light=light, blur=blur))


@pytest.mark.parametrize("covered", COVERED)
def test_masks_have_no_bright_background(covered):
    mask = objects(covered)
    for pixels in (mask, mask.astype("u1"), mask.astype("u1") * 255, mask.astype("f4")):
        assert not is_bright(pixels)


@pytest.mark.parametrize("value", [0, 7, 255])
def test_an_image_of_one_value_has_no_bright_background(value):
    assert not is_bright(np.full((9, 9), value, "u1"))


def test_an_empty_well_has_no_bright_background():
    rng = np.random.default_rng(0)
    y, x = np.mgrid[-1:1:256j, -1:1:256j]
    light = 1 - 0.2 * (y**2 + x**2)
    for pixels in (
        rng.normal(500, 20, SHAPE).astype("u2"),
        rng.normal(0, 1, SHAPE),
        rng.poisson(2, SHAPE).astype("u1"),
        rng.poisson(300 * light).astype("u2"),
        rng.normal(220, 3, SHAPE).astype("u1"),
    ):
        assert not is_bright(pixels)


@pytest.mark.parametrize("blur", [0, 1.5])
def test_light_that_nothing_absorbs_is_known_where_tissue_covers_much(blur):
    pixels = brightfield(0.45, blur=blur)
    assert is_bright(pixels)
    assert not is_bright(255 - pixels)
    assert not is_bright(pixels.astype("u2") * 200)  # a camera's, of which an offset is no light


def test_dense_tissue_on_a_slide_is_dark_in_the_channel_that_is_segmented():
    slide = skimage.data.immunohistochemistry()
    assert is_bright(np.ascontiguousarray(slide[..., 0]))
    for channel in range(3):
        assert not is_bright(255 - np.ascontiguousarray(slide[..., channel]))


def test_pixels_that_are_not_finite_say_nothing():
    pixels = brightfield(0.1).astype("f4")
    pixels[:100] = np.nan
    pixels[100, :50], pixels[100, 50:] = np.inf, -np.inf
    assert is_bright(pixels)
    assert not is_bright(255 - pixels)


@pytest.mark.shared_data
@pytest.mark.parametrize(
    ("name", "channels", "expected"),
    [
        ("CMU-1-Small-Region.svs", 3, True),
        ("dsb2018_mosaic_4096.png", 1, False),
        ("plantseg_ovule_cells.tif", 1, False),
        ("plantseg_ovule_nuclei_1135.tif", 1, False),
        ("cdp2_h15_scene0_v05.ome.zarr", 5, False),
        ("idr0_plate1_1_013.ome.tif", 3, False),
        ("bbbc022_IXMtest_A02_s9.ome.tif", 3, False),
    ],
)
def test_real_images_are_told_apart(shared_data, name, channels, expected):
    for channel in range(channels):
        statistics = image_statistics(shared_data / name, channel=channel)
        assert has_bright_background(statistics) == expected, channel
