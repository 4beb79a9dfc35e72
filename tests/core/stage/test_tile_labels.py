"""What a segmentation function may return, and how it is numbered."""

from __future__ import annotations

from itertools import product

import dask.array as da
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp

from patchworks_core.errors import TileOutputError
from patchworks_core.seams.strips import HIGH, LOW, cut_strip
from patchworks_core.stage.tile_labels import check_labels, number_labels
from patchworks_core.tiles.grid import plan_grid
from patchworks_core.tiles.regions import Region
from tests.core.oracles import assert_same_partition

SHAPE = (2, 3)
WHERE = "image 'a', tile (0, 3)"


def array(value, dtype=None):
    return np.full(SHAPE, value, dtype=dtype)


@pytest.mark.parametrize(
    ("labels", "words"),
    [
        (array(1.2), "returned dtype float64 with values such as 1.2; labels are whole numbers"),
        (array(np.nan), "returned dtype float64 with values such as nan"),
        (array(2.0), "returned dtype float64; labels are whole numbers: return an integer dtype"),
        (array(-1), "returned -1 at pixel (0, 0) of the tile; labels are >= 0"),
        (array(True), "returned a mask (dtype bool); label its objects first"),
        (np.zeros((3, 2), int), "was given shape (2, 3) and returned (3, 2)"),
        (np.zeros((1, 2, 3), int), "was given shape (2, 3) and returned (1, 2, 3)"),
        (array(1, object), "returned dtype object; labels are whole numbers"),
        (array(1, complex), "returned dtype complex128; labels are whole numbers"),
        ([[1, 2, 3]] * 2, "returned builtins.list; it must return a numpy array"),
        (None, "returned builtins.NoneType"),
        (da.zeros(SHAPE, dtype=int), "returned dask.array.core.Array"),
        (np.ma.masked_equal(array(3), 3), "MaskedArray; it must return a numpy array"),
    ],
)
def test_what_is_no_label_image_is_refused_with_rule_value_and_place(labels, words):
    with pytest.raises(TileOutputError) as caught:
        check_labels(labels, shape=SHAPE, where=WHERE)
    assert words in str(caught.value)
    assert WHERE in str(caught.value)


def test_the_place_of_a_negative_label_is_named():
    labels = array(1)
    labels[1, 2] = -7
    with pytest.raises(TileOutputError, match=r"returned -7 at pixel \(1, 2\)"):
        check_labels(labels, shape=SHAPE, where=WHERE)


@pytest.mark.parametrize("dtype", [f"{kind}{size}" for kind in "iu" for size in (1, 2, 4, 8)])
def test_every_integer_type_is_taken_as_it_is(dtype):
    labels = array(3, dtype)
    assert check_labels(labels, shape=SHAPE, where=WHERE) is labels
    numbered = number_labels(labels, Region((0, 0), SHAPE), where=WHERE)
    assert (numbered.n_core, numbered.n_seen) == (1, 1)
    np.testing.assert_array_equal(numbered.pixels, array(1))
    assert numbered.pixels.dtype == np.uint16
    assert numbered.areas.tolist() == [6]


@pytest.mark.parametrize(
    "ids",
    [
        [0, 2**63 + 1, 2**63 + 2, 2**64 - 1],
        [0, 2**32, 2**32 + 1, 2**33],
        [1, 2**31 - 1, 2**31, 2**32 - 1],
        [5, 1000, 10**6, 10**12],
    ],
)
def test_large_ids_and_gaps_stay_different_objects(ids):
    labels = np.array([ids], dtype=np.uint64)
    checked = check_labels(labels, shape=labels.shape, where=WHERE)
    numbered = number_labels(checked, Region((0, 0), labels.shape), where=WHERE)
    first = 0 if ids[0] == 0 else 1
    np.testing.assert_array_equal(numbered.pixels[0], np.arange(4) + first)


@given(
    labels=hnp.arrays(
        np.uint64,
        hnp.array_shapes(min_dims=1, max_dims=3, max_side=6),
        elements=st.one_of(st.integers(0, 5), st.integers(0, 2**64 - 1)),
    ),
    data=st.data(),
)
@settings(max_examples=150)
def test_numbering_keeps_the_objects_and_puts_those_of_the_core_first(labels, data):
    start = tuple(data.draw(st.integers(0, n - 1)) for n in labels.shape)
    stop = tuple(data.draw(st.integers(a + 1, n)) for a, n in zip(start, labels.shape, strict=True))
    core = Region(start, stop)
    before = labels.copy()

    numbered = number_labels(labels, core, where=WHERE)

    np.testing.assert_array_equal(labels, before)
    assert_same_partition(numbered.pixels, labels)
    of_core, ids = np.unique(labels[core.slices], return_index=True)
    wanted = [i for label, i in zip(of_core, ids, strict=True) if label]
    np.testing.assert_array_equal(
        numbered.pixels[core.slices].ravel()[wanted], np.arange(1, numbered.n_core + 1)
    )
    seen = np.unique(numbered.pixels[numbered.pixels > 0])
    np.testing.assert_array_equal(seen, np.arange(1, numbered.n_seen + 1))


def test_a_label_seen_only_in_the_halo_is_numbered_beyond_the_count():
    numbered = number_labels(np.array([1, 0, 4, 9]), Region((2,), (4,)), where=WHERE)
    assert (numbered.n_core, numbered.n_seen) == (2, 3)
    np.testing.assert_array_equal(numbered.pixels, [3, 0, 1, 2])


def test_a_read_only_array_is_taken():
    labels = array(2)
    labels.flags.writeable = False
    checked = check_labels(labels, shape=SHAPE, where=WHERE)
    assert number_labels(checked, Region((0, 0), SHAPE), where=WHERE).n_core == 1


@pytest.mark.parametrize("dtype", [np.int32, np.uint64])
def test_a_tile_without_objects_has_none(dtype):
    numbered = number_labels(array(0, dtype), Region((0, 0), SHAPE), where=WHERE)
    assert (numbered.n_core, numbered.n_seen, numbered.pixels.any()) == (0, 0, False)


def test_an_array_without_pixels_has_no_objects():
    empty = check_labels(np.zeros((0, 4), int), shape=(0, 4), where=WHERE)
    numbered = number_labels(empty, Region((0, 0), (0, 4)), where=WHERE)
    assert (numbered.n_core, numbered.n_seen, numbered.pixels.shape) == (0, 0, (0, 4))


@pytest.mark.parametrize("halo", [0, 8])
def test_labels_that_are_not_kept_are_not_copied_and_strips_of_them_are_the_same(halo):
    edge = 256
    tiles = {"tile_shape": edge - 2 * halo, "overlap": halo}
    grid = plan_grid("yx", (3 * (edge - 2 * halo),) * 2, **tiles)
    tile = grid.tile((1, 1))
    labels = np.repeat(np.arange(1, edge // 16 + 1, dtype="i4"), 16)[:, None] * np.ones(edge, "i4")
    kept, lent = (
        number_labels(labels, tile.core_inside, where=WHERE, keeps=keeps) for keeps in (True, False)
    )
    assert kept.pixels.dtype == lent.dtype == np.uint16
    assert (lent.pixels is labels) == (halo == 0 or kept.n_core == kept.n_seen)
    assert not np.shares_memory(kept.pixels, labels)
    for axis, side in product((0, 1), (LOW, HIGH)):
        strips = [
            cut_strip(grid, tile, each.pixels, axis, side, each.dtype) for each in (kept, lent)
        ]
        assert strips[0].dtype == strips[1].dtype
        np.testing.assert_array_equal(*strips)
