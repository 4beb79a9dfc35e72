"""How fast images went through, per image and per day."""

from __future__ import annotations

from datetime import date

import numpy as np
import pytest

from patchworks_core.files.storage import as_path
from patchworks_core.images.image import open_image
from patchworks_core.plugins.segmentation import segmentation_of
from patchworks_core.stage.plan import make_plan
from patchworks_pipeline.assets.throughput import (
    StagingFigures,
    Work,
    figures_of,
    finish,
    staging_of,
)
from patchworks_pipeline.records import ImageFolder

MONDAY, TUESDAY = date(2026, 11, 16), date(2026, 11, 17)


def plan_of(n_columns: int):
    image = open_image(np.zeros((1000, n_columns), np.uint8), axes="yx")
    return make_plan(image, segmentation_of("threshold"), tile_shape=500, overlap=8)


@pytest.fixture
def folder(tmp_path):
    (tmp_path / "plate").mkdir()
    return ImageFolder(as_path(tmp_path / "plate"), "plate")


def test_runs_of_one_plan_add_up_and_another_plan_begins_anew(folder):
    plan, other = plan_of(1000), plan_of(2000)
    assert figures_of(folder, plan) == {"megapixels": 1.0}
    first = StagingFigures.begin(folder, plan)
    for n_tiles in (1, 3):  # as it goes on: the last is what counts
        first.write(Work(n_tiles=n_tiles, n_pixels=n_tiles * 250_000, seconds=n_tiles / 2))
    second = Work(n_tiles=1, n_pixels=250_000, seconds=0.5)
    StagingFigures.begin(folder, plan).write(second)
    StagingFigures.begin(folder, plan).write(Work(n_tiles=0, n_pixels=0, seconds=60))
    assert figures_of(folder, plan) == {
        "megapixels": 1.0,
        "staging_seconds": 2.0,
        "staging_tiles_per_second": 2.0,
        "staging_megapixels_per_second": 0.5,
    }
    assert staging_of(folder, other) == Work()
    StagingFigures.begin(folder, other).write(Work(n_tiles=8, n_pixels=2_000_000, seconds=4))
    assert staging_of(folder, other).n_tiles == 8


def test_a_run_that_is_killed_before_its_first_tile_leaves_a_record_that_counts_as_none(folder):
    StagingFigures.begin(folder, plan_of(1000))
    assert folder.has("staging.json")
    assert figures_of(folder, plan_of(1000)) == {"megapixels": 1.0}


def test_a_day_counts_every_image_once(tmp_path):
    store = as_path(tmp_path)
    assert finish(store, "a", plan_of(1000), MONDAY) == {
        "images_today": 1,
        "megapixels_today": 1.0,
    }
    finish(store, "b", plan_of(2000), MONDAY)
    again = finish(store, "a", plan_of(3000), MONDAY)
    assert again == {"images_today": 2, "megapixels_today": 5.0}
    assert finish(store, "a", plan_of(1000), TUESDAY)["images_today"] == 1
