"""A facility's morning: one tile of a night's run failed; it is repaired from the Dagster UI."""

from __future__ import annotations

import os
import signal
import subprocess
from pathlib import Path

import psutil
import pytest

from tests.e2e.conftest import SECONDS_TO_RUN, serving, until
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

# What the UI sends from its "Materialize" button for one partition.
LAUNCH_RUN = """
mutation LaunchPipelineExecution($executionParams: ExecutionParams!) {
  launchPipelineExecution(executionParams: $executionParams) {
    __typename
    ... on LaunchRunSuccess { run { id pipelineName } }
    ... on RunConfigValidationInvalid { errors { message } }
    ... on PythonError { message stack }
  }
}
"""

# What the UI sends from the same button for a range of partitions.
LAUNCH_BACKFILL = """
mutation LaunchPartitionBackfill($backfillParams: LaunchBackfillParams!) {
  launchPartitionBackfill(backfillParams: $backfillParams) {
    __typename
    ... on LaunchBackfillSuccess { backfillId }
    ... on PythonError { message stack }
  }
}
"""

PARTITIONS = """
query Partitions($key: AssetKeyInput!) {
  assetNodeOrError(assetKey: $key) {
    ... on AssetNode {
      partitionKeys
      assetPartitionStatuses {
        ... on DefaultPartitionStatuses {
          materializedPartitions failedPartitions unmaterializedPartitions
        }
      }
      partitionStats { numPartitions numMaterialized numFailed }
    }
  }
}
"""

RUN = "query Run($id: ID!) { runOrError(runId: $id) { ... on Run { status } } }"

BACKFILL = """
query Backfill($id: String!) {
  partitionBackfillOrError(backfillId: $id) {
    ... on PartitionBackfill { status runs(limit: 10) { id status } error { message } }
  }
}
"""


def launch(served, assets, key):
    """Materialize assets of one partition as the UI does, and wait until the run has ended."""
    answer = served.ask(
        LAUNCH_RUN,
        executionParams={
            "mode": "default",
            "executionMetadata": {"tags": [{"key": "dagster/partition", "value": key}]},
            "runConfigData": "{}",
            "selector": {
                "repositoryLocationName": "patchworks_pipeline.definitions",
                "repositoryName": "__repository__",
                "pipelineName": "__ASSET_JOB",
                "assetSelection": [{"path": [asset]} for asset in assets],
            },
        },
    )["launchPipelineExecution"]
    assert answer["__typename"] == "LaunchRunSuccess", answer
    return until(
        lambda: ended(served.ask(RUN, id=answer["run"]["id"])["runOrError"]["status"]),
        seconds=SECONDS_TO_RUN,
        what=f"the end of the run of {assets}",
    )


def ended(status: str) -> str | None:
    return status if status in ("SUCCESS", "FAILURE", "CANCELED") else None


def tiles_of(served):
    return served.ask(PARTITIONS, key={"path": ["staged_labels"]})["assetNodeOrError"]


def request_backfill(served, keys) -> str:
    """Ask for a range of tiles as the UI does; the daemon launches it."""
    answer = served.ask(
        LAUNCH_BACKFILL,
        backfillParams={
            "assetSelection": [{"path": ["staged_labels"]}],
            "partitionNames": keys,
            "fromFailure": False,
            "tags": [],
        },
    )["launchPartitionBackfill"]
    assert answer["__typename"] == "LaunchBackfillSuccess", answer
    return str(answer["backfillId"])


def runs_of_backfill(served, backfill: str) -> list[str]:
    """Return the status of each run of a backfill, once all of them have ended."""
    found = served.ask(BACKFILL, id=backfill)["partitionBackfillOrError"]
    assert found["error"] is None, found["error"]
    statuses = [run["status"] for run in found["runs"]]
    return statuses if all(ended(status) for status in statuses) else []


def assert_nothing_is_left(processes: list[psutil.Process]) -> None:
    assert [p for p in processes if p.is_running() and p.status() != psutil.STATUS_ZOMBIE] == []


@pytest.fixture
def home(tmp_path, monkeypatch) -> Path:
    """A home with two images; of one, one of 12 tiles failed in the night."""
    monkeypatch.setenv("PATCHWORKS_TEST_MENDED", str(tmp_path / "mended"))
    marked = write_tiff(tmp_path / "marked.tif", marked_tissue())
    plain = write_tiff(tmp_path / "plain.tif", tissue())
    assert run(tmp_path / "home", marked, plain) == 3
    return tmp_path / "home"


def run(home: Path, *paths: Path) -> int:
    command = [python_command("patchworks"), "run", *map(str, paths), "--home", str(home)]
    options = ["--tile-shape", "32", "--overlap", "8"]
    function = ["--segmentation", "tissue_functions:fails_at_mark"]
    environment = {**os.environ, **environment_of_functions()}
    return subprocess.run([*command, *options, *function], env=environment).returncode


def labels_under(home: Path) -> dict[str, bytes]:
    return files_under(home / "store" / "marked" / "marked.ome.zarr" / "labels")


def test_a_failed_tile_is_seen_and_repaired_and_a_range_is_one_run(home, tmp_path):
    with serving(home) as served:
        tiles = tiles_of(served)
        stats = {"numPartitions": 24, "numMaterialized": 23, "numFailed": 1}
        assert tiles["partitionStats"] == stats
        statuses = tiles["assetPartitionStatuses"]
        assert statuses["failedPartitions"] == [BAD]
        assert set(statuses["materializedPartitions"]) == set(tiles["partitionKeys"]) - {BAD}

        # The daemon looks for backfills every 30 s; the repair goes on meanwhile.
        plain = [key for key in tiles["partitionKeys"] if key.startswith("plain/")]
        backfill = request_backfill(served, plain)

        assert launch(served, ["staged_labels"], BAD) == "FAILURE"  # nothing is mended yet
        (tmp_path / "mended").touch()
        assert launch(served, ["staged_labels"], BAD) == "SUCCESS"
        stats = {"numPartitions": 24, "numMaterialized": 24, "numFailed": 0}
        assert tiles_of(served)["partitionStats"] == stats
        rest = ["boundary_pairs", "global_lut", "merged_labels", "object_table", "quality_report"]
        assert launch(served, rest, "marked") == "SUCCESS"

        ended_runs = until(
            lambda: runs_of_backfill(served, backfill),
            seconds=2 * SECONDS_TO_RUN,
            what="the end of the backfill's run",
        )
        assert ended_runs == ["SUCCESS"]

        started = served.descendants()
        served.process.send_signal(signal.SIGINT)
        assert served.process.wait(60) == 0
    assert_nothing_is_left(started)

    assert run(tmp_path / "never_failed", tmp_path / "marked.tif") == 0
    assert labels_under(home) == labels_under(tmp_path / "never_failed")


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
