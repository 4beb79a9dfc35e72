"""What the sensors of a deployment have in common."""

from collections.abc import Callable
from typing import Any

import dagster as dg

from patchworks_pipeline.automation.events import EVERY_ROUND
from patchworks_pipeline.lineage import Lineage, Mount


def running_sensor(
    lineage: Lineage,
    body: Callable[..., Any],
    *,
    mount: Mount | None = None,
    job: str | None = None,
    seconds: int = EVERY_ROUND,
    **options: Any,
) -> dg.SensorDefinition:
    """Define a sensor that runs from the start, called as its function is.

    Parameters
    ----------
    lineage : Lineage
    body : callable
        As in `Lineage.bound`.
    mount : Mount, optional
        Given to `body` where it asks for one.
    job : str, optional
        The job that it starts, without what stands before its name in `lineage`.
    seconds : int
        Between two ticks, at least.
    **options
        Of `dagster.sensor`.
    """
    return dg.sensor(
        name=lineage.name(body.__name__),
        job_name=None if job is None else lineage.name(job),
        minimum_interval_seconds=seconds,
        default_status=dg.DefaultSensorStatus.RUNNING,
        **options,
    )(lineage.bound(body, mount=mount))
