"""Why an image has no plan: what the last run that was to plan it failed of, as the books say."""

import dagster as dg

from patchworks_pipeline.automation.events import PARTITION
from patchworks_pipeline.automation.jobs import PLANNED
from patchworks_pipeline.cli.advice import command_on
from patchworks_pipeline.image_faults import error_of_step, with_way_out
from patchworks_pipeline.lineage import ASSET_JOB, Lineage
from patchworks_pipeline.records import ImageFolder


def why_unplanned(instance: dg.DagsterInstance, folder: ImageFolder) -> str | None:
    """Say why an image could not be planned, and what to type; None where nobody tried, or it is.

    Parameters
    ----------
    instance : DagsterInstance
    folder : ImageFolder
    """
    if folder.has("plan.json"):
        return None
    lineage = Lineage((), folder.segmentation)
    steps = {lineage.shared.name("image"), *map(lineage.name, PLANNED)}
    jobs = dict.fromkeys((lineage.shared.name("plan_image"), lineage.name("plan_image"), ASSET_JOB))
    records = [
        record
        for job in jobs
        for record in instance.get_run_records(
            dg.RunsFilter(job_name=job, tags={PARTITION: folder.key}), limit=1
        )
    ]
    for record in sorted(records, key=lambda record: record.storage_id, reverse=True):
        run = record.dagster_run
        failed = instance.all_logs(run.run_id, of_type=dg.DagsterEventType.STEP_FAILURE)
        for event in filter(None, (entry.dagster_event for entry in failed)):
            if event.step_key in steps:
                again = f"'{command_on(folder, 'retry')}' plans it when that is mended"
                return f"{folder.title} could not be planned: {_words_of(event)}; {again}"
    return None


def _words_of(event: dg.DagsterEvent) -> str:
    """Return what a step failed of, without the module of the error's class."""
    error = error_of_step(event.step_failure_data)
    if error is None:
        return str(event.message)
    name, _, text = " ".join(error.message.split()).partition(": ")
    is_ours = name.startswith("patchworks_core.errors.")
    return with_way_out(text if is_ours else f"{name.rpartition('.')[2]}: {text}")
