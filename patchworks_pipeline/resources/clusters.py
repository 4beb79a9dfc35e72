"""The Dask cluster that tiles may run on, configured as `dagster_dask.dask_resource` is.

One YAML file says which: an existing scheduler, processes on this machine, SLURM, Kubernetes, ...::

    client: {address: "tcp://head-node:8786"}      # an existing scheduler

    cluster: {slurm: {queue: gpu, cores: 4, memory: 64GB, walltime: "12:00:00"}}

``$PATCHWORKS_DASK`` names the file; without it there is no cluster.
"""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from math import prod
from pathlib import Path
from typing import Any, ClassVar

import dagster as dg

from patchworks_core.errors import PlanError
from patchworks_core.machine.dask_clients import refuse_in_process
from patchworks_core.tiles.grid import TileGrid
from patchworks_pipeline.resources.settings import Deployed, setting
from patchworks_pipeline.resources.settings_file import read_yaml

DASK_VARIABLE = "PATCHWORKS_DASK"

INSTALL = "pip install 'patchworks-pipeline[dask]'"


class DaskCluster(Deployed):
    """The Dask cluster for tiles, if any."""

    section: ClassVar[str] = "cluster"

    config_file: str = setting(
        "",
        description=f"YAML in the form of dagster_dask.dask_resource; empty: ${DASK_VARIABLE}, "
        "and if that is empty too there is no cluster.",
    )
    seconds_to_wait: float = setting(
        600.0, gt=0, description="For the first worker, which a batch system may start late."
    )
    merge_from_megapixels: float = setting(
        1000.0,
        ge=0,
        description="Images of so many pixels are merged on the cluster as well; smaller ones "
        "where the run is, which takes seconds, while workers may have to be waited for. 0: all.",
    )

    def merges(self, grid: TileGrid) -> bool:
        """Tell whether the steps after staging run on the cluster for an image so large."""
        n_pixels = prod(grid.shape)
        return self.settings() is not None and n_pixels >= self.merge_from_megapixels * 1e6

    def settings(self) -> dict[str, Any] | None:
        """Return what the file says; None where no file is named.

        Raises
        ------
        PlanError
            If there is no such file, or it does not describe a cluster.
        """
        name = self.config_file or os.environ.get(DASK_VARIABLE, "")
        if not name:
            return None
        if not Path(name).is_file():
            raise PlanError(
                f"no cluster configuration at {name!r}; correct {DASK_VARIABLE} or DaskCluster"
            )
        settings = read_yaml(Path(name))
        if not isinstance(settings, dict) or not set(settings) & {"client", "cluster"}:
            raise PlanError(
                f"{name} must have a key 'client' or 'cluster' as dagster_dask.dask_resource has, "
                f"got {settings!r}"
            )
        return settings

    @contextmanager
    def open(self) -> Iterator[Any]:
        """Connect to the cluster, or start it; give the client, or None where there is none.

        Raises
        ------
        PlanError
            If `dagster-dask` is not installed, or the client's workers are threads of this process.
        """
        settings = self.settings()
        if settings is None:
            yield None
            return
        with dg.build_resources(
            {"dask": _dask_resource()}, resource_config={"dask": {"config": settings}}
        ) as resources:
            client = resources.dask.client
            refuse_in_process(client)
            client.wait_for_workers(1, timeout=self.seconds_to_wait)
            yield client


def _dask_resource() -> Any:
    try:
        from dagster_dask import dask_resource
    except ModuleNotFoundError as error:
        raise PlanError(
            f"tiles run on a Dask cluster through dagster-dask, and {error.name!r} is not "
            f"installed here; {INSTALL}, or unset {DASK_VARIABLE}"
        ) from error
    return dask_resource
