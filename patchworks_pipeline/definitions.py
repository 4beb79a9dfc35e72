"""The code location: everything Dagster is to know, named explicitly.

Dagster loads `deployed`, which heeds what the home says of backfills. What runs in this process
takes `defs`, for which nothing is looked up. Who has a code location already takes `definitions`,
with a prefix for its keys, and merges what it gives with what is there.
"""

from collections.abc import Mapping, Sequence
from typing import Any

import dagster as dg

from patchworks_core.errors import PlanError
from patchworks_pipeline.assets import define_assets
from patchworks_pipeline.assets.acquiring import OWNERS
from patchworks_pipeline.assets.acquisitions import define_acquisition, define_can_be_taken
from patchworks_pipeline.automation.alert_sensors import define_alert_sensors
from patchworks_pipeline.automation.alerts import Alerts
from patchworks_pipeline.automation.batches import define_process_images
from patchworks_pipeline.automation.dead_runs import define_dead_runs
from patchworks_pipeline.automation.jobs import define_jobs
from patchworks_pipeline.automation.landing_sensor import define_landing_sensor
from patchworks_pipeline.automation.retention import Retention, define_retire_images
from patchworks_pipeline.automation.retention_sensor import define_retention_sensor
from patchworks_pipeline.automation.schedules import make_schedules
from patchworks_pipeline.automation.sensors import define_merging_sensor, define_staging_sensor
from patchworks_pipeline.lineage import Mount
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
from patchworks_pipeline.resources.settings import Deployed

RESOURCES: Mapping[str, type[Deployed]] = {
    "store": LabelStore,
    "source": AcquisitionSource,
    "segmentation": SegmentationDefaults,
    "budget": ComputeBudget,
    "gpus": GpuPool,
    "cluster": DaskCluster,
    "automation": Automation,
    "alerts": Alerts,
    "retention": Retention,
}
"""What a deployment decides, by the name of its resource."""


def definitions(
    *,
    key_prefix: str | Sequence[str] = (),
    resources: Mapping[str, Any] | None = None,
    backfills: Backfills | None = None,
    timezone: str = "UTC",
) -> dg.Definitions:
    """Return what Dagster is to know of one deployment.

    Parameters
    ----------
    key_prefix : str or sequence of str
        Stands before the keys of all assets, and before the names of jobs, sensors, schedules,
        partition sets and resources, so that several deployments, or one and the assets of another
        project, are merged without sharing anything. Settings, landing folder and store are then
        in the folder of that name in ``$PATCHWORKS_HOME``.
    resources : mapping, optional
        By their names without a prefix, such as ``{"store": LabelStore(root="/data/labels")}``;
        what is left out is made as the home's ``patchworks.yaml`` says.
    backfills : Backfills, optional
        How a backfill of tiles is cut into runs; one run unless it says otherwise.
    timezone : str
        Of the schedules, such as ``Europe/Berlin``.

    Returns
    -------
    dagster.Definitions

    Raises
    ------
    PlanError
        If the prefix could not be part of a name, or a resource is unknown.

    Examples
    --------
    >>> defs = definitions(key_prefix="microscopy")
    >>> defs.resolve_asset_graph().get(dg.AssetKey(["microscopy", "merged_labels"])).group_name
    'labels'
    """
    mount = Mount.of(key_prefix)
    policy = (backfills or Backfills()).policy()
    assets: list[dg.AssetsDefinition] = []
    jobs: list[Any] = []
    made = _resources(mount, resources or {})
    sensors: list[dg.SensorDefinition] = []
    schedules: list[dg.ScheduleDefinition] = []
    for lineage in mount.lineages:
        assets += define_assets(lineage, policy)
        chain, batch = define_jobs(lineage), define_process_images(lineage, made)
        jobs += [*chain, batch, define_retire_images(lineage)]
        sensors += [
            define_staging_sensor(lineage),
            define_merging_sensor(lineage),
            define_retention_sensor(lineage),
        ]
        if lineage == mount.lineages[0]:  # one plans an image for all segmentations
            sensors.append(define_landing_sensor(mount.shared, [chain[0], batch]))
        schedules += make_schedules(timezone, lineage)
    return dg.Definitions(
        assets=[define_acquisition(mount.shared, OWNERS), *assets],
        asset_checks=[define_can_be_taken(mount.shared)],
        jobs=jobs,
        sensors=[*sensors, *define_alert_sensors(mount), define_dead_runs(mount.shared)],
        schedules=schedules,
        resources=made,
        # Of what the UI starts of a selection of assets; beside others it is theirs to choose.
        executor=None if mount.prefix else dg.in_process_executor,
    )


def _resources(mount: Mount, own: Mapping[str, Any]) -> dict[str, Any]:
    """Return the resources of a deployment, by the keys they have in its code location."""
    if unknown := sorted(set(own) - set(RESOURCES)):
        raise PlanError(
            f"there is no resource {unknown[0]!r}; the resources are {sorted(RESOURCES)!r}"
        )
    made = {name: own.get(name, kind()) for name, kind in RESOURCES.items()}
    return {
        mount.shared.resource(name): _at_home(resource, "/".join(mount.prefix))
        for name, resource in made.items()
    }


def _at_home(resource: Any, home: str) -> Any:
    """Return a resource that reads the settings of a deployment, unless it reads others."""
    if not home or not isinstance(resource, Deployed) or "home" in resource.model_fields_set:
        return resource
    return type(resource)(**{"home": home, **dict(resource)})


defs = definitions()


@dg.definitions
def deployed() -> dg.Definitions:
    """Return the definitions of this home; they are loaded again with the code location."""
    return definitions(backfills=Backfills().of_home())
