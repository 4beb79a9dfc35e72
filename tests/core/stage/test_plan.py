"""The record of a plan: how a function is spelled in it, and which plans are the same."""

from __future__ import annotations

import json
from dataclasses import replace

import numpy as np
import pytest

from patchworks_core.files.records import unsealed
from patchworks_core.operations import background, filters, shading
from patchworks_core.operations.filtering import image_statistics
from patchworks_core.plugins.segmentation import (
    BUILT_IN,
    recorded_before,
    segmentation_of,
    short_name,
)
from patchworks_core.stage.plan import Plan, as_recorded
from patchworks_core.stage.stage import Stage
from patchworks_core.stage.staging import Staging
from tests.core.staging import label_components, plan_of

PIXELS = np.arange(64, dtype=np.uint8).reshape(8, 8)

LONG = "patchworks_core.plugins.threshold:threshold"
"""As plans of version 0.1.0 spell it."""

FINGERPRINT = "2cf375917c2bec91c3f8f25b6b254240"
"""Of the plan of `PIXELS` with version 1 of the function, as it was when its path was recorded."""


def planned(function="threshold") -> Plan:
    return plan_of(PIXELS, function)[1]


def planned_before(plan: Plan) -> Plan:
    """Return the plan with version 1 of the function."""
    return replace(plan, segmentation={**plan.segmentation, "version": "1"})


def spelled_before(text: str) -> str:
    record = unsealed(json.loads(text))
    assert record["segmentation"]["function"] == "threshold"
    record["segmentation"]["function"] = LONG
    return json.dumps(record)


def test_a_built_in_is_recorded_by_its_name_and_fingerprinted_as_before():
    plan = planned()
    assert plan.segmentation["function"] == "threshold"
    assert planned_before(plan).fingerprint == FINGERPRINT
    assert planned(LONG) == plan


def test_a_plan_of_before_is_the_same_plan():
    plan = planned()
    before = Plan.from_json(spelled_before(plan.to_json()))
    assert before == plan
    assert before.difference(plan) == ""
    assert Plan.from_json(before.to_json()) == plan


@pytest.mark.parametrize("name", BUILT_IN)
def test_every_built_in_may_still_be_called_by_the_path_that_was_recorded(name):
    path = f"patchworks_core.plugins.{name}:{name}"
    assert (short_name(path), recorded_before(name)) == (name, path)


SLIDE = np.full((40, 40), 220.0)
SLIDE[10:20, 10:25] = 90


@pytest.mark.parametrize("function", ["threshold", "watershed"])
@pytest.mark.parametrize(
    ("pixels", "parameters", "is_same"),
    [
        (255 - SLIDE, {}, True),
        (SLIDE, {}, False),
        (SLIDE, {"dark_objects": False}, True),
        (SLIDE, {"dark_objects": True}, True),
        (SLIDE, {"dark_objects": "auto"}, False),
        (np.where(SLIDE == 90, np.nan, 1), {"dark_objects": True}, False),
        (np.where(SLIDE == 90, np.inf, 1), {}, False),
    ],
)
def test_a_plan_of_the_version_before_is_taken_up_where_its_labels_are_the_same(
    function, pixels, parameters, is_same
):
    image, plan = plan_of(pixels, function, parameters=parameters)
    before, chosen = planned_before(plan), segmentation_of(function, parameters)
    statistics = image_statistics(image)
    taken_up = as_recorded(plan, chosen, before, lambda: statistics)
    assert taken_up == (before if is_same else plan)
    assert as_recorded(plan, chosen, before) == plan


def test_only_the_version_before_is_vouched_for():
    image, plan = plan_of(PIXELS, "threshold")
    other = replace(plan, segmentation={**plan.segmentation, "version": "0"})
    statistics = image_statistics(image)
    assert as_recorded(plan, segmentation_of("threshold"), other, lambda: statistics) == plan


def test_a_stage_of_before_is_taken_up_and_no_tile_is_staged_again(tmp_path):
    image, plan = plan_of(PIXELS, "threshold")
    stage = Stage.create(tmp_path, plan)
    first, *others = plan.grid.block_keys()
    Staging(image, stage, label_components)(plan.grid.block_of_key(first))
    record = tmp_path / "plan.json"
    record.write_text(spelled_before(record.read_text()))
    assert Stage.open_or_create(tmp_path, plan).missing_blocks() == others


def test_the_operations_that_come_with_patchworks_are_recorded_by_their_names():
    operations = [
        filters.gaussian(1),
        filters.median(3),
        filters.maximum(3),
        filters.minimum(3),
        filters.clip_and_scale(0, 1),
        background.white_tophat(1),
        background.subtract_background(1),
        shading.shading_correction(np.ones((8, 8))),
    ]
    names = [operation.to_dict()["operation"] for operation in operations]
    assert all(name.isidentifier() for name in names), names
