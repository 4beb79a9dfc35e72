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
from patchworks_pipeline.assets.acquisitions import define_acquisition, define_can_be_taken
from patchworks_pipeline.automation.alert_sensors import define_alert_sensors
from patchworks_pipeline.automation.alerts import Alerts
from patchworks_pipeline.automation.batches import define_process_images
from patchworks_pipeline.automation.dead_runs import define_dead_runs
from patchworks_pipeline.automation.jobs import define_jobs, define_shared_jobs
from patchworks_pipeline.automation.landing_sensor import define_landing_sensor
from patchworks_pipeline.automation.relating_sensor import define_relating_sensor
from patchworks_pipeline.automation.retention import Retention, define_retire_images
from patchworks_pipeline.automation.retention_sensor import define_retention_sensor
from patchworks_pipeline.automation.schedules import make_schedules
from patchworks_pipeline.automation.sensors import define_merging_sensor, define_staging_sensor
from patchworks_pipeline.lineage import BATCH_JOB, OF_SEGMENTATION, Mount
from patchworks_pipeline.resources.backfills import Backfills
from patchworks_pipeline.resources.clusters import DaskCluster
from patchworks_pipeline.resources.compute_budget import ComputeBudget
from patchworks_pipeline.resources.gpus import GpuPool
from patchworks_pipeline.resources.resources import (
    AcquisitionSource,
    Automation,
    LabelStore,
    SegmentationDefaults,
)
from patchworks_pipeline.resources.settings import Deployed
from patchworks_pipeline.resources.several import Several

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
    segmentations: Sequence[str] | Mapping[str, SegmentationDefaults] = (),
    relations: Mapping[str, str] | None = None,
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
    segmentations : sequence of str or mapping, optional
        Names of several segmentations of every image, each as the block of that name in the section
        ``segmentations`` of ``patchworks.yaml`` says, or as the value of the mapping says first.
        Their assets are called ``[nuclei, staged_labels]``, and they share `image`.
    relations : mapping, optional
        Segmentation to segmentation, such as ``{"nuclei": "cells"}``: in which objects of the
        second those of the first lie, as the asset ``[nuclei, in_cells]``.
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
    blocks = _blocks(segmentations)
    mount = Mount.of(key_prefix, tuple(blocks), relations)
    policy = (backfills or Backfills()).policy()
    made = _resources(mount, resources or {}, blocks)
    jobs: list[Any] = define_shared_jobs(mount) if blocks else []
    sensors: list[dg.SensorDefinition] = []
    schedules: list[dg.ScheduleDefinition] = []
    for lineage in mount.lineages:
        jobs += define_jobs(lineage)
        if not blocks:
            jobs.append(define_process_images(lineage, made))
        jobs.append(define_retire_images(lineage))
        sensors += [
            define_staging_sensor(lineage),
            define_merging_sensor(lineage),
            define_retention_sensor(lineage),
        ]
        schedules += make_schedules(timezone, lineage)
    landing = [mount.shared.name(name) for name in ("plan_image", BATCH_JOB)]
    sensors.append(define_landing_sensor(mount, [job for job in jobs if job.name in landing]))
    sensors += [define_relating_sensor(mount)] if mount.relations else []
    return dg.Definitions(
        assets=[define_acquisition(mount.shared), *define_assets(mount, policy)],
        asset_checks=[define_can_be_taken(mount.shared)],
        jobs=jobs,
        sensors=[*sensors, *define_alert_sensors(mount), define_dead_runs(mount.shared)],
        schedules=schedules,
        resources=made,
        # Of what the UI starts of a selection of assets; beside others it is theirs to choose.
        executor=None if mount.prefix else dg.in_process_executor,
    )


def _blocks(
    segmentations: Sequence[str] | Mapping[str, SegmentationDefaults],
) -> dict[str, SegmentationDefaults]:
    """Return the resource of each of several segmentations, which reads its own block."""
    if not isinstance(segmentations, Mapping):
        return {name: SegmentationDefaults(block=name) for name in segmentations}
    return {
        name: SegmentationDefaults(**{**dict(chosen), "block": name})
        for name, chosen in segmentations.items()
    }


def _resources(
    mount: Mount, own: Mapping[str, Any], blocks: Mapping[str, SegmentationDefaults]
) -> dict[str, Any]:
    """Return the resources of a deployment, by the keys they have in its code location."""
    if unknown := sorted(set(own) - set(RESOURCES)):
        raise PlanError(
            f"there is no resource {unknown[0]!r}; the resources are {sorted(RESOURCES)!r}"
        )
    made = {
        mount.shared.resource(name): own.get(name, kind())
        for name, kind in RESOURCES.items()
        if not (blocks and name == OF_SEGMENTATION)
    }
    made |= {mount.lineage(name).resource(OF_SEGMENTATION): blocks[name] for name in blocks}
    home = "/".join(mount.prefix)
    return {key: _at_home(resource, home) for key, resource in made.items()}


def _at_home(resource: Any, home: str) -> Any:
    """Return a resource that reads the settings of a deployment, unless it reads others."""
    if not home or not isinstance(resource, Deployed) or "home" in resource.model_fields_set:
        return resource
    return type(resource)(**{"home": home, **dict(resource)})


defs = definitions()


@dg.definitions
def deployed() -> dg.Definitions:
    """Return the definitions of this home; they are loaded again with the code location."""
    return of_home()


def of_home() -> dg.Definitions:
    """Return the definitions of the home of this process, with the segmentations that it names."""
    several = Several.of_home()
    return definitions(
        segmentations=several.names,
        relations=several.relations,
        backfills=Backfills().of_home(),
    )
