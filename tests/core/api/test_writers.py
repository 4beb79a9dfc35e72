"""One rule for every function that writes: nothing is replaced but what patchworks wrote itself.

Each test is asked of every writer, so that none can lack a guard that another has.
"""

from __future__ import annotations

import os
import shutil
import threading
from pathlib import Path

import dask.array as da
import numpy as np
import pytest
import zarr
from scipy import ndimage
from zarr.storage import FsspecStore

from patchworks_core import (
    PlanError,
    StageError,
    declare,
    expand_labels,
    fill_holes,
    filter_image,
    filter_sizes,
    measure_objects,
    merge_tile_labels,
    morphological_opening,
    open_image,
    segment_to_ome_zarr,
    segmentation_of,
    tile_process,
)
from patchworks_core.plugins.filters import maximum

LABELS = np.zeros((32, 32), np.int32)
LABELS[2:12, 2:30] = 1
LABELS[5:7, 5:7] = 0
LABELS[20:30, 4:9] = 2


@declare(merge="touching", version="1")
def components(tile):
    return ndimage.label(tile)[0]


WRITERS = {
    "tile_process": lambda image, to, name, **o: tile_process(
        image, components, tile_shape=16, write_to=to, output_component=name, **o
    ),
    "merge_tile_labels": lambda image, to, name, **o: merge_tile_labels(
        image, to, tile_shape=16, output_component=name, **o
    ),
    "filter_image": lambda image, to, name, **o: filter_image(
        image, maximum(3), tile_shape=16, write_to=os.path.join(to, name), **o
    ),
    "fill_holes": lambda image, to, name, **o: fill_holes(
        image, to, tile_shape=16, output_component=name, **o
    ),
    "morphological_opening": lambda image, to, name, **o: morphological_opening(
        image, 1, write_to=to, tile_shape=16, output_component=name, **o
    ),
    "expand_labels": lambda image, to, name, **o: expand_labels(
        image, 1, write_to=to, tile_shape=16, output_component=name, **o
    ),
    "filter_sizes": lambda image, to, name, **o: filter_sizes(
        image, 5, write_to=to, tile_shape=16, output_component=name, **o
    ),
}

each_writer = pytest.mark.parametrize("write", WRITERS.values(), ids=WRITERS)


def in_group(path: str, name: str, pixels=LABELS) -> zarr.Array:
    group = zarr.open_group(FsspecStore.from_url(path) if "://" in path else path, mode="a")
    return group.create_array(name, data=pixels, chunks=(16, 16))


def content(folder: Path) -> dict[str, bytes]:
    return {str(path): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


READS = {
    "zarr.Array": lambda a, path, name: a,
    "path": lambda a, path, name: os.path.join(path, name),
    "path with ..": lambda a, path, name: os.path.join(path, "..", os.path.basename(path), name),
    "from_zarr": lambda a, path, name: da.from_zarr(path, component=name),
    "from_array": lambda a, path, name: da.from_array(a, chunks=(16, 16)),
    "inline": lambda a, path, name: da.from_array(a, chunks=(16, 16), inline_array=True),
    "mapped": lambda a, path, name: da.from_zarr(a).map_blocks(lambda b: b),
}


@each_writer
@pytest.mark.parametrize("opened", READS)
@pytest.mark.parametrize("more", [{}, {"overwrite": True}], ids=["", "overwrite"])
def test_a_call_never_writes_over_what_it_reads(write, opened, more, tmp_path):
    path = str(tmp_path / "g.zarr")
    array = in_group(path, "raw")
    before = content(tmp_path)
    with pytest.raises(PlanError, match="never written over what it is made from"):
        write(READS[opened](array, path, "raw"), path, "raw", **more)
    assert content(tmp_path) == before


@each_writer
def test_a_call_never_writes_over_what_it_reads_through_a_link(write, tmp_path):
    in_group(str(tmp_path / "g.zarr"), "raw")
    (tmp_path / "link.zarr").symlink_to(tmp_path / "g.zarr")
    before = content(tmp_path)
    with pytest.raises(PlanError, match="never written over what it is made from"):
        write(str(tmp_path / "link.zarr" / "raw"), str(tmp_path / "g.zarr"), "raw")
    assert content(tmp_path) == before


@each_writer
def test_a_call_never_writes_over_what_it_reads_on_an_object_store(write, request):
    path = f"memory://writers-{abs(hash(request.node.name))}/g.zarr"
    array = in_group(path, "raw")
    for read in (array, da.from_zarr(array), f"{path}/raw"):
        with pytest.raises(PlanError, match="never written over what it is made from"):
            write(read, path, "raw")
    np.testing.assert_array_equal(array[...], LABELS)


@each_writer
def test_an_ordinary_folder_is_left_alone_and_overwritten_when_told(write, tmp_path):
    mine = tmp_path / "g.zarr" / "labels" / "mine.txt"
    mine.parent.mkdir(parents=True)
    mine.write_text("mine")
    with pytest.raises(PlanError, match=r"labels is a folder: nothing .* or pass overwrite=True"):
        write(LABELS, str(tmp_path / "g.zarr"), "labels")
    assert mine.read_text() == "mine"
    write(LABELS, str(tmp_path / "g.zarr"), "labels", overwrite=True)
    assert not mine.exists()


@each_writer
def test_what_was_written_is_replaced_and_what_was_corrected_by_hand_is_not(write, tmp_path):
    path = str(tmp_path / "g.zarr")
    write(LABELS, path, "labels")
    write(LABELS, path, "labels")
    labels = zarr.open_array(os.path.join(path, "labels"), mode="r+")
    labels[3, 3] = 77
    with pytest.raises(PlanError, match="changed since patchworks wrote it .*overwrite=True"):
        write(LABELS, path, "labels")
    assert labels[3, 3] == 77
    write(LABELS, path, "labels", overwrite=True)
    assert zarr.open_array(os.path.join(path, "labels"))[3, 3] != 77
    assert [name for name in os.listdir(path) if "labels" in name] == ["labels"]


@each_writer
def test_an_array_drawn_by_hand_is_left_alone(write, tmp_path):
    array = in_group(str(tmp_path / "g.zarr"), "labels")
    with pytest.raises(PlanError, match="labels is a Zarr array: nothing says that patchworks"):
        write(LABELS, str(tmp_path / "g.zarr"), "labels")
    np.testing.assert_array_equal(array[...], LABELS)


@each_writer
def test_a_chunk_that_was_lost_is_noticed_by_the_next_call(write, tmp_path):
    path = tmp_path / "g.zarr"
    write(LABELS, str(path), "labels")
    (path / "labels" / "c" / "0" / "0").unlink()
    with pytest.raises(PlanError, match=r"changed since .*one or more are missing"):
        write(LABELS, str(path), "labels")


@each_writer
def test_nothing_is_written_outside_the_group_nor_over_the_working_directory(
    write, tmp_path, monkeypatch
):
    (tmp_path / "mine.txt").write_text("mine")
    (tmp_path / "g.zarr").mkdir()
    monkeypatch.chdir(tmp_path)
    for name in ("../x", ".", str(tmp_path / "y")):
        if write is WRITERS["filter_image"] and name != ".":
            continue  # it has no component, and may be written anywhere
        with pytest.raises(PlanError, match="name of an array within its group|is a folder"):
            write(LABELS, str(tmp_path / "g.zarr"), name)
    write(LABELS, ".", "labels")
    assert (tmp_path / "mine.txt").read_text() == "mine"
    assert not (tmp_path / "x").exists()
    assert not (tmp_path / "y").exists()


@each_writer
def test_of_two_calls_on_one_target_one_works_and_the_other_is_told(write, tmp_path):
    path, told = str(tmp_path / "g.zarr"), []
    zarr.open_group(path, mode="a")
    together = threading.Barrier(2)

    def call() -> None:
        together.wait()
        try:
            write(LABELS, path, "labels")
        except PlanError as error:
            told.append(str(error))

    for _ in range(6):
        threads = [threading.Thread(target=call) for _ in range(2)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        assert zarr.open_array(os.path.join(path, "labels"))[...].any()
        assert sorted(n for n in os.listdir(path) if "labels" in n) == ["labels"]
    assert told
    assert all("one call at a time is writing to" in text for text in told)


@each_writer
@pytest.mark.parametrize("step", range(4))
def test_interrupted_while_something_is_removed_no_result_is_lost(
    write, step, tmp_path, monkeypatch
):
    path = str(tmp_path / "g.zarr")
    first = np.asarray(write(LABELS, path, "labels"))
    left = [step]
    remove = shutil.rmtree

    def interrupted(folder, *args, **options):
        if threading.current_thread() is not threading.main_thread():
            return remove(folder, *args, **options)  # Zarr's own, which no Ctrl-C reaches
        if left[0] == 0:
            for parent, _, names in os.walk(folder):
                for name in names[:1]:
                    os.unlink(os.path.join(parent, name))
            raise KeyboardInterrupt
        left[0] -= 1
        return remove(folder, *args, **options)

    monkeypatch.setattr(shutil, "rmtree", interrupted)
    try:
        write(LABELS, path, "labels")
    except KeyboardInterrupt:
        np.testing.assert_array_equal(zarr.open_array(os.path.join(path, "labels"))[...], first)
    monkeypatch.undo()
    write(LABELS, path, "labels")
    np.testing.assert_array_equal(zarr.open_array(os.path.join(path, "labels"))[...], first)
    assert [name for name in os.listdir(path) if "labels" in name] == ["labels"]


CALLS: list[int] = []


@declare(merge="touching", version="1")
def counted(tile):
    CALLS.append(1)
    return ndimage.label(tile)[0]


@pytest.mark.parametrize("keep", ["beside", "stage_dir"])
def test_a_call_killed_while_it_cleans_up_runs_again_and_segments_nothing(
    keep, tmp_path, monkeypatch
):
    where = {"tile_shape": 16, "write_to": str(tmp_path / "g.zarr"), "max_workers": 1}
    if keep == "stage_dir":
        where["stage_dir"] = str(tmp_path / "stage")
    remove = shutil.rmtree

    def killed(folder, *args, **options):
        if threading.current_thread() is not threading.main_thread():
            return remove(folder, *args, **options)
        for parent, _, names in os.walk(folder):
            for name in names:
                os.unlink(os.path.join(parent, name))
            if "counts" in os.path.basename(parent):
                break
        raise KeyboardInterrupt

    monkeypatch.setattr(shutil, "rmtree", killed)
    with pytest.raises(KeyboardInterrupt):
        tile_process(LABELS, counted, **where)
    monkeypatch.setattr(shutil, "rmtree", remove)
    CALLS.clear()
    labels = tile_process(LABELS, counted, resume=True, **where)
    assert not CALLS
    np.testing.assert_array_equal(np.asarray(labels) > 0, LABELS > 0)
    assert sorted(os.listdir(tmp_path / "g.zarr")) == ["labels", "zarr.json"]


def test_labels_that_were_changed_are_not_taken_for_complete_by_a_call_that_resumes(tmp_path):
    where = {"tile_shape": 16, "write_to": str(tmp_path / "g.zarr"), "resume": True}
    tile_process(LABELS, counted, **where)
    zarr.open_array(str(tmp_path / "g.zarr" / "labels"), mode="r+")[3, 3] = 9
    with pytest.raises(PlanError, match="changed since patchworks wrote it"):
        tile_process(LABELS, counted, **where)
    tile_process(LABELS, counted, overwrite=True, **where)
    CALLS.clear()
    tile_process(LABELS, counted, merge="none", **where)
    tile_process(LABELS > 1, counted, **where)
    assert CALLS, "another image is segmented"


def test_a_stage_replaces_no_ordinary_folder(tmp_path):
    mine = tmp_path / "stage.zarr" / "labels" / "mine.txt"
    mine.parent.mkdir(parents=True)
    mine.write_text("mine")
    (tmp_path / "stage.zarr" / "zarr.json").write_text("{}")
    with pytest.raises(StageError, match=r"stage.zarr holds 'zarr.json', which is no part of one"):
        tile_process(LABELS, counted, tile_shape=16, stage_dir=str(tmp_path))
    assert mine.read_text() == "mine"


@pytest.mark.parametrize("name", ["objects.csv", "objects.parquet"])
def test_a_table_changed_by_hand_is_not_replaced_unasked(name, tmp_path):
    file = tmp_path / name
    measure_objects(LABELS, tile_shape=16, write_to=file)
    measure_objects(LABELS, tile_shape=16, write_to=file)
    file.write_text("by hand")
    with pytest.raises(PlanError, match="a table only replaces .* changed since patchworks wrote"):
        measure_objects(LABELS, tile_shape=16, write_to=file)
    assert file.read_text() == "by hand"
    measure_objects(LABELS, tile_shape=16, write_to=file, overwrite=True)
    assert file.read_bytes() != b"by hand"
    array = in_group(str(tmp_path / "image.csv"), "0")
    with pytest.raises(PlanError, match="a table is never written over what it is made from"):
        measure_objects(array, write_to=tmp_path / "image.csv", overwrite=True)
    np.testing.assert_array_equal(array[...], LABELS)


def segmented(container, **options):
    return segment_to_ome_zarr(
        open_image(LABELS), segmentation_of(counted), container, tile_shape=16, **options
    )


def test_a_label_image_corrected_by_hand_is_not_replaced_unasked_nor_taken_over(tmp_path):
    container = tmp_path / "o.ome.zarr"
    segmented(container)
    assert segmented(container).n_objects == 2
    labels = zarr.open_array(str(container / "labels" / "labels" / "0"), mode="r+")
    labels[3, 3] = 77
    with pytest.raises(PlanError, match="a label image only replaces .*changed since patchworks"):
        segmented(container)
    with pytest.raises(PlanError, match="a label image only replaces .*changed since patchworks"):
        segmented(container, resume=True)
    assert labels[3, 3] == 77
    assert segmented(container, overwrite=True).n_objects == 2
    written = zarr.open_array(str(container / "labels" / "labels" / "0"))
    np.testing.assert_array_equal(written[...], ndimage.label(LABELS)[0])


def test_a_label_image_replaces_no_ordinary_folder_and_stays_in_its_container(tmp_path):
    mine = tmp_path / "o.ome.zarr" / "labels" / "labels" / "mine.txt"
    mine.parent.mkdir(parents=True)
    mine.write_text("mine")
    with pytest.raises(PlanError, match="labels is a folder: nothing says that patchworks wrote"):
        segmented(tmp_path / "o.ome.zarr")
    assert mine.read_text() == "mine"
    with pytest.raises(PlanError, match="the name of an array within its group"):
        segmented(tmp_path / "o.ome.zarr", name="../../x")


def test_a_label_image_never_replaces_what_it_is_made_from(tmp_path):
    container = tmp_path / "o.ome.zarr"
    segmented(container)
    before = content(tmp_path)
    image = open_image(da.from_zarr(str(container / "labels" / "labels" / "0")))
    with pytest.raises(PlanError, match="a label image is never written over what it is made from"):
        segment_to_ome_zarr(image, segmentation_of(counted), container, tile_shape=16)
    assert content(tmp_path) == before


def test_a_label_image_killed_while_it_cleans_up_is_complete(tmp_path, monkeypatch):
    container = tmp_path / "o.ome.zarr"

    def killed(folder, *args, **options):
        if threading.current_thread() is not threading.main_thread():
            return remove(folder, *args, **options)
        if "trash" in str(folder) or str(folder).endswith(".work"):
            raise KeyboardInterrupt
        return remove(folder, *args, **options)

    remove = shutil.rmtree
    monkeypatch.setattr(shutil, "rmtree", killed)
    with pytest.raises(KeyboardInterrupt):
        segmented(container)
    monkeypatch.setattr(shutil, "rmtree", remove)
    CALLS.clear()
    assert segmented(container, resume=True).n_objects == 2
    assert not CALLS
    assert sorted(os.listdir(container / "labels")) == ["labels", "zarr.json"]
