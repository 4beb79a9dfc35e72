"""Runs and backfills as the UI's "Materialize" button asks for them, and what it shows of them."""

from __future__ import annotations

import json
from collections.abc import Sequence
from typing import Any

from tests.e2e.conftest import SECONDS_TO_RUN, Served, until

OF_IMAGES = (
    "image",
    "image_statistics",
    "boundary_pairs",
    "global_lut",
    "merged_labels",
    "object_table",
    "quality_report",
)
"""Assets that are partitioned by image."""

RANGE = ("dagster/asset_partition_range_start", "dagster/asset_partition_range_end")

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
      partitionStats { numPartitions numMaterialized numMaterializing numFailed }
    }
  }
}
"""

RUN = "query Run($id: ID!) { runOrError(runId: $id) { ... on Run { status } } }"

BACKFILL = """
query Backfill($id: String!) {
  partitionBackfillOrError(backfillId: $id) {
    ... on PartitionBackfill {
      status runs(limit: 100) { id status tags { key value } } error { message }
    }
  }
}
"""


def launch(served: Served, assets: Sequence[str], key: str) -> str:
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


def partitions_of(served: Served, asset: str) -> dict[str, Any]:
    """Return the partitions of an asset, and how many are in which state.

    What is being materialized again counts as materialized: whether a backfill has begun yet is up
    to the daemon.
    """
    found = dict(served.ask(PARTITIONS, key={"path": [asset]})["assetNodeOrError"])
    stats = found["partitionStats"]
    stats["numMaterialized"] += stats.pop("numMaterializing")
    return found


def launch_job(served: Served, job: str, config: dict[str, Any]) -> str:
    """Launch a job as the launchpad does, and wait until the run has ended."""
    answer = served.ask(
        LAUNCH_RUN,
        executionParams={
            "mode": "default",
            "runConfigData": json.dumps(config),
            "selector": {
                "repositoryLocationName": "patchworks_pipeline.definitions",
                "repositoryName": "__repository__",
                "pipelineName": job,
            },
        },
    )["launchPipelineExecution"]
    assert answer["__typename"] == "LaunchRunSuccess", answer
    return until(
        lambda: ended(served.ask(RUN, id=answer["run"]["id"])["runOrError"]["status"]),
        seconds=SECONDS_TO_RUN,
        what=f"the end of the run of {job}",
    )


def request_backfill(
    served: Served,
    assets: Sequence[str],
    keys: Sequence[str],
    config: dict[str, Any] | None = None,
) -> str:
    """Ask for partitions of assets as the UI does; the daemon launches it."""
    answer = served.ask(
        LAUNCH_BACKFILL,
        backfillParams={
            "assetSelection": [{"path": [asset]} for asset in assets],
            "partitionNames": list(keys),
            "fromFailure": False,
            "tags": [],
            "runConfigData": json.dumps(config or {}),
        },
    )["launchPartitionBackfill"]
    assert answer["__typename"] == "LaunchBackfillSuccess", answer
    return str(answer["backfillId"])


def runs_of_backfill(served: Served, backfill: str) -> list[dict[str, Any]]:
    """Return the runs of a backfill, once it has ended: each with its status and its tags."""
    found = served.ask(BACKFILL, id=backfill)["partitionBackfillOrError"]
    assert found["error"] is None, found["error"]
    if not found["status"].startswith(("COMPLETED", "FAILED", "CANCELED")):
        return []
    return [
        {"status": run["status"], "tags": {tag["key"]: tag["value"] for tag in run["tags"]}}
        for run in found["runs"]
    ]


def status_of_backfill(served: Served, backfill: str) -> str:
    """Return how a backfill ended; nothing while it goes on."""
    status = str(served.ask(BACKFILL, id=backfill)["partitionBackfillOrError"]["status"])
    return status if status.startswith(("COMPLETED", "FAILED", "CANCELED")) else ""
