"""Looking: layers that lie where the pixels lie, and a picture where there is no napari."""

from __future__ import annotations

import io
import sys

import numpy as np
import pytest
import zarr
from PIL import Image as PillowImage

from patchworks_core import segment_to_ome_zarr
from patchworks_core.errors import ImageError
from patchworks_core.images.image import open_image
from patchworks_core.pictures import viewing
from patchworks_core.pictures.viewing import grid_of_labels, layers_of, picture_of, show
from patchworks_core.plugins.segmentation import segmentation_of
from patchworks_core.tiles.grid import TileGrid
from tests.core.images.test_image import pixels_of, write_ome_zarr


@pytest.fixture
def container(tmp_path):
    """A calibrated OME-Zarr of two channels and two levels, with labels from its own tiles."""
    array = pixels_of((2, 4, 40, 60))
    array[:, :, 10:30, 10:50] += 300
    shift = [0, 5, 6, 7]
    names = ["dna", "er"]
    path = tmp_path / "a.ome.zarr"
    write_ome_zarr(path, array, "czyx", version="0.5", labels=names, shift=shift)
    segment_to_ome_zarr(
        open_image(path),
        segmentation_of(lambda tile: (tile > 260).astype("i4"), {}),
        path,
        name="cells",
        tile_shape=(4, 20, 20),
    )
    return path, array


def test_every_channel_level_label_and_tile_becomes_a_layer_in_its_place(container):
    path, array = container
    labels = open_image(path / "labels" / "cells")
    grid = grid_of_labels(str(path / "labels" / "cells"))
    layers = layers_of(open_image(path, channel=None), labels, grid)
    kinds = [(kind, settings["name"]) for _, settings, kind in layers]
    assert kinds == [("image", "dna"), ("image", "er"), ("labels", "labels"), ("shapes", "tiles")]
    place = {
        "scale": (2.0, 0.5, 0.25),
        "translate": (5.0, 6.0, 7.0),
        "units": ("micrometer",) * 3,
        "axis_labels": ("z", "y", "x"),
    }
    for channel, (data, settings, _) in enumerate(layers[:2]):
        assert {name: settings[name] for name in place} == place
        assert settings["multiscale"]
        assert [level.shape for level in data] == [(4, 40, 60), (4, 20, 30)]
        np.testing.assert_array_equal(data[0].compute(), array[channel])
        np.testing.assert_array_equal(
            data[1][1:3, 5:, :7].compute(), array[channel, 1:3, 10::2, :14:2]
        )
        low, high = settings["contrast_limits"]
        assert 0 <= low < high <= 555
    assert {layers[0][1]["colormap"], layers[1][1]["colormap"]} == {"cyan", "magenta"}
    data, settings, _ = layers[2]
    assert {name: settings[name] for name in place} == place
    np.testing.assert_array_equal(data.compute() > 0, array[0] > 260)
    lines, settings, _ = layers[3]
    assert (settings["scale"], settings["translate"]) == ((0.5, 0.25), (6.0, 7.0))
    assert sorted({a[0] for a, b in lines if a[0] == b[0]}) == [-0.5, 19.5, 39.5]
    assert sorted({a[1] for a, b in lines if a[1] == b[1]}) == [-0.5, 19.5, 39.5, 59.5]


def test_pixels_are_read_when_they_are_looked_at(monkeypatch):
    stored = zarr.create_array({}, shape=(5000, 4000), chunks=(256, 256), dtype="u1")
    image = open_image(stored)
    read = []
    monkeypatch.setattr(
        type(image),
        "read",
        lambda self, region: read.append(region) or np.zeros(region.shape, "u1"),
    )
    ((data, settings, _),) = layers_of(image)
    assert (settings["colormap"], data.chunksize) == ("gray", (1024, 1024))
    read.clear()
    data[2000:2010, 100:110].compute()
    assert max(region.size for region in read) <= 1024**2


def test_labels_without_a_place_take_that_of_the_image_they_fit(container, tmp_path):
    path, _ = container
    zarr.save_array(tmp_path / "labels.zarr", np.ones((4, 40, 60), "i4"))
    labels = open_image(tmp_path / "labels.zarr")
    layers = layers_of(open_image(path), labels)
    assert layers[1][1]["scale"] == (2.0, 0.5, 0.25)
    smaller = layers_of(open_image(path, level=1), labels)
    assert smaller[1][1]["scale"] == (1.0, 1.0, 1.0)


def test_units_that_nothing_knows_are_pixels(container):
    image = open_image(container[0])
    image.unit["z"] = "parsec-ish"
    assert layers_of(image)[0][1]["units"] == ("pixel", "micrometer", "micrometer")


def test_a_picture_shows_outlines_and_tiles(container):
    path, _ = container
    image, labels = open_image(path), open_image(path / "labels" / "cells")
    grid = grid_of_labels(str(path / "labels" / "cells"))
    plain, outlined, tiled = (
        np.asarray(PillowImage.open(io.BytesIO(picture_of(image, *rest))), int)
        for rest in ((), (labels,), (labels, grid))
    )
    assert plain.shape == outlined.shape == tiled.shape == (320, 480, 3)
    assert (plain[..., 0] == plain[..., 1]).all()
    assert (outlined != plain)[80:240, 80:400].any()
    assert (outlined == plain)[:72].all()
    assert (tiled != outlined)[:, 160].any()
    with pytest.raises(ImageError, match=r"need its shape, got \(4, 40, 60\) over \(4, 20, 30\)"):
        picture_of(open_image(path, level=1), labels)


def test_labels_of_elsewhere_have_no_tiles(tmp_path):
    write_ome_zarr(tmp_path / "a", pixels_of((9, 9)), "yx", version="0.5")
    assert grid_of_labels(str(tmp_path / "a")) is None


def test_without_napari_it_is_said_how_to_get_it(monkeypatch):
    monkeypatch.setitem(sys.modules, "napari", None)
    with pytest.raises(ImageError, match=r"pip install 'patchworks-pipeline\[napari\]'"):
        show([], title="a")


@pytest.mark.filterwarnings("ignore")  # napari's own, at its import
def test_napari_takes_the_layers_as_they_are(container, monkeypatch):
    napari = pytest.importorskip("napari", reason="napari is not installed; it is the extra napari")
    from napari.components import ViewerModel

    path, array = container
    viewers = []
    monkeypatch.setattr(
        napari, "Viewer", lambda **options: viewers.append(ViewerModel(**options)) or viewers[-1]
    )
    monkeypatch.setattr(napari, "run", lambda: None)
    grid = TileGrid("zyx", (4, 40, 60), (4, 20, 20), (0, 0, 0))
    labels = open_image(path / "labels" / "cells")
    viewing.show(layers_of(open_image(path, channel=None), labels, grid), title="a")
    (viewer,) = viewers
    assert [layer.name for layer in viewer.layers] == ["dna", "er", "labels", "tiles"]
    # A world position is the same pixel in every layer, faces of tiles included.
    for layer in viewer.layers[:3]:
        assert layer.world_to_data((7.0, 16.0, 9.5)) == pytest.approx((1, 20, 10))
    np.testing.assert_array_equal(np.asarray(viewer.layers["er"].data[0][1]), array[1, 1])
