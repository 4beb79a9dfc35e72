"""Schedules: reprocess what is outdated, retry what failed by chance, retire what is finished.

All start stopped, because each spends hours of computing, or removes stages: whoever wants one
switches it on.
"""

from collections.abc import Callable, Iterable, Iterator

import dagster as dg

from patchworks_pipeline.assets.merging import CODE_VERSION as MERGE_CODE_VERSION
from patchworks_pipeline.assets.staging import blocks_to_repair
from patchworks_pipeline.automation.jobs import repair_run
from patchworks_pipeline.automation.retention import is_retired
from patchworks_pipeline.image_faults import ImageFaults
from patchworks_pipeline.lineage import Lineage
from patchworks_pipeline.partitions import IMAGE
from patchworks_pipeline.records import ImageFolder
from patchworks_pipeline.resources.resources import Automation, LabelStore, SegmentationDefaults

CODE_VERSION = "dagster/code_version"
"""Tag that Dagster gives every materialization."""

EVERY_SUNDAY, EVERY_NIGHT, EVERY_MORNING = "0 1 * * 0", "0 2 * * *", "0 5 * * *"


def make_schedules(
    timezone: str = "UTC", lineage: Lineage | None = None
) -> list[dg.ScheduleDefinition]:
    """Return the schedules, their hours in a timezone such as ``Europe/Berlin``."""
    lineage = lineage or Lineage()
    return [
        dg.schedule(
            name=lineage.name(function.__name__),
            cron_schedule=hours,
            job_name=lineage.name(job),
            execution_timezone=timezone,
            description=description,
        )(lineage.bound(function))
        for function, job, hours, description in (
            (
                reprocess_outdated,
                "plan_image",
                EVERY_SUNDAY,
                "Plans images again that were segmented by another function, version or tiling "
                "than they would be now; staging and merging follow.",
            ),
            (
                remerge_outdated,
                "merge_image",
                EVERY_SUNDAY,
                "Merges images again whose labels were merged by an older code version.",
            ),
            (
                retry_transient,
                "repair_image",
                EVERY_NIGHT,
                "Stages tiles again that failed of something that passes: memory, I/O, a killed "
                "worker.",
            ),
            (
                retire_finished,
                "retire_images",
                EVERY_MORNING,
                "Removes stages and tile partitions of images that were merged long ago.",
            ),
        )
    ]


Requests = Iterator[dg.RunRequest | dg.SkipReason]


def reprocess_outdated(
    context: dg.ScheduleEvaluationContext,
    lineage: Lineage,
    store: LabelStore,
    segmentation: SegmentationDefaults,
    automation: Automation,
) -> Requests:
    """Ask for a new plan of every image whose plan would be another now."""

    def requests(key: str) -> Iterator[dg.RunRequest]:
        fingerprint = outdated_by(store.folder(key, lineage.segmentation), segmentation)
        if fingerprint is not None:
            yield dg.RunRequest(
                run_key=f"{key}:{fingerprint}", partition_key=key, tags={IMAGE: key}
            )

    return _of_all_images(context, lineage, automation, requests)


def remerge_outdated(
    context: dg.ScheduleEvaluationContext,
    lineage: Lineage,
    store: LabelStore,
    automation: Automation,
) -> Requests:
    """Ask for a merge of every image that was merged by older code."""

    def requests(key: str) -> Iterator[dg.RunRequest]:
        if not is_retired(store.folder(key, lineage.segmentation)) and has_older_code(
            context.instance, lineage, key
        ):
            yield dg.RunRequest(partition_key=key, tags={IMAGE: key})

    return _of_all_images(context, lineage, automation, requests)


def retry_transient(
    context: dg.ScheduleEvaluationContext,
    lineage: Lineage,
    store: LabelStore,
    automation: Automation,
) -> Requests:
    """Ask for the tiles that failed by chance, once a night."""
    night = context.scheduled_execution_time.date().isoformat()

    def requests(key: str) -> Iterator[dg.RunRequest]:
        folder = store.folder(key, lineage.segmentation)
        if not folder.has("plan.json") or is_retired(folder):
            return
        if blocks_to_repair(folder, only_transient=True):
            yield repair_run(lineage, key, run_key=f"{key}:{night}", only_transient=True)

    return _of_all_images(context, lineage, automation, requests)


def retire_finished(
    context: dg.ScheduleEvaluationContext, automation: Automation
) -> dg.RunRequest | dg.SkipReason:
    """Ask for the run that retires images."""
    off = automation.why_off()
    if off:
        return dg.SkipReason(off)
    return dg.RunRequest(run_key=context.scheduled_execution_time.date().isoformat())


def _of_all_images(
    context: dg.ScheduleEvaluationContext,
    lineage: Lineage,
    automation: Automation,
    requests: Callable[[str], Iterable[dg.RunRequest]],
) -> Requests:
    """Yield what is asked for of each image; one that is at fault is named, the rest served."""
    off = automation.why_off()
    if off:
        yield dg.SkipReason(off)
        return
    faults = ImageFaults(context.log.warning)
    for key in context.instance.get_dynamic_partitions(str(lineage.images.name)):
        of_image: list[dg.RunRequest] = []
        with faults.about(key):
            of_image = list(requests(key))
        yield from of_image


def outdated_by(folder: ImageFolder, segmentation: SegmentationDefaults) -> str | None:
    """Return the fingerprint an image's plan would have now, if it is another than it has.

    An image that was never planned is not outdated. The plan's fingerprint covers the image's
    content, the grid, and the function with its parameters and version; a function of an
    installed package has the package's version.
    """
    if not (folder.has("plan.json") and folder.is_registered):
        return None
    acquisition = folder.acquisition()
    recorded = folder.plan()
    plan = segmentation.plan_of(acquisition, segmentation.open(acquisition), folder)
    return None if plan.fingerprint == recorded.fingerprint else plan.fingerprint


def has_older_code(instance: dg.DagsterInstance, lineage: Lineage, image: str) -> bool:
    """Tell whether the merged labels of an image were made by another code version than is here."""
    records = instance.fetch_materializations(
        dg.AssetRecordsFilter(asset_key=lineage.key("merged_labels"), asset_partitions=[image]),
        limit=1,
    ).records
    if not records or records[0].asset_materialization is None:
        return False
    made_by = (records[0].asset_materialization.tags or {}).get(CODE_VERSION)
    return made_by is not None and made_by != _merge_code_version()


def _merge_code_version() -> str:
    return MERGE_CODE_VERSION
