"""A facility's morning: one tile of a night's run failed; it is repaired from the Dagster UI."""

from __future__ import annotations

import os
import signal
import subprocess
from pathlib import Path
from typing import Any

import psutil
import pytest

from tests.e2e.backfills import (
    OF_IMAGES,
    RANGE,
    launch,
    launch_job,
    partitions_of,
    request_backfill,
    runs_of_backfill,
    status_of_backfill,
)
from tests.e2e.conftest import Served, serving, until
from tests.e2e.facility import is_long
from tests.tissue import (
    MARKED_KEY,
    environment_of_functions,
    files_under,
    marked_tissue,
    python_command,
    tissue,
    write_tiff,
)

BAD = f"marked/{MARKED_KEY}"

SMALL = ("a", "b", "c")
"""Images of 4 tiles."""

MOST_TILES = 10
"""Of one run of a backfill."""

SECONDS_TO_BACKFILL = 240
"""Six runs, each in a process of its own, on a machine that may have one core to spare."""


def assert_nothing_is_left(processes: list[psutil.Process]) -> None:
    assert [p for p in processes if p.is_running() and p.status() != psutil.STATUS_ZOMBIE] == []


@pytest.fixture
def home(tmp_path, monkeypatch) -> Path:
    """A home with five images of 12 or 4 tiles; one tile of one failed in the night."""
    monkeypatch.setenv("PATCHWORKS_TEST_MENDED", str(tmp_path / "mended"))
    marked = write_tiff(tmp_path / "marked.tif", marked_tissue())
    plain = write_tiff(tmp_path / "plain.tif", tissue())
    small = [write_tiff(tmp_path / f"{name}.tif", tissue((64, 64))) for name in SMALL]
    assert run(tmp_path / "home", marked, plain, *small) == 3
    return tmp_path / "home"


def run(home: Path, *paths: Path) -> int:
    command = [python_command("patchworks"), "run", *map(str, paths), "--home", str(home)]
    options = ["--tile-shape", "32", "--overlap", "8"]
    function = ["--segmentation", "tissue_functions:fails_at_mark"]
    environment = {**os.environ, **environment_of_functions()}
    return subprocess.run([*command, *options, *function], env=environment).returncode


def labels_under(home: Path, key: str = "marked") -> dict[str, bytes]:
    """Return the files of the merged labels, less the record of when they were made."""
    found = files_under(home / "store" / key / f"{key}.ome.zarr" / "labels")
    return {name: data for name, data in found.items() if not name.endswith("provenance.json")}


@pytest.mark.slow
def test_a_failed_tile_is_repaired_while_backfills_of_all_assets_run(home, tmp_path):
    before = {key: labels_under(home, key) for key in ("plain", *SMALL)}
    with serving(home, f"backfills: {{max_partitions_per_run: {MOST_TILES}}}") as served:
        tiles = partitions_of(served, "staged_labels")
        stats = {"numPartitions": 36, "numMaterialized": 35, "numFailed": 1}
        assert tiles["partitionStats"] == stats
        statuses = tiles["assetPartitionStatuses"]
        assert statuses["failedPartitions"] == [BAD]
        assert set(statuses["materializedPartitions"]) == set(tiles["partitionKeys"]) - {BAD}

        # The daemon looks for backfills every 30 s; the repair goes on meanwhile.
        keys = [key for key in tiles["partitionKeys"] if key.startswith(("plain/", "a/"))]
        of_tiles = request_backfill(served, ["staged_labels"], keys)
        of_images = request_backfill(served, OF_IMAGES, ["b", "c"])

        assert launch(served, ["staged_labels"], BAD) == "FAILURE"  # nothing is mended yet
        (tmp_path / "mended").touch()
        assert launch(served, ["staged_labels"], BAD) == "SUCCESS"
        stats = {"numPartitions": 36, "numMaterialized": 36, "numFailed": 0}
        assert partitions_of(served, "staged_labels")["partitionStats"] == stats
        assert launch(served, OF_IMAGES, "marked") == "SUCCESS"

        runs = ended_runs(served, of_tiles)
        assert [run["status"] for run in runs] == ["SUCCESS"] * 2
        ends = sorted(tuple(run["tags"][end] for end in RANGE) for run in runs)
        assert ends == sorted([(keys[0], keys[9]), (keys[10], keys[15])])
        runs = ended_runs(served, of_images)
        assert [run["status"] for run in runs] == ["SUCCESS"] * len(runs)
        for asset in OF_IMAGES:
            stats = {"numPartitions": 5, "numMaterialized": 5, "numFailed": 0}
            assert partitions_of(served, asset)["partitionStats"] == stats
        assert partitions_of(served, "staged_labels")["partitionStats"]["numMaterialized"] == 36

        started = served.descendants()
        served.process.send_signal(signal.SIGINT)
        assert served.process.wait(60) == 0
    assert_nothing_is_left(started)

    assert {key: labels_under(home, key) for key in before} == before
    assert run(tmp_path / "never_failed", tmp_path / "marked.tif") == 0
    assert labels_under(home) == labels_under(tmp_path / "never_failed")


@pytest.mark.slow
def test_a_backfill_that_leaves_staged_tiles_alone_is_a_success_and_a_job_repairs_an_image(
    home, tmp_path
):
    with serving(home) as served:
        keys = [
            key
            for key in partitions_of(served, "staged_labels")["partitionKeys"]
            if key.startswith("plain/")
        ]
        config = {"ops": {"staged_labels": {"config": {"skip_staged": True}}}}
        backfill = request_backfill(served, ["staged_labels"], keys, config)
        repair = {"ops": {"stage_missing_tiles": {"config": {"image": "marked"}}}}
        assert launch_job(served, "repair_image", repair) == "FAILURE"
        assert partitions_of(served, "staged_labels")["partitionStats"]["numFailed"] == 1
        (tmp_path / "mended").touch()
        assert launch_job(served, "repair_image", repair) == "SUCCESS"
        stats = {"numPartitions": 36, "numMaterialized": 36, "numFailed": 0}
        assert partitions_of(served, "staged_labels")["partitionStats"] == stats
        status = until(
            lambda: status_of_backfill(served, backfill),
            seconds=SECONDS_TO_BACKFILL,
            what="the end of the backfill",
        )
        assert status == "COMPLETED_SUCCESS"


def ended_runs(served: Served, backfill: str) -> list[dict[str, Any]]:
    return until(
        lambda: runs_of_backfill(served, backfill),
        seconds=SECONDS_TO_BACKFILL,
        what="the end of a backfill",
    )


@pytest.mark.timeout(3600)
@pytest.mark.skipif(
    not is_long(), reason="each asset by itself takes minutes; PATCHWORKS_E2E=long runs it"
)
def test_every_asset_can_be_backfilled_by_itself_for_one_image_and_for_several(home):
    before = {key: labels_under(home, key) for key in SMALL}
    with serving(home) as served:
        tiles = partitions_of(served, "staged_labels")["partitionKeys"]
        # In the order of the lineage: what comes later reads what came before.
        for asset in (*OF_IMAGES[:2], "staged_labels", *OF_IMAGES[2:]):
            asked = {}
            of_tiles = asset == "staged_labels"
            # Tiles once more, while the first such backfill runs: it does no harm.
            for keys in (("a",), ("b", "c"), *((("b", "c"),) if of_tiles else ())):
                ranges = [key for key in tiles if key.split("/")[0] in keys]
                backfill = request_backfill(served, [asset], ranges if of_tiles else keys)
                asked[backfill] = 1 if of_tiles else len(keys)
            for backfill, n_runs in asked.items():
                runs = ended_runs(served, backfill)
                assert [run["status"] for run in runs] == ["SUCCESS"] * n_runs, asset
            n_failed = partitions_of(served, asset)["partitionStats"]["numFailed"]
            assert n_failed == (1 if of_tiles else 0)
    assert {key: labels_under(home, key) for key in SMALL} == before


@pytest.mark.slow
def test_a_taken_port_is_an_error_and_sigterm_ends_what_is_served(tmp_path):
    (tmp_path / "home").mkdir()
    with serving(tmp_path / "home") as served:
        port = served.url.rpartition(":")[2]
        command = [python_command("patchworks"), "ui", "--port", port]
        command += ["--home", str(tmp_path / "second")]
        second = subprocess.run(command, capture_output=True, timeout=60)
        assert second.returncode != 0
        assert served.is_up()
        started = served.descendants()
        assert len(started) >= 4  # webserver, daemon, and the code server of each
        served.process.send_signal(signal.SIGTERM)
        assert served.process.wait(60) == 0
    assert_nothing_is_left(started)
