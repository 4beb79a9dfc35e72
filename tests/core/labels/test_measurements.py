"""The object table of a stand-alone label image, against `skimage.measure.regionprops`."""

from __future__ import annotations

import numpy as np
import pyarrow.csv
import pyarrow.parquet
import pytest
import zarr
from hypothesis import given, settings
from hypothesis import strategies as st
from skimage.measure import regionprops

from patchworks_core import ImageError, PlanError, plan_grid
from patchworks_core.labels.measurements import measure_objects
from patchworks_core.merge.objects import object_table
from patchworks_core.ome_zarr.metadata import Levels, label_attributes
from patchworks_core.stage.object_sums import measure_tile, merge_objects
from tests.core.oracles import examples

SHAPES = {"yx": (13, 11), "zyx": (4, 8, 7), "tyx": (3, 7, 9)}


def random_labels(rng, shape):
    return np.array([0, 0, 5, 2, 900])[rng.integers(0, 5, shape)]


def expected_rows(labels, channels):
    """One row per object of one time."""
    rows = []
    n = labels.ndim
    for one in regionprops(labels):
        row = {"label": one.label, ("volume" if n == 3 else "area") + "_pixels": one.area}
        for i, axis in enumerate("zyx"[-n:]):
            row[f"centroid_{axis}"] = one.centroid[i]
            row[f"bbox_{axis}_start"], row[f"bbox_{axis}_stop"] = one.bbox[i], one.bbox[i + n]
        ends = zip(one.bbox[:n], one.bbox[n:], labels.shape, strict=True)
        row["touches_border"] = any(a == 0 or b == size for a, b, size in ends)
        for suffix, pixels in channels.items():
            values = pixels[labels == one.label]
            for name in ("mean", "sum", "min", "max", "std"):
                row[f"intensity_{name}{suffix}"] = getattr(np, name)(values)
        rows.append(row)
    return rows


@settings(max_examples=examples(15))
@given(
    seed=st.integers(0, 2**32 - 1),
    axes=st.sampled_from(sorted(SHAPES)),
    tile=st.integers(1, 6),
    dtype=st.sampled_from(["uint8", "int16", "uint16"]),
)
def test_objects_of_tiles_are_measured_as_in_the_whole_image(seed, axes, tile, dtype):
    rng = np.random.default_rng(seed)
    shape = SHAPES[axes]
    labels = random_labels(rng, shape)
    info = np.iinfo(dtype)
    image = rng.integers(info.min, info.max, (2, *shape), dtype=dtype, endpoint=True)
    image_axes = "c" + axes
    table = measure_objects(
        labels, image, axes=axes, image_axes=image_axes, tile_shape=tile, max_workers=2
    )
    if "t" in axes:
        times = range(shape[0])
        rows = [
            {"t": t, **row}
            for t in times
            for row in expected_rows(labels[t], {"_c0": image[0, t], "_c1": image[1, t]})
        ]
    else:
        rows = expected_rows(labels, {"_c0": image[0], "_c1": image[1]})
    assert table.num_rows == len(rows)
    for found, row in zip(table.to_pylist(), rows, strict=True):
        assert {name: found[name] for name in row} == pytest.approx(row, rel=1e-12, abs=1e-9)


def test_tables_of_integer_pixels_are_the_same_to_the_bit_for_any_tiles():
    rng = np.random.default_rng(3)
    labels, image = random_labels(rng, (30, 30)), rng.integers(0, 65_536, (30, 30), "uint16")
    whole = measure_objects(labels, image, tile_shape=-1)
    assert "intensity_std" in whole.column_names
    for tile_shape in (7, (1, 30), 13):
        assert measure_objects(labels, image, tile_shape=tile_shape).equals(whole)


def test_float_pixels_have_no_standard_deviation_and_a_nan_stays_with_its_object():
    labels = np.array([[1, 1, 2, 2]])
    table = measure_objects(labels, np.array([[np.nan, 1.0, 2.0, 4.0]]), tile_shape=(1, 2))
    assert "intensity_std" not in table.column_names
    np.testing.assert_array_equal(table["intensity_mean"], [np.nan, 3.0])


def test_a_standard_deviation_that_whole_numbers_cannot_hold_is_nan():
    from patchworks_core.labels.intensities import IntensitySums

    sums = IntensitySums(
        np.array([2.0**50]), np.array([0.0]), np.array([65_535.0]), np.array([2**62])
    )
    assert np.isnan(sums.columns(np.array([2**40]), "")["intensity_std"]).all()


def test_channels_are_chosen_by_number_or_name_and_named_in_the_columns(tmp_path):
    labels = np.array([[1, 1], [0, 2]])
    group = zarr.create_group(str(tmp_path / "image.zarr"))
    group.create_array("0", data=np.stack([labels * 10, labels * 20]))
    attributes = label_attributes(
        Levels(
            "cyx",
            [],
            {"y": 0.5, "x": 0.5},
            {"y": "micrometer", "x": "micrometer"},
            {},
        ),
        name="image",
        version="0.5",
    )["ome"]
    del attributes["image-label"]
    attributes["omero"] = {"channels": [{"label": "DAPI"}, {"label": "GFP"}]}
    group.attrs.update({"ome": attributes})
    path = tmp_path / "image.zarr"
    table = measure_objects(labels, path)
    assert table["intensity_mean_DAPI"].to_pylist() == [10.0, 20.0]
    assert table["intensity_mean_GFP"].to_pylist() == [20.0, 40.0]
    assert table["area_um2"].to_pylist() == [0.5, 0.25]  # the labels do not say, the image does
    for channels in ("GFP", 1, ["GFP"]):
        names = measure_objects(labels, path, channels=channels).column_names
        assert "intensity_mean_GFP" in names
        assert "intensity_mean_DAPI" not in names
    with pytest.raises(ImageError, match="no channel 'RFP' in .*'DAPI', 'GFP'"):
        measure_objects(labels, path, channels="RFP")


def test_labels_of_two_channels_are_measured_each_on_its_own():
    labels = np.array([[[1, 1, 0]], [[1, 0, 2]]])
    table = measure_objects(labels, np.array([[1, 2, 3]]), axes="cyx", tile_shape=2)
    rows = [
        (row["c"], row["label"], row["area_pixels"], row["intensity_sum"])
        for row in table.to_pylist()
    ]
    assert rows == [(0, 1, 2, 3.0), (1, 1, 1, 1.0), (1, 2, 1, 3.0)]


def test_on_a_grid_it_is_told_which_objects_cross_its_seams():
    labels = np.zeros((8, 8), int)
    labels[0, :4], labels[2, 3:5], labels[3:5, 3:5] = 1, 2, 3
    table = measure_objects(labels, grid=plan_grid("yx", (8, 8), tile_shape=4, overlap=2))
    assert table["n_tiles"].to_pylist() == [1, 2, 4]
    assert table["crosses_seam"].to_pylist() == [False, True, True]
    assert "n_tiles" not in measure_objects(labels, tile_shape=4).column_names


def test_the_table_of_the_pipeline_tells_seams_and_sums_too():
    tile = np.ones((2, 2), int)
    pieces = [
        measure_tile(tile, axes="yx", origin=(0, x), n_labels=1, pixels=tile * 3) for x in (0, 2)
    ]
    merged = merge_objects(pieces, [np.array([1]), np.array([1])])
    row = object_table(merged, image_shape=(9, 9), pixel_size={}, unit={}).to_pylist()[0]
    assert row["crosses_seam"] is True
    assert row["intensity_sum"] == 24.0


@pytest.mark.parametrize("with_image", [False, True])
def test_an_image_without_objects_has_a_table_without_rows(with_image):
    labels = np.zeros((2, 5, 5), "uint16")
    table = measure_objects(
        labels,
        labels if with_image else None,
        axes="tyx",
        image_axes="tyx" if with_image else None,
        tile_shape=3,
    )
    assert table.num_rows == 0
    assert "centroid_x" in table.column_names
    assert ("intensity_std" in table.column_names) is with_image


def test_the_table_is_written_by_its_extension(tmp_path):
    labels = np.array([[1, 1], [0, 2]])
    table = measure_objects(labels, labels, write_to=tmp_path / "new" / "objects.parquet")
    assert pyarrow.parquet.read_table(tmp_path / "new" / "objects.parquet").equals(table)
    measure_objects(labels, labels, write_to=str(tmp_path / "objects.csv"))
    assert pyarrow.csv.read_csv(tmp_path / "objects.csv")["label"].to_pylist() == [1, 2]
    with pytest.raises(PlanError, match=r"as .parquet or .csv, got '.*objects.xlsx'; name"):
        measure_objects(labels, write_to=str(tmp_path / "objects.xlsx"))


@pytest.mark.parametrize(
    ("call", "words"),
    [
        (lambda x: measure_objects(x, x[:1]), r"'yx' \(2, 2\) in a NumPy array and 'yx' \(1, 2\)"),
        (lambda x: measure_objects(x, channels=0), "got channels=0 and no image"),
        (lambda x: measure_objects(x, x, channels=1), "channels=1 needs a channel axis, got axes"),
        (
            lambda x: measure_objects(x, grid=plan_grid("yx", (3, 2), tile_shape=2)),
            r"grid must be one of the labels, got 'yx' \(3, 2\) for 'yx' \(2, 2\) in a NumPy array",
        ),
        (
            lambda x: measure_objects(x, grid=plan_grid("yx", (2, 2), tile_shape=2), tile_shape=1),
            "tiles are those of grid, got tile_shape=1 too; drop one",
        ),
        (lambda x: measure_objects(x * 0.5), "labels are whole numbers, got 'float64'"),
    ],
)
def test_what_cannot_be_measured_is_refused(call, words):
    with pytest.raises((ImageError, PlanError), match=words):
        call(np.array([[1, 1], [0, 2]]))
