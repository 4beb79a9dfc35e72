"""Trials of ``tests.faults.runs``: a few every time, many where all tests are asked for."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.faults.daemon_kills import KINDS as KINDS_OF_PROCESSES
from tests.faults.daemon_kills import Night
from tests.faults.runs import KINDS

ROOT = Path(__file__).parents[2]


def trials(*kinds: str, n_trials: int, seconds: int) -> list[dict[str, object]]:
    """Do trials in a process that can be forked, and return what became of each."""
    command = [sys.executable, "-m", "tests.faults.runs", *kinds, "--trials", str(n_trials)]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(ROOT), *sys.path])}
    done = subprocess.run(
        command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=seconds
    )
    assert done.returncode == 0, done.stderr[-3000:]
    print(done.stdout)
    return [json.loads(line) for line in done.stdout.splitlines() if line.startswith("{")]


@pytest.mark.timeout(1200)
def test_a_run_that_was_stopped_at_a_step_is_completed_by_the_same_call():
    became = trials("step", "ENOSPC", "EIO", n_trials=2, seconds=1100)
    assert [t for t in became if t["faults"]] == []
    assert len(became) == 6
    assert all(t["was_hit"] for t in became if t["kind"] == "kill at step")
    assert sum(t["was_hit"] for t in became) > 3
    assert max(t["seconds"] for t in became) < 100


@pytest.mark.slow
@pytest.mark.timeout(7200)
@pytest.mark.parametrize("kind", KINDS)
def test_whatever_is_killed_and_whoever_meets_the_result_is_that_of_one_quiet_call(kind):
    n_trials = 50 if "+" in kind else 100
    became = trials(kind, n_trials=n_trials, seconds=7000)
    assert [trial["faults"] for trial in became] == [[]] * n_trials


@pytest.mark.slow
@pytest.mark.timeout(900)
def test_a_home_whose_workers_runs_and_daemon_are_killed_comes_to_rest_with_the_right_labels(
    tmp_path,
):
    """By `python -m tests.faults.daemon_kills`, which does hundreds."""
    night = Night(tmp_path / "night", seed=4)
    try:
        assert len(list(night.kill(6))) == 6
        night.rest()
    finally:
        night.stop()
    night.judge()
    assert night.faults == []
    assert {kill.kind for kill in night.kills} == set(KINDS_OF_PROCESSES)


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_a_damaged_file_of_a_home_is_done_again_named_or_no_result():
    command = [sys.executable, "-m", "tests.faults.home_damage", "--every", "17", "--seed", "1"]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join([str(ROOT), *sys.path])}
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout[-3000:] + done.stderr[-3000:]
    became = [json.loads(line) for line in done.stdout.splitlines() if line.startswith("{")]
    assert {damage["outcome"] for damage in became} <= {"as unharmed", "refused", "left"}
    assert len(became) > 10
