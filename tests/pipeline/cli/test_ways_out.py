"""What an error advises can be done: a command that there is, a setting by its name."""

from __future__ import annotations

from dataclasses import replace

import pytest

from patchworks_core.errors import PlanError, StageError
from patchworks_core.files.storage import as_path
from patchworks_core.stage.stage import Stage
from patchworks_pipeline.assets.planned import Measured
from patchworks_pipeline.assets.stage_reading import what_is_replaced
from patchworks_pipeline.cli.results import is_planned
from patchworks_pipeline.cli.runs import open_home
from patchworks_pipeline.cli.terminal import in_options
from patchworks_pipeline.image_faults import words_of
from patchworks_pipeline.landing.arrivals import Quarantine
from patchworks_pipeline.partitions import images
from patchworks_pipeline.records import ImageFolder
from tests.pipeline.conftest import call_command_line as patchworks
from tests.tissue import tissue, write_tiff


def test_a_plan_that_cannot_be_read_or_is_not_there_leads_to_the_command_that_makes_it(tmp_path):
    folder = ImageFolder(as_path(tmp_path), "tissue")
    with pytest.raises(StageError) as missing:
        folder.plan()
    words = in_options(str(missing.value))
    assert "'patchworks run IMAGE' makes it, or correct store.root of patchworks.yaml" in words
    (tmp_path / "plan.json").write_text("{")
    with pytest.raises(PlanError, match="'patchworks run' of the image plans it again$"):
        folder.plan()


def test_labels_whose_provenance_is_damaged_lead_to_the_merge():
    advised = in_options("materialize merged_labels again with overwrite")
    assert advised == "'patchworks merge IMAGE --overwrite' makes them again"


@pytest.mark.parametrize("command", ["next", "retry", "merge"])
def test_a_command_on_an_image_that_was_refused_says_why(home, command):
    with open_home(home) as instance:
        instance.add_dynamic_partitions(str(images.name), ["three"])
    quarantine = Quarantine(as_path(home / "store" / ".quarantine"))
    quarantine.record("three-1a", "the file is cut short", "/data/three.tif", "three", "1a")
    quarantine.record("three-4-1a", "another reason", "/data/three-4.tif", "three-4", "1a")
    code, printed = patchworks(command, "three")
    assert code == 2
    assert "image 'three' was refused: the file is cut short; it is tried again when it" in printed
    assert "once " in printed
    assert "three-1a.json is removed" in printed
    assert "another reason" not in printed


def test_a_home_of_settings_alone_has_no_image_yet(home):
    home.mkdir()
    (home / "patchworks.yaml").write_text("segmentation: {function: threshold}")
    for call in (["status"], ["retry", "a"]):
        code, printed = patchworks(*call)
        assert code == 2
        assert f"no image has been run in {home} yet; 'patchworks run IMAGE' does" in printed


def test_a_stage_that_is_replaced_leaves_nothing_to_be_done(pipeline, tmp_path):
    folder = pipeline.register(write_tiff(tmp_path / "tissue.tif", tissue((64, 64))))
    pipeline.plan(folder)
    plan = folder.plan()
    other = replace(plan, image=replace(plan.image, fingerprint="0"))
    words = what_is_replaced(folder, other)
    assert words is not None
    assert words.endswith("cannot be mixed with this plan's; all tiles are staged again")
    record = folder.path / "stage.zarr" / "plan.json"
    record.write_bytes(b"{")
    words = what_is_replaced(folder, plan)
    assert words is not None
    assert "plan the image again" not in words
    assert words.endswith("; all tiles are staged again")


def test_what_was_measured_and_is_lost_is_measured_by_the_next_run(pipeline, tmp_path):
    folder = pipeline.register(write_tiff(tmp_path / "tissue.tif", tissue((64, 64))))
    pipeline.plan(folder)
    plan = folder.plan()
    plan = replace(plan, segmentation={**plan.segmentation, "empty_threshold": 3})
    folder.write_plan(plan)
    Stage.open_or_create(folder.path / "stage.zarr", plan)
    assert not is_planned(folder, plan)
    Measured(maxima=(1.0,) * plan.grid.n_tiles).write(folder, plan)
    assert is_planned(folder, plan)
    (folder.path / "measured.json").write_bytes(b"{")
    assert not is_planned(folder, plan)


def test_a_place_that_is_not_ours_says_what_to_do():
    words = words_of(PermissionError(13, "Permission denied", "/data/home"))
    assert words == (
        "permission denied: '/data/home'; correct its permissions, or name another place"
    )
