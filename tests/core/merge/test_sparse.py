"""Tiles without labels: paired, and merged from labels that are not stored, without being read."""

from __future__ import annotations

import numpy as np
import pytest
import zarr

from patchworks_core import ImageError, StageError, merge_tile_labels, tile_process
from patchworks_core.api import job as jobs
from patchworks_core.images.image import Image, open_image
from patchworks_core.images.readers import zarr_decoding
from patchworks_core.images.readers.zarr_decoding import stores_none
from patchworks_core.machine.pools import Pool
from patchworks_core.machine.workers import Workers
from patchworks_core.merge import pairing
from patchworks_core.merge.pairing import pair_tiles
from patchworks_core.tiles.regions import Region
from tests.core.oracles import assert_same_partition
from tests.core.staging import blobs, label_components, rows_of, stage_into

SHAPE, TILE = (40, 64), 8


def islands(shape=SHAPE, tile=TILE) -> np.ndarray:
    """Labels, tile by tile, in one tile of eight or so, some of them in contact."""
    rng = np.random.default_rng(4)
    labels = np.zeros(shape, dtype=np.uint16)
    for y in range(0, shape[0], tile):
        for x in range(0, shape[1], tile):
            if rng.random() < 0.2:
                labels[y : y + tile, x : x + tile] = rng.integers(0, 3, (tile, tile))
    return labels


def stored(folder, labels, **options) -> zarr.Array:
    """Write labels; chunks of background are not stored, as Zarr does by default."""
    array = zarr.create_array(
        str(folder),
        shape=labels.shape,
        chunks=options.pop("chunks", (TILE, TILE)),
        dtype=labels.dtype,
        fill_value=options.pop("fill_value", 0),
        **options,
    )
    array[...] = labels
    return array


@pytest.fixture
def regions_read(monkeypatch):
    regions = []
    read = Image.read

    def counted(self, region):
        regions.append(region)
        return read(self, region)

    monkeypatch.setattr(Image, "read", counted)
    return regions


@pytest.mark.parametrize("overlap", [0, 2])
@pytest.mark.parametrize("max_blocks", [None, 4])
def test_the_table_of_sparse_tiles_is_that_of_reading_all(
    overlap, max_blocks, tmp_path, monkeypatch
):
    pixels = islands() > 0
    stage = stage_into(
        tmp_path / "stage", pixels, tile_shape=TILE, overlap=overlap, max_blocks=max_blocks
    )
    with Pool.open(Workers()) as pool:
        edges = rows_of(pair_tiles(stage, pool=pool))
        blank = pairing._blank_tiles(stage, stage.settled_counts())
        assert 0 < blank.sum() < stage.grid.n_tiles or (overlap and max_blocks)
        monkeypatch.setattr(pairing, "_blank_tiles", lambda *_: np.zeros(blank.shape, dtype=bool))
        assert edges.to_arrow().equals(rows_of(pair_tiles(stage, pool=pool)).to_arrow())
    assert len(edges)


@pytest.mark.parametrize("overlap", [0, 2])
def test_a_blank_tile_sees_no_label_anywhere(overlap, tmp_path):
    stage = stage_into(tmp_path / "stage", islands() > 0, tile_shape=TILE, overlap=overlap)
    blank = pairing._blank_tiles(stage, stage.settled_counts())
    for block in stage.grid.blocks():
        sees = any(strips.any() for strips in stage.strips(block).values())
        assert blank[block.tiles[0].number] != sees or (not overlap and not sees)


def test_tiles_that_are_not_stored_are_not_read(tmp_path, regions_read):
    labels = islands()
    array = stored(tmp_path / "tiles.zarr", labels)
    merged = np.asarray(merge_tile_labels(array))
    read = {region.start for region in regions_read}
    there = [start for start in np.ndindex(*SHAPE) if not np.mod(start, TILE).any()]
    with_labels = {(y, x) for y, x in there if labels[y : y + TILE, x : x + TILE].any()}
    assert read == with_labels
    assert 0 < len(with_labels) < len(there)
    whole = np.asarray(merge_tile_labels(labels, tile_shape=TILE))
    np.testing.assert_array_equal(merged, whole)


@pytest.mark.parametrize(
    "options",
    [
        {"fill_value": 3},
        {"config": {"write_empty_chunks": True}},
        {"shards": (2 * TILE, 2 * TILE)},
        {"chunks": (TILE - 3, TILE + 5)},
        {"zarr_format": 2},
        {"zarr_format": 2, "fill_value": None},
    ],
    ids=str,
)
def test_merged_labels_are_the_same_however_they_are_stored(options, tmp_path):
    labels = islands()
    array = stored(tmp_path / "tiles.zarr", labels, **options)
    merged = np.asarray(merge_tile_labels(array, tile_shape=TILE))
    whole = np.asarray(merge_tile_labels(labels, tile_shape=TILE))
    np.testing.assert_array_equal(merged, whole)


def test_tiles_of_a_fill_value_are_labels(tmp_path):
    array = zarr.create_array(
        str(tmp_path / "tiles.zarr"), shape=(8, 8), chunks=(4, 4), dtype="u2", fill_value=3
    )
    with pytest.warns(UserWarning, match="4 of 4 chunks .* not stored"):
        assert np.asarray(merge_tile_labels(array)).min() == 1


@pytest.mark.parametrize("dtype", ["f4", "b1", "c8"])
def test_what_cannot_be_labels_is_refused_before_any_tile(dtype, tmp_path, regions_read):
    array = zarr.create_array(
        str(tmp_path / "tiles.zarr"), shape=(8, 8), chunks=(4, 4), dtype=dtype
    )
    with pytest.raises(ImageError, match="whole numbers|integers or floats"):
        merge_tile_labels(array)
    with pytest.raises(ImageError, match="whole numbers|integers or floats"):
        merge_tile_labels(tmp_path / "tiles.zarr")
    assert not regions_read


def test_what_is_kept_of_a_tile_does_not_tell_that_it_was_not_read(tmp_path, monkeypatch):
    array = stored(tmp_path / "tiles.zarr", islands())
    kept = {}
    for name in ("left", "read"):
        target, stage = tmp_path / f"{name}.zarr", tmp_path / name
        merge_tile_labels(array, write_to=target, stage_dir=stage, keep_stage=True)
        kept[name] = {path.name: path.read_bytes() for path in stage.rglob("*.tiles")}
        monkeypatch.setattr(Image, "is_unstored", lambda *_: False)
    assert len(kept["left"]) == 40
    assert kept["left"] == kept["read"]


def test_a_chunk_that_is_stored_later_is_seen(tmp_path, monkeypatch):
    labels = islands()
    array = stored(tmp_path / "tiles.zarr", labels)
    y, x = next(
        (y, x)
        for y in range(0, SHAPE[0], TILE)
        for x in range(0, SHAPE[1], TILE)
        if not labels[y : y + TILE, x : x + TILE].any()
    )
    check = jobs.check_image

    def late(staging, *, pool):
        array[y : y + TILE, x : x + TILE] = 1
        check(staging, pool=pool)

    monkeypatch.setattr(jobs, "check_image", late)
    with pytest.raises(StageError, match="1 of 40 tile blocks staged .* are of other pixels"):
        merge_tile_labels(array, write_to=tmp_path / "labels.zarr")


def test_a_function_sees_tiles_that_are_not_stored(tmp_path):
    array = stored(tmp_path / "tiles.zarr", islands())
    labels = np.asarray(tile_process(array, _of_background, tile_shape=TILE))
    assert labels.min() == 1


def _of_background(tile):
    return np.ones(tile.shape, dtype=np.int32)


def test_what_may_not_be_looked_at_counts_as_stored(tmp_path, monkeypatch):
    image = open_image(stored(tmp_path / "tiles.zarr", np.zeros(SHAPE, np.uint16)))
    whole = Region((0, 0), SHAPE)
    assert image.is_unstored(whole)

    def refused(path):
        raise PermissionError(13, "Permission denied", path)

    monkeypatch.setattr(zarr_decoding.os, "stat", refused)
    assert not image.is_unstored(whole)


def test_an_array_in_memory_stores_all():
    assert not stores_none(np.zeros((4, 4)), (slice(0, 4), slice(0, 4)))
    assert not open_image(np.zeros((4, 4), np.uint8)).is_unstored(Region((0, 0), (4, 4)))


def test_sparse_components_are_those_of_the_whole_image(tmp_path):
    pixels = blobs(SHAPE, 0.02) & (islands() > 0)
    labels = np.asarray(tile_process(pixels, label_components, tile_shape=TILE))
    assert_same_partition(labels, label_components(pixels))
