"""Retention: tile partitions and stages of finished images go, so that what is kept is bounded.

1. More tile partitions of a segmentation than `Retention.max_live_keys`: those of the images that
   were finished first are removed, with what was logged of them. Their stages stay. Segmentations
   have an asset and a partition set each, and what Dagster advises is of one asset.
2. Finished longer ago than `Retention.days`: the stage is removed too.

Labels, tables, records and the image's own partition are never touched. An image with failed or
missing tiles, or at work, is never retired. To take up a retired one, materialize ``image``: its
tiles become partitions anew, staged as its stage says.
"""

from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from time import time as now
from typing import ClassVar

import dagster as dg
from pydantic import Field

from patchworks_core.files.storage import discard
from patchworks_pipeline.automation.alerts import MEMORY, Alert, Alerts
from patchworks_pipeline.automation.events import IN_PROGRESS, images_of_run
from patchworks_pipeline.automation.sensors import labels_content
from patchworks_pipeline.image_faults import ImageFaults
from patchworks_pipeline.instance.tile_partitions import (
    live_tile_keys,
    purge_tile_events,
    remove_tile_keys,
)
from patchworks_pipeline.lineage import Lineage
from patchworks_pipeline.records import ImageFolder
from patchworks_pipeline.resources.resources import LabelStore
from patchworks_pipeline.resources.settings import Deployed, setting

SECONDS_PER_DAY = 86_400

DAGSTERS_ADVICE = 100_000
"""Partitions of one asset, at most, that Dagster's UI and daemon are made for."""

SHOWN_IMAGES = 5
"""Images that an alert names."""


class Retention(Deployed):
    """How much is kept of finished images beside their labels and tables."""

    section: ClassVar[str] = "retention"

    enabled: bool = setting(True, description="False: nothing is retired by itself.")
    max_live_keys: int = setting(
        50_000,
        ge=1,
        description="Tile partitions of all images, of each segmentation; above, those of the "
        "images that were finished first are removed. Dagster advises "
        f"{DAGSTERS_ADVICE:,} at most of one asset.",
    )
    days: float = setting(
        30.0, ge=0, description="Stages go of images whose labels were merged longer ago."
    )


class RetentionConfig(dg.Config):
    """What one run retires."""

    days: float | None = Field(
        default=None,
        ge=0,
        allow_inf_nan=False,
        description="Stages go of images whose labels were merged longer ago; left out, as the "
        "resource 'retention' says.",
    )
    all_images: bool = Field(
        default=True,
        description="False looks only at images whose tiles are partitions.",
    )


@dataclass(frozen=True, slots=True)
class Finished:
    """An image that may be retired."""

    folder: ImageFolder
    merged: float
    """When, seconds since 1970."""


@dataclass(slots=True)
class _Retiring:
    """One run of retention: what there is, and what was done."""

    context: dg.OpExecutionContext
    lineage: Lineage
    store: LabelStore
    faults: ImageFaults
    live: dict[str, list[str]]
    """Tile partitions, by image; those that are retired leave it."""

    why_not: dict[str, str]
    """Why an image may not be retired, in words."""

    newest: int | None
    """Storage id of the newest run when it was looked which images are at work."""

    n_images: int = 0
    n_tiles: int = 0

    @property
    def n_live(self) -> int:
        """Tile partitions that there are now."""
        return sum(map(len, self.live.values()))

    def finished(self, images: Iterable[str]) -> list[Finished]:
        """Return which of some images may be retired, those first that were finished first."""
        finished = []
        for image in images:
            if image in self.why_not:
                continue
            with self.faults.about(image):
                folder = self.store.folder(image, self.lineage.segmentation)
                if image not in self.live and not folder.has("stage.zarr/plan.json"):
                    continue  # nothing of it is left to retire
                why = _why_unfinished(folder)
                if why is None:
                    merged = _merged_when(self.context.instance, self.lineage, image)
                    finished.append(Finished(folder, merged))
                else:
                    self.why_not[image] = why
        return sorted(finished, key=lambda image: (image.merged, image.folder.key))

    def retire(self, folder: ImageFolder, *, keeps_stage: bool) -> None:
        """Retire an image; one that is at fault is named, and the others are served."""
        keys = self.live.get(folder.key, [])
        with self.faults.about(folder.key):
            instance, lineage = self.context.instance, self.lineage
            why = self._why_not_any_more(folder)
            if why is not None:
                self.why_not[folder.key] = why
                self.context.log.info(f"{folder.key} is left: it is {why} by now")
                return
            is_purged = retire(instance, lineage, folder, keys, keeps_stage=keeps_stage)
            self.live.pop(folder.key, None)
            self.n_images, self.n_tiles = self.n_images + 1, self.n_tiles + len(keys)
            what = "tile partitions" if keeps_stage else "tile partitions and the stage"
            left = "" if is_purged else "; what was logged of them stays, see docs/deploy.md"
            self.context.log.info(f"{folder.key}: {len(keys)} {what} retired{left}")

    def _why_not_any_more(self, folder: ImageFolder) -> str | None:
        """Return why an image may not be retired after all; None where it may.

        Many are retired one after the other, and runs begin meanwhile.
        """
        newest = newest_run(self.context.instance)
        if newest == self.newest:
            return None
        if folder.key in images_at_work(self.context.instance, self.lineage):
            return "in work"
        return _why_unfinished(folder)


def retire_old_stages(
    context: dg.OpExecutionContext,
    lineage: Lineage,
    config: RetentionConfig,
    store: LabelStore,
    retention: Retention,
    alerts: Alerts,
) -> None:
    """Retire the images that were finished first, or long enough ago."""
    instance = context.instance
    newest = newest_run(instance)
    at_work = dict.fromkeys(images_at_work(instance, lineage), "in work")
    faults = ImageFaults(context.log.warning)
    live = live_tile_keys(instance, lineage)
    run = _Retiring(context, lineage, store, faults, live, at_work, newest)
    days = retention.days if config.days is None else config.days
    before = now() - days * SECONDS_PER_DAY
    candidates = list(run.live)
    if config.all_images:
        partitions = instance.get_dynamic_partitions(str(lineage.images.name))
        candidates += [key for key in partitions if key not in run.live]
    for image in run.finished(candidates):
        is_old = image.merged < before
        is_begun = image.folder.key in run.live and image.folder.is_retired
        if is_old or is_begun or run.n_live > retention.max_live_keys:
            run.retire(image.folder, keeps_stage=not is_old)
    context.add_output_metadata(
        {
            "n_images_retired": run.n_images,
            "n_tiles_retired": run.n_tiles,
            "n_tile_partitions": run.n_live,
        }
    )
    if run.n_live > retention.max_live_keys:
        why_not = {**run.why_not, **dict.fromkeys(faults.found, "with a damaged record")}
        alert = over_budget(lineage, run.live, why_not, retention.max_live_keys)
        alerts.send([alert], memory=store.path() / MEMORY, log=context.log)


def define_retire_images(lineage: Lineage) -> dg.JobDefinition:
    """Define the job that retires images; their labels stay."""
    retire_stages = dg.op(name=lineage.name("retire_old_stages"))(lineage.bound(retire_old_stages))

    @dg.job(
        name=lineage.name("retire_images"),
        description="Remove tile partitions and stages of images that were finished long ago.",
        executor_def=dg.in_process_executor,
    )
    def retire_images() -> None:
        retire_stages()

    return retire_images


def retire(
    instance: dg.DagsterInstance,
    lineage: Lineage,
    folder: ImageFolder,
    keys: Sequence[str],
    *,
    keeps_stage: bool,
) -> bool:
    """Remove the tile partitions of an image, and its stage; if cut short, call it again.

    Returns
    -------
    bool
        Whether what was logged of the tiles is removed too.
    """
    if not folder.is_retired:
        folder.write_retired(labels_content(folder), len(keys))
    # The partitions go last: they are how an image is found that was not retired to the end.
    if not keeps_stage:
        discard(folder.path / "stage.zarr")
    n_events = purge_tile_events(instance, lineage.key("staged_labels"), keys)
    remove_tile_keys(instance, lineage, keys)
    return n_events is not None


def is_retired(folder: ImageFolder) -> bool:
    """Tell whether the tiles of an image are no partitions any more, and its labels kept."""
    return folder.is_retired


def newest_run(instance: dg.DagsterInstance) -> int | None:
    """Return the storage id of the newest run in the books; None where there is none."""
    records = instance.get_run_records(limit=1)
    return records[0].storage_id if records else None


def images_at_work(instance: dg.DagsterInstance, lineage: Lineage) -> frozenset[str]:
    """Return the images that a run is at, or will be."""
    runs = instance.get_runs(dg.RunsFilter(statuses=IN_PROGRESS))
    own = [run for run in runs if lineage.has_run(run) or lineage.shared.has_run(run)]
    return frozenset(image for run in own for image in images_of_run(instance, lineage, run))


def over_budget(
    lineage: Lineage,
    live: Mapping[str, Sequence[str]],
    why_not: Mapping[str, str],
    max_live_keys: int,
) -> Alert:
    """Return the alert that there are too many tile partitions and no image may be retired."""
    n_live = sum(map(len, live.values()))
    reasons = Counter(why_not.get(image, "just finished") for image in live)
    images_by_reason = ", ".join(f"{n} {reason}" for reason, n in reasons.most_common())
    largest = sorted(live, key=lambda image: -len(live[image]))[:SHOWN_IMAGES]
    named = ", ".join(
        f"{image} ({len(live[image])}, {why_not.get(image, 'just finished')})" for image in largest
    )
    of = f" of segmentation {lineage.segmentation!r}" if lineage.segmentation else ""
    cause = (
        f"{n_live} tile partitions{of} are live, more than "
        f"retention.max_live_keys={max_live_keys}, and no image may be retired\n"
        f"images: {images_by_reason}; the largest: {named}. Repair or merge them, or raise the "
        f"limit; the UI slows down, and Dagster advises {DAGSTERS_ADVICE} at most"
    )
    return Alert("", cause, f"{lineage.link('staged_labels')}?view=partitions")


def _why_unfinished(folder: ImageFolder) -> str | None:
    """Return why an image may not be retired, in words; None where it may."""
    if folder.is_retired:  # with its stage, or cut short
        return None
    if not folder.has("plan.json") or not folder.has("stage.zarr/plan.json"):
        return "without a stage"
    stage = folder.stage()
    if stage.missing_blocks():
        return "with failed tiles" if folder.failures() else "not staged"
    return None if labels_content(folder) == stage.content() else "not merged"


def _merged_when(instance: dg.DagsterInstance, lineage: Lineage, image: str) -> float:
    """Return when an image was merged; just now where the instance does not know."""
    records = instance.fetch_materializations(
        dg.AssetRecordsFilter(asset_key=lineage.key("merged_labels"), asset_partitions=[image]),
        limit=1,
    ).records
    return records[0].timestamp if records else now()
