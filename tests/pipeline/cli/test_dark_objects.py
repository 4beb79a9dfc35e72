"""Slides on the command line: with default settings the objects are the objects."""

from __future__ import annotations

import imageio.v3 as iio
import numpy as np
import pytest
import zarr

from patchworks_pipeline.resources.resources import LabelStore
from tests.core.plugins.test_dark_objects import CENTRES, slide, truth
from tests.pipeline.conftest import call_command_line, metadata_of

SAID = "the background of the image is bright, so its dark objects are labelled"


def fluorescence():
    return 255 - slide()


@pytest.mark.slow
@pytest.mark.parametrize(("pixels", "is_dark"), [(slide(), True), (fluorescence(), False)])
def test_a_run_with_default_settings_labels_the_objects(home, tmp_path, pixels, is_dark):
    path = tmp_path / "a.png"
    iio.imwrite(path, np.stack([pixels, pixels // 2, pixels // 3], axis=-1))
    code, printed = call_command_line("run", path, "--tile-shape", "64", "--overlap", "16")
    assert code == 0, printed
    assert printed.count(SAID) == is_dark
    assert printed.count("channel 0 of 3") == 1
    folder = LabelStore().folder("a")
    labels = zarr.open_array(str(folder.labels(folder.plan()).path / "0"))[...]
    assert f"a: {len(CENTRES)} objects" in printed
    assert 0.8 < np.count_nonzero((labels > 0) & (truth() > 0)) / np.count_nonzero(truth()) <= 1
    assert np.count_nonzero((labels > 0) & (truth() == 0)) < 0.2 * np.count_nonzero(labels)


def test_what_was_decided_is_recorded_with_the_statistics(pipeline, tmp_path):
    iio.imwrite(tmp_path / "a.png", slide())
    folder = pipeline.register(tmp_path / "a.png", function="threshold")
    recorded = metadata_of(pipeline.plan(folder), "image_statistics")
    assert recorded["background"] == "bright"
    assert recorded["notes"].startswith(SAID)
    parameters = {"dark_objects": False}
    folder = pipeline.register(
        tmp_path / "a.png", key="b", function="threshold", parameters=parameters
    )
    recorded = metadata_of(pipeline.plan(folder), "image_statistics")
    assert (recorded["background"], recorded["notes"]) == ("bright", "none")
