"""Sensors: an acquisition lands, is planned, its tiles are staged, and they are merged.

Each decides by what is on disk and in the instance; its cursor says only how far it has read. So a
tick that is missed, repeated, or begins again from nothing requests nothing twice.
"""

import json
import time
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Any

import dagster as dg

from patchworks_core.errors import PlanError
from patchworks_pipeline.automation.alerts import Alert, Alerts
from patchworks_pipeline.automation.events import (
    RANGE_END,
    RANGE_START,
    EventCursor,
    busy_images,
    cursor_record,
    image_of,
    latest_event,
    new_partitions,
    unique,
)
from patchworks_pipeline.automation.jobs import merge_image, plan_image, repair_image, stage_tiles
from patchworks_pipeline.automation.taking import VERSION, State, Taking, taking_of
from patchworks_pipeline.image_faults import ImageFaults
from patchworks_pipeline.landing.arrivals import (
    LOOKED_AGAIN,
    Arrival,
    Ledger,
    Quarantine,
    Version,
    Watch,
    look,
    looks_from_json,
    looks_to_json,
    why_unreadable,
)
from patchworks_pipeline.landing.candidates import find_candidates
from patchworks_pipeline.landing.opening import with_setting
from patchworks_pipeline.partitions import IMAGE, images, tile_keys, tiles
from patchworks_pipeline.records import ImageFolder
from patchworks_pipeline.resources.resources import AcquisitionSource, Automation, LabelStore

EVERY_ROUND = 1
"""Seconds between ticks: less than the daemon's round of 5 s, or every other round is missed."""

IMAGES_PER_TICK = 100
"""Images that one tick of the staging sensor looks at."""

EVENTS_PER_TICK = 10_000
"""Tiles that one tick of the merging sensor reads of."""

MAX_WAITING = 200
"""Images that are looked at again without a new event; the latest ones."""

SECONDS_TO_LOOK_AGAIN = 60
"""Between two looks at an image that is not complete and of which nothing is heard."""


def now() -> int:
    """Return the time, seconds since 1970."""
    return int(time.time())


@dg.sensor(
    job=plan_image,
    minimum_interval_seconds=EVERY_ROUND,
    default_status=dg.DefaultSensorStatus.RUNNING,
    description="Takes up acquisitions that landed: complete ones, each version once.",
)
def landing_sensor(
    context: dg.SensorEvaluationContext,
    store: LabelStore,
    source: AcquisitionSource,
    automation: Automation,
    alerts: Alerts,
) -> dg.SensorResult | dg.SkipReason:
    """Plan every acquisition that is complete and was not taken in this version."""
    off = automation.why_off()
    if off:
        return dg.SkipReason(off)
    record: dict[str, Any] = cursor_record(context.cursor)
    ledger = Ledger.read(store.path() / ".landing.json")
    if ledger.damage:
        context.log.warning(ledger.damage)
    before = dict(ledger.taken)
    quarantine = Quarantine(store.path() / ".quarantine")
    candidates = find_candidates(source.layout(), taken=ledger.taken)
    faults = ImageFaults(context.log.warning, record.get("faults"))
    decisions = _Decisions(context.instance, store, ledger, quarantine)
    for url, version in record.get("asked", {}).items():
        with faults.about(str(url)):
            decisions.look_after(url, *version)
    folders = [c.url for c in candidates if c.is_folder and c.url in ledger.taken]
    turn = int(record.get("turn", 0))
    arrivals = look(
        candidates,
        Watch(source.settle_seconds, source.max_per_tick),
        now=now(),
        looks=looks_from_json(record.get("seen", {})),
        ledger=ledger,
        refused=quarantine.names(),
        under_way=decisions.under_way(),
        again=[folders[(turn + i) % len(folders)] for i in range(min(LOOKED_AGAIN, len(folders)))],
    )
    for name, reason in arrivals.faults.items():
        with faults.about(name):
            raise reason
    for arrival in arrivals.arrivals:
        with faults.about(arrival.candidate.name):  # it is tried again
            decisions.take(arrival)
    if ledger.taken != before or ledger.damage:
        ledger.write()
    alerts.send(
        [Alert(refusal.key, refusal.reason, "/assets/image") for refusal in decisions.refused],
        memory=store.path() / ".alerts.json",
        log=context.log,
    )
    cursor = {
        "seen": looks_to_json(arrivals.looks),
        "asked": decisions.pending,
        "turn": (turn + LOOKED_AGAIN) % max(1, len(folders)),
        "faults": dict(_last(faults.found.items(), MAX_WAITING)),
    }
    return decisions.result(
        json.dumps(cursor, separators=(",", ":")),
        otherwise=_nothing_to_take(len(candidates), arrivals.n_waiting),
    )


@dataclass(frozen=True, slots=True)
class _Refusal:
    """An acquisition that is not taken."""

    name: str
    url: str
    key: str
    reason: str


@dataclass(slots=True)
class _Decisions:
    """What a tick of the landing sensor does about what arrived, and about what it asked for."""

    instance: dg.DagsterInstance
    store: LabelStore
    ledger: Ledger
    quarantine: Quarantine

    requests: list[dg.RunRequest] = field(default_factory=list)

    refused: list[_Refusal] = field(default_factory=list)

    pending: dict[str, list[str]] = field(default_factory=dict)
    """Name, signature and glance of the version that runs are at, or will be, by URL."""

    def under_way(self) -> dict[str, Version]:
        """Return the versions that runs are at, by URL."""
        return {
            url: Version(signature, glance) for url, (_, signature, glance) in self.pending.items()
        }

    def look_after(self, url: str, name: str, signature: str, glance: str) -> None:
        """See what came of a request: taken, under way, due again, or given up.

        A daemon may die between a tick and its runs. What has no run, and what is due again, is
        let go of here: it settles, arrives, and is requested.
        """
        key = name.partition(f"-{signature}")[0]
        taking = self._taking(key, name, signature)
        version = Version(signature, glance)
        if taking.state is State.DONE:
            self.ledger.taken[url] = version
        elif taking.state in (State.GOES_ON, State.WAITS):
            self.pending[url] = [name, signature, glance]
        elif taking.state is State.GIVEN_UP:
            if _is_planned(self.store.folder(key)):  # by hand, since
                self.ledger.taken[url] = version
                return
            reason = f"{taking.reason}; {self.quarantine.release(name)}"
            self.quarantine.record(name, taking.reason, url, key, signature)
            self.refused.append(_Refusal(name, url, key, reason))

    def _taking(self, key: str, name: str, signature: str) -> Taking:
        filters = dg.RunsFilter(tags={IMAGE: key, VERSION: signature})
        return taking_of(self.instance, name, filters, now=now())

    def take(self, arrival: Arrival) -> None:
        """Request the plan of an acquisition, or refuse it."""
        candidate, version = arrival.candidate, arrival.version
        folder = self.store.folder(candidate.key) if candidate.key else None
        why = _why_refused(arrival, folder)
        if folder is None or why is not None:
            self.quarantine.refuse(arrival, why or "")
            self.refused.append(_Refusal(candidate.name, candidate.url, candidate.key, why or ""))
            return
        if candidate.url not in self.ledger.taken and _is_planned(folder):
            # Planned by hand, or taken before the ledger was lost.
            self.ledger.taken[candidate.url] = version
            return
        taking = self._taking(candidate.key, arrival.name, version.signature)
        if taking.state is State.DONE:
            self.ledger.taken[candidate.url] = version
            return
        self.pending[candidate.url] = [arrival.name, version.signature, version.glance]
        if taking.state in (State.GOES_ON, State.WAITS):
            return
        if not folder.has("acquisition.json"):
            folder.write_acquisition(candidate.acquisition())
        self.requests.append(_plan_request(arrival, taking.run_key(arrival.name)))

    def result(self, cursor: str, *, otherwise: str) -> dg.SensorResult:
        """Return what the sensor answers; `otherwise` is why nothing is requested."""
        keys = unique(str(request.partition_key) for request in self.requests)
        return dg.SensorResult(
            run_requests=self.requests,
            skip_reason=None if self.requests else otherwise,
            dynamic_partitions_requests=[images.build_add_request(keys)] if keys else [],
            asset_events=[
                dg.AssetObservation(
                    "image",
                    description=f"{refusal.name} was refused: {refusal.reason}",
                    metadata={"acquisition": refusal.url, "reason": refusal.reason},
                )
                for refusal in self.refused
            ],
            cursor=cursor,
        )


def _why_refused(arrival: Arrival, folder: ImageFolder | None) -> str | None:
    """Return why a complete acquisition cannot be taken, in words."""
    name, url = arrival.candidate.name, arrival.candidate.url
    if folder is None:
        return f"no partition key can be made of the name {name!r}; rename it"
    acquisition = arrival.candidate.acquisition()
    if folder.has("acquisition.json"):
        try:
            acquisition = folder.acquisition()
        except PlanError as error:
            return str(error)
        if acquisition.url != url:
            return (
                f"{url!r} would be image {folder.key!r}, which is {acquisition.url!r} already; "
                "give it another name"
            )
    why = why_unreadable(acquisition)
    return None if why is None else with_setting(why, name)


def _is_planned(folder: ImageFolder) -> bool:
    """Tell whether the image was planned and measured in the content it has now."""
    if not (folder.has("plan.json") and folder.has("statistics.json")):
        return False
    try:
        planned = folder.plan().image.fingerprint
    except PlanError:
        return False
    return planned == folder.acquisition().open().fingerprint


def _plan_request(arrival: Arrival, run_key: str) -> dg.RunRequest:
    key = arrival.candidate.key
    return dg.RunRequest(
        run_key=run_key,
        partition_key=key,
        tags={IMAGE: key, VERSION: arrival.version.signature},
    )


def _nothing_to_take(n_candidates: int, n_waiting: int) -> str:
    return f"nothing to take: {n_candidates} acquisitions here, {n_waiting} not complete yet"


@dg.sensor(
    job=stage_tiles,
    minimum_interval_seconds=EVERY_ROUND,
    default_status=dg.DefaultSensorStatus.RUNNING,
    description="Stages the missing tiles of every image that was planned and measured.",
)
def staging_sensor(
    context: dg.SensorEvaluationContext, store: LabelStore, automation: Automation
) -> dg.SensorResult | dg.SkipReason:
    """Request one run for all missing tiles of every image that was measured (again)."""
    off = automation.why_off()
    if off:
        return dg.SkipReason(off)
    record: dict[str, Any] = cursor_record(context.cursor)
    measured, cursor = new_partitions(
        context.instance,
        "image_statistics",
        EventCursor.from_json(record.get("measured")),
        limit=IMAGES_PER_TICK,
    )
    partitions = set(context.instance.get_dynamic_partitions(str(images.name)))
    deferred = [key for key in record.get("waiting", []) if key not in measured]
    candidates = [key for key in [*deferred, *measured] if key in partitions]
    busy = (
        busy_images(context.instance, [stage_tiles.name, repair_image.name])
        if candidates
        else frozenset()
    )
    faults = ImageFaults(context.log.warning, record.get("faults"))
    requests, waiting = [], []
    for key in candidates:
        if key in busy:
            waiting.append(key)
            continue
        with faults.about(key):
            folder = store.folder(key)
            request, is_waiting = _staging_request(
                context.instance, folder, is_deferred=key in deferred
            )
            if request is not None:
                requests.append(request)
            if is_waiting:
                waiting.append(key)
    # Also where an image is being planned anew, or retired, at this moment.
    waiting = [key for key in candidates if key in faults.found or key in waiting]
    return dg.SensorResult(
        run_requests=requests,
        skip_reason=None if requests else f"no tiles to stage; {len(waiting)} images wait",
        cursor=json.dumps(
            {
                "measured": cursor.to_json(),
                "waiting": waiting[-MAX_WAITING:],
                "faults": dict(_last(faults.found.items(), MAX_WAITING)),
            }
        ),
    )


def _staging_request(
    instance: dg.DagsterInstance, folder: ImageFolder, *, is_deferred: bool
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
    if not all(instance.has_dynamic_partition(str(tiles.name), key) for key in ends):
        return None, False  # they were retired meanwhile
    event = latest_event(instance, "image_statistics", folder.key)
    run_key, is_waiting = _next_run_key(
        instance, stage_tiles.name, folder.key, f"{folder.key}:{plan.fingerprint}:{event}"
    )
    if run_key is None:
        return None, is_waiting
    if failures and "~" in run_key:  # the run before was stopped by tiles that fail
        return None, False
    request = dg.RunRequest(
        run_key=run_key,
        tags={RANGE_START: ends[0], RANGE_END: ends[1], IMAGE: folder.key},
        run_config={
            "ops": {"staged_labels": {"config": {"skip_staged": True, "skip_failed": True}}}
        },
    )
    return request, True


def _next_run_key(
    instance: dg.DagsterInstance, job: str, image: str, name: str
) -> tuple[str | None, bool]:
    """Return the key of the run to ask for now, None where none is due; and whether to wait."""
    filters = dg.RunsFilter(job_name=job, tags={IMAGE: image})
    taking = taking_of(instance, name, filters, now=now())
    if taking.state in (State.NO_RUN, State.DUE):
        return taking.run_key(name), True
    return None, taking.state in (State.GOES_ON, State.WAITS)


@dg.sensor(
    job=merge_image,
    minimum_interval_seconds=EVERY_ROUND,
    default_status=dg.DefaultSensorStatus.RUNNING,
    description="Merges every image whose tiles are all staged, also when one was staged again.",
)
def merging_sensor(
    context: dg.SensorEvaluationContext, store: LabelStore, automation: Automation
) -> dg.SensorResult | dg.SkipReason:
    """Request a merge of every complete image whose labels were made of other staged tiles."""
    off = automation.why_off()
    if off:
        return dg.SkipReason(off)
    record: dict[str, Any] = cursor_record(context.cursor)
    instance, since = context.instance, EventCursor.from_json(record.get("staged"))
    staged, of_tiles = new_partitions(instance, "staged_labels", since, limit=EVENTS_PER_TICK)
    # An image that is planned again and has all its tiles goes straight to here.
    since = EventCursor.from_json(record.get("measured"))
    measured, of_images = new_partitions(instance, "image_statistics", since, limit=IMAGES_PER_TICK)
    heard_of = unique([*map(image_of, staged), *measured])
    partitions = set(context.instance.get_dynamic_partitions(str(images.name)))
    due = {key: when for key, when in record.get("waiting", {}).items() if key in partitions}
    faults_before = record.get("faults")
    faults = ImageFaults(context.log.warning, faults_before)
    time_now = now()
    candidates = [key for key in heard_of if key in partitions]
    # What is due later than is ever said was said before the clock was set back.
    latest = time_now + SECONDS_TO_LOOK_AGAIN
    candidates += [
        key for key, when in due.items() if not time_now < when <= latest and key not in heard_of
    ]
    jobs = [stage_tiles.name, repair_image.name, merge_image.name]
    busy = busy_images(context.instance, jobs) if candidates else frozenset()
    requests = []
    for key in candidates:
        due.pop(key, None)
        if key in busy:
            due[key] = time_now
            continue
        request, is_waiting = None, True
        with faults.about(key):
            request, is_waiting = _merge_request(context.instance, store.folder(key))
        if request is not None:
            requests.append(request)
        if is_waiting:
            due[key] = time_now + SECONDS_TO_LOOK_AGAIN
    return dg.SensorResult(
        run_requests=requests,
        skip_reason=None if requests else f"no image to merge; {len(due)} are not complete",
        cursor=json.dumps(
            {
                "staged": of_tiles.to_json(),
                "measured": of_images.to_json(),
                "waiting": dict(_last(due.items(), MAX_WAITING)),
                "faults": dict(_last(_still(faults_before, faults, due), MAX_WAITING)),
            }
        ),
    )


def _merge_request(
    instance: dg.DagsterInstance, folder: ImageFolder
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
    event = latest_event(instance, "merged_labels", folder.key)
    run_key, is_waiting = _next_run_key(
        instance, merge_image.name, folder.key, f"{folder.key}:{content}:{event}"
    )
    if run_key is None:
        return None, is_waiting
    tags = {IMAGE: folder.key}
    return dg.RunRequest(run_key=run_key, partition_key=folder.key, tags=tags), True


def merged_content(folder: ImageFolder) -> str | None:
    """Return the digest of the staged labels that the merged labels were made of."""
    provenance = folder.provenance(folder.plan())
    return None if provenance is None else provenance.get("stage")


def _has_stage(folder: ImageFolder) -> bool:
    """Tell whether an image is planned and its stage was not retired."""
    return folder.has("plan.json") and (folder.path / "stage.zarr" / "plan.json").exists()


def _still(record: Any, faults: ImageFaults, due: Iterable[str]) -> list[tuple[str, str]]:
    """Return what is wrong with images, those included that were not looked at this time."""
    before = record if isinstance(record, dict) else {}
    return list({**{key: before[key] for key in due if key in before}, **faults.found}.items())


def _last(items: Iterable[Any], count: int) -> list[Any]:
    return list(items)[-count:]
