"""How much of the machine the runs of a deployment take: workers, and what a tile may take."""

from typing import Any, ClassVar

import numpy as np
from pydantic import ValidationInfo, field_validator

from patchworks_core.errors import PlanError
from patchworks_core.machine.budget import (
    WorkerDecision,
    block_bytes,
    decide_workers,
    granted_cores,
    granted_memory_bytes,
)
from patchworks_core.machine.limits import LEAST_TIMEOUT, MEMORY_RULE, WorkerLimits, bytes_of
from patchworks_core.machine.pools import WORKER_PROCESS_BYTES
from patchworks_core.machine.workers import WorkerKind, Workers
from patchworks_core.stage.plan import Plan
from patchworks_core.tiles.grid import TileGrid
from patchworks_pipeline.resources import built_in
from patchworks_pipeline.resources.settings import Deployed, setting

NO_LIMIT = "none"
"""Says that workers may take any memory."""


class ComputeBudget(Deployed):
    """How much of the machine a run takes; SLURM, cgroup and affinity limits are honoured."""

    section: ClassVar[str] = "budget"

    memory_fraction: float = setting(
        0.8, gt=0, le=1, description="Share of the granted memory to use, 0 to 1."
    )
    cores_left_free: int = setting(1, ge=0, description="Granted cores to leave to others.")
    workers: int = setting(0, ge=0, description="Tiles at once; 0 decides from the budget.")
    kind: built_in.TileWorkerKind = setting(
        built_in.TILE_WORKER_KIND,
        description="Where segmentation functions run: processes can be ended when one hangs, "
        "crashes or takes too much memory; threads start at once; auto is processes for all "
        "functions but those that declare threads.",
    )

    tile_timeout: float | None = setting(
        None,
        ge=0,
        description="Seconds after which a tile fails and its worker process is ended, "
        f"{LEAST_TIMEOUT} or more; 0 is no limit. Left out, it goes by the tiles that passed: 50 "
        "times the slowest, at least half an hour, and six hours while none has passed.",
    )
    worker_memory: str = setting(
        "auto",
        description="What a worker process may take, such as 8GB or a number of bytes, before it "
        f"is ended and its tile fails; auto is 95 % of the granted memory, {NO_LIMIT} is no limit.",
    )

    @field_validator("worker_memory", mode="before")
    @classmethod
    def _memory(cls, amount: Any) -> Any:
        """Take a number of bytes as it is written, and refuse what is no amount of memory."""
        if amount in ("auto", NO_LIMIT):
            return amount
        try:
            bytes_of("worker_memory", amount)
        except PlanError:
            raise ValueError(f"{MEMORY_RULE}, auto or {NO_LIMIT}") from None
        return str(amount)

    @field_validator("tile_timeout")
    @classmethod
    def _seconds(cls, seconds: float | None) -> float | None:
        """Refuse a limit that has passed before anybody looks."""
        if seconds and seconds < LEAST_TIMEOUT:
            raise ValueError(f"must be {LEAST_TIMEOUT} or more seconds, or 0 for no limit")
        return seconds

    @field_validator("tile_timeout", "worker_memory")
    @classmethod
    def _has_processes(cls, limit: Any, info: ValidationInfo) -> Any:
        """Refuse a limit that nothing would keep: threads cannot be ended."""
        if info.data.get("kind") == "threads" and limit not in (None, 0, "auto", NO_LIMIT):
            raise ValueError(
                "is kept by ending a worker process, and budget.kind is 'threads', which cannot be "
                "ended; leave out one of the two"
            )
        return limit

    def decide(self, plan: Plan, *, measured_bytes: int = 0) -> WorkerDecision:
        """Decide how many tile blocks of a plan are worked on at once, and say why.

        `measured_bytes` is what the first tile took; it counts where it is more than expected.
        """
        return self.decide_for(plan.grid, np.dtype(plan.image.dtype), measured_bytes=measured_bytes)

    def kind_for(self, declared: WorkerKind = built_in.WORKER_KIND) -> WorkerKind:
        """Return the kind of workers: the one that was chosen, or what a function declares."""
        return declared if self.kind == "auto" else self.kind

    def decide_for(
        self,
        grid: TileGrid,
        dtype: np.dtype[Any],
        *,
        measured_bytes: int = 0,
        kind: WorkerKind = "threads",
    ) -> WorkerDecision:
        """Decide as `decide` does, for tiles, the type of their pixels and the kind of workers."""
        expected = block_bytes(grid, dtype)
        beside = WORKER_PROCESS_BYTES if kind == "processes" else 0
        return decide_workers(
            max(expected, measured_bytes) + beside,
            cores=granted_cores(),
            memory=granted_memory_bytes(),
            memory_fraction=self.memory_fraction,
            cores_left_free=self.cores_left_free,
            at_most=self.workers or None,
        )

    def open(self, count: int, declared: WorkerKind = built_in.WORKER_KIND) -> Workers:
        """Return that many workers of the chosen kind, or of that which a function declares."""
        return Workers(count, self.kind_for(declared), limits=self.limits())

    def limits(self) -> WorkerLimits:
        """Return what a tile may take in a worker process."""
        timeout: Any = "auto" if self.tile_timeout is None else self.tile_timeout or None
        return WorkerLimits(timeout, None if self.worker_memory == NO_LIMIT else self.worker_memory)
