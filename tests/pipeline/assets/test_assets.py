"""The assets in a row: the labels they make, what they leave for people, and what they survive."""

from __future__ import annotations

import json
import sys

import dagster as dg
import numpy as np
import pytest
import tifffile
import zarr

from patchworks_core import tile_process
from patchworks_core.seams.edge_table import EdgeTable
from patchworks_pipeline.assets import merging
from patchworks_pipeline.records import ImageFolder
from patchworks_pipeline.resources.resources import LabelStore
from tests.core.oracles import InParts, assert_same_partition, random_table
from tests.pipeline.conftest import Pipeline, error_of, metadata_of
from tests.tissue import (
    HALO,
    MARKED_KEY,
    TILE,
    files_under,
    marked_tissue,
    tissue,
    write_tiff,
)

FAILS_AT_MARK = "tissue_functions:fails_at_mark"


def merged(folder: ImageFolder) -> np.ndarray:
    return np.asarray(zarr.open_array(str(folder.labels(folder.plan()).path / "0"))[...])


@pytest.fixture
def tissue_path(tmp_path):
    return write_tiff(tmp_path / "tissue.tif", tissue())


@pytest.fixture
def marked_path(tmp_path):
    return write_tiff(tmp_path / "marked.tif", marked_tissue())


def test_the_chain_gives_the_labels_of_the_library_and_of_the_whole_image(pipeline, tissue_path):
    import tissue_functions

    folder = pipeline.register(tissue_path)
    pipeline.run_to_labels(folder)
    library = tile_process(tissue(), tissue_functions.perfect, tile_shape=TILE, overlap=HALO)
    np.testing.assert_array_equal(merged(folder), library)
    assert_same_partition(merged(folder), tissue())


def test_every_asset_leaves_what_a_person_wants_to_see(pipeline, tissue_path):
    folder = pipeline.register(tissue_path)
    done = pipeline.run_all(folder)
    n_objects = len(np.unique(tissue())) - 1

    image = metadata_of(done["plan"], "image")
    assert image["shape"] == "y 96, x 128"
    assert image["tile_shape"] == "y 32, x 32"
    assert image["halo"] == "y 8, x 8"
    assert (image["n_tiles"], image["n_tile_partitions"]) == (12, 12)
    assert image["pixel_size"] == "not calibrated"
    assert image["channel"] == "the image has one"
    assert image["workers"] == "2 workers: 2 set by the user"
    assert image["segmentation"]["function"] == "tissue_functions:perfect"
    assert image["thumbnail"].startswith("![tissue](data:image/png;base64,")

    statistics = metadata_of(done["plan"], "image_statistics")
    assert statistics["n_pixels"] == tissue().size
    assert (statistics["minimum"], statistics["maximum"]) == (0, tissue().max())

    tiles = done["stage"].asset_materializations_for_node("staged_labels")
    assert len(tiles) == 12
    assert all(tile.metadata["seconds"].value >= 0 for tile in tiles)
    n_staged = sum(tile.metadata["n_labels"].value for tile in tiles)
    assert n_staged > n_objects

    assert metadata_of(done["merge"], "boundary_pairs")["n_staged_labels"] == n_staged
    lut = metadata_of(done["merge"], "global_lut")
    assert (lut["rule"], lut["n_objects"]) == ("overlap", n_objects)
    labels = metadata_of(done["merge"], "merged_labels")
    assert (labels["n_tiles_written"], labels["n_tiles_unchanged"]) == (12, 0)
    assert labels["n_objects"] == n_objects
    assert labels["file"] == str(tissue_path)
    assert labels["overlay"].startswith("![overlay](data:image/png;base64,")
    table = metadata_of(done["merge"], "object_table")
    assert table["n_objects"] == n_objects
    report = metadata_of(done["merge"], "quality_report")
    assert report["n_objects"] == n_objects
    assert report["megapixels"] == report["megapixels_today"] == round(tissue().size / 1e6, 3)
    assert report["images_today"] == 1
    assert report["file"] == str(tissue_path)
    assert report["staging_tiles_per_second"] > 0
    for picture in ("image", "overlay", "overview", "sizes", "objects_per_tile"):
        assert (folder.report / f"{picture}.png").read_bytes().startswith(b"\x89PNG")


def test_one_failing_tile_stops_no_other_and_is_named(pipeline, marked_path):
    folder = pipeline.register(marked_path, function=FAILS_AT_MARK)
    assert pipeline.plan(folder).success
    result = pipeline.stage(folder)
    assert not result.success

    keys = pipeline.instance.get_dynamic_partitions("tiles")
    bad = f"tissue/{MARKED_KEY}"
    known = pipeline.instance.get_materialized_partitions(dg.AssetKey("staged_labels"))
    assert known == set(keys) - {bad}
    assert folder.stage().missing_blocks() == [MARKED_KEY]

    assert error_of(result) == (
        f"1 of 12 tiles failed: {bad}; the others are staged: when the cause is mended, launch job "
        "'repair_image' for the image, or materialize the failed partitions again"
    )
    (event,) = [event for event in result.all_events if event.is_step_failure]
    shown = event.step_failure_data.user_failure_data.metadata
    (row,) = shown["failed_tiles"].records
    assert row.data["tile"] == bad
    assert row.data["error"].startswith("ValueError: tissue_functions.py, line ")
    assert row.data["error"].endswith(": cannot segment [b]marked[/b] object")
    assert shown["n_failed"].value == 1
    assert "fails_at_mark" in shown["traceback_of_the_first"].value

    (failure,) = folder.failures()
    assert failure.block == MARKED_KEY
    assert "in fails_at_mark" in failure.traceback


def test_merging_refuses_an_incomplete_stage_and_names_the_missing_tile(pipeline, marked_path):
    folder = pipeline.register(marked_path, function=FAILS_AT_MARK)
    pipeline.plan(folder)
    pipeline.stage(folder)
    result = pipeline.merge(folder)
    assert not result.success
    assert "1 of 12 tile blocks are not staged" in error_of(result)
    assert f": {MARKED_KEY}; stage them before merging" in error_of(result)
    assert not folder.container.exists()


def test_a_mended_tile_gives_the_bytes_of_a_run_that_never_failed(
    pipeline, marked_path, mended, monkeypatch, tmp_path
):
    folder = pipeline.register(marked_path, function=FAILS_AT_MARK)
    pipeline.plan(folder)
    assert not pipeline.stage(folder).success
    mended.touch()
    result = pipeline.stage(folder, MARKED_KEY)
    assert result.success
    assert len(result.asset_materializations_for_node("staged_labels")) == 1
    assert folder.failures() == []
    assert pipeline.merge(folder).success

    monkeypatch.setenv("PATCHWORKS_HOME", str(tmp_path / "other"))
    with dg.DagsterInstance.ephemeral() as instance:
        never_failed = Pipeline(instance, pipeline.resources)
        other = never_failed.register(marked_path, function=FAILS_AT_MARK)
        never_failed.run_to_labels(other)
    assert files_under(folder.container / "labels") == files_under(other.container / "labels")


def test_a_run_can_be_asked_for_the_missing_tiles_only(pipeline, marked_path, mended):
    folder = pipeline.register(marked_path, function=FAILS_AT_MARK)
    pipeline.plan(folder)
    pipeline.stage(folder)
    mended.touch()
    result = pipeline.stage(folder, skip_staged=True)
    events = result.asset_materializations_for_node("staged_labels")
    (event,) = [event for event in events if "left it as it is" not in str(event.description)]
    assert event.partition == f"tissue/{MARKED_KEY}"


def test_an_image_that_cannot_be_staged_names_rule_image_tile_and_value(pipeline, tissue_path):
    folder = pipeline.register(tissue_path, function="tissue_functions:negative")
    pipeline.plan(folder)
    result = pipeline.stage(folder)
    # All fail for one reason, so the run is stopped before it has tried them all.
    assert "tiles of tissue failed, more than max_failed_fraction=0.5" in error_of(result)
    failure = folder.failures()[0]
    assert failure.error_type == "TileOutputError"
    assert str(tissue_path) in failure.message
    assert "tile (0, 0)" in failure.message
    assert "-1" in failure.message


@pytest.mark.slow
def test_other_parameters_are_another_plan_whose_tiles_are_not_mixed_with_the_old(
    pipeline, tissue_path
):
    folder = pipeline.register(tissue_path, function="tissue_functions:above")
    pipeline.run_to_labels(folder)
    old = folder.plan()
    folder = pipeline.register(
        tissue_path, function="tissue_functions:above", parameters={"level": 20}
    )
    assert pipeline.plan(folder).success
    assert folder.plan().fingerprint != old.fingerprint
    assert len(folder.stage().missing_blocks()) == 12
    with pytest.raises(RuntimeError, match="made by another plan .*segmentation parameters"):
        folder.stage(old)
    result = pipeline.merge(folder)
    assert "12 of 12 tile blocks are not staged" in error_of(result)

    assert pipeline.stage(folder).success
    assert pipeline.merge(folder).success
    assert_same_partition(merged(folder), np.where(tissue() > 20, tissue(), 0))


def test_planning_again_without_a_change_keeps_what_is_staged(pipeline, tissue_path):
    folder = pipeline.register(tissue_path)
    pipeline.run_to_labels(folder)
    result = pipeline.plan(folder)
    assert folder.stage().missing_blocks() == []
    assert metadata_of(result, "image")["n_tile_partitions_new"] == 0


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"record_version": 999}, "has layout 999, this patchworks reads"),
        ({"tile_shape": (20,)}, "was made by another plan"),
    ],
)
def test_a_stage_that_cannot_be_kept_is_said_to_be_replaced(pipeline, tissue_path, change, words):
    folder = pipeline.register(tissue_path)
    assert pipeline.plan(folder).success
    assert pipeline.stage(folder, "y000x000").success
    if "record_version" in change:
        record = folder.path / "stage.zarr" / "plan.json"
        record.write_text(json.dumps({**json.loads(record.read_text()), **change}))
    else:
        pipeline.register(tissue_path, **change)
    said = metadata_of(pipeline.plan(folder), "image")["stage"]
    assert "a stage with 1 tile blocks is replaced by an empty one" in said
    assert words in said
    assert "replaced" not in metadata_of(pipeline.plan(folder), "image")["stage"]


def test_staging_a_tile_again_rewrites_nothing_that_is_the_same(pipeline, tissue_path):
    folder = pipeline.register(tissue_path)
    pipeline.run_to_labels(folder)
    before = files_under(folder.container / "labels")
    assert pipeline.stage(folder, "y001x001").success
    labels = metadata_of(pipeline.merge(folder), "merged_labels")
    assert (labels["n_tiles_written"], labels["n_tiles_unchanged"]) == (0, 12)
    assert files_under(folder.container / "labels") == before


@pytest.mark.slow
def test_only_tiles_whose_labels_changed_are_rewritten(pipeline, marked_path, monkeypatch):
    """The function sees another environment, which no fingerprint can know."""
    import tissue_functions

    monkeypatch.setattr(tissue_functions, "MARK", -1)  # never seen: nothing fails
    folder = pipeline.register(marked_path, function=FAILS_AT_MARK)
    pipeline.run_to_labels(folder)
    before = merged(folder)
    stage = folder.stage()
    block = folder.plan().grid.block_of_key(MARKED_KEY)
    original = tissue_functions.fails_at_mark
    monkeypatch.setattr(
        tissue_functions, "fails_at_mark", lambda tile: original(tile) * (tile < 60_000)
    )
    monkeypatch.setattr(
        "patchworks_pipeline.assets.staging.planned_function",
        lambda folder, plan: _of(tissue_functions.fails_at_mark),
    )
    assert pipeline.stage(folder, MARKED_KEY).success
    labels = metadata_of(pipeline.merge(folder), "merged_labels")
    n_later = np.count_nonzero(
        [b.tiles[0].number >= block.tiles[0].number for b in stage.grid.blocks()]
    )
    assert 1 <= labels["n_tiles_written"] <= n_later
    truth = np.where(marked_tissue() == 60_000, 0, marked_tissue())
    assert_same_partition(merged(folder), truth)
    assert before.max() == merged(folder).max() + 1


def _of(function):
    from patchworks_core.plugins.segmentation import segmentation_of

    return segmentation_of(function)


@pytest.mark.parametrize(("merge", "is_more"), [("none", True), ("touching", False)])
def test_another_rule_makes_other_objects_of_the_same_stage(pipeline, tissue_path, merge, is_more):
    folder = pipeline.register(tissue_path)
    pipeline.run_to_labels(folder)
    staged, n_before = files_under(folder.path / "stage.zarr"), int(merged(folder).max())
    result = pipeline.merge(folder, merge=merge)
    assert result.success
    assert metadata_of(result, "global_lut")["rule"] == merge
    assert (merged(folder).max() > n_before) == is_more
    assert merged(folder).max() != n_before
    assert files_under(folder.path / "stage.zarr") == staged


def test_small_objects_become_background_where_it_is_asked(pipeline, tissue_path):
    folder = pipeline.register(tissue_path)
    pipeline.run_to_labels(folder, min_size=200)
    ids, areas = np.unique(tissue(), return_counts=True)
    kept = ids[(areas >= 200) & (ids > 0)]
    assert 0 < len(kept) < len(ids) - 1
    assert_same_partition(merged(folder), np.where(np.isin(tissue(), kept), tissue(), 0))


def test_an_image_without_objects_goes_through(pipeline, tmp_path):
    path = write_tiff(tmp_path / "empty.tif", np.zeros((64, 64), np.uint16))
    folder = pipeline.register(path)
    done = pipeline.run_all(folder)
    assert not merged(folder).any()
    assert metadata_of(done["merge"], "object_table")["n_objects"] == 0


@pytest.mark.slow
def test_a_volume_goes_through(pipeline, tmp_path):
    volume = tissue((12, 40, 40), n_cells=30)
    path = write_tiff(tmp_path / "volume.tif", volume, "ZYX")
    folder = pipeline.register(path, tile_shape=(6, 20, 20), overlap=(2, 6, 6))
    pipeline.run_all(folder)
    assert folder.plan().grid.axes == "zyx"
    assert_same_partition(merged(folder), volume)


def test_frames_are_never_merged_with_each_other(pipeline, tmp_path):
    movie = np.stack([tissue((48, 48)), tissue((48, 48))])
    folder = pipeline.register(write_tiff(tmp_path / "movie.tif", movie, "TYX"))
    pipeline.run_all(folder)
    assert folder.plan().grid.axes == "tyx"
    labels = merged(folder)
    for frame, truth in zip(labels, movie, strict=True):
        assert_same_partition(frame, truth)
    assert set(np.unique(labels[0])) & set(np.unique(labels[1])) == {0}


def test_many_tiles_are_grouped_in_fewer_partitions_with_the_same_labels(pipeline, tissue_path):
    single = pipeline.register(tissue_path, "single")
    pipeline.run_to_labels(single)
    pipeline.resources["segmentation"] = {"config": {"max_tile_partitions": 4}}
    grouped = pipeline.register(tissue_path, "grouped")
    done = pipeline.run_to_labels(grouped)
    image = metadata_of(done["plan"], "image")
    assert image["n_tiles"] == 12
    assert image["n_tile_partitions"] <= 4
    assert len(done["stage"].asset_materializations_for_node("staged_labels")) <= 4
    np.testing.assert_array_equal(merged(grouped), merged(single))


def test_a_function_that_changed_since_planning_is_refused(pipeline, tissue_path, tmp_path):
    module = tmp_path / "changing_function.py"
    module.write_text("def label(tile):\n    return tile.astype('int64')\n")
    sys.path.insert(0, str(tmp_path))
    try:
        folder = pipeline.register(tissue_path, function="changing_function:label")
        assert pipeline.plan(folder).success
        module.write_text("def label(tile):\n    return tile.astype('int32') * 2\n")
        result = pipeline.stage(folder)
    finally:
        sys.path.remove(str(tmp_path))
        sys.modules.pop("changing_function", None)
    assert not result.success
    assert "'changing_function:label' was planned at version" in error_of(result)
    assert "materialize image again" in error_of(result)
    assert len(folder.stage().missing_blocks()) == 12


def test_an_image_that_changed_since_planning_is_refused(pipeline, tissue_path):
    folder = pipeline.register(tissue_path)
    assert pipeline.plan(folder).success
    write_tiff(tissue_path, tissue(seed=1))
    result = pipeline.stage(folder)
    assert "changed after it was planned" in error_of(result)
    assert "plan it again" in error_of(result)


def test_an_image_in_the_landing_folder_needs_no_registration(pipeline, home):
    (home / "landing").mkdir(parents=True)
    allowed = "segmentation: {functions: ['tissue_functions:perfect']}"
    (home / "patchworks.yaml").write_text(allowed)
    write_tiff(home / "landing" / "landed.ome.tif", tissue())
    pipeline.resources["segmentation"] = {
        "config": {"function": "tissue_functions:perfect", "tile_shape": [48], "overlap": [8]}
    }
    pipeline.instance.add_dynamic_partitions("images", ["landed"])
    folder = LabelStore().folder("landed")
    pipeline.run_all(folder)
    assert_same_partition(merged(folder), tissue())


def test_an_image_that_is_nowhere_is_named_with_the_way_out(pipeline, home):
    pipeline.instance.add_dynamic_partitions("images", ["lost"])
    result = pipeline.run("plan_image", partition_key="lost")
    assert "image 'lost' is not registered and 0 acquisitions in" in error_of(result)
    assert "register it with 'patchworks run'" in error_of(result)


@pytest.mark.parametrize(
    ("asset", "record"),
    [("global_lut", "boundary_pairs.parquet"), ("merged_labels", "lut.parquet")],
)
def test_a_table_of_other_staged_labels_is_refused(pipeline, tissue_path, asset, record):
    folder = pipeline.register(tissue_path, function="tissue_functions:above")
    pipeline.run_to_labels(folder)
    pipeline.register(tissue_path, function="tissue_functions:above", parameters={"level": 20})
    pipeline.plan(folder)
    pipeline.stage(folder)
    result = pipeline.run(
        "merge_image", partition_key="tissue", asset_selection=[dg.AssetKey(asset)]
    )
    assert f"{record} of image 'tissue' was made from other staged labels" in error_of(result)


def test_an_image_that_is_not_planned_says_which_asset_is_missing(pipeline, tissue_path):
    folder = pipeline.register(tissue_path)
    result = pipeline.merge(folder)
    assert "no plan.json for image 'tissue'" in error_of(result)
    assert "materialize image first, or correct store.root of patchworks.yaml" in error_of(result)


def test_the_labels_say_how_they_were_made(pipeline, tissue_path):
    folder = pipeline.register(
        tissue_path, function="tissue_functions:above", parameters={"level": 3}
    )
    pipeline.run_to_labels(folder)
    record = json.loads((folder.labels(folder.plan()).path / "provenance.json").read_text())
    assert record["segmentation"]["parameters"] == {"level": 3}
    assert record["merge"]["rule"] == "overlap"
    assert record["image"]["url"] == str(tissue_path)
    assert record["stage"] == folder.stage().content()


@pytest.mark.slow
def test_labels_corrected_by_hand_are_merged_over_only_when_the_run_says_so(pipeline, tissue_path):
    folder = pipeline.register(tissue_path)
    pipeline.run_to_labels(folder)
    path = folder.labels(folder.plan()).path
    expected = merged(folder)
    labels = zarr.open_array(str(path / "0"), mode="r+")
    labels[0, 0] = 77
    error = error_of(pipeline.merge(folder))
    assert "a label image only replaces what patchworks wrote itself and nobody changed" in error
    assert "copy it elsewhere to keep it, and pass overwrite=True (--overwrite on the" in error
    assert labels[0, 0] == 77
    ops = {"merged_labels": {"config": {"overwrite": True}}}
    keys = [dg.AssetKey("merged_labels")]
    result = pipeline.run("merge_image", partition_key="tissue", ops=ops, asset_selection=keys)
    assert metadata_of(result, "merged_labels")["n_tiles_written"] == 12
    np.testing.assert_array_equal(merged(folder), expected)
    assert folder.provenance(folder.plan())["stage"] == folder.stage().content()
    assert pipeline.merge(folder).success


@pytest.mark.slow
def test_a_chunk_of_the_labels_that_was_lost_is_noticed_by_the_next_merge(pipeline, tissue_path):
    folder = pipeline.register(tissue_path)
    pipeline.run_to_labels(folder)
    (folder.container / "labels" / "labels" / "0" / "c" / "0" / "0").unlink()
    assert "one or more are missing" in error_of(pipeline.merge(folder))


def test_labels_that_a_killed_run_was_about_to_replace_are_there_for_who_asks(
    pipeline, tissue_path
):
    folder = pipeline.register(tissue_path)
    pipeline.run_to_labels(folder)
    path = folder.labels(folder.plan()).path
    path.with_name("labels.work").mkdir()
    path.rename(path.with_name("labels.work") / "old")
    assert folder.provenance(folder.plan())["stage"] == folder.stage().content()


def test_a_channel_is_chosen_by_its_name(pipeline, tmp_path):
    path = tmp_path / "channels.tif"
    tifffile.imwrite(
        path,
        np.stack([np.zeros_like(tissue()), tissue()]),
        ome=True,
        metadata={"axes": "CYX", "Channel": {"Name": ["empty", "cells"]}},
    )
    folder = pipeline.register(path, channel="cells")
    pipeline.run_to_labels(folder)
    assert_same_partition(merged(folder), tissue())


def test_the_figures_of_pairs_are_those_of_the_whole_table():
    assert merging.pair_figures(EdgeTable.empty())["median_iou"] == 0.0
    edges = random_table(3, 200, 8, 20)
    figures = merging.pair_figures(InParts(edges, 20))
    assert figures == {
        "n_pairs": int(edges.is_pair.sum()),
        "n_touching": int((edges.connectivity > 0).sum()),
        "n_overlapping": int((edges.intersection > 0).sum()),
        "median_iou": round(float(np.median(edges.iou[edges.is_pair])), 4),
    }
