"""An ordinary day of a served home: one acquisition lands, and is left alone until it is merged."""

from __future__ import annotations

import time
from pathlib import Path

import numpy as np

from tests.e2e.conftest import SETTLE_SECONDS, serving, until
from tests.e2e.facility import (
    JOBS,
    count_runs,
    in_one_process,
    label_files,
    labels_of,
    land,
    landing_ticks,
    one_run_of_each,
    runs_of,
)
from tests.e2e.timeline import Timeline
from tests.tissue import tissue

SECONDS_TO_MERGE = 150

KEY = "day"


def spend_a_day(home: Path, **environment: str) -> Timeline:
    """Land an acquisition of two tiles, see that it is merged as it should be, and once.

    Parameters
    ----------
    home : Path
        May have a `dagster.yaml` already.
    **environment : str
        For what is served.
    """
    home.mkdir(exist_ok=True)
    image = tissue((300, 1100), n_cells=400)
    with serving(home, PATCHWORKS_AUTOMATION="on", **environment) as served:
        until(lambda: landing_ticks(served), seconds=90, what="the first tick")
        landed = time.time()
        land(home, KEY, image)
        until(
            lambda: count_runs(runs_of(served)) == one_run_of_each([KEY]),
            seconds=SECONDS_TO_MERGE,
            what="one run of plan_image, stage_tiles and merge_image",
        )
        timeline = Timeline.of(landed, runs_of(served), SETTLE_SECONDS)
        made = label_files(home, KEY)

        # Nothing new is there: no later tick asks for anything.
        n_ticks = len(landing_ticks(served))
        until(lambda: len(landing_ticks(served)) > n_ticks + 1, seconds=60, what="two more ticks")
        assert [run.job for run in runs_of(served)] == list(JOBS)
        assert label_files(home, KEY) == made
    expected = in_one_process(image, "watershed", tile_shape=1024, overlap=32)
    assert expected.max() > 100
    np.testing.assert_array_equal(labels_of(home, KEY), expected)
    return timeline
