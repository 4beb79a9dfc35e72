"""Replacing: refused where it must be, one call at a time, and never half at any instant."""

from __future__ import annotations

import os
import shutil
import threading
from collections.abc import Iterator
from contextlib import suppress
from itertools import count
from pathlib import Path

import numpy as np
import pytest
import zarr
from upath import UPath

from patchworks_core.errors import ImageError, PlanError
from patchworks_core.files.replacing import (
    NO_OTHER,
    component_path,
    recover,
    replacing,
    work_folder,
)
from patchworks_core.files.storage import as_path, discard, is_trash
from patchworks_core.files.written import fault_of, made_from_what
from patchworks_core.images.image import open_image
from tests.core.kills import FAULTS, Killed, Store, listen


@pytest.fixture(scope="module", autouse=True)
def listening() -> Iterator[None]:
    listen()
    yield
    FAULTS.disarm()


def write(target: Path | UPath, text: str, **options) -> None:
    """Make a folder of two files that say the same."""
    path = as_path(target)
    with replacing(path, what="a folder", **options) as working:
        (working.new / "c").mkdir(parents=True)
        (working.new / "c" / "0").write_text(text)
        (working.new / "zarr.json").write_text(text)


def read(target: Path) -> str:
    """Return what a folder says; it must be whole."""
    texts = {(target / name).read_text() for name in ("zarr.json", "c/0")}
    assert len(texts) == 1, "half of one and half of another"
    return texts.pop()


def names(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir())


@pytest.mark.parametrize("is_final", [False, True], ids=["interrupted", "killed"])
@pytest.mark.parametrize("keeps", [False, True])
@pytest.mark.parametrize("has_old", [False, True])
def test_at_every_step_the_old_or_the_new_one_is_whole_and_found_by_the_next_call(
    has_old, keeps, is_final, tmp_path
):
    for step in count():
        folder = tmp_path / str(step)
        folder.mkdir()
        target = folder / "labels"
        if has_old:
            write(target, "old")
        FAULTS.arm(step, is_final=is_final)
        with suppress(KeyboardInterrupt, Killed):
            write(target, "new", keeps=keeps)
        came = FAULTS.disarm()
        if target.exists():
            assert read(target) in ("old", "new")
        recover(as_path(target))
        assert read(target) in ("old", "new") if has_old or target.exists() else True
        assert not target.exists() or fault_of(as_path(target)) is None
        write(target, "next")
        assert read(target) == "next"
        assert names(folder) == ["labels"], step
        if not came:
            assert step > 12
            return


def test_a_call_that_was_killed_while_it_replaced_has_done_its_work(tmp_path):
    target = tmp_path / "labels"
    write(target, "old")
    seen = set()
    for step in count():
        FAULTS.arm(step, is_final=True)
        with suppress(Killed):
            write(target, "new", made_from={"step": step})
        came = FAULTS.disarm()
        if not target.exists():
            recover(as_path(target))
            assert read(target) == "new"
            assert made_from_what(as_path(target)) == {"step": step}
            seen.add(step)
        write(target, "old")
        if not came:
            break
    assert seen


@pytest.mark.parametrize(("left", "expected"), [(("new", "old"), 7), (("old",), 7), ((), None)])
def test_who_reads_finds_what_a_killed_call_left(left, expected, tmp_path):
    target = as_path(tmp_path / "labels")
    with replacing(target, what="labels") as working:
        zarr.create_array(str(working.new), data=np.full((4, 4), 7, "i4"), chunks=(2, 2))
    work = work_folder(target)
    work.mkdir()
    (work / "old").write_text("never")
    for name in left:
        (work / name).unlink(missing_ok=True)
        shutil.copytree(target, work / name)
    shutil.rmtree(target)
    if expected is None:
        shutil.rmtree(work)
        with pytest.raises(ImageError, match="no image at"):
            open_image(target)
        return
    np.testing.assert_array_equal(open_image(target).pixels[...], expected)


def test_what_was_made_is_the_target_and_nothing_else_is_left(tmp_path):
    write(tmp_path / "labels", "first", made_from={"rule": "touching"})
    assert made_from_what(as_path(tmp_path / "labels")) == {"rule": "touching"}
    write(tmp_path / "labels", "second")
    assert read(tmp_path / "labels") == "second"
    assert names(tmp_path) == ["labels"]
    assert made_from_what(as_path(tmp_path / "labels")) == {}


def test_a_block_that_raises_leaves_the_old_one_and_the_work_only_where_it_is_kept(tmp_path):
    write(tmp_path / "labels", "old")

    def fail(**options) -> None:
        with replacing(as_path(tmp_path / "labels"), what="labels", **options) as working:
            working.folder.mkdir(exist_ok=True)
            (working.folder / "stage.zarr").write_text("staged")
            raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        fail()
    assert names(tmp_path) == ["labels"]
    with pytest.raises(ZeroDivisionError):
        fail(keeps=True)
    assert names(tmp_path) == ["labels", "labels.work"]
    assert read(tmp_path / "labels") == "old"


@pytest.mark.parametrize(
    "change",
    [
        lambda path: (path / "c" / "0").write_text("drawn"),
        lambda path: (path / "c" / "0").unlink(),
        lambda path: (path / "c" / "1").write_text("first"),
        lambda path: (path / "zarr.json").write_text("first "),
        lambda path: (path / ".patchworks.json").write_text("[]"),
        lambda path: (path / ".patchworks.json").write_text('{"record_version": 2}'),
        lambda path: (path / ".patchworks.json").unlink(),
    ],
    ids=["edited", "lost", "added", "metadata", "no mapping", "newer", "no record"],
)
def test_what_was_changed_since_is_refused_and_named_and_overwritten_only_when_told(
    change, tmp_path
):
    target = tmp_path / "labels"
    write(target, "first")
    change(target)
    kept = {path: path.read_bytes() for path in target.rglob("*") if path.is_file()}
    with pytest.raises(PlanError, match=r"labels is a .*; name another write_to, or pass overwrit"):
        write(target, "second")
    assert {path: path.read_bytes() for path in target.rglob("*") if path.is_file()} == kept
    assert names(tmp_path) == ["labels"]
    write(target, "second", overwrite=True)
    assert read(target) == "second"


def test_what_a_killed_removal_left_is_removed_by_the_next(tmp_path):
    for is_there in (True, False):
        write(tmp_path / "stage.zarr", "old")
        FAULTS.arm(4, is_final=True)
        with suppress(Killed):
            discard(as_path(tmp_path / "stage.zarr"))
        assert FAULTS.disarm()
        assert [is_trash(name, of="stage.zarr") for name in names(tmp_path)] == [True]
        if is_there:
            write(tmp_path / "stage.zarr", "new")
        discard(as_path(tmp_path / "stage.zarr"))
        assert names(tmp_path) == []


def test_a_look_with_a_file_manager_changes_nothing(tmp_path):
    write(tmp_path / "labels", "first")
    (tmp_path / "labels" / ".DS_Store").write_bytes(b"x")
    (tmp_path / "labels" / "c" / "._0").write_bytes(b"x")
    write(tmp_path / "labels", "second")
    assert read(tmp_path / "labels") == "second"


def test_a_copy_is_as_good_as_what_was_written(tmp_path):
    write(tmp_path / "labels", "first")
    shutil.copytree(tmp_path / "labels", tmp_path / "copy", copy_function=shutil.copy)
    write(tmp_path / "copy", "second")
    assert read(tmp_path / "copy") == "second"


def test_what_is_changed_while_the_work_is_done_is_not_lost_and_the_new_one_is_said(tmp_path):
    target = as_path(tmp_path / "labels")
    write(target, "old")
    new = work_folder(target) / "new"

    def work() -> None:
        with replacing(target, what="labels"):
            new.mkdir(parents=True)
            (new / "zarr.json").write_text("new")
            (target / "c" / "0").write_text("drawn")

    with pytest.raises(PlanError, match=r"the new one is at .*labels.work/new until the next call"):
        work()
    assert (target / "c" / "0").read_text() == "drawn"
    assert (new / "zarr.json").read_text() == "new"


def test_an_ordinary_folder_of_any_of_the_names_is_left_alone(tmp_path):
    for name in ("labels", "cells.work"):
        (tmp_path / name).mkdir()
        (tmp_path / name / "mine.txt").write_text("mine")
    with pytest.raises(PlanError, match="labels is a folder: nothing says that patchworks wrote"):
        write(tmp_path / "labels", "new")
    with pytest.raises(PlanError, match=r"cells.work, and that holds 'mine.txt', which is nothing"):
        write(tmp_path / "cells", "new", overwrite=True)
    for name in ("labels", "cells.work"):
        assert (tmp_path / name / "mine.txt").read_text() == "mine"


def test_the_folder_that_the_process_works_in_is_never_replaced(tmp_path, monkeypatch):
    inner = tmp_path / "here" / "inner"
    inner.mkdir(parents=True)
    (inner / "mine.txt").write_text("mine")
    monkeypatch.chdir(inner)
    for target in (".", "..", inner):
        with pytest.raises(PlanError, match="this process works in it; name another write_to"):
            write(target, "new", overwrite=True)
    assert (inner / "mine.txt").read_text() == "mine"


def test_a_link_is_replaced_and_what_it_leads_to_is_left(tmp_path):
    write(tmp_path / "first", "old")
    (tmp_path / "labels").symlink_to(tmp_path / "first")
    write(tmp_path / "labels", "new")
    assert (read(tmp_path / "labels"), read(tmp_path / "first")) == ("new", "old")
    assert names(tmp_path) == ["first", "labels"]


def test_of_two_calls_on_one_target_one_works_and_the_other_is_told(tmp_path):
    told, threads = [], []
    both = threading.Barrier(8)

    def call(number: int) -> None:
        both.wait()
        try:
            write(tmp_path / "labels", str(number))
            told.append(None)
        except PlanError as error:
            told.append(str(error))

    for _ in range(25):
        threads = [threading.Thread(target=call, args=(n,)) for n in range(8)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert None in told
        assert read(tmp_path / "labels")
        assert names(tmp_path) == ["labels"]
    refusals = {text for text in told if text}
    assert all("one call at a time is writing to" in text for text in refusals)


def test_on_an_object_store_too(tmp_path):
    target = as_path("memory://claims/labels")
    with replacing(target, what="labels") as working:
        with pytest.raises(PlanError, match="one call at a time"):
            write(target, "other")
        (working.new / "zarr.json").write_text("new")
    assert (target / "zarr.json").read_text() == "new"


@pytest.mark.parametrize("name", ["../x", "/x", "", ".", "a/../../x", "a//b", "..\\x"])
def test_a_component_lies_in_its_group(name):
    with pytest.raises(PlanError, match="the name of an array within its group, got"):
        component_path(as_path("group"), name)


def test_a_component_may_lie_deeper():
    assert str(component_path(as_path("memory://g"), "a/b")) == "memory://g/a/b"


def test_on_an_object_store_no_half_is_seen_and_a_killed_copy_is_done_again(monkeypatch):
    store = Store(monkeypatch)
    for step in count():
        target = as_path(f"memory://killed/{step}/labels")
        write(target, "old")
        store.left = step
        try:
            write(target, "new")
            came = False
        except Killed:
            came = True
        store.left = None
        if (target / "zarr.json").exists():
            assert read(target) in ("old", "new")
        recover(target)
        assert read(target) in ("old", "new")
        assert fault_of(target) is None
        write(target, "next")
        assert read(target) == "next"
        assert names(target.parent) == ["labels"]
        if not came:
            assert step > 8
            return


@pytest.mark.parametrize("where", ["{}/a.zarr", "memory://edited/a.zarr"])
def test_labels_corrected_by_hand_are_noticed_anywhere(where, tmp_path):
    target = as_path(where.format(tmp_path))
    with replacing(target, what="labels") as working:
        array = zarr.create_array(str(working.new), shape=(4, 4), chunks=(2, 2), dtype="i4")
        array[:2, :2] = 7
    assert fault_of(target) is None
    opened = zarr.open_array(str(target), mode="r+")
    opened[0, 0] = 8
    np.testing.assert_array_equal(opened[:2, :2], [[8, 7], [7, 7]])
    assert "changed since patchworks wrote it" in (fault_of(target) or "")
    opened[:2, :2] = 0
    assert "changed since patchworks wrote it" in (fault_of(target) or "")


def test_what_can_have_no_other_name_is_kept_by_a_copy(tmp_path):
    (tmp_path / "mine").mkdir()
    with pytest.raises(PlanError) as refused:
        write(tmp_path / "mine", "new", another=NO_OTHER)
    assert "patchworks wrote it; what is there is left as it is: copy it els" in str(refused.value)
    assert "name another" not in str(refused.value)


def test_a_file_is_replaced_at_once_and_vouched_for_beside_it(tmp_path):
    target = as_path(tmp_path / "objects.csv")

    def table(text: str, **options) -> None:
        with replacing(target, what="a table", **options) as working:
            working.folder.mkdir(parents=True, exist_ok=True)
            working.new.write_text(text)

    table("first")
    table("second")
    assert target.read_text() == "second"
    assert names(tmp_path) == [".objects.csv.patchworks.json", "objects.csv"]
    target.write_text("by hand")
    with pytest.raises(PlanError, match="a table only replaces what patchworks wrote"):
        table("third")
    assert target.read_text() == "by hand"
    for step in count():
        table("old", overwrite=True)
        FAULTS.arm(step, is_final=True)
        with suppress(Killed):
            table("new")
        came = FAULTS.disarm()
        assert target.read_text() in ("old", "new")
        table("next")
        if not came:
            break
    assert names(tmp_path) == [".objects.csv.patchworks.json", "objects.csv"]


def test_nothing_is_read_through_the_folder_of_work(tmp_path):
    stage = work_folder(as_path(tmp_path / "labels")) / "stage.zarr"
    with pytest.raises(PlanError, match="never written over what it is made from"):
        write(tmp_path / "labels", "new", reads=[str(stage / "labels")])
    assert os.listdir(tmp_path) == []


@pytest.mark.parametrize("overwrite", [False, True])
@pytest.mark.parametrize("can_go_on", [False, True])
def test_work_that_a_killed_call_left_is_taken_up_where_it_can_be_and_not_vouched_for(
    can_go_on, overwrite, tmp_path
):
    target = as_path(tmp_path / "labels")
    write(target, "old")
    new = work_folder(target) / "new"
    shutil.copytree(target, new)  # killed when it was vouched for
    (new / f"zarr.{'0' * 32}.partial").write_text("half")
    options = {"what": "labels", "overwrite": overwrite, "takes_up": lambda new: can_go_on}
    with replacing(target, **options) as working:
        assert working.old == (None if overwrite else target)
        left = names(working.new) if working.new.exists() else []
        assert left == (["c", "zarr.json"] if can_go_on and not overwrite else [])
        (working.new / "c").mkdir(parents=True, exist_ok=True)
        for name in ("c/0", "zarr.json"):
            (working.new / name).write_text("new")
    assert read(target) == "new"
    assert names(tmp_path) == ["labels"]
