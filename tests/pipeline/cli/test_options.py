"""Whose word counts: the option's, the image's, that of the home's file, or what is built in."""

from __future__ import annotations

import inspect
import json

import pytest

from patchworks_core import segment_to_ome_zarr, tile_process
from patchworks_core.machine.workers import Workers
from patchworks_pipeline.cli import runs
from patchworks_pipeline.cli.main import merge, retry, run
from patchworks_pipeline.cli.options import HOME
from patchworks_pipeline.cli.pilot import pilot
from patchworks_pipeline.cli.segment import segment
from patchworks_pipeline.cli.view import ViewRequest, view
from patchworks_pipeline.instance.home import prepare_home
from patchworks_pipeline.records import Acquisition
from patchworks_pipeline.resources.compute_budget import ComputeBudget
from patchworks_pipeline.resources.resources import LabelStore, SegmentationDefaults
from tests.pipeline.conftest import call_command_line
from tests.tissue import tissue, write_tiff

FILE = """
segmentation: {function: 'tissue_functions:perfect', tile_shape: [32], overlap: [8], min_iou: 0.6}
budget: {kind: processes, workers: 2, cores_left_free: 0}
"""


@pytest.fixture
def budgets(home, tmp_path, monkeypatch):
    """The budgets that runs get, in a home whose file sets what the command line can set."""
    prepare_home(home)
    (home / "patchworks.yaml").write_text(FILE)
    write_tiff(tmp_path / "tissue.tif", tissue())
    found: list[dict] = []
    run_job = runs._run

    def seen(instance, job, image, resources, **options):
        found.append(resources["budget"]["config"])
        return run_job(instance, job, image, resources, **options)

    monkeypatch.setattr(runs, "_run", seen)
    return found


def provenance(key: str) -> dict:
    folder = LabelStore().folder(key)
    return json.loads((folder.labels(folder.plan()).path / "provenance.json").read_text())


@pytest.mark.slow
def test_an_option_that_says_what_is_built_in_beats_the_file(budgets, tmp_path):
    image, chosen = tmp_path / "tissue.tif", ("--workers", "1", "--worker-kind", "threads")
    code, printed = call_command_line("run", image, *chosen, "--merge", "overlap")
    assert code == 0, printed
    assert {(budget["kind"], budget["workers"]) for budget in budgets} == {("threads", 1)}
    assert {budget["cores_left_free"] for budget in budgets} == {0}
    assert provenance("tissue")["merge"]["min_iou"] == 0.6  # of the file
    code, printed = call_command_line("run", image, *chosen, "--min-iou", "0.3")
    assert code == 0, printed
    assert provenance("tissue")["merge"]["min_iou"] == 0.3


@pytest.mark.slow
def test_an_option_that_is_left_out_leaves_it_to_the_file(budgets, tmp_path, monkeypatch):
    # Processes would take seconds; which kind they are is seen in the config of the runs.
    monkeypatch.setattr(ComputeBudget, "open", lambda budget, count, declared=None: Workers(count))
    assert call_command_line("run", tmp_path / "tissue.tif")[0] == 0
    n_of_run = len(budgets)
    folder = LabelStore().folder("tissue")
    (folder.path / "objects.parquet").unlink()
    assert call_command_line("retry", "tissue")[0] == 0
    assert len(budgets) > n_of_run
    found = {(each["kind"], each["workers"], each["cores_left_free"]) for each in budgets}
    assert found == {("processes", 2, 0)}


def defaults_of(command) -> dict:
    return {name: each.default for name, each in inspect.signature(command).parameters.items()}


def test_commands_of_a_home_choose_nothing_by_themselves():
    choices = {"segmentation", "param", "tile_shape", "overlap", "channel", "level", "axes"}
    choices |= {"merge", "min_iou", "min_size", "workers", "worker_kind"}
    for command in (run, retry, merge, view):
        found = defaults_of(command)
        assert {name: found[name] for name in choices & set(found)} == dict.fromkeys(
            choices & set(found)
        )
        assert found["home"] == HOME


def test_commands_that_know_no_home_choose_what_is_built_in():
    home, first = SegmentationDefaults(), Acquisition("x")
    built_in = {
        "segmentation": home.function,
        "tile_shape": str(home.tile_shape[0]),
        "overlap": str(home.overlap[0]),
        "level": first.level,
        "merge": home.merge,
        "min_iou": home.min_iou,
        "min_size": home.min_size,
        "worker_kind": ComputeBudget().kind_for(),
    }
    assert built_in.items() <= defaults_of(segment).items()
    tried = {name: built_in[name] for name in ("segmentation", "tile_shape", "min_iou", "level")}
    assert tried.items() <= defaults_of(pilot).items()


def test_the_library_has_the_same_built_in():
    library, home = defaults_of(tile_process), SegmentationDefaults()
    assert (library["merge"], library["min_iou"]) == (home.merge, home.min_iou)
    assert (library["min_size"], library["workers"]) == (home.min_size, ComputeBudget().kind_for())
    assert (
        library["skip_empty"] == home.skip_empty == defaults_of(segment_to_ome_zarr)["skip_empty"]
    )


def test_the_level_and_the_axes_asked_for_beat_those_of_the_image(pipeline, home, tmp_path):
    prepare_home(home)
    path = write_tiff(tmp_path / "tissue.tif", tissue())
    pipeline.register(path, level=1, axes="yx")
    assert ViewRequest("tissue", None, None, 0, "xy").in_home(home).level == 0
    assert ViewRequest("tissue", None, None, 0, "xy").in_home(home).axes == "xy"
    left_out = ViewRequest("tissue", None, None, None, None).in_home(home)
    assert (left_out.level, left_out.axes) == (1, "yx")


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (("--worker-kind", "threads", "--tile-timeout", 5), "--tile-timeout is kept by ending a"),
        (("--worker-kind", "threads", "--worker-memory", "8GB"), "--worker-kind is 'threads'"),
        (("--worker-memory", "lots"), "--worker-memory must be a number of bytes, 1 MB or more"),
        (("--worker-memory", "0"), "auto or none, got '0'"),
        (("--tile-timeout", 0.01), "--tile-timeout must be 0.1 or more seconds, or 0 for no"),
    ],
)
def test_limits_that_cannot_be_kept_are_refused_as_options(home, tmp_path, options, words):
    image = write_tiff(tmp_path / "tissue.tif", tissue())
    commands = [("run",), ("submit",)]
    if "--worker-kind" not in options:
        commands.append(("segment", "-o", tmp_path / "out.zarr"))
    for command in commands:
        code, printed = call_command_line(*command, image, *options)
        assert code == 2, printed
        assert words in printed
        assert printed.count("got ") <= 1
        assert "budget." not in printed


@pytest.mark.slow
def test_limits_that_a_function_in_threads_does_not_keep_are_said_once(home, tmp_path):
    image = write_tiff(tmp_path / "tissue.tif", tissue())
    chosen = ("--segmentation", "tissue_functions:perfect", "--overlap", 8, "--tile-timeout", 60)
    code, printed = call_command_line("run", image, *chosen)
    assert code == 0, printed
    assert printed.count("tile_timeout and worker_memory are not kept") == 1, printed
