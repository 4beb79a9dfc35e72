"""Where a deployment asks for it, what is written is on the disk before anything builds on it."""

from __future__ import annotations

import os
import pickle

import numpy as np
import pytest
from upath import UPath

from patchworks_core import open_image, segmentation_of, tile_process
from patchworks_core.errors import PlanError
from patchworks_core.files import storage
from patchworks_core.files.storage import DURABLE, is_durable, write_text
from patchworks_core.stage.plan import make_plan
from patchworks_core.stage.stage import Stage
from tests.core.staging import label_components


def noted_steps(monkeypatch):
    steps = []

    def note(name):
        step = getattr(os, name)

        def run(*arguments):
            first = arguments[0]
            path = os.readlink(f"/proc/self/fd/{first}") if isinstance(first, int) else first
            steps.append((name, path))
            return step(*arguments)

        monkeypatch.setattr(storage.os, name, run)

    for name in ("fsync", "replace", "rename"):
        note(name)
    return steps


def test_a_file_is_on_the_disk_before_its_name_is_and_then_the_folder(tmp_path, monkeypatch):
    steps = noted_steps(monkeypatch)
    write_text(UPath(tmp_path / "a"), "x")
    assert [name for name, _ in steps] == ["replace"]
    steps.clear()
    monkeypatch.setenv(DURABLE, "on")
    write_text(UPath(tmp_path / "a"), "x")
    assert [name for name, _ in steps] == ["fsync", "replace", "fsync"]
    assert steps[0][1] == steps[1][1] != str(tmp_path / "a")
    assert steps[2][1] == str(tmp_path)


@pytest.mark.parametrize("value", ["maybe", "2", "onn"])
def test_a_switch_that_says_neither_on_nor_off_is_refused(tmp_path, monkeypatch, value):
    monkeypatch.setenv(DURABLE, value)
    words = rf"PATCHWORKS_FSYNC must be one of \('on', .*'no'\), got {value!r}; correct it"
    with pytest.raises(PlanError, match=words):
        tile_process(np.ones((4, 4), "u1"), label_components, tile_shape=4, write_to=tmp_path / "a")
    assert not list(tmp_path.rglob("*.part"))
    with pytest.raises(PlanError, match=words):
        write_text(UPath(tmp_path / "b"), "x")


@pytest.mark.parametrize(
    ("value", "is_on"), [("", False), ("OFF", False), ("no", False), ("1", True)]
)
def test_a_switch_is_on_or_off(monkeypatch, value, is_on):
    monkeypatch.setenv(DURABLE, value)
    assert is_durable() == is_on


def test_labels_are_on_the_disk_before_they_take_the_place_of_others(tmp_path, monkeypatch):
    monkeypatch.setenv(DURABLE, "on")
    steps = noted_steps(monkeypatch)
    tile_process(np.ones((4, 4), "u1"), label_components, tile_shape=4, write_to=tmp_path / "a")
    new = str(tmp_path / "a" / "labels.work" / "new")
    published = steps.index(("rename", new))
    synced = {path for name, path in steps[:published] if name == "fsync"}
    assert {new, f"{new}/zarr.json", f"{new}/c/0/0"} <= synced
    assert ("fsync", str(tmp_path / "a")) in steps[published:]


def test_a_stage_that_is_sent_to_another_machine_says_that_it_is_to_last(tmp_path, monkeypatch):
    plan = make_plan(open_image(np.ones((4, 4), "u1")), segmentation_of("threshold"), tile_shape=4)
    monkeypatch.setenv(DURABLE, "on")
    sent = pickle.dumps(Stage.create(tmp_path, plan))
    monkeypatch.delenv(DURABLE)
    pickle.loads(sent)
    assert is_durable()
