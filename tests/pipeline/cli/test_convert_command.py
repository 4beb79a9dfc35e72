"""The commands convert and view: what they print, what they leave, how they end."""

from __future__ import annotations

import io

import numpy as np
import pytest
import tifffile
from PIL import Image as PillowImage

from patchworks_core import open_image, segment_to_ome_zarr, segmentation_of
from patchworks_core.files.storage import as_path, open_array
from patchworks_pipeline.instance.home import prepare_home
from patchworks_pipeline.records import Acquisition
from patchworks_pipeline.resources.resources import LabelStore
from tests.pipeline.conftest import call_command_line
from tests.tissue import tissue, write_tiff


@pytest.fixture
def patchworks(tmp_path, monkeypatch):
    """Call the command line in a folder of its own; returns (exit code, printed words)."""
    monkeypatch.setenv("COLUMNS", "200")
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("PATCHWORKS_HOME", raising=False)

    return call_command_line


@pytest.fixture
def volume(tmp_path):
    array = np.random.default_rng(0).integers(0, 255, (2, 5, 60, 50)).astype("u2")
    metadata = {"axes": "CZYX", "PhysicalSizeX": 0.5, "Channel": {"Name": ["dna", "er"]}}
    tifffile.imwrite(tmp_path / "a.ome.tif", array, metadata=metadata)
    return array


def test_an_image_is_converted_with_all_its_channels(patchworks, volume):
    options = ("--chunks", "2,16,16", "--shards", "4,32,32", "--levels", "1", "--workers", "2")
    code, printed = patchworks("convert", "a.ome.tif", "-o", "b.ome.zarr", *options)
    assert code == 0
    assert "1 level: 2 x 5 x 60 x 50" in printed
    assert "layout chunks 1 x 2 x 16 x 16, shards 1 x 4 x 32 x 32" in printed
    assert "MB of pixels at once" in printed
    image = open_image("b.ome.zarr", channel=None)
    assert (image.channel_names, image.pixel_size["x"]) == (("dna", "er"), 0.5)
    np.testing.assert_array_equal(image.pixels[...], volume)


def test_one_channel_is_converted_to_the_older_version(patchworks, volume):
    options = ("--channel", "er", "--ome-version", "0.4", "--shards", "none")
    code, printed = patchworks("convert", "a.ome.tif", "-o", "b.ome.zarr", *options)
    assert code == 0
    assert "no shards" in printed
    image = open_image("b.ome.zarr")
    assert (image.format, image.axes) == ("OME-Zarr 0.4", "zyx")
    np.testing.assert_array_equal(image.pixels[...], volume[1])


def test_what_cannot_be_converted_ends_with_the_reason(patchworks, volume):
    assert patchworks("convert", "b.tif", "-o", "b.zarr")[0] == 2
    assert patchworks("convert", "a.ome.tif", "-o", "b.zarr")[0] == 0
    open_array(as_path("b.zarr/0"), mode="r+")[0, 0, 0, 0] = 999
    code, printed = patchworks("convert", "a.ome.tif", "-o", "b.zarr")
    assert (code, "--overwrite" in printed, "overwrite=" in printed) == (2, True, False)
    assert patchworks("convert", "a.ome.tif", "-o", "b.zarr", "--overwrite")[0] == 0
    code, printed = patchworks("convert", "a.ome.tif", "-o", "c.zarr", "--chunks", "9,9,9,9,9")
    assert (code, "one size per axis of 'czyx'" in printed) == (2, True)


def test_labels_stay_ids(patchworks):
    labels = np.zeros((600, 600), "u2")
    labels[:301, :301], labels[301:, :301], labels[:, 301:] = 10, 20, 1000
    tifffile.imwrite("labels.tif", labels)
    assert patchworks("convert", "labels.tif", "-o", "b.zarr", "--labels")[0] == 0
    assert patchworks("convert", "b.zarr", "-o", "c.zarr")[0] == 0
    for path in ("b.zarr", "c.zarr"):
        lower = open_image(path, level=1)
        assert lower.is_label_image
        assert set(np.unique(lower.pixels[...])) == {10, 20, 1000}


@pytest.fixture
def no_napari(monkeypatch):
    monkeypatch.setattr("patchworks_pipeline.cli.view.find_spec", lambda name: None)


def test_without_napari_a_picture_is_written_and_where_is_said(
    patchworks, tmp_path, volume, no_napari
):
    code, printed = patchworks("view", "a.ome.tif", "--tile-shape", "32")
    assert code == 0
    assert f"picture {tmp_path / 'a.ome.tif.overlay.png'}" in printed
    assert "pip install 'patchworks-pipeline[napari]'" in printed
    picture = PillowImage.open(io.BytesIO((tmp_path / "a.ome.tif.overlay.png").read_bytes()))
    assert picture.size == (400, 480)
    code, printed = patchworks("view", "a.ome.tif", "--labels", "nowhere.zarr")
    assert (code, "no image at" in printed) == (2, True)


def test_napari_is_given_the_layers(patchworks, volume, monkeypatch):
    shown = []
    monkeypatch.setattr("patchworks_pipeline.cli.view.find_spec", lambda name: name)
    monkeypatch.setattr(
        "patchworks_core.pictures.viewing.show", lambda layers, title: shown.append((layers, title))
    )
    assert patchworks("view", "a.ome.tif", "--tile-shape", "32")[0] == 0
    ((layers, title),) = shown
    assert title == "a.ome.tif"
    assert [settings["name"] for _, settings, _ in layers] == ["dna", "er", "tiles"]


def test_an_image_of_a_home_is_viewed_with_its_labels_and_tiles(
    patchworks, home, tmp_path, no_napari
):
    path = write_tiff(tmp_path / "tissue.tif", tissue())
    prepare_home(home)
    folder = LabelStore().folder("tissue")
    folder.write_acquisition(Acquisition(str(path)))
    code, printed = patchworks("view", "tissue", "--home", home, "-o", "before.png")
    assert code == 0
    perfect = segmentation_of("tissue_functions:perfect", {})
    written = segment_to_ome_zarr(
        open_image(path), perfect, folder.container, tile_shape=32, overlap=8
    )
    folder.write_plan(written.plan)
    for options in (
        ("tissue", "-o", "after.png"),
        ("tissue", "-o", "rows.png", "--tile-shape=32,-1"),
    ):
        assert patchworks("view", *options, "--home", home)[0] == 0
    assert patchworks("view", path, "-o", "image.png")[0] == 0
    before, after, rows, image = (
        np.asarray(PillowImage.open(tmp_path / f"{name}.png"), int)
        for name in ("before", "after", "rows", "image")
    )
    np.testing.assert_array_equal(before, image)
    assert (after != image).mean() > 0.1
    assert (rows != after).any()
    code, printed = patchworks("view", "nothing", "--home", home)
    assert (code, "no image at" in printed) == (2, True)


def test_a_picture_replaces_neither_the_image_nor_another_file(patchworks, tmp_path):
    image, picture = tmp_path / "image.png", tmp_path / "mine.png"
    PillowImage.fromarray(np.arange(4096, dtype="u2").astype("u1").reshape(64, 64)).save(image)
    before = image.read_bytes()
    code, printed = patchworks("view", image, "-o", image, "--overwrite")
    assert code == 2
    assert "never written over what it is made from" in " ".join(printed.split())
    assert image.read_bytes() == before
    picture.write_text("mine")
    assert patchworks("view", image, "-o", picture)[0] == 2
    assert picture.read_text() == "mine"
    for more in (("--overwrite",), ()):
        assert patchworks("view", image, "-o", picture, *more)[0] == 0
        assert picture.read_bytes() != b"mine"
