"""A deployment is set up in one file of its home."""

from __future__ import annotations

import dagster as dg
import pytest
import yaml

from patchworks_core.errors import PlanError
from patchworks_pipeline.automation.alerts import Alerts
from patchworks_pipeline.automation.sensors import landing_sensor
from patchworks_pipeline.definitions import defs, deployed
from patchworks_pipeline.instance.home import prepare_home
from patchworks_pipeline.resources.resources import (
    AcquisitionSource,
    Backfills,
    ComputeBudget,
    LabelStore,
    Segmentation,
)
from tests.tissue import tissue, write_tiff


@pytest.fixture
def settings(home):
    """Write the settings of the test's home."""
    prepare_home(home)
    return lambda text: (home / "patchworks.yaml").write_text(text)


def test_a_new_home_says_what_can_be_set_and_sets_nothing(home):
    prepare_home(home)
    text = (home / "patchworks.yaml").read_text()
    assert yaml.safe_load(text) is None
    assert Segmentation().of_home() == Segmentation()


def test_what_the_file_shows_as_examples_can_be_set(home, settings, monkeypatch):
    monkeypatch.setenv("SMTP_PASSWORD", "secret")
    monkeypatch.setenv("SLACK_WEBHOOK", "http://127.0.0.1:9/hook")
    lines = (home / "patchworks.yaml").read_text().splitlines()[3:]
    shown = "\n".join(line.removeprefix("# ") for line in lines)
    settings(shown)
    sections = yaml.safe_load(shown)
    resources = {type(r).section: r for r in (*defs.resources.values(), Backfills())}
    assert set(sections) == set(resources)
    for resource in resources.values():
        resource.of_home()


def test_a_file_changes_what_is_at_its_default_and_code_wins(settings):
    settings("budget: {memory_fraction: 0.5, cores_left_free: 3}")
    assert ComputeBudget().of_home().memory_fraction == 0.5
    assert ComputeBudget(memory_fraction=0.25).of_home().memory_fraction == 0.25
    assert ComputeBudget(memory_fraction=0.25).of_home().cores_left_free == 3


def test_a_secret_comes_from_the_environment(settings, monkeypatch):
    settings("alerts: {smtp_password: {env: MAIL_PASSWORD}}")
    with pytest.raises(PlanError, match="alerts.smtp_password is the variable 'MAIL_PASSWORD'"):
        Alerts().of_home()
    monkeypatch.setenv("MAIL_PASSWORD", "secret")
    assert Alerts().of_home().smtp_password == "secret"


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("budget: {memory_fractoin: 0.5}", "'budget' has no .'memory_fractoin'.; its fields are"),
        ("budget: {memory_fraction: lots}", "budget.memory_fraction: .* got 'lots'"),
        ("budget: 0.5", "section 'budget' must hold fields, got 0.5"),
        ("[budget]", "must hold one section per resource"),
        ("budget: {", "is not YAML"),
    ],
)
def test_settings_that_cannot_be_are_refused_with_the_file_named(settings, text, words):
    settings(text)
    with pytest.raises(PlanError, match=f"patchworks.yaml.*{words}"):
        ComputeBudget().of_home()


def test_assets_and_the_command_line_use_the_settings(pipeline, settings, tmp_path):
    settings("segmentation: {tile_shape: [48], overlap: [4], function: 'tissue_functions:perfect'}")
    path = write_tiff(tmp_path / "tissue.ome.tif", tissue())
    folder = pipeline.register(path, function=None, tile_shape=None, overlap=None)
    assert pipeline.plan(folder).success
    assert folder.plan().grid.tile_shape == (48, 48)
    assert folder.plan().grid.halo == (4, 4)


def test_a_sensor_uses_the_settings(home, settings, instance):
    settings("automation: {enabled: false}")
    with dg.build_sensor_context(instance=instance, resources=dict(defs.resources)) as context:
        result = landing_sensor(context)
    assert isinstance(result, dg.SkipReason)
    assert "switched off" in str(result.skip_message)


def test_the_store_may_lie_elsewhere(settings, tmp_path):
    settings(f"store: {{root: {tmp_path / 'labels'}}}\nsource: {{settle_seconds: 2}}")
    assert str(LabelStore().of_home().folder("a").path) == str(tmp_path / "labels" / "a")
    assert AcquisitionSource().of_home().settle_seconds == 2


def policy_in(definitions: dg.Definitions) -> dg.BackfillPolicy:
    return definitions.resolve_asset_graph().get(dg.AssetKey("staged_labels")).backfill_policy


def test_a_backfill_of_tiles_is_one_run_unless_the_home_says_otherwise(settings):
    assert policy_in(deployed()) == dg.BackfillPolicy.single_run()
    settings("backfills: {max_partitions_per_run: 5}")
    assert policy_in(deployed()) == dg.BackfillPolicy.multi_run(5)
    settings("backfills: {max_partitions_per_run: -1}")
    with pytest.raises(PlanError, match=r"backfills.max_partitions_per_run: .* got -1"):
        deployed()


def test_what_is_deployed_differs_in_nothing_else(settings):
    settings("backfills: {max_partitions_per_run: 5}")
    found = deployed()
    assert {s.key: s for s in found.resolve_all_asset_specs()} == {
        s.key: s for s in defs.resolve_all_asset_specs()
    }
    for kind in ("jobs", "sensors", "schedules"):
        assert [each.name for each in getattr(found, kind)] == [
            each.name for each in getattr(defs, kind)
        ]
