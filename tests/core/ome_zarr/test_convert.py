"""Converting: pixels, calibration and names as in the source, and valid OME-Zarr 0.4 and 0.5."""

from __future__ import annotations

import tracemalloc

import imageio.v3 as iio
import numpy as np
import ome_zarr_models
import pytest
import tifffile
import zarr
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from zarr.storage import FsspecStore

from patchworks_core.errors import PlanError
from patchworks_core.files.storage import open_array
from patchworks_core.images.image import open_image
from patchworks_core.machine.workers import Workers
from patchworks_core.ome_zarr import pyramid
from patchworks_core.ome_zarr.averaging import local_mean
from patchworks_core.ome_zarr.convert import convert_image
from patchworks_core.ome_zarr.layout import UNIT_BYTES, layout_of
from tests.core.images.test_image import assert_reads, pixels_of, write_ome_zarr
from tests.core.oracles import examples


def mean_by_boxes(array, step):
    """Average box by box, the slow way."""
    means = np.empty([-(-n // s) for n, s in zip(array.shape, step, strict=True)])
    for index in np.ndindex(*means.shape):
        box = tuple(slice(i * s, (i + 1) * s) for i, s in zip(index, step, strict=True))
        means[index] = array[box].astype(np.float64).mean()
    return np.rint(means).astype(array.dtype) if array.dtype.kind in "iu" else means


@pytest.fixture
def source(tmp_path):
    """A calibrated OME-TIFF with time, channels and z, whose sizes no chunk divides."""
    array = pixels_of((2, 3, 5, 70, 45))
    metadata = {
        "axes": "TCZYX",
        "Channel": {"Name": ["dna", "er", "golgi"]},
        **{"PhysicalSizeX": 0.5, "PhysicalSizeY": 0.5, "PhysicalSizeZ": 2.0, "TimeIncrement": 30.0},
    }
    tifffile.imwrite(tmp_path / "a.ome.tif", array, metadata=metadata, tile=(16, 16))
    return tmp_path / "a.ome.tif", array


@pytest.fixture
def small_levels(monkeypatch):
    """Pyramids that go on to 16 pixels."""
    monkeypatch.setattr("patchworks_core.ome_zarr.pyramid.SMALLEST_LEVEL", 16)


@pytest.mark.parametrize("version", ["0.5", "0.4"])
def test_everything_of_the_source_is_kept(source, tmp_path, version, small_levels):
    path, array = source
    chunks = (1, 1, 2, 16, 16)
    shards = (1, 1, 4, 32, 32) if version == "0.5" else None
    done = []
    written = convert_image(
        path,
        tmp_path / "b.ome.zarr",
        chunks=chunks,
        shards=shards,
        version=version,
        workers=Workers(2),
        progress=lambda *state: done.append(state),
    )
    expected = [(2, 3, 5, 70, 45), (2, 3, 5, 35, 23), (2, 3, 5, 18, 12), (2, 3, 3, 9, 6)]
    assert written.shapes == expected
    assert done[-1] == ("level 3", 6, 6)
    image = open_image(written.path, channel=None)
    original = open_image(path, channel=None)
    assert image.format == f"OME-Zarr {version}"
    assert (image.channel_names, image.unit) == (original.channel_names, original.unit)
    assert image.pixel_size == original.pixel_size
    assert image.chunks == chunks
    assert_reads(image, array)
    stored = zarr.open_array(written.path / "0", mode="r")
    assert stored.shards == shards
    above = array
    for level, step in enumerate([(1, 1, 1, 2, 2), (1, 1, 1, 2, 2), (1, 1, 2, 2, 2)], start=1):
        above = mean_by_boxes(above, step)
        lower = open_image(written.path, channel=None, level=level)
        np.testing.assert_array_equal(lower.pixels[...], above)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["a.ome.tif", "b.ome.zarr"]


def test_worker_processes_write_the_same_files(tmp_path, small_levels):
    tifffile.imwrite(tmp_path / "a.tif", pixels_of((40, 60)), tile=(16, 16))
    options = {"chunks": (16, 16), "shards": (32, 32), "levels": 2}
    folders = [tmp_path / "threads" / "a.zarr", tmp_path / "processes" / "a.zarr"]
    for folder in folders:
        convert_image(tmp_path / "a.tif", folder, workers=Workers(1, folder.parent.name), **options)
    first, second = ({p.relative_to(f): p.read_bytes() for p in files(f)} for f in folders)
    assert first == second


def files(folder):
    return [path for path in folder.rglob("*") if path.is_file()]


@pytest.mark.parametrize("version", ["0.5", "0.4"])
def test_what_is_written_is_valid_and_lies_where_the_source_lies(tmp_path, version, small_levels):
    write_ome_zarr(tmp_path / "a", pixels_of((3, 40, 60)), "cyx", version="0.4", shift=[0, 5, 7])
    written = convert_image(tmp_path / "a", tmp_path / "b.zarr", version=version)
    model = ome_zarr_models.open_ome_zarr(zarr.open_group(written.path, mode="r"))
    assert (type(model).__name__, model.ome_zarr_version) == ("Image", version)
    for level in range(3):
        image = open_image(written.path, level=level)
        size = {"y": 0.5 * 2**level, "x": 0.25 * 2**level}
        assert image.pixel_size == size
        # The first box reaches from the outer edge of the first pixel, whatever the level.
        edges = {axis: image.translation[axis] - size[axis] / 2 for axis in "yx"}
        assert edges == {"y": 5 - 0.25, "x": 7 - 0.125}
    attributes = zarr.open_group(written.path, mode="r").attrs.asdict()
    omero = attributes.get("ome", attributes)["omero"]
    assert [c["label"] for c in omero["channels"]] == ["channel 0", "channel 1", "channel 2"]
    window = omero["channels"][0]["window"]
    assert (window["min"], window["max"]) == (0, 65535)
    assert 0 <= window["start"] < window["end"] <= 255


def test_a_photograph_is_red_green_and_blue(tmp_path):
    array = pixels_of((40, 60, 3), "u1")
    iio.imwrite(tmp_path / "a.png", array)
    written = convert_image(tmp_path / "a.png", tmp_path / "b.ome.zarr")
    assert_reads(open_image(written.path, channel=None), array.transpose(2, 0, 1))
    channels = zarr.open_group(written.path).attrs["ome"]["omero"]["channels"]
    assert [c["color"] for c in channels] == ["FF0000", "00FF00", "0000FF"]


@pytest.mark.parametrize("dtype", ["?", "u1", "i2", "u4", "u8", "i8", "f4", "f8"])
def test_every_type_of_pixel_survives(tmp_path, dtype):
    array = pixels_of((20, 30)).astype(dtype)
    written = convert_image(array, tmp_path / "a.ome.zarr")
    assert_reads(open_image(written.path), array)


@settings(max_examples=examples(20))
@given(
    array=hnp.arrays(
        st.sampled_from(["u1", "i2", "u2", "i4", "u4"]),
        hnp.array_shapes(min_dims=2, max_dims=3, max_side=7),
    ),
    data=st.data(),
)
def test_a_mean_is_that_of_the_box_rounded(array, data):
    step = data.draw(st.tuples(*[st.sampled_from([1, 2])] * array.ndim))
    np.testing.assert_array_equal(local_mean(array, step), mean_by_boxes(array, step))


def test_means_neither_overflow_nor_lose_their_type():
    for dtype in ("u1", "i8", "u8", "f4"):
        largest = np.finfo(dtype).max if dtype == "f4" else np.iinfo(dtype).max
        means = local_mean(np.full((4, 4), largest, dtype), (2, 2))
        assert means.dtype == np.dtype(dtype)
        assert means.min() == largest
    assert local_mean(np.array([[True, True], [True, False]]), (2, 2)).tolist() == [[True]]


# layout


def test_shards_are_whole_chunks_and_units_cover_the_chunks_of_the_source():
    volume = open_image(zarr.zeros((400, 2000, 2000), chunks=(1, 2000, 2000), dtype="u2"))
    layout = layout_of(volume, None, "auto")
    assert layout.chunks == (16, 256, 256)
    assert layout.shards == (32, 1024, 1024)
    assert layout.unit[1:] == (2048, 2048)
    for n, unit, shard, chunk in zip(
        volume.shape, layout.unit, layout.shards, layout.chunks, strict=True
    ):
        assert unit % shard == shard % chunk == 0
        assert layout.grid("zyx").tile_shape[0] <= n
    assert np.prod(layout.unit) * 2 <= UNIT_BYTES
    assert layout.peak_bytes(2) == 2 * layout.peak_bytes(1)


def test_memory_does_not_grow_with_the_image():
    peaks = set()
    for side in (20_000, 200_000):
        image = open_image(zarr.zeros((side, side), chunks=(512, 512), dtype="u2"))
        peaks.add(layout_of(image, None, "auto").peak_bytes(4))
    assert len(peaks) == 1
    assert peaks.pop() <= 4 * 4 * (1 << 26)


def test_memory_stays_below_what_is_reckoned_and_below_the_image(tmp_path, monkeypatch):
    # What is written is read again in pieces, which are a constant beside the pixels.
    monkeypatch.setattr("patchworks_core.files.written._PIECE", 1 << 16)
    source = zarr.create_array({}, shape=(3000, 3000), chunks=(250, 250), dtype="u2")
    source[...] = pixels_of((3000, 3000))
    image = open_image(source)
    convert_image(image, tmp_path / "warm.zarr", levels=2, chunks=(250, 250), shards=(500, 500))
    tracemalloc.start()
    try:
        written = convert_image(image, tmp_path / "a.zarr", chunks=(250, 250), shards=(500, 500))
        _, peak = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()
    assert written.peak_bytes == 4 * 500 * 500 * 2
    assert peak < written.peak_bytes + 2**21 < 3000 * 3000 * 2


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"chunks": (8,)}, r"chunks needs one size per axis of 'cyx', got \(8,\)"),
        ({"chunks": (2, 8, 8)}, r"hold one index of axis 'c', got 2"),
        ({"chunks": (1, 8, 8), "shards": (1, 12, 16)}, r"whole chunks, got \(1, 12, 16\)"),
        ({"version": "0.4", "shards": (1, 8, 8), "chunks": (1, 8, 8)}, r"0\.4 has no shards"),
        ({"version": "0.9"}, r"version must be '0\.5' or '0\.4', got '0\.9'"),
    ],
)
def test_what_makes_no_ome_zarr_is_refused(tmp_path, options, message):
    image = open_image(pixels_of((2, 20, 30)), axes="cyx", channel=None)
    with pytest.raises(PlanError, match=message):
        convert_image(image, tmp_path / "a.zarr", **options)
    assert not list(tmp_path.iterdir())


def test_one_spatial_axis_is_no_image(tmp_path):
    with pytest.raises(PlanError, match="needs two or three spatial axes, got 'x'"):
        convert_image(np.zeros(9), tmp_path / "a.zarr")


# what is at the target already


def test_nothing_is_replaced_unasked_and_the_source_never(tmp_path):
    array = pixels_of((20, 30))
    written = convert_image(array, tmp_path / "a.ome.zarr")
    for image in (written.path, written.path / "0"):
        with pytest.raises(PlanError, match="never written over what it is made from"):
            convert_image(open_image(image), written.path, overwrite=True)
    assert_reads(open_image(written.path), array)
    convert_image(array[:5], written.path)
    assert_reads(open_image(written.path), array[:5])
    open_array(written.path / "0", mode="r+")[0, 0] = 999
    with pytest.raises(PlanError, match=r"changed since .* pass overwrite=True"):
        convert_image(array, written.path)
    assert open_array(written.path / "0")[0, 0] == 999
    convert_image(array, written.path, overwrite=True)
    assert_reads(open_image(written.path), array)


@pytest.mark.parametrize("where", ["local", "memory"])
@pytest.mark.parametrize("level", [0, 1])
def test_an_image_opened_as_a_group_is_not_converted_onto_itself(tmp_path, where, level):
    name = f"{tmp_path.name}{level}.zarr"
    target = f"memory://itself/{name}" if where == "memory" else str(tmp_path / name)
    array = pixels_of((600, 700))
    convert_image(array, target)
    store = FsspecStore.from_url(target) if where == "memory" else target
    group = zarr.open_group(store, mode="r")
    for source in (group, open_image(group, level=level, channel=None), group["0"]):
        with pytest.raises(PlanError, match="never written over what it is made from"):
            convert_image(source, target, overwrite=True)
    assert_reads(open_image(target), array)


def test_of_two_calls_on_one_target_one_works_and_the_other_is_told(tmp_path):
    first, second = pixels_of((600, 700)), np.zeros((600, 700), "u2")
    refused = []

    def meanwhile(*_):
        if not refused:
            with pytest.raises(PlanError, match="another one is at it"):
                convert_image(second, tmp_path / "a.zarr", overwrite=True)
            refused.append(True)

    convert_image(first, tmp_path / "a.zarr", progress=meanwhile)
    assert refused
    assert_reads(open_image(tmp_path / "a.zarr"), first)


def test_the_old_image_stands_until_the_new_one_is_whole(tmp_path, monkeypatch):
    array = pixels_of((600, 700))
    convert_image(array, tmp_path / "a.zarr")
    with monkeypatch.context() as patch:
        patch.setattr(pyramid.LevelTask, "__call__", lambda *_: 1 / 0)
        with pytest.raises(RuntimeError, match="writing level 1 failed"):
            convert_image(array + 1, tmp_path / "a.zarr")
    assert_reads(open_image(tmp_path / "a.zarr"), array)
    assert [p.name for p in tmp_path.iterdir()] == ["a.zarr"]


@pytest.mark.parametrize("where", ["local", "memory"])
def test_a_call_that_fails_midway_leaves_no_image_and_can_be_repeated(tmp_path, monkeypatch, where):
    target = f"memory://convert/{tmp_path.name}.zarr" if where == "memory" else tmp_path / "a.zarr"
    array = pixels_of((600, 700))
    with monkeypatch.context() as patch:
        patch.setattr(pyramid.LevelTask, "__call__", lambda *_: 1 / 0)
        with pytest.raises(RuntimeError, match="writing level 1 failed: .*: ZeroDivisionError"):
            convert_image(array, target)
    with pytest.raises(ValueError, match="no image|no Zarr array|without OME-Zarr"):
        open_image(target)
    written = convert_image(array, target, levels=2)
    assert len(written.shapes) == 2
    assert_reads(open_image(target), array)
    assert open_image(target).n_levels == 2


def test_a_level_of_one_resolution_is_a_pyramid_of_one(tmp_path):
    written = convert_image(pixels_of((600, 700)), tmp_path / "a.zarr", levels=1)
    assert written.shapes == [(600, 700)]
    assert open_image(written.path).n_levels == 1
