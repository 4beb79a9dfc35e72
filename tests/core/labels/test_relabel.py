"""Sequential ids for label images that have gaps, held against scikit-image."""

from __future__ import annotations

import os
import threading
from contextlib import suppress

import dask.array as da
import numpy as np
import pytest
import zarr
from hypothesis import given, settings
from hypothesis import strategies as st
from skimage.segmentation import relabel_sequential

from patchworks_core import (
    ImageError,
    PlanError,
    relabel_sequential_array,
    relabel_sequential_zarr,
)
from patchworks_core.images.image import open_image
from patchworks_core.tiles.regions import Region


def gappy(shape=(20, 30), seed: int = 0, n: int = 40) -> np.ndarray:
    return np.random.default_rng(seed).choice([0, *range(3, 5 * n, 5)], shape).astype("i4")


def stored(path, labels, *, zarr_format=3, **options):
    group = zarr.open_group(str(path), mode="a", zarr_format=zarr_format)
    array = group.create_array("labels", shape=labels.shape, dtype=labels.dtype, **options)
    array[...] = labels
    array.attrs["author"] = "someone"
    return array


@settings(max_examples=50)
@given(seed=st.integers(0, 2**32 - 1), n=st.integers(0, 50), lazy=st.booleans())
def test_ids_are_those_of_scikit_image(seed, n, lazy):
    labels = gappy(seed=seed, n=n)
    given_ = da.from_array(labels, chunks=(7, 11)) if lazy else labels
    found = relabel_sequential_array(given_)
    assert isinstance(found, da.Array) == lazy
    assert found.dtype == np.int32
    np.testing.assert_array_equal(found, relabel_sequential(labels)[0])


@pytest.mark.parametrize("zarr_format", [2, 3])
def test_a_stored_image_is_renumbered_elsewhere_or_in_place(tmp_path, zarr_format):
    labels = gappy()
    stored(tmp_path / "a.zarr", labels, chunks=(7, 11), zarr_format=zarr_format)
    n = relabel_sequential_zarr(
        tmp_path / "a.zarr", write_to=tmp_path / "b.zarr", output_component="ids"
    )
    expected = relabel_sequential(labels)[0]
    assert n == expected.max()
    written = zarr.open_array(str(tmp_path / "b.zarr" / "ids"))
    np.testing.assert_array_equal(written[...], expected)
    np.testing.assert_array_equal(zarr.open_array(str(tmp_path / "a.zarr" / "labels"))[...], labels)
    assert (written.chunks, written.attrs["author"]) == ((7, 11), "someone")
    assert relabel_sequential_zarr(tmp_path / "a.zarr", in_place=True) == n
    replaced = zarr.open_array(str(tmp_path / "a.zarr" / "labels"))
    np.testing.assert_array_equal(replaced[...], expected)
    assert sorted(p.name for p in (tmp_path / "a.zarr").iterdir() if p.is_dir()) == ["labels"]


def test_shards_are_written_whole(tmp_path):
    labels = gappy((64, 64))
    stored(tmp_path / "a.zarr", labels, chunks=(8, 8), shards=(32, 32))
    relabel_sequential_zarr(tmp_path / "a.zarr", in_place=True, n_workers=2)
    written = zarr.open_array(str(tmp_path / "a.zarr" / "labels"))
    assert written.shards == (32, 32)
    np.testing.assert_array_equal(written[...], relabel_sequential(labels)[0])


@pytest.mark.parametrize("function", ["rename", "unlink", "rmdir"])
@pytest.mark.parametrize("step", range(5))
def test_at_every_step_a_killed_call_leaves_the_old_or_the_new_labels_whole(
    tmp_path, monkeypatch, function, step
):
    labels = gappy()
    stored(tmp_path / "a.zarr", labels, chunks=(7, 11))
    real, calls = getattr(os, function), []

    def die(*arguments, **options):
        calls.append(arguments)
        if len(calls) <= step:
            return real(*arguments, **options)
        # Nothing more works, as in a process that is gone. An interrupt only reaches the main
        # thread: in Zarr's own it would end the loop that every later call of this process needs.
        if threading.current_thread() is threading.main_thread():
            raise KeyboardInterrupt
        raise OSError("gone")

    with monkeypatch.context() as patched, suppress(KeyboardInterrupt, OSError):
        patched.setattr(os, function, die)
        relabel_sequential_zarr(tmp_path / "a.zarr", in_place=True, n_workers=1)
    opened = open_image(tmp_path / "a.zarr" / "labels")
    left = opened.read(Region((0,) * labels.ndim, labels.shape))
    assert any(np.array_equal(left, whole) for whole in (labels, relabel_sequential(labels)[0]))
    assert relabel_sequential_zarr(tmp_path / "a.zarr", in_place=True) == 40
    written = zarr.open_array(str(tmp_path / "a.zarr" / "labels"))[...]
    np.testing.assert_array_equal(written, relabel_sequential(labels)[0])
    assert sorted(p.name for p in (tmp_path / "a.zarr").iterdir() if p.is_dir()) == ["labels"]


def test_what_somebody_drew_is_not_replaced_by_renumbered_labels(tmp_path):
    stored(tmp_path / "a.zarr", gappy(), chunks=(7, 11))
    stored(tmp_path / "b.zarr", gappy() + 1, chunks=(7, 11))
    with pytest.raises(PlanError, match="overwrite=True"):
        relabel_sequential_zarr(tmp_path / "a.zarr", write_to=tmp_path / "b.zarr")
    with pytest.raises(PlanError, match="name of an array within its group"):
        relabel_sequential_zarr(
            tmp_path / "a.zarr", write_to=tmp_path / "b.zarr", output_component="../c"
        )
    relabel_sequential_zarr(tmp_path / "a.zarr", write_to=tmp_path / "b.zarr", overwrite=True)
    assert relabel_sequential_zarr(tmp_path / "a.zarr", write_to=tmp_path / "b.zarr") == 40


def test_where_labels_go_is_said_once_and_is_not_where_they_are_read(tmp_path):
    stored(tmp_path / "a.zarr", gappy(), chunks=(7, 11))
    with pytest.raises(PlanError, match="or else replaced, got in_place=False and write_to=None"):
        relabel_sequential_zarr(tmp_path / "a.zarr", in_place=False)
    with pytest.raises(PlanError, match="the name of an array in .*; a place to write to is write"):
        relabel_sequential_zarr(tmp_path / "a.zarr", tmp_path / "b.zarr")
    with pytest.raises(PlanError, match="write_to names the labels that are read"):
        relabel_sequential_zarr(tmp_path / "a.zarr", write_to=tmp_path / "a.zarr")
    with pytest.raises(PlanError, match="got in_place=True and write_to="):
        relabel_sequential_zarr(tmp_path / "a.zarr", write_to=tmp_path / "b.zarr", in_place=True)


def test_what_are_no_labels_is_refused():
    with pytest.raises(ImageError, match="whole numbers, got float64"):
        relabel_sequential_array(np.ones((2, 2)))
    with pytest.raises(ImageError, match="0 or more, got -3"):
        relabel_sequential_array(np.array([[-3, 1]]))
