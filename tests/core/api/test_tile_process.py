"""The façade end to end, held against labelling the whole image at once."""

from __future__ import annotations

import os
import tempfile
import threading
import time

import dask.array as da
import numpy as np
import pytest
import tifffile
import zarr
from scipy import ndimage
from upath import UPath

from patchworks_core import (
    ImageError,
    PlanError,
    StageError,
    TilesFailedError,
    declare,
    merge_tile_labels,
    open_image,
    segment_to_ome_zarr,
    segmentation_of,
    tile_process,
)
from tests.core.oracles import assert_same_partition
from tests.core.staging import blobs, label_components

PIXELS = blobs((70, 50), 0.55)


def whole(pixels) -> np.ndarray:
    return ndimage.label(pixels)[0]


@pytest.fixture(autouse=True)
def temporary_folder(tmp_path, monkeypatch):
    """Keep temporary folders where a test can look."""
    folder = tmp_path / "temporary"
    folder.mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(folder))
    return folder


def as_numpy(folder):
    return PIXELS


def as_dask(folder):
    return da.from_array(PIXELS, chunks=(32, 40))


def as_zarr(folder):
    array = zarr.create_array(str(folder / "z.zarr"), shape=(70, 50), chunks=(32, 40), dtype=bool)
    array[...] = PIXELS
    return array


def as_path(folder):
    as_zarr(folder)
    return folder / "z.zarr"


def as_tiff(folder):
    tifffile.imwrite(folder / "image.tif", PIXELS.astype("u1"))
    return str(folder / "image.tif")


@pytest.mark.parametrize("source", [as_numpy, as_dask, as_zarr, as_path, as_tiff])
def test_any_source_is_labelled_as_if_it_were_one_tile(source, tmp_path):
    labels = tile_process(source(tmp_path), label_components, tile_shape=32)
    assert isinstance(labels, np.ndarray)
    assert labels.dtype == np.int32
    assert_same_partition(labels, whole(PIXELS))


@pytest.mark.parametrize("source", [as_dask, as_zarr, as_path])
def test_without_a_tile_shape_the_chunks_are_the_tiles(source, tmp_path):
    seen = []

    @declare(merge="touching", version="1")
    def record_shape(tile):
        seen.append(tile.shape)
        return whole(tile)

    labels = tile_process(source(tmp_path), record_shape)
    assert sorted(seen) == sorted([(32, 40), (32, 10)] * 2 + [(6, 40), (6, 10)])
    assert_same_partition(labels, whole(PIXELS))


def test_an_array_without_chunks_needs_a_tile_shape():
    with pytest.raises(PlanError, match=r"shape \(70, 50\) has no chunks .*; give tile_shape"):
        tile_process(PIXELS, label_components)
    with pytest.raises(PlanError, match=r"chunks \(4, 4\) are too small to be tiles"):
        tile_process(da.from_array(PIXELS, chunks=4), label_components)


@pytest.mark.parametrize("connectivity", [1, 3])
def test_a_volume_is_labelled_as_if_it_were_one_tile(connectivity):
    pixels = blobs((9, 21, 14), 0.25)
    structure = ndimage.generate_binary_structure(3, connectivity)
    labels = tile_process(
        pixels,
        lambda tile: ndimage.label(tile, structure)[0],
        tile_shape=(4, 8, 8),
        connectivity=connectivity,
    )
    assert_same_partition(labels, ndimage.label(pixels, structure)[0])


def test_times_are_never_merged():
    pixels = np.ones((3, 12, 12), dtype=bool)
    labels = tile_process(pixels, label_components, axes="tyx", tile_shape=5)
    np.testing.assert_array_equal(labels, np.array([1, 2, 3]).repeat(144).reshape(3, 12, 12))


def test_one_channel_is_segmented_or_each():
    pixels = np.stack([blobs((16, 16)), blobs((16, 16), seed=1)])
    options = {"axes": "cyx", "tile_shape": 6}
    second = tile_process(pixels, label_components, channel=1, **options)
    assert_same_partition(second, whole(pixels[1]))
    each = tile_process(pixels, label_components, channel=None, **options)
    assert each.shape == pixels.shape
    for channel in (0, 1):
        assert_same_partition(each[channel], whole(pixels[channel]))
    assert set(np.unique(each[0])) & set(np.unique(each[1])) == {0}


@pytest.mark.parametrize("url", [False, True])
def test_labels_are_written_and_come_back_lazy(url, tmp_path):
    store = UPath(f"memory://process-{os.getpid()}/out.zarr") if url else tmp_path / "out.zarr"
    labels = tile_process(PIXELS, label_components, tile_shape=32, write_to=store)
    assert isinstance(labels, da.Array)
    assert (labels.dtype, labels.shape) == (np.int32, PIXELS.shape)
    assert_same_partition(labels.compute(), whole(PIXELS))
    assert sorted(p.name for p in store.iterdir()) == ["labels", "zarr.json"]
    computed = tile_process(PIXELS, label_components, tile_shape=32, write_to=store, compute=True)
    np.testing.assert_array_equal(computed, labels.compute())


def test_labels_are_written_beside_other_arrays_in_the_format_of_the_group(tmp_path):
    group = zarr.open_group(str(tmp_path / "g.zarr"), mode="w", zarr_format=2)
    group.create_array("image", data=PIXELS)
    where = {"tile_shape": 32, "write_to": tmp_path / "g.zarr"}
    tile_process(PIXELS, label_components, output_component="cells", **where)
    opened = zarr.open_group(str(tmp_path / "g.zarr"), mode="r", zarr_format=2)
    assert_same_partition(opened["cells"][...], whole(PIXELS))
    np.testing.assert_array_equal(opened["image"][...], PIXELS)


def test_labels_never_replace_what_they_are_made_from(tmp_path):
    labels = whole(PIXELS)
    store = tmp_path / "g.zarr"
    array = zarr.open_group(str(store), mode="w").create_array("labels", data=labels)
    for source in (store, str(store), array, store / "labels"):
        with pytest.raises(PlanError, match="labels is never written over what it is made from"):
            merge_tile_labels(source, store, tile_shape=32)
        np.testing.assert_array_equal(array[...], labels)
    merge_tile_labels(store, store, tile_shape=32, output_component="merged")
    assert_same_partition(zarr.open_array(str(store / "merged"))[...], labels)
    np.testing.assert_array_equal(array[...], labels)


def test_labels_that_would_lie_in_the_image_are_refused_by_the_name_of_what_was_said(tmp_path):
    path = as_path(tmp_path)
    with pytest.raises(PlanError) as refused:
        tile_process(path, label_components, tile_shape=32, write_to=path)
    assert "labels is never written over what it is made from" in str(refused.value)
    assert str(refused.value).endswith("name another output_component or write_to")


def test_labels_never_replace_a_whole_group_nor_go_into_an_array(tmp_path):
    store = tmp_path / "image.ome.zarr"
    zarr.open_group(str(store), mode="w").create_group("labels/nuclei")
    with pytest.raises(PlanError, match="labels is a whole Zarr group: nothing says that"):
        tile_process(PIXELS, label_components, tile_shape=32, write_to=store)
    assert (store / "labels" / "nuclei").exists()
    array = as_zarr(tmp_path)
    with pytest.raises(PlanError, match="written into a Zarr group, and .* is an array"):
        tile_process(PIXELS, label_components, tile_shape=32, write_to=tmp_path / "z.zarr")
    np.testing.assert_array_equal(array[...], PIXELS)


@pytest.mark.parametrize("overlap", [0, 4])
def test_nothing_is_left_in_the_temporary_folder(overlap, temporary_folder):
    tile_process(PIXELS, label_components, tile_shape=32, overlap=overlap)
    with pytest.raises(TilesFailedError):
        tile_process(PIXELS, lambda tile: 1 / 0, tile_shape=32)
    assert list(temporary_folder.iterdir()) == []


def test_input_is_never_modified_even_by_a_function_that_writes_into_its_tile():
    pixels = PIXELS.copy()

    def scribble(tile):
        labels = whole(tile)
        tile[...] = False
        return labels

    labels = tile_process(pixels, scribble, tile_shape=32, overlap=4, merge="touching")
    np.testing.assert_array_equal(pixels, PIXELS)
    assert_same_partition(labels, whole(PIXELS))


class Faulty:
    """Fails on the tile of one shape until it is mended; remembers what it was given."""

    def __init__(self) -> None:
        self.seen: list[tuple[int, ...]] = []
        self.is_broken = True

    def function(self):
        @declare(merge="touching", version="1")
        def label_or_fail(tile):
            self.seen.append(tile.shape)
            if self.is_broken and tile.shape == (6, 18):
                raise ValueError("the last tile is wrong")
            return whole(tile)

        return label_or_fail


def test_a_failing_tile_is_named_and_the_others_are_not_staged_again(tmp_path):
    faulty = Faulty()
    arguments = {"tile_shape": 32, "write_to": tmp_path / "out.zarr"}
    with pytest.raises(TilesFailedError) as caught:
        tile_process(PIXELS, faulty.function(), **arguments)
    ((key, message),) = caught.value.failures.items()
    line = 'label_or_fail: raise ValueError("the last tile is wrong")'
    assert key == "y002x001"
    assert message.endswith(f"{line}: ValueError: the last tile is wrong")
    text = str(caught.value)
    assert "1 of 6 tiles failed, the first is 'y002x001': test_tile_process.py, line " in text
    assert "in label_or_fail" in text
    assert f"the others are staged at {tmp_path / 'out.zarr' / 'labels.work'}" in text
    assert "resume=True" in text
    assert not (tmp_path / "out.zarr" / "labels").exists()

    faulty.is_broken, faulty.seen = False, []
    labels = tile_process(PIXELS, faulty.function(), resume=True, **arguments)
    assert faulty.seen == [(6, 18)]
    assert_same_partition(labels.compute(), whole(PIXELS))
    assert sorted(p.name for p in (tmp_path / "out.zarr").iterdir()) == ["labels", "zarr.json"]


def test_without_resume_every_tile_is_staged_again(tmp_path):
    faulty = Faulty()
    arguments = {"tile_shape": 32, "write_to": tmp_path / "out.zarr"}
    with pytest.raises(TilesFailedError):
        tile_process(PIXELS, faulty.function(), **arguments)
    faulty.is_broken, faulty.seen = False, []
    tile_process(PIXELS, faulty.function(), resume=False, **arguments)
    assert len(faulty.seen) == 6


def test_an_unwritten_run_that_fails_does_not_promise_staged_tiles():
    with pytest.raises(TilesFailedError, match="write_to= keeps the tiles that went well"):
        tile_process(PIXELS, lambda tile: 1 / 0, tile_shape=32)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"overlap": 2}, "halo"),
        ({"image": ~PIXELS}, "image content"),
        ({"tile_shape": 31}, "tile_shape"),
        ({"version": "2"}, "segmentation version: '2' is not '1'"),
        ({"parameters": {"k": 2}}, "segmentation parameters"),
    ],
)
def test_resume_never_takes_up_tiles_of_another_plan(change, words, tmp_path):
    def function(version="1"):
        @declare(merge="touching", version=version)
        def fail_at_the_end(tile, k=1):
            return whole(tile) if tile.shape == (32, 32) else 1 / 0

        return fail_at_the_end

    def run(*, image=PIXELS, version="1", **options):
        arguments = {"tile_shape": 32, "write_to": tmp_path / "out.zarr", **options}
        return tile_process(image, function(version), **arguments)

    with pytest.raises(TilesFailedError):
        run()
    with pytest.raises(StageError) as caught:
        run(resume=True, **change)
    assert words in str(caught.value)


class Above:
    """A function with a setting of its own."""

    def __init__(self, value: int) -> None:
        self.value = value

    def __call__(self, tile):
        return whole(tile > self.value)

    def method(self, tile):
        return self(tile)


def test_two_functions_with_other_settings_have_other_versions():
    from functools import partial

    @declare(merge="touching", version="1")
    def above(tile, value):
        return whole(tile > value)

    def closure(value):
        return lambda tile: above(tile, value)

    for make in (Above, lambda v: Above(v).method, lambda v: partial(above, value=v), closure):
        version = {value: segmentation_of(make(value)).version for value in (1, 2)}
        assert version[1] != version[2]
        assert version[1] == segmentation_of(make(1)).version


def test_a_function_that_cannot_be_told_from_others_runs():
    lock = threading.Lock()

    def locked(tile):
        with lock:
            return whole(tile)

    assert_same_partition(tile_process(PIXELS, locked, tile_shape=32), whole(PIXELS))


def test_options_that_do_not_fit_the_function_are_refused_before_any_tile_is_run(tmp_path):
    seen = []

    @declare(version="1")
    def diagonal(tile, connectivity=2):
        seen.append(tile.shape)
        return ndimage.label(tile, np.ones((3, 3)))[0]

    with pytest.raises(PlanError, match="merge connectivity 1 is not the connectivity 2"):
        tile_process(PIXELS, diagonal, tile_shape=32, connectivity=1)
    assert seen == []
    labels = tile_process(PIXELS, diagonal, tile_shape=32)
    assert_same_partition(labels, ndimage.label(PIXELS, np.ones((3, 3)))[0])


@pytest.mark.parametrize("overlap", [0, 8])
def test_an_image_without_objects_has_no_labels(overlap, tmp_path):
    empty = np.zeros((40, 40), dtype=bool)
    labels = tile_process(empty, label_components, tile_shape=16, overlap=overlap, min_size=3)
    assert (labels.shape, labels.dtype, labels.any()) == ((40, 40), np.int32, False)
    image, segmentation = open_image(empty), segmentation_of(label_components)
    written = segment_to_ome_zarr(image, segmentation, tmp_path / "a.ome.zarr", tile_shape=16)
    assert written.n_objects == 0


@pytest.mark.parametrize("shape", [(20, 1), (1, 20), (1, 1), (20,)])
def test_an_image_one_pixel_or_one_tile_wide_is_an_image(shape):
    pixels = blobs(shape)
    labels = tile_process(pixels, label_components, tile_shape=6, overlap=2, merge="touching")
    assert_same_partition(labels, whole(pixels))
    one = tile_process(pixels, label_components, tile_shape=-1, overlap=2)
    np.testing.assert_array_equal(one, whole(pixels))


@declare(merge="touching", version="1")
def slow_by_content(tile):
    """Finish in another order than started: the more objects, the sooner."""
    time.sleep(0.03 * float(1 - tile.mean()))
    return ndimage.label(tile)[0]


@pytest.mark.slow
@pytest.mark.parametrize(
    ("max_workers", "workers"), [(2, "threads"), (4, "threads"), (2, "processes")]
)
def test_the_bytes_do_not_depend_on_workers_or_order_of_completion(max_workers, workers, tmp_path):
    densities = np.random.default_rng(0).random((5, 4)).repeat(16, 0).repeat(16, 1)
    pixels = np.random.default_rng(1).random(densities.shape) < densities

    def written(name, **options):
        store = tmp_path / name
        tile_process(pixels, slow_by_content, tile_shape=16, overlap=2, write_to=store, **options)
        files = (f for f in store.rglob("*") if f.is_file())
        return {str(f.relative_to(store)): f.read_bytes() for f in files}

    one = written("one")
    assert written("many", max_workers=max_workers, workers=workers) == one


def test_objects_below_the_least_size_are_dropped_only_after_merging():
    pixels = np.zeros((8, 16), dtype=bool)
    pixels[2, 6:10] = True  # 4 pixels, 2 on either side of the seam
    pixels[5, 2:4] = True
    labels = tile_process(pixels, label_components, tile_shape=8, min_size=3)
    wanted = np.zeros((8, 16), dtype=int)
    wanted[2, 6:10] = 1
    np.testing.assert_array_equal(labels, wanted)


def test_ids_are_numbered_by_first_appearance_or_keep_gaps():
    pixels = blobs((30, 30))
    labels = tile_process(pixels, label_components, tile_shape=8)
    n_objects = whole(pixels).max()
    assert set(np.unique(labels)) == set(range(n_objects + 1))
    gappy = tile_process(pixels, label_components, tile_shape=8, sequential_labels=False)
    assert_same_partition(gappy, labels)
    assert gappy.max() > n_objects


def test_merge_none_leaves_every_tile_alone():
    labels = tile_process(np.ones((8, 8), bool), label_components, tile_shape=4, merge="none")
    assert len(np.unique(labels)) == 4


def test_progress_is_told_step_by_step():
    told = []
    tile_process(PIXELS, label_components, tile_shape=32, progress=lambda *step: told.append(step))
    assert told == [
        *(("stage", n, 6) for n in range(1, 7)),
        ("pair", 1, 1),
        *(("apply", n, 6) for n in range(1, 7)),
    ]


def labelled_apart(pixels, chunks) -> da.Array:
    blocks = da.from_array(pixels, chunks=chunks)
    return blocks.map_blocks(lambda block: ndimage.label(block)[0], dtype="int32")


def test_labels_that_were_made_per_chunk_are_merged():
    merged = merge_tile_labels(labelled_apart(PIXELS, (16, 9)))
    assert_same_partition(merged, whole(PIXELS))


def test_labels_of_a_time_series_are_merged_within_each_time():
    series = np.stack([PIXELS, PIXELS])
    merged = merge_tile_labels(labelled_apart(series, (1, 16, 9)), axes="tyx")
    assert_same_partition(merged[0], whole(PIXELS))
    assert set(np.unique(merged[0])) & set(np.unique(merged[1])) == {0}


def test_labels_in_a_store_are_merged_into_another(tmp_path):
    labels = labelled_apart(PIXELS, (32, 40)).compute()
    group = zarr.open_group(str(tmp_path / "in.zarr"), mode="w")
    group.create_array("labels", data=labels, chunks=(32, 40))
    for source in (tmp_path / "in.zarr", str(tmp_path / "in.zarr"), group, group["labels"]):
        merged = merge_tile_labels(source, tmp_path / "out.zarr")
        assert isinstance(merged, da.Array)
        assert_same_partition(merged.compute(), whole(PIXELS))
    np.testing.assert_array_equal(group["labels"][...], labels)


def test_labels_whose_tiles_cannot_be_known_are_refused():
    uneven = labelled_apart(PIXELS, ((16, 30, 24), (25, 25)))
    with pytest.raises(PlanError, match=r"got chunks \(16, 30, 24\) along 'y'"):
        merge_tile_labels(uneven)
    with pytest.raises(PlanError, match="have no chunks that say which tiles"):
        merge_tile_labels(PIXELS.astype(int))


def test_labels_to_merge_must_be_labels():
    with pytest.raises(ImageError, match="labels are whole numbers"):
        merge_tile_labels(np.full((4, 4), 1.5), tile_shape=2)
    with pytest.raises(ImageError, match="got bool .* label the objects of a mask first"):
        merge_tile_labels(np.ones((4, 4), dtype=bool), tile_shape=2)
    with pytest.raises(TilesFailedError, match="labels are >= 0"):
        merge_tile_labels(np.full((4, 4), -1), tile_shape=2)


def test_an_image_becomes_an_ome_zarr_label_image_and_nothing_else_is_left(tmp_path):
    image, segmentation = open_image(PIXELS), segmentation_of(label_components)
    where = tmp_path / "a.ome.zarr"
    written = segment_to_ome_zarr(image, segmentation, where, name="blobs", tile_shape=32)
    assert_same_partition(zarr.open_array(str(written.path / "0"))[...], whole(PIXELS))
    assert written.n_objects == whole(PIXELS).max()
    assert sorted(p.name for p in (where / "labels").iterdir()) == ["blobs", "zarr.json"]
    with pytest.raises(PlanError, match="needs two or three spatial axes, got 'x'"):
        segment_to_ome_zarr(open_image(PIXELS[0]), segmentation, where, tile_shape=8)


def test_a_container_of_the_wrong_format_is_refused_before_any_tile_is_run(tmp_path):
    zarr.open_group(str(tmp_path / "a.ome.zarr"), mode="w", zarr_format=2)
    never = segmentation_of(declare(version="1")(lambda tile: 1 / 0))
    with pytest.raises(PlanError, match=r"is Zarr v2, .* write version '0.4'"):
        segment_to_ome_zarr(open_image(PIXELS), never, tmp_path / "a.ome.zarr", tile_shape=32)
