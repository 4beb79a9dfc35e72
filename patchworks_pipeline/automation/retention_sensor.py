"""The sensor that keeps the tile partitions in line with what is on disk, and within bounds.

1. Tiles of an image whose folder is gone are partitions no more. That is believed at a second look,
   and never where no image has a folder: then the disk of the store is not mounted.
2. An image whose stage has tiles that are no partitions gets them, and only them.
3. Where there are more than `Retention.max_live_keys`, and once a day, a run retires images.
"""

import json
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import dagster as dg

from patchworks_pipeline.automation import events
from patchworks_pipeline.automation.alerts import Alerts, tell_of_lasting
from patchworks_pipeline.automation.defining import running_sensor
from patchworks_pipeline.automation.events import IN_PROGRESS, MAX_WAITING, cursor_record, last
from patchworks_pipeline.automation.retention import (
    SECONDS_PER_DAY,
    Retention,
    images_at_work,
)
from patchworks_pipeline.image_faults import ImageFaults
from patchworks_pipeline.instance.tile_partitions import (
    live_tile_keys,
    remove_tile_keys,
    replace_tile_keys,
)
from patchworks_pipeline.lineage import Lineage
from patchworks_pipeline.partitions import tile_keys
from patchworks_pipeline.records import ImageFolder
from patchworks_pipeline.resources.resources import Automation, LabelStore

IMAGES_PER_LOOK = 200
"""Images whose plan one tick compares with the tile partitions, in turn."""

SECONDS_TO_ASK_AGAIN = 3600
"""Between two runs that retire, where the first left as many partitions as there are."""


def define_retention_sensor(lineage: Lineage) -> dg.SensorDefinition:
    """Define the sensor that looks after the tile partitions."""
    return running_sensor(
        lineage,
        retention_sensor,
        job="retire_images",
        seconds=300,
        description="Keeps tile partitions in line with the store, and retires images that are "
        "finished: the oldest, once there are too many.",
    )


def retention_sensor(
    context: dg.SensorEvaluationContext,
    lineage: Lineage,
    store: LabelStore,
    automation: Automation,
    retention: Retention,
    alerts: Alerts,
) -> dg.SensorResult | dg.SkipReason:
    """Reconcile the tile partitions, and request the run that retires where one is due."""
    off = automation.why_off()
    if off:
        return dg.SkipReason(off)
    record: dict[str, Any] = cursor_record(context.cursor)
    faults_before = record.get("faults")
    look = _Look(
        context,
        lineage,
        store,
        ImageFaults(context.log.warning, faults_before),
        live_tile_keys(context.instance, lineage),
        images_at_work(context.instance, lineage),
    )
    gone = look.remove_gone(record.get("gone", []))
    turn = look.register_lacking(int(record.get("turn", 0)))
    tell_of_lasting(look.faults, faults_before, lineage, alerts, store, context.log)
    n_live, now = sum(map(len, look.live.values())), events.now()
    cursor = {
        "gone": gone,
        "turn": turn,
        "daily": record.get("daily", now),
        "asked": record.get("asked", [0, 0]),
        "faults": dict(last(look.faults.found.items(), MAX_WAITING)),
    }
    is_daily = not 0 <= now - cursor["daily"] < SECONDS_PER_DAY
    n_before, when = cursor["asked"]
    is_new = n_live != n_before or not 0 <= now - when < SECONDS_TO_ASK_AGAIN
    is_due = is_daily or (n_live > retention.max_live_keys and is_new)
    if not retention.enabled or not is_due or _goes_on(context.instance, lineage):
        return dg.SensorResult(
            skip_reason=f"nothing to retire: {n_live} tile partitions of at most "
            f"{retention.max_live_keys}"
            if retention.enabled
            else "nothing is retired: retention.enabled is false",
            cursor=json.dumps(cursor),
        )
    cursor["asked"] = [n_live, now]
    cursor["daily"] = now if is_daily else cursor["daily"]
    config = {"all_images": is_daily}
    request = dg.RunRequest(
        run_key=f"retire:{now}",
        run_config={"ops": {lineage.name("retire_old_stages"): {"config": config}}},
    )
    return dg.SensorResult(run_requests=[request], cursor=json.dumps(cursor))


@dataclass(slots=True)
class _Look:
    """What a tick does about tile partitions that are not as the store is."""

    context: dg.SensorEvaluationContext
    lineage: Lineage
    store: LabelStore
    faults: ImageFaults
    live: dict[str, list[str]]
    at_work: frozenset[str]

    def _folder(self, image: str) -> ImageFolder:
        return self.store.folder(image, self.lineage.segmentation)

    def remove_gone(self, before: Sequence[str]) -> list[str]:
        """Remove the tiles of images whose folder is gone; return those to look at again."""
        gone, n_here = [], 0
        for image in self.live:
            with self.faults.about(image):
                if self._folder(image).path.exists():
                    n_here += 1
                elif image not in self.at_work:
                    gone.append(image)
        if gone and not n_here:
            self.context.log.warning(
                f"none of {len(gone)} images has a folder in {self.store.path()}: their tile "
                "partitions are left; is the disk mounted?"
            )
            return []
        for image in set(gone) & set(before):
            keys = self.live.pop(image)
            remove_tile_keys(self.context.instance, self.lineage, keys)
            self.context.log.warning(
                f"image {image!r} has no folder any more: {len(keys)} tile partitions removed"
            )
        return sorted(set(gone) - set(before))

    def register_lacking(self, turn: int) -> int:
        """Make partitions of tiles that a stage has and the instance has not; return whose turn."""
        partitions = self.context.instance.get_dynamic_partitions(str(self.lineage.images.name))
        every = list(dict.fromkeys([*self.live, *partitions]))
        n = min(IMAGES_PER_LOOK, len(every))
        for image in (every[(turn + i) % len(every)] for i in range(n)):
            if image in self.at_work:
                continue
            with self.faults.about(image):
                self._register(self._folder(image))
        return (turn + n) % max(1, len(every))

    def _register(self, folder: ImageFolder) -> None:
        """Make partitions of all tiles of an image where some are none."""
        if not folder.has("stage.zarr/plan.json") or folder.is_retired:
            return
        before = self.live.get(folder.key, [])
        keys = tile_keys(folder.key, folder.plan().grid.block_keys())
        own = set(keys) & set(before)
        if len(own) == len(keys) == len(before):
            return
        replace_tile_keys(self.context.instance, self.lineage, before, keys)
        self.live[folder.key] = keys
        others = len(before) - len(own)
        self.context.log.warning(
            f"image {folder.key!r} has {len(keys)} tiles, of which {len(own)} were partitions: "
            "all are now" + (f", and {others} of another plan are none" if others else "")
        )


def _goes_on(instance: dg.DagsterInstance, lineage: Lineage) -> bool:
    """Tell whether a run that retires is under way."""
    filters = dg.RunsFilter(job_name=lineage.name("retire_images"), statuses=IN_PROGRESS)
    return bool(instance.get_runs(filters, limit=1))
