"""The webserver and the daemon of a home, as two processes that end together."""

import os
import signal
import socket
import subprocess
import sys
import time
from functools import partial
from pathlib import Path

import psutil

from patchworks_core.errors import PlanError
from patchworks_pipeline.automation.alerts import ADDRESS_VARIABLE
from patchworks_pipeline.cli.exit_codes import OTHER_FAILURE
from patchworks_pipeline.cli.terminal import errors, say, say_error
from patchworks_pipeline.image_faults import words_of
from patchworks_pipeline.instance.home import home_environment, prepare_home
from patchworks_pipeline.instance.run_processes import open_instance
from patchworks_pipeline.resources.resources import AUTOMATION_VARIABLE, Automation

MODULE = "patchworks_pipeline.definitions"

NAMES = ("webserver", "daemon")

SECONDS_TO_STOP = 10
"""Given to processes to end when they are told to."""

SECONDS_TO_FOLLOW = 2
"""Given to what they started to follow by itself."""


def serve(home: Path, *, host: str, port: int, automation: bool = True) -> int:
    """Run webserver and daemon until one ends or this process is interrupted.

    Parameters
    ----------
    home : Path
    host, port
        Of the webserver.
    automation : bool
        Whether sensors and schedules may start runs.

    Returns
    -------
    int
        Exit code: 0 after an interrupt, 1 where one of the two ended by itself.
    """
    environment = {**os.environ, **home_environment(prepare_home(home))}
    if not automation:
        environment[AUTOMATION_VARIABLE] = "off"
    environment.setdefault(ADDRESS_VARIABLE, _address(host, port))
    os.environ.update(environment)
    Automation().of_home().why_off()  # a setting that is none is said here, not by every sensor
    _must_be_free(host, port)
    with open_instance(home, say=partial(say, on=errors)):
        pass
    commands = [
        [sys.executable, "-m", "dagster_webserver", "-m", MODULE, "-h", host, "-p", str(port)],
        [sys.executable, "-m", "dagster._daemon", "run", "-m", MODULE],
    ]
    print(f"Dagster UI of {home}: {_address(host, port)} (Ctrl-C ends it)", flush=True)
    # A terminal sends Ctrl-C to all three; a service manager sends SIGTERM to this one. What was
    # started in the background of a shell ignores Ctrl-C, and would hand that down.
    previous = {
        number: signal.signal(number, _interrupt) for number in (signal.SIGINT, signal.SIGTERM)
    }
    processes: list[subprocess.Popen[bytes]] = []
    try:
        for command in commands:
            processes.append(subprocess.Popen(command, env=environment))
        while all(process.poll() is None for process in processes):
            time.sleep(0.5)
        ended = next(process for process in processes if process.returncode is not None)
        name = NAMES[processes.index(ended)]
        say_error(f"the {name} has ended, with exit code {ended.returncode}: what it said is above")
        return OTHER_FAILURE
    except KeyboardInterrupt:
        return 0
    finally:
        for number, handler in previous.items():
            signal.signal(number, handler)
        _stop(processes)


def _address(host: str, port: int) -> str:
    """Return where a browser finds the UI; one that listens everywhere, by this machine's name."""
    is_everywhere = host in ("0.0.0.0", "::")
    name = socket.getfqdn() if is_everywhere else host
    return f"http://[{name}]:{port}" if ":" in name else f"http://{name}:{port}"


def _must_be_free(host: str, port: int) -> None:
    """Raise PlanError where the webserver could not listen."""
    try:
        family, kind, _, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
        with socket.socket(family, kind) as caller:
            caller.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            caller.bind(address)
    except (OSError, OverflowError) as error:
        raise PlanError(
            f"the UI cannot listen on {host!r}, port {port}: {words_of(error)}; choose another "
            "with --host and --port"
        ) from error


def _stop(processes: list[subprocess.Popen[bytes]]) -> None:
    """End processes and all that they started: code servers, and runs that are going on.

    Dagster's own processes leave their code servers to end by themselves, up to a minute later.
    """
    running = [psutil.Process(process.pid) for process in processes if process.poll() is None]
    family = [child for parent in running for child in parent.children(recursive=True)]
    for process in running:
        process.send_signal(signal.SIGINT)
    psutil.wait_procs(running, SECONDS_TO_STOP)
    _, left = psutil.wait_procs(family, SECONDS_TO_FOLLOW)
    for process in left:
        process.terminate()  # a run that gets it records that it was interrupted
    _, left = psutil.wait_procs([*running, *left], SECONDS_TO_STOP)
    for process in left:
        process.kill()
    for started in processes:
        started.poll()  # so that it counts as ended


def _interrupt(signum: int, frame: object) -> None:
    raise KeyboardInterrupt
