"""How long the definitions take to load: from a wheel, and by ``dg check defs`` in the checkout.

    python -m benchmarks.loading [--repeat 5]

Each time is that of a process of its own, the first one apart: it compiles modules and reads files
that are not in memory yet. Needs hatchling, and dagster-dg-cli for the second line.
"""

from __future__ import annotations

import argparse
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
import zipfile
from pathlib import Path

CHECKOUT = Path(__file__).parents[1]


def main() -> None:
    """Measure, and print one line per way of loading."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--repeat", type=int, default=5)
    repeat = parser.parse_args().repeat
    with tempfile.TemporaryDirectory(prefix="patchworks-wheel-") as folder:
        site = unpacked_wheel(Path(folder))
        script = "import patchworks_pipeline.definitions as d; d.deployed(); print(d.__file__)"
        command = [sys.executable, "-P", "-c", script]
        environment = {**os.environ, "PYTHONPATH": str(site)}
        printed = subprocess.run(
            command, cwd=folder, env=environment, check=True, capture_output=True, text=True
        ).stdout
        assert Path(printed.strip()).is_relative_to(site), printed
        for cached in site.rglob("__pycache__"):
            shutil.rmtree(cached)
        seconds = [seconds_of(command, Path(folder), environment) for _ in range(repeat)]
        print(line("definitions from a wheel", seconds))
        dagster_alone = [sys.executable, "-P", "-c", "import dagster"]
        seconds = [seconds_of(dagster_alone, Path(folder), environment) for _ in range(repeat)]
        print(line("  of which dagster itself", seconds))
    dg = Path(sys.executable).with_name("dg")
    if dg.exists():
        command = [str(dg), "check", "defs"]
        seconds = [seconds_of(command, CHECKOUT, dict(os.environ)) for _ in range(repeat)]
        print(line("dg check defs", seconds))


def unpacked_wheel(folder: Path) -> Path:
    """Build the wheel of this checkout and unpack it; return the folder to import from."""
    command = [sys.executable, "-m", "hatchling", "build", "-t", "wheel", "-d", str(folder)]
    subprocess.run(command, cwd=CHECKOUT, check=True, capture_output=True)
    (wheel,) = folder.glob("*.whl")
    with zipfile.ZipFile(wheel) as archive:
        archive.extractall(folder / "site")
    return folder / "site"


def seconds_of(command: list[str], folder: Path, environment: dict[str, str]) -> float:
    """Return how long a command takes."""
    start = time.perf_counter()
    subprocess.run(command, cwd=folder, env=environment, check=True, capture_output=True)
    return time.perf_counter() - start


def line(what: str, seconds: list[float]) -> str:
    """Return the first time, and the median of the others."""
    rest = statistics.median(seconds[1:]) if len(seconds) > 1 else seconds[0]
    return f"{what:28} first {seconds[0]:5.2f} s, then {rest:5.2f} s (median of {len(seconds) - 1})"


if __name__ == "__main__":
    main()
