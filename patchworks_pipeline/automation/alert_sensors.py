"""Sensors that tell people: a run failed, or a check of what a run made did."""

from collections.abc import Iterable, Sequence

import dagster as dg

from patchworks_pipeline.automation.alerts import (
    MEMORY,
    Alert,
    Alerts,
    alerts_of_tiles,
    link_to_run,
)
from patchworks_pipeline.automation.defining import running_sensor
from patchworks_pipeline.automation.events import images_of_run, why_failed
from patchworks_pipeline.image_faults import ImageFaults
from patchworks_pipeline.lineage import BATCH_JOB, Mount
from patchworks_pipeline.resources.resources import LabelStore

STAGING_STEPS = ("staged_labels", "stage_missing_tiles")
"""Steps that fail by tiles."""

SHOWN_IMAGES = 3
"""Images of a batch that an alert names."""


def define_alert_sensors(mount: Mount) -> list[dg.SensorDefinition]:
    """Return the sensors that tell people of what is wrong in a deployment."""
    lineage = mount.shared
    return [
        dg.run_failure_sensor(
            name=lineage.name("run_failure_alerts"),
            minimum_interval_seconds=30,
            default_status=dg.DefaultSensorStatus.RUNNING,
            description="Tells why a run failed, once per image and cause.",
        )(lineage.bound(run_failure_alerts, mount=mount)),
        dg.run_status_sensor(
            name=lineage.name("check_failure_alerts"),
            run_status=dg.DagsterRunStatus.SUCCESS,
            minimum_interval_seconds=30,
            default_status=dg.DefaultSensorStatus.RUNNING,
            description="Tells of checks that failed in a run that did not, once per image and "
            "cause.",
        )(lineage.bound(check_failure_alerts, mount=mount)),
        running_sensor(
            lineage,
            missed_alerts,
            seconds=60,
            description="Tells again what a mail server or a webhook missed.",
        ),
    ]


def run_failure_alerts(
    context: dg.RunFailureSensorContext, mount: Mount, store: LabelStore, alerts: Alerts
) -> None:
    """Send one alert per image and cause of a run that failed."""
    run = context.dagster_run
    lineage = mount.lineage_of(run)
    if lineage is None:
        return
    keys = images_of_run(context.instance, lineage, run)
    checks = failed_checks(context.instance, run, keys)
    is_staging = not set(map(lineage.name, STAGING_STEPS)).isdisjoint(_failed_steps(context))
    faults = ImageFaults(context.log.warning)
    for key in keys if is_staging else ():
        with faults.about(key):
            checks += alerts_of_tiles(lineage, store.folder(key, lineage.segmentation))
    for key, why in faults.found.items():
        cause = f"its failed tiles cannot be read: {why}"
        checks.append(Alert(key, cause, link_to_run(run.run_id)))
    if run.job_name == lineage.name(BATCH_JOB):
        checks = [_of_batch(run, keys, why_failed(context.instance, run))]
        if _has_told(context):  # of each image that failed, while it went on
            checks = []
    elif not checks:
        cause = why_failed(context.instance, run)
        checks = [Alert(key, cause, link_to_run(run.run_id)) for key in keys or [""]]
    alerts.send(checks, memory=store.path() / MEMORY, log=context.log)


def check_failure_alerts(
    context: dg.RunStatusSensorContext, mount: Mount, store: LabelStore, alerts: Alerts
) -> None:
    """Send one alert per image and failed check."""
    run = context.dagster_run
    lineage = mount.lineage_of(run)
    if lineage is None:
        return
    checks = failed_checks(context.instance, run, images_of_run(context.instance, lineage, run))
    alerts.send(checks, memory=store.path() / MEMORY, log=context.log)


def missed_alerts(
    context: dg.SensorEvaluationContext, store: LabelStore, alerts: Alerts
) -> dg.SkipReason:
    """Send what is kept for sinks that failed, also while automation is switched off."""
    n_told = alerts.send([], memory=store.path() / MEMORY, log=context.log)
    return dg.SkipReason(f"told of {n_told} alerts that were missed")


def failed_checks(
    instance: dg.DagsterInstance, run: dg.DagsterRun, images: Iterable[str]
) -> list[Alert]:
    """Return an alert per image of a run and check that failed in it."""
    events = instance.all_logs(run.run_id, of_type=dg.DagsterEventType.ASSET_CHECK_EVALUATION)
    checks = []
    for entry in events:
        event = entry.get_dagster_event().asset_check_evaluation_data
        if event.passed:
            continue
        asset = "/".join(event.asset_key.path)
        cause = f"check {event.check_name!r} of {asset} failed"
        cause += f": {event.description}" if event.description else ""
        link = f"/assets/{asset}?view=checks&checkDetail={event.check_name}"
        checks += [Alert(key, cause, link) for key in list(images) or [""]]
    return checks


def _of_batch(run: dg.DagsterRun, images: Sequence[str], cause: str) -> Alert:
    """Return one alert for all images of a batch whose run ended before its time."""
    first, others = ", ".join(images[:SHOWN_IMAGES]), len(images) - SHOWN_IMAGES
    named = first + (f" and {others} others" if others > 0 else "")
    return Alert(
        named, f"a run of {len(images)} images has ended: {cause}", link_to_run(run.run_id)
    )


def _has_told(context: dg.RunFailureSensorContext) -> bool:
    """Tell whether a run ended with a failure in words of its own, and by no other error."""
    events = context.get_step_failure_events()
    return any(event.step_failure_data.user_failure_data is not None for event in events)


def _failed_steps(context: dg.RunFailureSensorContext) -> list[str]:
    return [str(event.step_key) for event in context.get_step_failure_events()]
