"""Outlines in the pipeline: table, labels and records say the same of what is drawn."""

from __future__ import annotations

import numpy as np
import pytest

from patchworks_core.files.storage import open_array
from patchworks_pipeline.cli.runs import merge_again
from tests.pipeline.conftest import metadata_of
from tests.tissue import tissue, write_tiff


@pytest.fixture
def folder(pipeline, tmp_path):
    path = write_tiff(tmp_path / "tissue.ome.tif", tissue())
    folder = pipeline.register(path, function="tissue_functions:wavering", parameters={})
    merged = pipeline.run_to_labels(folder)["merge"]
    said = metadata_of(merged, "merged_labels")
    assert 0 < said["outline_jump"] < said["outline_jump_by_cores"]
    return folder


def labels_of(folder) -> np.ndarray:
    return np.asarray(open_array(folder.labels(folder.plan()).path / "0")[...])


def test_the_object_table_is_of_the_labels_as_they_are_drawn(pipeline, folder):
    labels = labels_of(folder)
    assert folder.provenance(folder.plan())["merge"]["outline"] == "feather"
    assert pipeline.run("merge_image", partition_key=folder.key).success
    table = folder.objects()
    ids = table["label"].to_numpy()
    np.testing.assert_array_equal(ids, np.unique(labels[labels > 0]))
    np.testing.assert_array_equal(table["area_pixels"], np.bincount(labels.ravel())[ids])
    total = np.bincount(labels.ravel(), tissue().ravel())[ids]
    np.testing.assert_array_equal(table["intensity_sum"], total)


def test_an_image_is_merged_again_by_another_outline(pipeline, folder):
    feathered = labels_of(folder)
    chosen = {"rule": "overlap", "outline": "core"}
    assert merge_again(pipeline.instance, folder, chosen).error is None
    assert folder.acquisition().merge == {"rule": "overlap", "outline": "core"}
    assert (labels_of(folder) != feathered).any()
