"""Runs of pixels in which two views have the same pair of labels."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from patchworks_core.seams.paired_runs import PairedRuns


@given(
    seed=st.integers(0, 2**32 - 1),
    shape=st.lists(st.integers(0, 7), min_size=1, max_size=4).map(tuple),
    n_ids=st.integers(1, 4),
)
def test_runs_give_both_views_back_and_are_as_long_as_can_be(seed, shape, n_ids):
    rng = np.random.default_rng(seed)
    a, b = rng.integers(0, n_ids, (2, *shape)).astype(np.uint16)
    runs = PairedRuns.of(a, b)
    np.testing.assert_array_equal(np.repeat(runs.a, runs.lengths), a.ravel())
    np.testing.assert_array_equal(np.repeat(runs.b, runs.lengths), b.ravel())
    index = np.broadcast_to(np.arange(shape[0]).reshape(-1, *(1,) * (len(shape) - 1)), shape)
    np.testing.assert_array_equal(np.repeat(runs.index, runs.lengths), index.ravel())
    of_run = np.stack([runs.a, runs.b, runs.index])
    assert (of_run[:, 1:] != of_run[:, :-1]).any(axis=0).all()


@pytest.mark.parametrize("dtypes", [(np.uint16, np.int32), (np.int32, np.uint16)])
def test_views_may_differ_in_type_and_lie_anywhere_in_memory(dtypes):
    whole = np.random.default_rng(1).integers(0, 3, (9, 8, 7))
    a, b = (whole.astype(dtype)[2:7, ::2, 1:5] for dtype in dtypes)
    runs = PairedRuns.of(a, b)
    np.testing.assert_array_equal(np.repeat(runs.a, runs.lengths).reshape(a.shape), a)
    assert (runs.a.dtype, runs.b.dtype) == dtypes
