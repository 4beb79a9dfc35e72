"""What a facility does with a served home: lands acquisitions, waits for labels, counts runs."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path
from typing import Any

import numpy as np
import zarr

from patchworks_core import tile_process
from patchworks_pipeline.instance.home import prepare_home
from patchworks_pipeline.records import Acquisition, ImageFolder
from tests.e2e.conftest import Served
from tests.tissue import HALO, TILE, files_under, write_tiff

JOBS = ("plan_image", "stage_tiles", "merge_image")
"""What one image takes, in order."""

RUNS = """
query Runs($cursor: String) {
  runsOrError(cursor: $cursor, limit: 500) {
    ... on Runs {
      results { runId pipelineName status creationTime startTime endTime tags { key value } }
    }
    ... on PythonError { message stack }
  }
}
"""

TICKS = """
query Ticks($selector: InstigationSelector!) {
  instigationStateOrError(instigationSelector: $selector) {
    ... on InstigationState { ticks(limit: 200) { timestamp status runIds } }
    ... on PythonError { message stack }
  }
}
"""

IMAGE = "patchworks/image"


@dataclass(frozen=True, slots=True)
class Run:
    """A run as the UI shows it; times are seconds since 1970, 0 where it has not come so far."""

    id: str
    job: str
    status: str
    created: float
    started: float
    ended: float
    tags: Mapping[str, str]

    @property
    def image(self) -> str:
        return self.tags.get(IMAGE, "")


def runs_of(served: Served) -> list[Run]:
    """Return every run of the instance, oldest first."""
    found: list[Run] = []
    while True:
        cursor = found[-1].id if found else None
        page = served.ask(RUNS, cursor=cursor)["runsOrError"]["results"]
        if not page:
            return sorted(found, key=lambda run: run.created)
        found += [
            Run(
                run["runId"],
                run["pipelineName"],
                run["status"],
                float(run["creationTime"]),
                float(run["startTime"] or 0),
                float(run["endTime"] or 0),
                {tag["key"]: tag["value"] for tag in run["tags"]},
            )
            for run in page
        ]


def count_runs(runs: Iterable[Run]) -> dict[tuple[str, str, str], int]:
    """Return how many runs there are of each image, job and status."""
    return dict(Counter((run.image, run.job, run.status) for run in runs))


def one_run_of_each(keys: Iterable[str]) -> dict[tuple[str, str, str], int]:
    """Return what `count_runs` counts where every image went through once."""
    return {(key, job, "SUCCESS"): 1 for key in keys for job in JOBS}


def landing_ticks(served: Served) -> list[dict[str, Any]]:
    """Return the latest ticks of the landing sensor."""
    selector = {
        "repositoryLocationName": "patchworks_pipeline.definitions",
        "repositoryName": "__repository__",
        "name": "landing_sensor",
    }
    answer = served.ask(TICKS, selector=selector)["instigationStateOrError"]
    return list(answer["ticks"])


def land(home: Path, name: str, image: np.ndarray) -> Path:
    """Copy an acquisition into the landing folder of a home, as an instrument does."""
    path = prepare_home(home) / "landing" / f"{name}.ome.tif"
    return write_tiff(path, image)


def choose(home: Path, path: Path, function: str) -> None:
    """Choose for an acquisition, before it lands, the function and small tiles.

    A function of this name is one of the tests' tissue.
    """
    key = path.name.removesuffix(".ome.tif")
    ImageFolder(prepare_home(home) / "store" / key, key).write_acquisition(
        Acquisition(
            str(path), function=f"tissue_functions:{function}", tile_shape=(TILE,), overlap=(HALO,)
        )
    )


def is_merged(home: Path, key: str) -> bool:
    """Tell whether the merged labels are written; their record is written last."""
    return (labels_folder(home, key) / "provenance.json").exists()


def labels_folder(home: Path, key: str) -> Path:
    """Return the folder of the merged labels of an image."""
    return home / "store" / key / f"{key}.ome.zarr" / "labels" / "labels"


def labels_of(home: Path, key: str) -> np.ndarray:
    """Return the merged labels of an image at full resolution."""
    return np.asarray(zarr.open_array(labels_folder(home, key) / "0", mode="r")[:])


def label_files(home: Path, key: str) -> dict[str, bytes]:
    """Return every file of the merged labels, pixels and metadata, less when they were made."""
    found = files_under(labels_folder(home, key))
    return {name: data for name, data in found.items() if name != "provenance.json"}


def in_one_process(image: np.ndarray, function: Any, **options: Any) -> np.ndarray:
    """Return the labels that the library alone makes of an image."""
    return np.asarray(tile_process(image, function, axes="yx", compute=True, **options))


def clock(seconds: float) -> str:
    """Return a time since 1970 as a clock shows it."""
    return datetime.fromtimestamp(seconds).strftime("%H:%M:%S.%f")[:-5]


def is_long() -> bool:
    """Tell whether tests may take minutes."""
    return os.environ.get("PATCHWORKS_E2E") in ("long", "full")


def is_full() -> bool:
    """Tell whether all of a long test is asked for."""
    return os.environ.get("PATCHWORKS_E2E") == "full"
