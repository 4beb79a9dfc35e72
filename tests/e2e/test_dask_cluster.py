"""Tiles on a Dask scheduler with worker processes of their own, some of which die."""

from __future__ import annotations

import os
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import dagster as dg
import numpy as np
import pytest

from patchworks_core.errors import PlanError
from patchworks_core.machine.pools import Pool
from patchworks_core.tiles.grid import TileGrid
from patchworks_pipeline.resources.clusters import DaskCluster
from tests.e2e.conftest import until
from tests.functions import faulty_functions as faulty
from tests.pipeline.conftest import Pipeline, error_of, home, instance, mended  # noqa: F401
from tests.tissue import (
    TILE,
    environment_of_functions,
    files_under,
    python_command,
    tissue,
    write_tiff,
)

SEGFAULT_TILE, MEMORY_TILE, KILLED_TILE = (0, 1), (1, 3), (2, 0)


def dangerous_tissue() -> np.ndarray:
    """Return a tissue with an object in each of three tiles that does harm."""
    image = tissue()
    for tile, value in (
        (SEGFAULT_TILE, faulty.SEGFAULTS),
        (MEMORY_TILE, faulty.TAKES_MEMORY),
        (KILLED_TILE, faulty.IS_KILLED),
    ):
        y, x = (i * TILE + TILE // 2 for i in tile)
        image[y - 2 : y + 2, x - 2 : x + 2] = value
    return image


@contextmanager
def dask_cluster(folder: Path, n_workers: int = 2) -> Iterator[Path]:
    """Start a scheduler and workers under nannies; give the configuration that names them."""
    folder.mkdir()
    scheduler_file = folder / "scheduler.json"
    environment = {
        **os.environ,
        **environment_of_functions(),
        # A tile is tried on one more worker before it is blamed; quicker than the default of 3.
        "DASK_DISTRIBUTED__SCHEDULER__ALLOWED_FAILURES": "1",
        "DASK_DISTRIBUTED__WORKER__MEMORY__TERMINATE": "0.9",
        "DASK_DISTRIBUTED__WORKER__MEMORY__SPILL": "False",
        "DASK_DISTRIBUTED__WORKER__MEMORY__PAUSE": "False",
    }
    dask = python_command("dask")
    commands = [
        [dask, "scheduler", "--scheduler-file", scheduler_file, "--port", "0", "--no-dashboard"],
        *[
            [
                dask,
                "worker",
                "--scheduler-file",
                scheduler_file,
                "--nthreads",
                "1",
                "--memory-limit",
                "1.5GB",
                "--nanny",
                "--no-dashboard",
                "--local-directory",
                folder / f"worker-{n}",
            ]
            for n in range(n_workers)
        ],
    ]
    with (folder / "log").open("wb") as log:
        processes = [
            subprocess.Popen(command, env=environment, stdout=log, stderr=log)
            for command in commands
        ]
        try:
            until(scheduler_file.exists, seconds=60, what="the scheduler's file")
            config = folder / "dask.yaml"
            config.write_text(f"client: {{scheduler_file: {scheduler_file}}}\n")
            yield config
        finally:
            for process in reversed(processes):
                process.terminate()
            for process in processes:
                try:
                    process.wait(20)
                except subprocess.TimeoutExpired:
                    process.kill()
                    process.wait()


@pytest.fixture
def pipeline(home: Path, instance: dg.DagsterInstance) -> Pipeline:  # noqa: F811
    return Pipeline(instance, {})


@pytest.mark.slow
def test_workers_that_die_take_their_tiles_along_and_nothing_else(
    pipeline,
    mended,  # noqa: F811
    tmp_path,
    monkeypatch,
):
    monkeypatch.setenv(faulty.KILLED_ONCE, str(tmp_path / "killed"))
    image = write_tiff(tmp_path / "tissue.ome.tif", dangerous_tissue())
    folder = pipeline.register(image, function="faulty_functions:crashes")
    assert pipeline.plan(folder).success

    with dask_cluster(tmp_path / "cluster") as config:
        monkeypatch.setenv("PATCHWORKS_DASK", str(config))
        result = pipeline.stage(folder)
        assert not result.success
        assert folder.stage().missing_blocks() == ["y000x001", "y001x003"]
        assert "2 of 12 tiles failed: tissue/" in error_of(result)
        assert {f.block for f in folder.failures()} == {"y000x001", "y001x003"}
        assert all(f.kind == "killed" and f.is_transient for f in folder.failures())
        assert (tmp_path / "killed").exists(), "the third worker was killed, and its tile passed"
        run = pipeline.instance.get_run_by_id(result.run_id)
        assert "Dask cluster at tcp://" in run.tags["patchworks/workers"]

        mended.touch()
        assert pipeline.stage(folder, skip_staged=True).success
    assert pipeline.merge(folder).success

    monkeypatch.delenv("PATCHWORKS_DASK")
    quiet = pipeline.register(image, key="quiet", function="faulty_functions:crashes")
    pipeline.run_to_labels(quiet)
    labels = [f.container / "labels" / "labels" / "0" for f in (folder, quiet)]
    assert files_under(labels[0]) == files_under(labels[1])


@pytest.mark.slow
@pytest.mark.parametrize("outline", ["core", "feather"])
def test_the_merge_runs_on_the_cluster_and_gives_the_same_bytes(
    pipeline, tmp_path, monkeypatch, outline
):
    image = write_tiff(tmp_path / "tissue.ome.tif", tissue())
    folders = {
        key: pipeline.register(
            image,
            key=key,
            function="tissue_functions:wavering",
            merge={"outline": outline, "min_size": 20},
        )
        for key in ("here", "there")
    }
    for folder in folders.values():
        assert pipeline.plan(folder).success
        assert pipeline.stage(folder).success
    assert pipeline.run("merge_image", partition_key="here").success

    where: list[str] = []
    of_cluster = Pool.of_cluster
    monkeypatch.setattr(Pool, "of_cluster", lambda *a: where.append("there") or of_cluster(*a))
    monkeypatch.setattr(Pool, "open", lambda *a: pytest.fail("workers of this machine started"))
    with dask_cluster(tmp_path / "cluster") as config:
        monkeypatch.setenv("PATCHWORKS_DASK", str(config))
        pipeline.resources["cluster"] = {"config": {"merge_from_megapixels": 0.0}}
        result = pipeline.run("merge_image", partition_key="there")
        assert result.success, error_of(result)
    assert where == ["there"] * (3 + (outline == "feather")), "the table, where it is measured"
    labels = [f.container / "labels" / "labels" / "0" for f in folders.values()]
    assert files_under(labels[0]) == files_under(labels[1])
    assert folders["here"].objects().equals(folders["there"].objects())


def test_images_are_merged_on_a_cluster_from_a_size_on(tmp_path, monkeypatch):
    monkeypatch.delenv("PATCHWORKS_DASK", raising=False)
    grid = TileGrid("yx", (2000, 3000), (500, 500), (0, 0))
    config = tmp_path / "dask.yaml"
    config.write_text("client: {address: 'tcp://head:8786'}")
    sizes = {
        size: DaskCluster(config_file=str(config), merge_from_megapixels=size)
        for size in (0, 6, 6.1)
    }
    assert {size: cluster.merges(grid) for size, cluster in sizes.items()} == {
        0: True,
        6: True,
        6.1: False,
    }
    assert not DaskCluster(merge_from_megapixels=0).merges(grid), "there is no cluster"


def test_a_client_whose_workers_are_threads_of_the_run_is_refused(tmp_path, monkeypatch):
    config = tmp_path / "dask.yaml"
    config.write_text("cluster: {local: {processes: false, n_workers: 1, dashboard_address: null}}")
    with (
        pytest.raises(PlanError, match="workers in this process; start worker processes"),
        DaskCluster(config_file=str(config)).open(),
    ):
        pass


def test_a_cluster_configuration_that_is_not_there_is_refused(tmp_path):
    with pytest.raises(PlanError, match="no cluster configuration at .*correct PATCHWORKS_DASK"):
        DaskCluster(config_file=str(tmp_path / "none.yaml")).settings()


def test_a_cluster_configuration_without_a_cluster_is_refused(tmp_path):
    config = tmp_path / "dask.yaml"
    config.write_text("address: tcp://head:8786")
    with pytest.raises(PlanError, match="must have a key 'client' or 'cluster'"):
        DaskCluster(config_file=str(config)).settings()
