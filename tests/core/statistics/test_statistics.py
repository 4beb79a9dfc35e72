"""Statistics of tiles, added up, against those of the whole image."""

from __future__ import annotations

import json
import pickle
from dataclasses import replace
from itertools import pairwise

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from skimage import filters

from patchworks_core.errors import ImageError
from patchworks_core.images.image import open_image
from patchworks_core.machine.pools import Pool
from patchworks_core.machine.workers import Workers
from patchworks_core.statistics import statistics
from patchworks_core.statistics.background import has_bright_background
from patchworks_core.statistics.bins import Bins, count_values
from patchworks_core.statistics.measuring import measure
from patchworks_core.statistics.statistics import ImageStatistics, tile_statistics
from patchworks_core.tiles.regions import Region

DTYPES = ["bool", "uint8", "int8", "uint16", "int16", "int32", "uint64", "float32", "float64"]


def whole(pixels):
    return measure(open_image(pixels), [Region((0,) * pixels.ndim, pixels.shape)])


def tiled(pixels, cuts):
    rows = [Region((a, 0), (b, pixels.shape[1])) for a, b in pairwise([0, *cuts, len(pixels)])]
    return measure(open_image(pixels), rows)


def random_pixels(dtype, seed, shape=(23, 7)):
    rng = np.random.default_rng(seed)
    if np.dtype(dtype).kind == "f":
        pixels = rng.normal(100, 30, shape).astype(dtype)
        pixels[rng.random(shape) < 0.05] = rng.choice([np.nan, np.inf, -np.inf])
        return pixels
    limit = np.iinfo(dtype) if dtype != "bool" else None
    if limit is None:
        return rng.random(shape) < 0.3
    return rng.integers(limit.min, limit.max, shape, dtype=dtype, endpoint=True)


def bimodal(dtype="uint8", scale=1.0, seed=0):
    rng = np.random.default_rng(seed)
    pixels = np.concatenate([rng.normal(40, 8, 40_000), rng.normal(140, 25, 9_000)])
    return (pixels.clip(0, 255) * scale).astype(dtype).reshape(70, 700)


@given(
    dtype=st.sampled_from(DTYPES),
    seed=st.integers(0, 2**32 - 1),
    cuts=st.lists(st.integers(1, 22), unique=True).map(sorted),
)
@settings(deadline=None, max_examples=60)
def test_any_tiling_gives_the_statistics_of_the_whole(dtype, seed, cuts):
    pixels = random_pixels(dtype, seed)
    pixels[0, 0] = 1
    one, many = whole(pixels).to_dict(), tiled(pixels, cuts).to_dict()
    maxima = [m for m in many.pop("tile_maximum") if m is not None]
    assert [max(maxima)] == one.pop("tile_maximum")
    assert one == many


@pytest.mark.parametrize("dtype", DTYPES)
def test_mean_std_and_limits_are_numpys(dtype):
    pixels = random_pixels(dtype, 3)
    finite = pixels[np.isfinite(pixels)]
    measured = whole(pixels)
    span = float(finite.max()) - float(finite.min())
    assert measured.mean == pytest.approx(finite.mean(dtype=np.float64), abs=span * 2**-23)
    assert measured.std == pytest.approx(finite.std(dtype=np.float64), abs=span * 2**-23)
    assert measured.minimum == finite.min()
    assert measured.maximum == finite.max()
    assert measured.n_pixels == pixels.size
    assert measured.n_not_finite == pixels.size - finite.size


def test_the_order_of_regions_and_a_thread_pool_change_nothing():
    pixels = random_pixels("float32", 5)
    regions = [Region((i, 0), (i + 1, 7)) for i in range(23)]
    with Pool.open(Workers(2)) as pool:
        backwards = measure(open_image(pixels), regions[::-1], pool)
    assert (backwards.mean, backwards.std) == (whole(pixels).mean, whole(pixels).std)
    np.testing.assert_array_equal(backwards.counts, whole(pixels).counts)


class Counted:
    """An array that counts how often it is read."""

    def __init__(self, dtype: str) -> None:
        self.pixels, self.n_reads = np.arange(8, dtype=dtype).reshape(2, 4), 0
        self.shape, self.dtype, self.ndim = self.pixels.shape, self.pixels.dtype, 2

    def __getitem__(self, where):
        self.n_reads += 1
        return self.pixels[where]


@pytest.mark.parametrize(("dtype", "n_reads"), [("uint16", 1), ("float32", 2)])
def test_images_of_16_bits_are_read_once_and_wider_ones_twice(dtype, n_reads):
    counted = Counted(dtype)
    image = replace(open_image(counted.pixels), pixels=counted)
    measure(image, [Region((0, 0), (2, 4))])
    assert counted.n_reads == n_reads


class Damaged(Counted):
    """An array of which nothing can be read."""

    def __getitem__(self, where):
        raise ImageError("chunk c/0 of a.zarr is damaged")


def test_an_image_that_cannot_be_read_is_an_image_error_on_a_pool_too():
    image = replace(open_image(np.zeros((2, 4), "u2")), pixels=Damaged("uint16"))
    with Pool.open(Workers(2)) as pool, pytest.raises(ImageError, match="a.zarr is damaged"):
        measure(image, [Region((0, 0), (1, 4)), Region((1, 0), (2, 4))], pool)


@given(seed=st.integers(0, 2**32 - 1), q=st.integers(0, 100))
@settings(deadline=None, max_examples=60)
def test_percentiles_of_integers_are_the_pixel_of_that_rank(seed, q):
    pixels = np.random.default_rng(seed).integers(-300, 300, 150, dtype="int16")[None]
    # numpy's "inverted_cdf" is one rank off where q / 100 rounds up, as for 55 % of 100
    rank = max(1, -(-q * 150 // 100))
    assert whole(pixels).percentile(q) == np.sort(pixels[0])[rank - 1]


@given(seed=st.integers(0, 2**32 - 1), q=st.floats(0, 100))
@settings(deadline=None, max_examples=60)
def test_percentiles_of_floats_are_within_one_bin(seed, q):
    pixels = np.random.default_rng(seed).normal(size=(10, 31))
    measured = whole(pixels)
    expected = np.percentile(pixels, q, method="inverted_cdf")
    assert measured.percentile(q) == pytest.approx(expected, abs=measured.bins.width)


def test_a_percentile_beyond_100_is_an_error():
    with pytest.raises(ImageError, match="0 <= q <= 100, got 101"):
        whole(bimodal()).percentile(101)


@pytest.mark.parametrize("method", ["otsu", "li", "yen"])
@pytest.mark.parametrize("seed", range(4))
def test_thresholds_of_integers_are_those_of_skimage(method, seed):
    pixels = bimodal(seed=seed)
    expected = getattr(filters, f"threshold_{method}")(pixels)
    assert whole(pixels).threshold(method) == pytest.approx(expected, rel=1e-5)


@pytest.mark.parametrize("method", ["otsu", "li"])
def test_thresholds_of_floats_are_near_those_of_skimage(method):
    pixels = np.random.default_rng(0).gamma(2.0, 10.0, (300, 300))
    function = getattr(filters, f"threshold_{method}")
    expected = function(pixels, **({"nbins": 65_536} if method == "otsu" else {}))
    assert whole(pixels).threshold(method) == pytest.approx(expected, rel=2e-3)


def test_counting_an_image_many_times_does_not_move_its_threshold():
    once = whole(bimodal("uint16", 200))
    many = ImageStatistics(**{**once.__dict__, "counts": once.counts * 7777})
    for method in ("otsu", "li", "yen"):
        assert many.threshold(method) == pytest.approx(once.threshold(method))


@pytest.mark.parametrize("dtype", ["bool", "u1", "i2", "u2", "i4", "u8", "f4", "f8"])
@pytest.mark.parametrize("method", ["otsu", "li", "yen"])
def test_the_threshold_of_an_image_of_one_value_is_that_value(method, dtype):
    for value in (0, 1, 1 if dtype == "bool" else 100):
        assert whole(np.full((3, 3), value, dtype)).threshold(method) == value


def test_an_unknown_method_is_an_error():
    with pytest.raises(ImageError, match=r"one of \['li', 'otsu', 'yen'\], got 'triangle'"):
        whole(bimodal()).threshold("triangle")


def test_not_finite_pixels_are_in_no_bin():
    pixels = np.array([np.nan, 0, 1, np.inf], "float32")
    tile = tile_statistics(pixels, Bins(0.0, 0.5, 2))
    assert tile.counts.tolist() == [1, 1]
    assert tile.n_not_finite == 2


def test_an_image_without_a_finite_pixel_is_an_error():
    with pytest.raises(ImageError, match="at least one finite pixel, got none among 6 pixels"):
        whole(np.full((2, 3), np.nan))


def test_pixels_outside_the_bins_are_an_error():
    with pytest.raises(ImageError, match="bins hold 0 to 10, got pixels from 3 to 12"):
        count_values(np.array([3, 12]), Bins(0, 1, 10))
    with pytest.raises(ImageError, match="bins hold"):
        count_values(np.array([2**64 - 1], "uint64"), Bins(5, 1, 10))


def test_complex_pixels_are_an_error():
    with pytest.raises(ImageError, match="got dtype complex128"):
        count_values(np.zeros(3, complex), Bins(0, 1, 2))


def test_bins_without_a_width_are_an_error():
    with pytest.raises(ImageError, match="a width above 0"):
        Bins(0, 0, 4)


def test_a_range_wider_than_its_dtype_is_an_error():
    with pytest.raises(ImageError, match="finite range"):
        Bins.for_range(-1.7e308, 1.7e308, "float64")


def test_wide_integers_of_a_small_range_get_one_bin_per_value():
    assert Bins.for_range(10**12, 10**12 + 65_535, "int64") == Bins(10**12, 1, 65_536)
    assert Bins.for_range(0, 65_536, "int64") == Bins(0, 2, 32_769)


def test_a_constant_float_image_is_measured():
    measured = whole(np.full((4, 4), 3.7))
    assert (measured.mean, measured.std, measured.percentile(50)) == (3.7, 0, 3.7)


@pytest.mark.parametrize("dtype", DTYPES)
def test_statistics_survive_json(dtype):
    pixels = random_pixels(dtype, 8)
    pixels[:2] = np.nan if np.dtype(dtype).kind == "f" else 0
    measured = tiled(pixels, [1, 5])
    text = json.dumps(measured.to_dict(), allow_nan=False)
    back = ImageStatistics.from_dict(json.loads(text))
    assert back.to_dict() == measured.to_dict()
    np.testing.assert_array_equal(back.counts, measured.counts)
    np.testing.assert_array_equal(back.tile_maximum, measured.tile_maximum)
    assert back.tile_maximum.dtype == measured.tile_maximum.dtype


def test_a_foreign_record_is_an_error():
    with pytest.raises(ImageError, match=r"not the record of image statistics: \['a'\]"):
        ImageStatistics.from_dict({"a": 1})


def test_what_every_tile_asks_is_worked_out_once(monkeypatch):
    measured = whole(bimodal())
    asked = []
    otsu = statistics.METHODS["otsu"]
    monkeypatch.setitem(
        statistics.METHODS, "otsu", lambda *histogram: asked.append(1) or otsu(*histogram)
    )
    levels = {measured.threshold() for _ in range(3)}
    assert len(levels) == len(asked) == 1
    for _ in range(3):
        has_bright_background(measured)
    occupied = pickle.loads(pickle.dumps(measured))  # as a worker process gets it
    assert {occupied.threshold()} == levels
    assert len(asked) == 1
    assert measured.threshold("li") not in levels
