"""Dask clients: which may run tiles, and a local cluster made for them.

A cluster of worker processes under a nanny keeps a function that crashes or is killed for memory
from taking the others down, and shows what goes on in its dashboard.
"""

from __future__ import annotations

import logging
import sys
from collections.abc import Callable, Iterator
from concurrent.futures import Executor, Future
from contextlib import contextmanager, suppress
from functools import cache
from typing import Any, NamedTuple, ParamSpec, TypeVar

import cloudpickle
from upath import UPath

from patchworks_core.errors import ClusterError, PlanError
from patchworks_core.machine.budget import granted_cores, granted_memory_bytes
from patchworks_core.machine.dask_processes import InProcess
from patchworks_core.machine.devices import VISIBLE_DEVICES, Gpus, devices_for
from patchworks_core.machine.limits import WorkerLimits
from patchworks_core.machine.sending import (
    AS_RESULT,
    NOT_PICKLED,
    SMALL_BYTES,
    PickledCall,
    PickledTask,
    in_file,
)
from patchworks_core.machine.sizing import MEMORY_FRACTION
from patchworks_core.tiles.numbers import whole_number

log = logging.getLogger("patchworks_core")

P = ParamSpec("P")
R = TypeVar("R")


def active_client() -> Any | None:
    """Return the Dask client that this process has made its current one, None if there is none."""
    if "distributed" not in sys.modules:
        return None
    from distributed import Client

    try:
        return Client.current()
    except ValueError:  # what Dask raises where there is none
        return None


def checked_client(client: Any) -> Any:
    """Return the Dask client that was given, or that of a local cluster.

    Raises
    ------
    ClusterError
        If it is none, or was closed.
    """
    if isinstance(client, LocalCluster):
        client = client.client
    if not (hasattr(client, "scheduler") and hasattr(client, "get_executor")):
        raise ClusterError(
            "client= is a distributed.Client, or what make_local_cluster() returned, got "
            f"{client!r}; for a cluster or an address: Client(it)"
        )
    if getattr(client, "status", None) == "closed":
        raise ClusterError(f"the Dask client {client!r} is closed; open another one")
    return client


def refuse_in_process(client: Any) -> None:
    """Raise ClusterError where the workers of a Dask client are threads of this process.

    They share the lock that a segmentation function may hold, so heartbeats stop and the cluster
    takes its workers for dead; and a function that crashes takes the run along.
    """
    address = client.scheduler.address
    if address.startswith("inproc://"):
        raise ClusterError(
            f"the Dask client at {address} has its workers in this process; start worker processes "
            "(make_local_cluster(), or cluster: {local: {processes: true}}), or give the address "
            "of a scheduler"
        )


class ClusterExecutor(Executor):
    """The workers of a Dask client.

    Parameters
    ----------
    client : distributed.Client
    limits : WorkerLimits, optional
        Of each call, which then has a process of its own beneath the Dask worker; None makes calls
        in the Dask workers themselves.
    """

    def __init__(self, client: Any, limits: WorkerLimits | None = None) -> None:
        self._client = client
        self._limits = limits
        self._executor = client.get_executor(pure=False)
        self._n_threads = int(sum(client.nthreads().values()))
        self._is_said = False

    def submit(self, fn: Callable[P, R], /, *args: P.args, **kwargs: P.kwargs) -> Future[R]:
        """Run a call on the cluster.

        It goes as its pickle: the scheduler would unpickle what is handed to it, and would then
        have to reach the stage, the image and the modules of the function.
        """
        from distributed import Future as Result

        function: Any = fn
        arguments: tuple[Any, ...] = args
        if self._limits is not None:
            function, arguments = InProcess(self._limits), (fn, *args)
        results = [argument for argument in arguments if isinstance(argument, Result)]
        values = [AS_RESULT if isinstance(a, Result) else a for a in arguments]
        try:
            call = PickledCall.of(function, values, kwargs)
        except NOT_PICKLED as error:
            failed: Future[R] = Future()
            failed.set_exception(error)
            return failed
        return self._executor.submit(call, *results)  # type: ignore[no-any-return]

    @contextmanager
    def sharing(self, task: Callable[..., Any], place: UPath | None = None) -> Iterator[Any]:
        """Give what is sent with every item in place of a task: itself where it is small.

        A large one is kept in the file at `place`. Without, it is a task of the cluster's own, on
        which those of the items depend: it goes to each worker once, and unlike scattered data it
        is there again when a worker died.
        """
        if place is not None:
            with in_file(task, place) as sent:
                yield sent
            return
        try:
            pickled = cloudpickle.dumps(task)
        except NOT_PICKLED:
            yield task  # each item then fails, and says why
            return
        if len(pickled) <= SMALL_BYTES:
            yield task
        else:
            yield self._client.submit(PickledTask, pickled, pure=False)

    def count_workers(self) -> int:
        """Return how many calls the workers that there are now run at once."""
        # Of a scheduler that does not answer, the tasks in flight will tell.
        with suppress(OSError):
            self._n_threads = int(sum(self._client.nthreads().values()))
        if self._n_threads == 0 and not self._is_said:
            log.warning(
                "the Dask cluster at %s has no worker: the call waits until one comes; Ctrl-C ends "
                "it, and what is done is kept",
                self._client.scheduler.address,
            )
        self._is_said = self._n_threads == 0
        return self._n_threads

    def shutdown(self, wait: bool = True, *, cancel_futures: bool = False) -> None:
        """Do nothing: the cluster is its owner's."""


class LocalCluster(NamedTuple):
    """A client and its cluster: a pair to unpack, or a context that gives the client.

    The context closes both at its end.
    """

    client: Any
    """`distributed.Client`."""

    cluster: Any
    """`distributed.SpecCluster`."""

    def __enter__(self) -> Any:
        return self.client

    def __exit__(self, *error: object) -> None:
        self.close()

    def close(self) -> None:
        """Stop client and workers; more than once is harmless."""
        self.client.close()
        self.cluster.close()


def make_local_cluster(
    use_gpu: bool = False,
    n_workers: int | None = None,
    threads_per_worker: int = 1,
    memory_limit: int | str | None = "auto",
    *,
    memory_bytes: int | None = None,
    gpus: Gpus = None,
    dashboard_address: str | None = "localhost:0",
) -> LocalCluster:
    """Start worker processes on this machine.

    Parameters
    ----------
    use_gpu : bool
        One worker per GPU that this process may use, each seeing its own device only; the CPU, with
        a warning, where there is none.
    n_workers : int, optional
        Processes; by default the granted cores less one, or the GPUs.
    threads_per_worker : int
        Tiles at once in each process.
    memory_limit : int, str or None
        Bytes of each worker, or text such as ``"8GB"``; ``auto`` shares `memory_bytes`; None is no
        limit. A worker that takes more is killed, and its tile fails.
    memory_bytes : int, optional
        For all workers together; by default 80 % of what was granted.
    gpus : int, or sequence of int or str, optional
        Which GPUs, as in `tile_process`; implies `use_gpu`.
    dashboard_address : str, optional
        Where the dashboard is served; port 0 is any free one, None is no dashboard.

    Returns
    -------
    LocalCluster
        ``client, cluster = make_local_cluster()``, to be closed by you; or
        ``with make_local_cluster() as client``, which closes both. ``client.dashboard_link`` is the
        address of the dashboard. While it is open, `tile_process` uses it without being told.

    Raises
    ------
    PlanError
        If there are to be more workers than GPUs, or a number is none.

    Examples
    --------
    ::

        with make_local_cluster(n_workers=4) as client:
            labels = tile_process("volume.ome.zarr", fn, client=client, write_to="labels.zarr")
    """
    from distributed import Client, Nanny, Scheduler

    devices = devices_for(use_gpu, gpus)
    if n_workers is not None:
        n_workers = whole_number("n_workers", n_workers, least=1)
    threads = whole_number("threads_per_worker", threads_per_worker, least=1)
    count = n_workers or len(devices) or max(1, granted_cores().value - 1)
    if devices and count > len(devices):
        raise PlanError(
            f"a GPU has one worker, got n_workers={count} for {len(devices)} GPUs; leave "
            "n_workers out"
        )
    limit = _limit_of_each(memory_limit, memory_bytes, count)
    workers = {
        number: {
            "cls": Nanny,
            "options": {
                "nthreads": threads,
                "memory_limit": limit,
                "silence_logs": logging.WARNING,
                "env": {VISIBLE_DEVICES: devices[number].uuid} if devices else {},
            },
        }
        for number in range(count)
    }
    # A scheduler without a dashboard serves its health all the same: on any free port.
    address = dashboard_address or "localhost:0"
    options: dict[str, Any] = {
        "dashboard_address": address,
        "dashboard": dashboard_address is not None,
    }
    # A tile whose worker died is blamed at once, and then tried alone; by itself Dask kills three
    # more workers first.
    options["allowed_failures"] = 0
    scheduler = {"cls": Scheduler, "options": {"host": "127.0.0.1", "port": 0, **options}}
    cluster = _lasting_cluster()(workers=workers, scheduler=scheduler, silence_logs=logging.WARNING)
    try:
        client = Client(cluster)
        client.wait_for_workers(count)
    except BaseException:
        cluster.close()
        raise
    return LocalCluster(client, cluster)


@cache
def _lasting_cluster() -> type:
    """Return a cluster that leaves a worker that died to its nanny, however long that takes.

    Dask's own gives up one that is not there again within 15 s, which starting an interpreter takes
    where a machine is busy; with the last of them, calls would wait for ever.
    """
    from distributed import SpecCluster
    from distributed.deploy.cluster import Cluster

    class LastingCluster(SpecCluster):
        def _update_worker_status(self, op: str, msg: Any) -> None:
            Cluster._update_worker_status(self, op, msg)

    return LastingCluster


def _limit_of_each(
    memory_limit: int | str | None, memory_bytes: int | None, n_workers: int
) -> int | None:
    """Return the bytes that one worker may take."""
    if memory_limit is None:
        return None
    if memory_limit == "auto":
        total = int(MEMORY_FRACTION * granted_memory_bytes().value)
        if memory_bytes is not None:
            total = whole_number("memory_bytes", memory_bytes, least=1)
        return total // n_workers
    if memory_bytes is not None:
        raise PlanError(
            f"memory_limit is of each worker and memory_bytes of all, got {memory_limit!r} and "
            f"{memory_bytes!r}; give one of them"
        )
    if isinstance(memory_limit, str):
        from dask.utils import parse_bytes

        try:
            return int(parse_bytes(memory_limit))
        except ValueError:
            raise PlanError(
                f"memory_limit is a number of bytes or text such as '8GB', got {memory_limit!r}"
            ) from None
    return whole_number("memory_limit", memory_limit, least=1)
