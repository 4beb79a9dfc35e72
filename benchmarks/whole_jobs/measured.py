"""Runs a process and measures it: its own seconds, CPU seconds, and memory of the whole tree."""

from __future__ import annotations

import json
import os
import subprocess
import time
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import psutil

INTERVAL = 0.05
"""Seconds between two looks at the memory."""


@dataclass(frozen=True)
class Measured:
    """One run of one tool."""

    seconds: float
    """Of the job, as the process says; nan where it failed."""

    cpu_seconds: float
    """Of the process and its children, imports included."""

    peak_bytes: int
    """Largest sum of the resident memory of the process and its children."""

    phases: Mapping[str, float] = field(default_factory=dict)
    error: str = ""


def measure(command: Sequence[str], *, limit: float, folder: Path) -> Measured:
    """Run a command whose last line of output is JSON with ``seconds`` and ``phases``."""
    before = os.times()
    process = subprocess.Popen(
        command, cwd=folder, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    tree, peak, start = psutil.Process(process.pid), 0, time.perf_counter()
    while process.poll() is None:
        peak = max(peak, _resident(tree))
        if time.perf_counter() - start > limit:
            for one in (*_children(tree), tree):
                with suppress(psutil.Error):
                    one.kill()
            process.wait()
            return Measured(float("nan"), float("nan"), peak, error=f"over {limit:g} s")
        time.sleep(INTERVAL)
    out, err = process.communicate()
    after = os.times()
    cpu = sum(after[2:4]) - sum(before[2:4])
    if process.returncode:
        last = (err.strip().splitlines() or ["no word"])[-1]
        return Measured(float("nan"), cpu, peak, error=last[:200])
    told: dict[str, Any] = json.loads(out.strip().splitlines()[-1])
    return Measured(told["seconds"], cpu, peak, told["phases"])


def _children(tree: psutil.Process) -> list[psutil.Process]:
    with suppress(psutil.Error):
        return list(tree.children(recursive=True))
    return []


def _resident(tree: psutil.Process) -> int:
    total = 0
    for one in (tree, *_children(tree)):
        with suppress(psutil.Error):
            total += one.memory_info().rss
    return total
