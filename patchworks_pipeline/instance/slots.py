"""A slot of a pool of the instance, taken before a run begins: the wait is said, and can be ended.

Dagster takes it inside the run, where it waits in silence, for ever, and hears no signal. What is
taken before, under the id of the run, is the run's own when it comes to ask.
"""

import math
import signal
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from datetime import datetime
from types import FrameType

import dagster as dg
from filelock import FileLock, Timeout

from patchworks_pipeline.dagster_insides import SLOTS, are_there
from patchworks_pipeline.instance.heartbeats import Heartbeats
from patchworks_pipeline.instance.home import home_folder
from patchworks_pipeline.instance.run_processes import (
    HOST,
    OPEN,
    PROCESS,
    end_dead_runs,
    note_process,
)
from patchworks_pipeline.partitions import IMAGE

SECONDS_TO_WAIT = 3600.0
"""A wait for a slot ends after so long."""

SECONDS_TO_REPEAT = 60.0
"""Between two words about a wait."""

SECONDS_TO_LOOK_FOR_DEAD = 5.0
"""Between two looks whether who holds it is gone."""

_SECONDS_TO_LOOK = 0.5


class NoSlotError(RuntimeError):
    """A pool had no free slot for as long as could be waited."""


def take_pool_slot(
    instance: dg.DagsterInstance,
    pool: str,
    run: dg.DagsterRun,
    step: str,
    *,
    say: Callable[[str], object],
    seconds: float = SECONDS_TO_WAIT,
) -> None:
    """Take a slot of a pool for a step of a run that is about to begin.

    Parameters
    ----------
    instance : DagsterInstance
    pool : str
    run : DagsterRun
        As it will be.
    step : str
        The step in it that asks for the slot.
    say : callable
        Is told who holds it and since when, at first and once a minute.
    seconds : float
        To wait at most.

    Raises
    ------
    NoSlotError
        If none came free.
    """
    if not are_there(SLOTS):
        return  # the step takes it
    from dagster._core.execution.plan.instance_concurrency_context import InstanceConcurrencyContext

    begin = last = looked = time.monotonic()
    is_said, heartbeats = False, Heartbeats()
    note_process(instance, run)
    with InstanceConcurrencyContext(instance, run) as slots, _ended_by_sigterm():
        while not slots.claim(pool, step):
            waited = time.monotonic() - begin
            if waited >= seconds:
                raise NoSlotError(
                    f"no slot of pool {pool!r} came free in {waited:.0f} s: "
                    f"{holders(instance, pool)}; end that run, or call again later"
                )
            if time.monotonic() - looked >= SECONDS_TO_LOOK_FOR_DEAD:
                looked = time.monotonic()
                end_dead_runs(instance, heartbeats, say=say)
            if not is_said or time.monotonic() - last >= SECONDS_TO_REPEAT:
                is_said, last = True, time.monotonic()
                say(
                    f"waiting for a slot of pool {pool!r}: {holders(instance, pool)}; at most "
                    f"{seconds - waited:.0f} s more, Ctrl-C ends the wait"
                )
            time.sleep(_SECONDS_TO_LOOK)


@contextmanager
def only_call(
    instance: dg.DagsterInstance,
    image: str,
    *,
    say: Callable[[str], object],
    seconds: float = SECONDS_TO_WAIT,
) -> Iterator[None]:
    """Let one call of the command line at a time be at an image, and no run of the UI before it.

    Parameters
    ----------
    instance : DagsterInstance
    image : str
        Key.
    say : callable
        Is told which run is at it, at first and once a minute.
    seconds : float
        To wait at most.

    Raises
    ------
    NoSlotError
        If another one is at it for longer.
    """
    folder = home_folder() / "dagster" / "calls"
    folder.mkdir(parents=True, exist_ok=True)
    lock = FileLock(folder / f"{image}.lock")  # which ends with its process
    begin, last, heartbeats = time.monotonic(), -math.inf, Heartbeats()
    try:
        with _ended_by_sigterm():
            while not _is_alone(lock, instance, image):
                end_dead_runs(instance, heartbeats, say=say)
                waited = time.monotonic() - begin
                if waited >= seconds:
                    raise NoSlotError(
                        f"another call is at image {image!r} for {waited:.0f} s: "
                        f"{_at_image(instance, image)}; end it, or call again later"
                    )
                if time.monotonic() - last >= SECONDS_TO_REPEAT:
                    last = time.monotonic()
                    say(
                        f"waiting for another call for image {image!r}: "
                        f"{_at_image(instance, image)}; at most {seconds - waited:.0f} s more, "
                        "Ctrl-C ends the wait"
                    )
                time.sleep(_SECONDS_TO_LOOK)
        yield
    finally:
        lock.release()


def _is_alone(lock: FileLock, instance: dg.DagsterInstance, image: str) -> bool:
    """Tell whether this call is the only one at an image, and no run is."""
    with suppress(Timeout):
        if not lock.is_locked:
            lock.acquire(timeout=0)
        return not _runs_at(instance, image)
    return False


def _runs_at(instance: dg.DagsterInstance, image: str) -> Sequence[dg.DagsterRun]:
    return instance.get_runs(dg.RunsFilter(tags={IMAGE: image}, statuses=OPEN))


def _at_image(instance: dg.DagsterInstance, image: str) -> str:
    """Say which runs are at an image."""
    runs = _runs_at(instance, image)
    return " and ".join(_holder(instance, run.run_id) for run in runs) or "between two runs"


def holders(instance: dg.DagsterInstance, pool: str) -> str:
    """Say which runs hold the slots of a pool, and since when."""
    claimed = instance.event_log_storage.get_concurrency_info(pool).claimed_slots
    run_ids = sorted({slot.run_id for slot in claimed})
    return " and ".join(_holder(instance, run_id) for run_id in run_ids) or "others are before this"


def _holder(instance: dg.DagsterInstance, run_id: str) -> str:
    record = instance.get_run_record_by_id(run_id)
    if record is None:
        return f"run {run_id[:8]} has it"
    tags, since = record.dagster_run.tags, record.start_time
    when = "" if since is None else f" since {datetime.fromtimestamp(since):%Y-%m-%d %H:%M:%S}"
    where = ""
    if PROCESS in tags:
        where = f" (process {tags[PROCESS]} on {tags.get(HOST, '').partition('/')[0]})"
    image = f" of image {tags[IMAGE]!r}" if IMAGE in tags else ""
    return f"run {run_id[:8]} of {record.dagster_run.job_name}{image}{where} has it{when}"


@contextmanager
def _ended_by_sigterm() -> Iterator[None]:
    """Let SIGTERM end a wait as Ctrl-C does, so that the place in the line is given back."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = signal.signal(signal.SIGTERM, _end)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, before)


def _end(signum: int, frame: FrameType | None) -> None:
    raise SystemExit(128 + signum)
