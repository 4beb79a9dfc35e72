"""The webserver and the daemon of a home, as two processes that end together."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

from patchworks_pipeline.home import home_environment, prepare_home

MODULE = "patchworks_pipeline.definitions"

SECONDS_TO_STOP = 20
"""Given to each process to end by itself."""


def serve(home: Path, *, host: str, port: int) -> int:
    """Run webserver and daemon until one ends or this process is interrupted.

    Parameters
    ----------
    home : Path
    host, port
        Of the webserver.

    Returns
    -------
    int
        Exit code: 0 after an interrupt, else that of the process that ended.
    """
    environment = {**os.environ, **home_environment(prepare_home(home))}
    commands = [
        [sys.executable, "-m", "dagster_webserver", "-m", MODULE, "-h", host, "-p", str(port)],
        [sys.executable, "-m", "dagster._daemon", "run", "-m", MODULE],
    ]
    print(f"Dagster UI of {home}: http://{host}:{port} (Ctrl-C ends it)", flush=True)
    processes = [subprocess.Popen(command, env=environment) for command in commands]
    # A terminal sends Ctrl-C to all three; a service manager sends SIGTERM to this one.
    previous = signal.signal(signal.SIGTERM, _interrupt)
    try:
        while all(process.poll() is None for process in processes):
            time.sleep(0.5)
        return next(p.returncode for p in processes if p.returncode is not None)
    except KeyboardInterrupt:
        return 0
    finally:
        signal.signal(signal.SIGTERM, previous)
        for process in processes:
            if process.poll() is None:
                process.send_signal(signal.SIGINT)
        for process in processes:
            try:
                process.wait(SECONDS_TO_STOP)
            except subprocess.TimeoutExpired:
                process.kill()


def _interrupt(signum: int, frame: object) -> None:
    raise KeyboardInterrupt
