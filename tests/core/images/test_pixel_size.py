"""How large a pixel is: what a file says, and what somebody says over it."""

from __future__ import annotations

import pickle

import dask.array as da
import numpy as np
import pytest
import tifffile
import zarr
from scipy import ndimage

from patchworks_core import (
    convert_image,
    fill_holes,
    filter_sizes,
    measure_objects,
    morphological_opening,
    open_image,
    tile_process,
)
from patchworks_core.errors import ImageError
from patchworks_core.images.calibration import sizes_um
from patchworks_core.operations.filters import maximum
from patchworks_core.operations.processed import process_lazily
from patchworks_core.pictures.viewing import _levels
from patchworks_pipeline.cli.view import ViewRequest

PIXELS = np.random.default_rng(0).integers(0, 3000, (3, 20, 24)).astype("u2")


@pytest.fixture
def ome(tmp_path):
    """An OME-TIFF that says 0.5 um in y and 500 nm in x."""
    path = tmp_path / "a.ome.tif"
    sizes = {"PhysicalSizeX": 500, "PhysicalSizeXUnit": "nm", "PhysicalSizeY": 0.5}
    tifffile.imwrite(path, PIXELS, metadata={"axes": "ZYX", **sizes})
    return path


@pytest.mark.parametrize(
    ("size", "micrometers"),
    [
        ((2, 0.1, 0.2), [2, 0.1, 0.2]),
        ({"z": 2}, [2, 0.5, 0.5]),
        (0.3, [0.3, 0.3, 0.3]),
        (np.float32(0.5), [0.5, 0.5, 0.5]),
    ],
)
def test_what_is_asked_for_counts_over_what_the_file_says(ome, size, micrometers):
    assert open_image(ome).pixel_size == {"y": 0.5, "x": 500.0}
    image = open_image(ome, pixel_size=size)
    assert sizes_um(image) == pytest.approx(micrometers)
    for copy in (
        pickle.loads(pickle.dumps(image)),
        open_image(image),
        open_image(open_image(ome), pixel_size=size),
        image.reopened(level=0),
    ):
        assert sizes_um(copy) == sizes_um(image)
    assert image.fingerprint == open_image(ome).fingerprint


@pytest.mark.parametrize(
    "size",
    [(0.1, 0.1), (1, 1, 1, 1), {"c": 1}, {"z": 0}, -1, float("nan"), "0.1", (), {}, {"y": None}],
)
def test_a_pixel_size_that_cannot_be_is_refused(ome, size):
    with pytest.raises(ImageError, match=r"pixel_size"):
        open_image(ome, pixel_size=size)


def test_arrays_have_the_pixel_size_that_is_asked_for():
    for source in (PIXELS, da.from_array(PIXELS), zarr.array(PIXELS)):
        assert sizes_um(open_image(source, pixel_size=(2, 1, 1))) == [2, 1, 1]


def test_the_advice_to_say_the_pixel_size_works(tmp_path):
    np.save(tmp_path / "a.npy", PIXELS)
    with pytest.raises(ImageError, match="pixel_size= where the image is opened"):
        sizes_um(open_image(tmp_path / "a.npy"))
    assert sizes_um(open_image(tmp_path / "a.npy", pixel_size=0.5)) == [0.5] * 3


def test_another_level_has_another_pixel_size(tmp_path):
    convert_image(np.ones((600, 700), "u2"), tmp_path / "a.ome.zarr", levels=2)
    image = open_image(tmp_path / "a.ome.zarr", pixel_size=0.1)
    assert image.reopened(level=1).requested_pixel_size is None
    assert [level.pixel_size["x"] for level in _levels(image, None)] == pytest.approx([0.1, 0.2])


def test_a_processed_image_keeps_the_pixel_size(ome):
    image = process_lazily(open_image(ome, pixel_size=2), maximum(3))
    assert pickle.loads(pickle.dumps(image)).pixel_size["z"] == 2
    assert image.of_pixel_size(3).pixel_size["z"] == 3


def test_sizes_in_micrometers_go_by_the_pixel_size_that_is_asked_for():
    mask = np.zeros((20, 24), "u1")
    mask[2:4, 2:4] = mask[8:14, 8:14] = 1
    options = {"tile_shape": 12, "merge": "touching", "max_workers": 1}
    sizes = {"min_size": 100, "size_unit": "micrometers", "pixel_size": 2}
    labels = tile_process(mask, lambda tile: ndimage.label(tile)[0], **options, **sizes)
    assert int(np.asarray(labels).max()) == 1


def test_what_is_written_has_the_pixel_size_that_is_asked_for(tmp_path, ome):
    written = convert_image(open_image(ome, pixel_size=(2, 1, 1)), tmp_path / "b.ome.zarr")
    image = open_image(written.path)
    assert (image.pixel_size, image.unit["z"]) == ({"z": 2.0, "y": 1.0, "x": 1.0}, "micrometer")


@pytest.mark.parametrize(
    ("resolution", "unit", "size"),
    [
        ((20000, 10000), "CENTIMETER", {"x": 0.5, "y": 1.0}),
        ((254000, 254000), "INCH", {"y": 0.1, "x": 0.1}),
        ((72, 72), "INCH", {}),
        ((28.346, 28.346), "CENTIMETER", {}),
        ((300, 300), "INCH", {}),
        ((20000, 20000), "NONE", {}),
    ],
)
@pytest.mark.parametrize("metadata", [None, {}])
def test_resolution_tags_count_where_they_are_not_of_a_screen(
    tmp_path, resolution, unit, size, metadata
):
    options = {"resolution": resolution, "resolutionunit": unit, "metadata": metadata}
    tifffile.imwrite(tmp_path / "a.tif", PIXELS[0], **options)
    image = open_image(tmp_path / "a.tif")
    assert image.pixel_size == pytest.approx(size)
    assert image.unit == dict.fromkeys(size, "micrometer")


@pytest.mark.parametrize("function", [filter_sizes, fill_holes, morphological_opening])
def test_the_functions_for_labels_take_the_size_of_a_pixel(function):
    labels = np.zeros((20, 24), "u1")
    labels[2:4, 2:4], labels[8:16, 8:16] = 1, 2
    labels[10:12, 10:12] = 0
    size = {
        filter_sizes: {"min_size": 100},
        fill_holes: {"max_size": 10},
        morphological_opening: {"radius": 2},
    }[function]
    with pytest.raises(ImageError, match="micrometers need a pixel size"):
        function(labels, unit="micrometers", **size)
    pixels = {name: value / (4 if "size" in name else 2) for name, value in size.items()}
    np.testing.assert_array_equal(
        function(labels, unit="micrometers", pixel_size=2, **size), function(labels, **pixels)
    )


def test_measurements_go_by_the_pixel_size_that_is_asked_for():
    labels = np.ones((4, 6), "u1")
    (measured,) = measure_objects(labels, pixel_size=(2, 3)).to_pylist()
    assert (measured["area_um2"], measured["centroid_x_um"]) == (144, 7.5)
    assert "area_um2" not in measure_objects(labels).column_names


def test_view_takes_the_size_of_a_pixel(tmp_path):
    np.save(tmp_path / "a.npy", PIXELS[0])
    request = ViewRequest(str(tmp_path / "a.npy"), None, None, None, None, pixel_size=0.5)
    assert request.open(0, None)[0].pixel_size == {"y": 0.5, "x": 0.5}
