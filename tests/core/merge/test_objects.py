"""Objects measured in pieces, against the same objects measured whole."""

from __future__ import annotations

from itertools import pairwise, product

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import ndimage
from skimage.measure import regionprops

from patchworks_core.errors import StageError
from patchworks_core.merge.objects import object_table
from patchworks_core.stage.object_sums import ObjectSums, measure_tile, merge_objects


def cut(shape, rng):
    """Partition a shape at random planes."""
    edges = []
    for size in shape:
        n_cuts = rng.integers(0, min(4, size))
        inner = rng.choice(np.arange(1, size), n_cuts, replace=False) if n_cuts else []
        edges.append(list(pairwise([0, *sorted(map(int, inner)), size])))
    return [tuple(slice(a, b) for a, b in box) for box in product(*edges)]


def measure_in_pieces(labels, boxes, axes, pixels=None):
    sums, ids = [], []
    for box in boxes:
        tile = labels[box]
        present = np.unique(tile[tile > 0])
        local = np.where(tile > 0, np.searchsorted(present, tile) + 1, 0).astype("int32")
        origin = [s.start for s in box]
        given_pixels = None if pixels is None else pixels[box]
        sums.append(
            measure_tile(
                local, axes=axes, origin=origin, n_labels=len(present), pixels=given_pixels
            )
        )
        ids.append(present)
    return merge_objects(sums, ids)


@given(seed=st.integers(0, 2**32 - 1), axes=st.sampled_from(["yx", "zyx"]))
@settings(deadline=None, max_examples=50)
def test_objects_merged_from_random_tiles_are_regionprops_of_the_whole(seed, axes):
    rng = np.random.default_rng(seed)
    shape = tuple(rng.integers(2, 14, len(axes)))
    labels = ndimage.label(rng.random(shape) < 0.4)[0]
    pixels = rng.integers(0, 65_535, shape, dtype="uint16")
    merged = measure_in_pieces(labels, cut(shape, rng), axes, pixels)
    objects = regionprops(labels, intensity_image=pixels)
    assert merged.label.tolist() == [o.label for o in objects]
    for row, one in enumerate(objects):
        n = len(axes)
        assert merged.area[row] == one.area
        assert merged.position_sum[row] / merged.area[row] == pytest.approx(one.centroid)
        assert tuple(merged.start[row]) == one.bbox[:n]
        assert tuple(merged.stop[row]) == one.bbox[n:]
        assert merged.intensity_sum[row] / merged.area[row] == pytest.approx(one.intensity_mean)
        assert merged.intensity_min[row] == one.intensity_min
        assert merged.intensity_max[row] == one.intensity_max


@pytest.mark.shared_data
def test_real_nuclei_cut_into_tiles_are_measured_as_if_whole(shared_data):
    tifffile = pytest.importorskip("tifffile")
    labels = tifffile.imread(shared_data / "dsb2018_mosaic_4096_labels.tif")[:700, :900]
    labels = labels.astype("int32")
    merged = measure_in_pieces(labels, cut(labels.shape, np.random.default_rng(2)), "yx")
    objects = regionprops(labels)
    assert merged.area.tolist() == [o.area for o in objects]
    centroids = merged.position_sum / merged.area[:, None]
    np.testing.assert_allclose(centroids, [o.centroid for o in objects], atol=1e-9)


@pytest.mark.parametrize("measured", [False, True])
def test_a_tile_without_objects_is_measured_merged_and_tabulated(measured):
    empty = np.zeros((4, 5), "int32")
    pixels = empty if measured else None
    sums = measure_tile(empty, axes="yx", origin=(0, 0), n_labels=0, pixels=pixels)
    merged = merge_objects([sums, sums], [np.array([], int)] * 2)
    assert len(merged) == 0
    table = object_table(merged, image_shape=(4, 5), pixel_size={}, unit={})
    assert table.num_rows == 0
    assert ("intensity_mean" in table.column_names) is measured


def test_rows_with_id_0_are_dropped():
    tile = measure_tile(np.array([[1, 2]]), axes="yx", origin=(0, 0), n_labels=2)
    merged = merge_objects([tile], [np.array([0, 5])])
    assert merged.label.tolist() == [5]
    assert merged.area.tolist() == [1]


def test_merging_in_two_steps_is_merging_at_once():
    labels = ndimage.label(np.random.default_rng(0).random((20, 20)) < 0.5)[0]
    boxes = cut(labels.shape, np.random.default_rng(1))
    half = len(boxes) // 2
    parts = [measure_in_pieces(labels, b, "yx", labels) for b in (boxes[:half], boxes[half:]) if b]
    again = merge_objects(parts, [p.label for p in parts])
    once = measure_in_pieces(labels, boxes, "yx", labels)
    assert again.to_table().equals(once.to_table())


def test_an_intensity_that_is_nan_stays_with_its_object():
    pixels = np.array([[np.nan, 1.0, 2.0]])
    sums = measure_tile(np.array([[1, 1, 2]]), axes="yx", origin=(0, 0), n_labels=2, pixels=pixels)
    np.testing.assert_array_equal(sums.intensity_max, [np.nan, 2])


def test_sums_survive_a_table():
    tile = np.array([[[0, 1, 1], [2, 0, 1]]])
    sums = measure_tile(tile, axes="tyx", origin=(3, 10, 20), n_labels=2, pixels=tile * 2.5)
    back = ObjectSums.from_table(sums.to_table())
    assert back.to_table().equals(sums.to_table(), check_metadata=True)
    assert back.start.tolist() == [[3, 10, 21], [3, 11, 20]]


def test_a_foreign_table_is_an_error():
    pa = pytest.importorskip("pyarrow")
    with pytest.raises(StageError, match=r"not a table of object sums: .* columns \['a'\]"):
        ObjectSums.from_table(pa.table({"a": [1]}))


def test_tiles_of_different_kinds_are_not_merged():
    labels = np.ones((2, 2), int)
    plain = measure_tile(labels, axes="yx", origin=(0, 0), n_labels=1)
    with_pixels = measure_tile(labels, axes="yx", origin=(0, 0), n_labels=1, pixels=labels)
    with pytest.raises(StageError, match="all measured or none"):
        merge_objects([plain, with_pixels], [np.array([1])] * 2)


def test_an_object_without_a_merged_id_is_an_error():
    tile = measure_tile(np.array([[1, 2]]), axes="yx", origin=(0, 0), n_labels=2)
    with pytest.raises(StageError, match="got 1 for the 2 objects of tile number 0"):
        merge_objects([tile], [np.array([1])])


def tabulate(axes, shape, pixel_size, unit="micrometer"):
    labels = np.zeros(shape, int)
    labels[(0,) * (len(shape) - 2) + (slice(1, 3), slice(0, 4))] = 1
    sums = measure_tile(labels, axes=axes, origin=(0,) * len(shape), n_labels=1)
    table = object_table(
        sums, image_shape=shape, pixel_size=pixel_size, unit=dict.fromkeys(pixel_size, unit)
    )
    return {name: table[name][0].as_py() for name in table.column_names}


def test_areas_in_micrometres_need_every_pixel_size():
    assert "area_um2" not in tabulate("yx", (9, 9), {"x": 0.5})
    assert "area_um2" not in tabulate("yx", (9, 9), {"y": 1, "x": 1}, unit="pixel")
    row = tabulate("yx", (9, 9), {"y": 250.0, "x": 500.0}, unit="nanometer")
    assert row["area_um2"] == pytest.approx(8 * 0.125)
    assert row["centroid_x_um"] == pytest.approx(0.75)
    assert row["equivalent_diameter_um"] == pytest.approx(np.sqrt(4 / np.pi))
    assert "equivalent_diameter_pixels" not in row


def test_time_is_a_column_and_planes_of_a_volume_make_a_volume():
    row = tabulate("tzyx", (2, 3, 9, 9), {"z": 2.0, "y": 1.0, "x": 1.0})
    assert row["t"] == 0
    assert row["volume_pixels"] == 8
    assert row["volume_um3"] == 16
    assert "area_pixels" not in row


def test_only_axes_thicker_than_one_pixel_have_a_border_to_touch():
    labels = np.zeros((1, 5, 5), int)
    labels[0, 2, 2] = 1
    labels[0, 4, 2] = 2
    sums = measure_tile(labels, axes="zyx", origin=(0, 0, 0), n_labels=2)
    table = object_table(sums, image_shape=(1, 5, 5), pixel_size={}, unit={})
    assert table["touches_border"].to_pylist() == [False, True]
