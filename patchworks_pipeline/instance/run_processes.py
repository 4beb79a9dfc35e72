"""Which process a run is in, and the end of runs whose process is gone.

A run of the command line is in the process of the command. Killed, it cannot say that it ended: it
would go on for ever in the books and keep its slot of the instance's pool, for which every later
run waits. So it carries host, process and start of the process in its tags, and whoever opens the
home looks: a run whose process is gone is marked as failed, and its slots are freed.

A process id is given again to others, so a process is known by its start too. A run of another
host, or of another container, is never judged: nobody here can see its process. Nor is a run that
a code server started: `patchworks_pipeline.launcher` looks after those.
"""

import os
import socket
import time
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path

import dagster as dg
import psutil
from dagster._core.storage.tags import GRPC_INFO_TAG, MAX_RETRIES_TAG
from dagster_shared.check import ParameterCheckError
from sqlalchemy.exc import SQLAlchemyError
from yaml import YAMLError

from patchworks_core.errors import PlanError
from patchworks_pipeline.instance.home import opening

HOST, PROCESS, STARTED, RUN = (
    "patchworks/host",
    "patchworks/process",
    "patchworks/process_started",
    "patchworks/run",
)
"""Tags of a run of the command line. The last is its own id: a run that is made from another in the
UI takes over the tags of that, and is none of its process."""

OPEN = [
    dg.DagsterRunStatus.NOT_STARTED,
    dg.DagsterRunStatus.STARTING,
    dg.DagsterRunStatus.STARTED,
    dg.DagsterRunStatus.CANCELING,
]
"""States of a run that is in a process, or says so."""

SILENT_SECONDS = 600
"""A run of 0.1.0 has no tags: it must also have said nothing for so long."""

SECONDS_TO_BEGIN = 60
"""A run that waits for its slot is not in the books yet; so long nobody takes it for lost."""

_LINUX = Path("/proc/sys/kernel/random/boot_id")


@contextmanager
def open_instance(home: Path) -> Iterator[dg.DagsterInstance]:
    """Open the instance of a home that this process was pointed to, and end its dead runs.

    Raises
    ------
    PlanError
        If its settings or its tables are damaged.
    """
    try:
        with opening(home):
            opened = dg.DagsterInstance.get()
            end_dead_runs(opened)
    except (dg.DagsterError, ParameterCheckError, SQLAlchemyError, YAMLError) as error:
        raise PlanError(
            f"the Dagster instance at {home / 'dagster'} cannot be opened: {error}; restore what "
            "is damaged there, or take another --home"
        ) from error
    with opened as instance:
        yield instance


def tags_of_process(run_id: str) -> dict[str, str]:
    """Return the tags of a run in this process."""
    return {
        HOST: this_host(),
        PROCESS: str(os.getpid()),
        STARTED: started(os.getpid()) or "",
        RUN: run_id,
        MAX_RETRIES_TAG: "0",  # by the daemon: the person who called takes it up with the same call
    }


def this_host() -> str:
    """Return the name of what a process id counts in: this machine, or this container of it."""
    try:
        space = os.readlink("/proc/self/ns/pid").strip("pid:[]")
    except OSError:
        space = ""
    try:
        machine = Path("/etc/machine-id").read_text().strip()[:8]
    except OSError:
        machine = ""
    return "/".join(part for part in (socket.gethostname(), machine, space) if part)


def started(pid: int) -> str | None:
    """Return when a process of this host began, exact and whatever the clock does; None if gone."""
    try:
        process = psutil.Process(pid)
        if process.status() == psutil.STATUS_ZOMBIE:
            return None
        if not _LINUX.exists():
            return repr(process.create_time())
        # Ticks since the boot: seconds since 1970 move when the clock is set.
        fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    except (psutil.NoSuchProcess, FileNotFoundError, ProcessLookupError):
        return None
    return f"{_LINUX.read_text().strip()}/{fields[19]}"


def why_gone(run: dg.DagsterRun) -> str | None:
    """Return why a run of the command line has no process any more; None where it may have one."""
    tags = run.tags
    if tags.get(RUN) != run.run_id or GRPC_INFO_TAG in tags or tags.get(HOST) != this_host():
        return None
    pid = int(tags[PROCESS])
    if started(pid) == tags[STARTED]:
        return None
    return f"its process {pid} on {tags[HOST].partition('/')[0]} is gone: killed, or the power went"


def end_dead_runs(instance: dg.DagsterInstance) -> dict[str, str]:
    """Mark runs whose process is gone as failed and free the slots they hold; say which and why."""
    ended: dict[str, str] = {}
    for run in instance.get_runs(dg.RunsFilter(statuses=OPEN)):
        why = why_gone(run) or _why_silent(instance, run)
        if why is None:
            continue
        instance.report_run_failed(run, f"this run has ended: {why}; run the image again")
        ended[run.run_id] = why
    _free_slots(instance, ended)
    return ended


def _why_silent(instance: dg.DagsterInstance, run: dg.DagsterRun) -> str | None:
    """Return the same for a run of 0.1.0, which left its process in its log only, and no host."""
    if HOST in run.tags or GRPC_INFO_TAG in run.tags:
        return None
    if run.status != dg.DagsterRunStatus.STARTED:
        return None
    events = instance.all_logs(run.run_id)
    if not events or time.time() - events[-1].timestamp < SILENT_SECONDS:
        return None
    began, pid = events[0].timestamp, _process_in_log(events)
    if pid is None:
        return None
    try:
        if psutil.Process(pid).create_time() <= began:
            return None
    except psutil.NoSuchProcess:
        pass
    return f"its process {pid} is gone and it said nothing for {SILENT_SECONDS // 60} minutes"


def _process_in_log(events: Iterable[dg.EventLogEntry]) -> int | None:
    for entry in events:
        event = entry.dagster_event
        if event is not None and event.is_engine_event:
            pid = event.engine_event_data.metadata.get("pid")
            if pid is not None and str(pid.value).isdigit():
                return int(str(pid.value))
    return None


def _free_slots(instance: dg.DagsterInstance, ended: Iterable[str]) -> None:
    """Free what the ended runs hold, and what runs hold that are not in the books at all."""
    storage = instance.event_log_storage
    if not storage.supports_global_concurrency_limits:
        return
    lost = set(ended)
    before = time.time() - SECONDS_TO_BEGIN
    for pool in storage.get_concurrency_keys():
        for step in storage.get_concurrency_info(pool).pending_steps:
            is_old = step.enqueued_timestamp.timestamp() < before
            if is_old and instance.get_run_by_id(step.run_id) is None:
                lost.add(step.run_id)
    for run_id in lost:
        storage.free_concurrency_slots_for_run(run_id)
