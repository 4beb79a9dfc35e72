"""The machine goes dark while tiles are staged: every process ends at once, then all is started."""

from __future__ import annotations

import numpy as np
import pytest

from patchworks_pipeline.instance.home import prepare_home
from tests.e2e.conftest import Served, serving, until
from tests.e2e.facility import (
    choose,
    count_runs,
    in_one_process,
    is_long,
    is_merged,
    labels_of,
    land,
    runs_of,
)
from tests.tissue import HALO, TILE, tissue

KEY = "dark"

SECONDS_TO_STAGE = 120

SECONDS_TO_MERGE = 240


def cut_the_power(served: Served) -> None:
    """End everything that was started, at once and without a word."""
    for process in [*served.descendants(), served.process]:
        process.kill()
    served.process.wait(60)


@pytest.mark.timeout(3600)
@pytest.mark.skipif(
    not is_long(), reason="takes minutes of starting over; PATCHWORKS_E2E=long runs it"
)
def test_an_image_whose_run_died_with_the_machine_is_staged_again(tmp_path):
    home, image = prepare_home(tmp_path / "home"), tissue((960, 960), n_cells=2000)
    choose(home, home / "landing" / f"{KEY}.ome.tif", "perfect")
    land(home, KEY, image)
    with serving(home, PATCHWORKS_AUTOMATION="on") as served:
        until(
            lambda: any(r.job == "stage_tiles" and r.status == "STARTED" for r in runs_of(served)),
            seconds=SECONDS_TO_STAGE,
            what="the staging",
        )
        cut_the_power(served)
    with serving(home, PATCHWORKS_AUTOMATION="on") as served:
        until(lambda: is_merged(home, KEY), seconds=SECONDS_TO_MERGE, what="the labels")
        counts = count_runs(runs_of(served))
        assert counts[KEY, "stage_tiles", "FAILURE"] == 1
        assert counts[KEY, "stage_tiles", "SUCCESS"] == 1
    expected = in_one_process(
        image, lambda tile: tile.astype(np.int64), tile_shape=TILE, overlap=HALO
    )
    np.testing.assert_array_equal(labels_of(home, KEY), expected)
