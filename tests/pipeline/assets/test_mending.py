"""Third views in the pipeline: staged by the run that merges, kept, and never half merged."""

from __future__ import annotations

from unittest.mock import ANY

import dagster as dg
import numpy as np
import pytest

from patchworks_core.errors import PlanError, StageError
from patchworks_core.files.storage import open_array
from patchworks_core.plugins.segmentation import Segmentation
from patchworks_core.stage.staging import Staging
from patchworks_core.stage.third_views import TileMarks
from patchworks_pipeline.cli.mending import mend_again
from patchworks_pipeline.cli.runs import merge_again
from patchworks_pipeline.cli.status import state_of
from patchworks_pipeline.cli.third_views import NONE
from tests.pipeline.conftest import error_of, metadata_of
from tests.tissue import files_under, tissue, write_tiff


@pytest.fixture
def folder(pipeline, tmp_path):
    path = write_tiff(tmp_path / "tissue.ome.tif", tissue())
    folder = pipeline.register(path, function="tissue_functions:wavering", parameters={})
    pipeline.run_to_labels(folder)
    return folder


def labels_of(folder) -> np.ndarray:
    return np.asarray(open_array(folder.labels(folder.plan()).path / "0")[...])


def merge_and_mend(pipeline, folder, **config):
    names = ("boundary_pairs", "global_lut", "merged_labels")
    return pipeline.run(
        "merge_image",
        partition_key=folder.key,
        ops={"boundary_pairs": {"config": {"mend": config}}},
        asset_selection=[dg.AssetKey(name) for name in names],
    )


def status_of_views(pipeline, folder) -> tuple[list[int | None], list[str]]:
    """Return what the status of an image has of third views, in figures and in words."""
    state = state_of(pipeline.instance, [folder.key], [""], of_home=False)
    (row,) = state.images
    return [row[name] for name in NONE], state.mended


def stage_of_another_plan(folder, plan):
    raise StageError("it was made by another plan")


def test_a_merge_that_mends_says_what_it_did_and_does_it_once(pipeline, folder, monkeypatch):
    before = labels_of(folder)
    result = merge_and_mend(pipeline, folder, faces=3, min_agreement=1)
    said = metadata_of(result, "boundary_pairs")
    assert (said["n_faces_mended"], said["n_third_views_staged"]) == (3, 3)
    assert 0 < said["agreement_of_mended_faces"] < 1
    assert len(said["faces_mended"].split(", ")) == 3
    after = labels_of(folder)
    assert (before != after).any()
    words = "tissue: mended: 3 third views staged, 3 in the labels"
    assert status_of_views(pipeline, folder) == ([3, 0, 3], [words])
    with monkeypatch.context() as patch:
        patch.setattr(type(folder), "stage", stage_of_another_plan)
        assert status_of_views(pipeline, folder) == ([0, 0, 3], ANY)
    again = merge_and_mend(pipeline, folder, faces=3, min_agreement=1)
    assert metadata_of(again, "boundary_pairs")["n_third_views_staged"] == 0
    assert metadata_of(again, "merged_labels")["n_tiles_written"] == 0
    assert pipeline.merge(folder).success  # a merge that says nothing of third views hears them
    np.testing.assert_array_equal(labels_of(folder), after)
    with monkeypatch.context() as patch:
        patch.setattr(Segmentation, "merge", "touching")
        why = (
            r"merged by 'touching' \(the rule 'auto' is that for its function and tiles\), which "
            r"hears no third view; 'patchworks merge tissue --merge overlap' merges it by 'overlap'"
        )
        with pytest.raises(PlanError, match=why):
            mend_again(pipeline.instance, folder, {}, budget={})
    open_array(folder.labels(folder.plan()).path / "0", mode="r+")[0, 0] = 77
    files = files_under(folder.path)
    for refused in (
        merge_and_mend(pipeline, folder, min_agreement=1),
        pipeline.run(
            "merge_image",
            partition_key=folder.key,
            ops={"global_lut": {"config": {"merge": "none"}}},
            asset_selection=[dg.AssetKey("global_lut"), dg.AssetKey("merged_labels")],
        ),
    ):
        assert "it was changed since patchworks wrote it" in error_of(refused)
    assert files_under(folder.path) == files, "no third view, no table by another rule"


@pytest.mark.slow
def test_a_third_view_that_fails_leaves_the_labels_as_they_were(pipeline, folder, monkeypatch):
    labels = folder.labels(folder.plan()).path
    before = files_under(labels)

    def fails(staging, tile, *, where):
        raise ValueError(f"{where}: no memory")

    monkeypatch.setattr(Staging, "see", fails)
    result = merge_and_mend(pipeline, folder, faces=1, min_agreement=1)
    assert not result.success
    assert "1 of 1 third views failed, the first of face 'y00" in error_of(result)
    assert files_under(labels) == before


@pytest.mark.slow
def test_the_status_says_what_is_mended_and_what_the_labels_heard(pipeline, folder, monkeypatch):
    assert status_of_views(pipeline, folder) == ([0, 0, 0], [])
    result = merge_and_mend(pipeline, folder, faces=3, min_agreement=1)
    assert metadata_of(result, "merged_labels")["n_third_views"] == 3
    assert status_of_views(pipeline, folder) == (
        [3, 0, 3],
        ["tissue: mended: 3 third views staged, 3 in the labels"],
    )
    assert "n_third_views" not in metadata_of(pipeline.merge(folder, merge="none"), "merged_labels")
    (figures, (words,)) = status_of_views(pipeline, folder)
    assert figures == [3, 0, 0]
    assert words.endswith("'patchworks merge tissue --merge overlap' takes in the others")
    monkeypatch.setattr(TileMarks, "of", lambda self, face: "of tiles that were staged again")
    (figures, (words,)) = status_of_views(pipeline, folder)
    assert figures == [0, 3, 0]
    assert "3 of tiles that were staged again, which 'patchworks mend tissue' stages anew" in words


@pytest.mark.slow
def test_the_command_mends_and_has_nothing_left_to_do(pipeline, folder):
    chosen = {"faces": 3, "min_agreement": 1.0}

    def mend():
        return mend_again(pipeline.instance, folder, chosen, budget={})

    result = mend()
    assert (result.error, result.steps) == (None, ("merge_image",))
    assert folder.summary()["n_third_views"] == 3
    after, files = labels_of(folder), files_under(folder.path)
    assert mend().steps == ()
    assert files_under(folder.path) == files
    assert merge_again(pipeline.instance, folder, {"rule": "touching"}).error is None
    with pytest.raises(PlanError, match="tissue is merged by 'touching', which hears no third vie"):
        mend()
    assert merge_again(pipeline.instance, folder, {"rule": "overlap"}).error is None
    np.testing.assert_array_equal(labels_of(folder), after)
