"""An image that changes while it is worked on: its tiles are never merged with those of another."""

from __future__ import annotations

import os
from pathlib import Path

import dask.array as da
import numpy as np
import pytest
import tifffile
import zarr
from scipy import ndimage

from patchworks_core import StageError, TilesFailedError, declare, segment_to_ome_zarr, tile_process
from patchworks_core.images.image import open_image
from patchworks_core.operations.filters import maximum
from patchworks_core.operations.processed import process_lazily
from patchworks_core.plugins.segmentation import segmentation_of

FIRST = (np.random.default_rng(0).random((64, 96)) < 0.4).astype("u1")
SECOND = FIRST[::-1].copy()


def write_npy(path: Path, pixels: np.ndarray) -> None:
    with path.open("r+b" if path.exists() else "wb") as opened:  # in place, as a program would
        np.save(opened, pixels)


def write_tiff(path: Path, pixels: np.ndarray) -> None:
    tifffile.imwrite(path, pixels)


def write_zarr(path: Path, pixels: np.ndarray) -> None:
    zarr.create_array(str(path), data=pixels, chunks=(32, 32), overwrite=True, compressors=None)


WRITERS = {"i.npy": write_npy, "i.tif": write_tiff, "i.zarr": write_zarr}
each_format = pytest.mark.parametrize("name", WRITERS)

NOW: dict[str, object] = {}


@declare(merge="touching", version="1")
def changing(tile):
    """Label a tile, and do what is asked for after the third."""
    NOW["n"] += 1
    if NOW["n"] == 4 and NOW["then"] is not None:
        NOW["then"]()
    return ndimage.label(tile)[0]


def run(path: Path, then=None, **options):
    NOW.update(n=0, then=then)
    where = {"tile_shape": 32, "max_workers": 1, "write_to": path.parent / "l.zarr"}
    return tile_process(str(path), changing, **{**where, **options})


@each_format
def test_an_image_rewritten_while_it_is_segmented_is_an_error_that_names_the_tiles(name, tmp_path):
    path, write = tmp_path / name, WRITERS[name]
    write(path, FIRST)
    with pytest.raises(StageError, match=r"tile blocks staged .* other pixels .*y000x000"):
        run(path, then=lambda: write(path, SECOND))
    assert not (tmp_path / "l.zarr" / "labels").exists()
    labels = run(path, resume=False)
    np.testing.assert_array_equal(np.asarray(labels) > 0, SECOND > 0)


@each_format
def test_an_image_that_is_only_touched_is_no_error(name, tmp_path):
    path, write = tmp_path / name, WRITERS[name]
    write(path, FIRST)
    labels = run(path, then=lambda: write(path, FIRST))
    np.testing.assert_array_equal(np.asarray(labels) > 0, FIRST > 0)


@each_format
@pytest.mark.parametrize("resume", [True, "auto"])
def test_another_image_of_the_same_size_and_time_is_seen_when_tiles_are_taken_up(
    name, resume, tmp_path
):
    path, write = tmp_path / name, WRITERS[name]
    write(path, FIRST)
    files = [p for p in (path, *path.rglob("*")) if p.exists()]
    times = {p: p.stat() for p in files}

    def stop():
        raise OSError("no more")

    with pytest.raises(TilesFailedError):
        run(path, then=stop)
    write(path, SECOND)
    for file, was in times.items():
        os.utime(file, ns=(was.st_atime_ns, was.st_mtime_ns))
    with pytest.raises(StageError, match=r"of 6 tile blocks staged at .* are of other pixels"):
        run(path, resume=resume)
    labels = run(path, resume=False)
    np.testing.assert_array_equal(np.asarray(labels) > 0, SECOND > 0)


def test_an_image_of_another_shape_is_an_error(tmp_path):
    path = tmp_path / "i.tif"
    write_tiff(path, FIRST)

    def replaced():
        write_tiff(tmp_path / "new.tif", FIRST[:32])
        os.replace(tmp_path / "new.tif", path)

    with pytest.raises(StageError, match=r"while it was worked on, it has shape \(32, 96\)"):
        run(path, then=replaced)


def test_an_image_cut_short_while_it_is_segmented_fails_the_tiles_that_are_gone(tmp_path):
    path = tmp_path / "i.tif"
    write_tiff(path, FIRST)
    with pytest.raises(TilesFailedError, match="ends .* bytes before the pixels"):
        run(path, then=lambda: os.truncate(path, 2000))


SOURCES = {
    "processed": lambda path: process_lazily(open_image(path), maximum(1)),
    "memory map": lambda path: np.load(path, mmap_mode="r"),
}


@pytest.mark.parametrize("kind", SOURCES)
def test_an_image_of_another_kind_that_changes_is_seen_too(kind, tmp_path):
    path = tmp_path / "i.npy"
    write_npy(path, FIRST)
    NOW.update(n=0, then=lambda: write_npy(path, SECOND))
    where = {"tile_shape": 32, "max_workers": 1, "write_to": tmp_path / "l.zarr"}
    with pytest.raises(StageError, match="other pixels"):
        tile_process(SOURCES[kind](path), changing, **where)


@pytest.mark.parametrize("opened", [zarr.open_array, da.from_zarr])
def test_an_array_of_zarr_that_changes_is_seen_and_its_labels_are_not_taken(opened, tmp_path):
    write_zarr(tmp_path / "i.zarr", FIRST)
    where = {"tile_shape": 32, "max_workers": 1, "write_to": tmp_path / "l.zarr"}
    NOW.update(n=0, then=lambda: write_zarr(tmp_path / "i.zarr", SECOND))
    with pytest.raises(StageError, match="other pixels"):
        tile_process(opened(str(tmp_path / "i.zarr")), changing, **where)
    for pixels in (SECOND, FIRST):
        write_zarr(tmp_path / "i.zarr", pixels)
        NOW.update(n=0, then=None)
        labels = tile_process(opened(str(tmp_path / "i.zarr")), changing, **where)
        np.testing.assert_array_equal(np.asarray(labels) > 0, pixels > 0)
        assert NOW["n"] == 6


def test_an_ome_zarr_is_not_made_of_two_images(tmp_path):
    path = tmp_path / "i.npy"
    write_npy(path, FIRST)
    NOW.update(n=0, then=lambda: write_npy(path, SECOND))
    with pytest.raises(StageError, match="other pixels"):
        segment_to_ome_zarr(
            open_image(path), segmentation_of(changing), tmp_path / "o.zarr", tile_shape=32
        )
