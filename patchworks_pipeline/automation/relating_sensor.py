"""The sensor that relates two segmentations of an image, once both are merged.

It decides by what is on disk: a relation is due where both labels are there and it is of others.
"""

import json
from hashlib import blake2b
from typing import Any

import dagster as dg

from patchworks_pipeline.assets.relating import is_related, related_content, relation_name
from patchworks_pipeline.automation.alerts import Alerts, tell_of_lasting
from patchworks_pipeline.automation.defining import running_sensor
from patchworks_pipeline.automation.events import (
    MAX_WAITING,
    EventCursor,
    cursor_record,
    last,
    latest_event,
    new_partitions,
    unique,
)
from patchworks_pipeline.automation.sensors import IMAGES_PER_TICK, taking_of_image
from patchworks_pipeline.image_faults import ImageFaults
from patchworks_pipeline.lineage import Mount
from patchworks_pipeline.partitions import IMAGE
from patchworks_pipeline.resources.resources import Automation, LabelStore


def define_relating_sensor(mount: Mount) -> dg.SensorDefinition:
    """Define the sensor that starts relating."""
    lineage = mount.shared
    return running_sensor(
        lineage,
        relating_sensor,
        mount=mount,
        job="relate",
        description="Relates two segmentations of every image whose labels are both there.",
    )


def relating_sensor(
    context: dg.SensorEvaluationContext,
    mount: Mount,
    store: LabelStore,
    automation: Automation,
    alerts: Alerts,
) -> dg.SensorResult | dg.SkipReason:
    """Request the relations of every image that was merged (again)."""
    off = automation.why_off()
    if off:
        return dg.SkipReason(off)
    record: dict[str, Any] = cursor_record(context.cursor)
    cursors, merged = {}, []
    for lineage in mount.lineages:
        since = EventCursor.from_json(record.get("merged", {}).get(lineage.segmentation))
        key = lineage.key("merged_labels")
        keys, cursor = new_partitions(context.instance, key, since, limit=IMAGES_PER_TICK)
        merged += keys
        cursors[lineage.segmentation] = cursor.to_json()
    faults_before = record.get("faults")
    faults = ImageFaults(context.log.warning, faults_before)
    requests, waiting = [], []
    for image in unique([*record.get("waiting", []), *merged]):
        request, is_waiting = None, True
        with faults.about(image):
            request, is_waiting = _request(context.instance, mount, store, image)
        if request is not None:
            requests.append(request)
        if is_waiting:
            waiting.append(image)
    tell_of_lasting(faults, faults_before, mount.shared, alerts, store, context.log)
    return dg.SensorResult(
        run_requests=requests,
        skip_reason=None if requests else "no labels to relate",
        cursor=json.dumps(
            {
                "merged": cursors,
                "waiting": waiting[-MAX_WAITING:],
                "faults": dict(last(faults.found.items(), MAX_WAITING)),
            }
        ),
    )


def _request(
    instance: dg.DagsterInstance, mount: Mount, store: LabelStore, image: str
) -> tuple[dg.RunRequest | None, bool]:
    """Return the run that makes the relations which are due; and whether to look again."""
    due, made = [], []
    for a, b in mount.relations:
        folders = store.folder(image, a), store.folder(image, b)
        if not is_related(*folders):
            key = mount.lineage(a).key(relation_name(b))
            due.append(key)
            # The last relation is part of the name, so that labels that change and change back are
            # related.
            made.append([related_content(*folders), latest_event(instance, key, image)])
    if not due:
        return None, False
    job = mount.shared.name("relate")
    digest = blake2b(json.dumps(made).encode(), digest_size=8).hexdigest()
    name = f"{image}:{digest}"
    taking = taking_of_image(instance, job, image, name)
    if not taking.is_due:
        return None, taking.is_under_way
    run_key, tags = taking.run_key(name), {IMAGE: image}
    return dg.RunRequest(run_key, partition_key=image, tags=tags, asset_selection=due), True
