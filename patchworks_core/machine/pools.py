"""Where tiles run when a library call says so: threads, processes, GPUs, or a Dask client.

1. A Dask client that was given, or is active, takes all tiles.
2. With ``use_gpu`` there is one worker process per GPU, and a dashboard.
3. Otherwise the caller's number of workers, or as many as cores and memory allow, going by what the
   first tile was seen to take.
"""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from concurrent.futures import Executor
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np

from patchworks_core.errors import PlanError
from patchworks_core.machine.budget import (
    Limit,
    block_bytes,
    decide_workers,
    granted_cores,
    granted_memory_bytes,
)
from patchworks_core.machine.dask_clients import (
    active_client,
    make_local_cluster,
    refuse_in_process,
)
from patchworks_core.machine.devices import granted_devices
from patchworks_core.machine.engine import WINDOW_PER_WORKER
from patchworks_core.machine.faults import RetryPolicy
from patchworks_core.machine.workers import WorkerKind, Workers
from patchworks_core.tiles.grid import TileGrid

RETRY = RetryPolicy(other_attempts=1)
"""A script is told of an unknown error at once; faults that may pass are tried again."""

RETRY_ON_CLUSTER = RetryPolicy(other_attempts=1, killed_attempts=2)
"""Dask tries a tile on several workers before it blames it, but a tile that shared a dying worker
is blamed as well: so once more, alone."""


WORKER_PROCESS_BYTES = 200 << 20
"""What a worker process holds before its first tile: the interpreter, NumPy, SciPy, Zarr."""


@dataclass(frozen=True, slots=True)
class TilePool:
    """An executor, and how the engine is to use it."""

    executor: Executor
    window: int
    retry: RetryPolicy
    reason: str
    """What was decided and why, in words."""

    dashboard: str | None = None
    """Address of the cluster's dashboard."""


@dataclass(frozen=True, slots=True)
class Compute:
    """What the tiles of one call may run on."""

    max_workers: int | None = None
    """Tiles at once; None is as many as cores and memory allow."""

    kind: WorkerKind = "threads"
    """What works where there is neither a client nor a GPU."""

    use_gpu: bool = False
    """One worker process per GPU; the CPU where there is none."""

    client: Any = None
    """Dask client; None is the active one, if there is one."""

    def __post_init__(self) -> None:
        Workers(1 if self.max_workers is None else self.max_workers, self.kind)

    @property
    def is_decided(self) -> bool:
        """True where what a tile takes would not change how many are worked on at once."""
        on_gpu = self.use_gpu and bool(granted_devices())
        return self.max_workers is not None or self._client() is not None or on_gpu

    @property
    def bytes_beside_tiles(self) -> int:
        """Memory that each worker takes whatever its tile is."""
        return WORKER_PROCESS_BYTES if self.kind == "processes" else 0

    def _client(self) -> Any | None:
        """Return the client to use; a number of workers is a wish for none."""
        if self.client is not None:
            return self.client
        return active_client() if self.max_workers is None else None

    @contextmanager
    def open(
        self, grid: TileGrid, dtype: np.dtype[Any], *, measured_bytes: int = 0
    ) -> Iterator[TilePool]:
        """Open a pool for tiles.

        Parameters
        ----------
        grid : TileGrid
        dtype : dtype
            Of the pixels.
        measured_bytes : int
            What a tile was seen to take; 0 where none was, and only what is certain counts.

        Raises
        ------
        PlanError
            If not even one tile fits the memory, or a client's workers are in this process.
        """
        client = self._client()
        if client is not None:
            yield _pool_of(client)
            return
        if self.use_gpu and granted_devices():
            with make_local_cluster(use_gpu=True, n_workers=self.max_workers) as local:
                yield _pool_of(local)
            return
        certain = block_bytes(grid, dtype, function_bytes_per_pixel=0)
        asked = self.max_workers
        decision = decide_workers(
            max(measured_bytes, certain) + self.bytes_beside_tiles,
            cores=granted_cores() if asked is None else Limit(asked, "the caller"),
            memory=granted_memory_bytes(),
            at_most=asked,
        )
        count, reason = decision.count, decision.reason
        if asked is not None and count < asked:
            warnings.warn(
                f"max_workers={asked} would not fit: {reason}; give smaller tiles for more workers",
                stacklevel=6,
            )
        with Workers(count, self.kind).open() as executor:
            yield TilePool(executor, WINDOW_PER_WORKER * count, RETRY, f"{reason} ({self.kind})")


def _pool_of(client: Any) -> TilePool:
    """Return the pool of a Dask client's workers."""
    refuse_in_process(client)
    n_threads = sum(client.nthreads().values())
    if not n_threads:
        raise PlanError(
            f"the Dask cluster at {client.scheduler.address} has no workers; start some, or wait "
            "for them with client.wait_for_workers(1)"
        )
    return TilePool(
        client.get_executor(pure=False),
        WINDOW_PER_WORKER * n_threads,
        RETRY_ON_CLUSTER,
        f"Dask cluster at {client.scheduler.address} with {n_threads} threads",
        client.dashboard_link,
    )
