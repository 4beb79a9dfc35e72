"""A batch: one run that plans, stages and merges many small images, one after the other.

Each step of each image is a run of its own in the books, in the process of the batch. An image that
is at fault is named and leaves the others alone; what a batch did not come to is asked for again by
the landing sensor. Between two images a batch gives way to a more urgent run that waits.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from hashlib import blake2b
from typing import Any

import dagster as dg
from dagster._check import CheckError
from pydantic import Field

from patchworks_pipeline.assets import define_assets
from patchworks_pipeline.automation.alert_sensors import failed_checks
from patchworks_pipeline.automation.alerts import (
    MEMORY,
    Alert,
    Alerts,
    alerts_of_tiles,
    link_to_run,
)
from patchworks_pipeline.automation.events import (
    BATCH_OP,
    IMAGES_OF_BATCH,
    IN_PROGRESS,
    RANGE_END,
    RANGE_START,
)
from patchworks_pipeline.automation.jobs import define_jobs
from patchworks_pipeline.automation.priorities import WAITING, level_of_run
from patchworks_pipeline.automation.sensors import merged_content
from patchworks_pipeline.automation.taking import RUN_KEY, VERSION, is_planned
from patchworks_pipeline.image_faults import ImageFaults
from patchworks_pipeline.lineage import BATCH_JOB, Lineage, Mount
from patchworks_pipeline.partitions import tile_keys
from patchworks_pipeline.records import ImageFolder
from patchworks_pipeline.resources.resources import LabelStore

PLAN, STAGE, MERGE = "plan_image", "stage_tiles", "merge_image"
"""Jobs that take an image from its landing to its labels, in order."""

USED = ("store", "alerts")
"""Resources that a batch uses itself."""

BATCH = "patchworks/batch"
"""Tag of a run that takes a batch, and of the runs in it: which batch."""


class SmallImage(dg.Config):
    """One image of a batch."""

    image: str = Field(description="Key of the image.")
    version: str = Field(description="Signature of what landed.")
    run_key: str = Field(description="Of the run that plans it.")


class BatchConfig(dg.Config):
    """What one run takes."""

    images: list[SmallImage] = Field(description="In the order in which they are taken.")


def define_process_images(lineage: Lineage, resources: Mapping[str, Any]) -> dg.JobDefinition:
    """Define the job that takes a batch.

    Parameters
    ----------
    lineage : Lineage
    resources : mapping
        Of the deployment, by the keys that they have in its code location. They are bound here:
        Dagster would copy the sensor that asks for the job, and warns of copying one.
    """
    jobs = _Jobs(lineage, resources)
    op = dg.op(name=lineage.name(BATCH_OP), out=dg.Out(dg.Nothing))(
        lineage.bound(take_batch, jobs=jobs)
    )

    @dg.job(
        name=lineage.name(BATCH_JOB),
        description="Plan, stage and merge many small images in one run, one after the other.",
        resource_defs={lineage.resource(name): resources[lineage.resource(name)] for name in USED},
        executor_def=dg.in_process_executor,
    )
    def process_images() -> None:
        op()

    return process_images


def take_batch(
    context: dg.OpExecutionContext,
    lineage: Lineage,
    jobs: "_Jobs",
    config: BatchConfig,
    store: LabelStore,
    alerts: Alerts,
) -> None:
    """Plan, stage and merge small images, one after the other."""
    # SQLAlchemy takes half a second to import: whoever only loads the definitions goes without.
    from patchworks_pipeline.automation.in_process import InProcess

    tags = {BATCH: context.run.tags.get(BATCH, context.run_id)}
    runs = InProcess(context.instance, context.log.info, tags, captures=False)
    batch = _Batch(context, lineage, jobs, runs, store, alerts)
    faults = ImageFaults(context.log.error)
    n_done = 0
    for image in config.images:
        if _must_give_way(context.instance, context.run):
            n_left = len(config.images) - n_done
            context.log.info(f"a more urgent run waits: {n_left} images are left for later")
            break
        with faults.about(image.image):
            batch.take(image)
        n_done += 1
    batch.tell([Alert(key, why, lineage.link("image")) for key, why in faults.found.items()])
    failed = {**batch.failed, **faults.found}
    context.add_output_metadata({"n_images": n_done, "n_images_failed": len(failed)})
    if failed:
        reasons = "; ".join(f"image {key!r}: {why}" for key, why in failed.items())
        raise dg.Failure(f"{len(failed)} of {n_done} images failed: {reasons}")


@dataclass(slots=True)
class _Batch:
    """What one run of a batch works with, and what failed in it."""

    context: dg.OpExecutionContext
    lineage: Lineage
    jobs: "_Jobs"
    runs: Any
    """Runs jobs in this process."""
    store: LabelStore
    alerts: Alerts
    failed: dict[str, str] = field(default_factory=dict)
    """Why, by image."""

    def take(self, image: SmallImage) -> None:
        """Plan, stage and merge one image as far as that is missing, until something fails."""
        folder = self.store.folder(image.image, self.lineage.segmentation)
        if not is_planned(folder):
            tags = {VERSION: image.version, RUN_KEY: image.run_key}
            if not self._run(PLAN, folder, partition_key=folder.key, tags=tags):
                return
        missing = folder.stage().missing_blocks()
        if missing:
            keys = tile_keys(folder.key, missing)
            tags = {RANGE_START: keys[0], RANGE_END: keys[-1]}
            ops = {self.lineage.name("staged_labels"): {"config": {"skip_staged": True}}}
            if not self._run(STAGE, folder, tags=tags, ops=ops):
                return
        if merged_content(folder) != folder.stage().content():
            self._run(MERGE, folder, partition_key=folder.key)

    def _run(self, job: str, folder: ImageFolder, **options: Any) -> bool:
        """Run a job for an image, and tell what failed; return whether the image may go on."""
        run_id, error = self.runs.run(self.jobs.named(self.context, job), folder.key, **options)
        instance = self.context.instance
        run = instance.get_run_by_id(run_id)
        alerts = [] if run is None else failed_checks(instance, run, [folder.key])
        if error is not None:
            self.failed[folder.key] = error.message
            self.context.log.error(f"image {folder.key!r}, {job}: {error.message}")
            alerts += alerts_of_tiles(self.lineage, folder) if error.is_of_tiles else []
            alerts = alerts or [Alert(folder.key, error.message, link_to_run(run_id))]
        self.tell(alerts)
        return error is None

    def tell(self, alerts: Sequence[Alert]) -> None:
        """Tell people at once: the runs of a batch are no runs that a sensor watches."""
        self.alerts.send(alerts, memory=self.store.path() / MEMORY, log=self.context.log)


@dataclass(frozen=True, slots=True)
class _Jobs:
    """The jobs that a batch runs."""

    lineage: Lineage
    resources: Mapping[str, Any]

    def named(self, context: dg.OpExecutionContext, bare: str) -> dg.JobDefinition:
        """Return a job of the code location that a run is of; of this deployment without one."""
        name = self.lineage.name(bare)
        try:
            return context.repository_def.get_job(name)
        except CheckError:
            definitions = dg.Definitions(
                assets=define_assets(Mount(self.lineage.prefix), dg.BackfillPolicy.single_run()),
                jobs=define_jobs(self.lineage),
                resources=self.resources,
            )
            return definitions.resolve_job_def(name)


def batch_run(
    instance: dg.DagsterInstance, lineage: Lineage, images: list[SmallImage], tags: dict[str, str]
) -> dg.RunRequest:
    """Return the run that takes a batch."""
    names = "\n".join(image.run_key for image in images)
    name = blake2b(names.encode(), digest_size=8).hexdigest()
    config = {IMAGES_OF_BATCH: [image.model_dump() for image in images]}
    return dg.RunRequest(
        run_key=_next_run_key(instance, lineage, name),
        job_name=lineage.name(BATCH_JOB),
        tags={**tags, BATCH: name},
        run_config={"ops": {lineage.name(BATCH_OP): {"config": config}}},
    )


def _next_run_key(instance: dg.DagsterInstance, lineage: Lineage, name: str) -> str:
    """Return the key of the next run of a batch: a daemon starts none twice.

    A batch that ended before its first image is asked for again, and is the same batch then.
    """
    first = f"batch:{name}"
    filters = dg.RunsFilter(job_name=lineage.name(BATCH_JOB), tags={BATCH: name})
    runs = instance.get_runs(filters, limit=1)
    if not runs:
        return first
    if runs[0].status in IN_PROGRESS:
        return runs[0].tags.get(RUN_KEY, first)
    return f"{first}~{runs[0].run_id}"


def _must_give_way(instance: dg.DagsterInstance, run: dg.DagsterRun) -> bool:
    """Tell whether a more urgent run waits for a place."""
    level = level_of_run(run)
    waiting = instance.get_runs(dg.RunsFilter(statuses=WAITING))
    return any(level_of_run(other) > level for other in waiting)
