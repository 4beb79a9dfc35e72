"""A full disk, or one that is read-only, is one line: the place, what is kept, what to do."""

from __future__ import annotations

import errno
import os
import sqlite3
from pathlib import Path

import dagster as dg
import pytest
from sqlalchemy.exc import OperationalError

from patchworks_core.files.storage import as_path, write_bytes
from patchworks_pipeline.image_faults import words_of
from patchworks_pipeline.instance import books, run_processes
from tests.pipeline.conftest import call_command_line as patchworks
from tests.tissue import tissue, write_tiff

WAY_OUT = "; what was finished is kept: make room there and call again"


@pytest.fixture
def image_path(tmp_path):
    return write_tiff(tmp_path / "tissue.tif", tissue((64, 64)))


@pytest.fixture
def fill(monkeypatch):
    """Let files of a name find no room; the system names no place then."""
    write = Path.write_bytes

    def fill(name: str) -> None:
        def write_or_fail(self, content):
            if self.name.startswith(f"{name}."):
                raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
            return write(self, content)

        monkeypatch.setattr(Path, "write_bytes", write_or_fail)

    return fill


def database_says(words: str):
    def fail(*arguments: object, **options: object) -> None:
        raise OperationalError("INSERT", {}, sqlite3.OperationalError(words))

    return fail


def test_a_file_that_finds_no_room_is_named_by_the_name_that_it_was_to_have(tmp_path, fill):
    fill("a.json")
    with pytest.raises(OSError, match="No space left on device") as raised:
        write_bytes(as_path(tmp_path / "a.json"), b"1")
    assert raised.value.filename == str(tmp_path / "a.json")


def test_a_folder_in_the_way_is_told_in_the_same_words_every_time(tmp_path):
    (tmp_path / "five").write_text("a file")
    words = []
    for _ in range(2):
        with pytest.raises(NotADirectoryError) as raised:
            write_bytes(as_path(tmp_path / "five" / "a.json"), b"1")
        words.append(words_of(raised.value))
    assert words == [f"not a directory: {str(tmp_path / 'five' / 'a.json')!r}"] * 2


@pytest.mark.parametrize(("name", "step"), [("acquisition.json", ""), ("plan.json", "image")])
def test_a_store_on_a_full_disk_is_one_line(home, image_path, fill, name, step):
    fill(name)
    code, printed = patchworks("run", image_path, "--tile-shape", "32", "--overlap", "8")
    assert code == 1
    assert printed.count("error: ") == 1
    assert f"{step} failed: no space" in printed if step else "error: no space" in printed
    assert f"no space left on device: '{home / 'store' / 'tissue'}" in printed
    assert f"{name}'{WAY_OUT}" in printed


def test_a_home_on_a_full_disk_is_one_line(home, image_path, monkeypatch):
    fail = database_says("database or disk is full")
    monkeypatch.setattr(dg.DagsterInstance, "add_dynamic_partitions", fail)
    code, printed = patchworks("run", image_path, "--tile-shape", "32", "--overlap", "8")
    assert code == 1
    assert "database or disk is full" in printed
    assert f"the database of the home at '{home / 'dagster'}' cannot be written" in printed
    assert printed.endswith(WAY_OUT)
    assert "sqlalche.me" not in printed


@pytest.mark.parametrize(("free", "is_full"), [(0, True), (10**12, False)])
def test_a_database_that_finds_no_room_is_not_called_damaged(
    home, image_path, monkeypatch, free, is_full
):
    monkeypatch.setattr(run_processes, "end_dead_runs", database_says("disk I/O error"))
    monkeypatch.setattr(books, "free_bytes", lambda path: free)
    (home / "dagster").mkdir(parents=True)
    for command in (("status",), ("run", image_path), ("retry", "tissue"), ("merge", "tissue")):
        code, printed = patchworks(*command)
        assert code == 1
        assert ("no space left on device (0 B are free)" + WAY_OUT in printed) == is_full
        assert ("disk I/O error; what was finished is kept" in printed) != is_full
        assert ("move that folder away" in printed) != is_full


def test_a_place_that_is_read_only_says_what_to_name_instead():
    words = words_of(OSError(errno.EROFS, "Read-only file system", "/media/home"))
    assert words.startswith("read-only file system: '/media/home'; name a place that can be")
    assert "--home" in words
