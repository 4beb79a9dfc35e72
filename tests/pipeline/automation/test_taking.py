"""A run that was killed says nothing of its image; one that failed, or crashed, does."""

from __future__ import annotations

import signal
import time

import dagster as dg
import pytest
from dagster._core.events import JobFailureData, RunFailureReason
from dagster._core.storage.dagster_run import DagsterRun
from dagster._core.utils import make_new_run_id
from dagster._utils import get_run_crash_explanation

from patchworks_pipeline.automation.taking import (
    RUN_KEY,
    TRIES,
    TRIES_OF_KILLED,
    State,
    Taking,
    taking_of,
)

NAME = "a-1"


def end(instance: dg.DagsterInstance, **how: object) -> DagsterRun:
    """Enter a run that has ended: of its own fault, killed, or with an exit code of its process."""
    tags = {RUN_KEY: NAME}
    status = dg.DagsterRunStatus.STARTED
    run = DagsterRun("plan_image", run_id=make_new_run_id(), status=status, tags=tags)
    instance.run_storage.add_run(run)
    code, reason = how.get("code"), how.get("reason")
    if isinstance(code, int):
        text = get_run_crash_explanation(f"Run execution process for {run.run_id}", code)
        instance.report_engine_event(f"[DagsterApiServer] {text}", run)
    data = None
    if isinstance(reason, RunFailureReason):
        data = JobFailureData(error=None, failure_reason=reason)
    instance.report_run_failed(run, job_failure_data=data)
    return run


def taking(instance: dg.DagsterInstance, seconds: float = 0) -> Taking:
    """Return what came of it, so many seconds from now."""
    filters = dg.RunsFilter(job_name="plan_image")
    return taking_of(instance, NAME, filters, now=int(time.time() + seconds))


KILLED = {
    "SIGKILL": {"code": -signal.SIGKILL},
    "SIGTERM": {"code": -signal.SIGTERM},
    "its code server went with it": {},
    "it was told to stop": {"reason": RunFailureReason.UNEXPECTED_TERMINATION},
    "it never started": {"reason": RunFailureReason.START_TIMEOUT},
}

FAILED = {
    "a step failed": {"reason": RunFailureReason.STEP_FAILURE},
    "its process crashed": {"code": -signal.SIGSEGV},
    "its process ended by itself": {"code": 3},
    "it could not be loaded": {"reason": RunFailureReason.JOB_INITIALIZATION_FAILURE},
}


@pytest.mark.parametrize("how", KILLED)
def test_a_run_that_was_killed_does_not_count_as_a_try_of_its_image(instance, how):
    for _ in range(TRIES + 1):
        end(instance, **KILLED[how])
    assert taking(instance).state is State.WAITS
    assert taking(instance, 90).state is State.DUE, "no longer than the first time"
    assert taking(instance, 90).run_key(NAME) == f"{NAME}~2", "all had the first key"


@pytest.mark.parametrize("how", FAILED)
def test_a_run_that_failed_or_crashed_by_itself_counts(instance, how):
    for _ in range(TRIES - 1):
        end(instance, **FAILED[how])
    assert taking(instance, 90).state is State.WAITS
    end(instance, **KILLED["SIGKILL"])
    assert taking(instance, 90).state is State.DUE
    end(instance, **FAILED[how])
    given_up = taking(instance, 10**6)
    assert given_up.state is State.GIVEN_UP
    assert given_up.reason.startswith(f"{TRIES} runs failed, the last one of: ")


def test_what_is_killed_again_and_again_is_given_up_with_the_words_of_its_end(instance):
    for _ in range(TRIES_OF_KILLED):
        end(instance, **KILLED["SIGKILL"])
    given_up = taking(instance, 10**6)
    assert given_up.state is State.GIVEN_UP
    assert given_up.reason.startswith(f"{TRIES_OF_KILLED} runs were killed, the last one of: Run")
    assert "was terminated by signal 9 (SIGKILL)" in given_up.reason
