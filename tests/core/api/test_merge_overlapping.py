"""Blocks that overlap are merged as tiles with that halo are."""

from __future__ import annotations

import dask.array as da
import numpy as np
import pytest
from dask.array import overlap as dask_overlap
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import ndimage

from patchworks_core import ImageError, PlanError, merge_tile_labels, tile_process
from patchworks_core.images.image import open_image
from patchworks_core.images.readers.memory import OverlappingBlocks
from patchworks_core.tiles.regions import Region


def image(shape, seed=0):
    noise = ndimage.gaussian_filter(np.random.default_rng(seed).random(shape), 1.5)
    return noise > np.percentile(noise, 65)


def label(tile):
    return ndimage.label(tile)[0].astype("i4")


def blocks(pixels, chunks, depth):
    overlapping = dask_overlap.overlap(
        da.from_array(pixels, chunks=chunks), depth=depth, boundary="none"
    )
    return overlapping.map_blocks(label, dtype="i4")


@settings(max_examples=6)
@given(
    n_rows=st.integers(20, 40),
    chunks=st.tuples(st.integers(12, 25), st.integers(12, 25)),
    depth=st.tuples(st.integers(1, 5), st.integers(1, 5)),
    rule=st.sampled_from(["auto", "touching", "overlap", "none"]),
)
def test_it_is_what_tile_process_gives_with_that_overlap(n_rows, chunks, depth, rule):
    pixels = image((n_rows, 40), seed=n_rows)
    overlapping = blocks(pixels, chunks, dict(enumerate(depth)))
    found = OverlappingBlocks(overlapping, depth)
    expected = tile_process(pixels, label, tile_shape=found.chunksize, overlap=depth, merge=rule)
    merged = merge_tile_labels(overlapping, overlap=depth, merge=rule)
    np.testing.assert_array_equal(merged, expected)


def test_sizes_counts_and_chunks_are_as_asked(tmp_path):
    pixels = image((64, 100))
    options = {"overlap": 6, "merge": "touching"}
    labels, n = merge_tile_labels(
        blocks(pixels, (32, 50), 6),
        tmp_path / "a.zarr",
        **options,
        min_voxels=20,
        max_voxels=400,
        output_chunks=(16, 25),
        return_count=True,
    )
    expected = tile_process(
        pixels, label, tile_shape=(32, 50), min_size=20, max_size=400, **options
    )
    assert labels.chunksize == (16, 25)
    assert n == expected.max() > 3
    np.testing.assert_array_equal(labels.compute(), expected)
    _, uncounted = merge_tile_labels(
        blocks(pixels, (32, 50), 6), **options, sequential_labels=False, return_count=True
    )
    assert uncounted is None
    other = merge_tile_labels(
        blocks(pixels, (32, 50), 6), tmp_path / "a.zarr", **options, output_chunks=(32, 10)
    )
    assert other.chunksize == (32, 10)


def test_planes_of_a_stack_overlap_within_the_plane(tmp_path):
    pixels = image((2, 40, 60))
    overlapping = blocks(pixels, (1, 20, 30), {0: 0, 1: 4, 2: 4})
    merged = merge_tile_labels(overlapping, overlap=(0, 4, 4), axes="tyx")
    expected = tile_process(pixels, label, axes="tyx", tile_shape=(20, 30), overlap=4)
    np.testing.assert_array_equal(merged, expected)


@pytest.mark.parametrize(
    ("make", "options", "error", "message"),
    [
        (lambda: np.ones((8, 8), int), {"overlap": 2}, PlanError, "is of the blocks of a dask ar"),
        (
            lambda: dask_overlap.overlap(da.ones((8, 12), chunks=4, dtype="i4"), 2, boundary=0),
            {"overlap": 2},
            ImageError,
            r"cores of one shape, .*boundary='none'",
        ),
        (
            lambda: blocks(image((64, 64)), 32, 4),
            {"overlap": (1, 2, 3)},
            PlanError,
            "one number per axis of 'yx', got .1, 2, 3.",
        ),
        (
            lambda: blocks(image((64, 64)), 32, 4),
            {"overlap": 4, "output_chunks": (5, 32)},
            PlanError,
            "a tile is whole chunks, got output_chunks=.5, 32.",
        ),
    ],
)
def test_what_does_not_fit_is_refused(make, options, error, message):
    with pytest.raises(error, match=message):
        merge_tile_labels(make(), **options)


def test_a_region_of_several_blocks_is_read_from_their_cores():
    pixels = np.arange(80).reshape(8, 10)
    array = dask_overlap.overlap(da.from_array(pixels, chunks=(4, 5)), depth=1, boundary="none")
    opened = open_image(OverlappingBlocks(array, (1, 1)))
    assert (opened.shape, opened.chunks) == ((8, 10), (4, 5))
    for region in (Region((0, 0), (8, 10)), Region((3, 2), (5, 9)), Region((0, 4), (5, 10))):
        np.testing.assert_array_equal(opened.read(region), pixels[region.slices])


@pytest.mark.slow
def test_many_small_blocks_keep_what_they_overlap():
    pixels = image((90, 100))
    merged = merge_tile_labels(blocks(pixels, (9, 10), 3), overlap=3)
    expected = tile_process(pixels, label, tile_shape=(9, 10), overlap=3)
    np.testing.assert_array_equal(merged, expected)
