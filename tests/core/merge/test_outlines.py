"""Outlines of a stage: the same for every schedule, redrawn where strips changed, and counted."""

from __future__ import annotations

import random
from dataclasses import replace

import numpy as np
import pytest

from patchworks_core import (
    PlanError,
    declare,
    make_local_cluster,
    merge_stage,
    merge_tile_labels,
    plan_tiles,
    segment_to_ome_zarr,
    stage_tile,
    tile_process,
)
from patchworks_core.files.label_arrays import create_label_array
from patchworks_core.files.storage import as_path, open_array
from patchworks_core.images.image import open_image
from patchworks_core.machine.pools import Pool
from patchworks_core.machine.workers import Workers
from patchworks_core.merge.apply import apply_lut, create_apply_records
from patchworks_core.merge.outlines import drawn_areas, outlines_of
from patchworks_core.merge.pairing import _PairTask, pair_tiles
from patchworks_core.merge.steps import look_up, measure_drawn
from patchworks_core.seams import views
from patchworks_core.seams.rules import MergeOptions
from patchworks_core.stage.stage import Stage
from patchworks_core.stage.staging import Staging, stage_blocks
from tests.core.oracles import assert_same_partition
from tests.core.staging import rows_of, stage_into
from tests.functions.tissue_functions import perfect, wavering
from tests.tissue import tissue

FEATHERED = MergeOptions("overlap", 1, outline="feather")
TILES = {"tile_shape": 32, "overlap": 8}


def merged(stage: Stage, folder, options=FEATHERED, *, workers=None, allow_missing=False):
    """Merge a stage into an array of a folder, as calls do; return it and the blocks written."""
    folder = as_path(folder)
    with Pool.open(workers or Workers()) as pool:
        edges = rows_of(pair_tiles(stage, pool=pool, allow_missing=allow_missing))
        rows = np.random.default_rng(len(edges)).permutation(len(edges))
        edges = edges.select(rows)  # tiles are paired in any order
        outlines = outlines_of(stage, edges, options, allow_missing=allow_missing)
        lut = look_up(
            stage, edges, options, outlines=outlines, pool=pool, allow_missing=allow_missing
        )
        if not (folder / "0").exists():
            create_label_array(folder / "0", stage.grid, lut.dtype)
            create_apply_records(folder / "applied", stage.grid)
        places = {"labels": folder / "0", "records": folder / "applied"}
        blocks = list(apply_lut(stage, lut, **places, pool=pool, outlines=outlines))
    return np.asarray(open_array(folder / "0")[...]), {block.key for block in blocks}


@pytest.fixture
def stage(tmp_path) -> Stage:
    return stage_into(tmp_path / "stage", tissue(), wavering, **TILES)


def test_every_schedule_gives_the_same_bytes(tmp_path, stage):
    labels, written = merged(stage, tmp_path / "one")
    assert len(written) == stage.grid.n_blocks
    cores, _ = merged(stage, tmp_path / "cores", replace(FEATHERED, outline="core"))
    assert (labels != cores).any()
    keys = stage.grid.block_keys()
    random.Random(1).shuffle(keys)
    other = stage_into(tmp_path / "other", tissue(), wavering, keys=keys, **TILES)
    for n, workers in enumerate((Workers(2), Workers(2, "processes"))):
        again, _ = merged(other, tmp_path / f"again{n}", workers=workers)
        np.testing.assert_array_equal(again, labels)


@pytest.mark.slow
def test_workers_of_dask_draw_the_same(tmp_path):
    options = {**TILES, "merge": "overlap", "outline": "feather", "compute": True}
    here = tile_process(tissue(), wavering, **options)
    cores = tile_process(tissue(), wavering, **{**options, "outline": "core"})
    assert (here != cores).any()
    with make_local_cluster(n_workers=2) as client:
        there = tile_process(tissue(), wavering, client=client, **options)
    np.testing.assert_array_equal(here, there)


def test_tiles_in_blocks_are_drawn_as_tiles_on_their_own(tmp_path, stage):
    labels, _ = merged(stage, tmp_path / "one")
    blocks = stage_into(tmp_path / "blocks", tissue(), wavering, max_blocks=4, **TILES)
    assert blocks.grid.n_blocks <= 4
    in_blocks, _ = merged(blocks, tmp_path / "two")
    np.testing.assert_array_equal(in_blocks, labels)


def partly_wavering(tile):
    """The true labels, of some tiles moved by a pixel."""
    return np.roll(tile.astype(np.int64), int(tile.max()) % 4 == 0, axis=0)


@pytest.mark.parametrize(
    ("function", "max_blocks"), [(perfect, None), (partly_wavering, None), (partly_wavering, 4)]
)
def test_blocks_on_which_all_agree_are_counted_and_written_as_if_drawn(
    tmp_path, monkeypatch, function, max_blocks
):
    keys = None if max_blocks else [f"y00{y}x00{x}" for y in range(3) for x in range(3)]
    options = {**TILES, "keys": keys} | ({"max_blocks": max_blocks} if max_blocks else {})
    staged = stage_into(tmp_path / "stage", tissue(), function, **options)
    sized = replace(FEATHERED, min_size=40)
    there = merged(staged, tmp_path / "there", sized, allow_missing=True)[0]
    monkeypatch.setattr(views._Reader, "agree", lambda *args: False)
    drawn = merged(staged, tmp_path / "drawn", sized, allow_missing=True)[0]
    np.testing.assert_array_equal(there, drawn)


def test_pairing_reads_of_each_neighbour_what_it_compares(tmp_path, monkeypatch, stage):
    asked = []
    strips = Stage.strips

    def counted(self, block, places=None):
        asked.append((block.index, places))
        return strips(self, block, places)

    monkeypatch.setattr(Stage, "strips", counted)
    blank = np.zeros(stage.grid.n_tiles, dtype=bool)
    _PairTask(stage, np.zeros(0, np.int64), blank, stage.file_for_task("pairs"), 9999)([[0]])
    assert all(places is not None and len(places) == 1 for _, places in asked)
    # Both upper strips of the tile, one of each neighbour, and the lower one at the corner.
    assert len(asked) == 2 + 3


def test_a_tile_is_rewritten_where_its_own_or_a_neighbours_strips_changed(tmp_path, stage):
    _, _ = merged(stage, tmp_path / "labels")
    assert merged(stage, tmp_path / "labels")[1] == set()
    block = stage.grid.block_of_key("y001x001")
    image = open_image(tissue())
    with Pool.open(Workers()) as pool:
        list(stage_blocks(Staging(image, stage, perfect, measures=True), [block], pool=pool))
    options = replace(FEATHERED, sequential=False)
    labels, _ = merged(stage, tmp_path / "labels", options)
    fresh, _ = merged(stage, tmp_path / "fresh", options)
    np.testing.assert_array_equal(labels, fresh)


def test_what_lies_far_from_a_change_is_not_rewritten(tmp_path):
    pixels = tissue((160, 160), n_cells=90)
    stage = stage_into(tmp_path / "stage", pixels, wavering, **TILES)
    options = replace(FEATHERED, sequential=False)
    merged(stage, tmp_path / "labels", options)
    block = stage.grid.block_of_key("y000x000")

    def otherwise_in_its_halo(tile):
        labels = wavering(tile)
        labels[:, 34] = labels[:, 35]
        return labels

    with Pool.open(Workers()) as pool:
        staging = Staging(open_image(pixels), stage, otherwise_in_its_halo)
        list(stage_blocks(staging, [block], pool=pool))
    labels, written = merged(stage, tmp_path / "labels", options)
    fresh, _ = merged(stage, tmp_path / "fresh", options)
    np.testing.assert_array_equal(labels, fresh)
    assert written == {"y000x000", "y000x001", "y001x000", "y001x001"}


def test_strips_that_changed_where_the_core_did_not_are_noticed(tmp_path, stage):
    before = stage.digests(), stage.strip_digests()
    block, image = stage.grid.block_of_key("y001x001"), open_image(tissue())
    (tile,) = block.tiles

    def sees_nothing_around(pixels):
        labels = wavering(pixels)
        inside = tile.core.slices_from(tile.read.start)
        only = np.zeros_like(labels)
        only[inside] = labels[inside]
        return only

    with Pool.open(Workers()) as pool:
        list(stage_blocks(Staging(image, stage, sees_nothing_around), [block], pool=pool))
    np.testing.assert_array_equal(stage.digests(), before[0])
    changed = np.argwhere(stage.strip_digests() != before[1])
    assert changed.tolist() == [[1, 1]]


def test_sizes_are_filtered_as_objects_are_drawn(tmp_path, stage):
    everything, _ = merged(stage, tmp_path / "all", replace(FEATHERED, sequential=False))
    limits = replace(FEATHERED, sequential=False, min_size=120, max_size=700)
    labels, _ = merged(stage, tmp_path / "limited", limits)
    sizes = np.bincount(everything.ravel())
    wrong = (sizes < 120) | (sizes > 700)
    wrong[0] = False
    assert wrong[np.unique(everything)].any()
    np.testing.assert_array_equal(labels, np.where(wrong[everything], 0, everything))
    numbered, _ = merged(stage, tmp_path / "numbered", replace(limits, sequential=True))
    assert_same_partition(numbered, labels)
    assert np.unique(numbered).tolist() == [*range(numbered.max() + 1)]


def test_areas_are_those_of_the_labels_that_are_written(tmp_path, stage):
    options = replace(FEATHERED, sequential=False)
    labels, _ = merged(stage, tmp_path / "all", options)
    with Pool.open(Workers()) as pool:
        outlines = outlines_of(stage, pair_tiles(stage, pool=pool), options)
        areas = drawn_areas(stage, outlines, pool)
    np.testing.assert_array_equal(areas, np.bincount(labels.ravel(), minlength=len(areas) + 1)[1:])


def test_drawn_objects_are_measured_as_they_are_drawn(tmp_path, stage):
    labels, _ = merged(stage, tmp_path / "all")
    with Pool.open(Workers()) as pool:
        array = open_array(as_path(tmp_path / "all") / "0")
        sums = measure_drawn(stage.grid, array, open_image(tissue()), pool)
    np.testing.assert_array_equal(sums.label, np.unique(labels[labels > 0]))
    np.testing.assert_array_equal(sums.area, np.bincount(labels.ravel())[sums.label])
    total = np.bincount(labels.ravel(), tissue().ravel())[sums.label]
    np.testing.assert_array_equal(sums.intensity_sum, total)


def test_nothing_is_drawn_into_a_tile_that_is_missing(tmp_path):
    keys = [f"y00{y}x00{x}" for y in range(3) for x in range(4) if (y, x) != (1, 1)]
    stage = stage_into(tmp_path / "stage", tissue(), wavering, keys=keys, **TILES)
    labels, _ = merged(stage, tmp_path / "labels", allow_missing=True)
    hole = stage.grid.tile((1, 1)).core
    assert not labels[hole.slices].any()
    assert labels.any()


def test_an_object_reaches_into_a_tile_that_found_nothing(tmp_path):
    pixels = np.zeros((20, 40), np.uint16)
    pixels[6:14, 10:24] = 1

    def blind_on_the_right(tile):
        return tile.astype(int) * (tile.sum() > 100)

    staged = stage_into(
        tmp_path / "stage", pixels, blind_on_the_right, tile_shape=(-1, 20), overlap=8
    )
    assert staged.counts().ravel().tolist() == [1, 0]
    labels, _ = merged(staged, tmp_path / "labels")
    assert labels[:, 20:].any()


@pytest.mark.parametrize("outline", ["auto", "feather", "core"])
def test_one_call_per_tile_and_at_once_draw_the_same(tmp_path, outline):
    options = {**TILES, "merge": "overlap", "outline": outline}
    labels = tile_process(tissue(), wavering, **options)
    planned = plan_tiles(tissue(), wavering, tmp_path / "stage", **options)
    for tile in reversed(range(planned.n_tiles)):
        stage_tile(planned, tile)
    np.testing.assert_array_equal(merge_stage(planned), labels)
    other = "core" if outline != "core" else "feather"
    assert (merge_stage(planned, outline=other) != labels).any()


def test_blocks_that_overlap_are_feathered_too():
    import dask.array as da

    image = da.from_array(tissue(), chunks=32)
    wide = da.overlap.overlap(image, 8, boundary="none")
    blocks = wide.map_blocks(wavering, dtype=np.int64)
    labels = merge_tile_labels(blocks, overlap=8, merge="overlap")
    cores = merge_tile_labels(blocks, overlap=8, merge="overlap", outline="core")
    assert (np.asarray(labels) != np.asarray(cores)).any()


def test_labels_of_another_outline_are_not_taken_for_complete(tmp_path):
    options = {**TILES, "merge": "overlap", "name": "cells"}
    path = tmp_path / "labels.ome.zarr"
    core = segment_to_ome_zarr(tissue(), wavering, path, outline="core", **options)
    before = np.asarray(open_array(as_path(core.path) / "0")[...])
    segment_to_ome_zarr(tissue(), wavering, path, outline="feather", **options)
    after = np.asarray(open_array(as_path(core.path) / "0")[...])
    assert (before != after).any()


def test_a_function_may_declare_that_its_cores_are_exact():
    @declare(version="1", outline="core")
    def exact(tile):
        return wavering(tile)

    cores = tile_process(tissue(), wavering, outline="core", **TILES)
    np.testing.assert_array_equal(tile_process(tissue(), exact, **TILES), cores)
    assert (tile_process(tissue(), wavering, **TILES) != cores).any()


def test_feathering_without_overlap_is_refused():
    with pytest.raises(PlanError, match="outline='feather' needs an overlap of 2 pixels or more"):
        tile_process(tissue(), wavering, tile_shape=32, merge="overlap", outline="feather")
