"""A morning in the browser: a tile failed, its cause is mended, and it is repaired by clicks."""

from __future__ import annotations

import importlib.util
import os
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from tests.e2e.conftest import serving, until
from tests.e2e.facility import choose, count_runs, is_merged, label_files, land, runs_of
from tests.e2e.screenshots import ARGUMENTS, CHROMIUM
from tests.e2e.test_ui import run
from tests.tissue import MARKED_KEY, marked_tissue

pytestmark = [
    pytest.mark.browser,
    pytest.mark.slow,
    pytest.mark.skipif(
        importlib.util.find_spec("playwright") is None, reason="playwright is not installed"
    ),
    pytest.mark.skipif(not shutil.which(CHROMIUM), reason=f"there is no Chromium at {CHROMIUM}"),
]

KEY = "marked"

BAD = f"{KEY}/{MARKED_KEY}"

SECONDS_TO_STAGE = 120

SHOTS = "PATCHWORKS_SHOTS"
"""Variable that names a folder to keep the pictures in."""

MILLISECONDS_TO_SHOW = 30_000


@pytest.fixture
def page() -> Iterator[Any]:
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=list(ARGUMENTS))
        page = browser.new_page(viewport={"width": 1440, "height": 900})
        page.set_default_timeout(MILLISECONDS_TO_SHOW)
        yield page
        browser.close()


@pytest.fixture
def shoot(page, tmp_path):
    """Take a picture of the page, into the test's folder or where it is to be kept."""
    folder = Path(os.environ.get(SHOTS) or tmp_path / "shots")
    folder.mkdir(parents=True, exist_ok=True)

    def shoot(name: str) -> None:
        page.wait_for_timeout(1500)  # what slides and fades has come to rest
        page.screenshot(path=folder / f"{name}.png")

    return shoot


def test_a_failed_tile_is_repaired_by_clicks_and_its_image_completes(
    tmp_path, monkeypatch, page, shoot
):
    home, mended = tmp_path / "home", tmp_path / "mended"
    monkeypatch.setenv("PATCHWORKS_TEST_MENDED", str(mended))
    choose(home, home / "landing" / f"{KEY}.ome.tif", "fails_at_mark")
    landed = land(home, KEY, marked_tissue())
    with serving(home, PATCHWORKS_AUTOMATION="on") as served:
        until(
            lambda: count_runs(runs_of(served)).get((KEY, "stage_tiles", "FAILURE")),
            seconds=SECONDS_TO_STAGE,
            what="the staging run that fails",
        )
        page.goto(f"{served.url}/assets/staged_labels?view=partitions&status=FAILED")
        page.get_by_text("Failed (1)", exact=True).wait_for()
        page.get_by_text("Materialized (11)", exact=True).wait_for()
        page.get_by_text(BAD).first.click()
        page.get_by_text("failed, and did not materialize this asset").wait_for()
        shoot("failed_partition")

        page.get_by_text("View logs").click()
        page.get_by_text("1 of 12 tiles failed").first.wait_for()
        shoot("failed_run")

        mended.touch()
        page.goto(f"{served.url}/assets/staged_labels?view=partitions&status=FAILED")
        page.get_by_role("button", name="Materialize").first.click()
        dialog = page.get_by_role("dialog")
        dialog.get_by_role("button", name="Failed", exact=True).click()
        dialog.get_by_text("1 partition", exact=True).wait_for()
        shoot("materialize_failed")
        dialog.get_by_role("button", name="Launch 1 run").click()

        # The rest is nobody's doing: the tile is staged, hence the image is complete.
        until(lambda: is_merged(home, KEY), seconds=SECONDS_TO_STAGE, what="the merge")
        until(
            lambda: count_runs(runs_of(served)).get((KEY, "merge_image", "SUCCESS")),
            seconds=60,
            what="the end of the merge",
        )
        by_hand = [r for r in runs_of(served) if r.tags.get("dagster/partition") == BAD]
        assert [(r.job, r.status) for r in by_hand] == [("__ASSET_JOB", "SUCCESS")]
        assert "dagster/sensor_name" not in by_hand[0].tags

        page.goto(f"{served.url}/assets/staged_labels?view=partitions")
        page.get_by_text("Failed (0)", exact=True).wait_for()
        page.get_by_text("Materialized (12)", exact=True).wait_for()
        shoot("repaired_partitions")
        page.goto(f"{served.url}/assets/quality_report?view=partitions&partition={KEY}")
        page.get_by_text("[Show Markdown]").first.click()
        page.locator("img").first.wait_for()
        shoot("quality_report")
        assert len(runs_of(served)) == 4  # plan, stage, the repair, merge
    assert run(tmp_path / "never_failed", landed) == 0
    assert label_files(home, KEY) == label_files(tmp_path / "never_failed", KEY)
