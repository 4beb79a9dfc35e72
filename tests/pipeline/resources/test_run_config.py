"""What the config of a run, which anyone types into a launchpad, may not choose."""

from __future__ import annotations

from typing import Any

import dagster as dg
import pytest

from patchworks_pipeline.automation.alerts import Alerts
from patchworks_pipeline.resources.clusters import DaskCluster
from patchworks_pipeline.resources.resources import (
    AcquisitionSource,
    LabelStore,
    SegmentationDefaults,
)
from patchworks_pipeline.resources.settings import Deployed
from tests.tissue import tissue, write_tiff

NAMED = "segmentation: {functions: ['my_lab.cells:label', 'my_lab.cells:outline']}"


def as_a_run_has_it(resource: Deployed, config: dict[str, Any]) -> Any:
    """Return a resource of a deployment as a run with some config gets it, or raise."""
    definitions = {"resource": resource}
    configs = {"resource": {"config": config}}
    with dg.build_resources(definitions, resource_config=configs) as resources:
        return resources.resource


def why_refused(resource: Deployed, config: dict[str, Any]) -> str:
    with pytest.raises(dg.DagsterResourceFunctionError) as refused:
        as_a_run_has_it(resource, config)
    return str(refused.value.__cause__)


@pytest.mark.parametrize(
    ("resource", "field", "value"),
    [
        (LabelStore(), "root", "/elsewhere"),
        (LabelStore(root="/data"), "root", "/elsewhere"),
        (LabelStore(), "home", "/elsewhere"),
        (AcquisitionSource(), "landing", "/etc"),
        (SegmentationDefaults(), "functions", ["os:system"]),
        (DaskCluster(), "config_file", "/elsewhere.yaml"),
        (Alerts(), "smtp_host", "mail.elsewhere.org"),
        (Alerts(), "email_to", ["me@elsewhere.org"]),
        (Alerts(), "webhook_url", "https://elsewhere.org/secret"),
    ],
)
def test_where_things_lie_and_go_is_not_a_runs_to_say(home, resource, field, value):
    why = why_refused(resource, {field: value})
    assert f"{resource.section}.{field} is the deployment's and cannot be set" in why
    assert "change the home's patchworks.yaml" in why
    assert "secret" not in why


def test_a_launchpad_may_repeat_what_the_deployment_says(home, monkeypatch):
    home.mkdir()
    (home / "patchworks.yaml").write_text("store: {root: /data/labels}")
    assert as_a_run_has_it(LabelStore(), {"root": "/data/labels"}).root == "/data/labels"
    assert as_a_run_has_it(LabelStore(root="/code"), {"root": "/code"}).root == "/code"
    monkeypatch.setenv("LABELS", "/variable")
    store = LabelStore(root=dg.EnvVar("LABELS"))
    assert as_a_run_has_it(store, {"fsync": False}).root == "/variable"
    assert as_a_run_has_it(store, {"root": "/variable"}).root == "/variable"


@pytest.mark.parametrize(
    "function",
    ["threshold", "patchworks_core.plugins.threshold:threshold", "my_lab.cells:label", "lab:own"],
)
def test_a_run_may_name_what_is_built_in_or_named_by_the_deployment(home, function):
    home.mkdir()
    (home / "patchworks.yaml").write_text(NAMED)
    resource = SegmentationDefaults(function="lab:own")
    assert as_a_run_has_it(resource, {"function": function}).function == function


def test_a_run_may_name_an_installed_plugin(home, monkeypatch):
    from patchworks_core.plugins import segmentation

    entry = type("Entry", (), {"name": "of_a_plugin", "value": "plugin:label"})
    monkeypatch.setattr(segmentation, "entry_points", lambda group: [entry])
    resource = SegmentationDefaults()
    assert as_a_run_has_it(resource, {"function": "of_a_plugin"}).function == "of_a_plugin"


@pytest.mark.parametrize("function", ["os:system", "my_lab.cells:os.system", "my_lab.cells"])
def test_a_run_may_name_no_other_function(home, function):
    home.mkdir()
    (home / "patchworks.yaml").write_text(NAMED)
    why = why_refused(SegmentationDefaults(), {"function": function})
    assert f"got {function!r}" in why
    assert "'my_lab.cells:outline', 'stardist'" in why
    assert "add it to the field 'functions'" in why


def test_a_function_that_is_refused_is_not_even_imported(pipeline, home, tmp_path, monkeypatch):
    module = tmp_path / "typed_into_a_launchpad.py"
    module.write_text(f"open({str(tmp_path / 'imported')!r}, 'w').close()\n")
    monkeypatch.syspath_prepend(tmp_path)
    landing = home / "landing"
    landing.mkdir(parents=True)
    write_tiff(landing / "landed.ome.tif", tissue())
    pipeline.instance.add_dynamic_partitions("images", ["landed"])
    pipeline.resources["segmentation"] = {"config": {"function": "typed_into_a_launchpad:label"}}
    result = pipeline.run("plan_image", partition_key="landed")
    assert not result.success
    assert not (tmp_path / "imported").exists()
    assert "got 'typed_into_a_launchpad:label'" in str(result.all_events)
