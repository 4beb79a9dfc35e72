"""A place that cannot be written to ends a call in one line, and leaves nothing by half."""

from __future__ import annotations

import errno
import logging
import os
import shutil

import numpy as np
import pytest
from upath import UPath

from patchworks_core import filter_image, segment_to_ome_zarr, tile_process
from patchworks_core.errors import StorageError, TilesFailedError
from patchworks_core.files import space, storage
from patchworks_core.files.faults import storing
from patchworks_core.machine import pools
from patchworks_core.machine.faults import RetryPolicy, kind_of
from patchworks_core.operations.filters import maximum
from tests.core.staging import label_components

IMAGE = np.ones((8, 16), "u1")


def fails_at(monkeypatch, number, suffix):
    """Let the first write of a file with that ending fail, and all after it."""
    write = storage.os.replace

    def replace(source, target):
        if str(target).endswith(suffix):
            raise OSError(number, os.strerror(number), str(source), None, str(target))
        write(source, target)

    monkeypatch.setattr(storage.os, "replace", replace)


@pytest.mark.parametrize(
    ("number", "words"),
    [
        (errno.ENOSPC, "no space left on device"),
        (errno.EACCES, "permission denied"),
        (errno.EIO, "input/output error"),
    ],
)
def test_staging_stops_at_the_first_tile_that_cannot_be_kept(number, words, tmp_path, monkeypatch):
    tried = []

    def counted(tile):
        tried.append(1)
        return label_components(tile)

    target = tmp_path / "a.zarr"
    monkeypatch.setattr(pools, "RETRY", RetryPolicy(seconds=0.01))
    fails_at(monkeypatch, number, ".tiles")
    with pytest.raises(StorageError) as raised:
        tile_process(IMAGE, counted, tile_shape=2, write_to=target, max_workers=1)
    text = str(raised.value)
    assert text.startswith(f"staging stopped when 0 of 32 tile blocks were done: {words}: '")
    assert text.endswith(
        f"; what is done is kept at {target}/labels.work: make room, or mend the place, and call "
        "again"
    )
    assert "\n" not in text
    assert len(tried) < 12, "no other tile would have fared better"
    assert not [*tmp_path.rglob("*.part"), *tmp_path.rglob("*.lock")]
    monkeypatch.undo()
    n_before = len(tried)
    tile_process(IMAGE, counted, tile_shape=2, write_to=target, max_workers=1, resume=True)
    assert len(tried) - n_before == 32


@pytest.mark.parametrize("suffix", ["c/0/0", "1/0", "provenance.json", "zarr.json"])
def test_labels_that_cannot_be_written_are_said_in_one_line(suffix, tmp_path, monkeypatch):
    target = tmp_path / "a.zarr"
    fails_at(monkeypatch, errno.ENOSPC, suffix)
    try:
        segment_to_ome_zarr(IMAGE, label_components, target, tile_shape=8, max_workers=1)
    except StorageError as error:
        text = str(error)
        assert "\n" not in text
        assert "no space left on device: '" in text
        assert f"what is done is kept at {target}/labels/labels.work" in text
    assert not list(tmp_path.rglob("*.part"))
    monkeypatch.undo()
    segment_to_ome_zarr(IMAGE, label_components, target, tile_shape=8, max_workers=1, resume=True)
    assert not list(tmp_path.rglob("*.work"))


def test_a_stage_that_vanishes_ends_the_call(tmp_path):
    target = tmp_path / "a.zarr"

    def removes(tile):
        shutil.rmtree(target)
        return label_components(tile)

    with pytest.raises(StorageError, match="is gone"):
        tile_process(IMAGE, removes, tile_shape=4, write_to=target, max_workers=1)


def test_what_is_not_kept_leaves_nothing(tmp_path, monkeypatch):
    fails_at(monkeypatch, errno.ENOSPC, "0")
    with pytest.raises(StorageError, match="nothing is left of what was made: make room"):
        filter_image(IMAGE, maximum(3), tile_shape=8, write_to=tmp_path / "a.zarr")
    assert not any(path.is_file() for path in tmp_path.rglob("*.work"))
    assert not list(tmp_path.rglob("*.part"))


def test_an_error_of_the_function_is_of_its_tile_alone(tmp_path):
    def full(tile):
        raise OSError(errno.ENOSPC, "No space left on device", "/elsewhere")

    with pytest.raises(TilesFailedError, match="2 of 2 tiles failed"):
        tile_process(IMAGE, full, tile_shape=8, write_to=tmp_path / "a.zarr")


def test_only_what_is_about_the_place_becomes_a_fault_of_it(tmp_path):
    place = UPath(tmp_path / "a")
    for name, is_ours in ((tmp_path / "a.work" / "x", True), (tmp_path / "b", False)):
        with pytest.raises(StorageError if is_ours else FileNotFoundError), storing(place):
            name.read_bytes()
    words = "writing x failed: no space left"
    with pytest.raises(StorageError, match=words), storing(place, doing="writing x"):
        raise OSError(errno.ENOSPC, "No space left on device")
    assert kind_of(StorageError("full", errno.ENOSPC)) == "storage"
    assert kind_of(StorageError("flaky", errno.EIO)) == "transient"


def test_a_stage_that_will_not_fit_is_said_while_there_is_time(tmp_path, monkeypatch, caplog):
    monkeypatch.setattr(space, "free_bytes", lambda path: 2000)
    with caplog.at_level(logging.WARNING):
        tile_process(IMAGE, label_components, tile_shape=4, write_to=tmp_path / "a.zarr")
    warned = [record.message for record in caplog.records if "more are needed" in record.message]
    assert len(warned) == 1
    assert warned[0].startswith("2.0 kB are free at")
    assert "of patchworks segment, --output" in warned[0]
    monkeypatch.setattr(space, "free_bytes", lambda path: 20)
    with pytest.raises(StorageError, match=r"20 B are free at .* one tile block may take 32 B; no"):
        tile_process(IMAGE, label_components, tile_shape=4, write_to=tmp_path / "b.zarr")


def test_a_disk_that_fills_within_seconds_is_said_once(tmp_path, monkeypatch, caplog):
    free = iter([4000, 1000, 200, 40, 8])
    monkeypatch.setattr(space, "free_bytes", lambda path: next(free))
    watch = space.SpaceWatch(UPath(tmp_path), n_blocks=1000)
    for n_done in range(1, 5):
        watch.look(100 * n_done, n_done=n_done, n_left=1000 - n_done)
    assert len(caplog.records) == 1
    monkeypatch.setattr(space, "SECONDS_BETWEEN", 0)
    watch.look(500, n_done=5, n_left=995)
    assert len(caplog.records) == 2


def test_free_space_is_that_of_the_folder_that_will_be_made(tmp_path):
    assert space.free_bytes(UPath(tmp_path / "not" / "there")) > 0
    assert space.free_bytes(UPath("memory://a")) is None
