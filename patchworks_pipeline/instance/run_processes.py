"""Which process a run is in, and the end of runs whose process is gone.

A run of the command line is in the process of the command. Killed, it cannot say that it ended: it
would go on for ever in the books and keep its slot of the instance's pool, for which every later
run waits. So it carries host, process and start of the process in its tags, and whoever opens the
home looks: a run whose process is gone is marked as failed, and its slots are freed.

A process id is given again to others, so a process is known by its start too. A run of another
host, or of another container, is never judged: nobody here can see its process. Nor is a run that
a code server started: `patchworks_pipeline.launcher` looks after those.
"""

import json
import math
import os
import socket
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import dagster as dg
import psutil
from dagster._core.storage.tags import GRPC_INFO_TAG, MAX_RETRIES_TAG
from dagster_shared.check import ParameterCheckError
from sqlalchemy.exc import SQLAlchemyError
from yaml import YAMLError

from patchworks_core.errors import PlanError
from patchworks_pipeline.instance.books import fault_of_books, unset_variables
from patchworks_pipeline.instance.heartbeats import Heartbeats
from patchworks_pipeline.instance.home import opening
from patchworks_pipeline.partitions import IMAGE

HOST, PROCESS, STARTED, RUN = (
    "patchworks/host",
    "patchworks/process",
    "patchworks/process_started",
    "patchworks/run",
)
"""Tags of a run of the command line; one of a code server has the first and the last. The last is
its own id: a run that is made from another in the UI takes over the tags of that, and is none of
its process."""

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

SECONDS_TO_ANSWER = 5
"""Of a code server."""

EVENTS_OF_BEGINNING = 20
"""In which a run has said in which process it is."""

SECONDS_OF_CLOCKS = 2
"""By which the clock of a log and that of a process may differ."""

_OF_BOOKS = (dg.DagsterError, ParameterCheckError, SQLAlchemyError, YAMLError)
"""What Dagster raises where its settings or tables are not what they should be."""

_LINUX = Path("/proc/sys/kernel/random/boot_id")


@contextmanager
def open_instance(
    home: Path, *, say: Callable[[str], object] | None = None
) -> Iterator[dg.DagsterInstance]:
    """Open the instance of a home that this process was pointed to, and end its dead runs.

    Parameters
    ----------
    home : Path
    say : callable, optional
        Is told of the dead runs that were ended.

    Raises
    ------
    PlanError
        If its settings or its tables are damaged.
    StorageError
        If its database cannot be written to, now or in the block.
    """
    try:
        with opening(home):
            opened = dg.DagsterInstance.get()
            end_dead_runs(opened, say=say)
    except Exception as error:
        if (fault := fault_of_books(error, home)) is not None:
            raise fault from error
        if not isinstance(error, _OF_BOOKS):
            raise
        if unset := unset_variables(home):
            raise PlanError(
                f"{home / 'dagster' / 'dagster.yaml'} takes {', '.join(unset)} from the "
                "environment, where it is not set; export it in this shell, as docs/deploy.md has "
                "it, and call again"
            ) from error
        raise PlanError(
            f"the Dagster instance at {home / 'dagster'} cannot be opened: {error}; restore it, or "
            "move that folder away: the store keeps what is staged and merged, and 'patchworks "
            "run' of each image enters it in a new one"
        ) from error
    try:
        with opened as instance:
            yield instance
    except Exception as error:
        if (fault := fault_of_books(error, home)) is None:
            raise
        raise fault from error


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


def why_gone(instance: dg.DagsterInstance, run: dg.DagsterRun) -> str | None:
    """Return why a run of this host has no process any more; None where it may have one."""
    tags = run.tags
    if tags.get(RUN) != run.run_id or tags.get(HOST) != this_host():
        return None
    if GRPC_INFO_TAG in tags:
        return _why_launched_is_gone(instance, run)
    pid = tags.get(PROCESS, "")
    if not pid.isdigit() or started(int(pid)) == tags.get(STARTED):
        return None
    return f"its process {pid} on {tags[HOST].partition('/')[0]} is gone: killed, or the power went"


def _why_launched_is_gone(instance: dg.DagsterInstance, run: dg.DagsterRun) -> str | None:
    """Return the same for a run that a code server started.

    A code server that is there reports by itself that the process of a run ended before its time.
    """
    if not run.is_finished and is_listening(run):
        return None
    process = _process_in_log(instance, run)
    if process is None:
        return None if run.is_finished else "its code server is gone before it had a process"
    pid, logged = process
    if _is_running(pid, logged):
        return None
    return f"its process {pid} is gone" + ("" if run.is_finished else ", and its code server is")


def is_listening(run: dg.DagsterRun) -> bool:
    """Tell whether the code server that started a run may be there; one on a port always may."""
    try:
        path = json.loads(run.tags.get(GRPC_INFO_TAG, "{}")).get("socket")
    except (ValueError, AttributeError):
        return True
    if path is None:
        return True
    with socket.socket(socket.AF_UNIX) as caller:
        caller.settimeout(SECONDS_TO_ANSWER)
        try:
            caller.connect(path)
        except (FileNotFoundError, ConnectionRefusedError):
            return False
        except TimeoutError:
            pass  # busy is not gone
    return True


def end_dead_runs(
    instance: dg.DagsterInstance,
    heartbeats: Heartbeats | None = None,
    *,
    say: Callable[[str], object] | None = None,
) -> dict[str, str]:
    """Mark runs whose process is gone as failed and free the slots they hold; say which and why.

    Parameters
    ----------
    instance : DagsterInstance
    heartbeats : Heartbeats
        Of runs on other hosts, kept from look to look by who looks for long enough.
    say : callable, optional
        Is told of each that was ended.
    """
    ended: dict[str, str] = {}
    messages: list[str] = []
    for run in instance.get_runs(dg.RunsFilter(statuses=OPEN)):
        why = why_gone(instance, run) or _why_silent(instance, run)
        if (
            why is None
            and heartbeats is not None
            and run.tags.get(HOST, this_host()) != this_host()
        ):
            why = heartbeats.why_gone(instance, run)
        if why is None:
            continue
        instance.report_run_failed(run, f"this run has ended: {why}; run the image again")
        ended[run.run_id] = why
        messages.append(
            f"a run of {run.tags.get(IMAGE, 'this home')} that was left open is ended: {why}; "
            "what it staged is kept"
        )
    _free_slots(instance, ended)
    if say is not None:
        for message in messages:
            say(message)
    return ended


def _why_silent(instance: dg.DagsterInstance, run: dg.DagsterRun) -> str | None:
    """Return the same for a run of 0.1.0, which left its process in its log only, and no host."""
    if HOST in run.tags or GRPC_INFO_TAG in run.tags:
        return None
    if run.status != dg.DagsterRunStatus.STARTED:
        return None
    last = instance.get_records_for_run(run.run_id, limit=1, ascending=False).records
    if not last or time.time() - last[0].timestamp < SILENT_SECONDS:
        return None
    process = _process_in_log(instance, run)
    if process is None or _is_running(*process):
        return None
    return (
        f"its process {process[0]} is gone and it said nothing for {SILENT_SECONDS // 60} minutes"
    )


def _process_in_log(instance: dg.DagsterInstance, run: dg.DagsterRun) -> tuple[int, float] | None:
    """Return the process that a run said it is in, and when it said so."""
    events = instance.get_records_for_run(
        run.run_id, of_type=dg.DagsterEventType.ENGINE_EVENT, limit=EVENTS_OF_BEGINNING
    )
    for record in events.records:
        event = record.event_log_entry.dagster_event
        if event is not None:
            pid = event.engine_event_data.metadata.get("pid")
            if pid is not None and str(pid.value).isdigit():
                return int(str(pid.value)), record.timestamp
    return None


def _is_running(pid: int, logged: float) -> bool:
    """Tell whether a process that told of itself is there; another began later under its id."""
    try:
        process = psutil.Process(pid)
        is_gone = process.status() == psutil.STATUS_ZOMBIE
        return not is_gone and process.create_time() <= logged + SECONDS_OF_CLOCKS
    except psutil.NoSuchProcess:
        return False


def note_process(instance: dg.DagsterInstance, run: dg.DagsterRun) -> None:
    """Note in which process a run is that is not in the books yet, as its tags say it."""
    tags = {_key(run.run_id): json.dumps(dict(run.tags))}
    instance.daemon_cursor_storage.set_cursor_values(tags)


def _is_lost(instance: dg.DagsterInstance, run_id: str, since: float) -> bool:
    """Tell whether a run that is not in the books will never be."""
    key = _key(run_id)
    noted = instance.daemon_cursor_storage.get_cursor_values({key}).get(key)
    if noted is None:  # of an older version
        return since < time.time() - SECONDS_TO_BEGIN
    run = dg.DagsterRun("", run_id=run_id, tags=json.loads(noted))
    return why_gone(instance, run) is not None


def _key(run_id: str) -> str:
    return f"patchworks/process/{run_id}"


def _free_slots(instance: dg.DagsterInstance, ended: dict[str, str]) -> None:
    """Free what the ended runs hold, and what runs hold that are not in the books at all.

    Dagster frees the slots of a run that ended and left them by itself, some minutes later.
    """
    storage = instance.event_log_storage
    if not storage.supports_global_concurrency_limits:
        return
    lost = set(ended)
    for pool in storage.get_concurrency_keys():
        info = storage.get_concurrency_info(pool)
        since = {step.run_id: step.enqueued_timestamp.timestamp() for step in info.pending_steps}
        for run_id in {slot.run_id for slot in info.claimed_slots} | set(since):
            run = instance.get_run_by_id(run_id)
            if run is None:
                is_lost = _is_lost(instance, run_id, since.get(run_id, math.inf))
            else:
                is_lost = run.is_finished and why_gone(instance, run) is not None
            if is_lost:
                lost.add(run_id)
    for run_id in lost:
        storage.free_concurrency_slots_for_run(run_id)
