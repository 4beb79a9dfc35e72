"""What changing the merge rule of a finished image costs, beside the full run.

    python benchmarks/change_rule.py [--image FILE]

Runs an image through all assets, then merges it again by other rules, and prints for each the
seconds, the chunks of staged labels and strips that were read, and the tiles that were rewritten.
"""

from __future__ import annotations

import argparse
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import dagster as dg

from patchworks_pipeline.cli.runs import merge_again, open_home, plan_of, register, run_image
from patchworks_pipeline.records import Acquisition
from patchworks_pipeline.resources.compute_budget import ComputeBudget
from patchworks_pipeline.resources.resources import LabelStore

IMAGE = Path(__file__).parents[2] / "shared" / "data" / "dsb2018_mosaic_4096.png"

CHANGES = ({"rule": "touching"}, {"rule": "overlap", "min_iou": 0.5}, {"min_iou": 0.45})

_opened: Counter[str] | None = None
"""Files opened for reading, by the folder they lie in; None while nothing is counted."""


def _count(event: str, arguments: tuple[object, ...]) -> None:
    if event != "open" or _opened is None:
        return
    path, mode = str(arguments[0]), arguments[1]
    if (
        "/store/" not in path
        or path.endswith("zarr.json")
        or (isinstance(mode, str) and set(mode) & set("wax+"))
    ):
        return
    if Path(path).name.startswith("."):  # where an older Zarr would keep its metadata
        return
    inside = path.split("/store/", 1)[1].split("/")[1:]
    _opened["/".join(inside[:2] if inside[0] == "stage.zarr" else inside[:1])] += 1


@contextmanager
def counting() -> Iterator[Counter[str]]:
    """Count the files that are opened for reading meanwhile."""
    global _opened
    _opened = Counter()
    yield _opened
    _opened = None


def main() -> None:
    """Print one row for the run and one per change."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--image", type=Path, default=IMAGE)
    image = parser.parse_args().image
    sys.addaudithook(_count)
    print("| what | seconds | chunks read: staged labels + strips | tiles rewritten | objects |")
    print("|---|---|---|---|---|")
    with tempfile.TemporaryDirectory() as folder, open_home(Path(folder)) as instance:
        acquisition = Acquisition(
            str(image), function="watershed", tile_shape=(512,), overlap=(32,)
        )
        budget = ComputeBudget(workers=2)
        home = register(instance, LabelStore(), "image", acquisition)
        with counting() as opened:
            start = time.perf_counter()
            result = run_image(instance, home, plan_of(acquisition, budget), budget=budget)
            print(row("full run", instance, opened, time.perf_counter() - start), flush=True)
        assert result.is_complete, result.error
        for change in CHANGES:
            with counting() as opened:
                start = time.perf_counter()
                result = merge_again(instance, home, dict(change))
                what = ", ".join(f"{name}={value}" for name, value in change.items())
                print(row(what, instance, opened, time.perf_counter() - start), flush=True)
            assert result.is_complete, result.error


def row(what: str, instance: dg.DagsterInstance, opened: Counter[str], seconds: float) -> str:
    """Return one row of the table."""
    event = instance.get_latest_materialization_event(dg.AssetKey("merged_labels"))
    metadata = event.asset_materialization.metadata
    reads = " + ".join(str(opened[f"stage.zarr/{name}"]) for name in ("labels", "strips"))
    written = metadata["n_tiles_written"].value
    total = written + metadata["n_tiles_unchanged"].value
    return (
        f"| {what} | {seconds:.1f} | {reads} | {written} of {total} "
        f"| {metadata['n_objects'].value} |"
    )


if __name__ == "__main__":
    main()
