"""Tiles, halos and workers that fit."""

from __future__ import annotations

from math import prod

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from patchworks_core.errors import PlanError
from patchworks_core.machine import sizing
from patchworks_core.machine.budget import Limit, block_bytes
from patchworks_core.machine.devices import Device
from patchworks_core.machine.model_sizing import auto_tile_shape_cellpose
from patchworks_core.machine.sizing import (
    auto_overlap,
    auto_tile_shape,
    safe_worker_count,
)
from patchworks_core.tiles.grid import plan_grid


@pytest.fixture
def granted(monkeypatch):
    """Grant this process what a test says."""

    def grant(cores: int = 5, memory: int = 10**9, gpus: tuple[int, ...] = ()) -> None:
        devices = tuple(Device(i, f"GPU-{i}", "", free, free) for i, free in enumerate(gpus))
        monkeypatch.setattr(sizing, "granted_cores", lambda: Limit(cores, "a test"))
        monkeypatch.setattr(sizing, "granted_memory_bytes", lambda: Limit(memory, "a test"))
        monkeypatch.setattr(sizing, "granted_devices", lambda: devices)

    return grant


@settings(max_examples=60)
@given(
    shape=st.lists(st.integers(1, 5000), min_size=2, max_size=3).map(tuple),
    dtype=st.sampled_from(["u1", "u2", "f8"]),
    chunk=st.sampled_from([None, 32, 256, 512]),
    memory=st.sampled_from([10**8, 10**9, 10**10]),
    overlap=st.sampled_from([0, 16]),
)
def test_a_tile_fits_and_is_a_whole_number_of_chunks_or_a_part_of_one(
    shape, dtype, chunk, memory, overlap
):
    chunks = None if chunk is None else tuple(min(chunk, n) for n in shape)
    options = {"chunks": chunks, "overlap": overlap, "n_workers": 2, "memory_bytes": memory}
    tile = auto_tile_shape(shape, dtype, **options)
    grid = plan_grid("zyx"[-len(shape) :], shape, tile_shape=tile, overlap=overlap)
    assert block_bytes(grid, np.dtype(dtype)) <= memory // 2
    for t, n, c in zip(tile, shape, chunks or shape, strict=True):
        assert t == n or t % c == 0 or t < c or chunks is None


def test_a_tile_is_cut_down_to_the_narrowest_before_it_is_refused():
    shape, half = (61, 107, 123), 10**8 // 2
    tile = auto_tile_shape(shape, "f8", chunks=shape, overlap=16, n_workers=2, memory_bytes=10**8)
    grid = plan_grid("zyx", shape, tile_shape=tile, overlap=16)
    assert min(tile) == sizing.MIN_TILE_EXTENT
    assert block_bytes(grid, np.dtype("f8")) <= half


def test_more_memory_never_gives_a_smaller_tile():
    sizes = [
        prod(auto_tile_shape((9000, 9000), "u2", n_workers=1, memory_bytes=m))
        for m in (10**8, 3 * 10**8, 10**9, 10**10)
    ]
    assert sizes == sorted(sizes)
    assert sizes[-1] <= sizing.MAX_TILE_PIXELS


def test_the_budget_is_four_fifths_of_what_was_granted_shared_by_cores_less_one(granted):
    granted(cores=5, memory=2 * 10**9)
    given_all = auto_tile_shape((9000, 9000), "u2", n_workers=4, memory_bytes=16 * 10**8)
    assert auto_tile_shape((9000, 9000), "u2") == given_all


def test_time_and_channel_are_stepped_one_by_one():
    tile = auto_tile_shape((5, 2, 8, 64, 64), "u1", axes="tczyx", memory_bytes=10**9)
    assert tile == (1, 1, 8, 64, 64)


def test_axes_beyond_three_are_named_not_guessed():
    with pytest.raises(PlanError, match=r"one letter of 'tczyx' for each of the 4 axes"):
        auto_tile_shape((5, 8, 64, 64), "u1")


def test_a_chunk_too_large_for_the_budget_is_cut():
    tile = auto_tile_shape((8192, 8192), "u2", chunks=(8192, 8192), memory_bytes=10**8, n_workers=1)
    assert max(tile) < 8192


def test_what_can_never_fit_is_refused_with_the_way_out():
    with pytest.raises(PlanError, match=r"not even a tile of .* fits the 10.0 kB .*fewer workers"):
        auto_tile_shape((512, 512), "u2", memory_bytes=10_000, n_workers=1)


def test_whole_planes_are_planned_or_refused_with_the_tiles_that_replace_them():
    shape = (50, 3000, 3000)
    assert auto_tile_shape(shape, "u2", plane_wise=True, n_workers=1, memory_bytes=10**9) == (
        1,
        3000,
        3000,
    )
    with pytest.raises(PlanError, match=r"a whole plane of \(3000, 3000\) .*tile_shape=\(1, ") as e:
        auto_tile_shape(shape, "u2", plane_wise=True, n_workers=4, memory_bytes=10**9)
    assert "each of 4 workers has 250.0 MB" in str(e.value)


def test_cellpose_gets_planes_or_blocks():
    options = {"n_workers": 1, "memory_bytes": 2 * 10**9}
    flat = auto_tile_shape_cellpose((40, 4000, 4000), "u2", 30, **options)
    block = auto_tile_shape_cellpose((40, 4000, 4000), "u2", 30, do_3D=True, **options)
    assert flat[0] == 1
    assert block[0] > 1
    # Small objects are enlarged by Cellpose, and so is what it takes.
    small = auto_tile_shape_cellpose((40, 4000, 4000), "u2", 10, **options)
    assert prod(small) < prod(flat)


def test_a_gpu_bounds_the_tile_by_its_free_memory_or_a_cautious_guess(granted):
    shape = (8000, 8000)
    granted(memory=10**12, gpus=(10**9, 10**10))
    smallest = auto_tile_shape_cellpose(shape, "u2", 30, use_gpu=True)
    assert smallest == auto_tile_shape_cellpose(shape, "u2", 30, use_gpu=True, vram_bytes=10**9)
    granted(memory=10**12)
    unknown = auto_tile_shape_cellpose(shape, "u2", 30, use_gpu=True)
    assert unknown == auto_tile_shape_cellpose(shape, "u2", 30, use_gpu=True, vram_bytes=4 << 30)
    assert prod(unknown) > prod(smallest)


def test_a_halo_is_one_diameter_per_axis():
    assert auto_overlap(17) == 17
    assert auto_overlap(10, voxel_size=0.5) == 10
    assert auto_overlap(10, voxel_size=(2, 0.5)) == (3, 10)
    with pytest.raises(PlanError, match="diameter must be above 0, got 0"):
        auto_overlap(0)


def test_workers_are_bounded_by_cores_memory_and_what_a_tile_took(granted):
    granted(cores=9, memory=10**9)
    assert safe_worker_count((64, 64), "u1") == 8
    assert safe_worker_count((1024, 1024), "f8", measured_bytes=3 * 10**8) == 2
    assert safe_worker_count((64, 64), "u1", at_most=3) == 3
    with pytest.raises(PlanError, match="one tile needs about"):
        safe_worker_count((1024, 1024), "f8", measured_bytes=10**9)
