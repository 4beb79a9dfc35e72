"""Runs of jobs in this process, each in the books as if it had been launched.

The command line works so, and a run that takes a batch of small images: a process of its own costs
seconds, more than a small image takes.
"""

import re
import signal
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import Any
from uuid import uuid4

import dagster as dg

from patchworks_core.errors import PlanError, StorageError
from patchworks_core.machine.interrupts import noting_signals, raise_for_signal
from patchworks_pipeline.assets.tile_events import STOPPED
from patchworks_pipeline.dagster_insides import CAPTURE, are_there
from patchworks_pipeline.image_faults import error_of_step, with_way_out
from patchworks_pipeline.instance.heartbeats import beating
from patchworks_pipeline.instance.run_processes import tags_of_process
from patchworks_pipeline.instance.slots import NoSlotError, take_pool_slot
from patchworks_pipeline.partitions import IMAGE

_ERRNO = re.compile(r"\[Errno \d+\] ")
"""How Python begins what the operating system said."""


@dataclass(frozen=True, slots=True)
class JobError:
    """Why a job failed."""

    message: str
    is_of_tiles: bool = False
    """True where the function failed on tiles, and the image's folder says on which."""

    stopped: str | None = None
    """Why tiles were not tried: too many others had failed."""

    error_type: str = ""
    """Name of the class of what a step raised."""


@dataclass(frozen=True, slots=True)
class InProcess:
    """What runs of jobs in this process have in common."""

    instance: dg.DagsterInstance
    say: Callable[[str], object]
    """Is told of a wait for a slot of a pool."""

    tags: Mapping[str, str] | None = None
    """Of every run."""

    captures: bool = True
    """False where the process captures what is printed already: Dagster starts four processes for
    that in every run."""

    def run(
        self,
        job: dg.JobDefinition,
        image: str,
        *,
        resources: Mapping[str, Any] | None = None,
        partition_key: str | None = None,
        tags: Mapping[str, str] | None = None,
        ops: Mapping[str, Any] | None = None,
        assets: Sequence[dg.AssetKey] | None = None,
    ) -> tuple[str, JobError | None]:
        """Run a job for an image; return the id of the run, and why it failed or None."""
        run_id = str(uuid4())
        every = {**(self.tags or {}), **(tags or {}), **tags_of_process(run_id), IMAGE: image}
        try:
            for step, pool in _pools_of(job).items():
                run = dg.DagsterRun(job_name=job.name, run_id=run_id, tags=every)
                take_pool_slot(self.instance, pool, run, step, say=self.say)
        except NoSlotError as none_free:
            return run_id, JobError(str(none_free))
        with (
            (_captured_deaf if self.captures else _without_capture)(self.instance),
            beating(self.instance, run_id),
            noting_signals() as last_signal,
        ):
            result = job.execute_in_process(
                instance=self.instance,
                run_id=run_id,
                partition_key=partition_key,
                tags=every,
                run_config={
                    "resources": dict(resources or {}),
                    "ops": dict(ops or {}),
                    # The instance keeps every event; the terminal shows progress bars instead.
                    "loggers": {"console": {"config": {"log_level": "CRITICAL"}}},
                },
                asset_selection=assets,
                raise_on_error=False,
            )
            number = last_signal()
        if number is not None:  # Dagster makes a failure of it, or goes on
            raise_for_signal(number)
        return run_id, None if result.success else _error_of(result)


@contextmanager
def _without_capture(instance: dg.DagsterInstance) -> Iterator[None]:
    """Let runs of this process capture nothing of what is printed."""
    if not are_there(CAPTURE, instance):
        yield
        return
    from dagster._core.storage.noop_compute_log_manager import NoOpComputeLogManager

    manager = instance.compute_log_manager
    instance._compute_log_manager = NoOpComputeLogManager()
    try:
        yield
    finally:
        instance._compute_log_manager = manager


@contextmanager
def _captured_deaf(instance: dg.DagsterInstance) -> Iterator[None]:
    """Keep Ctrl-C from the processes that capture what is printed: each would show a traceback.

    A process inherits which signals are blocked; those of this one arrive as soon as it is begun.
    """
    manager = instance.compute_log_manager
    if not hasattr(signal, "pthread_sigmask"):
        yield
        return
    capture_logs = manager.capture_logs

    @contextmanager
    def deaf(*args: Any, **options: Any) -> Iterator[Any]:
        with ExitStack() as stack:
            before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
            try:
                captured = stack.enter_context(capture_logs(*args, **options))
            finally:
                signal.pthread_sigmask(signal.SIG_SETMASK, before)
            yield captured

    manager.capture_logs = deaf  # type: ignore[method-assign]
    try:
        yield
    finally:
        del manager.capture_logs


def _error_of(result: dg.ExecuteInProcessResult) -> JobError:
    """Return why a run failed."""
    job = result.job_def.name
    failures = [event for event in result.all_events if event.is_step_failure]
    if not failures:
        return JobError(f"job {job!r} failed; see run {result.run_id} in the UI")
    data = failures[0].step_failure_data
    of_tiles = data.user_failure_data
    if of_tiles is not None and of_tiles.description:
        stopped = of_tiles.metadata.get(STOPPED)
        words = None if stopped is None else str(stopped.value)
        return JobError(str(of_tiles.description), is_of_tiles=True, stopped=words)
    error = error_of_step(data)
    if error is None:
        return JobError(f"job {job!r} failed")
    # Dagster writes the class with its modules, which say nothing to a person.
    name, separator, text = error.message.strip().partition(": ")
    text = text.partition("\n[SQL:")[0]
    name = name.rpartition(".")[2]
    if (of_system := _ERRNO.match(text)) or name == StorageError.__name__:
        words = text[of_system.end() :] if of_system else text
        words = words[:1].lower() + words[1:]
        return JobError(f"{failures[0].step_key} failed: {with_way_out(words)}", error_type=name)
    # What was refused is said in its own words; of all else the class says where to look.
    before = "" if name == PlanError.__name__ else f"{name}{separator}"
    return JobError(f"{before}{with_way_out(text)}", error_type=name)


def _pools_of(job: dg.JobDefinition) -> dict[str, str]:
    """Return the pool of each step of a job that asks for a slot of one."""
    nodes = {node.name: node.definition for node in job.nodes}
    return {
        name: node.pool
        for name, node in nodes.items()
        if isinstance(node, dg.OpDefinition) and node.pool is not None
    }
