"""What happened on the instance since last time, and what is going on now.

Sensors read materializations page by page under a cursor of their own. An asset sensor would show
the latest one only, and a range of tiles is a thousand at once.
"""

import json
import re
import signal
import time
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import dagster as dg

from patchworks_pipeline.automation.jobs import image_to_repair
from patchworks_pipeline.image_faults import error_of_step
from patchworks_pipeline.lineage import ASSET_JOB, BATCH_JOB, Lineage
from patchworks_pipeline.partitions import split_tile_key

RANGE_START = "dagster/asset_partition_range_start"
RANGE_END = "dagster/asset_partition_range_end"
PARTITION = "dagster/partition"

IN_PROGRESS = [
    dg.DagsterRunStatus.NOT_STARTED,
    dg.DagsterRunStatus.QUEUED,
    dg.DagsterRunStatus.STARTING,
    dg.DagsterRunStatus.STARTED,
    dg.DagsterRunStatus.CANCELING,
]

BATCH_OP, IMAGES_OF_BATCH = "take_batch", "images"
"""Step of the runs that take many small images, and the field of its config."""

FAILURE_REASON = "dagster/failure_reason"
"""Tag of a run that failed and could say so."""

ENDED = (None, "UNEXPECTED_TERMINATION", "START_TIMEOUT", "RUN_WORKER_RESTART")
"""Values of it where the run was ended from outside; what is killed says nothing."""

CRASHES = frozenset(
    {signal.SIGSEGV, signal.SIGBUS, signal.SIGABRT, signal.SIGFPE, signal.SIGILL, signal.SIGTRAP}
)

_ENDS = re.compile(r"was terminated by signal (\d+)|unexpectedly exited with code")
"""In which words a code server tells of the end of a run's process."""

EVERY_ROUND = 1
"""Seconds between ticks: less than the daemon's round of 5 s, or every other round is missed."""

MAX_WAITING = 200
"""Images that are looked at again without a new event; the latest ones."""

REREAD = 250
"""Events before the cursor that are read again: with several writers a database may show events
after later ones, as many as each writes together (see `patchworks_pipeline.instance.tile_log`)."""

READ_AT_ONCE = 1000
"""Events that the database is asked for in one query."""


@dataclass(frozen=True, slots=True)
class EventCursor:
    """How far materializations of one asset were read."""

    after: int = 0
    """Storage id of the latest event that was read."""

    recent: tuple[int, ...] = ()
    """Storage ids of the last events that were read."""

    @classmethod
    def from_json(cls, record: Mapping[str, object] | None) -> "EventCursor":
        """Read what `to_json` gave; None is the beginning."""
        if not record:
            return cls()
        return cls(int(str(record["after"])), tuple(map(int, record["recent"])))  # type: ignore[call-overload]

    def to_json(self) -> dict[str, object]:
        """Return the cursor as JSON has it."""
        return {"after": self.after, "recent": list(self.recent)}


def new_partitions(
    instance: dg.DagsterInstance, asset: dg.AssetKey, cursor: EventCursor, *, limit: int
) -> tuple[list[str], EventCursor]:
    """Return the partitions of an asset that were materialized since, each once, and a new cursor.

    At most `limit` events are read; the rest comes with the next call.
    """
    start = cursor.recent[0] - 1 if cursor.recent else cursor.after
    partitions: dict[str, None] = {}
    ids = list(cursor.recent)
    earlier, n_new, page = set(ids), 0, None
    while n_new < limit:
        result = instance.fetch_materializations(
            dg.AssetRecordsFilter(asset_key=asset, after_storage_id=start),
            limit=min(READ_AT_ONCE, limit + len(earlier)),
            cursor=page,
            ascending=True,
        )
        for record in result.records:
            if record.storage_id in earlier or n_new == limit:
                continue
            n_new += 1
            ids.append(record.storage_id)
            if record.partition_key is not None:
                partitions[record.partition_key] = None
        page = result.cursor
        if not result.has_more or not result.records:
            break
    ids = sorted(ids)[-REREAD:]
    return list(partitions), EventCursor(ids[-1] if ids else cursor.after, tuple(ids))


def latest_event(instance: dg.DagsterInstance, asset: dg.AssetKey, partition: str) -> int:
    """Return the storage id of the latest materialization of a partition; 0 where there is none."""
    records = instance.fetch_materializations(
        dg.AssetRecordsFilter(asset_key=asset, asset_partitions=[partition]), limit=1
    ).records
    return records[0].storage_id if records else 0


def images_of_run(instance: dg.DagsterInstance, lineage: Lineage, run: dg.DagsterRun) -> list[str]:
    """Return the images that a run of a segmentation is about, in order."""
    tags, image = run.tags, image_to_repair(lineage, run)
    if image is not None:
        return [image]
    if run.job_name == lineage.name(BATCH_JOB):
        return images_of_batch(lineage, run)
    if PARTITION in tags:
        return [image_of(tags[PARTITION])]
    if RANGE_START not in tags:
        return []
    start, end = tags[RANGE_START], tags[RANGE_END]
    if image_of(start) == image_of(end):
        return [image_of(start)]
    keys = list(instance.get_dynamic_partitions(str(lineage.tiles.name)))
    if "/" not in start or start not in keys or end not in keys:
        return [image_of(start), image_of(end)]
    return unique(map(image_of, keys[keys.index(start) : keys.index(end) + 1]))


def images_of_batch(lineage: Lineage, run: dg.DagsterRun) -> list[str]:
    """Return the images that a run takes in a batch, as its config says."""
    try:
        config: Any = run.run_config
        items = config["ops"][lineage.name(BATCH_OP)]["config"][IMAGES_OF_BATCH]
        return [str(item["image"]) for item in items]
    except (KeyError, TypeError):
        return []


def busy_images(
    instance: dg.DagsterInstance, lineage: Lineage, jobs: Iterable[str]
) -> frozenset[str]:
    """Return the images that a run of one of these jobs, or of a backfill, is at or will be at."""
    busy: set[str] = set()
    for job in (*map(lineage.name, jobs), ASSET_JOB):
        for run in instance.get_runs(dg.RunsFilter(job_name=job, statuses=IN_PROGRESS)):
            if lineage.has_run(run):
                busy.update(images_of_run(instance, lineage, run))
    return frozenset(busy)


def why_failed(instance: dg.DagsterInstance, run: dg.DagsterRun) -> str:
    """Return why a run failed, in the words of the error."""
    for entry in instance.all_logs(run.run_id, of_type=dg.DagsterEventType.STEP_FAILURE):
        event = entry.get_dagster_event()
        data = event.step_failure_data
        if data.user_failure_data is not None and data.user_failure_data.description:
            return str(data.user_failure_data.description)
        error = error_of_step(data)
        return error.message.strip() if error is not None else str(event.message)
    end_of_process = _end_of_process(instance, run)
    if end_of_process is not None:
        return end_of_process
    ends = instance.all_logs(run.run_id, of_type=dg.DagsterEventType.RUN_FAILURE)
    return str(ends[-1].get_dagster_event().message) if ends else "the run says no reason"


def was_killed(instance: dg.DagsterInstance, run: dg.DagsterRun) -> bool:
    """Tell whether a run was ended from outside: killed, stopped, or lost with the machine.

    Where its process crashed, that is its own doing: the function ran in it.
    """
    if run.status is not dg.DagsterRunStatus.FAILURE or run.tags.get(FAILURE_REASON) not in ENDED:
        return False
    end_of_process = _end_of_process(instance, run)
    end = None if end_of_process is None else _ENDS.search(end_of_process)
    return end is None or (end[1] is not None and int(end[1]) not in CRASHES)


def _end_of_process(instance: dg.DagsterInstance, run: dg.DagsterRun) -> str | None:
    """Return in which words a code server told of the end of a run's process."""
    if run.tags.get(FAILURE_REASON) is not None:  # it told so itself
        return None
    for entry in instance.all_logs(run.run_id, of_type=dg.DagsterEventType.ENGINE_EVENT):
        message = str(entry.get_dagster_event().message)
        if _ENDS.search(message):
            return message.partition("] ")[2] or message  # who said it stands in front
    return None


def image_of(key: str) -> str:
    """Return the image of a partition key of either kind."""
    return split_tile_key(key)[0] if "/" in key else key


def now() -> int:
    """Return the time, seconds since 1970."""
    return int(time.time())


def last(items: Iterable[Any], count: int) -> list[Any]:
    """Return the last items, so many at most."""
    return list(items)[-count:]


def unique(values: Iterable[str]) -> list[str]:
    """Return each value once, in order of first appearance."""
    return list(dict.fromkeys(values))


def cursor_record(cursor: str | None) -> dict[str, object]:
    """Return the record in a sensor's cursor; one that was cleared or is not ours is empty."""
    try:
        record = json.loads(cursor or "{}")
    except json.JSONDecodeError:
        return {}
    return record if isinstance(record, dict) else {}
