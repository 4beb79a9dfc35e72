"""A year in fast motion, at the level of events: whether what the instance keeps is bounded.

    python -m benchmarks.year [--seconds 600] [--tiles 400] [--budget 50000] [--keep-all]
                              [--page-at 20 125 250]

For each image three runs, its keys, and the events that planning, staging and merging log are
written as the pipeline writes them; above the budget the oldest image is retired as
`retire_images` does it. `--keep-all` retires nothing. `--page-at` serves the home when it has so
many images, and opens the page of its tiles in Chromium. Segmentation, files of images, and sensors
are left out.
"""

from __future__ import annotations

import argparse
import tempfile
import time
from collections import deque
from pathlib import Path

import dagster as dg
from dagster._core.events import (
    AssetMaterializationPlannedData,
    DagsterEvent,
    StepMaterializationData,
)
from dagster._core.utils import make_new_run_id

from benchmarks.many_partitions import open_page, timed_tiles
from patchworks_pipeline.cli.runs import open_home
from patchworks_pipeline.instance.tile_partitions import purge_tile_events, remove_tile_keys
from patchworks_pipeline.lineage import Lineage
from patchworks_pipeline.partitions import tile_keys
from tests.e2e.conftest import serving

EVERY = 10
"""Images between two lines of the table."""

LINEAGE = Lineage()

RUNS = (
    ("plan_image", ("image", "image_statistics")),
    ("stage_tiles", ("staged_labels",)),
    (
        "merge_image",
        ("boundary_pairs", "global_lut", "merged_labels", "object_table", "quality_report"),
    ),
)


def main() -> None:
    """Simulate images until the time is up, and print what the instance keeps."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--seconds", type=float, default=600)
    parser.add_argument("--tiles", type=int, default=400)
    parser.add_argument("--budget", type=int, default=50_000)
    parser.add_argument("--keep-all", action="store_true")
    parser.add_argument("--page-at", type=int, nargs="*", default=[])
    args = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="patchworks-") as folder:
        home = Path(folder) / "home"
        with open_home(home) as instance:
            live: deque[list[str]] = deque()
            start = last = time.monotonic()
            n = n_live = 0
            print("images | live keys | event rows | index MB | run files MB | ms per image")
            while time.monotonic() - start < args.seconds:
                keys = tile_keys(f"image{n:06}", [f"y{i:05}" for i in range(args.tiles)])
                make_image(instance, f"image{n:06}", keys)
                live.append(keys)
                n, n_live = n + 1, n_live + len(keys)
                while n_live > args.budget and not args.keep_all:
                    oldest = live.popleft()
                    purge_tile_events(instance, LINEAGE.key("staged_labels"), oldest)
                    remove_tile_keys(instance, LINEAGE, oldest)
                    n_live -= len(oldest)
                if n in args.page_at:
                    show_page(home, n_live)
                if n % EVERY == 0:
                    now = time.monotonic()
                    report(instance, home, n, 1000 * (now - last) / EVERY)
                    last = now


def show_page(home: Path, n_live: int) -> None:
    """Serve the home, and print how long its tiles take to be seen."""
    print(f"page at {n_live:,} live keys", flush=True)
    with serving(home) as served:
        open_page(served, timed_tiles(served)["partitionStats"])


def make_image(instance: dg.DagsterInstance, image: str, keys: list[str]) -> None:
    """Write what planning, staging and merging of an image leave on the instance."""
    instance.add_dynamic_partitions(str(LINEAGE.images.name), [image])
    instance.add_dynamic_partitions(str(LINEAGE.tiles.name), keys)
    for job, assets in RUNS:
        run_id = make_new_run_id()
        instance.run_storage.add_run(
            dg.DagsterRun(job_name=job, run_id=run_id, status=dg.DagsterRunStatus.SUCCESS)
        )
        events = []
        for asset in assets:
            for key in keys if asset == "staged_labels" else [image]:
                events.append(event_of(run_id, job, asset, key, is_planned=True))
                events.append(event_of(run_id, job, asset, key, is_planned=False))
        instance.event_log_storage.store_event_batch(events)


def event_of(
    run_id: str, job: str, asset: str, partition: str, *, is_planned: bool
) -> dg.EventLogEntry:
    """Return an event as a run logs it."""
    key = LINEAGE.key(asset)
    if is_planned:
        kind = dg.DagsterEventType.ASSET_MATERIALIZATION_PLANNED
        data: object = AssetMaterializationPlannedData(asset_key=key, partition=partition)
    else:
        kind = dg.DagsterEventType.ASSET_MATERIALIZATION
        names = ("n_labels", "n_pixels_read", "seconds", "seconds_reading", "peak_megabytes")
        metadata = {name: 1234.5 for name in names}
        tags = {"dagster/data_version": run_id, "dagster/code_version": "1"}
        data = StepMaterializationData(
            dg.AssetMaterialization(key, partition=partition, metadata=metadata, tags=tags)
        )
    event = DagsterEvent(
        event_type_value=kind.value,
        job_name=job,
        step_key=asset,
        event_specific_data=data,  # type: ignore[arg-type]
    )
    return dg.EventLogEntry(
        error_info=None,
        level=10,
        user_message="",
        run_id=run_id,
        timestamp=time.time(),
        step_key=asset,
        job_name=job,
        dagster_event=event,
    )


def report(instance: dg.DagsterInstance, home: Path, n: int, milliseconds: float) -> None:
    """Print what the instance keeps now."""
    storage = instance.event_log_storage
    n_live = len(instance.get_dynamic_partitions(str(LINEAGE.tiles.name)))
    with storage.index_connection() as connection:  # type: ignore[attr-defined]
        rows = connection.exec_driver_sql("SELECT count(*) FROM event_logs").scalar()
    index = size_of(home, "history/runs/index.db*")
    files = size_of(home, "history/runs/*.db*") - index
    print(
        f"{n:6} | {n_live:9,} | {rows:10,} | {index:8.1f} | {files:12.1f} | {milliseconds:6.0f}",
        flush=True,
    )


def size_of(home: Path, pattern: str) -> float:
    """Return the megabytes of files of the instance."""
    return sum(path.stat().st_size for path in (home / "dagster").glob(pattern)) / 1e6


if __name__ == "__main__":
    main()
