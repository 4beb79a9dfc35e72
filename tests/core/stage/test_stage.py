"""The stage on disk: its commit record, its identity, its blocks."""

from __future__ import annotations

import os
import pickle
import shutil
import signal
import subprocess
import sys
import uuid
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import ndimage

from patchworks_core.errors import PlanError, StageError
from patchworks_core.files import packed
from patchworks_core.images.image import open_image
from patchworks_core.machine.pools import Pool
from patchworks_core.machine.workers import Workers
from patchworks_core.merge.pairing import pair_tiles
from patchworks_core.merge.steps import look_up
from patchworks_core.plugins.segmentation import declare
from patchworks_core.seams.edge_table import EdgeTable
from patchworks_core.seams.rules import MergeOptions
from patchworks_core.seams.strips import HIGH, LOW, strip_axes
from patchworks_core.stage.plan import Plan
from patchworks_core.stage.stage import Stage
from patchworks_core.stage.staging import Staging, stage_blocks
from tests.core.oracles import assert_same_partition, examples
from tests.core.staging import (
    blobs,
    block_file,
    change_array,
    label_components,
    merged_of,
    plan_of,
    stage_into,
)


@declare(merge="touching", version="2")
def newer_version(tile):
    return ndimage.label(tile)[0]


class Crash(Exception):
    """Stands for a process that is killed."""


def staged_tile(stage, key, image):
    """Run one block as the stage step does, in this thread."""
    return Staging(image, stage, label_components)(stage.grid.block_of_key(key))


@pytest.mark.parametrize("step", ["os.replace", "pathlib.Path.write_bytes"])
def test_a_tile_killed_while_it_is_written_was_not_staged(step, tmp_path, monkeypatch):
    image, plan = plan_of(blobs((8, 8)))
    stage = Stage.create(tmp_path / "stage", plan)
    stage_into(tmp_path / "stage", blobs((8, 8)), keys=["y000x000"])
    monkeypatch.setattr(step, lambda *a: (_ for _ in ()).throw(Crash(step)))
    with pytest.raises(Crash):
        staged_tile(stage, "y001x001", image)
    monkeypatch.undo()
    missing = Stage.open(tmp_path / "stage", plan).missing_blocks()
    assert missing == ["y000x001", "y001x000", "y001x001"]


def test_a_tile_is_one_file(tmp_path):
    image, plan = plan_of(blobs((8, 8)), overlap=1)
    stage = Stage.create(tmp_path / "stage", plan)
    before = set((tmp_path / "stage").rglob("*"))
    staged_tile(stage, "y000x000", image)
    made = {path for path in (tmp_path / "stage").rglob("*") if path.is_file()} - before
    assert [path.name for path in made] == ["y000x000.tiles"]


def test_a_worker_of_an_earlier_call_commits_nothing_into_a_stage_that_was_begun_anew(tmp_path):
    image, plan = plan_of(blobs((8, 8)))
    old = Stage.create(tmp_path / "stage", plan)
    sent = pickle.dumps(old)
    new = Stage.create(tmp_path / "stage", plan)
    with pytest.raises(StageError, match="was begun anew by another call while tile block 'y000x0"):
        staged_tile(old, "y000x000", image)
    with pytest.raises(StageError, match="another call began the stage at .* anew since"):
        pickle.loads(sent)
    assert len(new.missing_blocks()) == 4


def test_a_file_of_another_plan_is_not_taken_for_one_of_this(tmp_path):
    pixels = blobs((8, 8))
    stage = stage_into(tmp_path / "stage", pixels)
    other = stage_into(tmp_path / "other", ~pixels)
    shutil.copy(block_file(other.path, "y000x001"), block_file(stage.path, "y000x001"))
    assert stage.missing_blocks() == ["y000x001"]
    with pytest.raises(StageError, match="'y000x001' is not staged"):
        stage.labels(stage.grid.block_of_key("y000x001"))


class TakenBackMeanwhile(Stage):
    """A stage of which another call takes back a tile, each time that its counts were read."""

    def counts(self):
        counts = super().counts()
        self.forget(self.grid.block_of_key("y001x001"))
        return counts


def test_a_seam_of_a_tile_that_is_taken_back_while_tiles_are_paired_is_an_error(tmp_path):
    plan = stage_into(tmp_path / "stage", blobs((8, 8))).plan
    stage = TakenBackMeanwhile(tmp_path / "stage", plan)
    with Pool.open(Workers()) as pool, pytest.raises(StageError, match="'y001x001' is not staged"):
        pair_tiles(stage, pool=pool)


def test_labels_of_a_tile_that_is_taken_back_while_they_are_counted_are_not_lost(tmp_path):
    plan = stage_into(tmp_path / "stage", blobs((8, 8))).plan
    n_labels = Stage.open(tmp_path / "stage", plan).counts().sum()
    stage = TakenBackMeanwhile(tmp_path / "stage", plan)
    with Pool.open(Workers()) as pool:
        lut = look_up(stage, EdgeTable.empty(), MergeOptions("none"), pool=pool)
    assert lut.n_staged == n_labels


def test_sizes_are_not_those_of_a_tile_that_is_taken_back_meanwhile(tmp_path):
    plan = stage_into(tmp_path / "stage", blobs((8, 8))).plan
    stage = TakenBackMeanwhile(tmp_path / "stage", plan)
    options = MergeOptions("none", min_size=2)
    with Pool.open(Workers()) as pool, pytest.raises(StageError, match="'y001x001' is not staged"):
        look_up(stage, EdgeTable.empty(), options, pool=pool)


def test_sizes_are_not_those_of_a_tile_that_was_staged_again_meanwhile(tmp_path):
    stage = stage_into(tmp_path / "stage", blobs((8, 8)))
    counts = stage.settled_counts()
    counts[-1] += 1
    stage.settled_counts = lambda **_: counts
    options = MergeOptions("none", min_size=2)
    with (
        Pool.open(Workers()) as pool,
        pytest.raises(StageError, match="'y001x001' .* was staged again while it was merged"),
    ):
        look_up(stage, EdgeTable.empty(), options, pool=pool)


def test_a_tile_killed_while_it_is_staged_again_was_not_staged(tmp_path, monkeypatch):
    pixels = blobs((8, 8))
    stage = stage_into(tmp_path / "stage", pixels)
    assert stage.missing_blocks() == []
    monkeypatch.setattr(stage, "write", lambda block, tiles: (_ for _ in ()).throw(Crash))
    with pytest.raises(Crash):
        staged_tile(stage, "y000x001", open_image(pixels))
    assert stage.missing_blocks() == ["y000x001"]


def test_staging_again_replaces_what_was_staged(tmp_path):
    pixels = blobs((8, 8))

    @declare(version="1")
    def nothing(tile):
        return np.zeros(tile.shape, dtype=int)

    image, plan = plan_of(pixels)
    stage = stage_into(tmp_path / "stage", pixels)
    block = plan.grid.block_of_key("y000x000")
    with Pool.open(Workers()) as pool:
        list(stage_blocks(Staging(image, stage, nothing), [block], pool=pool))
    assert stage.counts()[0, 0] == 0
    assert not stage.labels(block).any()
    assert not stage.strip((0, 0), 0, HIGH).any()
    assert len(stage.areas(block)) == 0


def test_an_incomplete_stage_is_not_merged_and_names_what_is_missing(tmp_path):
    stage = stage_into(tmp_path / "stage", blobs((8, 8)), keys=["y000x000"])
    with pytest.raises(StageError, match="3 of 4 tile blocks are not staged .*y000x001, y001x000"):
        stage.settled_counts()
    with Pool.open(Workers()) as pool, pytest.raises(StageError, match="before merging"):
        pair_tiles(stage, pool=pool)


def test_there_must_be_a_stage_to_open(tmp_path):
    _, plan = plan_of(blobs((8, 8)))
    with pytest.raises(StageError, match="no stage at .*; stage the tiles of the image first"):
        Stage.open(tmp_path / "nothing", plan)


TWO_CHANNELS = np.stack([blobs((8, 8)), blobs((8, 8), seed=1)])
OTHER_PLANS = {
    "image content": plan_of(~TWO_CHANNELS, axes="cyx"),
    "channel: 1 is not 0": plan_of(TWO_CHANNELS, axes="cyx", channel=1),
    "segmentation version: '2' is not '1'": plan_of(TWO_CHANNELS, newer_version, axes="cyx"),
    "segmentation function": plan_of(TWO_CHANNELS, newer_version, axes="cyx"),
    "halo: (1, 1) is not (0, 0)": plan_of(TWO_CHANNELS, axes="cyx", overlap=1),
    "tile_shape: (5, 5) is not (4, 4)": plan_of(TWO_CHANNELS, axes="cyx", tile_shape=5),
    "block_shape": plan_of(TWO_CHANNELS, axes="cyx", max_blocks=1),
}


@pytest.mark.parametrize("words", OTHER_PLANS)
def test_the_stage_of_another_plan_is_refused_with_what_differs(words, tmp_path):
    stage_into(tmp_path / "stage", TWO_CHANNELS, axes="cyx")
    _, other = OTHER_PLANS[words]
    with pytest.raises(StageError) as caught:
        Stage.open(tmp_path / "stage", other)
    assert words in str(caught.value)
    assert "tiles cannot be mixed" in str(caught.value)
    assert len(Stage.open_or_create(tmp_path / "stage", other).missing_blocks()) > 0


def test_another_channel_is_not_called_other_content(tmp_path):
    stage_into(tmp_path / "stage", TWO_CHANNELS, axes="cyx")
    with pytest.raises(StageError) as caught:
        Stage.open(tmp_path / "stage", OTHER_PLANS["channel: 1 is not 0"][1])
    assert "image content" not in str(caught.value)


def test_a_stage_killed_while_it_is_replaced_is_no_stage(tmp_path, monkeypatch):
    stage = stage_into(tmp_path / "stage", blobs((8, 8)))
    _, other = plan_of(blobs((8, 8)), tile_shape=3)
    monkeypatch.setattr("patchworks_core.stage.stage.begin_generation", lambda _: 1 / 0)
    with pytest.raises(ZeroDivisionError):
        Stage.create(tmp_path / "stage", other)
    with pytest.raises(StageError, match="no stage at"):
        Stage.open(tmp_path / "stage", stage.plan)


def test_an_image_that_changed_after_planning_is_not_staged(tmp_path):
    stage = stage_into(tmp_path / "stage", blobs((8, 8)), keys=["y000x000"])
    changed = open_image(blobs((8, 8), seed=1))
    with Pool.open(Workers()) as pool, pytest.raises(StageError, match="plan it again"):
        list(stage_blocks(Staging(changed, stage, label_components), [], pool=pool))


@pytest.mark.slow
@given(
    seed=st.integers(0, 2**16),
    overlap=st.integers(0, 2),
    max_blocks=st.integers(1, 8),
    rule=st.sampled_from(["touching", "overlap"]),
)
@settings(max_examples=examples(6))
def test_tiles_in_blocks_are_merged_as_tiles_one_by_one(
    seed, overlap, max_blocks, rule, tmp_path_factory
):
    pixels, options = blobs((13, 10), seed=seed), MergeOptions(rule, 1)
    folder = tmp_path_factory.mktemp("stages")
    one = stage_into(folder / "one", pixels, tile_shape=3, overlap=overlap)
    many = stage_into(folder / "many", pixels, tile_shape=3, overlap=overlap, max_blocks=max_blocks)
    assert many.grid.n_blocks <= max_blocks < one.grid.n_blocks
    np.testing.assert_array_equal(merged_of(many, options), merged_of(one, options))
    if rule == "touching":
        assert_same_partition(merged_of(many, options), ndimage.label(pixels)[0])


@pytest.mark.parametrize("max_blocks", [None, 2])
def test_strips_on_disk_are_what_the_tiles_saw(max_blocks, tmp_path):
    pixels = blobs((10, 9))
    stage = stage_into(tmp_path / "s", pixels, tile_shape=4, overlap=2, max_blocks=max_blocks)
    for tile in stage.grid.tiles():
        seen = ndimage.label(pixels[tile.read.slices])[0] > 0
        for axis in strip_axes(stage.grid):
            for side in (LOW, HIGH):
                strip = stage.strip(tile.index, axis, side)
                at_border = tile.index[axis] == (0, stage.grid.grid_shape[axis] - 1)[side]
                face = (tile.core.start, tile.core.stop)[side][axis] - tile.read.start[axis]
                around = seen.take(range(max(face - 2, 0), min(face + 2, seen.shape[axis])), axis)
                assert np.count_nonzero(strip) == (0 if at_border else around.sum())


def test_a_stage_lives_at_a_url(tmp_path):
    pixels = blobs((8, 8))
    url = f"memory://{uuid.uuid4().hex}/stage"
    stage = stage_into(url, pixels, overlap=1)
    local = stage_into(tmp_path / "stage", pixels, overlap=1)
    np.testing.assert_array_equal(merged_of(stage), merged_of(local))
    assert Stage.open(url, stage.plan).missing_blocks() == []
    stage.forget(stage.grid.block_of_key("y001x000"))
    assert Stage.open(url, stage.plan).missing_blocks() == ["y001x000"]


def test_a_stage_pickles_as_its_location(tmp_path):
    stage = stage_into(tmp_path / "stage", blobs((64, 64)), tile_shape=32)
    sent = pickle.dumps(stage)
    assert len(sent) < 4000
    np.testing.assert_array_equal(pickle.loads(sent).counts(), stage.counts())


def test_a_relative_location_is_the_same_place_from_another_folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    stage = stage_into("stage", blobs((8, 8)))
    sent = pickle.dumps(stage)
    os.makedirs("elsewhere")
    monkeypatch.chdir("elsewhere")
    np.testing.assert_array_equal(pickle.loads(sent).counts(), stage.counts())


def test_a_file_url_is_the_local_path(tmp_path):
    stage = stage_into(f"file://{tmp_path}/stage", blobs((8, 8)))
    assert Stage.open(tmp_path / "stage", stage.plan).missing_blocks() == []


def test_a_plan_comes_back_from_its_record_and_notices_changes_by_hand(tmp_path):
    _, plan = plan_of(blobs((8, 8)), overlap=2)
    plan.write(tmp_path / "plan.json")
    assert Plan.read(tmp_path / "plan.json") == plan
    text = (tmp_path / "plan.json").read_text()
    edited = text.replace('"version": "1"', '"version": "9"')
    assert edited != text
    with pytest.raises(PlanError, match="changed by hand, or is damaged; plan the"):
        Plan.from_json(edited)
    for broken in ("{}", "[]", "nonsense"):
        with pytest.raises(PlanError, match="is not the record of a plan"):
            Plan.from_json(broken)
    with pytest.raises(PlanError, match="has layout 99, this patchworks reads 1"):
        Plan.from_json(text.replace('"record_version": 1', '"record_version": 99'))


@pytest.mark.slow
def test_two_runs_that_stage_the_same_tiles_at_once_do_no_harm(tmp_path):
    pixels = blobs((24, 24))
    _, plan = plan_of(pixels)
    Stage.create(tmp_path / "stage", plan)
    with ThreadPoolExecutor(2) as runs:
        both = [runs.submit(stage_into, tmp_path / "stage", pixels) for _ in range(2)]
        stages = [run.result() for run in both]
    quiet = stage_into(tmp_path / "quiet", pixels)
    assert stages[0].missing_blocks() == []
    assert stages[0].content() == quiet.content()
    np.testing.assert_array_equal(merged_of(stages[0]), merged_of(quiet))


def test_what_dead_writers_left_is_removed_and_what_others_write_is_not(tmp_path):
    stage = stage_into(tmp_path / "stage", blobs((8, 8)))
    folder = block_file(stage.path, "y000x000").parent
    child = subprocess.run(
        [sys.executable, "-c", KILLED_WHILE_WRITING, str(folder / "y000x001.tiles")], check=False
    )
    assert child.returncode == -signal.SIGKILL
    (left,) = folder.glob("*.part")
    pid = left.name.split(".")[-2][8:16]
    alive = left.with_name(left.name.replace(pid, f"{os.getpid():08x}"))
    elsewhere = left.with_name(left.name.replace(left.name.split(".")[-2][:8], "00000000"))
    for path in (alive, elsewhere):
        path.write_bytes(b"")
    stage.clean()
    assert set(folder.glob("*.part")) == {alive, elsewhere}
    assert stage.missing_blocks() == []


KILLED_WHILE_WRITING = """
import os, signal, sys
from patchworks_core.files.storage import as_path, write_bytes
os.replace = lambda *names: os.kill(os.getpid(), signal.SIGKILL)
write_bytes(as_path(sys.argv[1]), b"labels")
"""


def test_an_object_that_is_replaced_between_two_requests_is_read_again(monkeypatch):
    stage = stage_into(f"memory://{uuid.uuid4().hex}/stage", blobs((8, 8)))
    block = stage.grid.block_of_key("y000x001")
    labels, requests = stage.labels(block), []
    fetch = packed._fetched

    def fetch_other_once(path, start, stop):
        requests.append(start)
        content = fetch(path, start, stop)
        return content[::-1] if len(requests) == 2 else content

    monkeypatch.setattr(packed, "_fetched", fetch_other_once)
    np.testing.assert_array_equal(stage.labels(block), labels)
    assert len(requests) == 4
    assert stage.missing_blocks() == []


def test_a_tile_that_saw_another_halo_changes_what_labels_are_made_of(tmp_path):
    stage = stage_into(tmp_path, blobs((16, 16)), tile_shape=8, overlap=2)
    content, labels = stage.content(), stage.digests()
    path = block_file(stage.path, stage.grid.block_keys()[0])
    change_array(path, "strips/1/1", np.zeros_like)
    assert (stage.digests() == labels).all()
    assert stage.content() != content
