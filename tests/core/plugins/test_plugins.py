"""The built-in segmentation functions, in tiles and on the whole image."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import ndimage

from patchworks_core import tile_process
from patchworks_core.errors import SegmentationError
from patchworks_core.images.image import open_image
from patchworks_core.plugins.segmentation import declaration_of
from patchworks_core.plugins.threshold import gaussian_halo, smooth, threshold
from patchworks_core.plugins.watershed import find_seeds, watershed
from patchworks_core.statistics.measuring import measure
from patchworks_core.tiles.regions import Region


def statistics_of(pixels):
    regions = [Region((0,) * pixels.ndim, pixels.shape)]
    return measure(open_image(pixels), regions)


def disks(shape, centres, radius):
    grid = np.indices(shape)
    image = np.zeros(shape, "uint8")
    for centre in centres:
        distance = sum((g - c) ** 2 for g, c in zip(grid, centre, strict=True))
        image[distance <= radius**2] = 200
    return image


def same_partition(a, b):
    """True where two label images differ in nothing but the ids."""
    pairs = np.unique(np.stack([a.ravel(), b.ravel()]), axis=1)
    return all(len(np.unique(column)) == pairs.shape[1] for column in pairs) and (
        np.array_equal(a == 0, b == 0)
    )


def test_threshold_declares_that_it_labels_connected_components():
    assert declaration_of(threshold).merge == "touching"
    assert declaration_of(watershed).merge == "auto"
    assert declaration_of(watershed).version == declaration_of(threshold).version == "2"


@pytest.mark.parametrize("shape", [(50,), (20, 20), (1, 20, 20), (6, 9, 9)])
def test_threshold_labels_components_of_any_number_of_axes(shape):
    pixels = np.random.default_rng(0).integers(0, 255, shape, dtype="uint8")
    labels = threshold(pixels, value=130)
    assert labels.dtype == np.int32
    np.testing.assert_array_equal(labels, ndimage.label(pixels > 130)[0])


def test_connectivity_decides_whether_corners_join():
    pixels = np.eye(5)
    assert threshold(pixels, value=0.5).max() == 5
    assert threshold(pixels, value=0.5, connectivity=2).max() == 1
    with pytest.raises(SegmentationError, match="must be 1 to 2 for a tile of 2 axes, got 3"):
        threshold(pixels, value=0.5, connectivity=3)


def test_dark_objects_are_the_complement():
    pixels = np.array([[9, 9, 1], [9, 9, 9], [2, 9, 9]])
    assert threshold(pixels, value=2, dark_objects=True).tolist() == [
        [0, 0, 1],
        [0, 0, 0],
        [2, 0, 0],
    ]


def test_nan_is_background():
    assert not threshold(np.full((3, 3), np.nan), value=0).any()
    assert not threshold(np.full((3, 3), np.nan), value=0, dark_objects=True).any()


@pytest.mark.parametrize("function", [threshold, watershed])
def test_a_threshold_is_never_taken_from_a_tile(function):
    with pytest.raises(SegmentationError, match=r"never from a tile, .*; pass value="):
        function(np.zeros((8, 8)))


def test_the_threshold_of_the_image_is_used():
    pixels = disks((40, 40), [(10, 10), (30, 30)], 5)
    np.testing.assert_array_equal(
        threshold(pixels, statistics=statistics_of(pixels)), threshold(pixels, value=100)
    )


@given(seed=st.integers(0, 2**32 - 1), sigma=st.floats(0.1, 3), dtype=st.sampled_from("Bfd"))
@settings(deadline=None, max_examples=40)
def test_smoothing_in_tiles_with_its_halo_is_smoothing_the_whole(seed, sigma, dtype):
    pixels = np.random.default_rng(seed).integers(0, 255, (60, 11)).astype(dtype)
    halo = gaussian_halo(sigma)
    whole = smooth(pixels, sigma)
    np.testing.assert_array_equal(smooth(pixels[: 30 + halo], sigma)[:30], whole[:30])
    np.testing.assert_array_equal(smooth(pixels[30 - halo :], sigma)[halo:], whole[30:])


def test_a_negative_sigma_is_an_error():
    with pytest.raises(SegmentationError, match="sigma must be 0 or more pixels, .*got -1"):
        threshold(np.zeros((4, 4)), value=0, sigma=-1)


@pytest.mark.parametrize(
    ("shape", "centres"),
    [((40, 60), [(20, 20), (20, 37)]), ((40, 40, 60), [(20, 20, 20), (20, 20, 37)])],
)
def test_touching_balls_are_split(shape, centres):
    labels = watershed(disks(shape, centres, 10), value=100)
    assert labels.dtype == np.int32
    assert labels.max() == 2
    assert len({int(labels[c]) for c in centres}) == 2


def test_a_plane_of_a_volume_is_segmented_as_an_image():
    pixels = disks((40, 60), [(20, 20), (20, 37)], 10)
    labels = watershed(pixels[None], value=100, spacing=(3, 1, 1))
    np.testing.assert_array_equal(labels[0], watershed(pixels, value=100))


def test_thick_planes_of_a_ball_are_one_object():
    z, y, x = np.ogrid[-4:5, -20:21, -20:21]
    ball = ((5 * z) ** 2 + y**2 + x**2 < 300).astype("uint8")
    assert watershed(ball, value=0.5, spacing=(5, 1, 1)).max() == 1


def test_small_holes_are_filled_and_large_ones_are_not():
    pixels = disks((60, 60), [(30, 30)], 20)
    pixels[29:32, 29:32] = 0
    assert watershed(pixels, value=100)[30, 30] > 0
    assert watershed(pixels, value=100, sigma=0, hole_size=0)[30, 30] == 0


def test_a_small_object_beside_a_large_one_keeps_a_seed():
    pixels = disks((60, 60), [(25, 25)], 12)
    pixels[25, 40:42] = 200
    assert watershed(pixels, value=100, sigma=0).max() == 2


def test_a_flat_top_is_one_seed():
    flat = np.zeros((9, 30))
    flat[3:6, 3:27] = 1
    assert find_seeds(flat, flat > 0, [2, 2]).max() == 1


@given(seed=st.integers(0, 2**32 - 1))
@settings(deadline=None, max_examples=30)
def test_every_component_has_a_seed(seed):
    mask = np.random.default_rng(seed).random((20, 20)) < 0.5
    seeds = find_seeds(ndimage.distance_transform_edt(mask), mask, [3, 3])
    components, n = ndimage.label(mask)
    assert len(np.unique(components[seeds > 0])) == n
    for number in range(1, seeds.max() + 1):
        assert len(np.unique(components[seeds == number])) == 1


@pytest.mark.parametrize("keywords", [{"spacing": (1,)}, {"spacing": (0, 1)}, {"min_distance": 0}])
def test_parameters_out_of_range_are_errors(keywords):
    name = next(iter(keywords))
    with pytest.raises(SegmentationError, match=f"{name} .*above 0"):
        watershed(np.zeros((8, 8)), value=0, **keywords)


@given(seed=st.integers(0, 2**32 - 1))
@settings(deadline=None, max_examples=20)
def test_isolated_objects_are_labelled_alike_in_any_tile_that_holds_them(seed):
    rng = np.random.default_rng(seed)
    pixels = disks((70, 90), [(35, 38), (35, 38 + int(rng.integers(8, 18)))], 9)
    whole = watershed(pixels, value=100)
    y, x = rng.integers(0, 12, 2)
    tile = watershed(pixels[y : 70 - x, x : 90 - y], value=100)
    assert same_partition(tile, whole[y : 70 - x, x : 90 - y])


@pytest.mark.parametrize("function", [threshold, watershed])
def test_an_empty_tile_has_no_labels(function):
    assert not function(np.zeros((9, 9), "uint8"), value=1).any()


@pytest.mark.shared_data
def test_real_nuclei_in_tiles_are_labelled_as_in_the_whole(shared_data):
    image = pytest.importorskip("PIL.Image")
    with image.open(shared_data / "dsb2018_mosaic_4096.png") as opened:
        pixels = np.asarray(opened.crop((0, 0, 800, 600)))
    whole = watershed(pixels, value=42)
    halo, face = 32, 400
    left = watershed(pixels[:, : face + halo], value=42)[:, :face]
    core = whole[:, :face]
    objects = np.unique(core[core > 0])
    differing = [k for k in objects if len(np.unique(left[core == k])) > 1]
    assert len(objects) > 100
    assert len(differing) <= 0.01 * len(objects)


@pytest.mark.parametrize("dark_objects", [False, True])
@pytest.mark.parametrize("function", ["threshold", "watershed"])
@pytest.mark.parametrize(
    ("dtype", "methods"),
    [
        ("u1", ["otsu", "li", "yen"]),
        ("u2", ["otsu"]),
        ("u4", ["li"]),
        ("i2", ["yen"]),
        ("f4", ["otsu", "li", "yen"]),
        ("f8", ["li"]),
        ("bool", ["otsu"]),
    ],
)
def test_an_image_of_one_value_has_no_objects(function, dtype, methods, dark_objects):
    pixels = np.full((20, 40), 7, dtype)
    for method in methods:
        options = {"method": method, "dark_objects": dark_objects, "sigma": 1.3}
        labels = tile_process(pixels, function, tile_shape=20, overlap=4, parameters=options)
        assert labels.max() == 0
