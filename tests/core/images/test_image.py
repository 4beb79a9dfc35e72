"""Opening images: every format against an independent full read, and every refusal in words."""

from __future__ import annotations

import json
import pickle
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import dask.array
import fsspec
import imageio.v3 as iio
import numpy as np
import pytest
import tifffile
import zarr
from PIL import Image as PillowImage
from upath import UPath

from patchworks_core.errors import ImageError
from patchworks_core.images.image import Image, open_image
from patchworks_core.images.readers import raster
from patchworks_core.images.readers.file_array import FileArray, Transposed
from patchworks_core.tiles.regions import Region


def pixels_of(shape, dtype="u2", seed=0):
    """Random pixels."""
    return np.random.default_rng(seed).integers(0, 255, shape).astype(dtype)


def whole(image: Image) -> Region:
    """The region of all pixels."""
    return Region((0,) * image.ndim, image.shape)


def random_regions(shape, n=12, seed=1):
    """Random regions, none empty."""
    rng = np.random.default_rng(seed)
    for _ in range(n):
        start = tuple(int(rng.integers(0, size)) for size in shape)
        stop = tuple(
            int(rng.integers(a + 1, size + 1)) for a, size in zip(start, shape, strict=True)
        )
        yield Region(start, stop)


def assert_reads(image: Image, expected: np.ndarray) -> None:
    """Check shape, type and random regions of an image against a full read in canonical order."""
    assert (image.shape, image.ndim) == (expected.shape, expected.ndim)
    assert image.dtype == expected.dtype.newbyteorder("=")
    assert image.dtype.isnative
    for region in [whole(image), *random_regions(image.shape)]:
        block = image.read(region)
        assert block.flags.c_contiguous
        assert block.flags.writeable
        assert type(block) is np.ndarray
        assert block.dtype == image.dtype
        np.testing.assert_array_equal(block, expected[region.slices])


def write_ome_zarr(store, array, axes, *, version, n_levels=2, top=None, labels=None, shift=None):
    """Write a small OME-Zarr by hand, independent of any writer; returns its root group."""
    root = zarr.create_group(store, zarr_format=2 if version == "0.4" else 3)
    datasets = []
    for level in range(n_levels):
        step = tuple(slice(None, None, 2**level if a in "yx" else 1) for a in axes)
        data = array[step]
        chunks = tuple(1 if a in "tc" else 8 for a in axes)
        root.create_array(str(level), shape=data.shape, chunks=chunks, dtype=data.dtype)[...] = data
        scale = [{"z": 2.0, "y": 0.5, "x": 0.25}.get(a, 1.0) for a in axes]
        scale = [s * (2**level if a in "yx" else 1) for s, a in zip(scale, axes, strict=True)]
        transforms = [{"type": "scale", "scale": scale}]
        if shift:
            transforms.append({"type": "translation", "translation": shift})
        datasets.append({"path": str(level), "coordinateTransformations": transforms})
    kinds = {"t": "time", "c": "channel"}
    named = [{"name": a, "type": kinds.get(a, "space")} for a in axes]
    for axis in named:
        if axis["type"] == "space":
            axis["unit"] = "micrometer"
    multiscale = {"name": "test", "axes": named, "datasets": datasets}
    if top:
        multiscale["coordinateTransformations"] = top
    metadata = {"multiscales": [multiscale]}
    if labels:
        metadata["omero"] = {"channels": [{"label": label} for label in labels]}
    if version == "0.4":
        multiscale["version"] = "0.4"
        root.attrs.update(metadata)
    else:
        root.attrs["ome"] = {"version": "0.5", **metadata}
    return root


# OME-Zarr


@pytest.mark.parametrize("version", ["0.4", "0.5"])
@pytest.mark.parametrize("level", [0, 1])
def test_every_level_and_channel_of_ome_zarr_reads_as_written(tmp_path, version, level):
    array = pixels_of((2, 3, 5, 20, 30))
    write_ome_zarr(tmp_path / "a.zarr", array, "tczyx", version=version)
    expected = array[..., :: 2**level, :: 2**level]
    for channel in range(3):
        image = open_image(tmp_path / "a.zarr", channel=channel, level=level)
        assert (image.axes, image.format) == ("tzyx", f"OME-Zarr {version}")
        assert (image.level, image.n_levels, image.channel) == (level, 2, channel)
        assert image.chunks == (1, 8, 8, 8)
        assert_reads(image, expected[:, channel])
    everything = open_image(tmp_path / "a.zarr", channel=None, level=level)
    assert (everything.axes, everything.channel) == ("tczyx", None)
    assert_reads(everything, expected)


def test_a_channel_may_be_asked_for_by_name(tmp_path):
    array = pixels_of((3, 9, 9))
    write_ome_zarr(tmp_path / "a", array, "cyx", version="0.5", labels=["dna", "er", "golgi"])
    image = open_image(tmp_path / "a", channel="golgi")
    assert (image.channel, image.channel_names) == (2, ("dna", "er", "golgi"))
    assert_reads(image, array[2])


def test_level_transformations_come_before_those_of_the_multiscale(tmp_path):
    top = [{"type": "scale", "scale": [3.0, 10.0]}, {"type": "translation", "translation": [7, 1]}]
    write_ome_zarr(
        tmp_path / "a", pixels_of((9, 9)), "yx", version="0.4", top=top, shift=[4.0, 5.0]
    )
    image = open_image(tmp_path / "a", level=1)
    assert image.pixel_size == {"y": 3.0, "x": 5.0}
    assert image.translation == {"y": 19.0, "x": 51.0}
    assert image.unit == {"y": "micrometer", "x": "micrometer"}


def test_an_image_without_translation_has_none(tmp_path):
    write_ome_zarr(tmp_path / "a", pixels_of((4, 9, 9)), "zyx", version="0.5")
    image = open_image(tmp_path / "a")
    assert image.pixel_size == {"z": 2.0, "y": 0.5, "x": 0.25}
    assert image.translation == {}


def test_names_that_do_not_fit_the_channels_are_left_out(tmp_path):
    write_ome_zarr(tmp_path / "a", pixels_of((3, 9, 9)), "cyx", version="0.5", labels=["dna"])
    assert open_image(tmp_path / "a").channel_names == ()


def test_a_level_array_inside_an_ome_zarr_opens_as_plain_zarr(tmp_path):
    array = pixels_of((4, 9, 9))
    write_ome_zarr(tmp_path / "a", array, "zyx", version="0.5")
    image = open_image(tmp_path / "a" / "0")
    assert image.format == "Zarr v3"
    assert_reads(image, array)


def test_a_label_image_inside_an_ome_zarr_opens(tmp_path):
    root = write_ome_zarr(tmp_path / "a", pixels_of((3, 9, 9)), "cyx", version="0.5")
    labels = pixels_of((9, 9), "u4")
    root.create_group("labels")
    write_ome_zarr(tmp_path / "a" / "labels" / "nuclei", labels, "yx", version="0.5")
    assert_reads(open_image(tmp_path / "a" / "labels" / "nuclei"), labels)


def test_ome_zarr_that_the_models_reject_is_refused_with_the_reason(tmp_path):
    root = write_ome_zarr(tmp_path / "a", pixels_of((9, 9)), "yx", version="0.5")
    ome = root.attrs.asdict()["ome"]
    del ome["multiscales"][0]["datasets"][0]["coordinateTransformations"]
    root.attrs["ome"] = ome
    with pytest.raises(ImageError, match=r"not valid OME-Zarr.*coordinateTransf.*Field required"):
        open_image(tmp_path / "a")
    root.attrs["ome"] = {"version": "0.9", "multiscales": ome["multiscales"]}
    with pytest.raises(ImageError, match=r"0.1 to 0.3 are read, got version '0.9'"):
        open_image(tmp_path / "a")


def test_ome_zarr_with_a_level_missing_is_refused(tmp_path):
    root = write_ome_zarr(tmp_path / "a", pixels_of((9, 9)), "yx", version="0.4")
    del root["1"]
    with pytest.raises(ImageError, match="the metadata name a level '1' that is not in"):
        open_image(tmp_path / "a")


def test_ome_zarr_with_axes_that_do_not_fit_its_arrays_is_refused(tmp_path):
    root = write_ome_zarr(tmp_path / "a", pixels_of((9, 9)), "yx", version="0.5", n_levels=1)
    del root["0"]
    root.create_array("0", shape=(2, 9, 9), dtype="u1")
    with pytest.raises(ImageError, match="one axis per dimension"):
        open_image(tmp_path / "a")


# plain Zarr


@pytest.mark.parametrize("zarr_format", [2, 3])
def test_plain_zarr_reads_as_written(tmp_path, zarr_format):
    array = pixels_of((5, 20, 30), "i4")
    written = zarr.create_array(
        tmp_path / "a", shape=array.shape, chunks=(2, 7, 8), dtype="i4", zarr_format=zarr_format
    )
    written[...] = array
    image = open_image(tmp_path / "a")
    assert (image.axes, image.chunks, image.format) == ("zyx", (2, 7, 8), f"Zarr v{zarr_format}")
    assert_reads(image, array)
    assert_reads(open_image(written), array)
    assert open_image(written).url is None


def test_legal_dimension_names_are_the_axes(tmp_path):
    array = pixels_of((3, 4, 5))
    named = zarr.create_array(tmp_path / "a", data=array, dimension_names=["Y", "x", "channel"])
    assert_reads(open_image(tmp_path / "a", channel=2), array[..., 2])
    assert open_image(named, channel=None).axes == "cyx"
    old = zarr.create_array(tmp_path / "b", data=array, zarr_format=2)
    old.attrs["_ARRAY_DIMENSIONS"] = ["time", "y", "x"]
    assert open_image(tmp_path / "b").axes == "tyx"


def test_illegal_dimension_names_leave_the_rule(tmp_path):
    zarr.create_array(tmp_path / "a", data=pixels_of((3, 4)), dimension_names=["row", "col"])
    assert open_image(tmp_path / "a").axes == "yx"


def test_a_group_that_is_not_ome_zarr_lists_its_arrays(tmp_path):
    group = zarr.create_group(tmp_path / "a")
    group.create_array("raw/em", shape=(4, 4), dtype="u1")
    with pytest.raises(ImageError, match=r"arrays 'raw/em'; name one, such as path/raw/em"):
        open_image(tmp_path / "a")
    with pytest.raises(ImageError, match=r"arrays 'raw/em'"):
        open_image(group)
    zarr.create_group(tmp_path / "b")
    with pytest.raises(ImageError, match="needs an array to be an image, got none"):
        open_image(tmp_path / "b")


def test_an_ome_zarr_opens_from_a_url():
    array = pixels_of((2, 20, 30))
    url = "memory://images/plate.zarr"
    store = zarr.storage.FsspecStore.from_url(url)
    write_ome_zarr(store, array, "cyx", version="0.5")
    image = open_image(url, channel=1)
    assert image.url == url
    assert_reads(image, array[1])
    assert_reads(open_image(UPath(url)), array[0])
    assert_reads(pickle.loads(pickle.dumps(image)), array[1])
    before = image.fingerprint
    zarr.open_group(store)["0"][0, 0, 0] += 1
    assert open_image(url, channel=1).fingerprint != before


def test_nothing_at_a_url_is_said():
    with pytest.raises(ImageError, match=r"no Zarr array or group at 'memory://nowhere/a.zarr'"):
        open_image("memory://nowhere/a.zarr")
    with pytest.raises(ImageError, match=r"no image at 'memory://nowhere/a.tif'"):
        open_image("memory://nowhere/a.tif")


def test_a_url_that_nothing_reads_is_refused():
    with pytest.raises(ImageError, match="'nonsense://a"):
        open_image("nonsense://a/b.zarr")
    with pytest.raises(ImageError, match="'nonsense://a"):
        open_image("nonsense://a/b.tif")


def test_storage_options_belong_in_the_fsspec_configuration():
    with pytest.raises(ImageError, match="put them in the fsspec configuration"):
        open_image(UPath("memory://a/b.zarr", skip_instance_cache=True))


# TIFF


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"bigtiff": True},
        {"byteorder": ">"},
        {"tile": (16, 16), "compression": "zlib"},
        {"rowsperstrip": 4, "compression": "zlib", "predictor": True},
        {"tile": (16, 16), "byteorder": ">", "bigtiff": True},
    ],
    ids=str,
)
@pytest.mark.parametrize("dtype", ["u1", "u2", "f4"])
def test_tiff_reads_as_tifffile_reads_it(tmp_path, options, dtype):
    array = pixels_of((3, 45, 50), dtype)
    options = {"photometric": "minisblack", "metadata": {"axes": "ZYX"}, **options}
    tifffile.imwrite(tmp_path / "a.tif", array, **options)
    image = open_image(tmp_path / "a.tif")
    assert (image.axes, image.format) == ("zyx", "TIFF")
    assert_reads(image, tifffile.imread(tmp_path / "a.tif"))


def test_pixels_in_one_piece_are_mapped_and_others_chunked(tmp_path):
    array = pixels_of((64, 64))
    tifffile.imwrite(tmp_path / "plain.tif", array)
    tifffile.imwrite(tmp_path / "tiled.tif", array, tile=(32, 16))
    plain, tiled = open_image(tmp_path / "plain.tif"), open_image(tmp_path / "tiled.tif")
    assert isinstance(plain.pixels, FileArray)
    assert plain.chunks is None
    assert tiled.chunks == (32, 16)


def test_samples_of_a_tiff_are_the_channel_axis(tmp_path):
    array = pixels_of((40, 50, 3), "u1")
    tifffile.imwrite(tmp_path / "a.tif", array, photometric="rgb", tile=(16, 16))
    assert_reads(open_image(tmp_path / "a.tif", channel=2), array[..., 2])
    image = open_image(tmp_path / "a.tif", channel=None)
    assert (image.axes, image.chunks) == ("cyx", (3, 16, 16))
    assert_reads(image, array.transpose(2, 0, 1))


def test_a_tiff_with_channels_and_samples_is_refused(tmp_path):
    tifffile.imwrite(
        tmp_path / "a.ome.tif", pixels_of((2, 8, 8, 3), "u1"), metadata={"axes": "CYXS"}
    )
    with pytest.raises(ImageError, match=r"one channel axis, got channels \(C\) and samples \(S\)"):
        open_image(tmp_path / "a.ome.tif")
    assert open_image(tmp_path / "a.ome.tif", axes="tyxc").axes == "tyx"


def test_ome_tiff_keeps_axes_names_and_sizes(tmp_path):
    array = pixels_of((2, 3, 4, 20, 24))
    metadata = {
        "axes": "TZCYX",
        "Channel": {"Name": ["a", "b", "c", "d"]},
        "PhysicalSizeX": 0.5,
        "PhysicalSizeXUnit": "µm",
        "PhysicalSizeY": 250.0,
        "PhysicalSizeYUnit": "nm",
        "PhysicalSizeZ": 2,
        "TimeIncrement": 30.0,
    }
    tifffile.imwrite(tmp_path / "a.ome.tif", array, metadata=metadata, tile=(16, 16))
    image = open_image(tmp_path / "a.ome.tif", channel="c")
    assert (image.axes, image.format, image.channel) == ("tzyx", "OME-TIFF", 2)
    assert image.pixel_size == {"t": 30.0, "z": 2.0, "y": 250.0, "x": 0.5}
    assert image.unit == {"t": "second", "z": "micrometer", "y": "nanometer", "x": "micrometer"}
    assert_reads(image, array[:, :, 2])
    assert_reads(open_image(tmp_path / "a.ome.tif", channel=None), array.transpose(0, 2, 1, 3, 4))


def test_imagej_tiff_keeps_axes_and_sizes(tmp_path):
    array = pixels_of((4, 2, 20, 24))
    tifffile.imwrite(
        tmp_path / "a.tif",
        array,
        imagej=True,
        resolution=(4.0, 2.0),
        metadata={"axes": "ZCYX", "spacing": 3.0, "unit": "um"},
    )
    image = open_image(tmp_path / "a.tif", channel=1)
    assert (image.axes, image.format) == ("zyx", "ImageJ TIFF")
    assert image.pixel_size == {"z": 3.0, "y": 0.5, "x": 0.25}
    assert set(image.unit.values()) == {"micrometer"}
    assert_reads(image, array[:, 1])


def test_imagej_tiff_without_a_unit_has_no_pixel_size(tmp_path):
    tifffile.imwrite(tmp_path / "a.tif", pixels_of((20, 24)), imagej=True)
    assert open_image(tmp_path / "a.tif").pixel_size == {}


@pytest.mark.parametrize("level", [0, 1, 2])
def test_every_level_of_a_pyramidal_tiff_reads(tmp_path, level):
    array = pixels_of((2, 96, 128))
    metadata = {"axes": "CYX", "PhysicalSizeX": 0.5, "PhysicalSizeY": 0.5}
    with tifffile.TiffWriter(tmp_path / "a.ome.tif") as tif:
        tif.write(array, subifds=2, tile=(32, 32), metadata=metadata)
        tif.write(array[:, ::2, ::2], subfiletype=1, tile=(32, 32))
        tif.write(array[:, ::4, ::4], subfiletype=1, tile=(16, 16))
    image = open_image(tmp_path / "a.ome.tif", channel=1, level=level)
    assert (image.level, image.n_levels) == (level, 3)
    assert image.pixel_size == {"y": 0.5 * 2**level, "x": 0.5 * 2**level}
    expected = tifffile.imread(tmp_path / "a.ome.tif", level=level)
    assert_reads(image, expected[1])


def test_an_unknown_tiff_axis_must_have_size_one_or_be_named(tmp_path):
    array = pixels_of((3, 8, 9))
    tifffile.imwrite(tmp_path / "a.tif", array, photometric="minisblack")
    with pytest.raises(ImageError, match=r"needs a name of its own .* got \['Q'\].*pass axes="):
        open_image(tmp_path / "a.tif")
    assert_reads(open_image(tmp_path / "a.tif", axes="zyx"), array)
    tifffile.imwrite(tmp_path / "b.tif", array[:1], metadata={"axes": "QYX"})
    assert_reads(open_image(tmp_path / "b.tif"), array[0])


def test_tiff_opens_from_a_url():
    array = pixels_of((40, 50))
    with fsspec.open("memory://images/a.tif", "wb") as file:
        tifffile.imwrite(file, array, tile=(16, 16), compression="zlib")
    image = open_image("memory://images/a.tif")
    assert_reads(image, array)
    assert_reads(pickle.loads(pickle.dumps(image)), array)
    regions = list(random_regions(image.shape, n=100))
    with ThreadPoolExecutor(8) as pool:
        for region, block in zip(regions, pool.map(image.read, regions), strict=True):
            np.testing.assert_array_equal(block, array[region.slices])
    assert len(image.fingerprint) == 32


def test_a_file_that_only_says_it_is_tiff_is_refused(tmp_path):
    (tmp_path / "a.tif").write_bytes(b"not a tiff")
    with pytest.raises(ImageError, match=r"cannot open .*a\.tif' as TIFF"):
        open_image(tmp_path / "a.tif")


# raster files and .npy


@pytest.mark.parametrize("extension", ["png", "bmp", "jpg"])
@pytest.mark.parametrize("shape", [(20, 30), (20, 30, 3)])
def test_raster_files_read_as_imageio_reads_them(tmp_path, extension, shape):
    path = tmp_path / f"a.{extension}"
    iio.imwrite(path, pixels_of(shape, "u1"))
    expected = iio.imread(path)
    image = open_image(path, channel=None)
    assert image.axes == ("yx" if len(shape) == 2 else "cyx")
    assert_reads(image, expected if len(shape) == 2 else expected.transpose(2, 0, 1))


def test_opacity_is_kept_as_a_channel(tmp_path):
    array = pixels_of((20, 30, 4), "u1")
    iio.imwrite(tmp_path / "a.png", array)
    assert_reads(open_image(tmp_path / "a.png", channel=3), array[..., 3])


def test_png_of_16_bits_keeps_them(tmp_path):
    array = np.arange(600, dtype="u2").reshape(20, 30) * 100
    iio.imwrite(tmp_path / "a.png", array)
    assert_reads(open_image(tmp_path / "a.png"), array)


def test_png_opens_from_a_url():
    array = pixels_of((20, 30), "u1")
    with fsspec.open("memory://images/a.png", "wb") as file:
        file.write(iio.imwrite("<bytes>", array, extension=".png"))
    assert_reads(open_image("memory://images/a.png"), array)


def test_pillows_limit_is_lifted_inside_the_call_only(tmp_path, monkeypatch):
    array = pixels_of((20, 30), "u1")
    iio.imwrite(tmp_path / "a.png", array)
    monkeypatch.setattr(PillowImage, "MAX_IMAGE_PIXELS", 100)
    assert_reads(open_image(tmp_path / "a.png"), array)
    assert PillowImage.MAX_IMAGE_PIXELS == 100
    monkeypatch.setattr(raster, "MAX_PIXELS", 100)
    with pytest.raises(ImageError, match=r"may have 100 pixels, got \(20, 30\).*tiled TIFF"):
        open_image(tmp_path / "a.png")
    assert PillowImage.MAX_IMAGE_PIXELS == 100


def test_a_damaged_raster_file_is_refused(tmp_path):
    iio.imwrite(tmp_path / "a.png", pixels_of((200, 300), "u1"))
    (tmp_path / "a.png").write_bytes((tmp_path / "a.png").read_bytes()[:5000])
    (tmp_path / "b.png").write_bytes(b"not a png")
    for name in ("a.png", "b.png"):
        with pytest.raises(ImageError, match="cannot decode"):
            open_image(tmp_path / name)


def test_npy_is_read_where_it_is_asked_for(tmp_path):
    array = pixels_of((5, 20, 30), ">i2")
    np.save(tmp_path / "a.npy", np.asfortranarray(array))
    image = open_image(tmp_path / "a.npy")
    assert isinstance(image.pixels, FileArray | Transposed)
    assert_reads(image, array)


def test_npy_from_a_url_or_of_objects_is_refused(tmp_path):
    with fsspec.open("memory://images/a.npy", "wb") as file:
        np.save(file, np.zeros((3, 3)))
    with pytest.raises(ImageError, match="must be on a local disk"):
        open_image("memory://images/a.npy")
    np.save(tmp_path / "a.npy", np.array([{}], dtype=object))
    with pytest.raises(ImageError, match=r"cannot read .*a\.npy"):
        open_image(tmp_path / "a.npy")


# arrays in memory


@pytest.mark.parametrize(
    "dtype", ["?", "u1", "i1", "u2", "i2", "u4", "i4", "u8", "i8", "f2", "f4", "f8", ">u2", ">f4"]
)
def test_arrays_of_every_supported_type_read(dtype):
    array = pixels_of((4, 5, 6), dtype)
    assert_reads(open_image(array), array)
    assert_reads(open_image(dask.array.from_array(array, chunks=(2, 3, 4))), array)


@pytest.mark.parametrize("file_order", ["yxc", "cyx", "xyc", "xcy"])
def test_any_file_order_is_transposed_to_the_canonical(file_order):
    canonical = pixels_of((3, 20, 30))
    array = canonical.transpose(["cyx".index(axis) for axis in file_order])
    assert_reads(open_image(array, axes=file_order.upper(), channel=None), canonical)
    assert_reads(open_image(array, axes=file_order, channel=1), canonical[1])


def test_what_is_read_may_be_written_to_without_changing_the_source():
    array = pixels_of((8, 8))
    for source in (array, dask.array.from_array(array, chunks=8)):
        image = open_image(source)
        image.read(whole(image))[...] = 0
    assert array.any()


def test_dask_chunks_are_known_in_canonical_order():
    array = dask.array.zeros((20, 30, 3), chunks=(7, 8, 3))
    assert open_image(array, axes="yxc", channel=None).chunks == (3, 7, 8)
    assert open_image(array, axes="yxc").chunks == (7, 8)


def test_one_two_and_three_dimensions_have_axes_by_rule():
    for ndim, axes in ((1, "x"), (2, "yx"), (3, "zyx")):
        assert open_image(np.zeros((4,) * ndim)).axes == axes


# identity, processes, threads


@pytest.fixture(params=["zarr", "ome_zarr", "tiff", "png", "npy"])
def stored(request, tmp_path):
    """A stored image: its path, and what changes it on disk."""
    array = pixels_of((20, 30), "u1")
    path = tmp_path / {"tiff": "a.tif", "png": "a.png", "npy": "a.npy"}.get(request.param, "a.zarr")

    def write(array):
        if request.param == "zarr":
            zarr.create_array(path, data=array, chunks=(8, 8), overwrite=True)
        elif request.param == "ome_zarr" and path.exists():
            zarr.open_group(path)["0"][...] = array
        elif request.param == "ome_zarr":
            write_ome_zarr(path, array, "yx", version="0.5")
        elif request.param == "tiff":
            tifffile.imwrite(path, array, tile=(16, 16))
        elif request.param == "png":
            iio.imwrite(path, array)
        else:
            np.save(path, array)

    write(array)
    return path, array, write


def test_the_fingerprint_of_a_stored_image_follows_its_content(stored):
    path, array, write = stored
    first = open_image(path).fingerprint
    assert len(first) == 32
    assert int(first, 16) >= 0
    assert open_image(str(path)).fingerprint == first
    write(array + 1)
    assert open_image(path).fingerprint != first


def test_a_pickled_image_opens_again_and_sees_a_changed_file(stored):
    path, array, write = stored
    image = open_image(path)
    fingerprint, record = image.fingerprint, pickle.dumps(image)
    assert len(record) < 600
    again = pickle.loads(record)
    assert_reads(again, array)
    assert again.fingerprint == fingerprint
    write(array + 1)
    changed = pickle.loads(record)
    assert_reads(changed, array + 1)
    assert changed.fingerprint != fingerprint


def test_another_process_reads_a_pickled_image(tmp_path, monkeypatch):
    array = pixels_of((3, 20, 30))
    write_ome_zarr(tmp_path / "a.zarr", array, "cyx", version="0.5")
    monkeypatch.chdir(tmp_path)
    (tmp_path / "record").write_bytes(pickle.dumps(open_image("a.zarr", channel=2)))
    program = "import pickle, sys; i = pickle.load(open(sys.argv[1], 'rb')); "
    program += "print(i.fingerprint, i.pixels[2].sum(), i.channel)"
    result = subprocess.run(
        [sys.executable, "-c", program, str(tmp_path / "record")],
        cwd=Path(__file__).parents[2],
        capture_output=True,
        text=True,
        check=True,
    )
    expected = open_image(tmp_path / "a.zarr", channel=2)
    assert result.stdout.split() == [expected.fingerprint, str(array[2].sum()), "2"]


def test_the_fingerprint_of_an_array_is_its_content_shape_channel_and_axes():
    array = pixels_of((3, 8, 6))
    same = open_image(array, axes="cyx").fingerprint
    assert open_image(array.copy(order="F"), axes="cyx").fingerprint == same
    others = [
        open_image(array + 1, axes="cyx"),
        open_image(array, axes="cyx", channel=1),
        open_image(array, axes="cyx", channel=None),
        open_image(array, axes="cxy"),
        open_image(array),
        open_image(array.reshape(3, 6, 8), axes="cyx"),
        open_image(array.astype("i2"), axes="cyx"),
        open_image(dask.array.from_array(array), axes="cyx"),
        open_image(zarr.create_array(zarr.storage.MemoryStore(), data=array), axes="cyx"),
    ]
    prints = [image.fingerprint for image in others]
    assert len({same, *prints[:-1]}) == len(prints)
    assert prints[-1] != prints[0]


def test_the_fingerprint_of_zarr_in_memory_follows_its_content():
    array = zarr.create_array(zarr.storage.MemoryStore(), data=pixels_of((9, 9)), chunks=(4, 4))
    before = open_image(array).fingerprint
    assert open_image(array).fingerprint == before
    array[8, 8] += 1
    assert open_image(array).fingerprint != before


@pytest.mark.parametrize("wrap", [np.asarray, dask.array.from_array, zarr.array])
def test_an_image_from_memory_pickles_with_its_array(wrap):
    array = pixels_of((3, 8, 6))
    image = pickle.loads(pickle.dumps(open_image(wrap(array), axes="cyx", channel=1)))
    assert image.channel == 1
    assert_reads(image, array[1])


@pytest.mark.parametrize("options", [{}, {"tile": (32, 32), "compression": "zlib"}], ids=str)
def test_threads_may_read_a_tiff_at_the_same_time(tmp_path, options):
    array = pixels_of((300, 400))
    tifffile.imwrite(tmp_path / "a.tif", array, **options)
    image = open_image(tmp_path / "a.tif")
    regions = list(random_regions(image.shape, n=200))
    with ThreadPoolExecutor(8) as pool:
        for region, block in zip(regions, pool.map(image.read, regions), strict=True):
            np.testing.assert_array_equal(block, array[region.slices])


def test_only_the_chunks_that_a_region_touches_are_read(tmp_path):
    array = pixels_of((32, 32))
    zarr.create_array(tmp_path / "a.zarr", data=array, chunks=(16, 16))
    (tmp_path / "a.zarr" / "c" / "1" / "1").write_bytes(b"damaged")
    tifffile.imwrite(tmp_path / "a.tif", array, tile=(16, 16), compression="zlib")
    with tifffile.TiffFile(tmp_path / "a.tif") as tif:
        offset = tif.pages.first.dataoffsets[3]
    with open(tmp_path / "a.tif", "r+b") as file:
        file.seek(offset)
        file.write(b"damaged")
    for name in ("a.zarr", "a.tif"):
        image = open_image(tmp_path / name)
        region = Region((0, 3), (16, 32))
        np.testing.assert_array_equal(image.read(region), array[region.slices])
        with pytest.raises(ImageError, match=r"cannot be decoded: .*; copy it again"):
            image.read(whole(image))


def test_sharded_zarr_reads_and_says_the_chunks_inside_its_shards(tmp_path):
    array = pixels_of((40, 40))
    zarr.create_array(tmp_path / "a", data=array, chunks=(5, 10), shards=(20, 20))
    image = open_image(tmp_path / "a")
    assert image.chunks == (5, 10)
    assert_reads(image, array)


# refusals


def test_a_missing_path_is_refused(tmp_path):
    with pytest.raises(ImageError, match=r"no image at .*none\.tif'; check the path"):
        open_image(tmp_path / "none.tif")
    write_ome_zarr(tmp_path / "a.zarr", pixels_of((9, 9)), "yx", version="0.5")
    with pytest.raises(ImageError, match=r"no image at .*a\.zarr/7'"):
        open_image(tmp_path / "a.zarr" / "7")


def test_an_unsupported_file_is_refused_with_what_is_supported(tmp_path):
    (tmp_path / "a.doc").touch()
    with pytest.raises(ImageError, match=r"cannot (read|open) .*a\.doc"):
        open_image(tmp_path / "a.doc")
    with pytest.raises(ImageError, match=r"a folder is an image only if it is Zarr"):
        open_image(tmp_path)
    with pytest.raises(ImageError, match=r"an image is opened from a path.*got list"):
        open_image([1, 2])


def test_a_zarr_with_broken_metadata_is_refused(tmp_path):
    (tmp_path / "zarr.json").write_text(json.dumps({"zarr_format": 3, "node_type": "cloud"}))
    with pytest.raises(ImageError, match="Zarr"):
        open_image(tmp_path)


def test_a_channel_out_of_range_is_refused_with_those_available(tmp_path):
    write_ome_zarr(tmp_path / "a", pixels_of((2, 9, 9)), "cyx", version="0.5", labels=["p", "q"])
    for channel in (2, -1):
        with pytest.raises(ImageError, match=rf"no channel {channel} .*0 to 1, named \['p', 'q'\]"):
            open_image(tmp_path / "a", channel=channel)
    with pytest.raises(ImageError, match="its channels are 0 to 2, unnamed"):
        open_image(np.zeros((3, 4, 4)), axes="cyx", channel=3)


def test_an_unknown_channel_name_is_refused_with_the_names(tmp_path):
    write_ome_zarr(tmp_path / "a", pixels_of((2, 9, 9)), "cyx", version="0.5", labels=["p", "q"])
    with pytest.raises(ImageError, match=r"no channel 'r' .*named \['p', 'q'\]"):
        open_image(tmp_path / "a", channel="r")
    write_ome_zarr(tmp_path / "b", pixels_of((2, 9, 9)), "cyx", version="0.5", labels=["p", "p"])
    with pytest.raises(ImageError, match="more than one channel 'p'"):
        open_image(tmp_path / "b", channel="p")


@pytest.mark.parametrize("channel", [1, "dna"])
def test_a_channel_of_an_image_without_channel_axis_is_refused(channel):
    with pytest.raises(ImageError, match=r"needs a channel axis, got axes 'zyx'"):
        open_image(np.zeros((3, 4, 4)), channel=channel)


def test_channel_zero_or_none_of_an_image_without_channel_axis_is_the_image():
    for channel in (0, None):
        assert open_image(np.zeros((3, 4)), channel=channel).channel is None


def test_a_level_out_of_range_is_refused_with_the_levels_and_their_shapes(tmp_path):
    write_ome_zarr(tmp_path / "a", pixels_of((9, 9)), "yx", version="0.5")
    for level in (2, -1):
        with pytest.raises(ImageError, match=r"2 levels \(0: \(9, 9\), 1: \(5, 5\)\)"):
            open_image(tmp_path / "a", level=level)
    with pytest.raises(ImageError, match=r"no level 1 .*1 level \(0: \(4, 4\)\)"):
        open_image(np.zeros((4, 4)), level=1)


@pytest.mark.parametrize("axes", ["y", "yxz", "yy", "qx", "", "y x"])
def test_bad_axes_are_refused(axes):
    with pytest.raises(ImageError, match="axes= needs one letter of 'tczyx' per axis of the file"):
        open_image(np.zeros((4, 4)), axes=axes)


def test_axes_without_a_spatial_one_are_refused():
    with pytest.raises(ImageError, match="at least one axis of 'zyx', got axes 'tc'"):
        open_image(np.zeros((4, 4)), axes="tc")


def test_axes_of_four_dimensions_must_be_named():
    with pytest.raises(ImageError, match=r"axes of 4 dimensions cannot be known.*such as 'tzyx'"):
        open_image(np.zeros((2, 3, 4, 5)))
    with pytest.raises(ImageError, match=r"pass axes=, such as 'tczyx'"):
        open_image(np.zeros((1, 2, 3, 4, 5)))
    assert open_image(np.zeros((2, 3, 4, 5)), axes="tzyx").axes == "tzyx"


@pytest.mark.parametrize("dtype", ["c8", "O", "U3", "S3", "M8[s]", "m8[s]", [("a", "u1")]], ids=str)
def test_pixels_that_are_not_numbers_are_refused(dtype):
    with pytest.raises(ImageError, match="pixels must be bool, integers or floats, got"):
        open_image(np.zeros((4, 4), dtype=dtype))


def test_an_image_without_pixels_is_refused(tmp_path):
    with pytest.raises(ImageError, match=r"an image needs pixels, got shape \(0, 4\)"):
        open_image(np.zeros((0, 4)))
    zarr.create_array(tmp_path / "a", shape=(4, 0), chunks=(1, 1), dtype="u1")
    with pytest.raises(ImageError, match=r"an image needs pixels, got shape \(4, 0\)"):
        open_image(tmp_path / "a")
    with pytest.raises(ImageError, match="at least one axis, got a single value"):
        open_image(np.array(5))


def test_a_dask_array_of_unknown_shape_is_refused():
    array = dask.array.from_array(np.arange(9))
    with pytest.raises(ImageError, match="needs a known shape"):
        open_image(array[array > 3])


@pytest.mark.parametrize("region", [Region((0, 0), (5, 4)), Region((0,), (4,))])
def test_a_region_outside_the_image_is_refused(region):
    with pytest.raises(ImageError, match=r"must lie within the image, got Region"):
        open_image(np.zeros((4, 4))).read(region)


# real images


@pytest.mark.shared_data
@pytest.mark.parametrize(
    "name",
    [
        "dsb2018_mosaic_4096_labels.tif",
        "plantseg_ovule_cells.tif",
        "plantseg_ovule_cells_labels.tif",
        "plantseg_ovule_nuclei_1135.tif",
        "plantseg_ovule_nuclei_1135_labels.tif",
        "bbbc022_IXMtest_A02_s9.ome.tif",
        "idr0_plate1_1_013.ome.tif",
        "CMU-1-Small-Region.svs",
    ],
)
def test_real_tiffs_read_as_tifffile_reads_them(shared_data, name):
    expected = tifffile.imread(shared_data / name)
    if name.endswith(".svs"):
        expected = np.moveaxis(expected, -1, 0)
    assert_reads(open_image(shared_data / name, channel=None), expected)


@pytest.mark.shared_data
def test_a_real_slide_knows_its_pixel_size(shared_data):
    image = open_image(shared_data / "CMU-1-Small-Region.svs", channel=1)
    assert (image.format, image.chunks, image.axes) == ("SVS", (240, 240), "yx")
    assert image.pixel_size == {"y": 0.499, "x": 0.499}
    assert image.unit == {"y": "micrometer", "x": "micrometer"}


@pytest.mark.shared_data
def test_a_real_png_beyond_what_fits_a_tile_reads(shared_data):
    path = shared_data / "dsb2018_mosaic_4096.png"
    assert_reads(open_image(path), np.asarray(PillowImage.open(path)))


@pytest.mark.shared_data
@pytest.mark.parametrize("level", [0, 1])
@pytest.mark.parametrize(
    ("name", "version", "channels", "size"),
    [
        ("cdp2_h15_scene0_v05.ome.zarr", "0.5", ("C0", "C1", "C2", "C3", "C4"), 0.656),
        ("idr0_plate1_1_013_v04.ome.zarr", "0.4", ("red", "green"), 1.0),
    ],
)
def test_real_ome_zarrs_read_as_zarr_reads_them(shared_data, name, version, channels, size, level):
    expected = zarr.open_array(shared_data / name / str(level), mode="r")[...]
    for channel, label in enumerate(channels):
        image = open_image(shared_data / name, channel=label, level=level)
        assert (image.format, image.channel_names) == (f"OME-Zarr {version}", channels)
        assert image.pixel_size == {"y": size * 2**level, "x": size * 2**level}
        assert_reads(image, expected[channel])


@pytest.mark.shared_data
def test_real_labels_inside_an_ome_zarr_read(shared_data):
    path = shared_data / "cdp2_h15_scene0_v05.ome.zarr" / "labels" / "nuclei_cellpose"
    assert_reads(open_image(path), zarr.open_array(path / "0", mode="r")[...])
