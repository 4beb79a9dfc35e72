"""Published labels: replaced when the new ones are whole, by one call, where they are ours."""

from __future__ import annotations

import json
import os
import shutil
import uuid
from collections.abc import Iterator
from contextlib import suppress
from itertools import count
from pathlib import Path

import numpy as np
import pytest
import zarr

from patchworks_core.errors import ImageError, PlanError
from patchworks_core.files.replacing import recover, work_folder
from patchworks_core.files.storage import as_path, copy_objects, duplicate, open_array, write_text
from patchworks_core.files.written import fault_of, vouch
from patchworks_core.images.image import open_image
from tests.core.kills import CHANGES, FAULTS, Killed, Store, listen
from tests.core.ome_zarr.test_label_image import (
    Kill,
    kill_after,
    listed,
    names,
    pixel_files,
    write,
)
from tests.core.staging import lut_of, merged_of, stage_into

NAMES = ["labels", "zarr.json"]


@pytest.fixture(scope="module", autouse=True)
def listening() -> Iterator[None]:
    listen()
    yield
    FAULTS.disarm()


@pytest.fixture(autouse=True)
def small_levels(monkeypatch):
    """Let images of a few pixels have a pyramid."""
    monkeypatch.setattr("patchworks_core.ome_zarr.pyramid.SMALLEST_LEVEL", 4)


@pytest.fixture(scope="module")
def stages(tmp_path_factory):
    """Two stages of four tiles; in the second, one tile has an object more."""
    first = np.zeros((8, 8), dtype=bool)
    first[1::4, 1::4] = True
    second = first.copy()
    second[7, 7] = True
    folder = tmp_path_factory.mktemp("stages")
    return stage_into(folder / "first", first), stage_into(folder / "second", second)


def everything(path) -> dict[str, bytes]:
    """Return every file of a folder, by its place in it."""
    return {str(f.relative_to(path)): f.read_bytes() for f in path.rglob("*") if f.is_file()}


@pytest.mark.parametrize("version", ["0.5", "0.4"])
@pytest.mark.parametrize("has_links", [True, False])
def test_what_is_rewritten_in_the_copy_leaves_the_published_labels_as_they_were(
    version, has_links, stages, tmp_path, monkeypatch
):
    if not has_links:
        monkeypatch.setattr(os, "link", lambda *a, **k: (_ for _ in ()).throw(PermissionError()))
    target, _ = write(stages[0], tmp_path / "a.ome.zarr", version=version)
    published = Path(str(target.path))
    before, copy = everything(published), as_path(tmp_path / "copy")
    duplicate(target.path, copy)
    assert everything(Path(str(copy))) == before
    same = [os.path.samefile(published / name, copy / name) for name in before]
    assert same == [has_links] * len(before)
    group = zarr.open_group(str(copy), mode="r+")
    for name in ("0", "1", "applied"):
        group[name][...] = 77
    group["applied"][0, 0] = 0  # Zarr deletes the chunk
    group.attrs["drawn"] = True
    group["0"].attrs["drawn"] = True
    write_text(copy / "provenance.json", "{}")
    assert everything(published) == before
    names_of_both = before.keys() & everything(Path(str(copy))).keys()
    same = [n for n in names_of_both if os.path.samefile(published / n, copy / n)]
    unchanged = {".patchworks.json", "1/zarr.json", "applied/zarr.json"}
    unchanged |= {"1/.zarray", "applied/.zarray", ".zgroup", "0/.zarray", "1/.zattrs"}
    unchanged |= {"applied/.zattrs"}
    assert set(same) <= unchanged


def test_of_two_calls_on_one_label_image_one_works_and_the_other_is_told(stages, tmp_path):
    told = []

    def another(key):
        with pytest.raises(PlanError, match="one call at a time is writing to .*labels.work"):
            write(stages[1], tmp_path / "a.ome.zarr")
        told.append(key)

    for stage in stages:
        target, _ = write(stage, tmp_path / "a.ome.zarr", on_block=another)
        np.testing.assert_array_equal(open_array(target.path / "0")[...], merged_of(stage))
    assert len(told) == 5


CHANGED = {
    "edited": lambda path: zarr.open_array(path / "0", mode="r+").__setitem__((1, 1), 77),
    "erased": lambda path: zarr.open_array(path / "0", mode="r+").__setitem__((1, 1), 0),
    "lost": lambda path: (path / "0" / "c" / "0" / "0").unlink(),
    "lost from the pyramid": lambda path: (path / "1" / "c" / "0" / "0").unlink(),
    "added": lambda path: (path / "0" / "c" / "9").write_bytes(b"mine"),
    "record lost": lambda path: (path / ".patchworks.json").unlink(),
    "drawn by hand": lambda path: (
        shutil.rmtree(path),
        zarr.open_group(path, mode="w").create_array("0", data=np.ones((8, 8), "i4")),
    ),
}


@pytest.mark.parametrize("change", CHANGED.values(), ids=CHANGED)
def test_labels_that_were_changed_are_refused_and_written_anew_when_told(change, stages, tmp_path):
    container = tmp_path / "a.ome.zarr"
    path = container / "labels" / "labels"
    write(stages[0], container)
    change(path)
    before = everything(path)
    with pytest.raises(
        PlanError, match=r"a label image only replaces what patchworks wrote .* or pass overwrite="
    ):
        write(stages[1], container)
    assert everything(path) == before
    assert names(container / "labels") == NAMES
    target, written = write(stages[1], container, overwrite=True)
    fresh, _ = write(stages[1], tmp_path / "b.ome.zarr")
    assert written.n_blocks_written == 4
    assert pixel_files(target.path) == pixel_files(fresh.path)


def test_labels_that_are_overwritten_are_not_mixed_with_what_a_killed_call_left(stages, tmp_path):
    container = tmp_path / "a.ome.zarr"
    write(stages[0], container)
    with pytest.raises(Kill):
        write(stages[1], container, on_block=kill_after(1))
    left = work_folder(as_path(container / "labels" / "labels")) / "new"
    zarr.open_array(str(left / "0"), mode="r+")[1, 1] = 77
    _, written = write(stages[1], container, overwrite=True)
    assert written.n_blocks_written == 4
    target = container / "labels" / "labels"
    np.testing.assert_array_equal(open_array(as_path(target / "0"))[...], merged_of(stages[1]))


def test_labels_corrected_while_new_ones_are_written_are_kept(stages, tmp_path):
    container = tmp_path / "a.ome.zarr"
    write(stages[0], container)
    labels = zarr.open_array(str(container / "labels" / "labels" / "0"), mode="r+")

    def correct(key):
        labels[1, 1] = 77

    with pytest.raises(PlanError, match="changed since patchworks wrote it .* the new one is at"):
        write(stages[1], container, on_block=correct)
    assert labels[1, 1] == 77
    assert fault_of(as_path(container / "labels" / "labels")) is not None


@pytest.fixture(scope="module")
def narrow(tmp_path_factory):
    """Two stages of two tiles, with their lookup tables."""
    first = np.zeros((8, 4), dtype=bool)
    first[1::4, 1] = True
    second = first.copy()
    second[7, 3] = True
    folder = tmp_path_factory.mktemp("narrow")
    stages = (stage_into(folder / "first", first), stage_into(folder / "second", second))
    return [(stage, lut_of(stage)) for stage in stages]


def at_every_kill(container: Path, stage, lut, new: dict[str, bytes]) -> int:
    """Kill writing at every step; the old or the new labels are whole, and then the new ones."""
    path, blank, old = container / "labels" / "labels", container.with_name("blank"), None
    if container.exists():
        old = pixel_files(path)
        container.rename(blank)
    for step in count():
        shutil.rmtree(container, ignore_errors=True)
        if old is not None:
            shutil.copytree(blank, container)
        FAULTS.arm(step, is_final=True, steps=CHANGES)
        with suppress(Killed, RuntimeError):  # RuntimeError says that a worker was killed
            write(stage, container, lut=lut)
        came = FAULTS.disarm()
        assert not path.exists() or pixel_files(path) in (old, new)
        group = container / "labels" / "zarr.json"
        if group.exists() and "labels" in group.read_text():
            assert path.exists() or (container / "labels" / "labels.work" / "new").exists()
        recover(as_path(path))
        assert path.exists() or old is None
        write(stage, container, lut=lut)
        assert pixel_files(path) == new, step
        assert fault_of(as_path(path)) is None
        assert listed(container) == ["labels"]
        # Zarr leaves of its own what it was about to rename.
        assert [name for name in names(container / "labels") if "zarr." not in name] == ["labels"]
        if not came:
            return step
    raise AssertionError


@pytest.mark.slow
def test_killed_at_any_step_of_a_heal_the_old_or_the_new_labels_are_whole(narrow, tmp_path):
    (first, lut), (second, second_lut) = narrow
    write(first, tmp_path / "a.ome.zarr", lut=lut)
    new, written = write(second, tmp_path / "b.ome.zarr", lut=second_lut)
    assert written.n_blocks_written == 2
    assert at_every_kill(tmp_path / "a.ome.zarr", second, second_lut, pixel_files(new.path)) > 30


def test_killed_at_any_step_of_a_first_write_the_next_call_gives_the_labels(narrow, tmp_path):
    stage, lut = narrow[1]
    new, _ = write(stage, tmp_path / "b.ome.zarr", lut=lut)
    assert at_every_kill(tmp_path / "a.ome.zarr", stage, lut, pixel_files(new.path)) > 15


def test_on_an_object_store_old_labels_stay_while_only_what_changed_is_rewritten(stages):
    container = f"memory://{uuid.uuid4().hex}/a.ome.zarr"
    looks = []

    def look(key):
        looks.append(key)
        np.testing.assert_array_equal(open_array(target.path / "0")[...], merged_of(stages[0]))
        assert fault_of(target.path) is None

    target, _ = write(stages[0], container)
    _, written = write(stages[1], container, on_block=look)
    assert (len(looks), written.n_blocks_unchanged) == (1, 3)
    np.testing.assert_array_equal(open_array(target.path / "0")[...], merged_of(stages[1]))
    assert open_array(target.path / "1")[...].max() == 5
    assert sorted(path.name for path in (target.container / "labels").iterdir()) == NAMES
    open_array(target.path / "0", mode="r+")[1, 1] = 77
    with pytest.raises(PlanError, match="a label image only replaces .* changed since patchworks"):
        write(stages[0], container)
    write(stages[0], container, overwrite=True)
    np.testing.assert_array_equal(open_array(target.path / "0")[...], merged_of(stages[0]))


@pytest.mark.slow
def test_on_an_object_store_killed_at_any_second_step_the_next_call_gives_the_labels(
    narrow, monkeypatch
):
    store = Store(monkeypatch, steps=("pipe_file", "cp_file", "rm_file"))
    (first, lut), (second, second_lut) = narrow
    old, new = merged_of(first), merged_of(second)
    blank, _ = write(first, "memory://killed/blank.ome.zarr", lut=lut)
    for step in count(0, 2):
        container = f"memory://killed/{uuid.uuid4().hex}.ome.zarr"
        path = as_path(container) / "labels" / "labels"
        copy_objects(blank.container, as_path(container))
        vouch(path)
        store.left = step
        try:
            write(second, container, lut=second_lut)
            came = False
        except (Killed, RuntimeError):  # RuntimeError says that a worker was killed
            came = True
        store.left = None
        if not (path.parent / "labels.work" / "publishing").exists():
            labels = open_array(path / "0")[...]
            assert np.array_equal(labels, old) or np.array_equal(labels, new)
            assert fault_of(path) is None
        write(second, container, lut=second_lut)
        np.testing.assert_array_equal(open_array(path / "0")[...], new)
        assert open_array(path / "1")[...].max() == new.max()
        assert fault_of(path) is None
        assert sorted(child.name for child in path.parent.iterdir()) == NAMES
        if not came:
            assert step > 30
            return


def as_of_0_1_0(path: Path) -> None:
    """Take from labels what version 0.1.0 did not write."""
    (path / ".patchworks.json").unlink()
    record = json.loads((path / "provenance.json").read_text())
    kept = {name: record[name] for name in ("grid", "level_steps", "made")}
    (path / "provenance.json").write_text(json.dumps(kept))


def test_labels_of_version_0_1_0_are_replaced_and_then_vouched_for(stages, tmp_path):
    container = tmp_path / "a.ome.zarr"
    target, _ = write(stages[0], container)
    as_of_0_1_0(container / "labels" / "labels")
    _, written = write(stages[1], container)
    assert written.n_blocks_written == 4
    assert fault_of(target.path) is None
    np.testing.assert_array_equal(open_array(target.path / "0")[...], merged_of(stages[1]))


@pytest.mark.parametrize("is_published", [True, False])
def test_what_a_killed_call_of_version_0_1_0_left_is_cleared(is_published, stages, tmp_path):
    container = tmp_path / "a.ome.zarr"
    write(stages[0], container)
    labels = container / "labels" / "labels"
    partial = container / "labels" / "labels.partial"
    shutil.copytree(labels, partial)
    as_of_0_1_0(partial)
    if not is_published:
        shutil.rmtree(labels)
    write(stages[1], container)
    assert names(container / "labels") == NAMES


def test_labels_that_are_called_partial_stay(stages, tmp_path):
    container = tmp_path / "a.ome.zarr"
    for name in ("labels.partial", "labels", "labels"):
        write(stages[0], container, name=name)
    assert names(container / "labels") == ["labels", "labels.partial", "zarr.json"]
    assert listed(container) == ["labels", "labels.partial"]


@pytest.mark.filterwarnings("ignore:Object at .* is not recognized as a component of a Zarr")
def test_the_folder_of_work_is_no_label_image_to_who_opens_the_container(stages, tmp_path):
    container = tmp_path / "a.ome.zarr"
    zarr.open_group(str(container), mode="w")
    looks = []

    def look(key):
        with pytest.raises(ImageError, match="with images 'labels/labels'; name one"):
            open_image(container)
        opened = open_image(container / "labels")
        np.testing.assert_array_equal(opened.pixels[...], merged_of(stages[0]))
        looks.append(key)

    write(stages[0], container)
    write(stages[1], container, on_block=look)
    assert looks


def test_what_version_0_1_0_left_is_not_cleared_where_it_is_read(stages, tmp_path):
    container = tmp_path / "a.ome.zarr"
    write(stages[0], container)
    partial = container / "labels" / "labels.partial"
    shutil.copytree(container / "labels" / "labels", partial)
    with pytest.raises(PlanError, match="a label image is never written over what it is made from"):
        write(stages[1], container, reads=[partial / "0"])
    assert partial.exists()
