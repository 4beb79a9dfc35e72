"""What is read is what the file says it has: damaged, changed and cluttered images."""

from __future__ import annotations

import os
import re
import uuid

import dask.array as da
import fsspec
import numpy as np
import pytest
import tifffile
import zarr

from patchworks_core import ImageError, convert_image, open_image, tile_process
from patchworks_core.images.readers import zarr_chunks
from patchworks_core.tiles.regions import Region

STACK = np.random.default_rng(0).integers(0, 3000, (20, 64, 64)).astype("u2")

DIALECTS = {
    "imagej": {"imagej": True, "metadata": {"axes": "ZYX"}},
    "shaped": {"compression": "zlib"},
    "shaped in one piece": {},
    "plain": {"compression": "zlib", "metadata": None, "photometric": "minisblack"},
    "plain in one piece": {"metadata": None, "photometric": "minisblack"},
    "ome": {"ome": True, "compression": "zlib", "metadata": {"axes": "ZYX"}},
    "ome in one piece": {"ome": True, "metadata": {"axes": "ZYX"}},
    "tiled": {"ome": True, "tile": (32, 32), "metadata": {"axes": "ZYX"}},
    "bigtiff": {"bigtiff": True, "compression": "zlib"},
}


@pytest.mark.parametrize("share", [0.3, 0.5, 0.9, 0.999])
@pytest.mark.parametrize("dialect", DIALECTS)
def test_a_stack_of_which_the_end_is_missing_is_refused(tmp_path, dialect, share):
    path = tmp_path / "a.tif"
    tifffile.imwrite(path, STACK, **DIALECTS[dialect])
    axes = None if dialect in ("imagej", "ome", "ome in one piece", "tiled") else "zyx"
    np.testing.assert_array_equal(
        open_image(path, axes=axes).read(Region((0, 0, 0), STACK.shape)), STACK
    )
    os.truncate(path, int(path.stat().st_size * share))
    with pytest.raises(ImageError, match=r"a\.tif"):
        open_image(path, axes=axes)


@pytest.mark.parametrize(
    ("dialect", "message"),
    [
        ("imagej", "images= of ImageJ says 20 planes, and 1 are there"),
        ("shaped", r"shape \(20, 64, 64\) of its description says 20 planes, and 1 are there"),
        ("shaped in one piece", r"its pixels end at byte \d+, and it has \d+|invalid page offset"),
        ("plain", "invalid page offset"),
        ("ome", "invalid"),
    ],
)
def test_a_damaged_stack_is_refused_with_what_is_missing(tmp_path, dialect, message):
    path = tmp_path / "a.tif"
    tifffile.imwrite(path, STACK, **DIALECTS[dialect])
    os.truncate(path, path.stat().st_size // 2)
    with pytest.raises(ImageError, match=message) as error:
        open_image(path, axes=None if dialect in ("imagej", "ome") else "zyx")
    assert "damaged or not complete" in str(error.value)
    assert "copy it again" in str(error.value)


def test_the_planes_that_ome_xml_counts_must_be_there(tmp_path):
    path = tmp_path / "a.ome.tif"
    tifffile.imwrite(path, STACK[:4], metadata={"axes": "ZYX"}, compression="zlib")
    content = path.read_bytes()
    assert content.count(b'SizeZ="4"') == 1
    path.write_bytes(content.replace(b'SizeZ="4"', b'SizeZ="9"'))
    with pytest.raises(ImageError, match="damaged or not complete"):
        open_image(path)


def write_set(folder, planes):
    """Write an OME-TIFF with a file per plane."""
    ids = [uuid.uuid4() for _ in planes]
    data = "".join(
        f'<TiffData FirstZ="{i}" FirstT="0" FirstC="0" IFD="0" PlaneCount="1">'
        f'<UUID FileName="z{i}.ome.tif">urn:uuid:{ids[i]}</UUID></TiffData>'
        for i in range(len(planes))
    )
    height, width = planes[0].shape
    for i, plane in enumerate(planes):
        xml = (
            '<?xml version="1.0"?>'
            '<OME xmlns="http://www.openmicroscopy.org/Schemas/OME/2016-06" '
            f'UUID="urn:uuid:{ids[i]}"><Image ID="Image:0"><Pixels ID="Pixels:0" '
            f'DimensionOrder="XYZCT" Type="uint16" SizeX="{width}" SizeY="{height}" '
            f'SizeZ="{len(planes)}" SizeC="1" SizeT="1">'
            f'<Channel ID="Channel:0:0" SamplesPerPixel="1"/>{data}</Pixels></Image></OME>'
        )
        path = folder / f"z{i}.ome.tif"
        tifffile.imwrite(path, plane, description=xml.encode(), metadata=None, compression="zlib")


def test_an_image_in_several_files_is_read_from_all_of_them(tmp_path):
    write_set(tmp_path, STACK[:3])
    image = open_image(tmp_path / "z0.ome.tif")
    np.testing.assert_array_equal(image.read(Region((0, 0, 0), (3, 64, 64))), STACK[:3])


@pytest.mark.parametrize("number", [0, 1, 2])
def test_every_file_of_an_image_counts_for_what_it_is(tmp_path, number):
    write_set(tmp_path, STACK[:3])
    before = open_image(tmp_path / "z0.ome.tif").fingerprint
    assert open_image(tmp_path / "z0.ome.tif").fingerprint == before
    os.utime(tmp_path / f"z{number}.ome.tif", ns=(0, 0))
    assert open_image(tmp_path / "z0.ome.tif").fingerprint != before


@pytest.mark.parametrize("damage", ["lost", "half copied"])
def test_a_missing_file_of_an_image_is_not_a_plane_of_zeros(tmp_path, damage):
    write_set(tmp_path, STACK[:3])
    lost = tmp_path / "z2.ome.tif"
    if damage == "lost":
        lost.unlink()
    else:
        os.truncate(lost, lost.stat().st_size // 2)
    with pytest.raises(ImageError, match=r"'.*z0\.ome\.tif' is damaged or not complete"):
        open_image(tmp_path / "z0.ome.tif")


def write_grown(path, zarr_format):
    """Write an OME-Zarr whose consolidated metadata are older than its array."""
    group = zarr.open_group(str(path), mode="w", zarr_format=zarr_format)
    separator = {"name": {2: "v2", 3: "default"}[zarr_format], "separator": "/"}
    array = group.create_array(
        "0", data=np.full((64, 64), 5, "u2"), chunks=(32, 32), chunk_key_encoding=separator
    )
    scale = [{"type": "scale", "scale": [1.0, 1.0]}]
    multiscale = {
        "axes": [{"name": name, "type": "space"} for name in "yx"],
        "datasets": [{"path": "0", "coordinateTransformations": scale}],
    }
    if zarr_format == 2:
        group.attrs["multiscales"] = [{"version": "0.4", "name": "a", **multiscale}]
    else:
        group.attrs["ome"] = {"version": "0.5", "multiscales": [{"name": "a", **multiscale}]}
    zarr.consolidate_metadata(group.store)
    array.resize((128, 64))
    array[64:] = 7
    return path


@pytest.mark.parametrize("zarr_format", [2, 3])
@pytest.mark.filterwarnings("ignore:Consolidated metadata is currently not part")
def test_metadata_are_those_of_the_array_and_not_of_an_older_copy(tmp_path, zarr_format):
    path = write_grown(tmp_path / "a.zarr", zarr_format)
    whole = np.repeat(np.array([5, 7], "u2"), 64)[:, None].repeat(64, axis=1)
    for source in (path, zarr.open_group(str(path), mode="r")):
        image = open_image(source)
        np.testing.assert_array_equal(image.read(Region((0, 0), (128, 64))), whole)
    convert_image(path, tmp_path / "b.ome.zarr")
    assert open_image(tmp_path / "b.ome.zarr").shape == (128, 64)


CLUTTER = [
    *(".DS_Store", "c/.DS_Store", "Thumbs.db", "c/0/._0", "__MACOSX/c/0", "desktop.ini"),
    *("c/0/1.part", "c/0/1.crdownload", "labels/cells/zarr.json", "labels/cells/0/c/0/0"),
]


@pytest.mark.parametrize("name", CLUTTER)
def test_clutter_beside_the_pixels_makes_no_other_image(tmp_path, name):
    zarr.create_array(str(tmp_path / "a.zarr"), data=STACK[0], chunks=(32, 32))
    before = open_image(tmp_path / "a.zarr").fingerprint
    file = tmp_path / "a.zarr" / name
    file.parent.mkdir(parents=True, exist_ok=True)
    file.write_bytes(b"x")
    assert open_image(tmp_path / "a.zarr").fingerprint == before


def test_a_chunk_that_changed_makes_another_image(tmp_path):
    zarr.create_array(str(tmp_path / "a.zarr"), data=STACK[0], chunks=(32, 32))
    before = open_image(tmp_path / "a.zarr").fingerprint
    os.utime(tmp_path / "a.zarr" / "c" / "0" / "1", ns=(0, 0))
    assert open_image(tmp_path / "a.zarr").fingerprint != before


def test_a_lazy_array_must_compute_the_type_that_it_declares():
    pixels = da.from_array(STACK[0], chunks=32)
    lying = pixels.map_blocks(lambda block: block / 3000, dtype=pixels.dtype)
    with pytest.raises(ImageError, match=r"declares, uint16, got float64 at .* in a Dask array"):
        open_image(lying).read(Region((0, 0), (8, 8)))


# chunks


def write_array(path, zarr_format=3, **options):
    return zarr.create_array(
        str(path), data=STACK[0] + 1, chunks=(16, 16), zarr_format=zarr_format, **options
    )


@pytest.mark.parametrize("zarr_format", [2, 3])
@pytest.mark.parametrize("separator", ["/", "."])
def test_files_of_which_none_is_a_chunk_are_no_image(tmp_path, zarr_format, separator):
    encoding = {"name": {2: "v2", 3: "default"}[zarr_format], "separator": separator}
    write_array(tmp_path / "a.zarr", zarr_format, chunk_key_encoding=encoding)
    assert open_image(tmp_path / "a.zarr").gaps is None
    metadata = tmp_path / "a.zarr" / {2: ".zarray", 3: "zarr.json"}[zarr_format]
    other = {"/": ".", ".": "/"}[separator]
    name = {2: "dimension_separator", 3: "separator"}[zarr_format]
    text = metadata.read_text().replace(f'"{name}": "{separator}"', f'"{name}": "{other}"')
    metadata.write_text(text)
    with pytest.raises(ImageError, match=r"must be chunks of its own, such as .* no chunk in .*a"):
        open_image(tmp_path / "a.zarr")
    metadata.write_text(text.replace(f'"{name}": "{other}"', f'"{name}": "{separator}"'))
    np.testing.assert_array_equal(
        open_image(tmp_path / "a.zarr").read(Region((0, 0), (64, 64))), STACK[0] + 1
    )


def test_few_files_are_looked_at_where_the_first_is_a_chunk(tmp_path, monkeypatch):
    write_array(tmp_path / "a.zarr")
    n_asked = []
    is_own = zarr_chunks._is_own
    monkeypatch.setattr(zarr_chunks, "_is_own", lambda name: n_asked.append(1) or is_own(name))
    open_image(tmp_path / "a.zarr")
    assert len(n_asked) <= 5  # folders and files on the way to the first chunk


@pytest.mark.parametrize(
    ("lost", "words", "is_suspicious"),
    [
        (["1/1"], "1 of 16 chunks of .*a.zarr' are not stored, 1 of them among stored ones", True),
        (["0/0", "0/1", "1/0", "1/1"], "4 of 16 chunks of .*a.zarr' are not stored; they", False),
        (["0/0"], "1 of 16 chunks of .* are not stored, 1 of them among", True),
        (None, "16 of 16 chunks of .* are not stored; they are read as .*0", True),
    ],
)
def test_chunks_that_are_not_stored_are_told_of_with_their_number(
    tmp_path, lost, words, is_suspicious
):
    write_array(tmp_path / "a.zarr")
    for path in [p for p in (tmp_path / "a.zarr" / "c").rglob("*") if p.is_file()]:
        if lost is None or path.relative_to(tmp_path / "a.zarr" / "c").as_posix() in lost:
            path.unlink()
    gaps = open_image(tmp_path / "a.zarr").gaps
    assert re.search(words, gaps.text)
    assert gaps.is_suspicious == is_suspicious


@pytest.mark.parametrize(
    ("lost", "words", "is_suspicious"),
    [
        ([(0, 5)], "1 of 32 strips or tiles of .*a.tif' are not stored, 1 of them among", True),
        ([(1, 0), (1, 1), (1, 4), (1, 5)], "4 of 32 .* are not stored; they are read as 0", False),
        ([(page, n) for page in (0, 1) for n in range(16)], "32 of 32 .* are not stored", True),
    ],
)
def test_tiles_of_a_tiff_without_bytes_are_told_of(tmp_path, lost, words, is_suspicious):
    path = tmp_path / "a.tif"
    tifffile.imwrite(path, STACK[:2], tile=(16, 16), compression="zlib", metadata={"axes": "ZYX"})
    assert open_image(path, axes="zyx").gaps is None
    with tifffile.TiffFile(path, mode="r+") as tif:
        for page in (0, 1):
            tag = tif.pages[page].tags["TileByteCounts"]
            tag.overwrite([0 if (page, i) in lost else n for i, n in enumerate(tag.value)])
    gaps = open_image(path, axes="zyx").gaps
    assert re.search(words, gaps.text)
    assert gaps.is_suspicious == is_suspicious


@pytest.mark.parametrize("make", [np.asanyarray, da.from_array], ids=["numpy", "dask"])
def test_a_mask_is_not_dropped(make):
    masked = np.ma.masked_less(STACK[0], 100)
    with pytest.raises(ImageError, match=r"a value at every pixel.*filled\("):
        open_image(make(masked))
    assert np.array_equal(open_image(masked.filled(0)).pixels, masked.filled(0))
    assert open_image(np.ma.array(STACK[0])).gaps is None  # masks nothing


def test_holes_are_told_of_once_where_an_image_is_segmented(tmp_path):
    write_array(tmp_path / "a.zarr")
    (tmp_path / "a.zarr" / "c" / "1" / "1").unlink()
    with pytest.warns(UserWarning, match="1 of 16 chunks of .* are not stored") as told:
        tile_process(
            tmp_path / "a.zarr",
            lambda tile: np.zeros(tile.shape, "i4"),
            tile_shape=32,
            max_workers=1,
        )
    assert len(told) == 1


def test_shards_are_counted_as_stored_objects_and_also_in_a_remote_store(tmp_path):
    array = write_array(tmp_path / "a.zarr", shards=(32, 32))
    assert array.shards == (32, 32)
    assert open_image(tmp_path / "a.zarr").gaps is None
    fs = fsspec.filesystem("memory")
    for path in (tmp_path / "a.zarr").rglob("*"):
        if path.is_file() and path.as_posix()[-3:] != "1/1":
            fs.pipe_file(f"/gaps/{path.relative_to(tmp_path)}", path.read_bytes())
    assert "1 of 4 chunks" in open_image("memory://gaps/a.zarr").gaps.text


def test_more_chunks_than_can_be_listed_in_time_are_not_counted(tmp_path):
    shape = (1_100_000,)
    array = zarr.create_array(str(tmp_path / "a.zarr"), shape=shape, chunks=(1,), dtype="u1")
    array[0] = 1
    assert open_image(tmp_path / "a.zarr").gaps is None
