"""What orchestration costs per image and per tile, over the library alone on the same image.

    python -m benchmarks.overhead [--pixels 4096] [--tiles 512 128] [--postgres URL | start]

Each image is segmented by a cheap threshold, one tile at a time, in three ways:

1. ``patchworks segment``: the library alone, a process of its own.
2. ``patchworks run``: through the assets and the instance, a process of its own.
3. Landing: copied into the landing folder of a served home; sensors, daemon, a process per run.

Seconds per tile are the slope between the tilings, less that of the library; seconds per image are
what is left of the difference. Landing is counted without the time an acquisition has to settle.
``start`` runs a PostgreSQL server for the benchmark (see `tests.e2e.postgres`).
"""

from __future__ import annotations

import argparse
import os
import shutil
import subprocess
import tempfile
import time
from collections.abc import Mapping
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from patchworks_pipeline.instance.home import prepare_home
from patchworks_pipeline.records import Acquisition, ImageFolder
from patchworks_pipeline.resources.resources import AcquisitionSource
from tests.e2e.conftest import serving, until
from tests.e2e.facility import count_runs, landing_ticks, one_run_of_each, runs_of
from tests.e2e.postgres import running_postgres
from tests.e2e.timeline import Timeline
from tests.tissue import python_command

FUNCTION, HALO = "threshold", 16

DEPLOYED = Path(__file__).parents[1] / "deploy" / "dagster-postgres.yaml"

SECONDS_TO_LAND = 500


@dataclass(frozen=True, slots=True)
class Row:
    """Seconds of one tiling."""

    n_tiles: int
    segment: float
    run: float
    landing: Timeline | None


def blobs(n_pixels: int) -> np.ndarray:
    """Return a square image of bright discs on a dark ground."""
    y, x = np.ogrid[:n_pixels, :n_pixels]
    waves = np.sin(y / 9) * np.sin(x / 11)
    return np.where(waves > 0.5, 40_000, 1_000).astype(np.uint16)


def main() -> None:
    """Measure on SQLite, and on PostgreSQL where asked."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--pixels", type=int, default=4096)
    parser.add_argument("--tiles", type=int, nargs=2, default=[512, 128], help="pixels of a tile")
    parser.add_argument("--postgres", metavar="URL", help="URL of an empty database, or 'start'")
    parser.add_argument("--no-landing", action="store_true", help="leave out the served home")
    args = parser.parse_args()
    storages: list[tuple[str, str | None]] = [("SQLite", None)]
    with ExitStack() as stack:
        if args.postgres == "start":
            storages.append(("PostgreSQL", stack.enter_context(running_postgres())))
        elif args.postgres:
            storages.append(("PostgreSQL", args.postgres))
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="patchworks-")))
        image = folder / "image.npy"
        np.save(image, blobs(args.pixels))
        for storage, url in storages:
            home = prepare_home(folder / storage)
            environment = {"DAGSTER_PG_URL": url} if url else {}
            if url:
                shutil.copy(DEPLOYED, home / "dagster" / "dagster.yaml")
            rows = measure(image, home, args.tiles, environment, with_landing=not args.no_landing)
            print(report(storage, rows), flush=True)


def measure(
    image: Path,
    home: Path,
    tile_sizes: list[int],
    environment: Mapping[str, str],
    *,
    with_landing: bool,
) -> list[Row]:
    """Measure the tilings of one image on one storage."""
    n_pixels = np.load(image, mmap_mode="r").shape[0]
    in_process = []
    for size in tile_sizes:
        shared = ["--segmentation", FUNCTION, "--tile-shape", str(size), "--overlap", str(HALO)]
        shared += ["--workers", "1", "--axes", "yx"]
        written = home / f"segmented{size}.zarr"
        segment = seconds_of(["segment", str(image), "-o", str(written), *shared], environment)
        known = ["--home", str(home), "--name", f"run{size}"]
        run = seconds_of(["run", str(image), *known, *shared], environment)
        in_process.append((segment, run))
    landed = landings(image, home, tile_sizes, environment) if with_landing else [None, None]
    return [
        Row((n_pixels // size) ** 2, segment, run, landing)
        for size, (segment, run), landing in zip(tile_sizes, in_process, landed, strict=True)
    ]


def seconds_of(arguments: list[str], environment: Mapping[str, str]) -> float:
    """Return how long a command takes."""
    start = time.perf_counter()
    subprocess.run(
        [python_command("patchworks"), *arguments],
        check=True,
        stdout=subprocess.DEVNULL,
        env={**os.environ, **environment},
    )
    return time.perf_counter() - start


def landings(
    image: Path, home: Path, tile_sizes: list[int], environment: Mapping[str, str]
) -> list[Timeline]:
    """Land the image once per tiling, one after the other, in a served home."""
    found = []
    with serving(home, PATCHWORKS_AUTOMATION="on", **environment) as served:
        until(lambda: landing_ticks(served), seconds=90, what="the first tick")
        for size in tile_sizes:
            key = f"landed{size}"
            path = home / "landing" / f"{key}.npy"
            ImageFolder(home / "store" / key, key).write_acquisition(
                Acquisition(
                    str(path),
                    axes="yx",
                    function=FUNCTION,
                    tile_shape=(size,),
                    overlap=(HALO,),
                )
            )
            landed = time.time()
            shutil.copy(image, path)

            def runs(key: str = key):
                return [run for run in runs_of(served) if run.image == key]

            until(
                lambda runs=runs, key=key: count_runs(runs()) == one_run_of_each([key]),
                seconds=SECONDS_TO_LAND,
                what=f"the labels of {key}",
            )
            found.append(Timeline.of(landed, runs(), AcquisitionSource().settle_seconds))
    return found


def report(storage: str, rows: list[Row]) -> str:
    """Return the measurement as a table, and what follows from it."""
    few, many = rows
    lines = [f"## {storage}", "", "| tiles | segment | run | landing to labels |", "|--|--|--|--|"]
    lines += [
        f"| {row.n_tiles} | {row.segment:.1f} s | {row.run:.1f} s | {row.landing or '-'} |"
        for row in rows
    ]
    n_more = many.n_tiles - few.n_tiles
    library = (many.segment - few.segment) / n_more
    lines += ["", f"- library alone: {1000 * library:.1f} ms per tile"]
    ways = {"run": [row.run for row in rows]}
    if few.landing and many.landing:
        ways["landing"] = [
            row.landing.total - row.landing.settling for row in rows if row.landing is not None
        ]
    for way, (of_few, of_many) in ways.items():
        per_tile = (of_many - of_few) / n_more - library
        per_image = of_few - few.segment - per_tile * few.n_tiles
        lines.append(
            f"- {way}: {per_image:.1f} s per image and {1000 * per_tile:.1f} ms per tile over the "
            f"library ({of_few / few.segment:.1f}x at {few.n_tiles} tiles, "
            f"{of_many / many.segment:.1f}x at {many.n_tiles})"
        )
    return "\n".join([*lines, ""])


if __name__ == "__main__":
    main()
