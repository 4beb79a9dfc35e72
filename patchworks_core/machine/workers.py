"""Workers: the executors that tiles run on, started and stopped in one place.

Threads share this process. Processes are for functions that hold the GIL, that may die, or that
each need a GPU of their own. Any other `concurrent.futures.Executor`, such as a Dask client's, can
be given to the engine directly.
"""

from __future__ import annotations

from collections.abc import Iterator
from concurrent.futures import Executor
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Literal

from patchworks_core.errors import PlanError
from patchworks_core.machine.executors import ProcessPool, ThreadPool
from patchworks_core.machine.interrupts import is_interruption
from patchworks_core.machine.limits import AUTO_LIMITS, WorkerLimits
from patchworks_core.tiles.numbers import whole_number

WorkerKind = Literal["threads", "processes"]


@dataclass(frozen=True, slots=True)
class Workers:
    """How many tasks run at once, and in what."""

    count: int = 1
    """Tasks at once."""

    kind: WorkerKind = "threads"
    """``threads`` or ``processes``."""

    slots: tuple[str, ...] = ()
    """UUID of the GPU behind each slot; each worker process is bound to one. Empty is no GPU."""

    limits: WorkerLimits = AUTO_LIMITS
    """Of each task, where workers are processes."""

    def __post_init__(self) -> None:
        whole_number("the number of workers", self.count, least=1)
        if self.kind not in ("threads", "processes"):
            raise PlanError(f"workers must be 'threads' or 'processes', got {self.kind!r}")
        if self.slots and (self.kind != "processes" or self.count > len(self.slots)):
            raise PlanError(
                f"workers on GPUs must be processes, at most one per slot, got {self.count} "
                f"{self.kind} for {len(self.slots)} slots"
            )

    @contextmanager
    def open(self) -> Iterator[Executor]:
        """Start the workers, and stop them at the end; tasks not yet started are dropped."""
        workers = (
            ThreadPool(self.count)
            if self.kind == "threads"
            else ProcessPool(self.count, self.slots, self.limits)
        )
        try:
            yield workers
        except BaseException as error:
            if is_interruption(error):
                workers.abandon()
            raise
        finally:
            workers.shutdown()
