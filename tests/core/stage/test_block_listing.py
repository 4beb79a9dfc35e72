"""What the headers of many blocks say is kept for the next process."""

from pathlib import Path

import numpy as np
import pytest

from patchworks_core.stage import block_listing
from patchworks_core.stage.block_listing import BlockListing
from patchworks_core.stage.stage import Stage
from tests.core.staging import blobs, stage_into

KEPT = "headers"


@pytest.fixture
def stage(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Stage:
    """A stage of more blocks than may go unkept."""
    monkeypatch.setattr(block_listing, "_MANY", 4)
    return stage_into(tmp_path / "stage.zarr", blobs((24, 24)), tile_shape=8, overlap=2)


def _folder(stage: Stage) -> Path:
    return next(Path(str(stage.path)).glob("blocks/*"))


def _again(stage: Stage, monkeypatch: pytest.MonkeyPatch) -> tuple[Stage, list[str]]:
    """Return the stage as another process opens it, and a list that gets the headers it reads."""
    read: list[str] = []
    read_summary = BlockListing._read_summary

    def noted(self: BlockListing, key: str):
        read.append(key)
        return read_summary(self, key)

    monkeypatch.setattr(BlockListing, "_read_summary", noted)
    return Stage.open(stage.path, stage.plan), read


def test_the_next_process_reads_no_header(stage: Stage, monkeypatch: pytest.MonkeyPatch) -> None:
    before = stage.counts(), stage.digests(), stage.pixel_checksums(), stage.content()
    assert (_folder(stage) / KEPT).exists()
    again, read = _again(stage, monkeypatch)
    after = again.counts(), again.digests(), again.pixel_checksums(), again.content()
    for was, now in zip(before, after, strict=True):
        np.testing.assert_array_equal(was, now)
    assert read == []


def test_a_file_that_is_another_is_read(stage: Stage, monkeypatch: pytest.MonkeyPatch) -> None:
    stage.counts()
    one = sorted(_folder(stage).glob("*.tiles"))[3]
    content = one.read_bytes()
    one.write_bytes(content[: len(content) // 2])
    again, read = _again(stage, monkeypatch)
    assert again.missing_blocks() == [one.stem]
    assert read == [one.stem]


def test_a_file_that_is_gone_is_not_staged(stage: Stage, monkeypatch: pytest.MonkeyPatch) -> None:
    stage.counts()
    one = sorted(_folder(stage).glob("*.tiles"))[3]
    one.unlink()
    again, _ = _again(stage, monkeypatch)
    assert again.missing_blocks() == [one.stem]


def test_what_is_kept_is_not_believed_once_damaged(
    stage: Stage, monkeypatch: pytest.MonkeyPatch
) -> None:
    counts = stage.counts()
    kept = _folder(stage) / KEPT
    content = kept.read_bytes()
    for bad in (
        b"",
        content[:40],
        content[: len(content) // 2],
        content[:-9] + b"x" + content[-8:],
    ):
        kept.write_bytes(bad)
        again, read = _again(stage, monkeypatch)
        np.testing.assert_array_equal(again.counts(), counts)
        assert len(read) == stage.grid.n_blocks


def test_a_folder_that_can_only_be_read_is_listed(
    stage: Stage, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(path: Path, content: bytes) -> None:
        raise PermissionError(13, "Permission denied", str(path))

    monkeypatch.setattr(block_listing, "write_bytes", refuse)
    again, read = _again(stage, monkeypatch)
    assert (again.counts() >= 0).all()
    assert len(read) == stage.grid.n_blocks


def test_headers_that_are_all_damaged_leave_a_stage_that_opens(stage: Stage) -> None:
    for file in _folder(stage).iterdir():
        file.write_bytes(b"not a tile block")
    for _ in range(2):
        again = Stage.open(stage.path, stage.plan)
        assert (again.counts() == -1).all()
