"""Why an image has no plan, or that of before: what the run failed of that was to plan it."""

import dagster as dg

from patchworks_pipeline.automation.events import PARTITION
from patchworks_pipeline.automation.jobs import PLANNED
from patchworks_pipeline.cli.advice import command_on
from patchworks_pipeline.image_faults import error_of_step, with_way_out
from patchworks_pipeline.lineage import ASSET_JOB, Lineage
from patchworks_pipeline.records import ImageFolder


def why_unplanned(instance: dg.DagsterInstance, folder: ImageFolder) -> str | None:
    """Say why an image could not be planned, and what to type; None where nobody tried, or it was.

    Of one that has a plan, that is told where the last of all runs was to plan it anew.

    Parameters
    ----------
    instance : DagsterInstance
    folder : ImageFolder
    """
    has_plan = folder.has("plan.json")
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
    records.sort(key=lambda record: record.storage_id, reverse=True)
    for record in records[: 1 if has_plan else None]:
        run = record.dagster_run
        failed = instance.all_logs(run.run_id, of_type=dg.DagsterEventType.STEP_FAILURE)
        for event in filter(None, (entry.dagster_event for entry in failed)):
            if event.step_key in steps:
                again = f"'{command_on(folder, 'retry')}' plans it when that is mended"
                what = "could not be planned anew: " if has_plan else "could not be planned: "
                return f"{folder.title} {what}{_words_of(event)}; {again}"
    return None


def _words_of(event: dg.DagsterEvent) -> str:
    """Return what a step failed of, without the module of the error's class."""
    error = error_of_step(event.step_failure_data)
    if error is None:
        return str(event.message)
    name, _, text = " ".join(error.message.split()).partition(": ")
    is_ours = name.startswith("patchworks_core.errors.")
    return with_way_out(text if is_ours else f"{name.rpartition('.')[2]}: {text}")
