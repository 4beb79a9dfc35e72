"""Operations in tiles against the same operations on the whole image."""

from __future__ import annotations

import json
import pickle
from functools import partial

import cloudpickle
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import ndimage

from patchworks_core.errors import ImageError
from patchworks_core.images.image import open_image
from patchworks_core.operations.background import subtract_background, white_tophat
from patchworks_core.operations.filters import clip_and_scale, gaussian, maximum, median, minimum
from patchworks_core.operations.operations import Chain, Operation, chain, operation
from patchworks_core.operations.places import TilePlace, per_axis
from patchworks_core.operations.processed import ProcessedImage, process_lazily
from patchworks_core.operations.shading import shading_correction
from patchworks_core.statistics.measuring import measure
from patchworks_core.tiles.grid import plan_grid
from patchworks_core.tiles.regions import Region
from tests.core.oracles import examples

DTYPES = ["bool", "uint8", "int8", "uint16", "int16", "int32", "float16", "float32", "float64"]

OPERATIONS = {
    "gaussian": gaussian(0.8),
    "gaussian per axis": gaussian({"z": 0.5, "y": 1.2}),
    "median of a box": median(3),
    "median of planes": median({"y": 3, "x": 5}),
    "median of a large box": median((7, 9)),
    "median of a ball": median(5, shape="ball"),
    "maximum": maximum(3),
    "minimum of a ball": minimum(5, shape="ball"),
    "white_tophat": white_tophat(1),
    "white_tophat of a ball": white_tophat((1, 2), shape="ball"),
    "subtract_background": subtract_background((1, 1)),
    "clip_and_scale": clip_and_scale(20, 90),
    "three in a row": chain(median(3), white_tophat({"y": 2, "x": 2}), gaussian((1, 0.7))),
    "the same twice": chain(maximum(3), chain(maximum(3), minimum(3))),
}


def random_pixels(dtype, shape, seed=0):
    rng = np.random.default_rng(seed)
    dtype = np.dtype(dtype)
    if dtype.kind == "f":
        return rng.normal(50, 30, shape).astype(dtype)
    low, high = (0, 1) if dtype.kind == "b" else (np.iinfo(dtype).min, np.iinfo(dtype).max)
    return rng.integers(max(low, -(2**31)), min(high, 2**31), shape, endpoint=True).astype(dtype)


def whole(pixels, done, axes):
    """Run operations on each time point and channel of an array, all of it at once."""
    n_before = sum(axis in "tc" for axis in axes)
    parts = [done(pixels[i]) for i in np.ndindex(pixels.shape[:n_before])]
    return np.stack(parts).reshape(pixels.shape)


def in_tiles(image, tile_shape):
    grid = plan_grid(image.axes, image.shape, tile_shape=tile_shape)
    found = np.empty(image.shape, image.dtype)
    for tile in grid.tiles():
        found[tile.core.slices] = image.read(tile.core)
    return found


@pytest.mark.parametrize(
    ("axes", "shape", "tile_shape"),
    [
        ("yx", (23, 19), (7, 5)),
        ("yx", (23, 19), (22, 18)),  # remainders of one pixel, smaller than any halo
        ("yx", (5, 31), (2, 3)),
        ("yx", (1, 17), (1, 4)),
        ("zyx", (6, 13, 11), (4, 5, 6)),
        ("zyx", (7, 9, 8), (1, 4, 8)),
        ("tyx", (2, 14, 9), (1, 5, 4)),
        ("cyx", (3, 14, 9), (1, 14, 4)),
        ("tczyx", (2, 2, 4, 9, 10), (1, 1, 3, 4, 7)),
    ],
)
@pytest.mark.parametrize("name", OPERATIONS)
def test_tiles_give_the_bits_of_the_whole_image(name, axes, shape, tile_shape):
    pixels = random_pixels("uint8", shape)
    image = open_image(pixels, axes=axes, channel=None)
    processed = process_lazily(image, OPERATIONS[name])
    expected = whole(pixels, chain(OPERATIONS[name]), axes)
    assert processed.dtype == expected.dtype
    np.testing.assert_array_equal(in_tiles(processed, tile_shape), expected)


@pytest.mark.parametrize("dtype", DTYPES)
@pytest.mark.parametrize("name", OPERATIONS)
def test_every_type_of_pixels_is_the_same_in_tiles(name, dtype):
    pixels = random_pixels(dtype, (17, 14))
    processed = process_lazily(open_image(pixels), OPERATIONS[name])
    np.testing.assert_array_equal(in_tiles(processed, (6, 5)), chain(OPERATIONS[name])(pixels))


@pytest.mark.parametrize("name", OPERATIONS)
def test_what_is_not_finite_is_left_out_in_tiles_as_in_the_whole(name):
    pixels = random_pixels("float32", (25, 30))
    pixels[4, 5] = pixels[20, 29] = np.nan
    pixels[13, 14] = np.inf
    expected = chain(OPERATIONS[name])(pixels)
    processed = process_lazily(open_image(pixels), OPERATIONS[name])
    np.testing.assert_array_equal(np.isfinite(expected), np.isfinite(pixels))
    np.testing.assert_array_equal(in_tiles(processed, (6, 7)), expected)


@given(
    seed=st.integers(0, 2**32 - 1),
    shape=st.tuples(st.integers(1, 30), st.integers(1, 30)),
    tile_shape=st.tuples(st.integers(1, 12), st.integers(1, 12)),
    names=st.lists(st.sampled_from(sorted(OPERATIONS)), min_size=1, max_size=3),
    dtype=st.sampled_from(["uint8", "int16", "float64"]),
)
@settings(max_examples=examples(20))
def test_any_chain_in_any_tiles_is_that_of_the_whole(seed, shape, tile_shape, names, dtype):
    pixels = random_pixels(dtype, shape, seed)
    done = chain(*(OPERATIONS[name] for name in names))
    processed = process_lazily(open_image(pixels), done)
    np.testing.assert_array_equal(in_tiles(processed, tile_shape), done(pixels))


@pytest.mark.parametrize("mode", ["nearest", "mirror", "constant"])
def test_the_borders_of_the_image_are_its_own_in_tiles(mode):
    blur = operation(partial(ndimage.gaussian_filter, sigma=1, mode=mode), halo=4)
    pixels = random_pixels("float64", (21, 18))
    processed = process_lazily(open_image(pixels), blur, blur)
    np.testing.assert_array_equal(in_tiles(processed, 5), blur(blur(pixels)))


def test_a_halo_too_small_is_seen():
    blur = operation(partial(ndimage.gaussian_filter, sigma=1), halo=3)
    pixels = random_pixels("float64", (21, 18))
    processed = process_lazily(open_image(pixels), blur)
    assert not np.array_equal(in_tiles(processed, 5), blur(pixels))


@pytest.mark.parametrize("name", OPERATIONS)
def test_calling_an_operation_leaves_the_pixels_as_they_are(name):
    pixels = random_pixels("float32", (9, 9))
    before = pixels.copy()
    OPERATIONS[name](pixels)
    shading_correction(np.full((9, 9), 2.0), 1.0)(pixels)
    operation(lambda pixels: np.negative(pixels, out=pixels))(pixels)
    np.testing.assert_array_equal(pixels, before)


def test_what_is_read_may_be_written_to_whatever_the_function_returned():
    constant = operation(lambda pixels: np.broadcast_to(pixels[0, 0], pixels.shape))
    block = process_lazily(open_image(np.ones((4, 4))), constant).read(Region((0, 0), (4, 4)))
    block[0] = 7
    assert block.sum() == 4 * 7 + 12


def test_a_chain_adds_up_its_halos():
    done = chain(gaussian(2), chain(median(5), white_tophat((1, 3))))
    assert done.halo_of("yx") == (8 + 2 + 2, 8 + 2 + 6)
    assert done.halo_of("zyx") == (8 + 2, 8 + 2 + 2, 8 + 2 + 6)
    assert [o.name for o in done.operations] == ["gaussian", "median", "white_tophat"]
    assert done.dtype_of("uint8") == np.float32
    assert chain(median(3), clip_and_scale(0, 1)).dtype_of("int32") == np.float64


def test_what_an_operation_sees_shrinks_along_the_chain():
    seen = []

    def look(pixels, place):
        seen.append((pixels.shape, place))
        return pixels

    image = open_image(np.zeros((30, 30), "u1"))
    looks = [Operation("look", look, halo=n) for n in (3, 2, 1)]
    process_lazily(image, *looks).read(Region((0, 10), (10, 20)))
    assert [shape for shape, _ in seen] == [(16, 22), (13, 16), (11, 12)]
    assert seen[1][1].region == Region((0, 7), (13, 23))
    assert seen[1][1].image_shape == (30, 30)


def test_an_operation_is_told_time_point_channel_and_place():
    def where(pixels, place):
        first = place.region.start
        number = 1000 * place.index["t"] + 100 * place.index["c"] + 10 * first[0] + first[1]
        return np.full(pixels.shape, number, "int64")

    place_of = operation(where, dtype="int64")
    image = open_image(np.zeros((2, 3, 4, 5), "u1"), axes="tcyx", channel=None)
    found = process_lazily(image, place_of).read(Region((0, 1, 2, 3), (2, 3, 4, 5)))
    assert found[:, :, 0, 0].tolist() == [[123, 223], [1123, 1223]]
    one = open_image(np.zeros((2, 3, 4, 5), "u1"), axes="tcyx", channel=2)
    assert process_lazily(one, place_of).read(Region((1, 0, 0), (2, 1, 1))).item() == 1200


def test_a_function_without_a_signature_is_an_operation():
    assert operation(np.sqrt, dtype="float64")(np.array([4.0])) == 2


def test_a_processed_image_is_an_image():
    pixels = random_pixels("uint16", (2, 20, 16))
    image = open_image(pixels, axes="cyx", channel=1)
    processed = process_lazily(image, gaussian(1), clip_and_scale(0, 100))
    assert isinstance(processed, ProcessedImage)
    assert (processed.axes, processed.shape, processed.ndim) == ("yx", (20, 16), 2)
    assert (processed.dtype, processed.channel, processed.url) == (np.float32, 1, None)
    assert processed.format == "NumPy array, processed: gaussian > clip_and_scale"
    assert processed.halo == (4, 4)
    block = processed.read(Region((0, 0), (5, 6)))
    block[...] = 7
    assert block.flags.c_contiguous
    assert processed.read(Region((0, 0), (5, 6))).max() <= 1
    with pytest.raises(ImageError, match="a region must lie within the image"):
        processed.read(Region((0, 0), (21, 6)))


def test_what_is_not_open_yet_is_opened(tmp_path):
    pixels = random_pixels("uint8", (9, 8))
    np.save(tmp_path / "image.npy", pixels)
    processed = process_lazily(tmp_path / "image.npy", median(3))
    np.testing.assert_array_equal(in_tiles(processed, 4), median(3)(pixels))


def test_an_open_processed_image_is_taken_as_it_is():
    processed = process_lazily(open_image(np.zeros((4, 4))), gaussian(1))
    assert open_image(processed) is processed


def test_processing_twice_is_processing_by_the_chain():
    image = open_image(random_pixels("uint8", (16, 16)))
    twice = process_lazily(process_lazily(image, median(3)), gaussian(1))
    once = process_lazily(image, median(3), gaussian(1))
    assert twice.fingerprint == once.fingerprint
    assert twice.original is image
    np.testing.assert_array_equal(in_tiles(twice, 5), in_tiles(once, 16))


@pytest.mark.parametrize("dumps", [pickle.dumps, cloudpickle.dumps])
def test_a_processed_image_travels_to_another_process(dumps):
    pixels = random_pixels("uint8", (2, 16, 16))
    image = open_image(pixels, axes="cyx", channel=1)
    flat = np.linspace(1, 2, 256).reshape(16, 16)
    processed = process_lazily(image, shading_correction(flat), white_tophat(2), gaussian(1))
    back = pickle.loads(dumps(processed))
    assert back.fingerprint == processed.fingerprint
    np.testing.assert_array_equal(in_tiles(back, 7), in_tiles(processed, 16))


class Brighter:
    @staticmethod
    def change(pixels):
        return pixels + 1


class Darker:
    @staticmethod
    def change(pixels):
        return pixels - 1


def test_the_fingerprint_is_of_the_content_and_the_operations():
    image = open_image(np.zeros((8, 8), "u1"))
    other = open_image(np.ones((8, 8), "u1"))
    done = [
        process_lazily(image, gaussian(1)),
        process_lazily(image, gaussian(2)),
        process_lazily(image, gaussian(1), median(3)),
        process_lazily(image, median(3), gaussian(1)),
        process_lazily(other, gaussian(1)),
        process_lazily(image, shading_correction(np.ones((8, 8)))),
        process_lazily(image, shading_correction(np.full((8, 8), 1) + np.eye(8))),
        process_lazily(image, operation(np.negative)),
        process_lazily(image, operation(np.negative, halo=1)),
        process_lazily(image, operation(Brighter.change)),
        process_lazily(image, operation(Darker.change)),
        process_lazily(image, operation(partial(np.clip, min=0, max=3))),
        process_lazily(image, operation(partial(np.clip, min=0, max=4))),
    ]
    assert len({each.fingerprint for each in (image, *done)}) == len(done) + 1
    assert process_lazily(image, gaussian(1)).fingerprint == done[0].fingerprint


def test_a_record_is_plain_json_and_an_array_is_recorded_by_its_digest():
    done = chain(gaussian({"x": np.float32(2)}), shading_correction(np.ones((2, 3))))
    record = json.loads(json.dumps(done.to_dict()))
    assert record[0] == {
        "operation": "gaussian",
        "parameters": {"sigma": {"x": 2.0}, "truncate": 4.0},
        "halo": {"x": 8},
        "version": "2",
    }
    assert record[1]["parameters"]["gain"]["shape"] == [2, 3]
    assert len(record[1]["parameters"]["gain"]["digest"]) == 32


def test_statistics_are_those_of_the_processed_pixels():
    pixels = random_pixels("uint8", (30, 40))
    processed = process_lazily(open_image(pixels), median(3))
    regions = [Region((a, 0), (a + 10, 40)) for a in (0, 10, 20)]
    measured = measure(processed, regions)
    expected = ndimage.median_filter(pixels, 3)
    assert (measured.minimum, measured.maximum) == (expected.min(), expected.max())
    assert measured.mean == pytest.approx(expected.mean())


def test_numbers_are_given_by_axis():
    assert per_axis("size", 3, "yx") == (3, 3)
    assert per_axis("size", (5,), "zyx", missing=1) == (1, 1, 5)
    assert per_axis("size", {"z": 2, "x": 5}, "yx") == (0, 5)
    with pytest.raises(ImageError, match=r"size needs one number, or one per axis of 'yx'.*\(1, 2"):
        per_axis("size", (1, 2, 3), "yx")
    with pytest.raises(ImageError, match="size by axis is given for 'zyx' only, got {'c': 1}"):
        per_axis("size", {"c": 1}, "yx")


def test_an_image_is_processed_only_if_the_operation_has_its_axes():
    with pytest.raises(ImageError, match="one per axis of 'yx' counted from the last"):
        process_lazily(open_image(np.zeros((4, 4))), gaussian((1, 1, 1)))


def test_more_than_three_axes_need_an_image():
    with pytest.raises(ImageError, match="one to three spatial axes at a time, got shape"):
        median(3)(np.zeros((2, 2, 2, 2)))
    assert TilePlace.whole((3, 4)).axes == "yx"


@pytest.mark.parametrize("halo", [-1, 0.5, (1, -2), {"x": "3"}])
def test_a_halo_is_whole_numbers(halo):
    with pytest.raises(ImageError, match="halo of operation 'f' must be whole numbers of pixels"):
        Operation("f", np.negative, halo=halo)


def test_a_result_of_another_shape_or_type_is_an_error():
    with pytest.raises(ImageError, match=r"<lambda>' must return one value per pixel, was given"):
        operation(lambda pixels: pixels[1:])(np.zeros((3, 3)))
    with pytest.raises(ImageError, match=r"says that uint8 becomes uint8, and returned float64"):
        operation(lambda pixels: pixels / 2)(np.zeros((3, 3), "u1"))


def test_a_parameter_that_cannot_be_recorded_is_an_error():
    with pytest.raises(ImageError, match=r"a parameter of operation 'f' must be a number, text"):
        Operation("f", np.negative, {"where": object()})


def test_what_is_no_operation_is_an_error():
    image = open_image(np.zeros((4, 4)))
    with pytest.raises(ImageError, match=r"make one of a function with operation\(function"):
        process_lazily(image, np.sqrt)
    with pytest.raises(ImageError, match="a chain needs at least one operation, got none"):
        process_lazily(image)
    assert isinstance(chain(median(3)), Chain)
