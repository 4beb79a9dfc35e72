"""How runs are started: Dagster's default, which here also sees that a run's process is gone.

The default launcher cannot tell, so after a power cut a run would go on for ever in the books: its
image would wait for it, and so would all others for the pool it holds.
"""

import json
import socket

import dagster as dg
from dagster._core.launcher.base import CheckRunHealthResult, WorkerStatus
from dagster._core.launcher.default_run_launcher import DefaultRunLauncher
from dagster._core.storage.tags import GRPC_INFO_TAG

from patchworks_pipeline.instance.run_processes import why_gone

SECONDS_TO_ANSWER = 5


class WatchedRunLauncher(DefaultRunLauncher):
    """Starts runs below a code server on this machine, and looks whether that still listens."""

    @property
    def supports_check_run_worker_health(self) -> bool:
        """True: run monitoring asks."""
        return True

    def check_run_worker_health(self, run: dg.DagsterRun) -> CheckRunHealthResult:
        """Tell whether the code server or the command that a run was started by is there.

        A code server outlives its runs, also when the daemon was killed, and reports one whose
        process ends before its time.
        """
        why = why_gone(run)
        if why is not None:
            return CheckRunHealthResult(WorkerStatus.FAILED, why)
        path = json.loads(run.tags.get(GRPC_INFO_TAG, "{}")).get("socket")
        if path is None:
            return CheckRunHealthResult(WorkerStatus.RUNNING)
        with socket.socket(socket.AF_UNIX) as caller:
            caller.settimeout(SECONDS_TO_ANSWER)
            try:
                caller.connect(path)
            except (FileNotFoundError, ConnectionRefusedError):
                return CheckRunHealthResult(WorkerStatus.FAILED, "its code server is gone")
            except TimeoutError:
                pass  # busy is not gone
        return CheckRunHealthResult(WorkerStatus.RUNNING)
