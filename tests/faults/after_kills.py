"""Seconds after kills: until the next run has ended, also under a daemon, with four dead runs.

``python -m tests.faults.after_kills`` prints a table. Each figure stands beside the same without a
kill, as most of the seconds are those in which interpreters start.
"""

from __future__ import annotations

import argparse
import os
import signal
import subprocess
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path

import dagster as dg
import psutil

from patchworks_pipeline.instance.run_processes import OPEN
from tests.e2e.facility import choose, is_merged
from tests.faults.daemon_kills import Night, picture
from tests.tissue import python_command, write_tiff

N_DEAD = 4

SECONDS_AT_MOST = 600.0


def run(night: Night, name: str, *, kill: bool = False) -> float:
    """Call ``patchworks run`` on an image; kill it when it labels tiles. Return its seconds."""
    path = night.folder / f"{name}.tif"
    write_tiff(path, picture(sum(map(ord, name))))
    command = [python_command("patchworks"), "run", str(path), "--home", str(night.home)]
    command += ["--segmentation", "tissue_functions:noted", "--tile-shape", "32", "--overlap", "8"]
    n_notes = night.notes.stat().st_size
    begun = time.monotonic()
    with (night.folder / "run.log").open("ab") as log:
        process = subprocess.Popen(
            command, env=night.environment, stdout=log, stderr=log, start_new_session=True
        )
    if kill:
        until(lambda: night.notes.stat().st_size > n_notes, "a tile that is labelled")
        os.killpg(process.pid, signal.SIGKILL)
    code = process.wait(SECONDS_AT_MOST)
    assert kill or code == 0, (night.folder / "run.log").read_text()[-2000:]
    return time.monotonic() - begun


def until(is_so: Callable[[], object], what: str) -> float:
    """Wait for something; return how many seconds that took."""
    begun = time.monotonic()
    while not is_so():
        assert time.monotonic() - begun < SECONDS_AT_MOST, f"{what} did not come"
        time.sleep(0.1)
    return time.monotonic() - begun


def dead_runs(night: Night) -> list[str]:
    """Return the runs that are open in the books; all of them are dead where nothing runs."""
    with dg.DagsterInstance.from_config(str(night.home / "dagster")) as instance:
        return [run.run_id for run in instance.get_runs(dg.RunsFilter(statuses=OPEN))]


def statuses(night: Night, run_ids: list[str]) -> set[dg.DagsterRunStatus]:
    """Return the states of runs."""
    with dg.DagsterInstance.from_config(str(night.home / "dagster")) as instance:
        return {run.status for run in instance.get_runs(dg.RunsFilter(run_ids=run_ids))}


def power_cut(night: Night, name: str) -> list[str]:
    """Let images land under a daemon, and kill all there is once four runs go on."""
    night.supervise()
    for number in range(2 * N_DEAD):
        landed(night, f"{name}{number}")
    until(
        lambda: len(night.processes("run")) >= N_DEAD and night.processes("worker"),
        "four runs at once",
    )
    for process in night.family():
        with suppress(psutil.Error):
            process.kill()
    if night.daemon is not None:
        night.daemon.wait()
        night.daemon = None
    until(lambda: not night.family(), "the end of all")
    return dead_runs(night)


def landed(night: Night, name: str) -> None:
    """Let an image land."""
    path = night.home / "landing" / f"{name}.ome.tif"
    choose(night.home, path, "noted")
    write_tiff(path, picture(sum(map(ord, name))))


def figures(folder: Path) -> Iterator[tuple[str, str, float]]:
    """Give what was killed, what came then, and the seconds of that."""
    night = Night(folder, 0)
    run(night, "first")
    yield "nothing", "`patchworks run` of an image has ended", run(night, "quiet")
    run(night, "dead", kill=True)
    yield "a `patchworks run`", "that of another image has ended", run(night, "next")
    yield "a `patchworks run`", "the same call has ended", run(night, "dead")
    night.supervise()
    landed(night, "landed")
    seconds = until(lambda: is_merged(night.home, "landed"), "labels of what landed")
    yield "nothing", "a daemon has started, and labels are there of what landed", seconds
    landed(night, "hit")
    until(lambda: night.processes("worker"), "a worker")
    begun = time.monotonic()
    for process in night.processes("run"):
        process.kill()
    seconds = until(lambda: is_merged(night.home, "hit"), "labels of what was hit")
    yield "the process of a run of the daemon", "its image has its labels", seconds
    n_dead = len(power_cut(night, "cut"))
    cut = f"a daemon and all it started: {n_dead} dead runs in the books"
    yield cut, "`patchworks run` of another image has ended", run(night, "after")
    dead = power_cut(night, "again")
    cut = f"the same: {len(dead)} dead runs in the books"
    begun = time.monotonic()
    night.supervise()
    until(lambda: statuses(night, dead) == {dg.DagsterRunStatus.FAILURE}, "the end of dead runs")
    yield cut, "a daemon has started, and has ended them", time.monotonic() - begun
    landed(night, "last")
    names = [f"again{number}" for number in range(2 * N_DEAD)] + ["last"]
    until(lambda: all(is_merged(night.home, name) for name in names), "labels of all")
    seconds = time.monotonic() - begun
    yield cut, f"labels are there of all {len(names)} images", seconds
    night.stop()


def main() -> None:
    """Print the table."""
    argparse.ArgumentParser(description=str(__doc__).splitlines()[0]).parse_args()
    with tempfile.TemporaryDirectory() as name:
        print("| killed | then | s |\n|---|---|---|", flush=True)
        for killed, then, seconds in figures(Path(name) / "night"):
            print(f"| {killed} | {then} | {seconds:.0f} |", flush=True)


if __name__ == "__main__":
    main()
