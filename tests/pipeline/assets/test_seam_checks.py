"""The seams of an image as the pipeline judges them: the check, the metadata, the report."""

from __future__ import annotations

import json

import dagster as dg
import numpy as np
import pytest
from typer.testing import CliRunner

from patchworks_core.stage.stage import StagedTile
from patchworks_pipeline.assets.merging import SEAMS_AGREE
from patchworks_pipeline.cli.main import app
from patchworks_pipeline.resources.resources import LabelStore
from tests.pipeline.conftest import error_of, metadata_of
from tests.tissue import TILE, tissue, write_tiff

BAD = (2, 2)
BAD_KEY = "y002x002"
SHAPE = (160, 160)


@pytest.fixture
def image(tmp_path):
    return write_tiff(tmp_path / "tissue.ome.tif", tissue(SHAPE, n_cells=160))


def check_of(result: dg.ExecuteInProcessResult) -> dg.AssetCheckEvaluation:
    (found,) = [c for c in result.get_asset_check_evaluations() if c.check_name == SEAMS_AGREE]
    return found


def plant_fault(folder):
    """Stage one tile as a function that shifts its labels would have."""
    from patchworks_core.stage.object_sums import measure_tile
    from patchworks_core.stage.tile_labels import number_labels

    stage = folder.stage()
    block = stage.grid.block_of_key(BAD_KEY)
    (tile,) = block.tiles
    pixels = folder.acquisition().open().read(tile.read)
    core = tile.core.relative_to(tile.read.start)
    shifted = np.roll(pixels.astype(np.int64), (5, 5), axis=(0, 1))
    numbered = number_labels(shifted, core, where="")
    objects = measure_tile(
        numbered.pixels[core.slices],
        axes=stage.grid.axes,
        origin=tile.core.start,
        n_labels=numbered.n_core,
        pixels=pixels[core.slices],
    )
    stage.write(block, [StagedTile(tile, numbered, objects)])


@pytest.mark.slow
def test_a_sound_run_passes_the_check_and_reports_its_figures(pipeline, image):
    folder = pipeline.register(image)
    done = pipeline.run_all(folder)["merge"]
    check = check_of(done)
    assert check.passed
    figures = metadata_of(done, "merged_labels")
    assert figures["seam_agreement"] > 0.95
    assert figures["n_seam_faults"] == 0
    assert figures["n_objects_at_seams"] > 50
    assert figures["seams"]["agrees"]
    report = metadata_of(done, "quality_report")
    assert "data:image/png;base64" in report["seams"]
    summary = json.loads((folder.report / "summary.json").read_text())
    assert summary["seam_agreement"] == figures["seam_agreement"]
    assert summary["n_large_across_seams"] == 0
    assert (folder.report / "seams.png").exists()


def test_a_tile_staged_with_a_shift_fails_the_check_with_a_warning_that_names_it(pipeline, image):
    folder = pipeline.register(image)
    pipeline.plan(folder)
    pipeline.stage(folder)
    plant_fault(folder)
    done = pipeline.merge(folder)
    assert done.success, error_of(done)
    check = check_of(done)
    assert not check.passed
    assert check.severity == dg.AssetCheckSeverity.WARN
    assert not check.blocking
    assert check.description.startswith(f"tile {BAD_KEY}: ")
    faces = check.metadata["worst_faces"].value.split(", ")
    assert len(faces) == 4
    assert all(BAD_KEY in face.split("|") for face in faces)
    assert metadata_of(done, "merged_labels")["n_seam_faults"] == 1


def test_a_check_that_passes_for_one_image_does_not_hide_that_it_failed_for_another(
    pipeline, instance, image, tmp_path
):
    bad = pipeline.register(image, "bad")
    sound = pipeline.register(write_tiff(tmp_path / "sound.ome.tif", tissue((64, 64))), "sound")
    for folder in (bad, sound):
        assert pipeline.plan(folder).success
        assert pipeline.stage(folder).success
    plant_fault(bad)
    evaluations = [check_of(pipeline.merge(folder)) for folder in (bad, sound)]
    assert [(e.partition, e.passed) for e in evaluations] == [("bad", False), ("sound", True)]
    check = evaluations[0].asset_check_key
    info = instance.event_log_storage.get_asset_check_partition_info([check])
    statuses = {i.partition_key: i.latest_execution_status.value for i in info}
    assert statuses == {"bad": "FAILED", "sound": "SUCCEEDED"}


def test_an_image_without_objects_passes_the_check(pipeline, tmp_path):
    blank = write_tiff(tmp_path / "blank.ome.tif", tissue((64, 64)) * 0)
    done = pipeline.run_all(pipeline.register(blank, "blank"))["merge"]
    assert check_of(done).passed
    assert "seam_agreement" not in metadata_of(done, "merged_labels")


def test_the_pilot_prints_trials_and_the_command_to_run_next(home, image):
    options = ["--segmentation", "tissue_functions:perfect", "--tile-shape", str(TILE)]
    result = CliRunner().invoke(app, ["pilot", str(image), *options, "--n-regions", "2"])
    assert result.exit_code == 0, result.output
    assert "F1 at seams" in result.output
    words = " ".join(result.output.split())
    assert f"patchworks run {image} --segmentation tissue_functions:perfect" in words
    assert "--merge overlap" in words
    assert "objects at seams in 2 regions" in words


@pytest.mark.slow
def test_a_run_with_overlap_auto_on_an_empty_well_says_what_it_takes(home, tmp_path):
    empty_well = write_tiff(tmp_path / "well.ome.tif", np.full((64, 64), 5, "u2"))
    run = ["run", str(empty_well), "--segmentation", "threshold", "--tile-shape", "32"]
    run += ["--overlap", "auto", "--name", "well", "--home", str(home)]
    result = CliRunner().invoke(app, run)
    assert result.exit_code == 0, result.output
    assert "overlap 'auto' takes (0, 0) without a trial" in " ".join(result.output.split())
    assert LabelStore().folder("well").plan().grid.halo == (0, 0)


def test_the_pilot_refuses_an_image_of_one_tile(home, image):
    options = ["--segmentation", "tissue_functions:perfect", "--tile-shape", "512"]
    result = CliRunner().invoke(app, ["pilot", str(image), *options])
    assert result.exit_code == 2
    assert "a pilot needs seams" in " ".join(result.output.split())


@pytest.mark.slow
def test_a_run_with_overlap_auto_records_the_pilot_that_chose_it(home, image):
    options = ["--segmentation", "tissue_functions:perfect", "--tile-shape", str(TILE)]
    run = ["run", str(image), *options, "--name", "auto", "--home", str(home)]
    result = CliRunner().invoke(app, [*run, "--overlap", "auto"])
    assert result.exit_code == 0, result.output
    folder = LabelStore().folder("auto")
    best = folder.acquisition().pilot["recommended"]
    assert folder.plan().grid.halo == tuple(best["overlap"])
    labels = folder.labels(folder.plan()).path
    assert json.loads((labels / "provenance.json").read_text())["pilot"]["recommended"] == best
    again = CliRunner().invoke(app, ["run", str(image), "--name", "auto", "--home", str(home)])
    assert "nothing was missing" in again.output
