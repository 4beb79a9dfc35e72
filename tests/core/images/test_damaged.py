"""What leads out of an image, never ends or fills the memory is refused in words."""

from __future__ import annotations

import os
import zlib
from pathlib import Path
from zipfile import ZIP_DEFLATED, ZipFile

import google_crc32c
import imageio.v3 as iio
import numcodecs
import numpy as np
import pytest
import tifffile
import zarr

from patchworks_core import ImageError, list_images, open_image
from patchworks_core.images.readers import zarr_node
from patchworks_core.tiles.regions import Region

NAMESPACE = "http://www.openmicroscopy.org/Schemas/OME/2016-06"

PIXELS = np.random.default_rng(0).integers(0, 200, (3, 24, 32)).astype("u1")


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


# what would fill the memory


V3_CODECS = {
    "gzip": zarr.codecs.GzipCodec(),
    "zstd": zarr.codecs.ZstdCodec(),
    "blosc": zarr.codecs.BloscCodec(),
}


def put_for_chunk(array: zarr.Array, content: bytes) -> None:
    """Store something in place of the first chunk."""
    key = array.metadata.encode_chunk_key((0,) * array.ndim)
    (Path(array.store.root) / key).write_bytes(content)


def zstd_without_size(n_blocks: int) -> bytes:
    """Return a frame of Zstandard that does not say how long it is: blocks of one byte repeated."""
    blocks = [((1 << 17) << 3 | 1 << 1 | (i == n_blocks - 1)) for i in range(n_blocks)]
    head = b"\x28\xb5\x2f\xfd\x00\x58"
    return head + b"".join(block.to_bytes(3, "little") + b"\0" for block in blocks)


BOMBS = {
    **{name: numcodecs.get_codec({"id": name}).encode(bytes(2**24)) for name in V3_CODECS},
    **{n: numcodecs.get_codec({"id": n}).encode(bytes(2**24)) for n in ("bz2", "lzma", "lz4")},
    "zlib": zlib.compress(bytes(2**24)),
    "zstd of unknown length": zstd_without_size(128),
}


def read_all(path: Path) -> np.ndarray:
    return open_image(path).read(Region((0, 0), (24, 32)))


def array_of(path: Path, **options) -> zarr.Array:
    return zarr.create_array(str(path), data=PIXELS[0] + 1, chunks=(24, 32), **options)


@pytest.mark.parametrize("name", BOMBS)
def test_a_chunk_that_is_a_bomb_is_refused_and_others_are_read(tmp_path, name):
    codec = numcodecs.get_codec({"id": name.split()[0]})
    array = array_of(tmp_path / "a.zarr", zarr_format=2, compressors=codec)
    np.testing.assert_array_equal(read_all(tmp_path / "a.zarr"), PIXELS[0] + 1)
    put_for_chunk(array, BOMBS[name])
    with pytest.raises(ImageError, match=r"decoded|small.*a\.zarr'"):
        read_all(tmp_path / "a.zarr")


@pytest.mark.parametrize("name", ["zlib", "gzip", "bz2", "lzma"])
@pytest.mark.parametrize("damage", ["cut", "flipped"])
def test_a_chunk_of_a_stream_that_is_damaged_is_an_error(tmp_path, name, damage):
    codec = numcodecs.get_codec({"id": name})
    array = array_of(tmp_path / "a.zarr", zarr_format=2, compressors=codec)
    stored = codec.encode(array[...])
    if damage == "cut":  # by its check sum
        damaged = stored[:-1]
    else:
        middle = len(stored) // 2
        damaged = stored[:middle] + bytes([stored[middle] ^ 1]) + stored[middle + 1 :]
    put_for_chunk(array, damaged)
    with pytest.raises(ImageError, match=r"a\.zarr'"):
        read_all(tmp_path / "a.zarr")


@pytest.mark.parametrize(
    ("options", "name"),
    [
        ({}, "c/1/2"),
        ({"zarr_format": 2}, "1.2"),
        ({"shards": (16, 16), "chunks": (4, 4)}, "c/1/1"),
        ({"compressors": numcodecs.GZip(), "zarr_format": 2}, "1.2"),
    ],
    ids=str,
)
def test_a_damaged_chunk_is_named_whatever_was_read(options, name, tmp_path):
    options = {"chunks": (8, 8), **options}
    array = zarr.create_array(str(tmp_path / "a.zarr"), data=PIXELS[0] + 1, **options)
    path = Path(array.store.root) / name
    path.write_bytes(path.read_bytes()[:-9])
    with pytest.raises(ImageError, match=rf"a\.zarr', chunk '{name}'"):
        read_all(tmp_path / "a.zarr")


@pytest.mark.parametrize("name", V3_CODECS)
def test_a_bomb_in_zarr_3_is_refused_and_others_are_read(tmp_path, name):
    array = array_of(tmp_path / "a.zarr", compressors=V3_CODECS[name])
    np.testing.assert_array_equal(read_all(tmp_path / "a.zarr"), PIXELS[0] + 1)
    put_for_chunk(array, BOMBS[name])
    with pytest.raises(ImageError, match=r"may be decoded to .*Region.* in '.*a\.zarr'"):
        read_all(tmp_path / "a.zarr")


def test_a_bomb_in_a_shard_is_refused(tmp_path):
    options = {"shards": (24, 32), "compressors": V3_CODECS["gzip"]}
    array = zarr.create_array(str(tmp_path / "a.zarr"), data=PIXELS[0], chunks=(12, 32), **options)
    np.testing.assert_array_equal(read_all(tmp_path / "a.zarr"), PIXELS[0])
    bomb = BOMBS["gzip"]
    index = np.array([0, len(bomb), 2**64 - 1, 2**64 - 1], "<u8").tobytes()
    index += google_crc32c.value(index).to_bytes(4, "little")
    put_for_chunk(array, bomb + index)
    with pytest.raises(ImageError, match=r"may be decoded to .*Region.* in '.*a\.zarr'"):
        read_all(tmp_path / "a.zarr")


def test_an_array_that_is_read_bounded_is_still_the_callers_to_write(tmp_path):
    array = array_of(tmp_path / "a.zarr", compressors=V3_CODECS["gzip"])
    image = open_image(array)
    array[0, 0] = 7
    assert image.read(Region((0, 0), (1, 1))) == 7


@pytest.mark.parametrize("place", ["/dev/zero", "large"])
def test_what_has_no_end_in_place_of_a_chunk_is_not_read(tmp_path, place):
    array_of(tmp_path / "a.zarr")
    chunk = tmp_path / "a.zarr" / "c" / "0" / "0"
    chunk.unlink()
    if place == "large":
        with chunk.open("wb") as file:
            file.truncate(2**34)
    else:
        chunk.symlink_to(place)
    with pytest.raises(ImageError, match="may have|read from files"):
        read_all(tmp_path / "a.zarr")


@pytest.mark.parametrize(
    ("target", "words"),
    [("a.zarr/c", "must not hold itself"), ("elsewhere", "lies within its fol")],
)
def test_links_to_folders_that_hold_them_or_lie_elsewhere_are_refused(tmp_path, target, words):
    array_of(tmp_path / "a.zarr")
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "a.zarr" / "c" / "0" / "1").symlink_to(tmp_path / target)
    for question in ("gaps", "fingerprint"):
        with pytest.raises(ImageError, match=rf"{words}.*, got a link from"):
            getattr(open_image(tmp_path / "a.zarr"), question)


def test_a_linked_folder_of_chunks_is_read(tmp_path):
    array_of(tmp_path / "a.zarr")
    (tmp_path / "a.zarr" / "c" / "0").rename(tmp_path / "a.zarr" / "chunks")
    (tmp_path / "a.zarr" / "c" / "0").symlink_to(tmp_path / "a.zarr" / "chunks")
    before = open_image(tmp_path / "a.zarr").fingerprint
    np.testing.assert_array_equal(read_all(tmp_path / "a.zarr"), PIXELS[0] + 1)
    os.utime(tmp_path / "a.zarr" / "chunks" / "0", (1, 1))
    assert open_image(tmp_path / "a.zarr").fingerprint != before


@pytest.mark.parametrize(
    ("old", "new"), [('SizeZ="2"', 'SizeZ="99999999"'), ('PlaneCount="1"', 'PlaneCount="99999999"')]
)
def test_more_planes_than_any_image_has_are_refused(tmp_path, old, new):
    path = write_ome_pair(tmp_path, "b.tif")
    tifffile.imwrite(tmp_path / "b.tif", PIXELS[1], metadata=None)
    with tifffile.TiffFile(path) as tif:
        xml = tif.ome_metadata
    assert old in xml
    tifffile.imwrite(path, PIXELS[0], description=xml.replace(old, new).encode(), metadata=None)
    with pytest.raises(
        ImageError, match=r"may have 4194304 planes, got .* in the OME-XML of .*a.o"
    ):
        open_image(path)


def test_a_tiff_that_is_described_elsewhere_is_not_taken_for_the_image(tmp_path):
    xml = '<OME><BinaryOnly MetadataFile="a.companion.ome" UUID="urn:uuid:2"/></OME>'
    ome = f'<?xml version="1.0"?>{xml.replace("<OME>", f"<OME xmlns={NAMESPACE!r}>")}'
    tifffile.imwrite(tmp_path / "a.ome.tif", PIXELS[0], description=ome.encode(), metadata=None)
    with pytest.raises(ImageError, match=r"of which 'a.companion.ome' says it; open the OME-TIFF"):
        open_image(tmp_path / "a.ome.tif")
    assert open_image(tmp_path / "a.ome.tif", axes="yx").shape == (24, 32)


@pytest.mark.parametrize("extension", ["png", "jpg"])
def test_a_picture_that_claims_more_pixels_than_it_can_hold_is_refused(tmp_path, extension):
    path = tmp_path / f"a.{extension}"
    iio.imwrite(path, PIXELS[0])
    content = bytearray(path.read_bytes())
    if extension == "png":
        content[16:24] = (40_000).to_bytes(4, "big") * 2
        content[29:33] = zlib.crc32(content[12:29]).to_bytes(4, "big")
    else:
        at = content.index(b"\xff\xc0") + 5
        content[at : at + 4] = (40_000).to_bytes(2, "big") * 2
    path.write_bytes(content)
    with pytest.raises(ImageError, match=r"pixels at most, got 1600000000 in \d+ bytes of .*a\."):
        open_image(path)


def test_an_image_in_a_list_is_no_pipe(tmp_path):
    os.mkfifo(tmp_path / "a.tif")
    with pytest.raises(ImageError, match="got a pipe, socket or device at"):
        list_images(tmp_path / "a.tif")
