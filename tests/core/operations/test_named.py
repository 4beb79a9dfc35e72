"""Operations by name, as settings write them down."""

from __future__ import annotations

import numpy as np
import pytest

from patchworks_core.errors import ImageError, PlanError
from patchworks_core.images.image import open_image
from patchworks_core.operations.background import subtract_background
from patchworks_core.operations.filters import gaussian, median
from patchworks_core.operations.named import check_operations, operations_of, processed
from patchworks_core.operations.processed import process_lazily
from patchworks_core.operations.shading import shading_correction
from patchworks_core.tiles.regions import Region

PIXELS = np.random.default_rng(3).integers(0, 200, (40, 30), dtype="u2")

WHOLE = Region((0, 0), PIXELS.shape)


@pytest.mark.parametrize(
    ("entry", "expected"),
    [
        ({"median": 3}, median(3)),
        ({"median": {"size": 5, "shape": "ball"}}, median(5, shape="ball")),
        ({"median": None}, median()),
        ({"gaussian": {"y": 1, "x": 2}}, gaussian({"y": 1, "x": 2})),
        ({"subtract_background": {"radius": 4}}, subtract_background(4)),
    ],
)
def test_an_entry_is_the_operation_that_it_names(entry, expected):
    (operation,) = operations_of([entry])
    assert operation.to_dict() == expected.to_dict()


def test_operations_run_in_the_order_of_the_entries():
    image = processed(open_image(PIXELS), [{"median": 3}, {"gaussian": 1}])
    expected = process_lazily(PIXELS, median(3), gaussian(1))
    np.testing.assert_array_equal(image.read(WHOLE), expected.read(WHOLE))
    assert image.fingerprint == expected.fingerprint
    assert image.fingerprint != processed(open_image(PIXELS), [{"median": 5}]).fingerprint


def test_without_entries_the_image_is_the_same():
    image = open_image(PIXELS)
    assert processed(image, []) is image


def test_a_flat_field_is_read_from_a_file_and_counts_by_its_content(tmp_path):
    path = str(tmp_path / "flat.npy")
    field = np.linspace(1, 2, PIXELS.size).reshape(PIXELS.shape)
    np.save(path, field)
    image = open_image(PIXELS)
    corrected = processed(image, [{"flat_field": path}])
    expected = process_lazily(PIXELS, shading_correction(field))
    np.testing.assert_array_equal(corrected.read(WHOLE), expected.read(WHOLE))
    np.save(path, field[::-1])
    assert processed(image, [{"flat_field": path}]).fingerprint != corrected.fingerprint
    check_operations([{"flat_field": "nowhere.npy"}])


@pytest.mark.parametrize(
    ("entry", "error", "words"),
    [
        ({"medain": 3}, PlanError, r"no operation 'medain'; the operations are \['clip_and_scale'"),
        ({"median": 3, "gaussian": 1}, PlanError, "must be one name with its arguments"),
        ("median", PlanError, "must be one name with its arguments"),
        ({"median": {"radius": 3}}, PlanError, r"unexpected keyword .* arguments are \['size'"),
        ({"median": "three"}, ImageError, "size must be an odd whole number"),
    ],
)
def test_what_is_no_operation_is_refused(entry, error, words):
    with pytest.raises(error, match=words):
        check_operations([entry])
