"""Dask clients: which may run tiles, and a local cluster made for them.

A cluster of worker processes under a nanny keeps a function that crashes or is killed for memory
from taking the others down, and shows what goes on in its dashboard.
"""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from concurrent.futures import Executor, Future
from contextlib import contextmanager
from typing import Any, ParamSpec, TypeVar

import cloudpickle

from patchworks_core.errors import PlanError
from patchworks_core.machine.budget import granted_cores, granted_memory_bytes
from patchworks_core.machine.devices import VISIBLE_DEVICES, granted_devices
from patchworks_core.machine.sending import NOT_PICKLED, SMALL_BYTES, PickledTask
from patchworks_core.machine.sizing import MEMORY_FRACTION

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


def refuse_in_process(client: Any) -> None:
    """Raise PlanError where the workers of a Dask client are threads of this process.

    They share the lock that a segmentation function may hold, so heartbeats stop and the cluster
    takes its workers for dead; and a function that crashes takes the run along.
    """
    address = client.scheduler.address
    if address.startswith("inproc://"):
        raise PlanError(
            f"the Dask client at {address} has its workers in this process; start worker processes "
            "(make_local_cluster(), or cluster: {local: {processes: true}}), or give the address "
            "of a scheduler"
        )


class ClusterExecutor(Executor):
    """The workers of a Dask client."""

    def __init__(self, client: Any) -> None:
        self._client = client
        self._executor = client.get_executor(pure=False)

    def submit(self, fn: Callable[P, R], /, *args: P.args, **kwargs: P.kwargs) -> Future[R]:
        """Run a call on the cluster."""
        return self._executor.submit(fn, *args, **kwargs)  # type: ignore[no-any-return]

    @contextmanager
    def sharing(self, task: Callable[..., Any]) -> Iterator[Any]:
        """Give what is sent with every item in place of a task: itself where it is small.

        A large one is a task of the cluster's own, on which those of the items depend: it goes to
        each worker once, and unlike scattered data it is there again when a worker died.
        """
        try:
            pickled = cloudpickle.dumps(task)
        except NOT_PICKLED:
            yield task  # each item then fails, and says why
            return
        if len(pickled) <= SMALL_BYTES:
            yield task
        else:
            yield self._client.submit(PickledTask, pickled, pure=False)

    def shutdown(self, wait: bool = True, *, cancel_futures: bool = False) -> None:
        """Do nothing: the cluster is its owner's."""


@contextmanager
def make_local_cluster(
    use_gpu: bool = False,
    n_workers: int | None = None,
    *,
    threads_per_worker: int = 1,
    memory_bytes: int | None = None,
    dashboard_address: str | None = "localhost:0",
) -> Iterator[Any]:
    """Start worker processes on this machine, and stop them at the end.

    Parameters
    ----------
    use_gpu : bool
        One worker per GPU that this process may use, each seeing its own device only.
    n_workers : int, optional
        Processes; by default the granted cores less one, or the GPUs.
    threads_per_worker : int
        Tiles at once in each process.
    memory_bytes : int, optional
        For all workers together; by default 80 % of what was granted. A worker that takes more
        than its share is killed, and its tile fails.
    dashboard_address : str, optional
        Where the dashboard is served; port 0 is any free one, None is no dashboard.

    Yields
    ------
    distributed.Client
        ``client.dashboard_link`` is the address of the dashboard. While it is open, `tile_process`
        uses it without being told.

    Raises
    ------
    PlanError
        If GPUs are asked for and there is none, or more workers than GPUs.

    Examples
    --------
    ::

        with make_local_cluster(n_workers=4) as client:
            labels = tile_process("volume.ome.zarr", fn, client=client, write_to="labels.zarr")
    """
    from distributed import Client, Nanny, Scheduler, SpecCluster

    devices = granted_devices() if use_gpu else ()
    if use_gpu and not devices:
        raise PlanError(
            "a cluster with use_gpu=True needs a GPU, and none is visible to this process; check "
            f"the driver and {VISIBLE_DEVICES}, or use_gpu=False"
        )
    count = n_workers or len(devices) or max(1, granted_cores().value - 1)
    if use_gpu and count > len(devices):
        raise PlanError(
            f"a GPU has one worker, got n_workers={count} for {len(devices)} GPUs; leave "
            "n_workers out"
        )
    total = memory_bytes or int(MEMORY_FRACTION * granted_memory_bytes().value)
    workers = {
        number: {
            "cls": Nanny,
            "options": {
                "nthreads": threads_per_worker,
                "memory_limit": total // count,
                "env": {VISIBLE_DEVICES: devices[number].uuid} if devices else {},
            },
        }
        for number in range(count)
    }
    # A scheduler without a dashboard serves its health all the same: on any free port.
    address = dashboard_address or "localhost:0"
    options = {"dashboard_address": address, "dashboard": dashboard_address is not None}
    scheduler = {"cls": Scheduler, "options": {"host": "127.0.0.1", "port": 0, **options}}
    with SpecCluster(workers=workers, scheduler=scheduler) as cluster, Client(cluster) as client:
        client.wait_for_workers(count)
        yield client
