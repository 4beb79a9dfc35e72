"""Stages and homes that version 0.1.0 made still open, and are completed."""

from __future__ import annotations

import hashlib
import json
import shutil
import tarfile
from pathlib import Path

import numpy as np
import pytest
import zarr
from filelock import FileLock
from scipy import ndimage

from patchworks_core import tile_process
from patchworks_core.files.storage import as_path
from patchworks_core.files.written import fault_of
from patchworks_core.stage.plan import Plan
from patchworks_core.stage.stage import Stage
from tests.pipeline.conftest import call_command_line

ARCHIVE = Path(__file__).parents[2] / "data" / "made_by_0.1.0.tar.xz"

HOME = Path("/tmp/patchworks-home-of-0.1.0")
"""Where it was made: the identity of an image is also its path."""

LABELS = "6dc05579459b648329d8e3e892679e50586403af5ee72391906e06eedf345b42"
"""SHA-256 of the labels that version 0.1.0 gave for `PIXELS`, int32."""

PIXELS = (ndimage.gaussian_filter(np.random.default_rng(7).random((96, 120)), 2) * 4000).astype(
    "u2"
)

OPTIONS = {"tile_shape": 32, "overlap": 8, "max_workers": 1}


def digest(labels) -> str:
    return hashlib.sha256(np.ascontiguousarray(labels).tobytes()).hexdigest()


@pytest.fixture(scope="module")
def unpacked(tmp_path_factory):
    folder = tmp_path_factory.mktemp("made_before")
    with tarfile.open(ARCHIVE) as archive:
        archive.extractall(folder, filter="tar")
    return folder


@pytest.fixture
def home(unpacked):
    """The home, where it was made; one test at a time."""
    with FileLock(f"{HOME}.lock", timeout=300):
        shutil.rmtree(HOME, ignore_errors=True)
        shutil.copytree(unpacked / "home", HOME)
        yield HOME
        shutil.rmtree(HOME)


def labels_of(home: Path, image: str):
    path = home / "store" / image / f"{image}.ome.zarr" / "labels" / "labels" / "0"
    return zarr.open_array(str(path), mode="r")[...]


def test_the_labels_are_those_of_the_version_before():
    assert digest(tile_process(PIXELS, "threshold", **OPTIONS)) == LABELS


def test_a_stage_of_the_version_before_is_completed(unpacked, tmp_path):
    shutil.copytree(unpacked / "labels.zarr", tmp_path / "labels.zarr")
    said = []
    labels = tile_process(
        PIXELS,
        "threshold",
        write_to=tmp_path / "labels.zarr",
        resume=True,
        progress=lambda step, done, total: said.append((step, total)),
        **OPTIONS,
    )
    assert digest(labels.compute()) == LABELS
    assert {total for step, total in said if step == "stage"} == {7}, said
    assert [path.name for path in (tmp_path / "labels.zarr").iterdir() if "work" in path.name] == []


def test_a_home_of_the_version_before_says_how_far_it_is(home):
    code, printed = call_command_line("status", "--home", str(home))
    assert code == 0
    assert "done" in printed
    assert "half" in printed


def test_a_plan_of_the_version_before_is_that_of_this_version(home):
    folder = home / "store" / "half"
    before = json.loads((folder / "plan.json").read_text())
    plan = Plan.read(folder / "plan.json")
    assert before["segmentation"]["function"] == "patchworks_core.plugins.threshold:threshold"
    assert plan.segmentation["function"] == "threshold"
    assert plan.fingerprint == before["fingerprint"]
    assert Stage.open(folder / "stage.zarr", plan).plan == plan


def test_the_tiles_that_failed_before_are_staged_and_merged(home):
    def staged():
        folder = home / "store" / "half" / "stage.zarr" / "labels" / "c"
        return {p: p.stat().st_mtime_ns for p in folder.rglob("*") if p.is_file()}

    before = staged()
    code, printed = call_command_line("retry", "half", "--home", str(home))
    assert code == 0, printed
    assert digest(labels_of(home, "half")) == digest(
        tile_process(np.ascontiguousarray(PIXELS[::-1]), "threshold", **OPTIONS)
    )
    # those that were staged before are not staged again
    assert len(before) == 5
    assert {path: staged()[path] for path in before} == before


def test_a_finished_image_of_the_version_before_may_be_merged_again_by_another_rule(home):
    assert digest(labels_of(home, "done")) == LABELS
    labels = home / "store" / "done" / "done.ome.zarr" / "labels"
    shutil.copytree(labels / "labels", labels / "labels.partial")  # as a killed merge left it
    code, printed = call_command_line("merge", "done", "--merge", "none", "--home", str(home))
    assert code == 0, printed
    assert labels_of(home, "done").max() > PIXELS.shape[0] // 32
    assert sorted(path.name for path in labels.iterdir()) == ["labels", "zarr.json"]
    assert fault_of(as_path(labels / "labels")) is None
