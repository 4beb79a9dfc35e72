"""A function that hangs, crashes, ends its process or eats memory fails its tile and no other.

All of it happens in one image, with the settings that a home has by itself but for the limits,
which would be hours and gigabytes.
"""

from __future__ import annotations

from collections.abc import Collection
from pathlib import Path

import numpy as np
import pytest

from patchworks_pipeline.automation.jobs import repair_run
from patchworks_pipeline.cli.exit_codes import TILES_FAILED
from patchworks_pipeline.cli.runs import open_home
from patchworks_pipeline.instance.home import prepare_home
from patchworks_pipeline.lineage import Lineage
from patchworks_pipeline.records import ImageFolder
from patchworks_pipeline.resources.compute_budget import ComputeBudget
from patchworks_pipeline.resources.gpus import GpuPool
from patchworks_pipeline.resources.pools import DeployedCompute
from patchworks_pipeline.resources.resources import LabelStore
from tests.functions import bad_functions as bad
from tests.pipeline.conftest import call_command_line, error_of
from tests.pipeline.daemon import Daemon
from tests.tissue import HALO, TILE, tissue, write_tiff

BAD = {
    "y000x000": (bad.HANGS, "TileTimeoutError: it was not done after 2 s"),
    "y000x002": (bad.CRASHES, "WorkerLostError: its worker process was ended by SIGSEGV"),
    "y001x001": (bad.ENDS, "WorkerLostError: its worker process ended with exit code 3"),
    "y002x000": (bad.EATS, "WorkerMemoryError: its worker process took"),
    "y002x002": (bad.EXITS, "SystemExit: bad"),
}
"""What the function does at tiles, and what is said of them."""


def bad_tissue() -> np.ndarray:
    """Return a tissue with an object in the middle of each of those tiles."""
    image = tissue()
    for key, (value, _) in BAD.items():
        y, x = (int(key[i : i + 3]) * TILE + TILE // 2 for i in (1, 5))
        image[y - 2 : y + 2, x - 2 : x + 2] = value
    return image


@pytest.fixture
def bad_home(home: Path) -> Path:
    """A home whose limits are seconds and megabytes."""
    prepare_home(home)
    settings = "budget: {tile_timeout: 2, worker_memory: 500MB}\n"
    settings += "segmentation: {function: 'bad_functions:bad', "
    settings += f"tile_shape: [{TILE}], overlap: [{HALO}]}}\n"
    settings += "source: {settle_seconds: 0}\n"
    (home / "patchworks.yaml").write_text(settings)
    return home


def check(folder: ImageFolder, bad_tiles: Collection[str] = frozenset(BAD)) -> None:
    """Check that bad tiles failed by name, and that all others are staged."""
    failures = {failure.block: failure for failure in folder.failures()}
    assert set(failures) == set(bad_tiles)
    for key, failure in failures.items():
        assert BAD[key][1] in f"{failure.error_type}: {failure.message}"
    assert set(folder.stage(folder.plan()).missing_blocks()) == set(bad_tiles)


def test_tiles_of_a_bad_function_fail_by_name_and_stop_no_other(bad_home, pipeline, tmp_path):
    image = write_tiff(tmp_path / "tissue.tif", bad_tissue()[:TILE])
    folder = pipeline.register(image, function="bad_functions:bad")
    pipeline.plan(folder)
    result = pipeline.stage(folder)
    assert error_of(result).startswith("2 of 4 tiles failed"), error_of(result)
    check(folder, {"y000x000", "y000x002"})


@pytest.mark.slow
def test_patchworks_run_names_every_bad_tile(bad_home, tmp_path):
    image = write_tiff(tmp_path / "tissue.tif", bad_tissue())
    code, printed = call_command_line("run", image)
    assert code == TILES_FAILED, printed
    assert "5 tiles failed" in printed
    check(LabelStore().folder("tissue"))


@pytest.mark.slow
def test_a_daemon_goes_on_and_a_repair_takes_the_bad_tiles_alone(bad_home):
    write_tiff(bad_home / "landing" / "tissue.tif", bad_tissue())
    with open_home(bad_home) as instance:
        daemon = Daemon(instance, {})
        assert "stage_tiles" in daemon.until_quiet()
        folder = LabelStore().folder("tissue")
        check(folder)
        request = repair_run(Lineage(), "tissue", run_key="by hand", only_transient=False)
        result = daemon.execute("repair_image", request)
    assert "5 of 5 tiles failed" in error_of(result)
    check(folder)


def test_limits_that_a_function_in_threads_does_not_keep_are_said_in_the_log(
    bad_home, pipeline, tmp_path
):
    image = write_tiff(tmp_path / "tissue.tif", tissue()[:TILE])
    folder = pipeline.register(image, function="tissue_functions:perfect")
    pipeline.plan(folder)
    result = pipeline.stage(folder)
    assert result.success
    logged = pipeline.instance.all_logs(result.run_id)
    said = [entry.user_message for entry in logged if "are not kept" in entry.user_message]
    assert len(said) == 1, said
    assert "the function declares threads" in said[0]


@pytest.mark.parametrize(
    ("budget", "declared", "is_said"),
    [
        ({"tile_timeout": 5}, "threads", True),
        ({"worker_memory": "1GB"}, "threads", True),
        ({"tile_timeout": 5}, "processes", False),
        ({"tile_timeout": 5, "kind": "processes"}, "threads", False),
        ({"tile_timeout": 0, "worker_memory": "none"}, "threads", False),
        ({}, "threads", False),
    ],
)
def test_limits_are_said_not_to_be_kept_where_they_are_not(budget, declared, is_said):
    compute = DeployedCompute(ComputeBudget(**budget), GpuPool(), None, declared=declared)
    assert (compute.unkept_limits is not None) == is_said
