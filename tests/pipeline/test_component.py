"""The deployment as a component: a ``defs.yaml`` in a project of Dagster's kind."""

from __future__ import annotations

import sys
from pathlib import Path

import dagster as dg
import pytest
import yaml

import patchworks_pipeline
from patchworks_core import PlanError, SegmentationError
from patchworks_pipeline.component import Segmentation
from patchworks_pipeline.resources.named_functions import check_exists

# Dagster copies the external asset when it loads a folder, and warns of its own call.
pytestmark = pytest.mark.filterwarnings("ignore:Parameter `execution_type` of function")

TYPE = "patchworks_pipeline.Segmentation"


def load(tmp_path: Path, monkeypatch, *more: dict, **attributes: object) -> dg.Definitions:
    """Return the definitions of a project that has one component, or more."""
    name = f"facility_{abs(hash(str(tmp_path)))}"
    for number, each in enumerate((attributes, *more)):
        folder = tmp_path / name / "defs" / f"nuclei_{number}"
        folder.mkdir(parents=True)
        (folder / "defs.yaml").write_text(yaml.safe_dump({"type": TYPE, "attributes": each}))
    for package in (tmp_path / name, tmp_path / name / "defs"):
        (package / "__init__.py").write_text("")
    (tmp_path / "pyproject.toml").write_text(
        f"[tool.dg]\ndirectory_type = 'project'\n[tool.dg.project]\nroot_module = '{name}'\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    return dg.load_from_defs_folder(path_within_project=tmp_path)


class Alone:
    """What a component sees of a project in which it is the only one."""

    @property
    def component_tree(self) -> Alone:
        return self

    def get_all_components(self, of_type: type) -> list:
        return []


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


@pytest.mark.parametrize("prefix", ["light", ""])
def test_two_components_with_one_prefix_are_refused_in_words(home, tmp_path, monkeypatch, prefix):
    with pytest.raises(Exception, match="nuclei_") as told:
        load(tmp_path, monkeypatch, {"key_prefix": prefix}, key_prefix=prefix)
    errors = [told.value]
    while errors[-1].__cause__ is not None:
        errors.append(errors[-1].__cause__)
    assert isinstance(errors[-1], PlanError)
    assert f"a key_prefix of its own, got {prefix!r} in 2 of them" in str(errors[-1])


def test_two_components_with_prefixes_of_their_own_are_loaded(home, tmp_path, monkeypatch):
    keys = keys_of(load(tmp_path, monkeypatch, {"key_prefix": "electron"}, key_prefix="light"))
    assert {"light/merged_labels", "electron/merged_labels"} <= keys


@pytest.mark.parametrize(
    ("function", "words"),
    [
        ("nowhere", "no segmentation function is called 'nowhere'"),
        ("nowhere:label", "no module 'nowhere'"),
        ("nowhere.cells:label", "no module 'nowhere.cells'"),
        ("tissue_functions:nothing", "has no 'nothing', of 'tissue_functions:nothing'"),
    ],
)
@pytest.mark.parametrize("several", [False, True])
def test_a_function_that_there_is_not_is_refused_when_definitions_are_loaded(
    home, tmp_path, monkeypatch, function, words, several
):
    chosen = {"function": function}
    attributes = {"segmentations": {"a": chosen}} if several else {"segmentation": chosen}
    with pytest.raises(SegmentationError, match=words):
        Segmentation(**attributes).build_defs(Alone())


def test_a_function_is_looked_for_without_importing_it(home, tmp_path):
    (tmp_path / "home").mkdir(exist_ok=True)
    heavy = tmp_path / "heavy_functions.py"
    heavy.write_text("raise MemoryError\ndef label(tile): ...\nclass Nuclei: ...\n")
    sys.path.insert(0, str(tmp_path))
    try:
        for name in ("label", "Nuclei.label"):
            check_exists(f"heavy_functions:{name}")
        with pytest.raises(SegmentationError, match=r"heavy_functions\.py has no 'labels'"):
            check_exists("heavy_functions:labels")
    finally:
        sys.path.remove(str(tmp_path))


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
        Segmentation(**attributes).build_defs(Alone())


def test_it_is_found_in_the_package_and_has_a_schema_for_editors():
    assert patchworks_pipeline.Segmentation is Segmentation
    assert "Segmentation" in dir(patchworks_pipeline)
    schema = Segmentation.get_model_cls().model_json_schema()
    assert {"key_prefix", "segmentations", "relations", "resources"} <= set(schema["properties"])
