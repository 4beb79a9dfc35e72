"""Empty tiles: exact, cautious, and remembered for as long as the image is the same."""

from __future__ import annotations

import os

import numpy as np
import pytest
import zarr
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import ndimage

from patchworks_core import ImageError, declare, tile_process
from patchworks_core.images.image import Image, open_image
from patchworks_core.statistics.empty_tiles import background_threshold, estimate_empty_tiles
from patchworks_core.statistics.measuring import measure
from patchworks_core.statistics.statistics import ImageStatistics
from patchworks_core.tiles.grid import plan_grid
from tests.core.oracles import assert_same_partition


@declare(merge="touching", version="1")
def bright(tile):
    return ndimage.label(tile > 50)[0]


def mixed_brightness(seed: int = 0) -> tuple[np.ndarray, np.ndarray]:
    """661 discs over noise (mean 100, sd 4): the brightest a thousand times the faintest.

    The faintest are 8 standard deviations above the background: what a person still sees.
    """
    rng = np.random.default_rng(seed)
    pixels = rng.normal(100, 4, (2048, 2048))
    labels = np.zeros(pixels.shape, dtype=np.int32)
    y, x = np.ogrid[-6:7, -6:7]
    disc = y**2 + x**2 <= 36
    places = [(i, j) for i in range(16, 2032, 40) for j in range(16, 2032, 40)]
    chosen = rng.permutation(len(places))[:661]
    for number, k in enumerate(chosen, start=1):
        i, j = places[k]
        box = slice(i - 6, i + 7), slice(j - 6, j + 7)
        labels[box][disc] = number
        pixels[box][disc] += 32 * 1000 ** rng.random()
    return pixels.clip(0, 65535).round().astype("u2"), labels


@settings(max_examples=40)
@given(
    seed=st.integers(0, 2**32 - 1),
    shape=st.tuples(st.integers(1, 30), st.integers(1, 30)),
    tile=st.integers(1, 12),
    overlap=st.integers(0, 5),
    dtype=st.sampled_from(["u1", "f4"]),
)
def test_a_tile_is_occupied_just_where_it_reads_a_brighter_pixel(seed, shape, tile, overlap, dtype):
    pixels = np.random.default_rng(seed).choice([0, 1, 2, 200], shape, p=[0.9, 0.05, 0.04, 0.01])
    pixels = pixels.astype(dtype)
    found = estimate_empty_tiles(pixels, tile, threshold=1, overlap=overlap)
    grid = plan_grid("yx", shape, tile_shape=tile, overlap=overlap)
    expected = [bool((pixels[t.read.slices] > 1).any()) for t in grid.tiles()]
    assert found.occupancy.ravel().tolist() == expected
    assert found.n_tiles == len(expected)
    assert found.n_occupied == sum(expected)
    assert found.empty_fraction == pytest.approx(1 - sum(expected) / len(expected))


@pytest.mark.parametrize("tile", [64, 128])
def test_none_of_661_objects_of_mixed_brightness_is_lost_by_skipping(tile):
    pixels, labels = mixed_brightness()
    found = estimate_empty_tiles(pixels, tile)
    occupied = np.kron(found.occupancy, np.ones((tile, tile), bool))
    assert set(np.unique(labels)) - {0} == set(np.unique(labels[occupied])) - {0}
    assert len(np.unique(labels)) - 1 == 661
    # And it is of use: noise alone is recognised.
    assert found.empty_fraction > (0.4 if tile == 64 else 0.05)


@pytest.mark.shared_data
@pytest.mark.parametrize("tile", [64, 128, 256])
def test_no_nucleus_of_256_real_images_is_lost_by_skipping(tile, shared_data):
    truth = np.asarray(open_image(shared_data / "dsb2018_mosaic_4096_labels.tif").pixels[:])
    found = estimate_empty_tiles(shared_data / "dsb2018_mosaic_4096.png", tile, cache=False)
    skipped = np.kron(~found.occupancy, np.ones((tile, tile), bool))
    lost = set(np.unique(truth)) - set(np.unique(truth[~skipped]))
    assert not lost


@pytest.mark.slow
def test_most_of_a_sparse_volume_is_skipped_and_the_labels_are_the_same():
    # A camera: an offset, and noise around it.
    volume = np.random.default_rng(0).normal(100, 3, (32, 256, 256)).round().astype("u2")
    volume[10:14, 100:120, 60:90] = 400
    found = estimate_empty_tiles(volume, (16, 32, 32))
    assert found.empty_fraction > 0.9
    calls = []

    @declare(merge="touching", version="1")
    def counted(tile):
        calls.append(tile.shape)
        return ndimage.label(tile > 200)[0]

    options = {"tile_shape": (16, 32, 32), "max_workers": 1}
    skipped = tile_process(volume, counted, skip_empty=True, **options)
    assert len(calls) == found.n_occupied
    assert_same_partition(skipped, ndimage.label(volume > 200)[0])


def test_the_faint_rim_of_a_bright_neighbour_is_not_cut_off():
    pixels = np.zeros((8, 32), dtype="u1")
    pixels[3:5, 12:18] = [200, 200, 200, 200, 60, 60]  # the rim lies in the second tile
    options = {"tile_shape": (8, 16), "overlap": (0, 4), "merge": "touching"}
    labels = tile_process(pixels, bright, empty_threshold=100, **options)
    assert_same_partition(labels, ndimage.label(pixels > 50)[0])


def test_the_maxima_are_kept_beside_the_image_and_go_with_it(tmp_path, monkeypatch):
    reads = []
    read = Image.read
    monkeypatch.setattr(Image, "read", lambda self, r: reads.append(r) or read(self, r))
    store = zarr.create_array(str(tmp_path / "i.zarr"), shape=(64, 64), chunks=(32, 32), dtype="u1")
    store[:5, :5] = 9
    path = tmp_path / "i.zarr"
    assert estimate_empty_tiles(path, 32).n_occupied == 1
    assert len(reads) == 4
    assert estimate_empty_tiles(path, 32, threshold=10).n_occupied == 0
    assert len(reads) == 4
    store[40, 40] = 7
    os.utime(tmp_path / "i.zarr" / "c" / "1" / "1")
    assert estimate_empty_tiles(path, 32).n_occupied == 2
    assert len(reads) == 8
    assert [p.name[:18] for p in tmp_path.iterdir() if p.name != "i.zarr"] == [".i.zarr.occupancy-"]


def test_a_record_cut_short_is_measured_again(tmp_path):
    np.save(tmp_path / "i.npy", np.eye(32, dtype="u1"))
    expected = estimate_empty_tiles(tmp_path / "i.npy", 16).occupancy
    (record,) = tmp_path.glob(".i.npy.occupancy-*")
    record.write_text(record.read_text()[:40])
    np.testing.assert_array_equal(estimate_empty_tiles(tmp_path / "i.npy", 16).occupancy, expected)


def test_not_finite_pixels_are_no_signal():
    pixels = np.zeros((4, 8), "f4")
    pixels[0, 0], pixels[1, 6] = np.inf, np.nan
    pixels[:, 4:] = np.nan
    pixels[2, 2] = 3
    found = estimate_empty_tiles(pixels, 4, threshold=1)
    assert found.occupancy.tolist() == [[True, False]]
    with pytest.raises(ImageError, match="at least one finite pixel"):
        estimate_empty_tiles(np.full((4, 4), np.nan), 2)


def measured(pixels: np.ndarray) -> ImageStatistics:
    regions = [t.core for t in plan_grid("yx", pixels.shape, tile_shape=-1).tiles()]
    return measure(open_image(pixels), regions)


def test_dark_objects_on_a_bright_ground_leave_only_flat_tiles_empty():
    pixels = np.full((64, 64), 240, "u1")
    pixels[20:30, 20:30] = 30
    assert background_threshold(measured(pixels)) == 30


def test_a_dead_pixel_does_not_raise_the_threshold():
    rng = np.random.default_rng(0)
    pixels = rng.normal(100, 4, (512, 512)).round().astype("u2")
    clean = background_threshold(measured(pixels))
    pixels[3, 3], pixels[60, 60] = 0, 4000
    assert background_threshold(measured(pixels)) <= clean + 8


def test_skipping_by_another_threshold_is_another_stage(tmp_path):
    from patchworks_core import StageError

    pixels = np.zeros((32, 32), "u1")
    pixels[4:9, 4:9] = 90
    where = {"tile_shape": 16, "write_to": tmp_path / "o.zarr", "keep_stage": True}
    tile_process(pixels, bright, empty_threshold=10, **where)
    with pytest.raises(StageError, match="segmentation empty_threshold: 20.0 is not 10.0"):
        tile_process(pixels, bright, empty_threshold=20, resume=True, **where)
