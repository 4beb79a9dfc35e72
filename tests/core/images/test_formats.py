"""Zip files, shards, plates, pyramids and microscope formats: read as written, or refused."""

from __future__ import annotations

import os
import pickle
import re
import sys
from concurrent.futures import ThreadPoolExecutor
from zipfile import ZIP_DEFLATED, ZIP_STORED, ZipFile

import fsspec
import numpy as np
import PIL.Image
import pytest
import tifffile
import zarr

from patchworks_core import tile_process
from patchworks_core.errors import ImageError
from patchworks_core.images.image import open_image
from patchworks_core.images.readers import bioio as bioio_reader
from patchworks_core.images.readers.bioio import open_bioio
from patchworks_core.images.readers.sources import list_images
from patchworks_core.images.readers.zarr_node import fields_of_plate
from patchworks_core.machine.workers import Workers
from patchworks_core.tiles.regions import Region
from tests.core.images.test_image import assert_reads, pixels_of, random_regions, write_ome_zarr


def zipped(folder, file, *, below="", compression=ZIP_STORED):
    """Put the content of a folder into a zip file, below a folder of it."""
    with ZipFile(file, "w", compression) as archive:
        for path in sorted(folder.rglob("*")):
            if path.is_file():
                archive.write(path, os.path.join(below, path.relative_to(folder)))
    return file


# zip


@pytest.mark.parametrize("version", ["0.4", "0.5"])
@pytest.mark.parametrize("name", ["a.ome.zarr.zip", "a.zarr.zip", "a.ozx"])
@pytest.mark.parametrize("below", ["", "a.ome.zarr"])
def test_a_zipped_ome_zarr_reads_as_the_folder(tmp_path, version, name, below):
    array = pixels_of((2, 5, 20, 30))
    write_ome_zarr(tmp_path / "a", array, "czyx", version=version, labels=["dna", "er"])
    path = zipped(tmp_path / "a", tmp_path / name, below=below)
    image = open_image(path, channel="er", level=1)
    assert (image.axes, image.n_levels, image.format) == ("zyx", 2, f"OME-Zarr {version}")
    assert image.pixel_size == {"z": 2.0, "y": 1.0, "x": 0.5}
    assert_reads(image, array[1, :, ::2, ::2])
    assert_reads(open_image(f"{path}/0", axes="czyx", channel=0), array[0])


def test_threads_and_pickled_copies_read_a_zip_alike(tmp_path):
    array = pixels_of((5, 64, 64))
    write_ome_zarr(tmp_path / "a", array, "zyx", version="0.5")
    image = open_image(zipped(tmp_path / "a", tmp_path / "a.ozx", compression=ZIP_DEFLATED))
    again = pickle.loads(pickle.dumps(image))
    regions = list(random_regions(image.shape, n=60))
    with ThreadPoolExecutor(8) as pool:
        for opened in (image, again):
            for region, block in zip(regions, pool.map(opened.read, regions), strict=True):
                np.testing.assert_array_equal(block, array[region.slices])


def test_a_zip_is_known_by_the_file_and_not_by_its_pixels(tmp_path, monkeypatch):
    write_ome_zarr(tmp_path / "a", pixels_of((9, 9)), "yx", version="0.5")
    path = zipped(tmp_path / "a", tmp_path / "a.ozx")
    image = open_image(path)
    with monkeypatch.context() as patch:
        patch.setattr(zarr.Array, "__getitem__", lambda *_: pytest.fail("pixels were read"))
        first = image.fingerprint
    assert open_image(path).fingerprint == first
    assert open_image(path, level=1).fingerprint != first
    os.utime(path, ns=(0, 0))
    assert open_image(path).fingerprint != first
    assert pickle.loads(pickle.dumps(image)).fingerprint != first


def test_tiles_of_a_zip_are_read_in_other_processes(tmp_path):
    array = pixels_of((64, 64))
    write_ome_zarr(tmp_path / "a", array, "yx", version="0.5", n_levels=1)
    image = open_image(zipped(tmp_path / "a", tmp_path / "a.ozx"))
    with Workers(1, "processes").open() as pool:
        for region in random_regions(image.shape, n=3):
            block = pool.submit(image.read, region).result()
            np.testing.assert_array_equal(block, array[region.slices])


def test_a_zip_without_zarr_is_refused(tmp_path):
    (tmp_path / "a.ozx").write_bytes(b"not a zip")
    with pytest.raises(ImageError, match=r"cannot open Zarr at .*a\.ozx': File is not a zip file"):
        open_image(tmp_path / "a.ozx")
    with ZipFile(tmp_path / "b.zarr.zip", "w") as archive:
        archive.writestr("readme.txt", "nothing here")
    with pytest.raises(ImageError, match=r"no Zarr array or group at .*b\.zarr\.zip'"):
        open_image(tmp_path / "b.zarr.zip")
    with pytest.raises(ImageError, match=r"no image at .*c\.ozx'; check the path"):
        open_image(tmp_path / "c.ozx")
    with pytest.raises(ImageError, match=r"'.ozx' files are read from a local disk"):
        open_image("memory://a/c.ozx")


# shards


def test_the_chunks_of_a_sharded_image_are_those_within_a_shard(tmp_path):
    array = pixels_of((64, 96))
    sharded = zarr.create_array(
        tmp_path / "a", shape=array.shape, chunks=(32, 32), shards=(64, 64), dtype="u2"
    )
    sharded[...] = array
    image = open_image(tmp_path / "a")
    assert image.chunks == (32, 32)
    assert_reads(image, array)
    mask = (array > 128).astype("u1")
    sharded[...] = mask
    labels = tile_process(tmp_path / "a", lambda tile: tile.astype("i4"))
    np.testing.assert_array_equal(labels != 0, mask)


# other processes


def test_an_image_replaced_at_its_url_is_opened_anew_where_its_tiles_are_read():
    store = zarr.storage.FsspecStore.from_url("memory://formats/a.zarr")
    for shape in ((8, 8), (4, 6)):
        zarr.create_array(store, data=pixels_of(shape), overwrite=True)
        image = open_image("memory://formats/a.zarr")
        assert len(image.fingerprint) == 32  # as planning asks for it
        assert_reads(pickle.loads(pickle.dumps(image)), pixels_of(shape))


# plates


def write_plate(folder, version, wells=("A/1", "B/03"), n_fields=2, written=None):
    """Write a plate of small images; wells that are not `written` are only named."""
    zarr_format = 2 if version == "0.4" else 3
    rows = list(dict.fromkeys(well.split("/")[0] for well in wells))
    columns = list(dict.fromkeys(well.split("/")[1] for well in wells))
    plate = {
        "rows": [{"name": name} for name in rows],
        "columns": [{"name": name} for name in columns],
        "wells": [
            {"path": well, "rowIndex": rows.index(row), "columnIndex": columns.index(column)}
            for well in wells
            for row, column in [well.split("/")]
        ],
    }
    root = zarr.create_group(folder, zarr_format=zarr_format)
    set_ome(root, version, {"plate": plate})
    for i, path in enumerate(wells if written is None else written):
        well = zarr.create_group(folder / path, zarr_format=zarr_format)
        images = [{"path": str(field)} for field in range(n_fields)]
        set_ome(well, version, {"well": {"images": images}})
        for field in range(n_fields):
            array = pixels_of((2, 9, 12), seed=10 * i + field)
            write_ome_zarr(folder / path / str(field), array, "cyx", version=version)
    return folder


def set_ome(group, version, attributes):
    if version == "0.4":
        group.attrs.update(attributes)
    else:
        group.attrs["ome"] = {"version": version, **attributes}


@pytest.mark.parametrize("version", ["0.4", "0.5"])
def test_a_field_of_a_plate_opens_and_the_plate_names_its_fields(tmp_path, version):
    plate = write_plate(tmp_path / "plate.ome.zarr", version)
    assert fields_of_plate(plate) == ["A/1/0", "A/1/1", "B/03/0", "B/03/1"]
    with pytest.raises(ImageError, match=r"a plate is many .*fields 'A/1/0', .* path/A/1/0"):
        open_image(plate)
    with pytest.raises(ImageError, match=r"a well is many .*B/03' with fields '0', '1'; name one"):
        open_image(plate / "B" / "03")
    for i, path in enumerate(("A/1", "B/03")):
        image = open_image(plate / path / "1", channel=1)
        assert image.pixel_size == {"y": 0.5, "x": 0.25}
        assert_reads(image, pixels_of((2, 9, 12), seed=10 * i + 1)[1])


# what the values mean


GREEN = np.stack([np.zeros(256), np.arange(256) * 257, np.zeros(256)]).astype("u2")
MIXED = np.random.default_rng(1).integers(0, 65536, (3, 256)).astype("u2")
PLAIN = {"metadata": None}


@pytest.mark.parametrize(
    ("dtype", "options", "white"),
    [
        ("u1", {}, 255),
        ("u2", {"compression": "zlib", "tile": (16, 16)}, 65535),
        ("u2", {"bitspersample": 12}, 4095),
        ("bool", {}, 1),
    ],
)
def test_where_0_is_white_values_are_inverted_and_that_is_said(tmp_path, dtype, options, white):
    pixels = (pixels_of((20, 24)) % min(white + 1, 4000)).astype(dtype)
    tifffile.imwrite(tmp_path / "a.tif", pixels, photometric="miniswhite", **PLAIN, **options)
    image = open_image(tmp_path / "a.tif")
    assert_reads(image, (white - pixels.astype("i8")).astype(dtype))
    assert_reads(pickle.loads(pickle.dumps(image)), (white - pixels.astype("i8")).astype(dtype))
    assert image.notes == (
        f"0 is white in '{tmp_path / 'a.tif'}'; its values are read inverted, so that bright is "
        "high",
    )


@pytest.mark.parametrize("options", [{"imagej": True}, {"ome": True}, {}])
def test_values_that_are_data_are_read_as_they_are_stored(tmp_path, options):
    pixels = pixels_of((20, 24)).astype("u1")
    for name, shown in (
        ("a", {"photometric": "miniswhite"}),
        ("b", {"photometric": "palette", "colormap": MIXED}),
    ):
        if name == "b" and "imagej" in options:
            shown = {"colormap": MIXED}
        tifffile.imwrite(tmp_path / f"{name}.ome.tif", pixels, **shown, **options)
        image = open_image(tmp_path / f"{name}.ome.tif")
        assert_reads(image, pixels)
        assert "its values are read" in image.notes[0]


def test_a_mask_that_tifffile_wrote_is_not_turned_inside_out(tmp_path):
    mask = pixels_of((20, 24)) > 2000
    tifffile.imwrite(tmp_path / "a.tif", mask)
    assert_reads(open_image(tmp_path / "a.tif"), mask)


def test_a_table_of_colours_is_read_only_where_it_goes_from_dark_to_bright(tmp_path):
    pixels = pixels_of((20, 24)).astype("u1")
    for name, table in (("green", GREEN), ("mixed", MIXED)):
        options = {"photometric": "palette", "colormap": table, **PLAIN}
        tifffile.imwrite(tmp_path / f"{name}.tif", pixels, **options)
    assert_reads(open_image(tmp_path / "green.tif"), pixels)
    with pytest.raises(ImageError, match=r"numbers of colours in a table .*gray levels or RGB$"):
        open_image(tmp_path / "mixed.tif")
    # the advice
    rgb = (MIXED.T[pixels] >> 8).astype("u1")
    tifffile.imwrite(tmp_path / "mixed.tif", rgb, photometric="rgb", **PLAIN)
    assert open_image(tmp_path / "mixed.tif", channel=None).shape == (3, 20, 24)


@pytest.mark.parametrize(
    ("photometric", "n_samples", "words"),
    [
        ("cielab", 3, r"CIE L\*a\*b\*"),
        ("separated", 4, "CMYK"),
        ("ycbcr", 3, "YCbCr"),
        ("cfa", 1, "Bayer"),
    ],
)
def test_colours_that_are_no_intensities_are_refused(tmp_path, photometric, n_samples, words):
    pixels = np.squeeze(np.stack([pixels_of((20, 24)).astype("u1")] * n_samples, axis=-1))
    tifffile.imwrite(tmp_path / "a.tif", pixels, photometric=photometric, **PLAIN)
    with pytest.raises(ImageError, match=rf"{words}.* in .*a\.tif'; save it as gray levels or RGB"):
        open_image(tmp_path / "a.tif")


def test_jpeg_gives_rgb_whatever_it_stores(tmp_path):
    pixels = np.stack([pixels_of((32, 32)).astype("u1")] * 3, axis=-1)
    tifffile.imwrite(tmp_path / "a.tif", pixels, photometric="ycbcr", compression="jpeg", **PLAIN)
    assert open_image(tmp_path / "a.tif", channel=None).shape == (3, 32, 32)


@pytest.mark.parametrize(
    ("dtype", "options"),
    [
        ("f2", {}),
        ("f2", {"compression": "zlib", "predictor": True}),
        ("u2", {"bitspersample": 12}),
        ("u1", {"bitspersample": 4}),
        ("i1", {}),
        ("i8", {}),
        ("u8", {}),
        (">u2", {"byteorder": ">"}),
        ("bool", {"photometric": "minisblack"}),
    ],
)
def test_unusual_types_of_pixels_are_read_and_tiled(tmp_path, dtype, options):
    pixels = (pixels_of((20, 24)) % 16).astype(dtype)
    tifffile.imwrite(tmp_path / "a.tif", pixels, **PLAIN, **options)
    assert_reads(open_image(tmp_path / "a.tif"), pixels.astype(pixels.dtype.newbyteorder("=")))
    bright = tile_process(
        tmp_path / "a.tif", lambda tile: (tile > 0).astype("i4"), tile_shape=12, max_workers=1
    )
    assert_same_foreground(np.asarray(bright), pixels)


def assert_same_foreground(labels, pixels):
    np.testing.assert_array_equal(labels > 0, pixels > 0)


@pytest.mark.parametrize("dtype", ["c8", "c16"])
def test_complex_numbers_are_refused(tmp_path, dtype):
    tifffile.imwrite(tmp_path / "a.tif", pixels_of((20, 24)).astype(dtype))
    with pytest.raises(ImageError, match=r"pixels must be bool, integers or floats, got 'complex"):
        open_image(tmp_path / "a.tif")


def test_a_picture_of_inks_is_refused(tmp_path):
    PIL.Image.new("CMYK", (20, 24)).save(tmp_path / "a.jpg")
    with pytest.raises(ImageError, match=r"intensities or RGB, got CMYK in .*a\.jpg'"):
        open_image(tmp_path / "a.jpg")


# what axes are taken for


@pytest.mark.parametrize("axes", ["zyx", "tyx"])
def test_pages_of_a_plain_tiff_are_what_axes_say_and_that_is_said(tmp_path, axes):
    path = tmp_path / "a.tif"
    pixels = pixels_of((3, 20, 24))
    tifffile.imwrite(path, pixels, photometric="minisblack", **PLAIN)
    with pytest.raises(ImageError, match=r"got \['I'\] among axes .*; pass axes="):
        open_image(path)
    image = open_image(path, axes=axes)
    assert_reads(image, pixels)
    assert image.notes == (f"axes 'IYX' of '{path}' are taken for '{axes}', as axes= says",)


def test_axes_that_are_a_guess_are_said(tmp_path):
    np.save(tmp_path / "a.npy", pixels_of((3, 20, 24)))
    zarr.create_array(str(tmp_path / "a.zarr"), data=pixels_of((3, 20, 24)))
    for path in (tmp_path / "a.npy", tmp_path / "a.zarr"):
        (note,) = open_image(path).notes
        assert (
            note == f"axes of '{path}' are taken for 'zyx', as it names none; axes= says otherwise"
        )
        assert open_image(path, axes="tyx").notes == ()


def test_what_was_assumed_is_said_once_where_it_is_segmented(tmp_path, caplog):
    np.save(tmp_path / "a.npy", pixels_of((3, 20, 24)))
    with caplog.at_level("INFO"):
        tile_process(
            tmp_path / "a.npy",
            lambda tile: np.zeros(tile.shape, "i4"),
            tile_shape=12,
            max_workers=1,
        )
    assert caplog.text.count("are taken for 'zyx'") == 1


@pytest.mark.parametrize("names", [["0405", "true", "1e3"], ["405", "488", "0"]])
def test_names_of_channels_stay_text(tmp_path, names):
    path = tmp_path / "a.ome.tif"
    metadata = {"axes": "CYX", "Channel": {"Name": names}}
    tifffile.imwrite(path, pixels_of((3, 20, 24)), metadata=metadata)
    assert open_image(path).channel_names == tuple(names)
    for i, name in enumerate(names):
        assert open_image(path, channel=name).channel == i


def test_a_number_beyond_the_channels_is_a_name(tmp_path):
    path = tmp_path / "a.ome.tif"
    metadata = {"axes": "CYX", "Channel": {"Name": ["405", "1", "0"]}}
    tifffile.imwrite(path, pixels_of((3, 20, 24)), metadata=metadata)
    assert [open_image(path, channel=n).channel for n in (405, 1, 0)] == [0, 1, 0]
    with pytest.raises(ImageError, match=r"no channel 406 in"):
        open_image(path, channel=406)


# several images in one file


def write_series(path, **options):
    """Write a TIFF of two images."""
    with tifffile.TiffWriter(path, **options) as tif:
        tif.write(pixels_of((20, 24)))
        tif.write(pixels_of((10, 12), seed=1))
    return path


@pytest.mark.parametrize("options", [{}, {"ome": True}, {"shaped": True}])
def test_an_image_of_a_tiff_is_chosen_after_a_hash_and_all_are_listed(tmp_path, options):
    path = write_series(tmp_path / "a.tif", **options)
    assert list_images(path) == [f"{path}#0", f"{path}#1"]
    assert list_images(f"{path}#1") == [f"{path}#1"]
    first, second = (open_image(image) for image in list_images(path))
    assert_reads(first, pixels_of((20, 24)))
    assert_reads(second, pixels_of((10, 12), seed=1))
    assert_reads(pickle.loads(pickle.dumps(second)), pixels_of((10, 12), seed=1))
    assert first.fingerprint != second.fingerprint
    assert first.notes == second.notes == ()
    (note,) = open_image(path).notes
    advice = re.search("such as '(.*)'", note)[1]
    assert note.startswith(f"image 0 of 2 in '{path}' is read")
    assert_reads(open_image(advice), pixels_of((10, 12), seed=1))
    with pytest.raises(ImageError, match=r"no scene '2' in .*; its scenes are 0 to 1"):
        open_image(f"{path}#2")


def test_a_tiff_of_one_image_is_listed_as_itself(tmp_path):
    tifffile.imwrite(tmp_path / "a.tif", pixels_of((20, 24)))
    assert list_images(tmp_path / "a.tif") == [str(tmp_path / "a.tif")]
    assert open_image(tmp_path / "a.tif").notes == ()


def test_an_image_of_a_remote_tiff_is_chosen_after_a_hash(tmp_path):
    path = write_series(tmp_path / "a.tif")
    fs = fsspec.filesystem("memory")
    fs.pipe_file("/series/a.tif", path.read_bytes())
    assert_reads(open_image("memory://series/a.tif#1"), pixels_of((10, 12), seed=1))


def test_a_file_of_one_image_has_no_other(tmp_path):
    np.save(tmp_path / "a.npy", pixels_of((20, 24)))
    assert_reads(open_image(f"{tmp_path}/a.npy#0"), pixels_of((20, 24)))
    with pytest.raises(ImageError, match=r"no scene '1' in .*; its scenes are 0 to 0"):
        open_image(f"{tmp_path}/a.npy#1")


# several images in one group


def write_root(folder, n_series, version="0.5"):
    """Write what bioformats2raw writes: an image per series."""
    root = zarr.create_group(folder, zarr_format=2 if version == "0.4" else 3)
    set_ome(root, version, {"bioformats2raw.layout": 3})
    for i in range(n_series):
        write_ome_zarr(folder / str(i), pixels_of((9, 12), seed=i), "yx", version=version)
    return folder


def write_merged(folder, names):
    """Write a group of label images."""
    set_ome(zarr.create_group(folder), "0.5", {"labels": list(names)})
    for i, name in enumerate(names):
        write_ome_zarr(folder / name, pixels_of((9, 12), seed=i), "yx", version="0.5")
    return folder


@pytest.mark.parametrize("version", ["0.4", "0.5"])
def test_every_image_that_a_group_holds_is_listed_and_opens(tmp_path, version):
    plate = write_plate(tmp_path / "plate", version, written=["B/03"])
    root = write_root(tmp_path / "root", 2, version)
    labels = write_merged(tmp_path / "labels", ["cells", "nuclei"])
    assert list_images(plate) == [f"{plate}/B/03/0", f"{plate}/B/03/1"]
    assert list_images(plate / "B" / "03") == list_images(plate)
    assert list_images(root) == [f"{root}/0", f"{root}/1"]
    assert list_images(labels) == [f"{labels}/cells", f"{labels}/nuclei"]
    assert list_images(root / "1") == [f"{root}/1"]
    for location in (plate, root, labels):
        for image in list_images(location):
            assert open_image(image).pixel_size["x"] == 0.25
        with pytest.raises(ImageError, match=r"is many images.*name one, such as path/"):
            open_image(location)


def test_an_image_of_a_group_may_be_named_after_a_hash(tmp_path):
    root = write_root(tmp_path / "root", 2)
    assert_reads(open_image(f"{root}#1"), pixels_of((9, 12), seed=1))
    assert open_image(f"{root}#1").fingerprint == open_image(f"{root}/1").fingerprint
    with pytest.raises(ImageError, match=r"no scene '2' in .*its scenes are 0 to 1, named \["):
        open_image(f"{root}#2")


def test_a_group_of_one_image_is_that_image(tmp_path):
    assert_reads(open_image(write_root(tmp_path / "root", 1)), pixels_of((9, 12), seed=0))
    labels = open_image(write_merged(tmp_path / "labels", ["cells"]))
    assert labels.is_label_image
    with pytest.raises(ImageError, match=r"a group is many images, .* with images none yet$"):
        open_image(write_root(tmp_path / "empty", 0))


def test_several_multiscales_of_a_group_are_told_apart(tmp_path):
    group = write_ome_zarr(tmp_path / "a", pixels_of((9, 12)), "yx", version="0.5")
    group = zarr.open_group(tmp_path / "a")
    group.create_array("other", data=pixels_of((5, 6), seed=1))
    (first,) = group.attrs["ome"]["multiscales"]
    scale = [{"type": "scale", "scale": [1.0, 1.0]}]
    second = {**first, "name": "b", "datasets": [{"path": "other"}]}
    second["datasets"][0]["coordinateTransformations"] = scale
    group.attrs["ome"] = {"version": "0.5", "multiscales": [first, second]}
    assert list_images(tmp_path / "a") == [f"{tmp_path}/a#0", f"{tmp_path}/a#1"]
    for name in ("1", "b"):
        assert_reads(open_image(f"{tmp_path}/a#{name}"), pixels_of((5, 6), seed=1))
    assert_reads(open_image(tmp_path / "a"), pixels_of((9, 12)))


def test_a_path_that_leads_out_of_a_group_of_images_is_refused(tmp_path):
    root = write_root(tmp_path / "root", 1)
    for names in (["../plate"], ["/etc"], "0", [1]):
        set_ome(zarr.open_group(root).require_group("OME"), "0.5", {"series": names})
        with pytest.raises(ImageError, match=r"the metadata"):
            list_images(root)


def test_a_plate_in_a_zip_or_at_a_url_is_a_plate(tmp_path):
    plate = write_plate(tmp_path / "plate.ome.zarr", "0.5")
    packed = zipped(plate, tmp_path / "plate.ozx")
    assert fields_of_plate(packed) == fields_of_plate(plate)
    assert list_images(packed)[0] == f"{packed}/A/1/0"
    assert_reads(open_image(f"{packed}/B/03/0"), pixels_of((2, 9, 12), seed=10)[0])
    with pytest.raises(ImageError, match=r"a plate is many images"):
        open_image(packed)


def test_only_the_first_fields_are_listed_and_unwritten_wells_have_none(tmp_path):
    plate = write_plate(tmp_path / "a", "0.5", n_fields=7, written=["B/03"])
    assert fields_of_plate(plate) == [f"B/03/{i}" for i in range(7)]
    with pytest.raises(ImageError, match=r"'B/03/4' and 2 more; name one, such as path/B/03/0"):
        open_image(plate)
    empty = write_plate(tmp_path / "b", "0.4", written=[])
    with pytest.raises(ImageError, match=r"with fields none yet$"):
        open_image(empty)


def test_what_is_no_plate_and_what_leads_out_of_one_is_refused(tmp_path):
    write_ome_zarr(tmp_path / "image", pixels_of((9, 9)), "yx", version="0.5")
    with pytest.raises(ImageError, match=r"a plate is an OME-Zarr group with 'plate' metadata"):
        fields_of_plate(tmp_path / "image")
    plate = write_plate(tmp_path / "plate", "0.5", wells=("A/1",))
    group = zarr.open_group(plate)
    group.attrs["ome"] = {"version": "0.5", "plate": {"rows": []}}
    with pytest.raises(ImageError, match=r"not a valid OME-Zarr 0.4 or 0.5 plate: plate"):
        open_image(plate)
    well = zarr.open_group(plate / "A" / "1")
    well.attrs["ome"] = {"version": "0.5", "well": {"images": [{"path": ".."}]}}
    with pytest.raises(ImageError, match=r"(must lie within|not a valid)"):
        open_image(plate / "A" / "1")


# pyramids


@pytest.mark.parametrize("level", [0, 1, 2])
def test_every_level_of_an_svs_opens_with_its_pixel_size(tmp_path, level):
    array = pixels_of((128, 192, 3), "u1")
    description = "Aperio Image Library v1\n192x128 |AppMag = 20|MPP = 0.5"
    options = {"photometric": "rgb", "tile": (32, 32), "metadata": None}
    with tifffile.TiffWriter(tmp_path / "a.svs") as tif:
        tif.write(array, description=description, **options)
        tif.write(array[::8, ::8], description="thumbnail", photometric="rgb", metadata=None)
        for step in (2, 4):
            tif.write(array[::step, ::step], description="Aperio level", **options)
    image = open_image(tmp_path / "a.svs", channel=None, level=level)
    assert (image.format, image.n_levels, image.axes) == ("SVS", 3, "cyx")
    assert image.pixel_size == {"y": 0.5 * 2**level, "x": 0.5 * 2**level}
    assert_reads(image, array[:: 2**level, :: 2**level].transpose(2, 0, 1))


# bioio


def test_without_bioio_a_microscope_format_says_how_to_get_its_reader(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "bioio", None)
    for extension, command in bioio_reader.PLUGINS.items():
        (tmp_path / f"a{extension}").touch()
        with pytest.raises(ImageError, match="needs bioio and a plugin") as refusal:
            open_image(tmp_path / f"a{extension}")
        assert command in str(refusal.value)
    with pytest.raises(ImageError, match=r"'.czi' files are read from a local disk"):
        open_image("memory://a/b.czi")


@pytest.fixture
def bio_tiff(tmp_path):
    pytest.importorskip("bioio_tifffile", reason="bioio and its TIFF plugin are not installed")
    return tmp_path / "a.tiff"


def test_bioio_keeps_axes_and_reads_as_tifffile_does(bio_tiff):
    array = pixels_of((2, 3, 20, 24))
    tifffile.imwrite(bio_tiff, array, imagej=True, metadata={"axes": "ZCYX", "unit": "um"})
    opened = open_bioio(str(bio_tiff), 0, None)
    assert opened.axes == "-czyx"
    np.testing.assert_array_equal(opened.pixels[:, 1, :, 3:9], array[None, :, 1, 3:9])
    before = list(opened.stamp())
    os.utime(bio_tiff, ns=(0, 0))
    assert list(opened.stamp()) != before


def test_bioio_takes_samples_for_the_channel_and_leaves_out_what_is_one(bio_tiff):
    array = pixels_of((20, 24, 3), "u1")
    tifffile.imwrite(bio_tiff, array, photometric="rgb")
    opened = open_bioio(str(bio_tiff), 0, None)
    assert opened.axes == "---yxc"
    np.testing.assert_array_equal(opened.pixels[0, 0, 0], array)


def test_a_scene_is_chosen_by_number_or_name_after_a_hash(bio_tiff):
    with tifffile.TiffWriter(bio_tiff) as tif:
        tif.write(pixels_of((20, 24)))
        tif.write(pixels_of((10, 12), seed=1))
    assert open_bioio(str(bio_tiff), 0, None).pixels.shape[-2:] == (20, 24)
    second = open_bioio(f"{bio_tiff}#1", 0, None)
    np.testing.assert_array_equal(second.pixels[0, 0, 0], pixels_of((10, 12), seed=1))
    named = open_bioio(f"{bio_tiff}#Image:1", 0, None)
    assert list(named.stamp()) == list(second.stamp())
    with pytest.raises(ImageError, match=r"no scene '7' in .*its scenes are 0 to 1, named \["):
        open_bioio(f"{bio_tiff}#7", 0, None)
    with pytest.raises(ImageError, match=r"no level 3 in .*a\.tiff'"):
        open_bioio(str(bio_tiff), 3, None)


def test_what_no_plugin_reads_is_said(bio_tiff):
    broken = bio_tiff.with_suffix(".lif")
    broken.write_bytes(b"nothing")
    with pytest.raises(ImageError, match=r"bioio cannot open .*a\.lif'.*patchworks-pipeline\[bio"):
        open_image(broken)


def test_a_czi_reads_as_written_with_names_and_sizes(tmp_path):
    czi = pytest.importorskip("pylibCZIrw.czi", reason="pylibCZIrw, which writes CZI, is missing")
    array = pixels_of((2, 3, 40, 50))
    path = tmp_path / "a.czi"
    with czi.create_czi(str(path)) as document:
        for c, z in np.ndindex(2, 3):
            document.write(array[c, z][..., None], plane={"C": c, "Z": z, "T": 0})
        names = {0: "DAPI", 1: "GFP"}
        sizes = {"scale_x": 0.25e-6, "scale_y": 0.25e-6, "scale_z": 1e-6}
        document.write_metadata(document_name="a", channel_names=names, **sizes)
    image = open_image(path, channel="GFP")
    assert (image.axes, image.format) == ("zyx", "CZI (bioio)")
    assert image.pixel_size == pytest.approx({"z": 1.0, "y": 0.25, "x": 0.25})
    assert set(image.unit.values()) == {"micrometer"}
    assert_reads(image, array[1])
    assert_reads(pickle.loads(pickle.dumps(open_image(f"{path}#0"))), array[0])
    labels = tile_process(image, lambda tile: (tile > 200).astype("i4"), tile_shape=(-1, 32, 32))
    np.testing.assert_array_equal(labels != 0, array[1] > 200)


def write_old(path, version, axes):
    """Write an OME-Zarr image of a version that has no sizes of pixels."""
    group = zarr.open_group(str(path), mode="w", zarr_format=2)
    separator = {"name": "v2", "separator": "." if version == "0.1" else "/"}
    pixels = np.arange(2 * 24 * 32, dtype="u2").reshape(
        (1,) * (len(axes or "tczyx") - 3) + (2, 24, 32)
    )
    group.create_array("0", data=pixels, chunk_key_encoding=separator)
    named = {"axes": axes} if axes else {}
    group.attrs["multiscales"] = [{"version": version, "datasets": [{"path": "0"}], **named}]
    return pixels


@pytest.mark.parametrize(
    ("version", "axes", "letters"),
    [("0.1", None, "tczyx"), ("0.2", None, "tczyx"), ("0.3", ["c", "y", "x"], "cyx")],
)
def test_ome_zarr_without_calibration_is_read(tmp_path, version, axes, letters):
    pixels = write_old(tmp_path / "a.zarr", version, axes)
    image = open_image(tmp_path / "a.zarr", channel=None)
    assert (image.format, image.axes, image.pixel_size) == (f"OME-Zarr {version}", letters, {})
    np.testing.assert_array_equal(image.read(Region((0,) * image.ndim, image.shape)), pixels)


@pytest.mark.parametrize("version", ["0.6.dev1", "0.6", "1.0"])
def test_a_version_of_ome_zarr_that_is_not_read_is_named(tmp_path, version):
    group = zarr.open_group(str(tmp_path / "a.zarr"), mode="w", zarr_format=3)
    group.create_array("0", data=np.ones((24, 32), "u2"))
    multiscale = {"datasets": [{"path": "0"}], "coordinateSystems": [{"name": "physical"}]}
    group.attrs["ome"] = {"version": version, "multiscales": [multiscale]}
    with pytest.raises(ImageError, match=rf"0.1 to 0.3 are read, got version '{version}' in .*a.z"):
        open_image(tmp_path / "a.zarr")
    assert open_image(tmp_path / "a.zarr" / "0", axes="yx").shape == (24, 32)


@pytest.mark.parametrize(
    "name", ["a.tif", "a.png", "a.zarr", "a.lif", "a", "a.tif#1", "p.zarr/B/03/0", "a.ome.zarr.zip"]
)
def test_what_is_not_there_holds_no_images(tmp_path, name):
    with pytest.raises(ImageError, match=r"no image at .*; check the path"):
        list_images(tmp_path / name)


def test_what_is_not_there_on_another_machine_holds_no_images():
    with pytest.raises(ImageError, match=r"no image at 'memory://nowhere/a.png'; check the URL"):
        list_images("memory://nowhere/a.png")
