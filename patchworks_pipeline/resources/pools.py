"""Where tiles run: the one seam between the assets and threads, processes, GPUs or a cluster.

1. A Dask cluster, if one is configured, takes all tiles, and the merge of large images.
2. A function that wants a GPU gets one worker process per slot, bound to its device.
3. Otherwise the compute budget decides how many threads or processes there are. Where it leaves the
   kind open, a function runs in processes unless it declares threads: one that hangs, crashes or
   takes all memory then fails its tile and no other.
"""

from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from patchworks_core.machine.faults import RetryPolicy
from patchworks_core.machine.pools import Pool
from patchworks_core.machine.workers import WorkerKind, Workers
from patchworks_core.stage.plan import Plan
from patchworks_core.tiles.grid import TileGrid
from patchworks_pipeline.resources.clusters import DaskCluster
from patchworks_pipeline.resources.compute_budget import ComputeBudget
from patchworks_pipeline.resources.gpus import GpuPool

RETRY = RetryPolicy()

ANOTHER_TRY = RetryPolicy(killed_attempts=3, other_attempts=1)
"""Steps after staging call no function of others: of a cluster, a worker or a disk was at fault."""


@dataclass(frozen=True, slots=True)
class DeployedCompute:
    """What the tiles of one image may run on; as `patchworks_core.machine.pools.Compute`."""

    budget: ComputeBudget
    """How much of this machine."""

    gpus: GpuPool
    """Its GPUs."""

    cluster: DaskCluster | None
    """Takes all tiles where there is one; None uses none, whatever the deployment says."""

    wants_gpu: bool = False
    """Whether the function uses a GPU."""

    declared: WorkerKind = "processes"
    """What the function runs in where the budget leaves it open."""

    at_most: int | None = None
    """Tiles at once on this machine, whatever else was decided."""

    @property
    def is_decided(self) -> bool:
        """True where what a tile takes would not change how many are worked on at once."""
        has_cluster = self.cluster is not None and self.cluster.settings() is not None
        return bool(self.budget.workers) or has_cluster

    def alone(self) -> "DeployedCompute":
        """Return one worker of the same kind."""
        return replace(self, at_most=1)

    @property
    def unkept_limits(self) -> str | None:
        """What to say where limits were asked for and the function declares threads; else None."""
        budget = self.budget
        if not budget.limits().is_asked_for or budget.kind_for(self.declared) == "processes":
            return None
        has_cluster = self.cluster is not None and self.cluster.settings() is not None
        if self.wants_gpu and not has_cluster and self.gpus.slots():
            return None
        return (
            "tile_timeout and worker_memory are not kept: the function declares threads, which "
            "cannot be ended; choose kind: processes (--worker-kind processes) to have them kept"
        )

    @contextmanager
    def open(
        self, grid: TileGrid, dtype: np.dtype[Any], *, measured_bytes: int = 0
    ) -> Iterator[Pool]:
        """Open a pool for tiles.

        Parameters
        ----------
        grid : TileGrid
        dtype : dtype
            Of the pixels.
        measured_bytes : int
            What a tile was seen to take; 0 where none was measured.
        """
        with nullcontext() if self.cluster is None else self.cluster.open() as client:
            if client is not None:
                kind = self.budget.kind_for(self.declared)
                limits = self.budget.limits() if kind == "processes" else None
                yield Pool.of_cluster(client, RETRY, limits)
                return
        workers, reason = self._on_this_machine(grid, dtype, measured_bytes)
        if self.at_most is not None:
            workers = replace(workers, count=min(workers.count, self.at_most))
        with Pool.open(workers) as pool:
            yield replace(pool, retry=RETRY, reason=reason)

    @contextmanager
    def open_steps(self, plan: Plan, *, is_light: bool = False) -> Iterator[Pool]:
        """Open a pool for the steps after staging, which call no function of others.

        Parameters
        ----------
        plan : Plan
            Of the image; a large one goes to the cluster, where there is one.
        is_light : bool
            True where nothing is read of the tiles, so that no cluster is waited for.
        """
        if is_light or self.cluster is None or not self.cluster.merges(plan.grid):
            with Pool.open(self.budget.open(self.budget.decide(plan).count)) as pool:
                yield pool
            return
        with self.cluster.open() as client:
            yield Pool.of_cluster(client, ANOTHER_TRY)

    def _on_this_machine(
        self, grid: TileGrid, dtype: np.dtype[Any], measured_bytes: int
    ) -> tuple[Workers, str]:
        """Decide on the workers of this machine."""
        kind = self.budget.kind_for(self.declared)
        decision = self.budget.decide_for(grid, dtype, measured_bytes=measured_bytes, kind=kind)
        slots = self.gpus.slots() if self.wants_gpu else ()
        if not slots:
            why = "; no GPU found, the function runs on the CPU" if self.wants_gpu else ""
            workers = self.budget.open(decision.count, self.declared)
            return workers, f"{decision.reason} ({kind}){why}"
        limit = self.budget.workers or len(slots)
        n_devices = len(set(slots))
        reason = f"{len(slots)} slots on {n_devices} GPUs, one worker process each"
        # Each process holds one tile, so the memory of the host bounds them too.
        fit = self.budget.model_copy(update={"cores_left_free": 0, "workers": len(slots)})
        fitting = fit.decide_for(grid, dtype, measured_bytes=measured_bytes, kind="processes").count
        count = min(limit, len(slots), fitting)
        return Workers(count, "processes", slots, self.budget.limits()), reason
