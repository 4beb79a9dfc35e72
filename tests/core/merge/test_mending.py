"""Third views: exact where views agree, the same for every history, and never of other tiles."""

from __future__ import annotations

import random
from dataclasses import replace

import numpy as np
import pytest

from patchworks_core import (
    PlanError,
    StageError,
    declare,
    mend_stage,
    merge_stage,
    plan_tiles,
    stage_tile,
)
from patchworks_core.errors import TilesFailedError
from patchworks_core.files.packed import open_packed, pack
from patchworks_core.files.storage import as_path
from patchworks_core.images.image import open_image
from patchworks_core.machine.pools import Pool
from patchworks_core.machine.workers import Workers
from patchworks_core.merge import mending
from patchworks_core.merge.mending import Mended, Mending, mend_faces
from patchworks_core.merge.pairing import pair_tiles
from patchworks_core.pilot.agreement import compare_objects
from patchworks_core.seams.rules import MergeOptions
from patchworks_core.seams.third_views import FaceOfTiles, third_tile
from patchworks_core.stage.stage import Stage
from patchworks_core.stage.staging import Staging, stage_blocks
from patchworks_core.stage.third_views import staged_views
from patchworks_core.tiles.grid import plan_grid
from tests.core.merge.test_outlines import FEATHERED, TILES, merged
from tests.core.staging import block_file, spoil_array, stage_into
from tests.functions.tissue_functions import perfect, wavering
from tests.tissue import files_under, tissue

EVERY = Mending(min_agreement=1.0)
"""All faces at which anything is seen otherwise."""


PIXELS = tissue((64, 96), n_cells=20)
"""Of six tiles with seven faces."""


class EveryFace(Mending):
    """All faces, those at which tiles agree too."""

    def faces(self, grid, report):
        tiles = (report.faces.tile_a, report.faces.tile_b, report.faces.axis)
        return [FaceOfTiles(*map(int, row)) for row in zip(*tiles, strict=True)]


@pytest.fixture
def stage(tmp_path) -> Stage:
    return stage_into(tmp_path / "stage", PIXELS, wavering, **TILES)


def mend(
    stage, function=wavering, which=EVERY, *, workers=None, options=FEATHERED, truth=None
) -> Mended:
    """Stage third views, as a call does that was told which."""
    with Pool.open(workers or Workers()) as pool:
        image = open_image(PIXELS if truth is None else truth)
        staging = Staging(image, stage, function)
        edges = pair_tiles(stage, pool=pool)
        return mend_faces(staging, edges, options, which, pool=pool)


def stage_again(stage, key, function) -> None:
    staging = Staging(open_image(PIXELS), stage, function, measures=True)
    with Pool.open(Workers()) as pool:
        list(stage_blocks(staging, [stage.grid.block_of_key(key)], pool=pool))


def views_of(stage) -> dict[str, bytes]:
    return files_under(stage.blocks_folder / "views")


def test_a_third_view_is_centred_on_its_face_and_clipped_at_the_image():
    grid = plan_grid("yx", (96, 70), tile_shape=32, overlap=8)
    inner = third_tile(grid, FaceOfTiles(3, 4, 1), 9)
    assert (inner.core.start, inner.core.stop) == ((32, 16), (64, 48))
    assert (inner.read.start, inner.read.stop) == ((24, 8), (72, 56))
    last = third_tile(grid, FaceOfTiles(4, 5, 1), 9)
    assert (last.core.start, last.core.stop) == ((32, 48), (64, 70))


@pytest.mark.slow
def test_third_views_of_a_volume_that_agree_change_no_pixel(tmp_path):
    truth = tissue((16, 40, 40), n_cells=60)
    tiles = {"tile_shape": (8, 20, 20), "overlap": (2, 6, 6), "axes": "zyx"}
    stage = stage_into(tmp_path / "stage", truth, perfect, **tiles)
    labels, _ = merged(stage, tmp_path / "before")
    assert mend(stage, perfect, EveryFace(), truth=truth).n_views == 12
    mended, _ = merged(stage, tmp_path / "after")
    np.testing.assert_array_equal(mended, labels)


@pytest.mark.parametrize("outline", ["feather", "core"])
def test_third_views_that_agree_change_no_pixel(tmp_path, outline):
    options = replace(FEATHERED, outline=outline)
    stage = stage_into(tmp_path / "stage", PIXELS, perfect, **TILES)
    labels, _ = merged(stage, tmp_path / "before", options)
    assert mend(stage, perfect, EVERY).n_views == 0
    assert mend(stage, perfect, EveryFace()).n_views == 7
    mended, _ = merged(stage, tmp_path / "after", options)
    np.testing.assert_array_equal(mended, labels)


@pytest.mark.slow
def test_third_views_bring_objects_nearer_to_the_truth(tmp_path):
    truth = tissue(n_cells=60, seed=1)

    @declare(version="1")
    def shifted(tile):
        total = int(tile.astype(np.int64).sum())
        wide = np.pad(tile.astype(np.int64), 3, mode="edge")
        y, x = 3 + total % 5 - 2, 3 + total % 3 - 1
        return wide[y : y + tile.shape[0], x : x + tile.shape[1]]

    planned = plan_tiles(truth, shifted, tmp_path / "stage", merge="overlap", **TILES)
    for tile in range(planned.n_tiles):
        stage_tile(planned, tile)
    before = merge_stage(planned)
    assert mend_stage(planned, min_agreement=1).n_views == 17
    after = merge_stage(planned)
    whole = truth.astype(np.int64)
    assert compare_objects(whole, before).n_matched < compare_objects(whole, after).n_matched
    assert np.mean((after > 0) != (truth > 0)) < np.mean((before > 0) != (truth > 0))
    assert np.unique(after).tolist() == [*range(after.max() + 1)]


@pytest.mark.slow
@pytest.mark.parametrize("seed", range(2))
def test_what_views_see_at_the_border_of_their_read_joins_nothing(tmp_path, seed):
    truth = tissue(n_cells=60, seed=seed)
    stage = stage_into(tmp_path / "stage", truth, wavering, **TILES)  # rolls over the border
    before, _ = merged(stage, tmp_path / "before")
    mend(stage, truth=truth)
    after, _ = merged(stage, tmp_path / "after")
    assert after.max() >= before.max()


def test_every_schedule_and_worker_and_history_gives_the_same_bytes(tmp_path, stage):
    mend(stage)
    labels, _ = merged(stage, tmp_path / "one")
    keys = stage.grid.block_keys()
    random.Random(1).shuffle(keys)
    other = stage_into(tmp_path / "other", PIXELS, wavering, keys=keys, **TILES)
    first = mend(other, which=Mending(3, 1.0))
    assert (first.n_views, len(first.faces)) == (3, 3)
    kept = views_of(other)
    rest = mend(other, workers=Workers(2))  # as after a kill
    assert rest.n_views == len(rest.faces) - 3
    assert views_of(other) == views_of(stage)
    assert kept.items() <= views_of(other).items()
    again, _ = merged(other, tmp_path / "again", workers=Workers(2))
    np.testing.assert_array_equal(again, labels)


@pytest.mark.slow
def test_worker_processes_mend_and_draw_the_same(tmp_path, stage):
    mend(stage)
    labels, _ = merged(stage, tmp_path / "one")
    other = stage_into(tmp_path / "other", PIXELS, wavering, **TILES)
    mend(other, workers=Workers(2, "processes"))
    assert views_of(other) == views_of(stage)
    again, _ = merged(other, tmp_path / "again", workers=Workers(2, "processes"))
    np.testing.assert_array_equal(again, labels)


@pytest.mark.slow
def test_tiles_in_blocks_are_mended_as_tiles_on_their_own(tmp_path, stage):
    mend(stage)
    labels, _ = merged(stage, tmp_path / "one")
    blocks = stage_into(tmp_path / "blocks", PIXELS, wavering, max_blocks=2, **TILES)
    mend(blocks)
    in_blocks, _ = merged(blocks, tmp_path / "two")
    np.testing.assert_array_equal(in_blocks, labels)


def test_the_worst_faces_are_mended_and_a_second_call_does_nothing(stage):
    content = stage.content()
    first = mend(stage, which=Mending(2, 1.0))
    assert (first.n_views, len(first.faces)) == (2, 2)
    assert stage.content() != content
    before = views_of(stage)
    second = mend(stage, which=Mending(2, 1.0))
    assert (second.n_views, second.faces) == (0, first.faces)
    assert views_of(stage) == before
    assert mend(stage, which=Mending(3, 1.0)).faces[:2] == first.faces


def test_only_tiles_under_a_third_view_are_written_again(tmp_path):
    stage = stage_into(tmp_path / "stage", PIXELS, wavering, **TILES)
    options = replace(FEATHERED, sequential=False)
    merged(stage, tmp_path / "labels", options)
    (face,) = mend(stage, which=Mending(1, 1.0)).faces
    labels, written = merged(stage, tmp_path / "labels", options)
    assert set(face.split("+")) <= written < set(stage.grid.block_keys())
    fresh, _ = merged(stage, tmp_path / "fresh", options)
    np.testing.assert_array_equal(labels, fresh)


def test_a_view_that_fails_is_named_and_the_others_are_kept(stage):
    calls = []

    def fails_at_the_second(tile):
        calls.append(tile)
        if len(calls) == 2:
            raise ValueError("no memory")
        return wavering(tile)

    result = mend(stage, fails_at_the_second, Mending(3, 1.0))
    (face,) = result.failures
    assert (result.n_views, face) == (2, result.faces[1])
    words = rf"1 of 3 third views failed.*{face[:8]}.*no memory"
    with pytest.raises(TilesFailedError, match=words):
        result.check()
    assert mend(stage, which=Mending(3, 1.0)).n_views == 1


def test_a_view_that_returns_no_labels_is_named_by_its_face(stage):
    result = mend(stage, lambda tile: tile > 0, Mending(1, 1.0))
    (failure,) = result.failures.values()
    assert f"third view of face '{result.faces[0]}'" in str(failure)


def test_a_tile_that_is_staged_otherwise_makes_its_third_views_stale(tmp_path, stage, caplog):
    plain = stage_into(tmp_path / "plain", PIXELS, wavering, **TILES)
    first = mend(stage, which=Mending(1, 1.0))
    key = first.faces[0].split("+")[0]
    for each in (stage, plain):
        stage_again(each, key, perfect)
    labels, _ = merged(stage, tmp_path / "labels")
    assert "1 third views" in caplog.text
    assert "mend again to stage them anew" in caplog.text
    np.testing.assert_array_equal(labels, merged(plain, tmp_path / "without")[0])
    before = views_of(stage)
    assert mend(stage, which=EveryFace()).n_views == 7  # the stale one as well
    assert before.items().isdisjoint(views_of(stage).items())


def test_a_tile_that_is_staged_again_alike_keeps_its_third_views(stage):
    first = mend(stage, which=Mending(1, 1.0))
    stage_again(stage, first.faces[0].split("+")[0], wavering)
    assert mend(stage, which=Mending(1, 1.0)).n_views == 0


@pytest.mark.parametrize(
    "rule",
    [
        "overlap-pairs",
        pytest.param("touching", marks=pytest.mark.slow),
        pytest.param("none", marks=pytest.mark.slow),
    ],
)
def test_other_rules_hear_no_third_view(tmp_path, stage, rule):
    options = MergeOptions(rule, 1, outline="feather" if rule == "overlap-pairs" else "core")
    before, _ = merged(stage, tmp_path / "before", options)
    mend(stage)
    after, _ = merged(stage, tmp_path / "after", options)
    np.testing.assert_array_equal(before, after)
    with pytest.raises(PlanError, match=rf"merge={rule!r} does not look at; merge by 'overlap'"):
        mend(stage, options=options)


def test_tiles_without_overlap_are_not_mended(tmp_path):
    stage = stage_into(tmp_path / "stage", PIXELS, wavering, tile_shape=32)
    with pytest.raises(PlanError, match="no overlap of 2 pixels or more"):
        mend(stage)


@pytest.mark.parametrize("damage", ["header", "pixels"])
def test_a_damaged_view_is_left_out_and_staged_again(tmp_path, stage, caplog, damage):
    before, _ = merged(stage, tmp_path / "before")
    (face,) = mend(stage, which=Mending(1, 1.0)).faces
    path = as_path(stage.blocks_folder / "views" / f"{face}.view")
    whole = path.read_bytes()
    at = 60 if damage == "header" else path.read_bytes().find(b"\x28\xb5\x2f\xfd") + 12
    path.write_bytes(whole[:at] + bytes([whole[at] ^ 255]) + whole[at + 1 :])
    if damage == "pixels":
        with pytest.raises(RuntimeError, match=f"third view of face '{face[:4]}.* is damaged"):
            merged(stage, tmp_path / "damaged")
    labels, _ = merged(stage, tmp_path / "without")
    np.testing.assert_array_equal(labels, before)
    assert mend(stage, which=Mending(1, 1.0)).n_views == 1
    assert path.read_bytes() == whole


def test_a_stage_that_is_begun_anew_has_no_third_view(tmp_path, stage):
    mend(stage)
    again = Stage.create(stage.path, stage.plan)
    assert not (again.blocks_folder / "views").exists()


def test_a_stage_of_ones_own_is_mended_and_merged(tmp_path):
    planned = plan_tiles(PIXELS, wavering, tmp_path / "stage", merge="overlap", **TILES)
    with pytest.raises(StageError, match="6 of 6 tile blocks are not staged"):
        mend_stage(planned)
    for tile in range(planned.n_tiles):
        stage_tile(planned, tile)
    out = tmp_path / "labels.zarr"
    before = merge_stage(planned, out, compute=True)
    told = []
    result = mend_stage(planned, faces=4, min_agreement=1, progress=lambda *of: told.append(of))
    assert told[-1] == ("mend", 4, 4)
    assert 0 < result.agreement < 1
    after = merge_stage(planned, out, compute=True)  # labels from before are not taken for these
    assert (before != after).any()
    assert mend_stage(planned, faces=4, min_agreement=1).n_views == 0
    with pytest.raises(PlanError, match="faces to mend"):
        mend_stage(planned, faces=0)
    with pytest.raises(PlanError, match="min_agreement"):
        mend_stage(planned, min_agreement=2)


def test_a_view_of_a_stage_that_was_begun_anew_meanwhile_is_not_kept(stage, monkeypatch):
    monkeypatch.setattr(mending.Stage, "is_current", property(lambda stage: False))
    result = mend(stage, which=Mending(1, 1.0))
    assert "begun anew by another call" in str(*result.failures.values())
    assert not (stage.blocks_folder / "views").exists()


def test_a_view_whose_rows_are_damaged_is_not_taken_for_one_that_was_heard(stage):
    (face,) = mend(stage, which=Mending(1, 1.0)).faces
    heard = stage.content()
    spoil_array(stage.blocks_folder / "views" / f"{face}.view", "rows/intersection")
    assert stage.content() != heard
    assert mend(stage, which=Mending(1, 1.0)).n_views == 1
    assert stage.content() == heard


def test_what_makes_a_third_view_stale_changes_what_labels_are_made_of(stage):
    (face,) = mend(stage, which=Mending(1, 1.0)).faces
    heard, path = stage.content(), block_file(stage.path, face.split("+")[0])
    with open_packed(as_path(path)) as packed:
        header, arrays = packed.header, packed.load(packed.arrays)
    path.write_bytes(pack({**header, "pixels": [1]}, arrays))
    assert not staged_views(stage)
    assert stage.content() != heard
