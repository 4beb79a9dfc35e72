"""What came of the runs that sensors asked for: a request is no result.

An acquisition is taken once a run has planned and measured it, an image is done once it is staged
and merged. Where a run failed it is tried again later, a few times and ever more rarely, for most
of what can happen to a run passes. A run that was killed says nothing of its image: the machine, or
who restarted it, is at fault. It is tried again more often, though not for ever, as what takes all
memory is killed too.
"""

import errno
from collections.abc import Mapping
from dataclasses import dataclass, field
from enum import Enum

import dagster as dg

from patchworks_core.errors import PlanError
from patchworks_pipeline.automation.events import IN_PROGRESS, was_killed, why_failed
from patchworks_pipeline.records import ImageFolder

RUN_KEY = "dagster/run_key"

VERSION = "patchworks/version"
"""Tag of a run that plans an acquisition: the signature of what landed."""

TRIES = 3
"""Runs that may fail before a person has to look."""

TRIES_OF_KILLED = 12
"""Runs that may be killed before a person has to look; the daemon starts two of three anew."""

SECONDS_TO_TRY_AGAIN = (60, 600)
"""From the end of the first run that failed, of the second."""


_OF_THE_STORE = {errno.ENOSPC, errno.EDQUOT, errno.EROFS}
"""Faults that an image has no part in: they are told, and no image is given up for them."""


class State(Enum):
    """How far it is, what runs were asked for."""

    NO_RUN = "it has no run"
    GOES_ON = "a run is at it"
    DONE = "a run succeeded"
    WAITS = "a run failed, and the next is not due yet"
    DUE = "a run failed, and the next is due"
    GIVEN_UP = "too many runs failed, or a person ended one"


@dataclass(frozen=True, slots=True)
class Taking:
    """What came of the runs that were asked for under one name."""

    state: State
    n_runs: int = 0
    """How many were asked for; some may no longer be in the books."""

    reason: str = ""
    """Why the last one failed."""

    was_killed: bool = False
    """True where the last one was ended from outside."""

    @property
    def is_due(self) -> bool:
        """True where a run is to be asked for now."""
        return self.state in (State.NO_RUN, State.DUE)

    @property
    def is_under_way(self) -> bool:
        """True where a run is at it, or will be."""
        return self.state in (State.GOES_ON, State.WAITS)

    def run_key(self, name: str) -> str:
        """Return the key of the next run; a daemon starts none twice."""
        return name if self.n_runs == 0 else f"{name}~{self.n_runs + 1}"


@dataclass(slots=True)
class Registering:
    """Acquisitions that could not be registered, of which there is no run: how often, and when."""

    now: int
    """Seconds since 1970."""

    failed: dict[str, list[int]] = field(default_factory=dict)
    """How many times, and when last, by version."""

    @classmethod
    def of_cursor(cls, record: object, *, now: int) -> "Registering":
        """Take up what a cursor says; what is none of it is left out."""
        entries = record.items() if isinstance(record, Mapping) else ()
        return cls(now, {str(name): entry for name, entry in entries if _is_count(entry)})

    def is_early(self, name: str) -> bool:
        """Tell whether a version failed, and is not due again."""
        if name not in self.failed:
            return False
        n, last = self.failed[name]
        return 0 <= self.now - last < SECONDS_TO_TRY_AGAIN[min(n, len(SECONDS_TO_TRY_AGAIN)) - 1]

    def note(self, name: str, error: Exception) -> bool:
        """Count a try that failed; True where a person has to look."""
        if isinstance(error, OSError) and error.errno in _OF_THE_STORE:
            return False
        n = self.failed.pop(name, [0, 0])[0] + 1
        if n < TRIES:
            self.failed[name] = [n, self.now]
        return n >= TRIES


def _is_count(entry: object) -> bool:
    """Tell whether an entry of a cursor says how many times and when."""
    return isinstance(entry, list) and len(entry) == 2 and all(type(n) is int for n in entry)


def is_planned(folder: ImageFolder) -> bool:
    """Tell whether an image was planned and measured in the content it has now."""
    if not (folder.has("plan.json") and folder.has("statistics.json")):
        return False
    try:
        plan = folder.plan()
    except PlanError:
        return False
    return plan.image.fingerprint == folder.image(plan).fingerprint


def taking_of(
    instance: dg.DagsterInstance, name: str, filters: dg.RunsFilter, *, now: int
) -> Taking:
    """Return what came of the runs that were asked for under a name.

    Parameters
    ----------
    instance : DagsterInstance
    name : str
        The key of the first of them.
    filters : RunsFilter
        Of runs of the same job for the same image.
    now : int
        Seconds since 1970.
    """
    records = [
        record
        for record in instance.get_run_records(filters)
        if record.dagster_run.tags.get(RUN_KEY, "").partition("~")[0] == name
    ]
    if not records:
        return Taking(State.NO_RUN)
    last = records[0].dagster_run
    # A person may delete a run that failed: a count would give a number that is taken.
    n_runs = max(_number_of(record.dagster_run) for record in records)
    if any(record.dagster_run.is_success for record in records):
        return Taking(State.DONE, n_runs)
    if last.status in IN_PROGRESS:
        return Taking(State.GOES_ON, n_runs)
    if last.status is dg.DagsterRunStatus.CANCELED:
        return Taking(State.GIVEN_UP, n_runs, "its run was canceled")
    is_killed = was_killed(instance, last)
    n_alike = sum(was_killed(instance, record.dagster_run) == is_killed for record in records)
    if n_alike % (TRIES_OF_KILLED if is_killed else TRIES) == 0:
        what = "were killed" if is_killed else "failed"
        reason = f"{n_alike} runs {what}, the last one of: {why_failed(instance, last)}"
        return Taking(State.GIVEN_UP, n_runs, reason, is_killed)
    wait = SECONDS_TO_TRY_AGAIN[
        0 if is_killed else min(n_alike % TRIES, len(SECONDS_TO_TRY_AGAIN)) - 1
    ]
    # Where the clock was set back, less than no time has gone by: it is not waited for.
    is_early = 0 <= now - int(records[0].end_time or 0) < wait
    return Taking(State.WAITS if is_early else State.DUE, n_runs, was_killed=is_killed)


def _number_of(run: dg.DagsterRun) -> int:
    """Return which run of its name it is, counted from 1."""
    _, _, number = run.tags[RUN_KEY].partition("~")
    return int(number) if number.isdecimal() else 1
