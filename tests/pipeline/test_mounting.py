"""A deployment in somebody else's code location, beside others: nothing is shared by accident."""

from __future__ import annotations

from typing import Any

import dagster as dg
import pytest

from patchworks_core import PlanError
from patchworks_pipeline.automation.alerts import Alerts
from patchworks_pipeline.cli.runs import RANGE_END, RANGE_START
from patchworks_pipeline.definitions import definitions
from patchworks_pipeline.partitions import tile_keys
from patchworks_pipeline.records import Acquisition
from patchworks_pipeline.resources.resources import (
    AcquisitionSource,
    LabelStore,
    SegmentationDefaults,
)
from tests.pipeline.conftest import QUIET
from tests.pipeline.daemon import Daemon
from tests.tissue import HALO, TILE, tissue, write_tiff

SEGMENTATION = {
    "function": "tissue_functions:perfect",
    "tile_shape": [TILE],
    "overlap": [HALO],
}


@dg.asset(name="staged_labels")
def staged_by_others() -> int:
    """An asset of another project, under a name that patchworks has too."""
    return 1


@dg.job(name="stage_tiles")
def job_of_others() -> None:
    """A job of another project."""


OTHERS = dg.Definitions(
    assets=[staged_by_others],
    jobs=[job_of_others],
    resources={"store": dg.ResourceDefinition.none_resource()},
)


def mounted(prefix: str, **resources: Any) -> dg.Definitions:
    """Return a deployment that segments with the test's function unless told otherwise."""
    resources.setdefault("segmentation", SegmentationDefaults(**SEGMENTATION))
    return definitions(key_prefix=prefix, resources=resources)


@pytest.fixture
def location(home) -> dg.Definitions:
    """Two deployments and the assets of another project in one code location."""
    return dg.Definitions.merge(OTHERS, mounted("light"), mounted("electron"))


def run(
    location: dg.Definitions, instance: dg.DagsterInstance, job: str, **options: Any
) -> dg.ExecuteInProcessResult:
    result = location.resolve_job_def(job).execute_in_process(
        instance=instance, run_config={"loggers": QUIET}, **options
    )
    assert result.success
    return result


def test_every_name_is_under_the_prefix(home):
    defs = mounted("light")
    dg.Definitions.validate_loadable(defs)
    keys = [spec.key.path for spec in defs.resolve_all_asset_specs()]
    assert all(path[0] == "light" and len(path) == 2 for path in keys)
    names = [each.name for kind in (defs.jobs, defs.sensors, defs.schedules) for each in kind or ()]
    assert all(name.startswith("light__") for name in [*names, *(defs.resources or {})])
    sets = {spec.partitions_def.name for spec in defs.resolve_all_asset_specs()}
    assert sets == {"light/images", "light/tiles"}
    checks = {key.asset_key.path[0] for key in defs.resolve_asset_graph().asset_check_keys}
    assert checks == {"light"}


def test_two_deployments_and_another_project_share_one_code_location(location):
    dg.Definitions.validate_loadable(location)
    keys = {spec.key.to_user_string() for spec in location.resolve_all_asset_specs()}
    assert {"staged_labels", "light/staged_labels", "electron/staged_labels"} <= keys


def test_tiles_are_materializations_of_the_asset_under_the_prefix(location, instance, tmp_path):
    folder = LabelStore(home="light").folder("a")
    folder.write_acquisition(Acquisition(str(write_tiff(tmp_path / "a.tif", tissue()))))
    instance.add_dynamic_partitions("light/images", ["a"])
    run(location, instance, "light__plan_image", partition_key="a")
    keys = tile_keys("a", folder.plan().grid.block_keys())
    tags = {RANGE_START: keys[0], RANGE_END: keys[-1]}
    run(location, instance, "light__stage_tiles", tags=tags)
    staged = instance.get_materialized_partitions(dg.AssetKey(["light", "staged_labels"]))
    assert staged == set(keys)
    assert instance.get_latest_materialization_event(dg.AssetKey("staged_labels")) is None
    assert set(instance.get_dynamic_partitions("light/tiles")) == staged
    assert instance.get_dynamic_partitions("electron/tiles") == []
    assert instance.get_dynamic_partitions("tiles") == []
    assert not LabelStore(home="electron").folder("a").path.exists()


def test_each_deployment_has_a_home_of_its_own(home, tmp_path):
    (home / "light").mkdir(parents=True)
    (home / "light" / "patchworks.yaml").write_text("source: {settle_seconds: 2}")
    (home / "patchworks.yaml").write_text("source: {settle_seconds: 5}")
    assert AcquisitionSource(home="light").of_home().settle_seconds == 2
    assert AcquisitionSource().of_home().settle_seconds == 5
    assert AcquisitionSource(home="light").layout().landing == str(home / "light" / "landing")
    elsewhere = LabelStore(home=str(tmp_path / "lab"))
    assert str(elsewhere.path()) == str(tmp_path / "lab" / "store")


def test_a_resource_that_was_given_has_the_settings_of_its_deployment(home, tmp_path):
    defs = mounted("light", store=LabelStore(root=str(tmp_path)))
    store = (defs.resources or {})["light__store"]
    assert (store.root, store.home) == (str(tmp_path), "light")


def test_what_a_file_sets_cannot_be_where_it_lies(home):
    home.mkdir(parents=True)
    (home / "patchworks.yaml").write_text("store: {home: elsewhere}")
    with pytest.raises(PlanError, match=r"section 'store' has no field 'home'"):
        LabelStore().of_home()


def test_the_sensors_of_a_deployment_take_its_images_to_its_labels(location, instance, home):
    landing = home / "light" / "landing"
    landing.mkdir(parents=True)
    write_tiff(landing / "a.tif", tissue((64, 64)))
    ours = Daemon(
        instance,
        resources_of(location, "light", source=AcquisitionSource(home="light", settle_seconds=0)),
        location=location,
        prefix="light",
    )
    theirs = Daemon(
        instance, resources_of(location, "electron"), location=location, prefix="electron"
    )
    jobs = ours.until_quiet(lambda: theirs.round())
    assert jobs == ["light__plan_image", "light__stage_tiles", "light__merge_image"]
    assert theirs.runs == []
    assert instance.get_materialized_partitions(dg.AssetKey(["light", "merged_labels"])) == {"a"}


def resources_of(location: dg.Definitions, prefix: str, **changed: Any) -> dict[str, Any]:
    """Return the resources of one deployment, by their keys."""
    own = {k: v for k, v in (location.resources or {}).items() if k.startswith(f"{prefix}__")}
    return own | {f"{prefix}__{name}": resource for name, resource in changed.items()}


@pytest.mark.parametrize("job", ["stage_tiles", "electron__plan_image"])
def test_alerts_are_of_the_runs_of_their_deployment(location, instance, monkeypatch, job):
    @dg.op(name="fails")
    def fails() -> None:
        raise ValueError("of others")

    @dg.job(name=job)
    def failing() -> None:
        fails()

    result = failing.execute_in_process(instance=instance, raise_on_error=False)
    sent: list[Any] = []
    monkeypatch.setattr(Alerts, "send", lambda self, alerts, **_: sent.extend(alerts))
    for prefix in ("light", "electron"):
        (sensor,) = [s for s in location.sensors or () if s.name == f"{prefix}__run_failure_alerts"]
        context = dg.build_run_status_sensor_context(
            sensor_name=sensor.name,
            dagster_instance=instance,
            dagster_run=result.dagster_run,
            dagster_event=result.get_run_failure_event(),
            resources={
                key: resource
                for key, resource in resources_of(location, prefix).items()
                if key in (f"{prefix}__store", f"{prefix}__alerts")
            },
        ).for_run_failure()
        sensor(context)
    assert len(sent) == (1 if job.startswith("electron") else 0)


@pytest.mark.parametrize("prefix", ["light microscopy", "a/b", "a__b", "-", "image"])
def test_a_prefix_that_cannot_be_part_of_names_is_refused(prefix):
    with pytest.raises(PlanError, match="a key prefix (must be a name|cannot be called)"):
        definitions(key_prefix=prefix)


def test_a_resource_that_is_unknown_is_refused():
    with pytest.raises(PlanError, match=r"no resource 'stores'; the resources are \['alerts'"):
        definitions(resources={"stores": LabelStore()})
