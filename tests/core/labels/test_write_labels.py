"""Labels from elsewhere become label images of an OME-Zarr, as a viewer finds them."""

from __future__ import annotations

import dask.array as da
import numpy as np
import ome_zarr_models
import pytest
import tifffile
import zarr
from scipy import ndimage

from patchworks_core import (
    ImageError,
    PlanError,
    convert_image,
    expand_labels,
    fill_holes,
    filter_sizes,
    morphological_opening,
    open_image,
    write_labels,
)
from patchworks_core.ome_zarr import pyramid
from patchworks_core.tiles.regions import Region

SIZES = {"z": 2.0, "y": 0.5, "x": 0.5}


@pytest.fixture(autouse=True)
def _small_levels(monkeypatch):
    monkeypatch.setattr(pyramid, "SMALLEST_LEVEL", 20)


def pixels(shape=(3, 90, 100)):
    """Return bright balls on a dark ground."""
    noise = np.random.default_rng(4).random(shape)
    return (ndimage.gaussian_filter(noise, (0, 3, 3)) * 1000).astype("u2")


def labelled(image):
    return ndimage.label(image > np.percentile(image, 80))[0].astype("i4")


def image_in(folder, version, shape=(3, 90, 100)):
    image = open_image(pixels(shape), channel=None).of_pixel_size(SIZES)
    return convert_image(image, folder / "scan.ome.zarr", version=version).path


@pytest.mark.parametrize("version", ["0.4", "0.5"])
@pytest.mark.parametrize("kind", ["numpy", "dask", "file"])
def test_labels_lie_on_the_image_at_every_level(tmp_path, version, kind):
    path, labels = image_in(tmp_path, version), labelled(pixels())
    source = {"numpy": labels, "dask": da.from_array(labels, chunks=(1, 40, 40))}.get(kind)
    if source is None:
        source = tmp_path / "labels.tif"
        tifffile.imwrite(source, labels, photometric="minisblack", metadata={"axes": "ZYX"})
    written = write_labels(source, path, like=path, name="cells")
    assert written.path == path / "labels" / "cells"
    assert (written.axes, written.shape, written.pixel_size) == ("zyx", labels.shape, SIZES)

    model = ome_zarr_models.open_ome_zarr(zarr.open_group(str(written.path), mode="r"))
    assert type(model).__name__ == "ImageLabel"
    container = zarr.open_group(str(path / "labels"), mode="r").attrs
    assert dict(container).get("ome", container)["labels"] == ["cells"]

    assert written.n_levels > 2
    ids = set(np.unique(labels)) - {0}
    for level in range(written.n_levels):
        image, over = open_image(path, level=level), open_image(written.path, level=level)
        assert over.is_label_image
        assert (over.axes, over.shape) == (image.axes, image.shape)
        assert (over.pixel_size, over.translation) == (image.pixel_size, image.translation)
        there = set(np.unique(over.read(Region((0,) * 3, over.shape)))) - {0}
        assert there <= ids
        large = {i for i in ids if (labels == i).sum() > 3 * 4**level}
        assert large <= there
    np.testing.assert_array_equal(zarr.open_array(str(written.path / "0"))[...], labels)


def test_an_array_takes_axes_and_place_of_the_level_it_is_of(tmp_path):
    stack = open_image(pixels((4, 60, 70)), axes="tyx", channel=None).of_pixel_size((0.5, 0.5))
    path = convert_image(stack, tmp_path / "film.ome.zarr").path
    image = open_image(path, level=1)
    written = write_labels(np.ones(image.shape, "u1"), path, like=image)
    assert written.axes == "tyx"
    over = open_image(written.path)
    assert (over.pixel_size, over.translation) == (image.pixel_size, image.translation)
    assert over.translation["y"] == 0.25


def test_without_an_image_labels_say_where_they_are(tmp_path):
    written = write_labels(np.eye(4, dtype="u1"), tmp_path / "new.ome.zarr", pixel_size=0.25)
    assert open_image(written.path).pixel_size == {"y": 0.25, "x": 0.25}
    assert zarr.open_group(str(tmp_path / "new.ome.zarr"), mode="r").metadata.zarr_format == 3


def test_an_image_of_channels_has_labels_without(tmp_path):
    pair = open_image(np.stack([pixels(), pixels()]), axes="czyx", channel=None)
    path = convert_image(pair.of_pixel_size(SIZES), tmp_path / "pair.ome.zarr").path
    assert write_labels(labelled(pixels()), path, like=path).axes == "zyx"


@pytest.mark.parametrize(
    ("labels", "options", "error", "message"),
    [
        (
            np.ones((3, 90, 99), "u1"),
            {},
            ImageError,
            "the same axes and shape, got 'zyx' .3, 90",
        ),
        (np.ones((3, 90, 100), "f4"), {}, ImageError, "labels are whole numbers, got 'float32'"),
        (-np.ones((3, 90, 100), "i4"), {}, ImageError, "labels are >= 0, got -1"),
        (np.ones((3, 90, 100), "u1"), {"name": "../a"}, PlanError, "name of an array within"),
        (np.ones((3, 90, 100), "u1"), {"version": "0.4"}, PlanError, "write version '0.5'"),
        (np.ones((2, 3, 90, 100), "u1"), {"axes": "czyx"}, ImageError, "labels of an image wi"),
    ],
)
def test_what_cannot_be_labels_of_the_image_is_refused_and_leaves_nothing(
    tmp_path, labels, options, error, message
):
    path = image_in(tmp_path, "0.5")
    with pytest.raises(error, match=message):
        write_labels(labels, path, like=path, **options)
    assert not (path / "labels" / "labels").exists()


def test_what_somebody_changed_is_not_replaced_unasked(tmp_path):
    path = image_in(tmp_path, "0.5")
    labels = labelled(pixels())
    write_labels(labels, path, like=path)
    write_labels(labels, path, like=path)  # nobody changed it
    zarr.open_array(str(path / "labels" / "labels" / "0"), mode="r+")[0, 0, 0] = 5
    with pytest.raises(PlanError, match="overwrite=True"):
        write_labels(labels, path, like=path)
    write_labels(labels, path, like=path, overwrite=True)
    with pytest.raises(PlanError, match="name or container|is that"):
        write_labels(path / "labels" / "labels", path)


FUNCTIONS = [
    (fill_holes, {}),
    (expand_labels, {"distance": 2}),
    (morphological_opening, {"radius": 1}),
    (filter_sizes, {"min_size": 30}),
]


@pytest.mark.parametrize(("function", "options"), FUNCTIONS, ids=lambda f: str(f)[:12])
def test_every_function_for_labels_can_write_a_label_image(tmp_path, function, options):
    path = image_in(tmp_path, "0.5")
    first = write_labels(labelled(pixels()), path, like=path).path
    expected = function(first, **options)
    made = function(first, **options, write_to=path, output_component="better", tile_shape=32)
    np.testing.assert_array_equal(made.compute(), expected)
    over, image = open_image(path / "labels" / "better", level=1), open_image(path, level=1)
    assert (over.pixel_size, over.translation) == (image.pixel_size, image.translation)
    names = zarr.open_group(str(path / "labels"), mode="r").attrs["ome"]["labels"]
    assert names == ["better", "labels"]
    assert isinstance(function(first, **options, write_to=tmp_path / "plain.zarr"), da.Array)
