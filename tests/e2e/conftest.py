"""A served home: webserver and daemon as a user starts them, and what a browser asks of them."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import psutil

from tests.tissue import environment_of_functions, python_command

SECONDS_TO_START = 60

SETTLE_SECONDS = 2
"""Tests write acquisitions whole; a facility waits longer."""

SECONDS_TO_RUN = 180


def until(is_so: Callable[[], Any], *, seconds: float, what: str) -> Any:
    """Wait until a call gives something true, and return it."""
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        if found := is_so():
            return found
        time.sleep(0.2)
    raise AssertionError(f"{what} did not happen within {seconds} s")


@dataclass
class Served:
    """A served home, asked as the browser asks."""

    url: str
    process: subprocess.Popen[bytes]

    def is_up(self) -> bool:
        assert self.process.poll() is None, "patchworks ui has ended"
        try:
            with urllib.request.urlopen(f"{self.url}/server_info", timeout=5) as answer:
                return bool(answer.status == 200)
        except (urllib.error.URLError, ConnectionError, TimeoutError):
            return False

    def ask(self, query: str, **variables: Any) -> dict[str, Any]:
        """Send a GraphQL query and return its data."""
        request = urllib.request.Request(
            f"{self.url}/graphql",
            data=json.dumps({"query": query, "variables": variables}).encode(),
            headers={"Content-Type": "application/json"},
        )
        with urllib.request.urlopen(request, timeout=30) as answer:
            found = json.loads(answer.read())
        assert "errors" not in found, found["errors"]
        return dict(found["data"])

    def descendants(self) -> list[psutil.Process]:
        return psutil.Process(self.process.pid).children(recursive=True)


@contextmanager
def serving(home: Path, settings: str = "", **environment: str) -> Iterator[Served]:
    """Serve a home on a free port; whatever happens, nothing is left running.

    `settings` are sections for its `patchworks.yaml`.
    """
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    command = [python_command("patchworks"), "ui", "--home", str(home), "--port", str(port)]
    # What is repaired by hand must not be repaired by a sensor at the same time.
    environment = {"PATCHWORKS_AUTOMATION": "off", **environment}
    quick = f"source: {{settle_seconds: {SETTLE_SECONDS}}}\n"
    (home / "patchworks.yaml").write_text(quick + settings)
    with (home / "ui.log").open("wb") as log:
        process = subprocess.Popen(
            command,
            env={**os.environ, **environment_of_functions(), **environment},
            stdout=log,
            stderr=log,
            start_new_session=True,
        )
    served = Served(f"http://127.0.0.1:{port}", process)
    started: list[psutil.Process] = []
    try:
        until(served.is_up, seconds=SECONDS_TO_START, what="the webserver's answer")
        yield served
    finally:
        if process.poll() is None:
            started = served.descendants()
            process.send_signal(signal.SIGTERM)
            process.wait(45)
        for child in started:
            if child.is_running():
                child.kill()
