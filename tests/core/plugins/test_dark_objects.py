"""Dark objects on a bright background: decided once for the whole image, said, and overruled."""

from __future__ import annotations

import logging

import numpy as np
import pytest
from scipy import ndimage

from patchworks_core import segmentation_of, tile_process
from patchworks_core.errors import SegmentationError
from patchworks_core.operations.filtering import image_statistics
from patchworks_core.pilot.agreement import compare_objects
from patchworks_core.plugins.threshold import threshold
from patchworks_core.plugins.watershed import watershed
from patchworks_core.statistics.background import DARK_OBJECTS

CENTRES = [(y, x) for y in range(14, 120, 24) for x in range(14, 120, 24)]

TILES = {"tile_shape": 48, "overlap": 16}


def truth():
    y, x = np.mgrid[:128, :128]
    labels = np.zeros((128, 128), np.int32)
    for number, (a, b) in enumerate(CENTRES, start=1):
        labels[(y - a) ** 2 + (x - b) ** 2 <= 36] = number
    return labels


def slide():
    """Return dark disks on a bright field; tiles without one are of the same light."""
    rng = np.random.default_rng(0)
    absorbed = ndimage.gaussian_filter((truth() > 0) * 130.0, 1)
    return (220 - absorbed + rng.normal(0, 3, absorbed.shape)).clip(0, 255).astype("u1")


@pytest.mark.parametrize("function", ["threshold", "watershed"])
@pytest.mark.parametrize("pixels", [slide(), 255 - slide()], ids=["brightfield", "fluorescence"])
def test_objects_are_the_objects_and_not_what_lies_between(function, pixels):
    labels = tile_process(pixels, function, **TILES)
    assert compare_objects(truth(), labels).f1 == 1
    assert 0.5 < np.count_nonzero(labels) / np.count_nonzero(truth()) < 1.5


@pytest.mark.parametrize("function", [threshold, watershed])
def test_a_tile_goes_by_the_image_and_never_by_itself(function):
    statistics = image_statistics(slide())
    assert function(slide(), statistics=statistics).max() == len(CENTRES)
    assert not function(np.full((20, 20), 220, "u1"), statistics=statistics).any()
    assert function(np.full((20, 20), 90, "u1"), statistics=statistics).all()


@pytest.mark.parametrize("function", [threshold, watershed])
def test_what_is_said_is_not_decided(function):
    statistics = image_statistics(slide())
    dark = function(slide(), statistics=statistics, dark_objects=True)
    bright = function(slide(), statistics=statistics, dark_objects=False)
    np.testing.assert_array_equal(function(slide(), statistics=statistics), dark)
    assert not (dark.astype(bool) & bright.astype(bool)).any()


def test_a_value_is_the_threshold_of_dark_objects_too_where_the_image_shows_them():
    statistics = image_statistics(slide())
    np.testing.assert_array_equal(
        threshold(slide(), value=150, statistics=statistics) > 0, slide() <= 150
    )
    np.testing.assert_array_equal(threshold(slide(), value=150) > 0, slide() > 150)


@pytest.mark.parametrize("wrong", ["yes", None, 1, "True"])
@pytest.mark.parametrize("function", [threshold, watershed])
def test_other_words_are_refused(function, wrong):
    with pytest.raises(SegmentationError, match="dark_objects is True, False or 'auto', got"):
        function(slide(), value=5, dark_objects=wrong)


def test_that_dark_objects_are_labelled_is_said_once_and_how_to_overrule_it(caplog):
    tile_process(slide(), "threshold", **TILES)
    assert [record.getMessage() for record in caplog.records] == [DARK_OBJECTS]
    assert "dark_objects=False" in DARK_OBJECTS


@pytest.mark.parametrize(
    ("pixels", "parameters"),
    [(255 - slide(), {}), (slide(), {"dark_objects": True}), (slide(), {"dark_objects": False})],
)
def test_nothing_is_said_where_nothing_was_decided(caplog, pixels, parameters):
    with caplog.at_level(logging.INFO):
        tile_process(pixels, "threshold", parameters=parameters, **TILES)
    assert DARK_OBJECTS not in caplog.text


def test_a_function_that_does_not_ask_says_nothing():
    function = segmentation_of(lambda tile: (tile > 9).astype("i4"))
    assert function.notes_on(image_statistics(slide())) == ()
