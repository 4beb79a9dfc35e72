"""What Dagster is told: every asset described, the lineage as designed."""

from __future__ import annotations

import subprocess
import sys
from itertools import pairwise

import dagster as dg
import pytest

from patchworks_pipeline.definitions import defs
from patchworks_pipeline.partitions import images, tiles
from patchworks_pipeline.resources.compute_budget import ComputeBudget
from patchworks_pipeline.resources.gpus import GpuPool
from patchworks_pipeline.resources.resources import LabelStore, SegmentationDefaults

LINEAGE = (
    "acquisition",
    "image",
    "image_statistics",
    "staged_labels",
    "boundary_pairs",
    "global_lut",
    "merged_labels",
    "object_table",
    "quality_report",
)


def spec_of(name: str) -> dg.AssetSpec:
    return next(s for s in defs.resolve_all_asset_specs() if s.key == dg.AssetKey(name))


def test_definitions_can_be_loaded():
    dg.Definitions.validate_loadable(defs)


def test_the_assets_are_those_of_the_design():
    assert {s.key.to_user_string() for s in defs.resolve_all_asset_specs()} == set(LINEAGE)


@pytest.mark.parametrize("name", LINEAGE)
def test_every_asset_says_what_it_is_and_whose(name):
    spec = spec_of(name)
    assert spec.group_name in ("acquisition", "tiles", "labels", "results")
    assert spec.kinds
    assert spec.owners
    assert spec.code_version or name == "acquisition"  # which no code here makes
    assert spec.description
    assert spec.description.endswith(".")


@pytest.mark.parametrize(("upstream", "downstream"), list(pairwise(LINEAGE)))
def test_every_asset_depends_on_the_one_before_it_alone(upstream, downstream):
    assert [dep.asset_key for dep in spec_of(downstream).deps] == [dg.AssetKey(upstream)]


def test_the_first_asset_depends_on_nothing():
    assert not list(spec_of("acquisition").deps)


@pytest.mark.parametrize("name", ["staged_labels", "boundary_pairs"])
def test_no_key_is_inferred_between_tiles_and_images(name):
    (dep,) = spec_of(name).deps
    assert dep.partition_mapping == dg.SpecificPartitionsPartitionMapping([])


@pytest.mark.parametrize("name", LINEAGE)
def test_staged_labels_are_partitioned_by_tile_and_all_else_by_image(name):
    assert spec_of(name).partitions_def == (tiles if name == "staged_labels" else images)


def test_a_range_of_tiles_is_one_run():
    policy = defs.resolve_asset_graph().get(dg.AssetKey("staged_labels")).backfill_policy
    assert policy == dg.BackfillPolicy.single_run()


@pytest.mark.parametrize(
    ("job", "assets"),
    [
        ("plan_image", {"image", "image_statistics"}),
        ("stage_tiles", {"staged_labels"}),
        ("merge_image", set(LINEAGE[4:])),
    ],
)
def test_every_job_is_a_stretch_of_the_lineage(job, assets):
    keys = defs.resolve_job_def(job).asset_layer.executable_asset_keys
    assert {key.to_user_string() for key in keys} == assets


def test_every_choice_of_a_run_is_explained_in_the_launchpad():
    for name in ("staged_labels", "global_lut"):
        config = defs.resolve_asset_graph().get(dg.AssetKey(name)).assets_def.op.config_schema
        fields = config.config_type.fields
        assert fields
        assert all(field.description for field in fields.values())


@pytest.mark.parametrize("resource", [LabelStore, SegmentationDefaults, ComputeBudget, GpuPool])
def test_every_choice_of_a_deployment_is_explained(resource):
    assert all(field.description for field in resource.model_fields.values())


def test_resources_take_config_where_the_run_asks_for_it():
    budget = ComputeBudget(workers=3, kind="processes")
    assert budget.open(3).kind == "processes"
    assert LabelStore(root="memory://store").folder("a").path.path.endswith("store/a")


HEAVY = {"dask", "matplotlib", "ome_zarr_models", "pandas", "scipy", "skimage", "torch"}
"""What every process of a run would wait for, and most do not need."""


def test_importing_the_definitions_writes_nothing_and_loads_nothing_heavy(tmp_path):
    script = (
        "import os, sys, patchworks_pipeline.definitions\n"
        f"print(os.listdir('.'), {HEAVY} & set(sys.modules))"
    )
    environment = {"PATCHWORKS_HOME": str(tmp_path / "nowhere"), "PATH": ""}
    printed = subprocess.run(
        [sys.executable, "-c", script],
        cwd=tmp_path,
        env=environment,
        capture_output=True,
        text=True,
        check=True,
    ).stdout
    assert printed.strip() == "[] set()"
    assert not (tmp_path / "nowhere").exists()
