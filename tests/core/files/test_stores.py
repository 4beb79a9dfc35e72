"""Stores: the place of what is read is found however it was opened."""

from __future__ import annotations

import os
import zipfile
from dataclasses import dataclass
from functools import partial

import dask
import dask.array as da
import fsspec
import numpy as np
import pytest
import zarr
from fsspec.implementations.dirfs import DirFileSystem
from zarr.storage import FsspecStore, LocalStore, LoggingStore, MemoryStore, StorePath, ZipStore

from patchworks_core.files.storage import as_path
from patchworks_core.files.stores import Place, places_of
from patchworks_core.images.dask_view import as_dask
from patchworks_core.images.image import open_image
from patchworks_core.operations.filters import maximum
from patchworks_core.operations.processed import process_lazily


@pytest.fixture
def array(tmp_path):
    made = zarr.create_array(str(tmp_path / "g" / "raw"), shape=(4, 4), chunks=(2, 2), dtype="i4")
    made[:] = 1
    return made


def task_by_hand(array):
    """Return a Dask array over a graph of plain tuples, the Zarr array deep within one."""
    graph = {("x", 0, 0): (np.asarray, [(lambda held: held["a"][:], {"a": array})])}
    return da.Array(graph, "x", chunks=((4,), (4,)), dtype="i4")


@dataclass(frozen=True)
class Held:
    array: object


class Slotted:
    __slots__ = ("array",)

    def __init__(self, array) -> None:
        self.array = array

    def read(self, block):
        return block + self.array[:2, :2]


OPENED = {
    "array": lambda a: a,
    "path": lambda a: a.store.root,
    "text": lambda a: str(a.store.root),
    "store path": lambda a: StorePath(a.store, a.path),
    "store": lambda a: a.store,
    "from_zarr": da.from_zarr,
    "from_zarr by path": lambda a: da.from_zarr(str(a.store.root)),
    "component": lambda a: da.from_zarr(os.path.dirname(a.store.root), component="raw"),
    "from_array": da.from_array,
    "inline": lambda a: da.from_array(a, inline_array=True),
    "mapped over": lambda a: da.from_zarr(a).map_blocks(lambda b: b + 1),
    "sliced": lambda a: (da.from_zarr(a)[1:, ::2].T + 3).rechunk(1),
    "joined": lambda a: da.concatenate([da.zeros((4, 4), dtype="i4"), da.from_zarr(a)]),
    "optimized": lambda a: dask.optimize((da.from_zarr(a) + 1) * 2)[0],
    "persisted lazily": lambda a: da.from_delayed(dask.delayed(a.__getitem__)(()), (4, 4), "i4"),
    "delayed": lambda a: da.from_delayed(dask.delayed(lambda x: x[:])(a), (4, 4), "i4"),
    "closure": lambda a: da.zeros((4, 4), chunks=2).map_blocks(lambda b: b + a[:2, :2]),
    "partial": lambda a: da.zeros((4, 4), chunks=2).map_blocks(partial(np.add, a)),
    "method": lambda a: da.zeros((4, 4), chunks=2).map_blocks(Slotted(a).read),
    "by hand": task_by_hand,
    "logged": lambda a: zarr.open_array(LoggingStore(LocalStore(a.store.root))),
    "fsspec": lambda a: zarr.open_array(FsspecStore.from_url(f"file://{a.store.root}")),
    "image": lambda a: open_image(a),
    "view": lambda a: as_dask(open_image(a)),
    "processed": lambda a: process_lazily(a, maximum(3)),
    "held": lambda a: {"x": [Held(a)]},
    "objects": lambda a: np.array([a, None], dtype=object),
}


@pytest.mark.parametrize("opened", OPENED)
def test_a_local_array_is_found_however_it_was_opened(opened, array, tmp_path):
    read = OPENED[opened](array)
    group = as_path(tmp_path / "g")
    assert {p.clash(group / "raw") for p in places_of(read)} == {"is"}
    assert {p.clash(group) for p in places_of(read)} == {"holds"}
    assert {p.clash(group / "other") for p in places_of(read)} == {None}
    assert {p.clash(group / "rawer") for p in places_of(read)} == {None}


def test_what_lies_in_an_array_that_is_read_is_read(array, tmp_path):
    (place,) = places_of(array)
    assert place.clash(as_path(tmp_path / "g" / "raw" / "c")) == "lies in"


@pytest.mark.parametrize("way", ["..", "link", "link above", "relative", "file url", "target link"])
def test_ways_to_one_place_are_one_place(way, array, tmp_path, monkeypatch):
    read, target = str(tmp_path / "g" / "raw"), tmp_path / "g" / "raw"
    (tmp_path / "link").symlink_to(tmp_path / "g")
    (tmp_path / "raw link").symlink_to(target)
    monkeypatch.chdir(tmp_path)
    read = {
        "..": str(tmp_path / "g" / "x" / ".." / "raw"),
        "link": str(tmp_path / "raw link"),
        "link above": str(tmp_path / "link" / "raw"),
        "relative": "g/raw",
        "file url": f"file://{target}",
        "target link": read,
    }[way]
    if way == "target link":
        target = tmp_path / "link" / "raw"
    assert [p.clash(as_path(target)) for p in places_of(read)] == ["is"]


@pytest.mark.parametrize("way", ["store", "group", "dask", "folder", "cached", "url", "image"])
def test_an_object_store_is_found_however_it_was_opened(way):
    url = "memory://stores/g.zarr"
    group = zarr.open_group(FsspecStore.from_url(url), mode="w")
    array = group.create_array("raw", shape=(4, 4), chunks=(2, 2), dtype="i4")
    memory = fsspec.filesystem("memory")
    read = {
        "store": lambda: array,
        "group": lambda: zarr.open_array(FsspecStore.from_url(f"{url}/raw")),
        "dask": lambda: da.from_zarr(array).map_blocks(lambda b: b),
        "folder": lambda: zarr.open_array(
            FsspecStore(
                fsspec.implementations.asyn_wrapper.AsyncFileSystemWrapper(
                    DirFileSystem("/stores/g.zarr", memory), asynchronous=True
                ),
                path="raw",
            )
        ),
        "cached": lambda: fsspec.core.OpenFile(
            fsspec.filesystem("simplecache", fs=memory), "/stores/g.zarr/raw"
        ),
        "url": lambda: f"{url}/x/../raw/",
        "image": lambda: open_image(f"{url}/raw"),
    }[way]()
    assert {p.clash(as_path(f"{url}/raw")) for p in places_of(read)} == {"is"}
    assert {p.clash(as_path(f"{url}/raw2")) for p in places_of(read)} == {None}
    assert {p.clash(as_path("/stores/g.zarr/raw")) for p in places_of(read)} == {None}


def test_a_zip_file_is_the_place_of_what_is_in_it(tmp_path):
    file = tmp_path / "a.zarr.zip"
    with ZipStore(str(file), mode="w") as store:
        zarr.create_array(store, shape=(4, 4), chunks=(4, 4), dtype="i4")[:] = 1
    assert zipfile.is_zipfile(file)
    for read in (zarr.open_array(ZipStore(str(file), mode="r")), str(file), open_image(file)):
        assert {p.clash(as_path(file)) for p in places_of(read)} == {"is"}
        assert {p.clash(as_path(tmp_path)) for p in places_of(read)} == {"holds"}


def test_a_mapped_file_is_the_place_of_its_pixels_and_of_every_view_of_them(tmp_path):
    np.save(tmp_path / "a.npy", np.arange(12).reshape(3, 4))
    mapped = np.load(tmp_path / "a.npy", mmap_mode="r")
    for read in (mapped, mapped[1:, ::2], np.asarray(mapped), {"x": [mapped.T]}):
        assert {p.clash(as_path(tmp_path / "a.npy")) for p in places_of(read)} == {"is"}


def test_files_that_tasks_name_are_found_and_folders_may_be_written_into(tmp_path):
    da.to_npy_stack(str(tmp_path / "stack"), da.ones((4, 4), chunks=2))
    read = da.from_npy_stack(str(tmp_path / "stack"))
    clashes = {p.clash(as_path(tmp_path / "stack")) for p in places_of(read)}
    assert clashes & {"is", "holds"}
    lazily = dask.delayed(np.load)(str(tmp_path / "stack" / "0.npy"))
    read = da.from_delayed(lazily, (2, 4), float)
    assert {p.clash(as_path(tmp_path / "stack")) for p in places_of(read)} == {"holds"}
    assert {p.clash(as_path(tmp_path / "stack" / "labels")) for p in places_of(read)} == {None}


def test_of_an_image_in_a_group_its_levels_are_read_and_labels_may_go_beside_them(tmp_path):
    group = zarr.open_group(str(tmp_path / "i.ome.zarr"), mode="w")
    axes = [{"name": a, "type": "space"} for a in "yx"]
    scale = [{"type": "scale", "scale": [1.0, 1.0]}]
    datasets = [{"path": p, "coordinateTransformations": scale} for p in ("0", "1")]
    for dataset in datasets:
        group.create_array(dataset["path"], shape=(4, 4), dtype="u1")
    group.attrs["ome"] = {"version": "0.5", "multiscales": [{"axes": axes, "datasets": datasets}]}
    for read in (str(tmp_path / "i.ome.zarr"), group):
        clashes = {
            name: {p.clash(as_path(tmp_path / "i.ome.zarr" / name)) for p in places_of(read)}
            for name in ("", "0", "1", "labels")
        }
        assert "is" in clashes[""]
        assert "is" in clashes["0"]
        assert "is" in clashes["1"]
        assert clashes["labels"] == {None}


def test_what_is_in_memory_has_no_place():
    array = zarr.create_array(MemoryStore(), shape=(4, 4), dtype="i4")
    for read in (array, np.zeros(3), da.zeros((3, 3)), da.from_zarr(array), None, 3):
        assert places_of(read) == []


def test_a_graph_of_many_tasks_is_looked_through_in_no_time(array):
    image = da.from_zarr(array)
    many = da.concatenate([image[:1, :1]] * 20_000)
    assert Place.of(array.store.root) in places_of(many)
