"""Many small acquisitions land at once, and an urgent one in the middle: how long until labels.

    python -m benchmarks.small_images [--images 300] [--per-run 25] [--seconds 1800]

`--per-run 1` is one run each for plan, stage and merge of every image. The home is served as a
user serves it; processes are counted by looking five times a second.
"""

from __future__ import annotations

import argparse
import shutil
import tempfile
import time
from pathlib import Path

import numpy as np
import psutil

from patchworks_pipeline.instance.home import prepare_home
from tests.e2e.conftest import Served, serving
from tests.e2e.facility import is_merged, landing_ticks
from tests.tissue import tissue

SHAPE = (256, 256)

URGENT = "now"


def main() -> None:
    """Land images, wait for labels, and say what it took."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--images", type=int, default=300)
    parser.add_argument("--per-run", type=int, default=25)
    parser.add_argument("--seconds", type=float, default=1800, help="to wait at most")
    args = parser.parse_args()
    with tempfile.TemporaryDirectory(prefix="patchworks-") as folder:
        home = prepare_home(Path(folder) / "home")
        # serving() writes the section 'source' with one field, to which these belong.
        source = f"  images_per_run: {args.per_run}\n  small_megabytes: 64\n"
        with serving(home, PATCHWORKS_AUTOMATION="on") as served:
            settings = home / "patchworks.yaml"
            settings.write_text("source:\n  settle_seconds: 2\n" + source)
            measure(home, served, args.images, args.seconds)


def measure(home: Path, served: Served, n_images: int, seconds: float) -> None:
    """Drop the images, the urgent one when a quarter have labels, and print what it took."""
    while not landing_ticks(served):
        time.sleep(1)
    keys = [f"field{n:04}" for n in range(n_images)]
    waiting = home / "waiting"
    waiting.mkdir()
    for n, key in enumerate(keys):
        np.save(waiting / f"{key}.npy", tissue(SHAPE, seed=n % 7))
    pids: set[int] = {process.pid for process in served.descendants()}
    n_before, busy = len(pids), busy_seconds(served)
    start = time.monotonic()
    for path in sorted(waiting.iterdir()):
        shutil.move(str(path), str(home / "landing" / path.name))
    left, first, dropped, urgent = set(keys), 0.0, 0.0, 0.0
    while (left or not urgent) and time.monotonic() - start < seconds:
        now = time.monotonic() - start
        pids |= {process.pid for process in served.descendants()}
        left -= {key for key in list(left)[:40] if is_merged(home, key)}
        if not first and len(left) < n_images:
            first = now
        if not dropped and len(left) <= 0.75 * n_images:
            dropped = now
            np.save(waiting / f"{URGENT}.npy", tissue(SHAPE, seed=9))
            (home / "landing" / "urgent").mkdir(exist_ok=True)
            shutil.move(
                str(waiting / f"{URGENT}.npy"), str(home / "landing" / "urgent" / f"{URGENT}.npy")
            )
        if dropped and not urgent and is_merged(home, URGENT):
            urgent = now
            print(f"urgent one: labels {urgent - dropped:.0f} s after it was dropped", flush=True)
        time.sleep(0.2)
    spent = busy_seconds(served)
    print(
        f"{n_images - len(left)} of {n_images} images: first labels after {first:.0f} s, last "
        f"after {time.monotonic() - start:.0f} s; {len(pids) - n_before} processes started; CPU: "
        f"daemon {spent[0] - busy[0]:.0f} s, all {spent[1] - busy[1]:.0f} s",
        flush=True,
    )


def busy_seconds(served: Served) -> tuple[float, float]:
    """Return the CPU seconds of the daemon, and of all processes with those that have ended."""
    daemon = total = 0.0
    for process in served.descendants():
        try:
            times, command = process.cpu_times(), process.cmdline()
        except psutil.NoSuchProcess:
            continue
        own = times.user + times.system
        total += own + times.children_user + times.children_system
        daemon += own if any("dagster._daemon" in part for part in command) else 0
    return daemon, total


if __name__ == "__main__":
    main()
