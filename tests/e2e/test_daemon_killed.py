"""A bad night: many acquisitions land at once, and the daemon is killed twice while they go on."""

from __future__ import annotations

import os
import signal
import subprocess
import time
from pathlib import Path

import numpy as np
import psutil
import pytest

from patchworks_pipeline.instance.home import prepare_home
from tests.e2e.conftest import Served, serving, until
from tests.e2e.facility import (
    choose,
    count_runs,
    in_one_process,
    is_full,
    is_long,
    is_merged,
    label_files,
    labels_of,
    land,
    landing_ticks,
    one_run_of_each,
    runs_of,
)
from tests.tissue import HALO, TILE, environment_of_functions, python_command, tissue

SECONDS_TO_START_OVER = 120

SECONDS_PER_IMAGE = 40
"""Three runs, each in a process of its own, on a machine that may have one core to spare."""

OPTIONS = {"tile_shape": TILE, "overlap": HALO}


def daemon_of(served: Served) -> psutil.Process:
    """Return the daemon that `patchworks ui` started."""
    found = [p for p in served.descendants() if "dagster._daemon" in p.cmdline()]
    assert len(found) == 1, found
    return found[0]


def kill_daemon(served: Served) -> list[psutil.Process]:
    """End the daemon without a word, and with it what is served; return what is left running."""
    family = served.descendants()
    daemon_of(served).send_signal(signal.SIGKILL)
    served.process.wait(60)
    return family


def unlike_a_success(served: Served) -> list[object]:
    """Return the runs that ended in another way than by success."""
    return [run for run in runs_of(served) if run.status in ("FAILURE", "CANCELED")]


def true_labels(tile: np.ndarray) -> np.ndarray:
    """Label a tile as `tissue_functions.perfect` does."""
    return tile.astype(np.int64)


def undisturbed(home: Path, paths: list[Path]) -> None:
    """Run the same images in one process that nobody ends."""
    command = [python_command("patchworks"), "run", *map(str, paths), "--home", str(home)]
    options = ["--segmentation", "tissue_functions:perfect"]
    options += ["--tile-shape", str(TILE), "--overlap", str(HALO)]
    environment = {**os.environ, **environment_of_functions()}
    subprocess.run([*command, *options], env=environment, check=True, capture_output=True)


@pytest.mark.timeout(3600)
@pytest.mark.skipif(
    not is_long(), reason="takes minutes of starting over; PATCHWORKS_E2E=long runs it"
)
def test_each_image_is_processed_once_though_the_daemon_is_killed_twice(tmp_path):
    n_images = 50 if is_full() else 6
    pictures = {f"night{i:02}": tissue(seed=i) for i in range(n_images)}
    home = prepare_home(tmp_path / "home")
    left: list[psutil.Process] = []

    def n_merged() -> int:
        return sum(is_merged(home, key) for key in pictures)

    deployed = {"PATCHWORKS_AUTOMATION": "on"}
    try:
        with serving(home, **deployed) as served:
            until(lambda: landing_ticks(served), seconds=60, what="the first tick")
            paths = [land_chosen(home, key, image) for key, image in pictures.items()]
            landed = time.monotonic()
            # The tick that takes them is still asking for runs.
            until(lambda: runs_of(served), seconds=SECONDS_TO_START_OVER, what="the first run")
            n_asked = len(runs_of(served))
            left += kill_daemon(served)
        with serving(home, **deployed) as served:
            seconds = SECONDS_TO_START_OVER + n_images * SECONDS_PER_IMAGE
            until(lambda: n_merged() >= n_images / 2, seconds=seconds, what="half of the labels")
            n_halfway = n_merged()
            left += kill_daemon(served)
        with serving(home, **deployed) as served:
            until(
                lambda: n_merged() == n_images or unlike_a_success(served),
                seconds=seconds,
                what="the labels of every image",
            )
            until(
                lambda: count_runs(runs_of(served)) == one_run_of_each(pictures),
                seconds=60,
                what=f"exactly one run of each; there are {count_runs(runs_of(served))}, and it",
            )
            merged_after = time.monotonic() - landed
            n_ticks = len(landing_ticks(served))
            until(lambda: len(landing_ticks(served)) > n_ticks + 1, seconds=60, what="two ticks")
            assert count_runs(runs_of(served)) == one_run_of_each(pictures)
    finally:
        for process in left:
            if process.is_running():
                process.kill()
    print(
        f"\n{n_images} images merged {merged_after:.0f} s after they landed; the daemon was killed "
        f"after {n_asked} runs were asked for, and after {n_halfway} images were merged"
    )
    undisturbed(tmp_path / "undisturbed", paths)
    for key, image in pictures.items():
        assert label_files(home, key) == label_files(tmp_path / "undisturbed", key)
        expected = in_one_process(image, true_labels, **OPTIONS)
        np.testing.assert_array_equal(labels_of(home, key), expected)


def land_chosen(home: Path, key: str, image: np.ndarray) -> Path:
    """Land an acquisition for which its function and its tiles are chosen."""
    path = home / "landing" / f"{key}.ome.tif"
    choose(home, path, "perfect")
    return land(home, key, image)
