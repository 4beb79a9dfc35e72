"""The sensor that takes acquisitions: what is complete is planned and measured, each version once.

It decides by what is on disk and in the instance; its cursor says only what was looked at when,
and what was asked for. So a tick that is missed, repeated, or begins again from nothing requests
nothing twice.
"""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from math import prod
from typing import Any

import dagster as dg

from patchworks_core.errors import PlanError
from patchworks_pipeline.assets.acquisitions import landed, verdict
from patchworks_pipeline.assets.lost_choices import has_results
from patchworks_pipeline.automation import events
from patchworks_pipeline.automation.alerts import MEMORY, Alert, Alerts, tell_of_lasting
from patchworks_pipeline.automation.batches import BATCH, SmallImage, batch_run
from patchworks_pipeline.automation.defining import running_sensor
from patchworks_pipeline.automation.events import (
    MAX_WAITING,
    cursor_record,
    last,
    unique,
)
from patchworks_pipeline.automation.jobs import Job
from patchworks_pipeline.automation.priorities import Step, priority_tags
from patchworks_pipeline.automation.taking import (
    TRIES,
    VERSION,
    Registering,
    State,
    Taking,
    is_planned,
    taking_of,
)
from patchworks_pipeline.image_faults import IMAGE_FAULTS, ImageFaults, words_of
from patchworks_pipeline.instance.tile_partitions import has_own_storage
from patchworks_pipeline.landing.arrivals import (
    LOOKED_AGAIN,
    Arrival,
    Ledger,
    Quarantine,
    Refusal,
    Version,
    Watch,
    look,
    looks_from_json,
    looks_to_json,
    why_unreadable,
)
from patchworks_pipeline.landing.candidates import Candidate, check_landing, find_candidates
from patchworks_pipeline.landing.opening import with_setting
from patchworks_pipeline.landing.registered import LEDGER, registered_keys
from patchworks_pipeline.lineage import BATCH_JOB, Lineage, Mount
from patchworks_pipeline.partitions import IMAGE, image_key
from patchworks_pipeline.records import ImageFolder
from patchworks_pipeline.resources.resources import AcquisitionSource, Automation, LabelStore

REFUSALS_PER_TICK = 100
"""Refusals that one tick reports."""

MANY = 10
"""Small acquisitions at once that are taken in batches; fewer have runs of their own."""


def define_landing_sensor(mount: Mount, jobs: Sequence[Job]) -> dg.SensorDefinition:
    """Define the sensor that takes up acquisitions.

    Parameters
    ----------
    mount : Mount
    jobs : sequence of jobs
        Those that plan an image, and that take a batch.
    """
    lineage = mount.shared
    return running_sensor(
        lineage,
        landing_sensor,
        mount=mount,
        jobs=jobs,
        description="Takes up acquisitions that landed: complete ones, each version once.",
    )


def landing_sensor(
    context: dg.SensorEvaluationContext,
    mount: Mount,
    lineage: Lineage,
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
    ledger = Ledger.read(store.path() / LEDGER)
    if ledger.damage:
        context.log.warning(ledger.damage)
    before = dict(ledger.taken), dict(ledger.keys)
    quarantine = Quarantine(store.path() / ".quarantine")
    quarantine.note_told(record.get("told", []))  # by a tick that came to its end
    faults_before = record.get("faults")
    faults = ImageFaults(context.log.warning, faults_before)
    candidates = _candidates(source, store, ledger, faults)
    decisions = _Decisions(context.instance, mount, store, source, automation, ledger, quarantine)
    decisions.go_on(record, faults)
    folders = [c.url for c in candidates if c.is_folder and c.url in ledger.taken]
    turn = int(record.get("turn", 0))
    arrivals = look(
        candidates,
        Watch(source.settle_seconds, source.max_per_tick),
        now=events.now(),
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
            decisions.try_to_take(arrival)
    decisions.gather()
    is_begun = ledger.is_new and bool(candidates)
    if (ledger.taken, ledger.keys) != before or ledger.damage or is_begun:
        ledger.write()
    refused = quarantine.untold()[:REFUSALS_PER_TICK]
    messages = _alerts_of(refused, quarantine, lineage)
    alerts.send(messages, memory=store.path() / MEMORY, log=context.log)
    tell_of_lasting(faults, faults_before, lineage, alerts, store, context.log)
    cursor = {
        "seen": looks_to_json(arrivals.looks),
        "asked": decisions.pending,
        "turn": (turn + LOOKED_AGAIN) % max(1, len(folders)),
        "faults": dict(last(faults.found.items(), MAX_WAITING)),
        "left": last(sorted(decisions.left), MAX_WAITING),
        "failed": dict(last(decisions.registering.failed.items(), MAX_WAITING)),
        "told": [refusal.name for refusal in refused],
    }
    return decisions.result(
        refused,
        json.dumps(cursor, separators=(",", ":")),
        otherwise=_nothing_to_take(len(candidates), arrivals.n_waiting),
    )


@dataclass(slots=True)
class _Decisions:
    """What a tick of the landing sensor does about what arrived, and about what it asked for."""

    instance: dg.DagsterInstance
    mount: Mount
    store: LabelStore
    source: AcquisitionSource
    automation: Automation
    ledger: Ledger
    quarantine: Quarantine

    registering: Registering = field(default_factory=lambda: Registering(events.now()))
    """What could not be registered."""

    keys: list[str] = field(default_factory=list)
    """Images that runs are requested for."""

    small: list[Arrival] = field(default_factory=list)
    """Small ones that are to be taken, of which there was no run before."""

    requests: list[dg.RunRequest] = field(default_factory=list)

    left: set[str] = field(default_factory=set)
    """URLs of what a batch did not come to; it is taken in a batch again."""

    reports: list[dg.AssetMaterialization | dg.AssetCheckEvaluation] = field(default_factory=list)
    """What is reported of acquisitions that are taken."""

    pending: dict[str, list[str]] = field(default_factory=dict)
    """Name, signature and glance of the version that runs are at, or will be, by URL.

    Where that is a run that takes a batch, also which.
    """

    _at_work: dict[str, bool] = field(default_factory=dict)

    @property
    def lineage(self) -> Lineage:
        """The names of what all segmentations of an image share."""
        return self.mount.shared

    def under_way(self) -> dict[str, Version]:
        """Return the versions that runs are at, by URL."""
        return {
            url: Version(signature, glance)
            for url, (_, signature, glance, *_) in self.pending.items()
        }

    def go_on(self, record: Mapping[str, Any], faults: ImageFaults) -> None:
        """Look after what earlier ticks asked for, as the cursor says."""
        self.registering = Registering.of_cursor(record.get("failed"), now=events.now())
        self.left.update(record.get("left", []))
        for url, version in record.get("asked", {}).items():
            with faults.about(str(url)):
                self.look_after(url, *version)

    def look_after(self, url: str, name: str, signature: str, glance: str, batch: str = "") -> None:
        """See what came of a request: taken, under way, due again, or given up.

        A daemon may die between a tick and its runs. What has no run, and what is due again, is
        let go of here: it settles, arrives, and is requested.
        """
        key = name.partition(f"-{signature}")[0]
        taking = self._taking(key, name, signature)
        version = Version(signature, glance)
        if taking.state is State.DONE:
            self._note_taken(url, version, key)
        elif taking.state in (State.GOES_ON, State.WAITS) or self._is_batch_at_work(batch):
            self.pending[url] = [name, signature, glance, batch]
        elif batch and taking.state is State.NO_RUN:
            self.left.add(url)
        elif taking.state is State.GIVEN_UP:
            self.ledger.keys[url] = key
            if self._is_planned(key):  # by hand, since
                self._note_taken(url, version, key)
                return
            self.quarantine.record(name, taking.reason, url, key, signature)

    def _note_taken(self, url: str, version: Version, key: str) -> None:
        self.ledger.taken[url], self.ledger.keys[url] = version, key

    def _is_batch_at_work(self, batch: str) -> bool:
        """Tell whether a batch goes on, and may come to an image that it has not begun."""
        if batch and batch not in self._at_work:
            filters = dg.RunsFilter(
                job_name=self.lineage.name(BATCH_JOB),
                tags={BATCH: batch},
                statuses=events.IN_PROGRESS,
            )
            self._at_work[batch] = bool(self.instance.get_runs(filters, limit=1))
        return self._at_work.get(batch, False)

    def _is_planned(self, key: str) -> bool:
        """Tell whether each segmentation of an image is planned in the content it has now."""
        names = [lineage.segmentation for lineage in self.mount.lineages]
        return all(is_planned(self.store.folder(key, name)) for name in names)

    def _taking(self, key: str, name: str, signature: str) -> Taking:
        tags = {IMAGE: key, VERSION: signature}
        filters = dg.RunsFilter(job_name=self.lineage.name("plan_image"), tags=tags)
        return taking_of(self.instance, name, filters, now=events.now())

    def try_to_take(self, arrival: Arrival) -> None:
        """Take an acquisition; one that cannot be registered again and again is quarantined."""
        if self.registering.is_early(arrival.name):
            return
        try:
            self.take(arrival)
        except IMAGE_FAULTS as error:
            self.pending.pop(arrival.candidate.url, None)
            if not self.registering.note(arrival.name, error):
                raise
            why = f"{TRIES} tries to register it failed, the last one of: {words_of(error)}"
            self.quarantine.refuse(arrival, why)
            return
        self.registering.failed.pop(arrival.name, None)

    def take(self, arrival: Arrival) -> None:
        """Request the plan of an acquisition, or refuse it."""
        by_hand = self._as_registered_by_hand(arrival)
        if by_hand is not arrival and by_hand.name in self.quarantine.names():
            return
        arrival = by_hand
        candidate, version = arrival.candidate, arrival.version
        folder = self.store.folder(candidate.key) if candidate.key else None
        why = _why_refused(arrival, folder)
        if folder is None or why is not None:
            self.quarantine.refuse(arrival, why or "")
            return
        if candidate.url not in self.ledger.taken and self._is_planned(folder.key):
            # Planned by hand, or taken before the ledger was lost.
            self._note_taken(candidate.url, version, folder.key)
            return
        taking = self._taking(candidate.key, arrival.name, version.signature)
        if taking.state is State.DONE:
            self._note_taken(candidate.url, version, folder.key)
            return
        self.pending[candidate.url] = [arrival.name, version.signature, version.glance]
        if taking.state in (State.GOES_ON, State.WAITS):
            return
        # Where results are there, a run looks first whether they are of the same choices.
        if not folder.is_registered and not has_results(folder):
            folder.write_acquisition(candidate.acquisition())
        self.ledger.keys[candidate.url] = folder.key  # also where no run of it ever succeeds
        self.keys.append(candidate.key)
        facts = {"path": dg.MetadataValue.path(candidate.url), "size_bytes": candidate.n_bytes}
        self.reports += [
            landed(self.lineage, candidate.key, version.signature, facts),
            verdict(self.lineage, self._partition_of_check(candidate.key), candidate.url, None),
        ]
        is_first = taking.state is State.NO_RUN and not self.mount.segmentations
        if is_first and is_small(arrival, self.source):
            self.small.append(arrival)
        else:
            self.requests.append(self._plan_request(arrival, taking.run_key(arrival.name)))

    def _as_registered_by_hand(self, arrival: Arrival) -> Arrival:
        """Return it under the key that its file name makes, where a person registered it so."""
        candidate = arrival.candidate
        if self.ledger.keys.get(candidate.url):
            return arrival
        try:
            folder = self.store.folder(image_key(candidate.url))
            if not folder.is_registered or folder.acquisition().url != candidate.url:
                return arrival
        except PlanError:  # no key, or the damaged record of another
            return arrival
        self.ledger.keys[candidate.url] = folder.key
        return replace(arrival, candidate=replace(candidate, key=folder.key))

    def gather(self) -> None:
        """Request batches of small images: of those that are urgent, and of many at once."""
        for is_urgent in (True, False):
            small = [item for item in self.small if item.candidate.is_urgent == is_urgent]
            was_left = any(arrival.candidate.url in self.left for arrival in small)
            if not is_urgent and len(small) < MANY and not was_left:
                self.requests += [self._plan_request(arrival, arrival.name) for arrival in small]
                continue
            n = self.source.images_per_run
            for start in range(0, len(small), n):
                self._request_batch(small[start : start + n], int(is_urgent))

    def _request_batch(self, arrivals: list[Arrival], level: int) -> None:
        request = batch_run(
            self.instance,
            self.lineage,
            [
                SmallImage(
                    image=arrival.candidate.key,
                    version=arrival.version.signature,
                    run_key=arrival.name,
                )
                for arrival in arrivals
            ],
            priority_tags(level, Step.STAGE, self.automation),
        )
        self.requests.append(request)
        for arrival in arrivals:
            self.pending[arrival.candidate.url].append(request.tags[BATCH])
            self.left.discard(arrival.candidate.url)

    def _plan_request(self, arrival: Arrival, run_key: str) -> dg.RunRequest:
        key = arrival.candidate.key
        recorded = self.store.folder(key).recorded()
        level = 0 if recorded is None else recorded.priority
        return dg.RunRequest(
            run_key=run_key,
            job_name=self.lineage.name("plan_image"),
            partition_key=key,
            tags={
                IMAGE: key,
                VERSION: arrival.version.signature,
                **priority_tags(level, Step.PLAN, self.automation),
            },
        )

    def _partition_of_check(self, key: str) -> str | None:
        """Return the partition of what a check says of an image; None where it can have none.

        Dagster's own storages refuse to be told a second time, outside of runs, of one partition.
        """
        return key if has_own_storage(self.instance) else None

    def _own_key(self, refusal: Refusal) -> str | None:
        """Return the partition of a refused acquisition; None where that is another one's."""
        if not refusal.key or self._partition_of_check(refusal.key) is None:
            return None
        folder = self.store.folder(refusal.key)
        try:
            is_others = folder.has("acquisition.json") and folder.acquisition().url != refusal.url
        except PlanError:
            is_others = False
        return None if is_others else refusal.key

    def result(self, refused: Sequence[Refusal], cursor: str, *, otherwise: str) -> dg.SensorResult:
        """Return what the sensor answers; `otherwise` is why nothing is requested."""
        refused_keys = [self._own_key(refusal) for refusal in refused]
        keys = unique([*self.keys, *filter(None, refused_keys)])
        return dg.SensorResult(
            run_requests=self.requests,
            skip_reason=None if self.requests else otherwise,
            dynamic_partitions_requests=[self.lineage.images.build_add_request(keys)]
            if keys
            else [],
            asset_events=[
                *self.reports,
                *(
                    verdict(self.lineage, key, refusal.url, refusal.reason)
                    for key, refusal in zip(refused_keys, refused, strict=True)
                ),
            ],
            cursor=cursor,
        )


def _candidates(
    source: AcquisitionSource, store: LabelStore, ledger: Ledger, faults: ImageFaults
) -> list[Candidate]:
    """Return what lies in the landing folder, under the keys that it has."""
    layout = source.layout()
    with faults.about(layout.landing):
        check_landing(layout)
    candidates = find_candidates(layout, taken=ledger.taken, faults=faults)
    if candidates and ledger.lacks_keys:
        ledger.recall(registered_keys(store.path()), {c.url: c.key for c in candidates})
    return [replace(c, key=ledger.keys.get(c.url) or c.key) for c in candidates]


def _alerts_of(refused: Sequence[Refusal], quarantine: Quarantine, lineage: Lineage) -> list[Alert]:
    """Return what people are told: why an acquisition was refused, and how it is tried again."""
    return [
        Alert(
            refusal.key,
            f"{refusal.url}: {refusal.reason}; {quarantine.release(refusal.name)}",
            lineage.link("acquisition"),
        )
        for refusal in refused
    ]


def _why_refused(arrival: Arrival, folder: ImageFolder | None) -> str | None:
    """Return why a complete acquisition cannot be taken, in words."""
    name, url = arrival.candidate.name, arrival.candidate.url
    if folder is None:
        return f"no partition key can be made of the name {name!r}; rename it"
    acquisition = arrival.candidate.acquisition()
    if folder.is_registered:
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


def is_small(arrival: Arrival, source: AcquisitionSource) -> bool:
    """Tell whether an acquisition may be taken together with others in one run."""
    candidate = arrival.candidate
    if source.images_per_run == 1 or candidate.others:
        return False
    n_bytes = candidate.n_bytes
    if n_bytes is None:  # a folder, which was opened a moment ago
        image = candidate.acquisition().open()
        n_bytes = prod(image.shape) * image.dtype.itemsize
    return n_bytes < source.small_megabytes * 1e6


def _nothing_to_take(n_candidates: int, n_waiting: int) -> str:
    return f"nothing to take: {n_candidates} acquisitions here, {n_waiting} not complete yet"
