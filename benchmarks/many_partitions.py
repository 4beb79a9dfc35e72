"""How the UI and a backfill bear many tiles: 20 images of 500 tiles, 37 of which failed.

    python -m benchmarks.many_partitions [--images 20] [--failed 37] [--home FOLDER]

1. The images are run with a function that fails on marked tiles. A home that is kept is used again.
2. The page of `staged_labels` is opened in Chromium, and each GraphQL query it sends is timed.
3. The cause is mended, and the failed tiles are backfilled as the UI does it, by the real daemon.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np

from tests.e2e.backfills import partitions_of, request_backfill
from tests.e2e.conftest import Served, serving, until
from tests.e2e.screenshots import ARGUMENTS, CHROMIUM
from tests.tissue import MARK, environment_of_functions, python_command, tissue, write_tiff

N_TILES, TILE, HALO = (20, 25), 16, 2

MILLISECONDS_TO_SHOW = 120_000

SECONDS_TO_STAGE = 1500

BACKFILL = """
query Backfill($id: String!) {
  partitionBackfillOrError(backfillId: $id) {
    ... on PartitionBackfill {
      status
      timestamp
      endTimestamp
      runs(limit: 100) { id status creationTime startTime endTime }
      error { message }
    }
  }
}
"""


def main() -> None:
    """Make the home, open the page, and backfill what failed."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--images", type=int, default=20)
    parser.add_argument("--failed", type=int, default=37)
    parser.add_argument("--home", type=Path, help="kept, and used again")
    args = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="patchworks-") as folder:
        kept = (args.home or Path(folder)).absolute()
        os.environ["PATCHWORKS_TEST_MENDED"] = str(kept / "mended")
        if not (kept / "home").exists():
            make_home(kept, args.images, args.failed)
        with serving(kept / "home") as served:
            tiles = timed_tiles(served)
            open_page(served, tiles["partitionStats"])
            (kept / "mended").touch()
            backfill(served, tiles["assetPartitionStatuses"]["failedPartitions"])
            timed_tiles(served)


def make_home(folder: Path, n_images: int, n_failed: int) -> None:
    """Run the images; the marked tiles fail."""
    folder.mkdir(exist_ok=True)
    shape = (N_TILES[0] * TILE, N_TILES[1] * TILE)
    marked = np.random.default_rng(0).choice(n_images * np.prod(N_TILES), n_failed, replace=False)
    paths = []
    for n in range(n_images):
        image = tissue(shape, seed=n, n_cells=400)
        for tile in marked[marked // np.prod(N_TILES) == n] % np.prod(N_TILES):
            y, x = (int(i) * TILE + TILE // 2 for i in np.unravel_index(tile, N_TILES))
            image[y - 2 : y + 2, x - 2 : x + 2] = MARK
        paths.append(str(write_tiff(folder / f"image{n:02}.tif", image)))
    command = [python_command("patchworks"), "run", *paths, "--home", str(folder / "home")]
    command += ["--segmentation", "tissue_functions:fails_at_mark"]
    command += ["--tile-shape", str(TILE), "--overlap", str(HALO), "--workers", "1"]
    environment = {**os.environ, **environment_of_functions()}
    start = time.perf_counter()
    subprocess.run(command, env=environment, capture_output=True)
    print(f"{n_images} images run in {time.perf_counter() - start:.0f} s", flush=True)


def timed_tiles(served: Served) -> dict[str, Any]:
    """Ask for the status of every tile, and say how many and how long it took."""
    start = time.perf_counter()
    tiles = partitions_of(served, "staged_labels")
    seconds = time.perf_counter() - start
    print(f"tiles {tiles['partitionStats']}: status of all in {seconds:.2f} s", flush=True)
    return dict(tiles)


def open_page(served: Served, stats: dict[str, int]) -> None:
    """Open the partitions of `staged_labels` twice, first with an empty cache."""
    try:
        from playwright.sync_api import sync_playwright
    except ImportError:
        print("playwright is not installed: the page was not opened", file=sys.stderr)
        return
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=CHROMIUM, args=list(ARGUMENTS))
        page = browser.new_page(viewport={"width": 1440, "height": 900})
        page.set_default_timeout(MILLISECONDS_TO_SHOW)
        for visit in ("first", "second"):
            asked: dict[str, float] = {}

            def note(request: Any, asked: dict[str, float] = asked) -> None:
                if "/graphql" in request.url and request.post_data_json:
                    name = request.post_data_json["operationName"]
                    asked[name] = asked.get(name, 0) + request.timing["responseEnd"] / 1000

            page.on("requestfinished", note)
            start = time.perf_counter()
            page.goto(f"{served.url}/assets/staged_labels?view=partitions")
            page.get_by_text(f"Failed ({stats['numFailed']})", exact=True).wait_for()
            seconds = time.perf_counter() - start
            page.wait_for_timeout(1000)
            page.remove_listener("requestfinished", note)
            longest = sorted(asked.items(), key=lambda each: -each[1])[:5]
            print(f"page, {visit} visit: {seconds:.2f} s to its partition bar", flush=True)
            for name, spent in longest:
                print(f"  {name}: {spent:.2f} s", flush=True)
        browser.close()


def backfill(served: Served, failed: list[str]) -> None:
    """Backfill tiles, and say in how many runs and seconds."""
    start = time.time()
    identity = request_backfill(served, ["staged_labels"], failed)
    asked = time.time() - start

    def ended() -> dict[str, Any] | None:
        found = served.ask(BACKFILL, id=identity)["partitionBackfillOrError"]
        assert found["error"] is None, found["error"]
        return dict(found) if found["status"].startswith(("COMPLETED", "FAILED")) else None

    found = until(ended, seconds=SECONDS_TO_STAGE, what="the end of the backfill")
    runs = found["runs"]
    submitted = max(run["creationTime"] for run in runs) - start
    done = max(run["endTime"] for run in runs) - start
    statuses = sorted({run["status"] for run in runs})
    print(
        f"backfill of {len(failed)} tiles: asked for in {asked:.2f} s, {len(runs)} runs {statuses} "
        f"submitted within {submitted:.1f} s, all staged within {done:.1f} s",
        flush=True,
    )


if __name__ == "__main__":
    main()
