"""The pool that tasks run on, and how a library call chooses it.

`Pool` is workers that are up, with how many tasks they get at once, which faults are tried again,
and who is told of progress. What runs over tiles takes one. `Compute` opens one for a library call:

1. A Dask client that was given, or is active, takes all tiles; with ``workers="processes"``, or
   with limits, each of its threads has a process beneath it that can be ended.
2. With ``use_gpu`` there is one Dask worker per GPU with a process beneath it, and a dashboard.
3. Otherwise the caller's number of workers, or as many as cores and memory allow, going by what the
   first tile was seen to take.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Executor
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any, Generic, TypeVar

import numpy as np
from upath import UPath

from patchworks_core.errors import ClusterError, PlanError
from patchworks_core.machine.budget import (
    Limit,
    address_space_limit,
    block_bytes,
    decide_workers,
    granted_cores,
    granted_memory_bytes,
)
from patchworks_core.machine.dask_clients import (
    ClusterExecutor,
    active_client,
    checked_client,
    make_local_cluster,
    refuse_in_process,
)
from patchworks_core.machine.devices import Gpus, granted_devices
from patchworks_core.machine.engine import (
    WINDOW_PER_WORKER,
    Outcome,
    in_order,
    map_tiles,
    results,
)
from patchworks_core.machine.faults import NO_RETRY, RetryPolicy
from patchworks_core.machine.limits import AUTO_LIMITS, WorkerLimits
from patchworks_core.machine.progress import Progress, no_progress
from patchworks_core.machine.sizing import MEMORY_FRACTION
from patchworks_core.machine.workers import WorkerKind, Workers
from patchworks_core.tiles.grid import TileGrid

Item = TypeVar("Item")
Result = TypeVar("Result")

RETRY = RetryPolicy(other_attempts=1)
"""A script is told of an unknown error at once; faults that may pass are tried again."""

ONE_MORE_WORKER = replace(NO_RETRY, killed_attempts=2)
"""Steps after staging call no function of others: a worker that dies at one was ended by chance."""

BATCHES_PER_WORKER = 4
"""At least: where the last one is a long one, the others wait for a quarter of the work at most."""

MOST_BATCHES = 50_000
"""Of one step: a task costs the driver of a cluster some 2 ms, which are two minutes then."""

WORKER_PROCESS_BYTES = 200 << 20
"""What a worker process holds before its first tile: the interpreter, NumPy, SciPy, Zarr."""


THREAD_ADDRESS_BYTES = 136 << 20
"""Address space that glibc sets aside for a thread, where that is limited: 8 MB of stack, and an
arena of 64 MB that is mapped at twice its size to be aligned."""


@dataclass(frozen=True, slots=True)
class EachOf(Generic[Item, Result]):
    """A task on a batch of items, one after the other."""

    task: Callable[[Item], Result]

    def __call__(self, items: Sequence[Item]) -> list[Result]:
        """Run the task on each item."""
        return [self.task(item) for item in items]


@dataclass(frozen=True, slots=True)
class Pool:
    """Workers that are up, how tasks are given to them, and who is told what they did."""

    executor: Executor
    """Runs the tasks."""

    window: int = 1
    """Tasks in flight at most; at first, where workers come and go."""

    retry: RetryPolicy = NO_RETRY
    """Which faults are tried again."""

    progress: Progress = no_progress
    """Told by `map` how far a step is."""

    reason: str = ""
    """Why so many workers, in words."""

    dashboard: str | None = None
    """Address of the cluster's dashboard."""

    @classmethod
    @contextmanager
    def open(cls, workers: Workers, progress: Progress | None = None) -> Iterator[Pool]:
        """Start workers of this machine, and stop them at the end.

        Faults are not tried again, but for what a worker was at that died.
        """
        window = WINDOW_PER_WORKER * workers.count
        with workers.open() as executor:
            yield cls(executor, window, retry=ONE_MORE_WORKER, progress=progress or no_progress)

    @classmethod
    def of_cluster(
        cls, client: Any, retry: RetryPolicy, limits: WorkerLimits | None = None
    ) -> Pool:
        """Return the pool of a Dask client's workers.

        Parameters
        ----------
        client : distributed.Client
        retry : RetryPolicy
        limits : WorkerLimits, optional
            Of each task, in a process beneath the Dask worker; None is in the Dask worker itself.

        Raises
        ------
        ClusterError
            If there are no workers, or they are threads of this process.
        """
        refuse_in_process(client)
        address, executor = client.scheduler.address, ClusterExecutor(client, limits)
        n_threads = executor.count_workers()
        if not n_threads:
            raise ClusterError(
                f"the Dask cluster at {address} has no workers; start some, or wait for them with "
                "client.wait_for_workers(1)"
            )
        own = "" if limits is None else ", a process beneath each"
        return cls(
            executor,
            WINDOW_PER_WORKER * n_threads,
            # Dask tries a tile on several workers before it blames it, but a tile that shared a
            # dying worker is blamed as well: `retry` tries it once more, alone.
            retry,
            reason=f"Dask cluster at {address} with {n_threads} threads at first{own}",
            dashboard=client.dashboard_link,
        )

    @property
    def n_workers(self) -> int:
        """Tasks that run at once; at first, where workers come and go."""
        return max(1, self.window // WINDOW_PER_WORKER)

    def for_small_steps(self) -> Pool:
        """Return the pool for tasks that are much Python on few pixels.

        Threads of one process run them one at a time: two would wait for the interpreter's lock
        most of the time, and hand it over thousands of times.
        """
        return replace(self, window=1) if getattr(self.executor, "runs_here", False) else self

    def outcomes(
        self,
        task: Callable[[Item], Result],
        items: Iterable[Item],
        *,
        place: UPath | None = None,
    ) -> Iterator[Outcome[Item, Result]]:
        """Run a task on every item; yield what became of each, as they complete.

        Parameters
        ----------
        task : callable
            Called with one item in a worker; must pickle where workers are processes.
        items : iterable
            Taken one by one, as there is room.
        place : UPath, optional
            As in `map_tiles`.
        """
        return map_tiles(
            task,
            items,
            executor=self.executor,
            window=self.window,
            retry=self.retry,
            place=place,
        )

    def batches(self, items: Sequence[Item], *, at_most: int) -> list[Sequence[Item]]:
        """Cut items into batches, of which each is given to a worker as one task.

        Parameters
        ----------
        items : sequence
        at_most : int
            Items of a batch; fewer where workers would go without, and more where there would be
            more than `MOST_BATCHES`.
        """
        fitting = max(at_most, -(-len(items) // MOST_BATCHES))
        n = min(fitting, len(items) // (BATCHES_PER_WORKER * self.n_workers))
        return [items[i : i + max(1, n)] for i in range(0, len(items), max(1, n))]

    def map(
        self,
        task: Callable[[Item], Result],
        items: Iterable[Item],
        *,
        step: str,
        n: int | None = None,
        doing: str | None = None,
        is_ordered: bool = False,
        place: UPath | None = None,
    ) -> Iterator[Result]:
        """Run a task on every item; yield what it returns, and tell of progress.

        Parameters
        ----------
        task, items
            As in `outcomes`.
        step : str
            What is done, as progress names it.
        n : int, optional
            How many items there are; None tells nobody of progress.
        doing : str, optional
            What is done, as an error names it; `step` by default.
        is_ordered : bool
            Yield in the order of the items, which are then hashable and no two the same, instead
            of as they complete.
        place : UPath, optional
            As in `outcomes`.

        Raises
        ------
        RuntimeError
            At the first failure, with the worker's traceback.
        """
        if is_ordered:
            items = list(items)
        outcomes: Iterable[Outcome[Item, Result]] = self.outcomes(task, items, place=place)
        if is_ordered:
            outcomes = in_order(outcomes, items)
        for done, value in enumerate(results(outcomes, doing=doing or step), start=1):
            if n is not None:
                self.progress(step, done, n)
            yield value


@dataclass(frozen=True, slots=True)
class Compute:
    """What the tiles of one call may run on."""

    max_workers: int | None = None
    """Tiles at once; None is as many as cores and memory allow."""

    kind: WorkerKind = "threads"
    """What works where there is neither a client nor a GPU."""

    use_gpu: bool = False
    """One worker process per GPU; the CPU where there is none."""

    gpus: Gpus = None
    """Which GPUs; None is all that this process may use. Naming some implies `use_gpu`."""

    client: Any = None
    """Dask client; None is the active one, if there is one."""

    limits: WorkerLimits = AUTO_LIMITS
    """Of each tile, where workers are processes; on Dask, a tile then has one of its own too."""

    only_here: bool = False
    """True takes no Dask client, not even the active one."""

    memory: Limit | None = None
    """Granted memory as it was when tiles were planned, so that what was planned is not refused by
    a later look; None looks when the pool opens."""

    def __post_init__(self) -> None:
        Workers(1 if self.max_workers is None else self.max_workers, self.kind)
        if self.limits.is_asked_for and self.kind == "threads" and not self._is_on_dask:
            raise PlanError(
                "tile_timeout and worker_memory are kept by ending a worker process, and tiles run "
                "in threads; pass workers='processes' (--worker-kind processes)"
            )

    @property
    def is_decided(self) -> bool:
        """True where what a tile takes would not change how many are worked on at once."""
        return self.max_workers is not None or self._is_on_dask

    @property
    def is_in_process(self) -> bool:
        """True where tiles run in threads of this process, and share its memory."""
        return self.kind == "threads" and not self._is_on_dask

    @property
    def _is_on_dask(self) -> bool:
        return self._client() is not None or self._is_on_gpu

    @property
    def _is_on_gpu(self) -> bool:
        return self.gpus is not None or (self.use_gpu and bool(granted_devices()))

    @property
    def bytes_beside_tiles(self) -> int:
        """Memory that each worker takes whatever its tile is."""
        if self.kind == "processes":
            return WORKER_PROCESS_BYTES
        return 0 if address_space_limit() is None else THREAD_ADDRESS_BYTES

    def with_memory(self) -> Compute:
        """Return this with the granted memory looked at, once for the whole call."""
        return self if self.memory else replace(self, memory=granted_memory_bytes())

    @property
    def _limits_of_process(self) -> WorkerLimits | None:
        """Limits of tiles; None where nobody asked for processes."""
        is_asked_for = self.kind == "processes" or self.limits.is_asked_for
        return self.limits if is_asked_for else None

    def _client(self) -> Any | None:
        """Return the client to use, which has its own number of workers."""
        if self.client is not None or self.only_here:
            return self.client
        return active_client()

    def alone(self) -> Compute:
        """Return the one worker that shows what a tile takes."""
        kind: WorkerKind = "threads" if self._limits_of_process is None else "processes"
        return Compute(1, kind, limits=self.limits, only_here=True, memory=self.memory)

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
            What a tile was seen to take; 0 where none was, and only what is certain counts.

        Raises
        ------
        PlanError
            If not even one tile fits the memory, or a client's workers are in this process.
        """
        client = self._client()
        if client is not None:
            pool = Pool.of_cluster(checked_client(client), RETRY, self._limits_of_process)
            if self.max_workers is not None:
                reason = f"{pool.reason}, whatever max_workers={self.max_workers} says"
                pool = replace(pool, reason=reason)
            yield pool
            return
        if self._is_on_gpu:
            with make_local_cluster(True, self.max_workers, gpus=self.gpus) as local:
                # Beneath the Dask worker, as only a process can be ended that lost its GPU.
                yield Pool.of_cluster(local, RETRY, self.limits)
            return
        certain = block_bytes(grid, dtype, function_bytes_per_pixel=0)
        limit = self.max_workers
        memory = self.memory or granted_memory_bytes()
        # What ran once alone runs again alone, even where it took more than is to be used.
        usable = int(MEMORY_FRACTION * memory.value) - self.bytes_beside_tiles
        decision = decide_workers(
            max(certain, min(measured_bytes, usable)) + self.bytes_beside_tiles,
            cores=granted_cores() if limit is None else Limit(limit, "the caller"),
            memory=memory,
            memory_fraction=MEMORY_FRACTION,
            at_most=limit,
        )
        count, reason = decision.count, decision.reason
        if limit is not None and count < limit:
            warnings.warn(
                f"max_workers={limit} would not fit: {reason}; give smaller tiles for more workers",
                stacklevel=8,
            )
        with Workers(count, self.kind, limits=self.limits).open() as executor:
            window = WINDOW_PER_WORKER * count
            yield Pool(executor, window, RETRY, reason=f"{reason} ({self.kind})")
