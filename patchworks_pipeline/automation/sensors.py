"""Sensors: an image was planned, its tiles are staged, and they are merged.

Each decides by what is on disk and in the instance; its cursor says only how far it has read. So a
tick that is missed, repeated, or begins again from nothing requests nothing twice.
"""

import json
from collections.abc import Iterable
from typing import Any

import dagster as dg

from patchworks_pipeline.assets.reported import is_reported
from patchworks_pipeline.automation import events
from patchworks_pipeline.automation.alerts import Alerts, tell_of_lasting
from patchworks_pipeline.automation.defining import running_sensor
from patchworks_pipeline.automation.events import (
    MAX_WAITING,
    RANGE_END,
    RANGE_START,
    EventCursor,
    busy_images,
    cursor_record,
    image_of,
    last,
    latest_event,
    new_partitions,
    unique,
)
from patchworks_pipeline.automation.priorities import Step, priority_tags
from patchworks_pipeline.automation.taking import Taking, taking_of
from patchworks_pipeline.image_faults import ImageFaults
from patchworks_pipeline.lineage import BATCH_JOB, Lineage
from patchworks_pipeline.partitions import IMAGE, tile_keys
from patchworks_pipeline.records import ImageFolder
from patchworks_pipeline.resources.resources import Automation, LabelStore

IMAGES_PER_TICK = 100
"""Images that one tick of the staging sensor looks at."""

EVENTS_PER_TICK = 10_000
"""Tiles that one tick of the merging sensor reads of."""

SECONDS_TO_LOOK_AGAIN = 60
"""Between two looks at an image that is not complete and of which nothing is heard."""


def define_staging_sensor(lineage: Lineage) -> dg.SensorDefinition:
    """Define the sensor that starts staging."""
    return running_sensor(
        lineage,
        staging_sensor,
        job="stage_tiles",
        description="Stages the missing tiles of every image that was planned and measured.",
    )


def staging_sensor(
    context: dg.SensorEvaluationContext,
    lineage: Lineage,
    store: LabelStore,
    automation: Automation,
    alerts: Alerts,
) -> dg.SensorResult | dg.SkipReason:
    """Request one run for all missing tiles of every image that was measured (again)."""
    off = automation.why_off()
    if off:
        return dg.SkipReason(off)
    record: dict[str, Any] = cursor_record(context.cursor)
    measured, cursor = new_partitions(
        context.instance,
        lineage.key("image_statistics"),
        EventCursor.from_json(record.get("measured")),
        limit=IMAGES_PER_TICK,
    )
    partitions = set(context.instance.get_dynamic_partitions(str(lineage.images.name)))
    deferred = [key for key in record.get("waiting", []) if key not in measured]
    candidates = [key for key in [*deferred, *measured] if key in partitions]
    busy = (
        busy_images(context.instance, lineage, ["stage_tiles", "repair_image", BATCH_JOB])
        if candidates
        else frozenset()
    )
    faults_before = record.get("faults")
    faults = ImageFaults(context.log.warning, faults_before)
    requests, waiting = [], []
    for key in candidates:
        if key in busy:
            waiting.append(key)
            continue
        with faults.about(key):
            folder = store.folder(key, lineage.segmentation)
            request, is_waiting = _staging_request(
                context.instance, lineage, folder, automation, is_deferred=key in deferred
            )
            if request is not None:
                requests.append(request)
            if is_waiting:
                waiting.append(key)
    tell_of_lasting(faults, faults_before, lineage, alerts, store, context.log)
    # Also where an image is being planned anew, or retired, at this moment.
    waiting = [key for key in candidates if key in faults.found or key in waiting]
    return dg.SensorResult(
        run_requests=requests,
        skip_reason=None if requests else f"no tiles to stage; {len(waiting)} images wait",
        cursor=json.dumps(
            {
                "measured": cursor.to_json(),
                "waiting": waiting[-MAX_WAITING:],
                "faults": dict(last(faults.found.items(), MAX_WAITING)),
            }
        ),
    )


def _staging_request(
    instance: dg.DagsterInstance,
    lineage: Lineage,
    folder: ImageFolder,
    automation: Automation,
    *,
    is_deferred: bool,
) -> tuple[dg.RunRequest | None, bool]:
    """Return the run that stages what is missing, if one should; and whether to look again."""
    if not _has_stage(folder):
        return None, False
    plan = folder.plan()
    missing = folder.stage(plan).missing_blocks()
    # A person decides about what failed and would fail again; and the run that was waited for has
    # just tried the others.
    failures = folder.failures()
    left = {failure.block for failure in failures if is_deferred or not failure.is_transient}
    missing = [block for block in missing if block not in left]
    if not missing:
        return None, False
    keys = tile_keys(folder.key, missing)
    ends = keys[0], keys[-1]
    tiles = str(lineage.tiles.name)
    if not all(instance.has_dynamic_partition(tiles, key) for key in ends):
        return None, False  # they were retired meanwhile
    event = latest_event(instance, lineage.key("image_statistics"), folder.key)
    job, name = lineage.name("stage_tiles"), f"{folder.key}:{plan.fingerprint}:{event}"
    taking = taking_of_image(instance, job, folder.key, name)
    if not taking.is_due:
        return None, taking.is_under_way
    if failures and taking.n_runs and not taking.was_killed:  # it was stopped by tiles that fail
        return None, False
    config = {"skip_staged": True, "skip_failed": True}
    request = dg.RunRequest(
        run_key=taking.run_key(name),
        tags={
            RANGE_START: ends[0],
            RANGE_END: ends[1],
            IMAGE: folder.key,
            **priority_tags(folder.acquisition().priority, Step.STAGE, automation),
        },
        run_config={"ops": {lineage.name("staged_labels"): {"config": config}}},
    )
    return request, True


def taking_of_image(instance: dg.DagsterInstance, job: str, image: str, name: str) -> Taking:
    """Return what came of the runs of a job for an image that were asked for under a name."""
    filters = dg.RunsFilter(job_name=job, tags={IMAGE: image})
    return taking_of(instance, name, filters, now=events.now())


def define_merging_sensor(lineage: Lineage) -> dg.SensorDefinition:
    """Define the sensor that starts merging."""
    return running_sensor(
        lineage,
        merging_sensor,
        job="merge_image",
        description="Merges every image whose tiles are all staged, also when one was staged "
        "again.",
    )


def merging_sensor(
    context: dg.SensorEvaluationContext,
    lineage: Lineage,
    store: LabelStore,
    automation: Automation,
    alerts: Alerts,
) -> dg.SensorResult | dg.SkipReason:
    """Request a merge of every complete image whose labels were made of other staged tiles."""
    off = automation.why_off()
    if off:
        return dg.SkipReason(off)
    record: dict[str, Any] = cursor_record(context.cursor)
    instance, since = context.instance, EventCursor.from_json(record.get("staged"))
    tiles, measured_images = lineage.key("staged_labels"), lineage.key("image_statistics")
    staged, of_tiles = new_partitions(instance, tiles, since, limit=EVENTS_PER_TICK)
    # An image that is planned again and has all its tiles goes straight to here.
    since = EventCursor.from_json(record.get("measured"))
    measured, of_images = new_partitions(instance, measured_images, since, limit=IMAGES_PER_TICK)
    heard_of = unique([*map(image_of, staged), *measured])
    partitions = set(context.instance.get_dynamic_partitions(str(lineage.images.name)))
    due = {key: when for key, when in record.get("waiting", {}).items() if key in partitions}
    faults_before = record.get("faults")
    faults = ImageFaults(context.log.warning, faults_before)
    time_now = events.now()
    candidates = [key for key in heard_of if key in partitions]
    # What is due later than is ever said was said before the clock was set back.
    latest = time_now + SECONDS_TO_LOOK_AGAIN
    candidates += [
        key for key, when in due.items() if not time_now < when <= latest and key not in heard_of
    ]
    jobs = ["stage_tiles", "repair_image", "merge_image", BATCH_JOB]
    busy = busy_images(context.instance, lineage, jobs) if candidates else frozenset()
    requests = []
    for key in candidates:
        due.pop(key, None)
        if key in busy:
            due[key] = time_now
            continue
        request, is_waiting = None, True
        with faults.about(key):
            request, is_waiting = _merge_request(
                context.instance, lineage, store.folder(key, lineage.segmentation), automation
            )
        if request is not None:
            requests.append(request)
        if is_waiting:
            due[key] = time_now + SECONDS_TO_LOOK_AGAIN
    tell_of_lasting(faults, faults_before, lineage, alerts, store, context.log)
    return dg.SensorResult(
        run_requests=requests,
        skip_reason=None if requests else f"no image to merge; {len(due)} are not complete",
        cursor=json.dumps(
            {
                "staged": of_tiles.to_json(),
                "measured": of_images.to_json(),
                "waiting": dict(last(due.items(), MAX_WAITING)),
                "faults": dict(last(_still(faults_before, faults, due), MAX_WAITING)),
            }
        ),
    )


def _merge_request(
    instance: dg.DagsterInstance, lineage: Lineage, folder: ImageFolder, automation: Automation
) -> tuple[dg.RunRequest | None, bool]:
    """Return the run that merges an image, if it should be; and whether it is worth waiting."""
    if not _has_stage(folder):
        return None, False
    plan = folder.plan()
    stage = folder.stage(plan)
    if stage.missing_blocks():
        return None, True
    content = stage.content()
    if merged_content(folder) == content:
        return None, False
    # The last merge is part of the name, so that tiles that change and change back are merged.
    event = latest_event(instance, lineage.key("merged_labels"), folder.key)
    job, name = lineage.name("merge_image"), f"{folder.key}:{content}:{event}"
    taking = taking_of_image(instance, job, folder.key, name)
    if not taking.is_due:
        return None, taking.is_under_way
    level = folder.acquisition().priority
    tags = {IMAGE: folder.key, **priority_tags(level, Step.MERGE, automation)}
    return dg.RunRequest(run_key=taking.run_key(name), partition_key=folder.key, tags=tags), True


def labels_content(folder: ImageFolder) -> str | None:
    """Return the digest of the staged labels that the merged labels were made of."""
    provenance = folder.provenance(folder.plan())
    return None if provenance is None else provenance.get("stage")


def merged_content(folder: ImageFolder) -> str | None:
    """Return the same where table and report are of these labels too; None where not."""
    provenance = folder.provenance(folder.plan())
    if provenance is None or not is_reported(folder, provenance):
        return None
    return provenance.get("stage")


def _has_stage(folder: ImageFolder) -> bool:
    """Tell whether an image is planned and its stage was not retired."""
    return folder.has("plan.json") and (folder.path / "stage.zarr" / "plan.json").exists()


def _still(record: Any, faults: ImageFaults, due: Iterable[str]) -> list[tuple[str, str]]:
    """Return what is wrong with images, those included that were not looked at this time."""
    before = record if isinstance(record, dict) else {}
    return list({**{key: before[key] for key in due if key in before}, **faults.found}.items())
