"""Calls that find what an earlier call left: taken up, refused, or begun anew, and never mixed."""

from __future__ import annotations

import os
import threading
from pathlib import Path

import numpy as np
import pytest
from scipy import ndimage

from patchworks_core import PlanError, StageError, TilesFailedError, declare, tile_process
from patchworks_core.api import job as job_module
from tests.core.staging import blobs, block_file, change_array

PIXELS = np.random.default_rng(0).random((64, 96)) < 0.4
CALLS: list[int] = []


def counted(tile, level=0, fail=False):
    CALLS.append(1)
    if fail and tile.sum() == PIXELS[-32:, -32:].sum():
        raise ValueError("the last tile")
    return ndimage.label(tile > level)[0]


declared = declare(merge="touching", version="1")(lambda tile: counted(tile, fail=FAIL["now"]))
FAIL = {"now": True}


def run(fn, path: Path, **options):
    """Call, and return how many tiles were segmented."""
    CALLS.clear()
    tile_process(PIXELS, fn, write_to=path, **{"tile_shape": 32, "max_workers": 1, **options})
    return len(CALLS)


@pytest.fixture
def interrupted(tmp_path: Path) -> Path:
    """The stage of five of six tiles."""
    FAIL["now"] = True
    with pytest.raises(TilesFailedError, match="they are taken up where"):
        run(declared, tmp_path / "l.zarr")
    FAIL["now"] = False
    return tmp_path / "l.zarr"


def test_a_call_takes_up_what_was_interrupted_and_says_so(interrupted, caplog):
    assert run(declared, interrupted) == 1
    assert "5 of 6 tile blocks are staged at" in caplog.text
    assert "resume=False of tile_process, or removing that folder, begins anew" in caplog.text


def test_a_call_begins_anew_where_it_is_asked_to(interrupted):
    assert run(declared, interrupted, resume=False) == 6


def test_complete_labels_are_taken_as_they_are(interrupted):
    assert run(declared, interrupted) == 1
    assert run(declared, interrupted) == 0
    assert run(declared, interrupted, resume=False) == 6
    assert run(declared, interrupted, merge="none") == 6  # other labels; the stage is gone


def test_complete_labels_are_those_of_the_same_tiles_in_other_blocks(tmp_path, monkeypatch):
    monkeypatch.setitem(FAIL, "now", False)
    with monkeypatch.context() as patch:
        patch.setattr("patchworks_core.stage.plan.enough_blocks", lambda shape: 1000)
        assert run(declared, tmp_path / "l.zarr", tile_shape=8) == 96
    assert run(declared, tmp_path / "l.zarr", tile_shape=8) == 0


def test_a_call_with_another_grid_begins_anew_and_says_what_differs(interrupted, caplog):
    with caplog.at_level("INFO"):
        assert run(declared, interrupted, tile_shape=48) == 4
    assert "is of another plan" in caplog.text
    assert "tile_shape" in caplog.text


def test_what_is_not_known_stops_the_call_and_removes_nothing(tmp_path):
    lock = threading.Lock()
    FAIL["now"] = True

    def unknown(tile):
        with lock:
            return counted(tile, fail=FAIL["now"])

    with pytest.raises(TilesFailedError):
        run(unknown, tmp_path / "l.zarr")
    FAIL["now"] = False
    before = sorted(p for p in tmp_path.rglob("*") if p.is_file())
    with pytest.raises(StageError, match=r"5 of 6 .* 'lock' of .*resume=True .*resume=False"):
        run(unknown, tmp_path / "l.zarr")
    assert sorted(p for p in tmp_path.rglob("*") if p.is_file()) == before
    assert run(unknown, tmp_path / "l.zarr", resume=True) == 1


SETTINGS = {"level": 0, "fail": True}


def reads_settings(tile):
    return counted(tile, SETTINGS["level"], SETTINGS["fail"])


def test_a_dictionary_that_was_changed_stops_the_call(tmp_path):
    SETTINGS.update(level=0, fail=True)
    with pytest.raises(TilesFailedError):
        run(reads_settings, tmp_path / "l.zarr")
    SETTINGS["fail"] = False
    with pytest.raises(StageError, match=r"5 of 6 .*reads and may change, which is another now"):
        run(reads_settings, tmp_path / "l.zarr")
    assert run(reads_settings, tmp_path / "l.zarr", resume=True) == 1
    assert run(reads_settings, tmp_path / "l.zarr") == 0
    SETTINGS["level"] = 1
    assert run(reads_settings, tmp_path / "l.zarr") == 6


class Lazy:
    """A function that loads its model with the first tile, as many do."""

    def __init__(self, level: int) -> None:
        self.level, self.model, self.fail = level, None, True

    def __call__(self, tile):
        self.model = self.model or threading.Lock()
        return counted(tile, self.level, fail=FAIL["now"])


def test_a_model_that_is_loaded_with_the_first_tile_does_not_lose_the_others(tmp_path):
    FAIL["now"] = True
    lazy = Lazy(0)
    with pytest.raises(TilesFailedError):
        run(lazy, tmp_path / "l.zarr")
    assert lazy.model is not None
    FAIL["now"] = False
    with pytest.raises(StageError, match="may change"):
        run(lazy, tmp_path / "l.zarr")  # FAIL is a dictionary that was changed
    assert run(lazy, tmp_path / "l.zarr", resume=True) == 1


def test_a_setting_of_an_object_counts(tmp_path):
    FAIL["now"] = False
    assert run(Lazy(0), tmp_path / "l.zarr") == 6
    assert run(Lazy(0), tmp_path / "l.zarr") == 0
    assert run(Lazy(1), tmp_path / "l.zarr") == 6


@pytest.mark.parametrize("resume", ["yes", 1.5, None, "True"])
def test_other_values_of_resume_are_refused(resume, tmp_path):
    with pytest.raises(PlanError, match="resume is 'auto', True or False"):
        run(declared, tmp_path / "l.zarr", resume=resume)
    assert not list(tmp_path.iterdir())


def test_a_stage_of_its_own_that_is_of_another_plan_is_not_removed(tmp_path):
    FAIL["now"] = False
    where = {"stage_dir": tmp_path / "s", "keep_stage": True}
    assert run(declared, tmp_path / "l.zarr", **where) == 6
    with pytest.raises(StageError, match="holds the stage of another plan"):
        run(declared, tmp_path / "m.zarr", tile_shape=48, **where)
    assert run(declared, tmp_path / "m.zarr", merge="none", **where) == 0


def test_of_two_calls_on_one_stage_of_its_own_the_second_is_told_which_the_first_is(tmp_path):
    FAIL["now"] = False
    where = {"stage_dir": tmp_path / "s"}
    refused: list[str] = []

    @declare(merge="touching", version="2")
    def calls_another(tile):
        if not refused:
            with pytest.raises(PlanError) as error:
                run(declared, tmp_path / "m.zarr", **where)
            refused.append(str(error.value))
        return ndimage.label(tile)[0]

    run(calls_another, tmp_path / "l.zarr", **where)
    assert f"one call at a time is staging in {tmp_path / 's'}" in refused[0]
    assert f"another one is at it (process {os.getpid()} on " in refused[0]
    assert not (tmp_path / "m.zarr").exists()
    assert run(declared, tmp_path / "m.zarr", **where) == 6


def test_tiles_that_are_staged_again_while_they_are_merged_are_not_published(tmp_path, monkeypatch):
    """A function that does not return the same twice, in another call on the same stage."""
    pixels = blobs((12, 12), density=0.4)
    apply = job_module.apply_lut

    def staged_again_first(stage, lut, **options):
        block = block_file(stage.path, "y000x001")
        change_array(block, "labels", lambda labels: labels[::-1].copy())
        return apply(stage, lut, **options)

    monkeypatch.setattr(job_module, "apply_lut", staged_again_first)
    options = {"tile_shape": 6, "write_to": tmp_path / "labels.zarr"}
    with pytest.raises(StageError, match="staged again by another call while they were merged"):
        tile_process(pixels, "threshold", **options)
    assert not (tmp_path / "labels.zarr" / "labels").exists()
    monkeypatch.undo()
    assert tile_process(pixels, "threshold", **options).max().compute() > 0


@pytest.mark.parametrize("content", ["", '{"plan": 1', "{}"])
@pytest.mark.parametrize("resume", ["auto", True])
def test_a_damaged_record_of_the_plan_is_written_again_where_all_blocks_vouch_for_it(
    content, resume, interrupted, caplog
):
    record = interrupted / "labels.work" / "stage.zarr" / "plan.json"
    record.write_text(content)
    assert run(declared, interrupted, resume=resume) == 1
    assert "plan.json is not the record of a plan" in caplog.text
    assert "written again, as all tile blocks are of this plan" in caplog.text


def test_a_damaged_record_of_another_plan_is_not_taken_for_this_one(interrupted):
    record = interrupted / "labels.work" / "stage.zarr" / "plan.json"
    record.write_text("{")
    with pytest.raises(PlanError, match="plan.json is not the record of a plan"):
        run(declared, interrupted, tile_shape=48, resume=True)
    assert record.read_text() == "{"
    assert run(declared, interrupted, tile_shape=48) == 4
