"""Images, stages and labels on S3: a real client against a server on this machine."""

from __future__ import annotations

import io
import os

import fsspec
import numpy as np
import pytest
import tifffile
import zarr
from scipy import ndimage

from patchworks_core import merge_tile_labels, segment_to_ome_zarr, tile_process
from patchworks_core.errors import StageError, TilesFailedError
from patchworks_core.files.storage import as_path, copy_objects
from patchworks_core.images.image import open_image
from patchworks_core.images.readers.zarr_node import fields_of_plate
from patchworks_core.ome_zarr.convert import convert_image
from patchworks_core.plugins.segmentation import segmentation_of
from tests.core.images.test_formats import write_plate
from tests.core.images.test_image import assert_reads, pixels_of
from tests.core.oracles import assert_same_partition
from tests.core.staging import blobs, merged_of, stage_into

BUCKET = "s3://patchworks-tests"


@pytest.fixture(scope="module", autouse=True)
def server():
    """An S3 server, found as any other endpoint is: by variables of the environment."""
    pytest.importorskip("s3fs", reason="s3fs is not installed; it is the extra s3")
    moto = pytest.importorskip("moto.server", reason="moto, an S3 server for tests, is missing")
    running = moto.ThreadedMotoServer(ip_address="127.0.0.1", port=0, verbose=False)
    running.start()
    _, port = running.get_host_and_port()
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("FSSPEC_S3_ENDPOINT_URL", f"http://127.0.0.1:{port}")
        patch.setenv("AWS_ACCESS_KEY_ID", "tests")
        patch.setenv("AWS_SECRET_ACCESS_KEY", "tests")
        patch.setenv("AWS_DEFAULT_REGION", "us-east-1")
        patch.setitem(fsspec.config.conf, "s3", {})
        # Read at import elsewhere, and in the workers.
        fsspec.config.set_conf_env(fsspec.config.conf, os.environ)
        fsspec.filesystem("s3").mkdir(BUCKET)
        yield
    running.stop()


@pytest.fixture
def place(request):
    """A folder of its own in the bucket."""
    return f"{BUCKET}/{request.node.name.replace('[', '-').rstrip(']')}"


@pytest.fixture(scope="module")
def mask():
    return np.random.default_rng(0).random((48, 64)) < 0.55


@pytest.fixture(scope="module")
def image(server, mask):
    """A chunked image on S3."""
    url = f"{BUCKET}/image.zarr"
    store = zarr.storage.FsspecStore.from_url(url)
    zarr.create_array(store, data=mask.astype("u1"), chunks=(48, 32))
    return url


def components(tile):
    return ndimage.label(tile)[0]


def names_in(url):
    fs, path = fsspec.url_to_fs(url, use_listings_cache=False)
    return sorted(name[len(path) + 1 :] for name in fs.find(path))


def test_labels_on_s3_are_those_of_the_whole_image(image, mask, place):
    labels = tile_process(image, components, tile_shape=(48, 32), write_to=f"{place}/a.zarr/")
    assert_same_partition(labels.compute(), ndimage.label(mask)[0])
    assert not [name for name in names_in(place) if ".work" in name]
    merged = merge_tile_labels(f"{place}/a.zarr", f"{place}/b.zarr", tile_shape=(48, 32))
    assert_same_partition(merged.compute(), ndimage.label(mask)[0])


@pytest.mark.slow
def test_a_failed_tile_is_redone_alone_and_by_other_processes(image, mask, place, tmp_path):
    flag, calls = str(tmp_path / "flag"), str(tmp_path / "calls")

    def fails_once(tile):
        with open(calls, "a") as file:
            file.write(".")
        if os.path.getsize(calls) == 2 and not os.path.exists(flag):
            raise ValueError("no luck")
        return ndimage.label(tile)[0]

    options = {"tile_shape": (48, 32), "write_to": f"{place}/labels.zarr", "resume": True}
    with pytest.raises(TilesFailedError, match=f"staged at {place}/labels.zarr/labels.work"):
        tile_process(image, fails_once, **options)
    assert [name for name in names_in(place) if name.endswith(".tiles")]
    open(flag, "w").close()
    labels = tile_process(image, fails_once, workers="processes", **options)
    assert os.path.getsize(calls) == 3
    assert_same_partition(labels.compute(), ndimage.label(mask)[0])
    assert not [name for name in names_in(place) if ".work" in name]


@pytest.mark.parametrize("length", [0, 60, -1])
def test_a_tile_whose_file_was_cut_short_is_staged_again(length, place):
    stage = stage_into(f"{place}/stage", blobs((8, 8)))
    labels, store = merged_of(stage), stage.path.fs
    (path,) = (name for name in store.find(stage.path.path) if "y001x000" in name)
    store.pipe_file(path, store.cat_file(path)[:length])
    with pytest.raises(StageError, match="'y001x000' .* are damaged|not staged .*: y001x000;"):
        merged_of(stage)
    stage_into(f"{place}/stage", blobs((8, 8)), keys=stage.missing_blocks())
    assert (merged_of(stage) == labels).all()


@pytest.mark.slow
def test_an_ome_zarr_label_image_on_s3_is_written_and_written_again(image, mask, place):
    segmentation = segmentation_of(components, {})
    for name in ("cells", "cells"):
        written = segment_to_ome_zarr(
            open_image(image), segmentation, place, name=name, tile_shape=(48, 32)
        )
        assert written.n_objects == ndimage.label(mask)[1]
    labels = open_image(f"{place}/labels/cells")
    assert labels.format == "OME-Zarr 0.5"
    assert_same_partition(labels.pixels[...], ndimage.label(mask)[0])
    assert zarr.open_group(f"{place}/labels", mode="r").attrs["ome"]["labels"] == ["cells"]
    assert not [name for name in names_in(place) if "partial" in name or ".work" in name]


def test_an_image_that_is_written_over_is_another_one(place):
    array = zarr.create_array(
        zarr.storage.FsspecStore.from_url(f"{place}/a.zarr"), data=pixels_of((8, 8)), chunks=(4, 4)
    )
    first = open_image(f"{place}/a.zarr").fingerprint
    assert open_image(f"{place}/a.zarr").fingerprint == first
    array[0, 0] += 1
    assert open_image(f"{place}/a.zarr").fingerprint != first
    prints = set()
    for seed in (0, 1):
        file = io.BytesIO()
        tifffile.imwrite(file, pixels_of((32, 32), seed=seed), tile=(16, 16))
        fsspec.filesystem("s3").pipe(f"{place}/a.tif", file.getvalue())
        opened = open_image(f"{place}/a.tif")
        assert_reads(opened, pixels_of((32, 32), seed=seed))
        prints.add(opened.fingerprint)
    assert len(prints) == 2


def test_what_one_client_writes_another_sees_at_once(place):
    path = as_path(place)
    assert not (path / "a" / "b.txt").exists()
    assert not path.is_dir()
    fsspec.filesystem("s3").pipe(f"{place}/a/b.txt", b"new")
    assert (path / "a" / "b.txt").exists()
    assert [child.name for child in path.iterdir()] == ["a"]
    fsspec.filesystem("s3").pipe(f"{place}/c.txt", b"newer")
    assert sorted(child.name for child in path.iterdir()) == ["a", "c.txt"]


def test_a_folder_that_is_copied_is_whole_before_its_records_are_there(place, monkeypatch):
    fs = as_path(place).fs
    fs.pipe({f"{place}/a/zarr.json": b"{}", f"{place}/a/c/0/0": b"pixels", f"{place}/ab": b""})
    copied = []
    copy = fs.copy
    monkeypatch.setattr(fs, "copy", lambda a, b: [copied.extend(a), copy(a, b)])
    copy_objects(as_path(f"{place}/a"), as_path(f"{place}/b"))
    assert [path.rsplit("/a/")[-1] for path in copied] == ["c/0/0", "zarr.json"]
    assert names_in(place) == ["a/c/0/0", "a/zarr.json", "ab", "b/c/0/0", "b/zarr.json"]


def test_an_image_is_converted_from_s3_to_s3(image, mask, place):
    written = convert_image(image, f"{place}/a.ome.zarr", chunks=(16, 16), shards=(32, 32))
    assert str(written.path) == f"{place}/a.ome.zarr"
    assert_reads(open_image(written.path), mask.astype("u1"))


def test_a_plate_on_s3_names_its_fields(place, tmp_path):
    write_plate(tmp_path / "plate", "0.5", wells=("A/1",), n_fields=1)
    fsspec.filesystem("s3").put(str(tmp_path / "plate"), f"{place}/plate.zarr", recursive=True)
    assert fields_of_plate(f"{place}/plate.zarr") == ["A/1/0"]
    assert_reads(open_image(f"{place}/plate.zarr/A/1/0"), pixels_of((2, 9, 12))[0])
