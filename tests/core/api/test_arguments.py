"""What is said in a call is what happens, or an error that names it."""

from __future__ import annotations

from functools import partial
from math import inf, nan

import numpy as np
import pytest
import tifffile

from patchworks_core import (
    ImageError,
    PlanError,
    auto_overlap,
    auto_tile_shape,
    convert_image,
    estimate_empty_tiles,
    expand_labels,
    fill_holes,
    filter_image,
    filter_sizes,
    image_statistics,
    label_relations,
    measure_objects,
    morphological_opening,
    open_image,
    process_lazily,
    relabel_sequential_zarr,
    segment_to_ome_zarr,
    segmentation_of,
    tile_process,
)
from patchworks_core.api import arguments
from patchworks_core.images.calibration import SizeLimits
from patchworks_core.machine import pools
from patchworks_core.machine.budget import Limit
from patchworks_core.machine.pools import Compute
from patchworks_core.operations.filters import maximum
from patchworks_core.tiles.grid import plan_grid
from patchworks_core.tiles.regions import Region
from tests.core.staging import label_components

CHANNELS = np.zeros((2, 64, 64), "u1")
CHANNELS[1, 10:20, 10:20] = 9
"""Only channel 1 has an object."""

OPENED = open_image(CHANNELS, axes="cyx")
PLANE = CHANNELS[1]


def pyramid(tmp_path):
    """An OME-Zarr with two levels, opened at level 0."""
    convert_image(open_image(np.ones((1024, 1024), "u1")), tmp_path / "a.ome.zarr")
    return open_image(tmp_path / "a.ome.zarr")


def test_an_open_image_is_segmented_in_the_channel_that_is_asked_for():
    segment = partial(tile_process, fn=label_components, tile_shape=32)
    assert segment(OPENED, channel=1).max() == 1
    assert segment(OPENED).max() == 0
    assert segment(open_image(CHANNELS, axes="cyx", channel=1)).max() == 1
    assert segment(open_image(CHANNELS, axes="cyx", channel=1), channel=0).max() == 0
    assert segment(OPENED, channel=None).shape == (2, 64, 64)


def test_other_functions_heed_channel_level_and_axes_of_an_open_image(tmp_path):
    assert estimate_empty_tiles(OPENED, 32, 0, channel=1).n_occupied == 1
    assert image_statistics(OPENED, channel=1).maximum == 9
    assert filter_image(OPENED, maximum(3), channel=1).max() == 9
    processed = process_lazily(OPENED, maximum(3))
    whole = Region((0, 0), (64, 64))
    assert open_image(processed, channel=1).read(whole).max() == 9
    assert open_image(OPENED, axes="tyx").axes == "tyx"
    image = pyramid(tmp_path)
    assert open_image(image, level=1).shape == (512, 512)
    assert tile_process(image, label_components, tile_shape=256, level=1).shape == (512, 512)
    for heeds_level in (partial(filter_sizes, min_size=1), fill_holes):
        assert heeds_level(image, level=1).shape == (512, 512)
    assert measure_objects(image, level=1)["area_pixels"][0].as_py() == 512 * 512
    related = label_relations(image, image, level=1).contingency
    assert related.num_rows == 1


def test_measured_channels_of_an_open_image_are_those_asked_for():
    columns = measure_objects(PLANE, image=OPENED, channels=1).column_names
    assert any(name.startswith("intensity_mean") for name in columns)


@pytest.mark.parametrize(
    ("asked", "message"),
    [
        ({"level": 7}, "no level 7"),
        ({"channel": 5}, "no channel 5"),
        ({"channel": "DAPI"}, "no channel 'DAPI'"),
        ({"axes": "yx"}, "one letter"),
    ],
)
def test_what_an_open_image_does_not_have_is_refused(asked, message):
    with pytest.raises(ImageError, match=message):
        open_image(OPENED, **asked)
    with pytest.raises(ImageError, match=message):
        tile_process(OPENED, label_components, tile_shape=32, **asked)


def test_an_open_image_stays_itself_where_nothing_else_is_asked():
    assert open_image(OPENED) is OPENED
    assert open_image(OPENED, channel=0, level=0) is OPENED


@pytest.mark.parametrize("share", [1 - 4e-9, 1 - 1e-12, 1.0, 1 + 1e-12, 1 + 4e-9])
@pytest.mark.parametrize("limit", ["min_size", "max_size"])
def test_a_size_in_micrometers_is_as_many_pixels_in_every_function(tmp_path, share, limit):
    path = tmp_path / "a.ome.tif"
    pixels = np.zeros((32, 32), "u1")
    pixels[:10, :10] = 1
    size = {axis: 0.325 for axis in ("PhysicalSizeX", "PhysicalSizeY")}
    unit = {f"{axis}Unit": "µm" for axis in size}
    tifffile.imwrite(path, pixels, ome=True, metadata={"axes": "YX", **size, **unit})
    limits = {limit: 100 * 0.325**2 * share}
    segmented = tile_process(
        path, label_components, tile_shape=32, size_unit="micrometers", **limits
    )
    filtered = filter_sizes(path, unit="micrometers", **limits)
    assert segmented.max() == filtered.max()


WRONG = {
    "nan": nan,
    "true": True,
    "text": "3",
    "below": -1,
}


@pytest.mark.parametrize("value", WRONG.values(), ids=WRONG)
@pytest.mark.parametrize(
    "call",
    [
        lambda v: tile_process(PLANE, label_components, tile_shape=32, min_size=v),
        lambda v: tile_process(PLANE, label_components, tile_shape=32, max_size=v),
        lambda v: tile_process(PLANE, label_components, tile_shape=32, min_iou=v),
        lambda v: tile_process(PLANE, label_components, tile_shape=32, connectivity=v),
        lambda v: tile_process(PLANE, label_components, tile_shape=32, max_workers=v),
        lambda v: tile_process(PLANE, label_components, tile_shape=32, overlap=v),
        lambda v: filter_sizes(PLANE, min_size=v),
        lambda v: filter_sizes(PLANE, max_size=v),
        lambda v: filter_sizes(PLANE, min_size=2, max_workers=v),
        lambda v: measure_objects(PLANE, max_workers=v),
        lambda v: fill_holes(PLANE, max_size=v),
        lambda v: expand_labels(PLANE, v),
        lambda v: morphological_opening(PLANE, v),
        lambda v: auto_overlap(v),
        lambda v: auto_tile_shape((64, 64), "u2", memory_bytes=v),
        lambda v: auto_tile_shape((64, 64), "u2", n_workers=v),
        lambda v: convert_image(PLANE, "memory://never/a.ome.zarr", levels=v),
        lambda v: convert_image(PLANE, "memory://never/b.ome.zarr", chunks=(v, v)),
        lambda v: filter_image(PLANE, maximum(3), max_workers=v),
        lambda v: image_statistics(PLANE, max_workers=v),
        lambda v: SizeLimits.of(open_image(PLANE), v, None, "pixels"),
    ],
)
def test_a_number_that_is_none_or_out_of_range_is_refused_in_words(call, value):
    with pytest.raises(PlanError, match="must|overlap"):
        call(value)


@pytest.mark.parametrize("value", [nan, inf, -inf, "a", True])
def test_a_threshold_of_emptiness_must_be_a_number(value):
    with pytest.raises(PlanError, match="threshold of empty tiles must be a finite number"):
        tile_process(PLANE, label_components, tile_shape=32, empty_threshold=value)
    with pytest.raises(PlanError, match="threshold of empty tiles must be a finite number"):
        estimate_empty_tiles(PLANE, 32, value)


@pytest.mark.parametrize("value", [1.5, nan, "0", True])
def test_a_level_must_be_a_whole_number(value):
    with pytest.raises(ImageError, match="level must be a whole number"):
        open_image(PLANE, level=value)


@pytest.mark.parametrize("value", [0, 1.5, "x", True])
def test_renumbering_takes_a_whole_number_of_workers(tmp_path, value):
    tile_process(PLANE, label_components, tile_shape=32, write_to=tmp_path / "g.zarr")
    with pytest.raises(PlanError, match="number of workers must be a whole number"):
        relabel_sequential_zarr(tmp_path / "g.zarr", in_place=True, n_workers=value)


def test_numbers_of_numpy_are_numbers():
    labels = tile_process(
        PLANE,
        label_components,
        tile_shape=np.int64(32),
        overlap=np.int32(2),
        min_size=np.float32(2),
        min_iou=np.float64(0.5),
        max_workers=np.int8(1),
    )
    assert labels.max() == 1


@pytest.mark.parametrize(("shape", "tiles"), [("auto", 1), (-1, 1), (32, 4)])
def test_a_function_that_chooses_the_tile_may_answer_in_all_the_ways_a_caller_may(shape, tiles):
    seen = []
    labels = tile_process(
        PLANE,
        lambda tile: seen.append(tile.shape) or label_components(tile),
        tile_shape=lambda shape_of_image, dtype: shape,
        max_workers=1,
    )
    assert (labels.max(), len(seen)) == (1, tiles)


def test_a_function_that_chooses_the_tile_may_leave_it_to_the_chunks(tmp_path):
    convert_image(PLANE, tmp_path / "a.ome.zarr", chunks=(32, 32), shards=None)
    labels = tile_process(
        tmp_path / "a.ome.zarr", label_components, tile_shape=lambda shape, dtype: None
    )
    assert labels.max() == 1
    with pytest.raises(PlanError, match="another function"):
        tile_process(PLANE, label_components, tile_shape=lambda shape, dtype: len)


def test_an_image_of_one_axis_is_refused_before_any_tile_is_segmented(tmp_path):
    called = []
    segmentation = segmentation_of(lambda tile: called.append(1) or label_components(tile))
    with pytest.raises(PlanError, match="OME-Zarr needs two or three spatial axes, got 'x'"):
        segment_to_ome_zarr(
            open_image(PLANE.ravel()), segmentation, tmp_path / "a.ome.zarr", tile_shape=32
        )
    assert not called
    assert not list(tmp_path.iterdir())


def test_tiles_that_were_chosen_for_the_memory_are_not_refused_by_a_later_look(monkeypatch):
    left = [10**8]

    def granted() -> Limit:
        left[0] = int(left[0] * 0.9)  # threads and libraries take their share meanwhile
        return Limit(left[0], "a test")

    for module in (pools, arguments):
        monkeypatch.setattr(module, "granted_memory_bytes", granted)
    pixels = np.zeros((3000, 3000), "u2")
    pixels[::50] = 1
    labels = tile_process(pixels, label_components, tile_shape="auto", workers="threads")
    assert labels.max() == 60


def test_what_ran_alone_runs_on_alone_though_it_took_more_than_is_to_be_used():
    grid = plan_grid("yx", (512, 512), tile_shape=256)
    compute = Compute(memory=Limit(10**8, "a test"))
    with compute.open(grid, np.dtype("u2"), measured_bytes=10**9) as pool:
        assert pool.window == pools.WINDOW_PER_WORKER


def test_the_tile_that_runs_alone_has_the_memory_that_was_planned_with(monkeypatch):
    monkeypatch.setattr(pools, "granted_memory_bytes", lambda: Limit(1, "a later look"))
    alone = Compute(memory=Limit(10**8, "a test")).alone()
    assert (alone.memory, alone.max_workers) == (Limit(10**8, "a test"), 1)
    with alone.open(plan_grid("yx", (512, 512), tile_shape=256), np.dtype("u2")) as pool:
        assert pool.window == pools.WINDOW_PER_WORKER
