"""Whatever is damaged in a file, opening and reading it gives pixels or an error of ours."""

from __future__ import annotations

import io
import os
import warnings
import zlib
from zipfile import ZIP_DEFLATED, ZipFile

import imageio.v3 as iio
import numpy as np
import pytest
import tifffile
import zarr
from hypothesis import given
from hypothesis import strategies as st

from patchworks_core import ImageError, open_image
from patchworks_core.images.readers import zarr_node
from patchworks_core.tiles.regions import Region

PIXELS = np.random.default_rng(0).integers(0, 200, (3, 24, 32)).astype("u1")


def tiff(**options) -> bytes:
    buffer = io.BytesIO()
    tifffile.imwrite(buffer, PIXELS, **options)
    return buffer.getvalue()


def npy() -> bytes:
    buffer = io.BytesIO()
    np.save(buffer, PIXELS)
    return buffer.getvalue()


FILES = {
    "plain.tif": tiff(photometric="minisblack"),
    "a.ome.tif": tiff(ome=True, metadata={"axes": "ZYX"}, compression="zlib"),
    "imagej.tif": tiff(imagej=True, metadata={"axes": "ZYX"}),
    "a.npy": npy(),
    "a.png": iio.imwrite("<bytes>", PIXELS[0], extension=".png"),
}

damages = st.lists(
    st.tuples(st.integers(0, 10**6), st.binary(min_size=1, max_size=4)), min_size=1, max_size=4
)


def damage(content: bytes, where: list[tuple[int, bytes]], cut: float) -> bytes:
    """Overwrite a few bytes, and leave out the end."""
    changed = bytearray(content)
    for place, new in where:
        at = place % len(changed)
        changed[at : at + len(new)] = new
    return bytes(changed[: max(1, int(len(changed) * cut))])


def opens_or_is_refused(path) -> None:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        message = f"{path}"
        try:
            assert open_image(path, channel=None).fingerprint
        except ImageError as error:
            message = str(error)
    assert path.name in message


@pytest.mark.parametrize("name", FILES)
@given(where=damages, cut=st.sampled_from([1.0, 1.0, 0.9, 0.5, 0.1]))
def test_a_damaged_file_opens_or_is_refused_in_words(tmp_path_factory, name, where, cut):
    path = tmp_path_factory.mktemp("damaged") / name
    path.write_bytes(damage(FILES[name], where, cut))
    opens_or_is_refused(path)


def write_zarr(path, zarr_format):
    zarr.create_array(str(path), data=PIXELS[0], chunks=(8, 8), zarr_format=zarr_format)
    return path / {2: ".zarray", 3: "zarr.json"}[zarr_format]


@pytest.mark.parametrize("zarr_format", [2, 3])
@given(where=damages, cut=st.sampled_from([1.0, 1.0, 0.9, 0.5]))
def test_damaged_metadata_of_an_array_are_refused_in_words(
    tmp_path_factory, zarr_format, where, cut
):
    path = tmp_path_factory.mktemp("damaged") / "a.zarr"
    metadata = write_zarr(path, zarr_format)
    metadata.write_bytes(damage(metadata.read_bytes(), where, cut))
    opens_or_is_refused(path)


values = st.one_of(
    *(st.none(), st.booleans(), st.integers(), st.floats(), st.text(max_size=4)),
    st.lists(st.integers(-3, 40), max_size=3),
    st.dictionaries(st.text(max_size=3), st.integers(), max_size=2),
)


@pytest.mark.parametrize("zarr_format", [2, 3])
@given(field=st.integers(0, 30), value=values)
def test_a_field_of_metadata_with_any_value_is_refused_in_words(
    tmp_path_factory, zarr_format, field, value
):
    import json

    path = tmp_path_factory.mktemp("damaged") / "a.zarr"
    metadata = write_zarr(path, zarr_format)
    content = json.loads(metadata.read_text())
    content[sorted(content)[field % len(content)]] = value
    metadata.write_text(json.dumps(content))
    opens_or_is_refused(path)


def write_multiscale(group, shape):
    group.create_array("0", data=np.ones(shape, "u2"))
    axes = {5: "tczyx", 2: "yx"}[len(shape)]
    kind = {"t": "time", "c": "channel"}
    scale = [{"type": "scale", "scale": [0.5] * len(axes)}]
    group.attrs["multiscales"] = [
        {
            "version": "0.4",
            "axes": [{"name": axis, "type": kind.get(axis, "space")} for axis in axes],
            "datasets": [{"path": "0", "coordinateTransformations": scale}],
        }
    ]


@pytest.mark.parametrize(
    ("groups", "shape", "advice"),
    [(("0", "1"), (1, 1, 1, 32, 32), "path/0"), (("labels/n",), (32, 32), "path/labels/n")],
)
def test_a_group_of_images_names_the_images_and_the_advice_can_be_followed(
    tmp_path, groups, shape, advice
):
    root = zarr.open_group(str(tmp_path / "a.zarr"), mode="w", zarr_format=2)
    for name in groups:
        write_multiscale(root.require_group(name), shape)
    with pytest.raises(ImageError, match=rf"name one, such as {advice}$"):
        open_image(tmp_path / "a.zarr")
    assert open_image(tmp_path / "a.zarr" / advice.removeprefix("path/")).pixel_size["x"] == 0.5


@pytest.mark.parametrize("extension", [".scn", ".qptiff", ".gel", ".bif"])
def test_slides_and_gels_that_are_tiff_inside_open(tmp_path, extension):
    path = tmp_path / f"a{extension}"
    tifffile.imwrite(path, PIXELS[0], tile=(16, 16))
    assert open_image(path).shape == (24, 32)


# what leads elsewhere, and what would never end


def write_image(group_path, level="0"):
    """Write an OME-Zarr 0.4 image whose metadata name a level."""
    group = zarr.open_group(str(group_path), mode="w", zarr_format=2)
    write_multiscale(group, (32, 32))
    (multiscale,) = group.attrs["multiscales"]
    multiscale["datasets"][0]["path"] = level
    group.attrs["multiscales"] = [multiscale]
    return group_path


@pytest.mark.parametrize("level", ["../other/0", "/etc", "./0", "", "0/../../other/0"])
def test_a_level_that_leads_out_of_its_image_is_refused(tmp_path, level):
    write_image(tmp_path / "other")
    write_image(tmp_path / "a", level)
    with pytest.raises(ImageError, match=r"must lie within its group, got .*a'; correct it"):
        open_image(tmp_path / "a")


def test_links_within_an_image_are_followed_and_others_refused(tmp_path):
    write_image(tmp_path / "other")
    write_image(tmp_path / "a", "link")
    (tmp_path / "a" / "link").symlink_to(tmp_path / "a" / "0")
    assert open_image(tmp_path / "a").shape == (32, 32)
    (tmp_path / "a" / "link").unlink()
    (tmp_path / "a" / "link").symlink_to(tmp_path / "other" / "0")
    with pytest.raises(ImageError, match=r"lies within its folder, got a link from .*copy what"):
        open_image(tmp_path / "a")
    (tmp_path / "whole").symlink_to(tmp_path / "other")
    assert open_image(tmp_path / "whole").shape == (32, 32)


def write_ome_pair(folder, name):
    """Write an OME-TIFF of which the second plane is in another file."""
    xml = (
        '<?xml version="1.0"?><OME xmlns="http://www.openmicroscopy.org/Schemas/OME/2016-06" '
        'UUID="urn:uuid:1"><Image ID="Image:0"><Pixels ID="Pixels:0" DimensionOrder="XYZCT" '
        'Type="uint8" SizeX="32" SizeY="24" SizeZ="2" SizeC="1" SizeT="1">'
        '<Channel ID="Channel:0:0" SamplesPerPixel="1"/>'
        '<TiffData FirstZ="0" IFD="0" PlaneCount="1"><UUID FileName="a.ome.tif">urn:uuid:1</UUID>'
        f'</TiffData><TiffData FirstZ="1" IFD="0" PlaneCount="1"><UUID FileName="{name}">'
        "urn:uuid:2</UUID></TiffData></Pixels></Image></OME>"
    )
    tifffile.imwrite(folder / "a.ome.tif", PIXELS[0], description=xml.encode(), metadata=None)
    return folder / "a.ome.tif"


@pytest.mark.parametrize("how", ["above", "absolute", "link"])
def test_a_file_of_a_set_that_is_elsewhere_is_refused(tmp_path, how):
    folder = tmp_path / "set"
    folder.mkdir()
    tifffile.imwrite(tmp_path / "b.tif", PIXELS[1], metadata=None)
    names = {"above": "../b.tif", "absolute": str(tmp_path / "b.tif"), "link": "b.tif"}
    (folder / "b.tif").symlink_to(tmp_path / "b.tif")
    with pytest.raises(ImageError, match=r"lie in one folder, got '.*b.tif' named in .*a.ome.tif'"):
        open_image(write_ome_pair(folder, names[how]))


def test_a_set_may_be_links_to_a_set(tmp_path):
    for name in ("set", "links"):
        (tmp_path / name).mkdir()
    write_ome_pair(tmp_path / "set", "b.tif")
    tifffile.imwrite(tmp_path / "set" / "b.tif", PIXELS[1], metadata=None)
    for name in ("a.ome.tif", "b.tif"):
        (tmp_path / "links" / name).symlink_to(tmp_path / "set" / name)
    assert open_image(tmp_path / "links" / "a.ome.tif").shape == (2, 24, 32)


PIPES = ["a.tif", "a.png", "a.npy", "a.ozx", "a.zarr/.zattrs", "a.zarr/0/.zarray", "b.tif"]


@pytest.mark.parametrize("name", PIPES)
def test_a_pipe_in_place_of_a_file_is_refused_and_not_waited_for(tmp_path, name):
    if name.startswith("a.zarr"):
        write_image(tmp_path / "a.zarr")
    opened = tmp_path / name.split("/")[0]
    if name == "b.tif":
        opened = write_ome_pair(tmp_path, "b.tif")
    (tmp_path / name).unlink(missing_ok=True)
    os.mkfifo(tmp_path / name)
    with pytest.raises(ImageError, match=r"read from files, got a pipe, socket or device at"):
        open_image(opened)


def test_a_device_or_a_folder_in_place_of_a_file_is_refused(tmp_path):
    (tmp_path / "a.tif").symlink_to("/dev/zero")
    with pytest.raises(ImageError, match="got a pipe, socket or device at"):
        open_image(tmp_path / "a.tif")
    write_image(tmp_path / "a.zarr")
    (tmp_path / "a.zarr" / "0" / ".zarray").unlink()
    (tmp_path / "a.zarr" / "0" / ".zarray").mkdir()
    with pytest.raises(ImageError, match="got a folder at"):
        open_image(tmp_path / "a.zarr")


def test_a_pipe_in_place_of_a_chunk_is_refused(tmp_path):
    zarr.create_array(str(tmp_path / "a.zarr"), data=PIXELS[0] + 1, chunks=(8, 8))
    chunk = tmp_path / "a.zarr" / "c" / "1" / "1"
    chunk.unlink()
    os.mkfifo(chunk)
    with pytest.raises(ImageError, match="got a pipe, socket or device at"):
        print(open_image(tmp_path / "a.zarr").gaps)


@pytest.mark.parametrize(
    ("shape", "chunks", "words"),
    [
        ((2**40, 2**40), (64, 64), "an image may have .* bytes, got shape"),
        ((2**20, 2**20), (2**17, 2**17), r"a chunk is decoded whole .*; save it in smaller chunks"),
    ],
)
def test_absurd_sizes_are_refused(tmp_path, shape, chunks, words):
    zarr.create_array(str(tmp_path / "a.zarr"), shape=shape, chunks=chunks, dtype="u2")
    group = zarr.open_group(str(tmp_path / "b.zarr"), mode="w", zarr_format=2)
    write_multiscale(group, (32, 32))
    group.create_array("0", shape=shape, chunks=chunks, dtype="u2", overwrite=True)
    for name in ("a.zarr", "b.zarr"):
        with pytest.raises(ImageError, match=words):
            open_image(tmp_path / name)


def test_an_absurd_page_of_a_tiff_is_refused(tmp_path):
    path = tmp_path / "a.tif"
    options = {"metadata": None, "photometric": "minisblack", "compression": "zlib"}
    tifffile.imwrite(path, PIXELS[0], rowsperstrip=24, **options)
    with tifffile.TiffFile(path, mode="r+b") as tif:
        for tag in ("ImageWidth", "ImageLength", "RowsPerStrip"):
            tif.pages[0].tags[tag].overwrite(2**17, dtype="I")
    with pytest.raises(ImageError, match="a chunk is decoded whole and may have"):
        open_image(path)


def test_a_bomb_in_a_zip_file_or_a_tiff_is_refused(tmp_path, monkeypatch):
    monkeypatch.setattr(zarr_node, "MAX_METADATA_BYTES", 1000)
    with ZipFile(tmp_path / "a.ozx", "w", ZIP_DEFLATED) as archive:
        archive.writestr("zarr.json", "{" + " " * 2000 + "}")
    with pytest.raises(ImageError, match=r"taken out whole and may have 1000 bytes, got 2002 of"):
        open_image(tmp_path / "a.ozx")
    bomb = zlib.compress(bytes(2**24))
    path = tmp_path / "a.tif"
    options = {"metadata": None, "photometric": "minisblack", "compression": "zlib"}
    with tifffile.TiffWriter(path) as tif:
        tif.write(iter([bomb] * 4), shape=(512, 512), dtype="u2", tile=(256, 256), **options)
    with pytest.raises(ImageError, match=r"cannot be decoded: DeflateError: .*copy it again"):
        open_image(path).read(Region((0, 0), (512, 512)))
