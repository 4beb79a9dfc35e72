"""Killed, or met by a full disk, at any step: the same call again gives the same bytes."""

from __future__ import annotations

from collections import Counter

import pytest

from tests.faults import damage, points, two_calls
from tests.faults.functions import trials as function_trials
from tests.faults.trials import CALLS, FAULTS

SEED = 13


def test_a_call_that_was_stopped_anywhere_is_completed_by_the_same_call(tmp_path):
    done = list(points.trials(tmp_path / "points", seed=SEED, n=24))
    counts = Counter(t.fault for t in done)
    assert set(counts) == set(FAULTS)
    assert min(counts.values()) >= 5
    assert {t.call for t in done} == set(CALLS)
    assert sum(t.first.code != 0 for t in done) >= 3, "some were killed"
    assert sum(bool(t.first.error) for t in done) >= 3, "some met an error"
    assert [(t.call, t.fault, t.at, t.faults) for t in done if t.faults] == []


@pytest.mark.slow
@pytest.mark.timeout(3000)
def test_a_call_that_was_stopped_at_each_step_is_completed_by_the_same_call(tmp_path):
    done = list(points.trials(tmp_path / "points", seed=SEED))
    assert len(done) > 500
    assert [(t.call, t.fault, t.at, t.faults) for t in done if t.faults] == []


@pytest.mark.parametrize("every", [41, pytest.param(1, marks=pytest.mark.slow)])
def test_a_damaged_file_is_done_again_or_named_and_never_merged(every, tmp_path):
    done = list(damage.trials(tmp_path / "damage", seed=SEED, every=every))
    assert [each for each in done if each.is_silent] == []
    assert sum(each.outcome == "same bytes" for each in done) >= len(done) // 3
    assert all(each.n_tiles <= 1 for each in done if each.kind == "tile block")


@pytest.mark.parametrize(
    "n", [4, pytest.param(50, marks=[pytest.mark.slow, pytest.mark.timeout(900)])]
)
def test_of_two_calls_on_one_place_each_ends_right_or_names_the_other(n, tmp_path):
    done = list(two_calls.trials(tmp_path / "pairs", seed=SEED, n=n))
    assert [(p.kind, p.functions, p.options, p.pause, p.faults) for p in done if p.faults] == []
    assert len(done) == n * len(two_calls.KINDS)
    assert any(pair.n_refused for pair in done), "some met"


@pytest.mark.slow
@pytest.mark.parametrize("what", ["hangs", "leaks", "crashes", "ends the process", "forks"])
def test_a_bad_function_fails_its_tile_and_no_other_in_processes(what, tmp_path):
    (row,) = function_trials(tmp_path / "functions", ("processes",), (what,))
    assert row.n_others == 3
    assert row.tile == "done" if what == "forks" else row.tile.startswith("failed by name")
