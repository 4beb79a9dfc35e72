"""What a person is advised to type does what it says, typed as it stands."""

from __future__ import annotations

import re
from dataclasses import replace
from pathlib import Path

import pytest
import zarr
from rich.console import Console
from typer.main import get_command

import patchworks_pipeline
from patchworks_pipeline.automation.in_process import _error_of
from patchworks_pipeline.cli.advice import OF_A_HOME, as_typed, home_of_call, options_of
from patchworks_pipeline.cli.image_runs import ImageRun
from patchworks_pipeline.cli.main import _say, _staged, app
from patchworks_pipeline.cli.records import record_of
from patchworks_pipeline.cli.runs import merge_again
from patchworks_pipeline.cli.status import state_of
from patchworks_pipeline.landing.arrivals import Quarantine
from patchworks_pipeline.resources.resources import LabelStore
from tests.pipeline.conftest import call_command_line
from tests.tissue import MARKED_KEY, marked_tissue, tissue, write_tiff


def test_the_commands_of_a_home_are_those_that_take_one():
    commands = get_command(app).commands.items()
    takes_home = {name for name, command in commands if "home" in {p.name for p in command.params}}
    assert takes_home == set(OF_A_HOME)


def test_what_is_advised_of_a_segmentation_takes_its_name():
    commands = get_command(app).commands
    advised = set()
    for path in Path(patchworks_pipeline.__file__).parent.rglob("*.py"):
        advised |= set(re.findall(r'command_on\(\s*\w+,\s*["\'](\w+)', path.read_text()))
    assert {"retry", "merge", "mend"} <= advised
    for name in advised:
        options = {option for p in commands[name].params for option in p.opts}
        assert "--only" in options, name


@pytest.mark.parametrize(
    ("home", "words", "printed"),
    [
        ("here", "'patchworks retry a' does", "'patchworks retry a --home here' does"),
        ("a b", "'patchworks run'", "'patchworks run --home \"a b\"'"),
        ("here", "'patchworks run a --home there'", None),
        ("here", "'patchworks segment a'", None),
        (None, "'patchworks run a'", None),
    ],
)
def test_a_command_that_is_named_is_of_the_home_that_was_given(home, words, printed):
    token = home_of_call.set(home)
    try:
        assert as_typed(words) == (words if printed is None else printed)
    finally:
        home_of_call.reset(token)


def test_a_home_is_repeated_where_it_was_given_on_the_command_line(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    code, printed = call_command_line("status", "--home", "plates")
    assert (code, "'patchworks run IMAGE --home plates'" in printed) == (2, True), printed
    monkeypatch.setenv("PATCHWORKS_HOME", str(tmp_path / "others"))
    code, printed = call_command_line("status")
    assert (code, "'patchworks run IMAGE'" in printed) == (2, True), printed


def test_limits_of_a_call_are_options_again():
    budget = {"workers": 2, "kind": "processes", "tile_timeout": 5.0, "worker_memory": "8GB"}
    assert options_of(budget) == [
        "--workers=2",
        "--worker-kind=processes",
        "--tile-timeout=5",
        "--worker-memory=8GB",
    ]
    assert options_of({"tile_timeout": 0.5}) == ["--tile-timeout=0.5"]


@pytest.mark.parametrize(
    ("shape", "tile_shape", "words"),
    [
        ((64, 64), 16, "0 of 16 tiles of tissue are staged and kept"),
        ((64, 96), 2, "0 of 48 tile blocks of tissue are staged and kept"),
    ],
)
def test_what_is_kept_is_counted_as_it_is_staged(shape, tile_shape, words, pipeline, tmp_path):
    image = write_tiff(tmp_path / "tissue.tif", tissue(shape))
    folder = pipeline.register(image, tile_shape=(tile_shape,), overlap=(0,))
    assert _staged(folder) == "no tile of tissue was planned yet"
    pipeline.plan(folder)
    assert _staged(folder) == words
    (folder.path / "plan.json").write_text("{")
    assert _staged(folder) == "what is staged of tissue is kept"


def test_a_run_that_was_stopped_says_so_and_what_is_staged(pipeline, home, tmp_path, capsys):
    image = write_tiff(tmp_path / "tissue.tif", tissue())
    folder = pipeline.register(image, function="tissue_functions:mask")
    pipeline.plan(folder)
    error = _error_of(pipeline.stage(folder))
    failures = tuple(folder.failures())
    told = replace(failures[0], message="it was not done; allow more with tile_timeout=")
    failures = (told, *failures[1:])
    _say(ImageRun(folder, (), failures, error.message, error.stopped), home, {"tile_timeout": 5.0})
    printed = " ".join(capsys.readouterr().err.split())
    n_left = 12 - len(failures)
    assert f"the run was stopped: {len(failures)} of 12 tiles of tissue failed" in printed
    assert f"{n_left} were not tried" in printed
    assert "0 of 12 tiles of tissue are staged and kept" in printed
    assert "retry the failed ones and those not tried with" in printed
    assert f"patchworks retry tissue --tile-timeout=5 --home {home}" in printed
    assert "--tile-timeout " in printed.partition("retry")[0].replace("│", " ")
    assert "tile_timeout=" not in printed
    assert "the others are staged" not in error.message


def test_a_merge_that_lacks_tiles_names_both_ways_out_and_says_what_it_left_out(
    pipeline, home, tmp_path, capsys
):
    image = write_tiff(tmp_path / "marked.tif", marked_tissue())
    folder = pipeline.register(image, "marked", function="tissue_functions:fails_at_mark")
    pipeline.plan(folder)
    error = _error_of(pipeline.stage(folder))
    assert error.stopped is None
    assert MARKED_KEY in error.message
    lacking = merge_again(pipeline.instance, folder, {})
    assert lacking.exit_code == 3
    assert re.search("'patchworks retry marked' .*--allow-missing-tiles' merges", lacking.error)
    result = merge_again(pipeline.instance, folder, {}, allow_missing=True)
    _say(result, home)
    printed = capsys.readouterr()
    assert "marked: merging 11 of 12 tiles\n" in printed.err
    words = "1 of 12 tiles are left out, and are 0 in the labels; 'patchworks retry marked' stages"
    assert f"holes    {words}" in printed.out
    assert record_of(result)["tiles_left_out"] == folder.summary()["n_tiles_missing"] == 1
    state = state_of(pipeline.instance, ["marked"], [""], of_home=True)
    assert f"marked: {words}" in " ".join(state.labels())
    assert state.images[0]["tiles_left_out"] == 1


def test_the_status_of_a_home_says_why_most_tiles_failed_and_what_was_refused(
    pipeline, tmp_path, capsys
):
    image = write_tiff(tmp_path / "tissue.tif", tissue())
    folder = pipeline.register(image, function="tissue_functions:mask")
    pipeline.plan(folder)
    pipeline.stage(folder)
    n = len(folder.failures())
    folder.write_failure(replace(folder.failures()[0], error_type="ValueError", message="alone"))
    broken = pipeline.register(image, "broken")
    quarantine = Quarantine(LabelStore().path() / ".quarantine")
    quarantine.record("broken.tif-ab12", "cut short", str(image), broken.key, "ab12")
    state = state_of(pipeline.instance, ["broken", "tissue"], [""], of_home=True)
    (failed,) = state.failed
    assert failed.startswith(f"tissue: {n - 1} of {n} failed tiles: TileOutputError: ")
    assert failed.endswith("'patchworks status tissue' says which")
    assert "\n" not in failed
    (refused,) = state.refused
    assert refused.startswith("broken: version broken.tif-ab12 was refused: cut short; it is tried")
    Console().print(state.table())
    table = capsys.readouterr().out
    assert "tissue" in table
    assert "broken" not in table, "it is no row of zeros"
    assert state.record()["failed"] == state.failed
    of_one = state_of(pipeline.instance, ["tissue"], [""], of_home=False)
    assert of_one.failed == []
    alone, alike = of_one.complaints
    assert alone.endswith(": ValueError: alone")
    assert alike.startswith(f"tissue: {n - 1} tiles (y")
    assert ", ...): TileOutputError: " in alike


def test_an_image_that_can_no_longer_be_planned_says_why(pipeline, tmp_path):
    array = zarr.create_array(str(tmp_path / "a.zarr"), data=tissue((64, 64)), chunks=(16, 16))
    folder = pipeline.register(tmp_path / "a.zarr", key="a")
    assert pipeline.plan(folder).success
    state = state_of(pipeline.instance, ["a"], [""], of_home=False)
    assert (state.unplanned, state.is_sound) == ([], True)
    chunk = tmp_path / "a.zarr" / array.metadata.encode_chunk_key((1, 2))
    whole = chunk.read_bytes()
    chunk.write_bytes(whole[:-9])
    assert not pipeline.plan(folder).success
    state = state_of(pipeline.instance, ["a"], [""], of_home=False)
    (words,) = state.unplanned
    assert not state.is_sound
    assert words.startswith("a could not be planned anew: the pixels at")
    assert "a.zarr', chunk 'c/1/2' cannot be decoded" in words
    chunk.write_bytes(whole)
    assert pipeline.plan(folder).success
    state = state_of(pipeline.instance, ["a"], [""], of_home=False)
    assert (state.unplanned, state.is_sound) == ([], True)
