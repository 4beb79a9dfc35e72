"""Label images changed tile by tile, against the same done to the whole image at once."""

from __future__ import annotations

import inspect
import tempfile
from concurrent.futures import Executor, Future
from contextlib import nullcontext

import cloudpickle
import dask.array as da
import numpy as np
import pytest
import zarr
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import ndimage
from skimage.segmentation import expand_labels as expand_whole

from patchworks_core import ImageError, PlanError
from patchworks_core.labels.measurements import measure_objects
from patchworks_core.labels.postprocess import (
    expand_labels,
    fill_holes,
    filter_sizes,
    morphological_opening,
)
from patchworks_core.labels.relations import label_relations
from patchworks_core.labels.source import LabelSource
from patchworks_core.machine.workers import Workers
from patchworks_core.ome_zarr.metadata import Levels, label_attributes
from tests.core.oracles import examples

SHAPES = {"yx": (17, 14), "zyx": (4, 9, 8), "tyx": (2, 12, 9), "tczyx": (2, 1, 3, 7, 6)}
SEEDS = st.integers(0, 2**32 - 1)


def patchwork(seed, shape, n_ids=4, density=0.6):
    """Touching and lonely objects with holes, of sparse ids."""
    rng = np.random.default_rng(seed)
    coarse = rng.integers(1, n_ids + 1, [n // 3 + 1 for n in shape])
    coarse[rng.random(coarse.shape) > density] = 0
    for axis in range(len(shape)):
        coarse = coarse.repeat(3, axis=axis)
    labels = coarse[tuple(slice(n) for n in shape)]
    labels[rng.random(shape) < 0.1] = 0
    return np.array([0, 3, 11, 12, 700, 70_000, 5])[labels].astype("int32")


def planes(labels, axes):
    """Yield the part of labels at each time and channel, spatial axes only."""
    n_first = len(axes.replace("z", "").replace("y", "").replace("x", ""))
    for index in np.ndindex(labels.shape[:n_first]):
        yield index, labels[index]


def per_plane(function, labels, axes):
    result = np.zeros(labels.shape, np.int64)
    for index, plane in planes(labels, axes):
        result[index] = function(plane)
    return result


@st.composite
def tiled_labels(draw):
    axes = draw(st.sampled_from(sorted(SHAPES)))
    shape = SHAPES[axes]
    n_spatial = len([a for a in axes if a in "zyx"])
    tiles = draw(st.tuples(*[st.integers(3, 7)] * n_spatial))
    return axes, patchwork(draw(SEEDS), shape), (1,) * (len(axes) - n_spatial) + tiles


@pytest.fixture(autouse=True)
def temporary_folder(tmp_path, monkeypatch):
    folder = tmp_path / "temporary"
    folder.mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(folder))
    return folder


# --- holes ---------------------------------------------------------------------------------------


def filled_whole(labels, max_size=None):
    """Fill holes by their definition, one component after the other."""
    components, n = ndimage.label(labels == 0)
    result = labels.copy()
    for number in range(1, n + 1):
        hole = components == number
        thick = [axis for axis in range(labels.ndim) if labels.shape[axis] > 1]
        ends = [np.take(hole, (0, -1), axis=axis).any() for axis in thick]
        beside = set(labels[ndimage.binary_dilation(hole) & ~hole].tolist())
        if not any(ends) and len(beside) == 1 and hole.sum() <= (max_size or np.inf):
            result[hole] = beside.pop()
    return result


@settings(max_examples=examples(4))
@given(case=tiled_labels(), max_size=st.sampled_from([None, 2]))
def test_holes_are_filled_as_in_the_whole_image(case, max_size):
    axes, labels, tile_shape = case
    filled = fill_holes(labels, axes=axes, tile_shape=tile_shape, max_size=max_size)
    whole = per_plane(lambda plane: filled_whole(plane, max_size), labels, axes)
    np.testing.assert_array_equal(filled, whole)
    assert filled.dtype == np.int32


def test_a_hole_of_many_tiles_is_filled_by_the_one_ring_around_it():
    labels = np.zeros((22, 19), "uint16")
    labels[2:20, 2:17] = 9
    labels[4:18, 4:15] = 0
    for tile_shape in ((7, 5), 8):
        filled = fill_holes(labels, tile_shape=tile_shape, max_workers=2)
        np.testing.assert_array_equal(filled, 9 * ndimage.binary_fill_holes(labels))


def test_holes_are_filled_in_however_many_tiles():
    pixels = np.random.default_rng(0).random((40, 40)) < 0.6
    labels = ndimage.binary_closing(pixels).astype(int)
    filled = fill_holes(labels, tile_shape=4)
    np.testing.assert_array_equal(filled, ndimage.binary_fill_holes(labels))


def ring(outer, inner=0):
    labels = np.zeros((9, 9), int)
    labels[1:8, 1:8] = outer
    labels[2:7, 2:7] = inner
    return labels


def test_a_hole_with_another_object_in_it_stays():
    labels = ring(4)
    labels[4, 4] = 5
    np.testing.assert_array_equal(fill_holes(labels, tile_shape=4), labels)


def test_a_hole_between_two_objects_stays():
    labels = ring(4)
    labels[7] = 6
    np.testing.assert_array_equal(fill_holes(labels, tile_shape=4), labels)


def test_what_is_open_to_the_border_of_the_image_is_no_hole():
    labels = ring(4)[2:]
    np.testing.assert_array_equal(fill_holes(labels, tile_shape=3), labels)


def test_an_axis_one_pixel_thick_has_no_border_to_be_open_to():
    filled = fill_holes(ring(4)[None], axes="zyx", tile_shape=3)
    assert np.count_nonzero(filled == 4) == 49


def test_a_bay_of_a_plane_is_filled_in_the_plane_and_not_in_the_volume():
    volume = np.stack([ring(4), np.zeros((9, 9), int)])
    np.testing.assert_array_equal(fill_holes(volume, axes="zyx", tile_shape=4), volume)
    assert np.count_nonzero(fill_holes(volume, axes="tyx", tile_shape=4) == 4) == 49


# --- opening -------------------------------------------------------------------------------------


def ball(radius, spacing):
    """All offsets within a radius, as a footprint."""
    reach = [int(radius / size + 1e-9) for size in spacing]
    grids = np.meshgrid(*[np.arange(-r, r + 1) for r in reach], indexing="ij")
    squared = sum((g * size) ** 2 for g, size in zip(grids, spacing, strict=True))
    return squared <= radius**2 * (1 + 1e-9)


def opened_whole(labels, footprint):
    result = np.zeros_like(labels)
    for label in np.unique(labels[labels > 0]):
        # beyond the border lies more of the object
        eroded = ndimage.binary_erosion(labels == label, footprint, border_value=1)
        result[ndimage.binary_dilation(eroded, footprint)] = label
    return result


@settings(max_examples=examples(8))
@given(case=tiled_labels(), radius=st.sampled_from([0, 1, 1.5, 2]))
def test_objects_are_opened_as_in_the_whole_image(case, radius):
    axes, labels, tile_shape = case
    opened = morphological_opening(labels, radius, axes=axes, tile_shape=tile_shape)
    n_spatial = len([a for a in axes if a in "zyx"])
    footprint = ball(radius, (1,) * n_spatial)
    whole = per_plane(lambda plane: opened_whole(plane, footprint), labels, axes)
    np.testing.assert_array_equal(opened, whole)


def test_a_ball_in_micrometres_is_flat_where_planes_are_far_apart():
    labels = np.repeat(patchwork(3, (7, 8, 8), density=0.9), 2, axis=2)
    opened = morphological_opening(
        labels, 2.0, unit="micrometers", spacing=(2.0, 1.0, 0.5), tile_shape=5
    )
    whole = opened_whole(labels, ball(2.0, (2.0, 1.0, 0.5)))
    assert whole.any()
    assert (whole != labels).any()
    np.testing.assert_array_equal(opened, whole)


def test_a_thin_bridge_goes_and_its_ends_keep_the_id():
    labels = np.zeros((9, 25), int)
    labels[1:8, 1:8] = labels[1:8, 17:24] = labels[4, 8:17] = 6
    opened = morphological_opening(labels, 2, tile_shape=6)
    assert ndimage.label(opened)[1] == 2
    assert set(opened[opened > 0]) == {6}
    assert not opened[4, 10:15].any()


def test_an_object_the_disk_does_not_fit_into_vanishes_and_one_at_the_border_is_not_rounded():
    labels = np.zeros((12, 12), int)
    labels[:6, :6], labels[8:10, 8:10] = 1, 2
    opened = morphological_opening(labels, 2, tile_shape=4)
    assert (opened[8:, 8:] == 0).all()
    assert (opened[:3, :3] == 1).all()
    assert opened[5, 5] == 0


# --- growing -------------------------------------------------------------------------------------


def expanded_whole(labels, distance, spacing):
    """Ask every background pixel which object is nearest, the smallest id first."""
    result = labels.copy()
    places = np.argwhere(labels > 0) * np.asarray(spacing, float)
    ids = labels[labels > 0]
    for pixel in np.argwhere(labels == 0):
        squared = ((places - pixel * np.asarray(spacing, float)) ** 2).sum(axis=1)
        if len(squared) and squared.min() <= distance**2 * (1 + 1e-9):
            result[tuple(pixel)] = ids[squared <= squared.min() * (1 + 1e-9)].min()
    return result


@settings(max_examples=examples(8))
@given(case=tiled_labels(), distance=st.sampled_from([0, 1, 2, 2.3, 30]))
def test_objects_grow_as_in_the_whole_image_and_the_smaller_id_wins_a_tie(case, distance):
    axes, labels, tile_shape = case
    labels[np.random.default_rng(labels.sum()).random(labels.shape) < 0.7] = 0
    grown = expand_labels(labels, distance, axes=axes, tile_shape=tile_shape)
    spacing = (1,) * len([a for a in axes if a in "zyx"])
    whole = per_plane(lambda plane: expanded_whole(plane, distance, spacing), labels, axes)
    np.testing.assert_array_equal(grown, whole)


@pytest.mark.parametrize("spacing", [(2.0, 1.0, 1.0), (0.3, 0.1, 0.1), (1.0, 0.325, 0.325)])
def test_a_distance_in_micrometres_is_shorter_where_planes_are_far_apart(spacing):
    labels = patchwork(4, (5, 8, 9), density=0.3)
    distance = 2.5 * spacing[1]
    grown = expand_labels(labels, distance, unit="micrometers", spacing=spacing, tile_shape=3)
    np.testing.assert_array_equal(grown, expanded_whole(labels, distance, spacing))


@pytest.mark.parametrize("spacing", [(1.0, 1.0), (1.0, 0.7)])
def test_many_objects_grow_far_as_few_do_near(spacing):
    """Squared distance and id share one integer, which must be wide enough for both."""
    rng = np.random.default_rng(8)
    labels = np.zeros((40, 90), int)
    labels.flat[rng.choice(labels.size // 3, 400, replace=False)] = rng.permutation(400) + 1
    grown = expand_labels(labels, 20.0, spacing=spacing, tile_shape=-1)
    np.testing.assert_array_equal(grown, expanded_whole(labels, 20.0, spacing))


def test_growing_is_that_of_scikit_image_where_nothing_is_tied():
    labels = np.zeros((40, 40), int)
    labels[5:9, 7], labels[25, 30:34], labels[20, 3] = 1, 2, 3
    grown = expand_labels(labels, 7.5, tile_shape=9)
    whole = expand_whole(labels, 7.5)
    tied = expanded_whole(labels, 7.5, (1, 1)) != whole
    assert tied.sum() < 5
    np.testing.assert_array_equal(grown[~tied], whole[~tied])


# --- sizes ---------------------------------------------------------------------------------------


def sized_whole(labels, least, most):
    ids, sizes = np.unique(labels[labels > 0], return_counts=True)
    return np.where(np.isin(labels, ids[(sizes >= least) & (sizes <= most)]), labels, 0)


@settings(max_examples=examples(6))
@given(case=tiled_labels(), least=st.integers(0, 30), more=st.integers(0, 60))
def test_sizes_are_filtered_as_in_the_whole_image(case, least, more):
    axes, labels, tile_shape = case
    options = {"axes": axes, "tile_shape": tile_shape}
    whole = per_plane(lambda plane: sized_whole(plane, least, least + more), labels, axes)
    kept = filter_sizes(labels, least, least + more, sequential=False, **options)
    np.testing.assert_array_equal(kept, whole)
    numbered = filter_sizes(labels, least, least + more, **options)
    left = np.unique(np.append(whole, 0))
    np.testing.assert_array_equal(left[numbered], whole)
    assert numbered.max() == len(left) - 1


def ome_labels(path, labels, pixel_size, unit="micrometer"):
    """Write a calibrated OME-Zarr label image."""
    axes = "zyx"[-labels.ndim :]
    group = zarr.create_group(str(path))
    group.create_array("0", data=labels, chunks=(8,) * labels.ndim)
    size = dict(zip(axes, pixel_size, strict=True))
    group.attrs.update(
        label_attributes(
            Levels(axes, [], size, dict.fromkeys(axes, unit), {}),
            name="cells",
            version="0.5",
        )
    )
    return path


def test_a_calibrated_label_image_is_filtered_in_square_micrometres(tmp_path):
    labels = np.zeros((20, 20), "uint16")
    labels[1:5, 1:6], labels[10:13, 10:13], labels[17, 17] = 1, 2, 3
    path = ome_labels(tmp_path / "cells", labels, (500, 200), unit="nanometer")
    kept = filter_sizes(path, 0.9, 1.9, unit="micrometers", tile_shape=6)  # a pixel is 0.1 µm²
    assert np.count_nonzero(kept) == 9
    kept = filter_sizes(path, 2.0, unit="micrometers", tile_shape=6)
    assert np.count_nonzero(kept) == 20
    grown = expand_labels(path, 0.5, unit="micrometers", tile_shape=6)
    np.testing.assert_array_equal(grown, expanded_whole(labels.astype(int), 0.5, (0.5, 0.2)))


# --- what they share -----------------------------------------------------------------------------

OPERATIONS = {
    "fill": fill_holes,
    "open": lambda labels, **options: morphological_opening(labels, 1, **options),
    "expand": lambda labels, **options: expand_labels(labels, 2, **options),
    "filter": lambda labels, **options: filter_sizes(labels, 4, **options),
}
each_operation = pytest.mark.parametrize("operate", OPERATIONS.values(), ids=OPERATIONS)
LABELS = patchwork(1, (20, 18))


@each_operation
def test_the_result_is_the_same_from_any_source_for_any_tiles_and_workers(operate, tmp_path):
    expected = operate(LABELS, tile_shape=-1)
    array = zarr.create_array(str(tmp_path / "z.zarr"), data=LABELS, chunks=(8, 8))
    sources = [LABELS, da.from_array(LABELS, chunks=(7, 9)), array, tmp_path / "z.zarr"]
    ways = zip(sources, [(5, 20), 7, None, 9], [1, 2, 2, 1], strict=True)
    for source, tile_shape, max_workers in ways:
        result = operate(source, tile_shape=tile_shape, max_workers=max_workers)
        np.testing.assert_array_equal(result, expected)
    np.testing.assert_array_equal(array[...], LABELS)


@each_operation
@pytest.mark.parametrize("zarr_format", [2, 3])
def test_what_is_written_is_what_is_returned_in_memory(operate, zarr_format, tmp_path):
    zarr.create_group(str(tmp_path / "out.zarr"), zarr_format=zarr_format)
    seen = []
    written = operate(
        LABELS,
        write_to=tmp_path / "out.zarr",
        output_component="done",
        tile_shape=8,
        progress=lambda *step: seen.append(step),
    )
    assert isinstance(written, da.Array)
    np.testing.assert_array_equal(written.compute(), operate(LABELS, tile_shape=8))
    assert written.dtype == np.int32
    assert zarr.open_array(str(tmp_path / "out.zarr" / "done")).metadata.zarr_format == zarr_format
    left = {path.name for path in (tmp_path / "out.zarr").iterdir()}
    assert left <= {"done", "zarr.json", ".zgroup", ".zattrs"}
    assert seen[-1][1] == seen[-1][2]


@each_operation
@pytest.mark.parametrize("shape", [(6, 6), (1, 1), (2, 1, 7)])
def test_labels_without_objects_give_labels_without_objects(operate, shape):
    result = operate(np.zeros(shape, "uint8"), tile_shape=4)
    assert result.shape == shape
    assert not result.any()


@each_operation
def test_one_object_everywhere_stays_everywhere(operate):
    labels = np.full((6, 7), 3)
    np.testing.assert_array_equal(operate(labels, tile_shape=4) > 0, labels > 0)


@each_operation
def test_ids_beyond_int32_are_kept(operate):
    labels = np.zeros((8, 8), "uint64")
    labels[:5, :5], labels[:5, 5:] = 2**40, 7
    result = operate(labels, tile_shape=3)
    if operate is OPERATIONS["filter"]:
        assert result.dtype == np.int32
        result = OPERATIONS["filter"](labels, tile_shape=3, sequential=False)
    assert result.dtype == np.int64
    assert {7, 2**40} <= set(result.ravel().tolist()) <= {0, 7, 2**40}


@each_operation
def test_what_is_no_label_image_is_refused(operate):
    with pytest.raises(ImageError, match=r"whole numbers, got 'float64' in a NumPy array"):
        operate(np.zeros((4, 4)), tile_shape=2)
    with pytest.raises(ImageError, match=r"labels are >= 0, got -1 in a NumPy array, Region"):
        operate(np.full((4, 4), -1), tile_shape=2)
    with pytest.raises(ImageError, match=r"labels fit into int64, got 18446744073709551615"):
        operate(np.full((4, 4), 2**64 - 1, "uint64"), tile_shape=2)
    with pytest.raises(ImageError, match=r"an image needs pixels, got shape \(0, 4\)"):
        operate(np.zeros((0, 4), int))


@each_operation
def test_labels_are_never_written_over_what_they_are_made_from(operate, tmp_path):
    group = zarr.create_group(str(tmp_path / "g.zarr"))
    array = group.create_array("cells", data=LABELS, chunks=(8, 8))
    group.create_group("nested").create_array("0", data=LABELS)
    for source in (array, tmp_path / "g.zarr" / "cells", da.from_zarr(array) + 0):
        with pytest.raises(PlanError, match="never written over .*, and .*cells is that; name"):
            operate(source, write_to=tmp_path / "g.zarr", output_component="cells")
    with pytest.raises(PlanError, match="nested is a whole Zarr group: nothing says that patchw"):
        operate(array, write_to=tmp_path / "g.zarr", output_component="nested")
    with pytest.raises(PlanError, match="written into a Zarr group, and .*cells is an array"):
        operate(LABELS, write_to=tmp_path / "g.zarr" / "cells")
    np.testing.assert_array_equal(array[...], LABELS)


def test_a_failure_leaves_the_array_that_was_there(tmp_path):
    operate = OPERATIONS["open"]
    operate(LABELS, write_to=tmp_path / "out.zarr")
    before = zarr.open_array(str(tmp_path / "out.zarr" / "opened_labels"))[...]
    wrong = LABELS.copy()
    wrong[-1, -1] = -7
    with pytest.raises(ImageError, match="got -7"):
        operate(wrong, write_to=tmp_path / "out.zarr", tile_shape=6)
    names = sorted(path.name for path in (tmp_path / "out.zarr").iterdir())
    assert names == ["opened_labels", "zarr.json"]
    after = zarr.open_array(str(tmp_path / "out.zarr" / "opened_labels"))[...]
    np.testing.assert_array_equal(after, before)


@each_operation
def test_labels_go_to_a_url_as_they_go_to_a_folder(operate):
    written = operate(LABELS, write_to="memory://postprocess/out.zarr", tile_shape=12)
    np.testing.assert_array_equal(written.compute(), operate(LABELS, tile_shape=-1))


def test_axes_in_another_order_come_out_in_the_usual_one():
    opened = morphological_opening(LABELS.T, 1, axes="xy", tile_shape=9)
    np.testing.assert_array_equal(opened, morphological_opening(LABELS, 1, tile_shape=9))


@pytest.mark.shared_data
def test_real_nuclei_are_grown_and_filled_as_in_the_whole_image(shared_data):
    tifffile = pytest.importorskip("tifffile")
    labels = tifffile.imread(shared_data / "dsb2018_mosaic_4096_labels.tif")[:500, :600]
    labels[np.random.default_rng(0).random(labels.shape) < 0.01] = 0
    grown = expand_labels(labels, 6, tile_shape=(170, 200))
    whole = expand_whole(labels, 6)
    np.testing.assert_array_equal(grown > 0, whole > 0)
    assert np.count_nonzero(grown != whole) < 0.02 * np.count_nonzero(whole)  # ties alone
    filled = fill_holes(labels, tile_shape=(170, 200))
    np.testing.assert_array_equal(filled, fill_holes(labels, tile_shape=-1))
    assert np.count_nonzero(filled) > np.count_nonzero(labels)


class PicklingExecutor(Executor):
    """Runs at once what another process would have been sent."""

    def submit(self, function, /, *args):
        function, args = cloudpickle.loads(cloudpickle.dumps((function, args)))
        future = Future()
        future.set_result(cloudpickle.loads(cloudpickle.dumps(function(*args))))
        return future


def test_what_workers_are_given_travels_to_other_processes(monkeypatch, tmp_path):
    array = zarr.create_array(str(tmp_path / "z.zarr"), data=LABELS, chunks=(8, 8))
    calls = {
        **OPERATIONS,
        "measure": lambda labels, **options: measure_objects(labels, labels, **options),
        "relate": lambda labels, **options: label_relations(labels, array, **options).to_table(),
    }
    expected = {name: call(LABELS, tile_shape=10) for name, call in calls.items()}
    executor = PicklingExecutor()
    monkeypatch.setattr(Workers, "open", lambda workers: nullcontext(executor))
    for name, call in calls.items():
        found = call(tmp_path / "z.zarr", tile_shape=10, workers="processes")
        if isinstance(found, np.ndarray):
            np.testing.assert_array_equal(found, expected[name])
        else:
            assert found.equals(expected[name])


def test_nothing_is_left_in_the_temporary_folder(temporary_folder):
    for operate in OPERATIONS.values():
        operate(LABELS, tile_shape=9)
    assert not list(temporary_folder.iterdir())


@pytest.mark.parametrize(
    ("call", "words"),
    [
        (lambda: morphological_opening(LABELS, -1), "radius must be a finite .*, got -1"),
        (lambda: expand_labels(LABELS, np.nan), "distance must be a finite .*, got nan"),
        (lambda: expand_labels(LABELS, 1, unit="um"), "'pixels' or 'micrometers', got 'um'"),
        (
            lambda: morphological_opening(LABELS, 1, spacing=(1, 1, 1)),
            "per axis of 'yx', got \\(1, 1, 1\\)",
        ),
        (
            lambda: morphological_opening(LABELS, 1, spacing=0),
            "one size above 0 per axis of 'yx', got 0",
        ),
        (lambda: filter_sizes(LABELS, 9, 3), "at most max_size, got 9 and 3; every object"),
        (lambda: filter_sizes(LABELS, -2), "min_size must be a finite number, 0 or more, got -2"),
        (
            lambda: fill_holes(LABELS, max_size=-2),
            "max_size must be a finite .*, got -2",
        ),
        (
            lambda: filter_sizes(LABELS, 2.0, unit="micrometers"),
            "micrometers need a pixel size on each of the axes 'yx', got {} .* in a NumPy array",
        ),
        (
            lambda: morphological_opening(LABELS, 2.0, unit="micrometers"),
            "micrometers need a pixel size .*give pixels, or say it with pixel_size=",
        ),
    ],
)
def test_what_makes_no_sense_is_refused(call, words):
    with pytest.raises((PlanError, ImageError), match=words):
        call()


@pytest.mark.parametrize(
    ("shape", "chunks", "tile"),
    [
        ((10_000, 10_000), (512, 512), (2048, 2048)),
        ((3, 4000, 400, 400), (1, 16, 64, 64), (1, 256, 128, 128)),
        ((5, 9_000, 9_000), (1, 9_000, 9_000), (1, 9_000, 9_000)),
        ((40, 60), (7, 60), (40, 60)),
    ],
)
def test_tiles_grow_from_chunks_to_some_millions_of_pixels(shape, chunks, tile):
    axes = "tzyx"[-len(shape) :]
    grid = LabelSource.open(da.zeros(shape, chunks=chunks, dtype="int32"), axes=axes).grid
    assert grid.tile_shape == tile


@pytest.mark.parametrize(
    "function",
    [
        fill_holes,
        morphological_opening,
        expand_labels,
        filter_sizes,
        label_relations,
        measure_objects,
    ],
)
def test_the_shared_options_are_shown_and_others_are_refused(function):
    parameters = inspect.signature(function).parameters
    assert parameters["max_workers"].default == 1
    assert parameters["tile_shape"].kind is inspect.Parameter.KEYWORD_ONLY
    assert "options" not in parameters
    with pytest.raises(TypeError, match=r"max_worker'; its parameters are .*max_workers="):
        function(np.ones((4, 4), int), 1, max_worker=2)
