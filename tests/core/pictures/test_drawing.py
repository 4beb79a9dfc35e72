"""Pictures: shapes, contrast, and colours that tell objects apart."""

from __future__ import annotations

import tracemalloc
from io import BytesIO

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from patchworks_core.errors import ImageError
from patchworks_core.pictures.charts import size_histogram, tile_map
from patchworks_core.pictures.drawing import (
    flatten,
    label_colours,
    overlay,
    png_bytes,
    thumbnail,
    to_display,
)


def test_contrast_is_stretched_from_black_to_white():
    shown = to_display(np.linspace(1000, 2000, 10_000).reshape(100, 100))
    assert shown.dtype == np.uint8
    assert (shown.min(), shown.max()) == (0, 255)


def test_given_limits_make_pictures_comparable():
    assert to_display(np.array([[50.0, 100.0]]), low=0, high=100).tolist() == [[128, 255]]


@pytest.mark.parametrize("value", [0, 7, np.nan])
def test_a_constant_image_is_shown_black(value):
    assert not to_display(np.full((3, 3), value, float)).any()


def test_a_few_bright_pixels_on_nothing_are_shown():
    pixels = np.zeros((100, 100), "uint16")
    pixels[50, 50] = 9
    assert to_display(pixels)[50, 50] == 255


def test_flatten_takes_the_first_time_and_channel_and_the_middle_plane():
    pixels = np.arange(2 * 2 * 5 * 3 * 4).reshape(2, 2, 5, 3, 4)
    np.testing.assert_array_equal(flatten(pixels, "tczyx"), pixels[0, 0, 2])
    np.testing.assert_array_equal(flatten(pixels, "tczyx", "max"), pixels[0, 0].max(axis=0))
    assert flatten(np.arange(4), "x").shape == (1, 4)


def test_flatten_says_what_does_not_fit():
    with pytest.raises(ImageError, match=r"got axes 'yx' for shape \(3,\)"):
        flatten(np.zeros(3), "yx")


@given(height=st.integers(1, 90), width=st.integers(1, 90), max_size=st.integers(4, 60))
@settings(deadline=None, max_examples=40)
def test_a_picture_never_exceeds_its_largest_size(height, width, max_size):
    pixels = np.zeros((height, width))
    drawn = overlay(pixels, pixels.astype(int), max_size=max_size)
    assert max(drawn.shape[:2]) <= max_size
    assert max(thumbnail(pixels, max_size=max_size).shape[:2]) <= max_size


def test_ids_that_follow_each_other_look_different():
    colours = label_colours(np.arange(1, 5000)).astype(float)
    for distance in (1, 2, 3):
        apart = np.abs(colours[distance:] - colours[:-distance]).sum(axis=1)
        assert apart.min() > 60


def test_an_objects_colour_does_not_depend_on_the_others():
    pixels, labels = np.zeros((8, 8)), np.zeros((8, 8), int)
    labels[:4, :4] = 12
    alone = overlay(pixels, labels, max_size=8)
    labels[4:, 4:] = 3
    np.testing.assert_array_equal(overlay(pixels, labels, max_size=8)[:4, :4], alone[:4, :4])


@pytest.mark.parametrize("background", [0, 255])
def test_grid_lines_show_on_black_and_on_white(background):
    pixels, labels = np.full((40, 40), background, "uint8"), np.zeros((40, 40), int)
    drawn = overlay(
        pixels, labels, grid_lines_y=[20], grid_lines_x=[10, 0], max_size=40, low=0, high=255
    )
    changed = np.abs(drawn.astype(int) - background).max(axis=2) > 100
    assert changed[20].any()
    assert changed[:, 10].any()
    assert not changed[:, 0].all()
    assert not changed[5, 11:].any()


def test_labels_are_never_interpolated():
    labels = np.zeros((100, 100), int)
    labels[:, 50:] = 1000
    drawn = overlay(np.zeros((100, 100)), labels, max_size=25)
    assert len(np.unique(drawn.reshape(-1, 3), axis=0)) == 3


def test_an_overlay_of_different_shapes_is_an_error():
    with pytest.raises(ImageError, match=r"got \(2, 2\) and \(3, 3\); use flatten"):
        overlay(np.zeros((2, 2)), np.zeros((3, 3), int))


@pytest.mark.parametrize("areas", [[], [5], [5, 5, 5], [1, 2, 3], [1, 10, 10_000]])
def test_histograms_are_drawn_for_any_number_of_objects(areas):
    assert size_histogram(np.array(areas), "area (pixels)").std() > 1


@pytest.mark.parametrize("shape", [(1, 1), (2, 40), (40, 30)])
def test_tile_maps_are_drawn_for_any_grid(shape):
    values = np.arange(np.prod(shape), dtype=float).reshape(shape)
    values[0, 0] = np.nan
    assert tile_map(values, "plate1", "seconds per tile").shape[2] == 3


def test_a_colour_of_a_tile_map_with_limits_means_the_same_in_every_image():
    yellow = (253, 231, 36)

    def colours(values: list[float]) -> set[tuple[int, ...]]:
        drawn = tile_map(np.array([values * 60]), "seams", "mean IoU", limits=(0, 1))
        return {tuple(pixel) for pixel in drawn[100:300, 100:500].reshape(-1, 3).tolist()}

    good = colours([0.9965, 1.0])
    assert all(max(abs(a - b) for a, b in zip(c, yellow, strict=True)) < 6 for c in good)
    assert len(colours([0.1, 1.0])) > 1


def test_what_a_grey_tile_is_stands_above_the_map():
    values = np.array([[0.5, np.nan]])
    said = [tile_map(v, "seams", "IoU", grey="no object") for v in (values, np.nan_to_num(values))]
    plain = [tile_map(v, "seams", "IoU") for v in (values, np.nan_to_num(values))]
    assert (said[0] != plain[0]).any()
    assert (said[1] == plain[1]).all(), "there is no grey tile"


def test_a_tile_map_of_a_volume_is_an_error():
    with pytest.raises(ImageError, match=r"row and column, got \(1, 2, 3\)"):
        tile_map(np.zeros((1, 2, 3)), "plate1", "seconds per tile")


def test_a_png_holds_the_picture():
    image = pytest.importorskip("PIL.Image")
    picture = np.random.default_rng(0).integers(0, 256, (5, 7, 3), dtype="uint8")
    with image.open(BytesIO(png_bytes(picture))) as read:
        np.testing.assert_array_equal(np.asarray(read), picture)


def test_a_large_overview_takes_little_memory_beside_its_pixels():
    pixels = np.zeros((4096, 4096), np.uint16)
    pixels[::2] = 1000
    tracemalloc.start()
    try:
        picture = thumbnail(pixels, max_size=1024)
        peak = tracemalloc.get_traced_memory()[1]
    finally:
        tracemalloc.stop()
    assert picture.shape == (1024, 1024, 3)
    assert peak < pixels.nbytes  # as floats at once they would be four times that
