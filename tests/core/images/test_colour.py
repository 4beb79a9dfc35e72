"""Which channel of a picture with several is read, said once, where nobody chose one."""

from __future__ import annotations

import logging

import imagecodecs
import imageio.v3 as iio
import numpy as np
import pytest
import tifffile
from PIL import Image as PillowImage
from PIL import ImageOps

from patchworks_core import ImageError, tile_process
from patchworks_core.images.image import open_image
from patchworks_core.tiles.regions import Region

PICTURE = np.random.default_rng(0).integers(0, 256, (16, 20, 3), "u1")


def picture(folder, extension):
    path = folder / f"a.{extension}"
    if extension == "tif":
        tifffile.imwrite(path, PICTURE, photometric="rgb")
    else:
        iio.imwrite(path, PICTURE)
    return path


@pytest.mark.parametrize("extension", ["png", "jpg", "tif"])
def test_of_a_picture_in_colour_it_is_said_which_channel_is_read(tmp_path, extension):
    path = picture(tmp_path, extension)
    assert open_image(path).notes == (
        f"channel 0 of 3 in {str(path)!r} is read (0 is 'red', 1 is 'green', 2 is 'blue'); choose "
        "another with channel=2 (--channel 2), or say channel=0",
    )
    for chosen in (0, 2, None):
        assert open_image(path, channel=chosen).notes == ()


def test_channels_with_names_are_named(tmp_path):
    metadata = {"axes": "CYX", "Channel": {"Name": ["DAPI", "actin"]}}
    tifffile.imwrite(tmp_path / "a.ome.tif", np.zeros((2, 8, 9), "u2"), metadata=metadata)
    (note,) = open_image(tmp_path / "a.ome.tif").notes
    assert "(0 is 'DAPI', 1 is 'actin')" in note
    assert open_image(tmp_path / "a.ome.tif", channel="DAPI").notes == ()


@pytest.mark.parametrize(
    ("shape", "axes"), [((8, 9), None), ((1, 8, 9), "cyx"), ((4, 8, 9), "zyx")]
)
def test_nothing_is_said_where_there_is_no_choice(shape, axes):
    assert open_image(np.zeros(shape, "u1"), axes=axes).notes == ()


def test_channels_without_names_have_numbers_alone():
    (note,) = open_image(np.zeros((3, 8, 9), "u1"), axes="cyx").notes
    assert note == (
        "channel 0 of 3 in a NumPy array is read; choose another with channel=2 (--channel 2), or "
        "say channel=0"
    )


def test_a_call_says_it_once_unless_a_channel_was_chosen(tmp_path, caplog):
    path = picture(tmp_path, "png")
    with caplog.at_level(logging.INFO, "patchworks_core"):
        tile_process(path, "threshold", tile_shape=8)
        assert caplog.text.count("channel 0 of 3") == 1
        caplog.clear()
        tile_process(path, "threshold", tile_shape=8, channel=0)
        assert "channel 0 of 3" not in caplog.text


@pytest.mark.parametrize("n_channels", [2, 3, 4])
def test_colour_of_16_bits_is_read_whole_and_a_png_of_it_that_is_cut_off_is_refused(
    tmp_path, n_channels
):
    pixels = np.random.default_rng(0).integers(0, 65536, (16, 20, n_channels), "u2")
    content = imagecodecs.png_encode(pixels)
    (tmp_path / "a.png").write_bytes(content)
    image = open_image(tmp_path / "a.png", channel=None)
    assert (image.dtype, image.axes) == (np.dtype("u2"), "cyx")
    assert np.array_equal(image.pixels[...], pixels)
    (tmp_path / "a.png").write_bytes(content[: len(content) // 2])
    with pytest.raises(ImageError, match=r"a\.png"):
        open_image(tmp_path / "a.png", channel=None)


INDICES = np.random.default_rng(1).integers(0, 4, (8, 10), "u1")

COLOURS = np.array([(200, 10, 10), (5, 5, 5), (0, 250, 0), (128, 128, 128)], "u1")


@pytest.mark.parametrize("extension", ["png", "bmp"])
@pytest.mark.parametrize("transparency", [None, 2, bytes([255, 0, 100, 20])])
def test_a_palette_is_turned_into_its_colours_and_never_read_as_numbers(
    tmp_path, extension, transparency
):
    picture = PillowImage.fromarray(INDICES)
    picture.putpalette(COLOURS.ravel().tolist())
    path = tmp_path / f"a.{extension}"
    options = {} if transparency is None or extension == "bmp" else {"transparency": transparency}
    picture.save(path, **options)
    image = open_image(path, channel=None)
    pixels = image.read(Region((0, 0, 0), image.shape))
    assert image.axes == "cyx"
    np.testing.assert_array_equal(pixels, np.moveaxis(COLOURS[INDICES], -1, 0))
    said = f"colours of {str(path)!r} are to be shown transparent; that is not read"
    assert image.notes == ((said,) if options else ())


def test_a_tiff_of_numbers_of_colours_is_refused_with_the_way_out(tmp_path):
    picture = PillowImage.fromarray(INDICES)
    picture.putpalette(COLOURS.ravel().tolist())
    picture.save(tmp_path / "a.tif")
    with pytest.raises(ImageError, match="got numbers of colours .* save it as gray levels or RGB"):
        open_image(tmp_path / "a.tif")


SHOWN = {
    2: np.fliplr,
    3: lambda a: np.rot90(a, 2),
    4: np.flipud,
    5: np.transpose,
    6: lambda a: np.rot90(a, -1),
    7: lambda a: np.rot90(a.T, 2),
    8: np.rot90,
}
"""What Pillow makes of each orientation, an independent reader of the tag."""


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("extension", ["tif", "png", "jpg"])
def test_an_image_that_is_to_be_shown_turned_is_read_as_stored_and_said(
    tmp_path, extension, orientation
):
    stored = np.random.default_rng(2).integers(0, 255, (16, 24), "u1")
    path = tmp_path / f"a.{extension}"
    if extension == "tif":
        tags = [(274, "H", 1, orientation, True)]
        tifffile.imwrite(path, stored, extratags=tags, metadata=None)
        stored = tifffile.imread(path)
    else:
        exif = PillowImage.Exif()
        exif[274] = orientation
        PillowImage.fromarray(stored).save(path, exif=exif)
        with PillowImage.open(path) as opened:
            stored = np.asarray(opened)
            shown = np.asarray(ImageOps.exif_transpose(opened))
        np.testing.assert_array_equal(shown, SHOWN.get(orientation, np.asarray)(stored))
    image = open_image(path)
    np.testing.assert_array_equal(image.read(Region((0, 0), image.shape)), stored)
    if orientation == 1:
        assert image.notes == ()
    else:
        (note,) = image.notes
        assert f"(Orientation {orientation}); it is read as it is stored, and so are its" in note
