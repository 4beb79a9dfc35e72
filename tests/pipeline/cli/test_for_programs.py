"""What a program asks of the command line: the version, help, and JSON on standard output."""

from __future__ import annotations

import json
import subprocess
import sys
from importlib.metadata import version

import numpy as np
import pytest
from typer.testing import CliRunner

import patchworks_core
import patchworks_pipeline
from patchworks_pipeline.cli.main import app
from tests.pipeline.conftest import call_command_line
from tests.tissue import tissue, write_tiff

NUMBER = version("patchworks-pipeline")

CHOICES = ("--segmentation", "tissue_functions:perfect", "--tile-shape", "64", "--overlap", "8")


def test_the_version_is_said_everywhere():
    assert patchworks_core.__version__ == patchworks_pipeline.__version__ == NUMBER
    assert call_command_line("--version") == (0, f"patchworks {NUMBER}")
    with pytest.raises(AttributeError, match="'patchworks_pipeline' has no attribute 'name'"):
        patchworks_pipeline.name  # noqa: B018


def test_the_package_is_a_program():
    command = [sys.executable, "-m", "patchworks_pipeline", "--version"]
    done = subprocess.run(command, capture_output=True, text=True)
    assert (done.returncode, done.stdout) == (0, f"patchworks {NUMBER}\n")


COMMANDS = ["run", "retry", "merge", "next", "status", "ui", "demo", "segment", "pilot", "convert"]
COMMANDS += ["view", "mend"]


@pytest.mark.parametrize("command", [None, *COMMANDS])
def test_every_command_says_what_it_takes(command):
    short = call_command_line(*filter(None, [command]), "-h")
    assert short == call_command_line(*filter(None, [command]), "--help")
    assert short[0] == 0
    assert "Usage: " in short[1]


def printed_json(*arguments) -> tuple[int, list]:
    """Call ``patchworks``; all that it prints on standard output is JSON."""
    result = CliRunner().invoke(app, [str(argument) for argument in arguments])
    return result.exit_code, [json.loads(line) for line in result.stdout.splitlines()]


def test_run_and_status_say_json(home, tmp_path):
    write_tiff(tmp_path / "tissue.tif", tissue())
    path = tmp_path / "tissue.tif"
    result = CliRunner().invoke(app, ["run", str(path), *CHOICES, "--json"])
    code, (record,) = result.exit_code, [json.loads(line) for line in result.stdout.splitlines()]
    assert code == 0
    assert result.stderr.splitlines() == [
        f"{path}: begun",
        "tissue: planning",
        "tissue: staging 4 of 4 tiles",
        "tissue: merging 4 tiles",
    ]
    assert (record["image"], record["is_complete"], record["error"]) == ("tissue", True, None)
    assert record["objects"] > 3
    assert record["failed_tiles"] == record["seam_problems"] == []
    assert patchworks_core.open_image(record["labels"]).is_label_image
    code, (found,) = printed_json("status", "--json")
    assert (code, found["refused"]) == (0, [])
    (image,) = found["images"]
    assert (image["image"], image["objects"], image["missing"]) == ("tissue", record["objects"], 0)
    assert image["labels"] == record["labels"]


def test_an_image_that_fails_is_json_too(home, tmp_path):
    code, (record,) = printed_json("run", tmp_path / "nothing.tif", "--json")
    assert code == 2
    assert "nothing.tif" in record["error"]
    (home / "patchworks.yaml").write_text("segmentations: {nuclei: {}, cells: {}}\n")
    path = tmp_path / "nothing.tif"
    result = CliRunner().invoke(app, ["run", str(path), "--json"])
    begun, error = result.stderr.splitlines()
    assert (begun, error.startswith("error: ")) == (f"{path}: begun", True), "each is said once"
    records = [json.loads(line) for line in result.stdout.splitlines()]
    assert [record["segmentation"] for record in records] == ["nuclei", "cells"]


def test_segment_says_json(home, tmp_path):
    write_tiff(tmp_path / "tissue.tif", tissue())
    output = tmp_path / "a.ome.zarr"
    call = ("segment", tmp_path / "tissue.tif", "-o", output, *CHOICES, "--json")
    code, (record,) = printed_json(*call)
    assert (code, record["labels"]) == (0, str(output / "labels" / "labels"))
    labels = patchworks_core.open_image(record["labels"])
    assert record["objects"] == len(np.unique(np.asarray(labels.pixels[...]))) - 1
    code, (needs,) = printed_json(*call, "--dry-run")
    assert (code, needs["n_tiles"]) == (0, needs["n_tiles_with_signal"])
