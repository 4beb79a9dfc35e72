"""The code location: everything Dagster is to know, named explicitly.

Dagster loads `deployed`, which heeds what the home says of backfills. What runs in this process
takes `defs`, for which nothing is looked up.
"""

import dagster as dg

from patchworks_pipeline import assets
from patchworks_pipeline.automation import (
    alert_sensors,
    dead_runs,
    jobs,
    landing_sensor,
    retention,
    retention_sensor,
    schedules,
    sensors,
)
from patchworks_pipeline.automation.alerts import Alerts
from patchworks_pipeline.resources.clusters import DaskCluster
from patchworks_pipeline.resources.resources import (
    AcquisitionSource,
    Automation,
    Backfills,
    ComputeBudget,
    GpuPool,
    LabelStore,
    SegmentationDefaults,
)


def definitions(backfills: Backfills) -> dg.Definitions:
    """Return everything Dagster is to know."""
    staged_labels = assets.staged_labels.with_attributes(backfill_policy=backfills.policy())
    return dg.Definitions(
        assets=[
            assets.image,
            assets.image_statistics,
            staged_labels,
            assets.boundary_pairs,
            assets.global_lut,
            assets.merged_labels,
            assets.object_table,
            assets.quality_report,
        ],
        jobs=[
            jobs.plan_image,
            jobs.stage_tiles,
            jobs.repair_image,
            jobs.merge_image,
            retention.retire_images,
        ],
        sensors=[
            landing_sensor.landing_sensor,
            sensors.staging_sensor,
            sensors.merging_sensor,
            retention_sensor.retention_sensor,
            alert_sensors.run_failure_alerts,
            alert_sensors.check_failure_alerts,
            alert_sensors.missed_alerts,
            dead_runs.dead_runs,
        ],
        schedules=schedules.SCHEDULES,
        resources={
            "store": LabelStore(),
            "source": AcquisitionSource(),
            "segmentation": SegmentationDefaults(),
            "budget": ComputeBudget(),
            "gpus": GpuPool(),
            "cluster": DaskCluster(),
            "automation": Automation(),
            "alerts": Alerts(),
            "retention": retention.Retention(),
        },
        # Steps are few and short, and staging fans out by itself: a process per step costs seconds.
        executor=dg.in_process_executor,
    )


defs = definitions(Backfills())


@dg.definitions
def deployed() -> dg.Definitions:
    """Return the definitions of this home; they are loaded again with the code location."""
    return definitions(Backfills().of_home())
