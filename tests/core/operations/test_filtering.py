"""Filters against SciPy and scikit-image, shading against its formula, whole images in tiles."""

from __future__ import annotations

from itertools import product

import dask.array as da
import numpy as np
import pytest
import zarr
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import ndimage
from skimage import filters, morphology

from patchworks_core import tile_process
from patchworks_core.errors import ImageError, PlanError, TilesFailedError
from patchworks_core.images.image import open_image
from patchworks_core.operations.background import subtract_background, white_tophat
from patchworks_core.operations.filtering import (
    filter_image,
    global_threshold,
    image_statistics,
    plan_filtering,
)
from patchworks_core.operations.filters import clip_and_scale, gaussian, maximum, median, minimum
from patchworks_core.operations.flat_field import estimate_flat_field
from patchworks_core.operations.neighbourhoods import footprint
from patchworks_core.operations.operations import chain, operation
from patchworks_core.operations.places import TilePlace
from patchworks_core.operations.processed import process_lazily
from patchworks_core.operations.shading import shading_correction
from patchworks_core.tiles.regions import Region
from tests.core.oracles import assert_same_partition, examples
from tests.core.staging import label_components

RNG = np.random.default_rng(1)


def noise(dtype="uint8", shape=(33, 28), seed=0):
    return (np.random.default_rng(seed).random(shape) * 250).astype(dtype)


# --- filters ------------------------------------------------------------------------------------


@given(
    seed=st.integers(0, 2**32 - 1),
    shape=st.lists(st.integers(1, 12), min_size=1, max_size=3).map(tuple),
    size=st.lists(st.sampled_from([1, 3, 5, 7]), min_size=3, max_size=3),
    dtype=st.sampled_from(["bool", "uint8", "int16", "uint16", "int64", "float16", "float64"]),
)
@settings(max_examples=examples(30))
def test_the_median_of_a_box_is_scipys(seed, shape, size, dtype):
    size = tuple(size[: len(shape)])
    pixels = (np.random.default_rng(seed).random(shape) * 9).astype(dtype)
    known = pixels.astype("float64")
    expected = ndimage.median_filter(known, size, mode="reflect").astype(dtype)
    np.testing.assert_array_equal(median(size)(pixels), expected)


@pytest.mark.parametrize("dtype", ["uint8", "uint16", "float32"])
@pytest.mark.parametrize(("size", "shape"), [(9, "box"), (5, "ball"), ((3, 11), "ball")])
def test_large_medians_and_those_of_balls_are_scipys(dtype, size, shape):
    pixels = noise(dtype)
    sizes = size if isinstance(size, tuple) else (size, size)
    expected = ndimage.median_filter(pixels, footprint=footprint(sizes, shape))
    np.testing.assert_array_equal(median(size, shape=shape)(pixels), expected)


def test_an_image_smaller_than_the_box_is_reflected_more_than_once():
    pixels = noise(shape=(2, 3))
    for size in (7, 9):
        np.testing.assert_array_equal(median(size)(pixels), ndimage.median_filter(pixels, size))


def test_a_ball_is_that_of_scikit_image():
    for radius in (1, 2, 3, 6):
        size = 2 * radius + 1
        np.testing.assert_array_equal(footprint((size, size), "ball"), morphology.disk(radius))
        np.testing.assert_array_equal(footprint((size,) * 3, "ball"), morphology.ball(radius))


def test_maximum_and_minimum_are_scipys():
    pixels = noise()
    np.testing.assert_array_equal(maximum((3, 7))(pixels), ndimage.maximum_filter(pixels, (3, 7)))
    disk = morphology.disk(2)
    expected = ndimage.minimum_filter(pixels, footprint=disk)
    np.testing.assert_array_equal(minimum(5, shape="ball")(pixels), expected)


@pytest.mark.parametrize("dtype", ["uint8", "uint16", "float32", "float64", "int32"])
def test_gaussian_is_scipys(dtype):
    pixels = noise(dtype)
    smooth = gaussian((1, 2.3), truncate=3)(pixels)
    expected = ndimage.gaussian_filter(pixels.astype("float64"), (1, 2.3), truncate=3)
    assert smooth.dtype == (np.float64 if dtype in ("float64", "int32") else np.float32)
    np.testing.assert_allclose(smooth, expected, rtol=1e-5)


@pytest.mark.parametrize(("shape", "around"), [("box", np.ones((7, 7))), ("ball", None)])
def test_white_tophat_is_scikit_images(shape, around):
    pixels = noise()
    around = morphology.disk(3) if around is None else around
    expected = morphology.white_tophat(pixels, around, mode="reflect")
    np.testing.assert_array_equal(white_tophat(3, shape=shape)(pixels), expected)


def test_white_tophat_of_signed_integers_stops_at_the_largest():
    pixels = np.array([-128, -128, 127, -128, -100, -128], "int8")
    assert white_tophat(1)(pixels).tolist() == [0, 0, 127, 0, 28, 0]


def test_a_background_is_subtracted_and_the_spots_stay():
    y, x = np.mgrid[:80, :80]
    ground = 100 + y + x / 2
    spots = np.zeros((80, 80))
    spots[20:24, 30:34] = spots[60:64, 50:54] = 200
    for dtype, tolerance in (("uint16", 12), ("float64", 12)):
        clean = subtract_background(6)((ground + spots).astype(dtype))
        assert clean.dtype == dtype
        assert (abs(clean.astype(float) - spots) <= tolerance).all()


def test_values_are_scaled_and_clipped():
    scaled = clip_and_scale(10, 20)(np.array([0, 10, 15, 20, 99], "uint16"))
    assert scaled.dtype == np.float32
    np.testing.assert_allclose(scaled, [0, 0, 0.5, 1, 1])
    assert np.isnan(clip_and_scale(0, 1)(np.array([np.nan]))).all()


def test_values_are_scaled_by_percentiles_of_the_whole_image():
    pixels = noise("uint16")
    statistics = image_statistics(pixels)
    scaled = clip_and_scale(statistics=statistics, percentiles=(5, 95))(pixels)
    low, high = np.percentile(pixels, [5, 95], method="inverted_cdf").astype(float)
    np.testing.assert_allclose(scaled, ((pixels - low) / (high - low)).clip(0, 1), atol=1e-6)
    assert clip_and_scale(high=7, statistics=statistics).parameters["high"] == 7


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: gaussian(-1), "sigma must be 0 or more, in pixels, got -1"),
        (lambda: gaussian((1, np.inf)), r"sigma must be 0 or more, in pixels, got \(1, inf\)"),
        (lambda: gaussian(1, truncate=0), "truncate must be above 0 sigmas, got 0"),
        (lambda: median(4), "size must be an odd whole number, in pixels, got 4"),
        (lambda: maximum((3, 2.5)), "size must be an odd whole number, in pixels"),
        (lambda: minimum("3"), "size must be an odd whole number, in pixels, got '3'"),
        (lambda: median(3, shape="disk"), r"is one of \('box', 'ball'\), got 'disk'"),
        (lambda: white_tophat(-1), "radius must be a whole number, 0 or more, in pixels, got -1"),
        (lambda: subtract_background(1.5), "radius must be a whole number, 0 or more, in pixels"),
        (lambda: clip_and_scale(1), "needs low and high, got 1 and None; pass both"),
        (lambda: clip_and_scale(3, 3), "needs low < high, got 3 and 3"),
    ],
)
def test_numbers_out_of_range_are_errors(make, message):
    with pytest.raises(ImageError, match=message):
        make()


# --- shading ------------------------------------------------------------------------------------


def lit(shape=(20, 30), n_channels=2):
    y, x = np.mgrid[: shape[0], : shape[1]] / max(shape)
    return np.stack(
        [1.5 - 0.7 * (y - 0.3) ** 2 - 0.7 * (x - c / 3) ** 2 for c in range(n_channels)]
    )


def formula(pixels, flat, dark):
    return (pixels - dark) * (flat - dark).mean() / (flat - dark)


@pytest.mark.parametrize("dtype", ["uint8", "int16", "uint16", "int32", "float32", "float64"])
@pytest.mark.parametrize("dark", [None, 0.1, "field"])
def test_shading_is_corrected_by_its_formula_in_any_tiles(dtype, dark):
    flat = lit()
    dark = 0.05 + 0.1 * RNG.random(flat.shape) if dark == "field" else dark
    pixels = noise(dtype, (3, 2, 2, 20, 30))
    pixels[0, 0, 0, 0, 0] = np.iinfo(dtype).max if np.dtype(dtype).kind in "iu" else 1e9
    correct = shading_correction(flat, dark)
    image = process_lazily(open_image(pixels, axes="tczyx", channel=None), correct)
    found = filter_image(image.original, correct, tile_shape=(1, 1, 1, 7, 11))
    assert found.dtype == dtype
    for t, c, z in product(range(3), range(2), range(2)):
        ground = dark[c] if isinstance(dark, np.ndarray) else dark or 0
        expected = formula(pixels[t, c, z].astype("float64"), flat[c], ground)
        if np.dtype(dtype).kind in "iu":
            limits = np.iinfo(dtype)
            expected = expected.round().clip(limits.min, limits.max)
        # float32 may round a tie of float64 the other way
        np.testing.assert_allclose(found[t, c, z], expected, rtol=1e-5, atol=1)
        if dtype == "float64":
            np.testing.assert_allclose(found[t, c, z], expected, rtol=1e-12)
    np.testing.assert_array_equal(found, image.read(Region((0,) * 5, image.shape)))


def test_the_channel_that_was_opened_is_corrected_by_its_own_field():
    flat = lit()
    pixels = noise("float64", (2, 20, 30))
    image = process_lazily(open_image(pixels, axes="cyx", channel=1), shading_correction(flat))
    np.testing.assert_allclose(
        image.read(Region((5, 5), (20, 30))), formula(pixels[1], flat[1], 0)[5:, 5:]
    )


def test_float32_keeps_fractions_and_values_below_0():
    correct = shading_correction([[1.0, 2.0]], 0.5, dtype="float32")
    found = correct(np.array([[0, 7]], "uint8"))
    assert found.dtype == np.float32
    np.testing.assert_allclose(found, [[-1.0, 13 / 3]], rtol=1e-6)
    assert shading_correction([[1.0, 2.0]], 0.5)(np.array([[0, 7]], "uint8")).tolist() == [[0, 4]]


def test_64_bit_integers_are_clipped_to_what_they_hold():
    flat = np.array([[1.0, 1e-3]])
    found = shading_correction(flat)(np.array([[0, 2**62]], "int64"))
    assert 2**62 < found[0, 1] <= 2**63 - 1


@pytest.mark.parametrize(
    ("flat", "dark", "message"),
    [
        (
            [[1.0, 0.0]],
            None,
            r"above the dark field everywhere, got 1 of 2 pixels .* being 0; clip",
        ),
        ([[1.0, -2.0]], None, "the lowest difference being -2"),
        ([[1.0, 3.0]], 1.0, "got 1 of 2 pixels that are not"),
        ([[1.0, np.nan]], None, "a flat field must be finite"),
        ([1.0, 2.0], None, r"needs shape \(y, x\) or \(channel, y, x\), got \(2,\)"),
        ([[1.0, 2.0]], [[1.0]], r"as large as the flat field, got \(1, 1\) and \(1, 2\)"),
    ],
)
def test_a_field_that_is_no_light_is_an_error(flat, dark, message):
    with pytest.raises(ImageError, match=message):
        shading_correction(flat, dark)


def test_a_field_of_other_planes_or_channels_is_an_error():
    image = open_image(np.zeros((2, 20, 30)), axes="cyx", channel=None)
    other = process_lazily(image, shading_correction(np.ones((20, 31))))
    with pytest.raises(ImageError, match=r"got \(20, 31\) for planes of \(20, 30\) along 'yx'"):
        other.read(Region((0, 0, 0), (1, 5, 5)))
    one = process_lazily(image, shading_correction(np.ones((1, 20, 30))))
    with pytest.raises(ImageError, match="the flat field is of 1 channels, got channel 1; give"):
        one.read(Region((1, 0, 0), (2, 5, 5)))
    with pytest.raises(ImageError, match="of 2 channels, got an image without channel axis"):
        shading_correction(np.ones((2, 4, 4)))(np.zeros((4, 4)))
    with pytest.raises(ImageError, match="numbers, got bool"):
        process_lazily(open_image(np.zeros((4, 4), bool)), shading_correction(np.ones((4, 4))))
    with pytest.raises(ImageError, match="dtype must be 'same' or 'float32', got 'int8'"):
        shading_correction(np.ones((4, 4)), dtype="int8")


def frames(light, n=40, dtype="uint16"):
    """Return planes with a bright object each, somewhere else each time, under uneven light."""
    rng = np.random.default_rng(0)
    planes = rng.normal(400, 5, (n, *light.shape))
    for plane in planes:
        y, x = rng.integers(0, 50, 2)
        plane[y : y + 8, x : x + 8] += 500
    return (planes * light + 30).astype(dtype)


@pytest.mark.parametrize("statistic", ["mean", "median"])
def test_the_flat_field_of_many_planes_is_the_light(statistic):
    light = lit((60, 60))
    light /= light.mean(axis=(1, 2), keepdims=True)
    pixels = np.stack([frames(light[0]), frames(light[1])], axis=1)
    image = open_image(pixels, axes="tcyx", channel=None)
    field = estimate_flat_field(image, statistic=statistic, sigma=2, dark_field=30)
    assert field.shape == (2, 60, 60)
    np.testing.assert_allclose(field.mean(axis=(1, 2)), 1)
    np.testing.assert_allclose(field, light, rtol=0.05 if statistic == "median" else 0.2)
    one = estimate_flat_field(
        open_image(pixels, axes="tcyx", channel=1), statistic=statistic, sigma=2, dark_field=30
    )
    np.testing.assert_allclose(one, field[1])


def test_bands_of_lines_and_several_images_give_the_same_field():
    pixels = frames(lit((60, 60))[0], n=12)
    whole = estimate_flat_field(open_image(pixels, axes="tyx"), sigma=1)
    lines = estimate_flat_field(
        open_image(pixels, axes="tyx"), sigma=1, memory_bytes=60 * 8 * 24 * 7
    )
    chunked = da.from_array(pixels, chunks=(1, 16, 60))
    bands = estimate_flat_field(
        open_image(chunked, axes="tyx"), sigma=1, memory_bytes=60 * 8 * 24 * 20
    )
    halves = [open_image(part, axes="tyx") for part in (pixels[:5], pixels[5:])]
    volume = open_image(pixels.reshape(3, 4, 60, 60), axes="tzyx")
    for other in (lines, bands, estimate_flat_field(*halves, sigma=1)):
        np.testing.assert_array_equal(other, whole)
    np.testing.assert_array_equal(estimate_flat_field(volume, sigma=1), whole)


def test_reading_is_bounded_whatever_the_number_of_planes():
    class Counted:
        axes, shape, chunks = "tyx", (1000, 64, 64), None
        largest, n_planes = 0, set()

        def read(self, region):
            self.largest = max(self.largest, region.size)
            self.n_planes.add(region.start[0])
            return np.ones(region.shape)

    image = Counted()
    estimate_flat_field(image, max_planes=50, memory_bytes=8 * 2 * 50 * 64 * 10)
    assert image.largest == 64 * 10
    assert len(image.n_planes) == 50
    assert {0, 999} <= image.n_planes


def test_the_light_is_smoothed_by_a_gaussian():
    field = RNG.random((60, 70)) + 1
    found = estimate_flat_field(open_image(field), sigma=3)
    expected = ndimage.gaussian_filter(field, 3)
    inside = (slice(12, 48), slice(12, 58))
    ratio = found[inside] / expected[inside]
    np.testing.assert_allclose(ratio, ratio[0, 0])


def test_light_that_falls_off_to_the_borders_is_not_flattened_there():
    y, x = np.mgrid[:30, :40]
    ramp = 100 + 3.0 * y - 2.0 * x
    found = estimate_flat_field(open_image(ramp), sigma=8)
    np.testing.assert_allclose(found, ramp / ramp.mean())
    line = estimate_flat_field(open_image(ramp[:1]), sigma=8)
    np.testing.assert_allclose(line, ramp[:1] / ramp[:1].mean())


def test_a_measured_field_corrects_the_image_it_was_measured_in():
    light = lit((60, 60))[0]
    pixels = frames(light)
    image = open_image(pixels, axes="tyx")
    field = estimate_flat_field(image, sigma=2, dark_field=30)
    clean = filter_image(image, shading_correction(field + 30, 30, dtype="float32"), tile_shape=20)
    before, after = np.median(pixels - 30, axis=0), np.median(clean, axis=0)
    assert after.std() / after.mean() < 0.2 * before.std() / before.mean()


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: estimate_flat_field(), "in at least one image, got none"),
        (
            lambda: estimate_flat_field(open_image(np.ones((4, 4))), open_image(np.ones((4, 5)))),
            r"the same planes \(y, x\) and channels, got axes \['yx', 'yx'\] of shapes",
        ),
        (lambda: estimate_flat_field(open_image(np.ones(5))), r"got axes \['x'\]"),
        (
            lambda: estimate_flat_field(open_image(np.ones((4, 4))), dark_field=2),
            "above the dark field everywhere, got -1 at the lowest",
        ),
        (
            lambda: estimate_flat_field(open_image(np.ones((4, 4))), statistic="mode"),
            "statistic must be 'mean' or 'median', got 'mode'",
        ),
        (
            lambda: estimate_flat_field(open_image(np.ones((4, 4))), sigma=-1),
            "sigma must be 0 or more pixels, got -1",
        ),
        (
            lambda: estimate_flat_field(open_image(np.ones((4, 4))), max_planes=0),
            "max_planes and memory_bytes must be at least 1, got 0 and",
        ),
    ],
)
def test_a_flat_field_that_cannot_be_measured_is_an_error(make, message):
    with pytest.raises(ImageError, match=message):
        make()


# --- whole images -------------------------------------------------------------------------------

CHAIN = chain(median(3), white_tophat(3), gaussian(1))


@pytest.mark.parametrize("max_workers", [1, 3])
@pytest.mark.parametrize("sharded", [False, True])
def test_a_filtered_array_is_that_of_the_whole_image(tmp_path, max_workers, sharded):
    pixels = noise("uint16", (2, 3, 45, 50))
    source = zarr.create_array(
        str(tmp_path / "raw"),
        shape=pixels.shape,
        chunks=(1, 2, 16, 20),
        dtype="u2",
        dimension_names=list("tcyx"),
    )
    source[...] = pixels
    told = []
    lazy = filter_image(
        tmp_path / "raw",
        CHAIN,
        write_to=tmp_path / "filtered",
        tile_shape=(16, 24),
        sharded=sharded,
        max_workers=max_workers,
        progress=lambda *step: told.append(step),
    )
    assert isinstance(lazy, da.Array)
    expected = np.stack([[CHAIN(plane) for plane in planes] for planes in pixels])
    np.testing.assert_array_equal(lazy.compute(), expected)
    written = zarr.open_array(str(tmp_path / "filtered"), mode="r")
    assert written.metadata.zarr_format == 3
    assert written.metadata.dimension_names == tuple("tcyx")
    assert (written.shards == (1, 1, 16, 24)) is sharded
    assert all(t % c == 0 for t, c in zip((1, 1, 16, 24), written.chunks, strict=True))
    record = written.attrs["patchworks"]
    assert [o["operation"] for o in record["operations"]] == ["median", "white_tophat", "gaussian"]
    assert record["image"]["url"] == str(tmp_path / "raw")
    assert told[-1] == ("filter", 2 * 3 * 3 * 3, 2 * 3 * 3 * 3)
    assert open_image(tmp_path / "filtered", channel=None).axes == "tcyx"
    assert sorted(path.name for path in tmp_path.iterdir()) == ["filtered", "raw"]


def test_processes_give_what_threads_give(tmp_path):
    pixels = noise("float32", (40, 41))
    done = (shading_correction(lit((40, 41), 1)[0]), operation(lambda p: p + 1), median(5))
    expected = filter_image(pixels, *done)
    np.testing.assert_array_equal(expected, chain(*done)(pixels))
    written = filter_image(
        pixels,
        *done,
        tile_shape=24,
        workers="processes",
        write_to=tmp_path / "filtered",
    )
    np.testing.assert_array_equal(written.compute(), expected)


def test_the_result_may_be_kept_anywhere_fsspec_reaches():
    pixels = noise(shape=(20, 20))
    lazy = filter_image(pixels, median(3), tile_shape=8, write_to="memory://filtering/a")
    np.testing.assert_array_equal(lazy.compute(), ndimage.median_filter(pixels, 3))


def test_a_tile_that_fails_leaves_what_was_there(tmp_path):
    target = tmp_path / "filtered"
    pixels = noise(shape=(20, 20))
    filter_image(pixels, median(3), write_to=target)

    def fail(tile, place):
        if place.region.start[0] == 10:
            raise RuntimeError("no")
        return tile

    with pytest.raises(TilesFailedError, match="2 of 4 tiles failed, the first is 'y001x000'"):
        filter_image(pixels, operation(fail), tile_shape=10, write_to=target)
    np.testing.assert_array_equal(
        zarr.open_array(str(target), mode="r")[...], ndimage.median_filter(pixels, 3)
    )
    assert [path.name for path in tmp_path.iterdir()] == ["filtered"]
    with pytest.raises(TilesFailedError, match="no"):
        filter_image(pixels, operation(fail), tile_shape=10)


def test_a_killed_call_leaves_nothing_that_looks_finished(tmp_path):
    def stop(step, done, total):
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        filter_image(noise(), median(3), tile_shape=8, write_to=tmp_path / "a", progress=stop)
    assert list(tmp_path.iterdir()) == []
    (tmp_path / "a.work").mkdir()  # of a process that was killed with no time to tidy up
    filter_image(noise(), median(3), write_to=tmp_path / "a")
    assert [path.name for path in tmp_path.iterdir()] == ["a"]


def test_an_image_is_not_written_over_itself_nor_over_what_is_no_array(tmp_path):
    raw = zarr.create_array(str(tmp_path / "raw"), shape=(8, 8), chunks=(4, 4), dtype="u1")
    for image in (raw, tmp_path / "raw"):
        with pytest.raises(PlanError, match="never written over what it is made from"):
            filter_image(image, median(3), write_to=tmp_path / "raw")
    zarr.create_group(str(tmp_path / "group"))
    with pytest.raises(PlanError, match="group is a whole Zarr group: nothing says"):
        filter_image(raw, median(3), write_to=tmp_path / "group")
    (tmp_path / "notes").mkdir()
    with pytest.raises(PlanError, match="notes is a folder: nothing says"):
        filter_image(raw, median(3), write_to=tmp_path / "notes")


def test_tiles_are_whole_chunks_and_bounded_unless_given():
    image = open_image(da.zeros((20_000, 30_000), chunks=(512, 1024), dtype="u2"))
    grid = plan_filtering(image)
    assert [t % c for t, c in zip(grid.tile_shape, (512, 1024), strict=True)] == [0, 0]
    assert 1000**2 < np.prod(grid.tile_shape) < 4000**2
    assert plan_filtering(process_lazily(image, gaussian(2))).halo == (0, 0)
    volume = open_image(da.zeros((500, 900, 900), chunks=(64, 256, 256), dtype="u2"))
    wide = plan_filtering(process_lazily(volume, subtract_background(25)))
    assert all(t >= 50 for t in wide.tile_shape)
    with pytest.raises(PlanError, match="tile_shape in words can only be 'auto', got 'big'"):
        plan_filtering(image, "big")


@pytest.mark.parametrize("method", ["otsu", "li", "yen"])
def test_a_global_threshold_is_that_of_scikit_image_on_the_processed_image(method):
    pixels = (250 * (noise() / 250.0) ** 3).astype("uint8")
    processed = process_lazily(open_image(pixels), median(3))
    expected = getattr(filters, f"threshold_{method}")(ndimage.median_filter(pixels, 3))
    assert global_threshold(processed, method, max_workers=2) == pytest.approx(expected)
    assert global_threshold(pixels, method) != pytest.approx(expected)


def test_segmenting_a_processed_image_in_tiles_is_segmenting_the_filtered_whole():
    rng = np.random.default_rng(0)
    pixels = ndimage.gaussian_filter(rng.random((90, 80)), 3)
    pixels = ((pixels - pixels.min()) / np.ptp(pixels) * 200).astype("uint8")
    pixels += rng.integers(0, 40, pixels.shape, dtype="uint8")
    processed = process_lazily(open_image(pixels), median(3), gaussian(1))
    level = global_threshold(processed)
    labels = tile_process(
        processed, "threshold", tile_shape=(20, 23), merge="touching", max_workers=1
    )
    truth = ndimage.label(chain(median(3), gaussian(1))(pixels) > level)[0]
    assert truth.max() > 5
    assert_same_partition(labels, truth)


@pytest.mark.parametrize("dtype", ["bool", "u1", "i4", "u8", "f4"])
def test_nothing_lies_above_the_threshold_of_an_image_of_one_value(dtype):
    empty_well = np.ones((40, 40), dtype)
    level = global_threshold(empty_well)
    assert not (empty_well > level).any()
    assert level == 1


def test_time_points_of_a_processed_image_are_segmented_apart():
    pixels = noise(shape=(3, 30, 30))
    processed = process_lazily(open_image(pixels, axes="tyx"), maximum(3))
    labels = tile_process(
        processed, lambda tile: label_components(tile > 240), tile_shape=(1, 9, 9), max_workers=1
    )
    for found, plane in zip(labels, pixels, strict=True):
        assert_same_partition(found, ndimage.label(ndimage.maximum_filter(plane, 3) > 240)[0])


def test_a_place_is_part_of_the_plane_for_volumes_too():
    place = TilePlace("zyx", Region((1, 2, 0), (3, 4, 5)), (4, 6, 5))
    flat = lit((6, 5), 1)[0]
    found = shading_correction(flat)(np.ones((2, 2, 5)), place)
    np.testing.assert_allclose(found, np.broadcast_to(flat.mean() / flat[2:4], (2, 2, 5)))
