"""The deployment as a component: a ``defs.yaml`` in a project of Dagster's kind."""

from __future__ import annotations

from pathlib import Path

import dagster as dg
import pytest
import yaml

import patchworks_pipeline
from patchworks_core import PlanError
from patchworks_pipeline.component import Segmentation

# Dagster copies the external asset when it loads a folder, and warns of its own call.
pytestmark = pytest.mark.filterwarnings("ignore:Parameter `execution_type` of function")

TYPE = "patchworks_pipeline.Segmentation"


def load(tmp_path: Path, monkeypatch, **attributes: object) -> dg.Definitions:
    """Return the definitions of a project that has one component."""
    name = f"facility_{abs(hash(str(tmp_path)))}"
    folder = tmp_path / name / "defs" / "nuclei"
    folder.mkdir(parents=True)
    for package in (tmp_path / name, tmp_path / name / "defs"):
        (package / "__init__.py").write_text("")
    (folder / "defs.yaml").write_text(yaml.safe_dump({"type": TYPE, "attributes": attributes}))
    (tmp_path / "pyproject.toml").write_text(
        f"[tool.dg]\ndirectory_type = 'project'\n[tool.dg.project]\nroot_module = '{name}'\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    return dg.load_from_defs_folder(path_within_project=folder)


def keys_of(defs: dg.Definitions) -> set[str]:
    return {spec.key.to_user_string() for spec in defs.resolve_all_asset_specs()}


def test_a_defs_yaml_gives_the_assets_of_each_segmentation(home, tmp_path, monkeypatch):
    defs = load(
        tmp_path,
        monkeypatch,
        key_prefix="light",
        segmentations={"nuclei": {"function": "threshold", "channel": 0}, "cells": {}},
        relations={"nuclei": "cells"},
        resources={"store": {"root": str(tmp_path / "labels")}},
    )
    assert {"light/image", "light/nuclei/merged_labels", "light/nuclei/in_cells"} <= keys_of(defs)
    resources = defs.resources or {}
    assert resources["light__nuclei__segmentation"].function == "threshold"
    assert resources["light__nuclei__segmentation"].block == "nuclei"
    assert resources["light__store"].root == str(tmp_path / "labels")
    dg.Definitions.validate_loadable(defs)


def test_without_attributes_it_is_what_the_home_says(home, tmp_path, monkeypatch):
    home.mkdir(parents=True)
    (home / "patchworks.yaml").write_text("segmentations: {nuclei: {}, cells: {}}")
    keys = keys_of(load(tmp_path, monkeypatch))
    assert {"nuclei/merged_labels", "cells/merged_labels"} <= keys


@pytest.mark.parametrize(
    ("attributes", "words"),
    [
        ({"segmentation": {"overlap": [8]}, "segmentations": {"a": {}}}, "cannot both stand"),
        ({"resources": {"stores": {}}}, "no resource 'stores'"),
        ({"segmentation": {"functoin": "threshold"}}, "segmentation.functoin is not a field"),
    ],
)
def test_a_mistake_is_refused_in_words(attributes, words):
    with pytest.raises(PlanError, match=words):
        Segmentation(**attributes).build_defs(None)


def test_it_is_found_in_the_package_and_has_a_schema_for_editors():
    assert patchworks_pipeline.Segmentation is Segmentation
    assert "Segmentation" in dir(patchworks_pipeline)
    schema = Segmentation.get_model_cls().model_json_schema()
    assert {"key_prefix", "segmentations", "relations", "resources"} <= set(schema["properties"])
