"""Overlaps of two label images counted tile by tile, against counting them at once."""

from __future__ import annotations

import dask.array as da
import numpy as np
import pytest
import zarr
from hypothesis import given, settings
from hypothesis import strategies as st

from patchworks_core import ImageError, PlanError
from patchworks_core.labels.relations import PairCounts, count_pairs, label_relations
from patchworks_core.ome_zarr.metadata import Levels, label_attributes
from tests.core.oracles import examples

SHAPES = {"yx": (13, 11), "zyx": (3, 8, 7), "tyx": (2, 7, 9)}


def related_whole(a, b, min_fraction=0.0):
    """One row per object of a, by comparing masks."""
    rows = []
    for label in np.unique(a[a > 0]).tolist():
        inside = a == label
        ids, counts = np.unique(b[inside & (b > 0)], return_counts=True)
        row = {"a": label, "area_a_pixels": inside.sum(), "n_b": len(ids), "b": 0}
        row |= {"area_b_pixels": 0, "overlap_pixels": 0, "fraction_of_a": 0.0, "iou": 0.0}
        if len(ids) and counts.max() / inside.sum() >= min_fraction:
            best = ids[counts.argmax()]  # the first, that is the smallest, of equal ones
            row |= {"b": best, "area_b_pixels": (b == best).sum(), "overlap_pixels": counts.max()}
            row["fraction_of_a"] = counts.max() / inside.sum()
            row["iou"] = counts.max() / (inside | (b == best)).sum()
        rows.append(row)
    return rows


@settings(max_examples=examples(20))
@given(
    seed=st.integers(0, 2**32 - 1),
    axes=st.sampled_from(sorted(SHAPES)),
    tile=st.integers(1, 6),
    min_fraction=st.sampled_from([0, 0.25, 0.5, 1]),
)
def test_relations_by_tiles_are_those_of_the_whole_image(seed, axes, tile, min_fraction):
    rng = np.random.default_rng(seed)
    shape = SHAPES[axes]
    a = rng.integers(0, 6, shape) * (rng.random(shape) < 0.5)
    b = np.array([0, 3, 900, 4, 2**35])[rng.integers(0, 5, shape)]
    relations = label_relations(a, b, axes=axes, tile_shape=tile, min_fraction=min_fraction)
    table = relations.to_table().to_pylist()
    if "t" in axes:
        times = range(shape[0])
        expected = [
            {"t": t, **row} for t in times for row in related_whole(a[t], b[t], min_fraction)
        ]
    else:
        expected = related_whole(a, b, min_fraction)
    assert table == expected


@pytest.mark.parametrize("max_workers", [1, 2])
def test_the_contingency_table_counts_every_pixel_of_an_object(max_workers):
    rng = np.random.default_rng(5)
    a, b = rng.integers(0, 4, (2, 9, 10))
    table = label_relations(a, b, tile_shape=4, max_workers=max_workers).contingency
    pairs = {(row["a"], row["b"]): row["overlap_pixels"] for row in table.to_pylist()}
    whole, counts = np.unique(np.stack([a, b]).reshape(2, -1), axis=1, return_counts=True)
    expected = dict(zip(map(tuple, whole.T.tolist()), counts.tolist(), strict=True))
    del expected[0, 0]
    assert pairs == expected
    assert list(pairs) == sorted(pairs)


def test_counts_that_are_added_up_midway_are_those_added_up_at_once(monkeypatch):
    rng = np.random.default_rng(6)
    images = rng.integers(0, 9, (12, 2, 40))
    results = []
    for limit in (1, 1 << 20):
        monkeypatch.setattr("patchworks_core.labels.relations._PENDING_ROWS", limit)
        counts = PairCounts()
        for i, (a, b) in enumerate(images):
            counts.add(i % 2, count_pairs(a, b))
        results.append(counts.sums().tolist())
    assert results[0] == results[1]


def test_chunks_and_sources_may_differ(tmp_path):
    a, b = np.random.default_rng(7).integers(0, 5, (2, 12, 12))
    expected = label_relations(a, b, tile_shape=-1).to_table()
    stored = zarr.create_array(str(tmp_path / "b.zarr"), data=b, chunks=(5, 12))
    lazy = da.from_array(a, chunks=(4, 7))
    assert label_relations(lazy, stored).to_table().equals(expected)


@pytest.mark.parametrize("empty", ["a", "b", "both"])
def test_label_images_without_objects_have_relations_too(empty):
    some, none = np.array([[1, 1, 2]]), np.zeros((1, 3), int)
    a = none if empty != "b" else some
    b = none if empty != "a" else some
    relations = label_relations(a, b, tile_shape=2)
    rows = relations.to_table().to_pylist()
    assert [row["a"] for row in rows] == ([1, 2] if empty == "b" else [])
    assert [row["b"] for row in rows] == ([0, 0] if empty == "b" else [])
    assert relations.contingency.num_rows == (0 if empty == "both" else 2)


def calibrated(path, labels, pixel_size, *, unit="micrometer", translation=0.0):
    """Write an OME-Zarr label image."""
    group = zarr.create_group(str(path))
    group.create_array("0", data=labels)
    attributes = label_attributes(
        Levels(
            "yx",
            [],
            {"y": pixel_size, "x": pixel_size},
            {"y": unit, "x": unit},
            {"x": translation},
        ),
        name=path.name,
        version="0.5",
    )
    group.attrs.update(attributes)
    return path


def test_label_images_of_different_pixels_are_not_related(tmp_path):
    labels = np.ones((4, 4), int)
    with pytest.raises(ImageError, match=r"'yx' \(4, 4\) in a NumPy array and 'yx' \(4, 5\) in"):
        label_relations(labels, np.ones((4, 5), int))
    with pytest.raises(ImageError, match=r"got 'yx' \(4, 4\) in .* and 'zyx' \(1, 4, 4\) in"):
        label_relations(labels, labels[None])
    nuclei = calibrated(tmp_path / "nuclei", labels, 0.5)
    cells = calibrated(tmp_path / "cells", labels, 0.6)
    words = "one pixel size on axis 'y', got 0.5 µm in '.*nuclei' and 0.6 µm in '.*cells'; correct"
    with pytest.raises(ImageError, match=words):
        label_relations(nuclei, cells)
    moved = calibrated(tmp_path / "moved", labels, 500.0, unit="nanometer", translation=50.0)
    words = "one pixel position on axis 'x', got 0 µm in '.*nuclei' and 0.05 µm in '.*moved'"
    with pytest.raises(ImageError, match=words):
        label_relations(nuclei, moved)


def test_pixel_sizes_in_other_units_or_unknown_are_no_obstacle(tmp_path):
    labels = np.ones((4, 4), int)
    nuclei = calibrated(tmp_path / "nuclei", labels, 0.5)
    same = calibrated(tmp_path / "same", labels, 500.0, unit="nanometer")
    for other in (same, labels, tmp_path / "same" / "0"):
        assert label_relations(nuclei, other).to_table()["iou"].to_pylist() == [1.0]


@pytest.mark.parametrize("fraction", [-0.1, 1.5, np.nan])
def test_a_share_lies_between_0_and_1(fraction):
    with pytest.raises(PlanError, match=f"from 0 to 1, got {fraction}"):
        label_relations(np.ones((2, 2), int), np.ones((2, 2), int), min_fraction=fraction)
