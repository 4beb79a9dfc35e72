"""The calls that people have in their scripts run as they are spelled, and mean what they meant."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import zarr
from distributed import Client
from scipy import ndimage

from patchworks_core import (
    PlanError,
    auto_overlap,
    auto_tile_shape,
    auto_tile_shape_cellpose,
    declare,
    estimate_empty_tiles,
    load_ome_zarr,
    make_local_cluster,
    relabel_sequential_zarr,
    safe_worker_count,
    tile_process,
)
from patchworks_core.calls.spellings import also_spelled
from patchworks_core.errors import ClusterError
from tests.core.oracles import assert_same_partition
from tests.core.staging import blobs, label_components

SCRIPT = Path(__file__).parents[4] / "shared" / "cases" / "known_calls.py"


@pytest.mark.shared_data
@pytest.mark.slow
@pytest.mark.skipif(not SCRIPT.is_file(), reason="the script is not beside this checkout")
def test_none_of_the_known_calls_fails():
    done = subprocess.run([sys.executable, SCRIPT], capture_output=True, text=True, timeout=240)
    assert done.stdout.endswith("0 of 18 known calls fail\n"), done.stdout


def test_empty_tiles_are_a_mapping_too():
    pixels = np.zeros((8, 8), "u1")
    pixels[5, 6] = 9
    empty = estimate_empty_tiles(pixels, 4)
    assert {"threshold", "n_tiles", "n_occupied", "empty_fraction", "occupancy"} <= set(empty)
    assert dict(empty)["empty_fraction"] == empty.empty_fraction == empty["empty_fraction"] == 0.75
    assert (len(empty), "n_tiles" in empty, empty.get("nothing", 7)) == (len([*empty]), True, 7)
    assert empty == empty
    assert empty != estimate_empty_tiles(pixels, 4)
    with pytest.raises(KeyError, match="'tiles' is not one of threshold, n_tiles"):
        empty["tiles"]


def test_a_cluster_is_a_pair_and_a_context_and_takes_tiles_whatever_max_workers_says(
    tmp_path, capfd
):
    pids = tmp_path / "pids"
    pids.mkdir()

    @declare(merge="touching", version="1")
    def leave_a_trace(tile):
        (pids / str(os.getpid())).touch()
        return ndimage.label(tile)[0]

    pixels = blobs((48, 48))
    pair = make_local_cluster(n_workers=1, memory_limit="1GB", dashboard_address=None)
    client, cluster = pair
    assert (pair[0], pair[1], pair.client) == (client, cluster, client)
    with pair as entered:
        assert entered is client
        assert client.scheduler_info()["workers"].popitem()[1]["memory_limit"] == 10**9
        labels = tile_process(pixels, leave_a_trace, tile_shape=16, max_workers=2)
        workers = set(client.run(os.getpid).values())
    client.close()
    cluster.close()
    assert {int(path.name) for path in pids.iterdir()} == workers
    assert_same_partition(labels, ndimage.label(pixels)[0])
    assert "distributed" not in capfd.readouterr().err, "the cluster's own log floods a script's"


@pytest.mark.parametrize(
    ("limits", "message"),
    [
        ({"memory_limit": "much"}, "a number of bytes or text such as '8GB', got 'much'"),
        ({"memory_limit": 9, "memory_bytes": 9}, "give one of them"),
        ({"memory_limit": 0}, "memory_limit must be a whole number, 1 or more, got 0"),
        ({"n_workers": 0}, "n_workers must be a whole number, 1 or more, got 0"),
        ({"gpus": [0]}, r"gpus=\[0\] names 0, and each GPU is named once .*may use: none"),
    ],
)
def test_a_cluster_that_cannot_be_is_refused(limits, message):
    with pytest.raises(PlanError, match=message):
        make_local_cluster(**limits)


@pytest.mark.parametrize("error", [RuntimeError, ValueError, PlanError, ClusterError])
def test_a_client_in_this_process_is_caught_as_what_a_script_expects(error):
    with (
        Client(processes=False, n_workers=1, dashboard_address=None),
        pytest.raises(error, match="make_local_cluster"),
    ):
        tile_process(np.ones((8, 8)), label_components, tile_shape=4, max_workers=1)


@pytest.mark.parametrize("call", [("labels",), ()])
def test_ids_are_renumbered_in_the_store(tmp_path, monkeypatch, call):
    monkeypatch.chdir(tmp_path)
    group = zarr.open_group("gappy.zarr", mode="w")
    array = group.create_array("labels", shape=(2, 3), chunks=(1, 3), dtype="i4")
    array[...] = [[0, 70, 70], [9, 0, 12]]
    assert relabel_sequential_zarr("gappy.zarr", *call) == 3
    assert zarr.open_group("gappy.zarr")["labels"][...].tolist() == [[0, 3, 3], [1, 0, 2]]
    assert os.listdir() == ["gappy.zarr"]
    (tmp_path / "gappy.zarr" / "labels").rename(tmp_path / "gappy.zarr" / "cells")
    assert relabel_sequential_zarr(store_path="gappy.zarr", component="cells") == 3


@pytest.mark.parametrize(
    ("call", "halo"),
    [
        ({"diameter": 30, "voxel_size": (2.0, 0.1, 0.1)}, (2, 30, 30)),
        ({"diameter": 15, "voxel_size": (2.0, 0.1, 0.1)}, (1, 15, 15)),
        ({"diameter": 7, "voxel_size": [1, 0.3, 0.3]}, (3, 7, 7)),
        ({"diameter": 7, "voxel_size": np.array([0.3, 0.1])}, (3, 7)),
        ({"diameter": 30, "safety": 1.5, "voxel_size": (2, 0.1, 0.1)}, (3, 45, 45)),
        ({"diameter": 10, "safety": 1.5}, 15),
        ({"diameter": 10.2}, 11),
        ({"diameter": 10, "voxel_size": 0.5}, 10),
    ],
)
def test_a_halo_is_in_pixels_of_the_finest_axis(call, halo):
    assert auto_overlap(**call) == halo


def test_a_voxel_size_in_the_place_of_safety_is_said():
    with pytest.raises(PlanError, match=r"safety is a number, got \(2, 1\); say voxel_size="):
        auto_overlap(10, (2, 1))


def test_a_tile_is_sized_for_a_gpu_for_bytes_and_for_channels(capsys):
    shape = (500, 5000, 5000)
    plain = auto_tile_shape(shape, "u2", n_workers=1, memory_bytes=10**10)
    assert plain == auto_tile_shape(shape, "u2", n_workers=1, available_memory=10**10)
    room = {"n_workers": 1, "memory_bytes": 10**10}
    on_gpu = auto_tile_shape(shape, "u2", use_gpu=True, gpu_memory=10**8, **room)
    assert np.prod(on_gpu) < np.prod(plain)
    small = auto_tile_shape(shape, np.uint16, target_bytes=10**6, **room)
    assert np.prod(small) * 2 <= 10**6 < np.prod(plain) * 2
    tight = {"n_workers": 1, "memory_bytes": 10**8}
    assert np.prod(auto_tile_shape(shape, "u2", n_channels=4, **tight)) < np.prod(
        auto_tile_shape(shape, "u2", **tight)
    )
    assert capsys.readouterr().err == ""
    tile = auto_tile_shape_cellpose(shape, "u2", 30, verbose=True, **tight)
    assert f"tiles of {tile} pixels (axes 'zyx')" in capsys.readouterr().err


def test_workers_are_counted_for_a_tile_of_so_many_bytes():
    assert safe_worker_count(tile_nbytes=10_000_000) == safe_worker_count(10_000_000) >= 1
    assert safe_worker_count(1000, use_gpu=True) == 1
    with pytest.raises(PlanError, match="by its shape and dtype, or by tile_nbytes"):
        safe_worker_count((64, 64))
    with pytest.raises(PlanError, match="one tile needs about"):
        safe_worker_count(tile_nbytes=10**15)


def test_an_image_is_loaded_by_keyword(tmp_path):
    np.save(tmp_path / "a.npy", np.ones((4, 5), "u1"))
    assert load_ome_zarr(store_path=tmp_path / "a.npy", chunks=(2, 5)).chunks == ((2, 2), (5,))


def test_verbose_says_place_and_shape_of_each_tile(capsys):
    tile_process(blobs((10, 12)), label_components, tile_shape=(10, 8), verbose=True)
    said = capsys.readouterr().err
    assert "tile y000x000 at (0, 0) of (10, 8) pixels: " in said
    assert "tile y000x001 at (0, 8) of (10, 4) pixels: " in said


def test_other_spellings_are_ours_and_what_is_not_here_says_what_to_do():
    pixels = blobs((32, 32))
    ours = tile_process(pixels, label_components, tile_shape=16, merge="touching")
    theirs = tile_process(pixels, label_components, tile_shape=16, stitch="touch")
    np.testing.assert_array_equal(ours, theirs)
    tile_process(pixels, label_components, tile_shape=16, overlap=4, stitch="iou", iou_threshold=1)
    with pytest.raises(PlanError, match="merge"):
        tile_process(pixels, label_components, tile_shape=16, stitch="glue")
    with pytest.raises(TypeError, match="got merge= and stitch=, which are the same"):
        tile_process(pixels, label_components, tile_shape=16, stitch="iou", merge="touching")
    with pytest.raises(TypeError, match="tile_process.. has no log_file=: .*FileHandler"):
        tile_process(pixels, label_components, tile_shape=16, log_file=True)


def test_a_function_keeps_its_own_name_and_words():
    @also_spelled({"colour": "color"})
    def paint(color: str = "red") -> str:
        """Paint."""
        return color

    assert (paint.__name__, paint.__doc__, paint(colour="blue")) == ("paint", "Paint.", "blue")
    with pytest.raises(TypeError, match="unexpected keyword argument 'size'"):
        paint(size=3)
