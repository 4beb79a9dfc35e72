"""The lookup table is held against a union-find over every staged label."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from patchworks_core.seams.lookup import LookupTable, build_lut, offsets_of
from tests.core.oracles import edge_table


def merged_ids(lut: LookupTable) -> list[int]:
    """Spread the table out: the merged id of every staged label, in order."""
    n_tiles = len(lut.offsets) - 1
    return [int(i) for number in range(n_tiles) for i in lut.of_tile(number)[1:]]


def union_find(n: int, pairs: list[tuple[int, int]]) -> list[int]:
    """Return the first member of the component of each of n labels, the slow way."""
    parent = list(range(n))

    def root(i: int) -> int:
        while parent[i] != i:
            i = parent[i]
        return i

    for a, b in pairs:
        low, high = sorted((root(a), root(b)))
        parent[high] = low
    return [root(i) for i in range(n)]


@st.composite
def merges(draw):
    """Counts per tile, pairs of staged labels, and the area of each."""
    counts = draw(st.lists(st.integers(0, 5), min_size=1, max_size=6))
    labels = [(tile, i) for tile, count in enumerate(counts) for i in range(1, count + 1)]
    one = st.sampled_from(labels) if labels else st.nothing()
    pairs = draw(st.lists(st.tuples(one, one), max_size=12)) if labels else []
    pairs = [(a, b) for a, b in pairs if a[0] < b[0]]
    areas = draw(st.lists(st.integers(1, 9), min_size=len(labels), max_size=len(labels)))
    return counts, labels, pairs, areas


def build(counts, pairs, **options) -> LookupTable:
    table = edge_table([(a[0], a[1], b[0], b[1]) for a, b in pairs])
    return build_lut(table, np.array(counts, dtype=np.int64), **options)


@given(merges(), st.booleans(), st.data())
@settings(max_examples=150)
def test_of_several_tiles_it_gives_what_it_gives_of_each(case, sequential, data):
    counts, _, pairs, areas = case
    lut = build(counts, pairs, areas=np.array(areas, np.int64), min_size=4, sequential=sequential)
    numbers = data.draw(st.lists(st.sampled_from(range(len(counts))), min_size=1, unique=True))
    values, starts = lut.of_tiles(np.array(sorted(numbers)))
    expected = [lut.of_tile(number) for number in sorted(numbers)]
    assert values.dtype == expected[0].dtype
    for own, other in zip(np.split(values, starts[1:]), expected, strict=True):
        np.testing.assert_array_equal(own, other)


@given(merges())
@settings(max_examples=150)
def test_objects_are_numbered_by_first_appearance(case):
    counts, labels, pairs, _ = case
    roots = union_find(len(labels), [(labels.index(a), labels.index(b)) for a, b in pairs])
    order = list(dict.fromkeys(roots))
    lut = build(counts, pairs)
    assert merged_ids(lut) == [order.index(root) + 1 for root in roots]
    assert lut.n_objects == len(order) == lut.max_id
    assert lut.n_joined == len(labels) - len(order)


@given(merges())
@settings(max_examples=150)
def test_with_gaps_an_object_has_the_staged_id_of_its_first_label(case):
    counts, labels, pairs, _ = case
    roots = union_find(len(labels), [(labels.index(a), labels.index(b)) for a, b in pairs])
    lut = build(counts, pairs, sequential=False)
    assert merged_ids(lut) == [root + 1 for root in roots]
    assert all(i <= lut.max_id for i in merged_ids(lut))


@given(merges(), st.integers(0, 20), st.booleans())
@settings(max_examples=150)
def test_objects_below_the_least_size_become_background(case, min_size, sequential):
    counts, labels, pairs, areas = case
    roots = union_find(len(labels), [(labels.index(a), labels.index(b)) for a, b in pairs])
    size = {root: sum(a for a, r in zip(areas, roots, strict=True) if r == root) for root in roots}
    kept = [root for root in dict.fromkeys(roots) if size[root] >= min_size]
    ids = {root: (kept.index(root) if sequential else root) + 1 for root in kept}

    lut = build(counts, pairs, areas=np.array(areas), min_size=min_size, sequential=sequential)

    assert merged_ids(lut) == [ids.get(root, 0) for root in roots]
    assert lut.n_objects == len(kept)


def test_pieces_that_are_small_one_by_one_are_kept_where_they_are_large_together():
    lut = build([1, 1, 1], [((0, 1), (1, 1))], areas=np.array([3, 3, 3]), min_size=5)
    assert merged_ids(lut) == [1, 1, 0]


def test_a_least_size_needs_areas():
    with pytest.raises(ValueError, match="needs the area of every staged label, got none"):
        build([1], [], min_size=5)


@pytest.mark.parametrize("sequential", [True, False])
@pytest.mark.parametrize(
    ("n_staged", "dtype"), [(2**31 - 1, np.int32), (2**31, np.int64), (2**40, np.int64)]
)
def test_ids_are_int64_where_int32_would_overflow(n_staged, dtype, sequential):
    none = np.zeros(0, dtype=np.int64)
    lut = LookupTable(np.array([0, n_staged - 2, n_staged]), none, none, sequential)
    assert lut.dtype == dtype
    ids = lut.of_tile(1)
    assert ids.dtype == dtype
    assert ids.tolist() == [0, n_staged - 1, n_staged]


def test_joining_brings_sequential_ids_back_into_int32():
    joined = np.array([2**31], dtype=np.int64)
    offsets = np.array([0, 2**31 - 1, 2**31])
    lut = LookupTable(offsets, joined, np.array([7]))
    assert lut.dtype == np.int32
    assert lut.of_tile(1).tolist() == [0, 7]
    assert LookupTable(offsets, joined, np.array([7]), sequential=False).dtype == np.int64


@pytest.mark.parametrize("counts", [[0], [0, 0, 0]])
def test_tiles_without_objects_give_a_table_without_objects(counts):
    lut = build(counts, [])
    assert (lut.n_objects, lut.n_joined, lut.max_id, lut.dtype) == (0, 0, 0, np.int32)
    assert all(lut.of_tile(i).tolist() == [0] for i in range(len(counts)))


def test_offsets_do_not_wrap():
    counts = np.array([2**31 - 1] * 3, dtype=np.int32)
    assert offsets_of(counts).tolist() == [0, 2**31 - 1, 2**32 - 2, 3 * 2**31 - 3]
