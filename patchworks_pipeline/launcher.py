"""How runs are started: Dagster's default, which here also sees that a run's process is gone.

The default launcher cannot tell, so after a power cut a run would go on for ever in the books: its
image would wait for it, and so would all others for the pool it holds.
"""

from typing import TYPE_CHECKING, Any

import dagster as dg

from patchworks_pipeline.dagster_insides import LAUNCHER, are_there
from patchworks_pipeline.instance.heartbeats import Heartbeats
from patchworks_pipeline.instance.run_processes import (
    HOST,
    RUN,
    is_listening,
    this_host,
    why_gone,
)

if TYPE_CHECKING:
    from dagster._core.launcher.base import CheckRunHealthResult, LaunchRunContext


class WatchedRunLauncher(dg.DefaultRunLauncher):
    """Starts runs below a code server on this machine, and looks whether that still listens."""

    def __init__(self, *arguments: Any, **options: Any) -> None:
        super().__init__(*arguments, **options)
        self._heartbeats = Heartbeats()
        self._can_look = are_there(LAUNCHER)

    @property
    def supports_check_run_worker_health(self) -> bool:
        """True, and run monitoring asks, where Dagster has what the answer is made of."""
        return self._can_look

    def launch_run(self, context: "LaunchRunContext") -> None:
        """Start a run, and note on which host: only there can its process be looked for."""
        if self._can_look:
            run_id = context.dagster_run.run_id
            self._instance.add_run_tags(run_id, {HOST: this_host(), RUN: run_id})
        super().launch_run(context)

    def check_run_worker_health(self, run: dg.DagsterRun) -> "CheckRunHealthResult":
        """Tell whether the code server or the command that a run was started by is there.

        A code server outlives its runs, also when the daemon was killed, and reports one whose
        process ends before its time.
        """
        from dagster._core.launcher.base import CheckRunHealthResult, WorkerStatus

        why = why_gone(self._instance, run)
        is_of_here = run.tags.get(HOST, this_host()) == this_host()
        if why is None and not is_of_here:
            why = self._heartbeats.why_gone(self._instance, run)
        if why is None and is_of_here and not is_listening(run):
            why = "its code server is gone"
        status = WorkerStatus.RUNNING if why is None else WorkerStatus.FAILED
        return CheckRunHealthResult(status, why)
