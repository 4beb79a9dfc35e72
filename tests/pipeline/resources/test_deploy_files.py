"""The files of `deploy/` are what the tools that read them take, and do what they say."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import yaml

from patchworks_pipeline.resources.clusters import DaskCluster

DEPLOY = Path(__file__).parents[3] / "deploy"


def slurm_job() -> str:
    """Return the script of the jobs that the SLURM file asks for; none is submitted."""
    jobqueue = pytest.importorskip("dask_jobqueue", reason="dask-jobqueue is not installed")
    options: dict[str, Any] = yaml.safe_load((DEPLOY / "dask-slurm.yaml").read_text())
    assert options["cluster"]["slurm"].pop("n_workers") > 0
    with jobqueue.SLURMCluster(**options["cluster"]["slurm"], n_workers=0) as cluster:
        return str(cluster.job_script())


def test_a_slurm_job_books_one_gpu_and_runs_one_tile_on_it():
    script = slurm_job()
    assert "#SBATCH --gres=gpu:1" in script
    assert " --nthreads 1 " in script
    assert "--nworkers" not in script, "one worker process is what is left out"
    assert "#SBATCH --cpus-per-task=4" in script


@pytest.mark.parametrize("path", sorted(DEPLOY.glob("dask-*.yaml")), ids=lambda path: path.name)
def test_a_cluster_file_is_one_that_dagster_dask_takes(path):
    from dagster._config import validate_config
    from dagster_dask import dask_resource

    settings = DaskCluster(config_file=str(path)).settings()
    result = validate_config(dask_resource.config_schema.as_field().config_type, settings)
    assert result.success, result.errors
