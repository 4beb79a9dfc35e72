"""A deployment is set up in one file of its home."""

from __future__ import annotations

import sys
from typing import Any

import dagster as dg
import pytest
import yaml

from patchworks_core.errors import PlanError, SegmentationError
from patchworks_core.files.storage import DURABLE, is_durable
from patchworks_core.machine.pools import Pool
from patchworks_core.machine.workers import Workers
from patchworks_core.plugins.segmentation import segmentation_of
from patchworks_core.stage.plan import make_plan
from patchworks_pipeline.assets.merging import MergeConfig
from patchworks_pipeline.assets.staging import StagingConfig
from patchworks_pipeline.automation.alerts import Alerts
from patchworks_pipeline.automation.retention import RetentionConfig
from patchworks_pipeline.definitions import defs, deployed
from patchworks_pipeline.instance.home import prepare_home
from patchworks_pipeline.records import Acquisition
from patchworks_pipeline.resources.backfills import Backfills
from patchworks_pipeline.resources.clusters import DaskCluster
from patchworks_pipeline.resources.compute_budget import ComputeBudget
from patchworks_pipeline.resources.resources import (
    AcquisitionSource,
    Automation,
    LabelStore,
    SegmentationDefaults,
)
from patchworks_pipeline.resources.settings import Deployed
from patchworks_pipeline.resources.settings_file import RELATIONS, SECTIONS, SEGMENTATIONS
from tests.pipeline.daemon import landing_sensor
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
    assert SegmentationDefaults().of_home() == SegmentationDefaults()


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


OTHERS: dict[str, dict[str, Any]] = {
    "segmentation": {
        "function": "threshold",
        "functions": ["my_lab.cells:label"],
        "parameters": {"sigma": 3.0},
        "channel": "DAPI",
        "operations": [{"median": 5}],
        "tile_shape": [2048],
        "overlap": [8],
        "merge": "touching",
        "connectivity": 2,
        "min_iou": 0.6,
        "outline": "core",
        "min_size": 9,
        "skip_empty": True,
        "empty_threshold": 7.0,
        "max_tile_partitions": 50,
    },
    "retention": {"enabled": False, "max_live_keys": 900, "days": 3.0},
    "source": {
        "landing": "/data/landing",
        "patterns": ["*.tif"],
        "template": "{well}.tif",
        "marker": "{name}.done",
        "open": [{"match": "*.tif", "axes": "zyx", "channel": "DAPI", "series": 1}],
        "settle_seconds": 2.0,
        "max_per_tick": 3,
        "urgent": "now",
        "images_per_run": 5,
        "small_megabytes": 2.0,
    },
    "store": {"root": "/data/labels", "fsync": True},
    "budget": {
        "memory_fraction": 0.5,
        "cores_left_free": 3,
        "workers": 4,
        "kind": "processes",
        "tile_timeout": 60.0,
        "worker_memory": "8GB",
    },
    "gpus": {"slots_per_device": 2, "min_free_bytes": 5},
    "cluster": {
        "config_file": "/data/dask.yaml",
        "seconds_to_wait": 5.0,
        "merge_from_megapixels": 5.0,
    },
    "automation": {"enabled": False, "finish_first": False},
    "backfills": {"max_partitions_per_run": 5},
    "alerts": {
        "smtp_host": "mail.example.org",
        "smtp_port": 587,
        "smtp_starttls": True,
        "smtp_user": "me",
        "smtp_password": "secret",
        "email_from": "me@example.org",
        "email_to": ["you@example.org"],
        "webhook_url": "http://127.0.0.1:9/",
        "base_url": "http://127.0.0.1:9",
        "quiet_hours": 1.0,
        "timeout_seconds": 1.0,
    },
}
"""A value of every field that is not the built-in one."""

RESOURCES: dict[str, type[Deployed]] = {
    type(resource).section: type(resource) for resource in (*defs.resources.values(), Backfills())
}

FIELDS = [(section, name) for section, fields in OTHERS.items() for name in fields]

# None is built in, and None is not set.
CAN_BE_BUILT_IN = [each for each in FIELDS if each[1] not in ("empty_threshold", "tile_timeout")]


@pytest.fixture(autouse=True)
def put_back(monkeypatch):
    """What a setting writes into the environment is of one test."""
    monkeypatch.setenv(DURABLE, "off")


def in_run(resource: Deployed, config: dict[str, Any]) -> Deployed:
    """Return a resource as an asset gets it, in a run with this config."""
    with dg.build_resources({"it": resource}, resource_config={"it": {"config": config}}) as found:
        return found.it


def test_the_tables_here_name_every_section_and_every_field():
    blocks = {SEGMENTATIONS, RELATIONS}
    assert set(SECTIONS) - blocks == set(RESOURCES) == set(OTHERS)
    for section, resource in RESOURCES.items():
        assert sorted(OTHERS[section]) == resource.file_fields()
        (example,) = yaml.safe_load(SECTIONS[section])
        assert example in resource.model_fields


@pytest.mark.parametrize(("section", "name"), FIELDS)
def test_the_file_sets_every_field_that_nobody_else_set(settings, section, name):
    other = OTHERS[section][name]
    settings(yaml.safe_dump({section: {name: other}}))
    resource = RESOURCES[section]
    assert getattr(resource().of_home(), name) == other
    assert getattr(in_run(resource(), {}), name) == other
    assert getattr(resource(), name) != other


@pytest.mark.parametrize(("section", "name"), CAN_BE_BUILT_IN)
def test_what_is_built_in_beats_the_file_where_code_or_a_run_sets_it(settings, section, name):
    settings(yaml.safe_dump({section: {name: OTHERS[section][name]}}))
    resource = RESOURCES[section]
    built_in = getattr(resource(), name)
    assert getattr(resource(**{name: built_in}).of_home(), name) == built_in
    assert getattr(in_run(resource(**{name: built_in}), {}), name) == built_in
    assert getattr(in_run(resource(), {name: built_in}), name) == built_in


def test_a_run_beats_code_and_code_beats_the_file(settings):
    settings("budget: {workers: 2, cores_left_free: 2, memory_fraction: 0.2}")
    found = in_run(ComputeBudget(workers=3, cores_left_free=3), {"workers": 0})
    assert (found.workers, found.cores_left_free, found.memory_fraction) == (0, 3, 0.2)
    assert found.kind == "auto"


def test_null_in_the_config_of_a_run_sets_nothing(settings):
    settings("budget: {workers: 2}")
    assert in_run(ComputeBudget(), {"workers": None}).workers == 2


def test_a_run_beats_an_image_and_an_image_beats_the_file(settings, tmp_path):
    settings("segmentation: {min_iou: 0.6, min_size: 6, connectivity: 2, merge: touching}")
    path = write_tiff(tmp_path / "tissue.tif", tissue())
    function = segmentation_of("tissue_functions:perfect")
    plan = make_plan(Acquisition(str(path)).open(), function, tile_shape=32)
    image = Acquisition(str(path), merge={"min_iou": 0.5, "min_size": 5})
    found = (
        SegmentationDefaults()
        .of_home()
        .merge_options(image, plan, {"min_iou": 0.3, "connectivity": 0})
    )
    assert (found.rule, found.min_iou, found.min_size) == ("touching", 0.3, 5)
    assert found.connectivity == 1  # 0 is the function's, which says none


def test_an_image_that_chose_no_parameters_gets_none_of_the_file(settings):
    settings("segmentation: {function: threshold, parameters: {value: 7}}")
    deployment = SegmentationDefaults().of_home()
    assert deployment.function_of(Acquisition("x")).parameters == {"value": 7}
    assert deployment.function_of(Acquisition("x", parameters={})).parameters == {}


def test_what_belongs_to_another_choice_of_the_file_does_not_come_with_it(settings):
    settings(
        "segmentation: {parameters: {value: 7}, empty_threshold: 5}\nsource: {template: '{a}.tif'}"
    )
    assert SegmentationDefaults(function="watershed").of_home().parameters == {}
    assert SegmentationDefaults(skip_empty=False).of_home().empty_threshold is None
    assert SegmentationDefaults(skip_empty=True).of_home().empty_threshold == 5
    source = AcquisitionSource(patterns=["*.tif"]).of_home()
    assert (source.patterns, source.template) == (["*.tif"], "")


SECTIONS_ARE = r"the sections are \['alerts', 'automation', .*'store'\]"


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("\nbudget: {memory_fractoin: 1}", "line 2: .* no field 'memory_fractoin'; its fields are"),
        ("budget: {memory_fraction: lots}", "line 1: .*memory_fraction must be a valid number"),
        ("budget:\n  memory_fraction: 80", "line 2: .*must be less than or equal to 1, got 80"),
        ("budget: {memory_fraction: 0}", "memory_fraction must be greater than 0, got 0"),
        ("budget: {memory_fraction: -0.5}", "memory_fraction must be greater than 0, got -0.5"),
        ("budget: {memory_fraction: .nan}", "memory_fraction must be a finite number, got nan"),
        ("budget: {memory_fraction: true}", "memory_fraction must be a number, got True"),
        ('budget: {workers: "yes"}', "budget.workers must be a valid integer.*, got 'yes'"),
        ("budget: {workers: 1.5}", "budget.workers must be a valid integer.*, got 1.5"),
        (
            "budget: {kind: fibers}",
            "budget.kind must be 'auto', 'threads' or 'processes', got 'fibers'",
        ),
        (
            "budget:\n  kind: threads\n  tile_timeout: 5",
            "line 3: budget.tile_timeout is kept by ending a worker process, .* got 5",
        ),
        ("budget: {kind: threads, worker_memory: 8GB}", "line 1: budget.worker_memory is kept by"),
        (
            "budget: {worker_memory: lots}",
            "line 1: budget.worker_memory must be a number of bytes, 1 MB or more, or text such as "
            "'8GB', auto or none, got 'lots'$",
        ),
        ("budget: {worker_memory: 8}", "budget.worker_memory must be a number of bytes.*, got 8$"),
        (
            "budget:\n  tile_timeout: 0.01",
            "line 2: budget.tile_timeout must be 0.1 or more seconds, or 0 for no limit, got 0.01",
        ),
        ("budget: {1: 2}", "line 1: section 'budget' has no field '1'"),
        ("budget: 0.5", "line 1: section 'budget' must hold fields, such as .*, got 0.5"),
        ("budget: []", "section 'budget' must hold fields, such as .*, got \\[\\]"),
        ('budget: ""', "section 'budget' must hold fields, such as .*, got ''"),
        ("automation: false", r"line 1: .*'automation: \{enabled: false\}', got False"),
        ("budget:\n  workers: 1\nautomation: off", "line 3: section 'automation' must hold fields"),
        ("budget:\n  workers: 1\nbudgets: {}", f"line 3: .* no section 'budgets'; {SECTIONS_ARE}"),
        ("budget:\n  workers: 1\nbudget: {}", "line 3: 'budget' stands in line 1 already; keep"),
        ("budget:\n  workers: 1\n  workers: 2", "line 3: 'workers' stands in line 2 already; keep"),
        ("alerts:\n  quiet_hours: 1\n  quiet_hours: 2", "line 3: 'quiet_hours' stands in line 2"),
        ("[budget]", f"must hold one section per resource, got .*; {SECTIONS_ARE}"),
        (
            "budget: {",
            "line 1 is not YAML: while parsing a flow node, expected the node",
        ),
        ("budget: {workers: 1}\nautomation: [a\n", "line 3 is not YAML: while parsing a flow seq"),
        ("budget: {workers: 2020-13-45}", "is not YAML"),
        ("budget: {workers: 1}\n---\nbudget: {}", "is not YAML"),
    ],
)
def test_settings_that_cannot_be_are_refused_with_file_line_and_field(settings, text, words):
    settings(text)
    with pytest.raises(PlanError, match=f"(?s)patchworks.yaml.*{words}"):
        ComputeBudget().of_home()
    with pytest.raises(PlanError, match=f"(?s)patchworks.yaml.*{words}"):
        ComputeBudget(memory_fraction=0.8, workers=1, kind="threads").of_home()


def test_a_way_of_opening_images_that_cannot_be_is_refused(settings):
    settings("source:\n  open: [{match: '*.tif', axis: zyx}]")
    with pytest.raises(PlanError, match=r"line 2: source.open has no field 'axis'"):
        AcquisitionSource().of_home()


def test_a_file_that_is_no_text_is_refused(home, settings):
    (home / "patchworks.yaml").write_bytes(b"budget: \xff")
    with pytest.raises(PlanError, match="patchworks.yaml is not YAML"):
        ComputeBudget().of_home()


@pytest.mark.parametrize(
    "text",
    [
        "",
        "# nothing",
        "automation:",
        "budget:\n#  memory_fraction: 0.8\n",
        "budget: {memory_fraction: null}",
        "budget: {}",
    ],
)
def test_what_is_left_empty_sets_nothing(settings, text):
    settings(text)
    assert ComputeBudget().of_home() == ComputeBudget()
    assert Automation().of_home().why_off() is None


def test_a_size_of_tiles_is_one_number_or_one_per_axis(settings):
    settings("segmentation: {tile_shape: 64, overlap: [4, 8]}")
    deployment = SegmentationDefaults().of_home()
    assert (deployment.tile_shape, deployment.overlap) == ([64], [4, 8])
    settings("segmentation:\n  overlap: -4")
    with pytest.raises(PlanError, match=r"line 2: segmentation.overlap must be 0 or more pixels"):
        SegmentationDefaults().of_home()
    settings("segmentation: {tile_shape: [big]}")
    words = r"segmentation.tile_shape must be whole numbers, such as 512 or .*, got \['big'\]$"
    with pytest.raises(PlanError, match=f"line 1: {words}"):
        SegmentationDefaults().of_home()


def test_what_is_no_list_is_shown_as_one(settings):
    settings("alerts: {email_to: me@example.org}")
    words = r"line 1: alerts.email_to must be a list, such as \['me@example.org'\], got 'me@"
    with pytest.raises(PlanError, match=words):
        Alerts().of_home()


def test_a_function_that_is_none_is_said_with_file_and_line(settings):
    settings("segmentation:\n  overlap: 3\n  function: cellpos")
    deployment = SegmentationDefaults().of_home()
    for call in (lambda: deployment.function_of(Acquisition("a.tif")), deployment.check_function):
        with pytest.raises(SegmentationError, match="yaml, line 3: segmentation.function: .*'cel"):
            call()
    with pytest.raises(SegmentationError) as refused:
        deployment.function_of(Acquisition("a.tif", function="cellpos"))
    assert "yaml" not in str(refused.value)


@pytest.mark.parametrize(
    ("section", "name", "value"),
    [
        ("segmentation", "min_iou", 1.5),
        ("segmentation", "min_size", -1),
        ("segmentation", "tile_shape", [0]),
        ("segmentation", "tile_shape", []),
        ("segmentation", "tile_shape", [True]),
        ("segmentation", "overlap", [-1]),
        ("segmentation", "merge", "glue"),
        ("segmentation", "connectivity", 4),
        ("segmentation", "empty_threshold", float("nan")),
        ("segmentation", "max_tile_partitions", 0),
        ("source", "settle_seconds", -1),
        ("source", "max_per_tick", 0),
        ("budget", "cores_left_free", -1),
        ("budget", "workers", -1),
        ("gpus", "slots_per_device", 0),
        ("gpus", "min_free_bytes", -1),
        ("cluster", "seconds_to_wait", 0),
        ("cluster", "merge_from_megapixels", -1),
        ("automation", "enabled", "perhaps"),
        ("backfills", "max_partitions_per_run", -1),
        ("alerts", "smtp_port", 70_000),
        ("alerts", "quiet_hours", float("inf")),
        ("alerts", "timeout_seconds", 0),
        ("alerts", "email_to", "me@example.org"),
    ],
)
def test_a_value_out_of_range_is_refused_wherever_it_is_set(settings, section, name, value):
    words = rf"{section}.{name}\S* must "
    with pytest.raises(PlanError, match=f"^{words}"):
        RESOURCES[section](**{name: value})
    settings(yaml.safe_dump({section: {name: value}}))
    with pytest.raises(PlanError, match=rf"patchworks.yaml, line \d: {words}"):
        RESOURCES[section]().of_home()


def test_no_secret_is_shown_in_an_error(settings, monkeypatch):
    monkeypatch.setenv("PORT", "hunter2")
    settings("alerts:\n  smtp_port: {env: PORT}")
    with pytest.raises(PlanError, match="line 2: alerts.smtp_port .*variable 'PORT'") as caught:
        Alerts().of_home()
    assert "hunter2" not in str(caught.value)
    with pytest.raises(PlanError, match="smtp_password must be .*, got a value not shown"):
        Alerts(smtp_password=["hunter2"])


def test_a_number_from_the_environment_is_one(settings, monkeypatch):
    monkeypatch.setenv("PORT", "587")
    settings("alerts: {smtp_port: {env: PORT}}")
    assert Alerts().of_home().smtp_port == 587


def test_a_word_that_neither_switches_automation_off_nor_on_is_refused(home, monkeypatch):
    for word, off in (("off", True), ("NO", True), ("on", False), ("", False)):
        monkeypatch.setenv("PATCHWORKS_AUTOMATION", word)
        assert (Automation().why_off() is not None) == off
    monkeypatch.setenv("PATCHWORKS_AUTOMATION", "fales")
    with pytest.raises(PlanError, match="PATCHWORKS_AUTOMATION must be one of .* got 'fales'"):
        Automation().why_off()


def test_a_cluster_without_its_extra_says_how_to_install_it(tmp_path, monkeypatch):
    path = tmp_path / "dask.yaml"
    path.write_text("cluster: {local: {n_workers: 1}}")
    monkeypatch.setitem(sys.modules, "dagster_dask", None)
    with (
        pytest.raises(PlanError, match=r"dagster_dask.*pip install 'patchworks-pipeline\[dask\]'"),
        DaskCluster(config_file=str(path)).open(),
    ):
        pass


def test_the_file_of_a_cluster_is_read_with_the_same_care(tmp_path):
    path = tmp_path / "dask.yaml"
    path.write_text("client: {address: a}\nclient: {address: b}")
    with pytest.raises(PlanError, match="dask.yaml, line 2: 'client' stands in line 1 already"):
        DaskCluster(config_file=str(path)).settings()
    path.write_text("client: {")
    with pytest.raises(PlanError, match="dask.yaml, line 1 is not YAML"):
        DaskCluster(config_file=str(path)).settings()


@pytest.mark.parametrize(
    ("config", "name", "value"),
    [
        (StagingConfig, "max_failed_fraction", 50),
        (MergeConfig, "min_iou", 30),
        (MergeConfig, "min_size", -1),
        (MergeConfig, "connectivity", 4),
        (RetentionConfig, "days", -1),
        (RetentionConfig, "days", float("nan")),
    ],
)
def test_the_config_of_an_asset_is_checked(config, name, value):
    with pytest.raises(ValueError, match=rf"{name}\n.*should be"):
        config(**{name: value})


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
    with pytest.raises(PlanError, match=r"backfills.max_partitions_per_run must .* got -1"):
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


def test_a_home_that_asks_for_it_writes_to_the_disk_in_every_process(settings):
    settings("store: {fsync: false}")
    LabelStore().of_home()
    assert not is_durable()
    settings("store: {fsync: true}")
    LabelStore().of_home()
    assert is_durable()
    with Pool.open(Workers(1, "processes")) as pool:
        assert list(pool.map(_is_durable_there, [0], step="looking")) == [True]


def _is_durable_there(item):
    return is_durable()


@pytest.mark.parametrize("limits", ["tile_timeout: 0", "worker_memory: auto, tile_timeout: null"])
def test_threads_go_with_limits_that_are_none(settings, limits):
    settings(f"budget: {{kind: threads, {limits}}}")
    assert ComputeBudget().of_home().kind == "threads"


def test_memory_is_a_number_of_bytes_too(settings):
    settings("budget: {worker_memory: 8000000000}")
    assert ComputeBudget().of_home().limits().memory_bytes() == 8_000_000_000


def test_threads_of_a_call_and_a_deadline_of_the_file_do_not_meet_without_a_word(settings):
    settings("budget: {tile_timeout: 5}")
    with pytest.raises(PlanError, match=r"budget.tile_timeout is kept by .*budget.kind is 'thr"):
        ComputeBudget(kind="threads").of_home()
