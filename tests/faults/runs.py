"""Kills, and two at once, of small calls of ``patchworks run`` on homes of their own.

``python -m tests.faults.runs KIND --trials 300 --seed 0`` prints a table, ``--each`` in place of a
number does every step. The n-th trial of a seed is the same every time: which step to files is the
last, or after which time the process is killed.

1. One call that nobody disturbs gives the labels, the names of the files and the steps to files.
2. A trial copies an empty home, and disturbs a call on it.
3. The same call once more must end well within a bounded time, leave the same bytes and no other
   file, label only those tiles again that were in flight, and leave no run open and no slot held.

Calls are forked from this process, which has imported all that a call imports and used nothing: an
interpreter that starts costs seconds.
"""

from __future__ import annotations

import argparse
import errno
import importlib
import json
import mmap
import os
import random
import re
import shutil
import signal
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterable, Iterator
from contextlib import suppress
from dataclasses import asdict, dataclass, field
from functools import partial
from pathlib import Path

import dagster as dg
import psutil

from patchworks_pipeline.automation.events import IN_PROGRESS
from patchworks_pipeline.cli.main import app
from patchworks_pipeline.cli.runs import open_home
from tests.pipeline.daemon import Daemon
from tests.tissue import (
    FUNCTIONS,
    HALO,
    TILE,
    environment_of_functions,
    files_under,
    tissue,
    write_tiff,
)

WORKERS = 2

SECONDS_AT_MOST = 120
"""A call that takes longer counts as stuck, and is killed."""

STEPS = frozenset({"open", "os.rename", "os.remove", "os.link", "os.mkdir", "os.rmdir"})
"""What the interpreter tells of before it is done to a file; an open counts where it writes."""

MAKES = STEPS - {"os.remove", "os.rmdir"}
"""Steps that a full disk or a forbidden place stops; what is there can be removed."""

LASTING = ("ENOSPC", "EACCES")
"""Faults that stay once they are there."""

ERRORS = (*LASTING, "EIO")

KEY = "a"

N_TILES = 6


@dataclass
class Trial:
    """What became of one trial."""

    kind: str
    point: str
    """What was done when."""

    was_hit: bool = True
    """False where the call had ended before."""

    seconds: float = 0.0
    """Of the call that went on."""

    n_tiles_twice: int = 0
    faults: list[str] = field(default_factory=list)
    """What is not as it must be."""


@dataclass
class Scene:
    """A folder with an image, an empty home to copy, and what an undisturbed call leaves."""

    folder: Path
    worker_kind: str = "threads"
    files: dict[str, bytes] = field(default_factory=dict)
    n_steps: dict[str, int] = field(default_factory=dict)
    """By what stops a call at one: a kill at any of a home, an error at those of its store."""

    seconds: float = 0.0
    count: mmap.mmap = field(default_factory=lambda: mmap.mmap(-1, 8))

    def prepare(self) -> None:
        """Make the image and the empty home, and call once with nobody there."""
        write_tiff(self.folder / f"{KEY}.tif", tissue((96, 64)))
        self.wait(self.fork(self.folder / "empty", lambda: _opened(self.folder / "empty")))
        self.import_modules()
        for fault in ("EIO", "kill"):
            home = self.new_home("undisturbed")
            begun = time.monotonic()
            status = self.wait(self.fork(home, partial(self.run, home, last=0, fault=fault)))
            assert status == 0, self.words(home)
            self.seconds = time.monotonic() - begun
            self.n_steps[fault] = int.from_bytes(self.count[:8], "little")
        self.files = store_files(home)
        assert len(self.notes(home)) == len(set(self.notes(home))) == N_TILES, self.notes(home)

    def import_modules(self) -> None:
        """Import here what a call imports."""
        home = self.new_home("modules")
        names = home / "modules.txt"

        def call() -> None:
            try:
                self.run(home)
            finally:
                names.write_text("\n".join(sys.modules))

        assert self.wait(self.fork(home, call)) == 0, self.words(home)
        for name in names.read_text().split():
            if name not in sys.modules:
                with suppress(ImportError):  # names that modules give themselves
                    importlib.import_module(name)

    def new_home(self, name: str) -> Path:
        """Return a copy of the empty home."""
        home = self.folder / name
        shutil.rmtree(home, ignore_errors=True)
        shutil.copytree(self.folder / "empty", home)
        return home

    def run(self, home: Path, last: int | None = None, fault: str = "kill") -> None:
        """Call ``patchworks run`` in this process, which ends with it; count its steps if asked."""
        if last is not None:
            count_steps(home, self.count, last, fault)
        arguments = ["run", str(self.folder / f"{KEY}.tif"), "--home", str(home)]
        arguments += ["--segmentation", "tissue_functions:counted"]
        arguments += ["--tile-shape", str(TILE), "--overlap", str(HALO)]
        arguments += ["--workers", str(WORKERS), "--worker-kind", self.worker_kind]
        app(arguments)

    def fork(self, home: Path, call: Callable[[], None]) -> int:
        """Do a call in a process of its own, a leader of its group; return its id."""
        pid = os.fork()
        if pid:
            return pid
        code = 1
        try:
            os.setsid()
            home.mkdir(exist_ok=True)
            words = os.open(home / "words.txt", os.O_WRONLY | os.O_CREAT | os.O_APPEND)
            os.dup2(words, 1)
            os.dup2(words, 2)
            os.environ["PATCHWORKS_TEST_COUNTED"] = str(home / "notes.txt")
            call()
            code = 0
        except SystemExit as end:
            code = end.code if isinstance(end.code, int) else 1
        finally:
            sys.stdout.flush()
            os._exit(code)

    def wait(self, pid: int, seconds: float = SECONDS_AT_MOST) -> int:
        """Wait for a process and return its exit code; one that is stuck is killed."""
        deadline = time.monotonic() + seconds
        while time.monotonic() < deadline:
            ended, status = os.waitpid(pid, os.WNOHANG)
            if ended:
                return os.waitstatus_to_exitcode(status)
            time.sleep(0.005)
        kill_group(pid)
        return os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1])

    def words(self, home: Path) -> str:
        """Return what the calls on a home printed."""
        return (home / "words.txt").read_text(errors="replace")

    def notes(self, home: Path) -> list[str]:
        """Return the tiles that were labelled."""
        path = home / "notes.txt"
        return path.read_text().split() if path.exists() else []

    def call_again(self, home: Path, trial: Trial, *, may_repeat: int = WORKERS) -> Trial:
        """Do the call once more, and note what is not as it must be."""
        begun = time.monotonic()
        code = self.wait(self.fork(home, partial(self.run, home)))
        trial.seconds = round(time.monotonic() - begun, 2)
        if code != 0:
            trial.faults.append(f"the next call ended with {code}: {self.words(home)[-2000:]}")
            return trial
        counts = Counter(self.notes(home))
        trial.n_tiles_twice = sum(count - 1 for count in counts.values())
        if trial.n_tiles_twice > may_repeat:
            trial.faults.append(f"{trial.n_tiles_twice} tiles were labelled twice")
        trial.faults += self.differences(home)
        with open_home(home) as instance:
            trial.faults += open_ends(instance)
        return trial

    def differences(self, home: Path) -> list[str]:
        """Return what is other than an undisturbed call leaves it."""
        files = store_files(home)
        faults = [f"{name} is left over" for name in sorted(set(files) - set(self.files))]
        faults += [f"{name} is missing" for name in sorted(set(self.files) - set(files))]
        labels = [name for name in self.files if "/labels/" in name]
        return faults + [
            f"{name} has other bytes"
            for name in labels
            if name in files and files[name] != self.files[name] and "provenance" not in name
        ]


def _opened(home: Path) -> None:
    with open_home(home):
        pass


def store_files(home: Path) -> dict[str, bytes]:
    """Return the files of a store, without locks, whatever day it is."""
    return {
        _DAY.sub("*", _GENERATION.sub("*", name)): content
        for name, content in files_under(home / "store").items()
        if not name.endswith(".lock")
    }


_GENERATION = re.compile(r"[0-9a-f]{32}(?=/)")
"""Name of a folder of tiles: every stage has its own."""

_DAY = re.compile(r"(?<=^\.days/)\d{4}-\d\d-\d\d(?=/)")
"""Name of a folder of what was done on a day: midnight may come between two calls."""


def open_ends(instance: dg.DagsterInstance) -> list[str]:
    """Return the runs that are still open, and the slots that are held."""
    runs = instance.get_runs(dg.RunsFilter(statuses=IN_PROGRESS))
    faults = [f"run {run.run_id} of {run.job_name} is still {run.status.value}" for run in runs]
    for pool in instance.event_log_storage.get_concurrency_keys():
        claimed = instance.event_log_storage.get_concurrency_info(pool).claimed_slots
        faults += [f"run {slot.run_id} holds a slot of {pool}" for slot in claimed]
    return faults


def count_steps(home: Path, count: mmap.mmap, last: int = 0, fault: str = "kill") -> None:
    """Let this process count its steps to the files of a home, and be stopped at one; 0 is none."""
    folders = ("store", "landing", "dagster") if fault == "kill" else ("store",)
    names = tuple(str(home / folder) for folder in folders)
    n_steps = 0

    def hook(event: str, arguments: tuple[object, ...]) -> None:
        nonlocal n_steps
        if event not in STEPS or not str(arguments[0]).startswith(names):
            return
        if event == "open" and not (isinstance(arguments[2], int) and arguments[2] & os.O_ACCMODE):
            return
        n_steps += 1
        count[:8] = n_steps.to_bytes(8, "little")
        is_after = 0 < last < n_steps and fault in LASTING
        if n_steps != last and not is_after:
            return
        if fault == "kill":
            os.kill(os.getpid(), signal.SIGKILL)
        if fault == "EIO" or event in MAKES:
            number = getattr(errno, fault)
            raise OSError(number, os.strerror(number), str(arguments[0]))

    sys.addaudithook(hook)


def killed_at_steps(scene: Scene, points: Iterable[int]) -> Iterator[Trial]:
    """Kill a call at one of its steps to files, and call again."""
    for point in points:
        home = scene.new_home("trial")
        pid = scene.fork(home, partial(scene.run, home, last=point))
        trial = Trial("kill at step", str(point), was_hit=scene.wait(pid) == -signal.SIGKILL)
        kill_group(pid)
        yield scene.call_again(home, trial)


def errors_at_steps(scene: Scene, points: Iterable[int], fault: str) -> Iterator[Trial]:
    """Let a step of a call to its store fail, and call again.

    The call ends well, with the labels of one that nobody disturbed, or it says in words that it
    did not.
    """
    for point in points:
        home = scene.new_home("trial")
        code = scene.wait(scene.fork(home, partial(scene.run, home, last=point, fault=fault)))
        trial = Trial(fault, str(point), was_hit=code != 0)
        if code == 0:
            trial.faults += scene.differences(home)
        elif code < 0 or "Traceback" in scene.words(home):
            trial.faults.append(f"it ended with {code}: {scene.words(home)[-2000:]}")
        yield scene.call_again(home, trial, may_repeat=2 * WORKERS)


def killed_at_times(scene: Scene, moments: Iterable[float]) -> Iterator[Trial]:
    """Kill a call, and all that it started, after so many seconds, and call again."""
    for moment in moments:
        home = scene.new_home("trial")
        pid = scene.fork(home, partial(scene.run, home))
        time.sleep(moment)
        was_hit = kill_group(pid)
        scene.wait(pid)
        yield scene.call_again(home, Trial("kill of driver", f"{moment:.3f} s", was_hit))


def killed_workers(scene: Scene, moments: Iterable[float]) -> Iterator[Trial]:
    """Kill the youngest process that a call has started after so many seconds; it goes on."""
    for moment in moments:
        home = scene.new_home("trial")
        pid = scene.fork(home, partial(scene.run, home))
        time.sleep(moment)
        children = psutil.Process(pid).children(recursive=True)
        for child in children[-1:]:
            child.kill()
        trial = Trial("kill of worker", f"{moment:.3f} s", bool(children))
        if scene.wait(pid) != 0:
            trial.faults.append(f"the call did not go on: {scene.words(home)[-2000:]}")
        yield scene.call_again(home, trial)


def two_at_once(
    scene: Scene, pauses: Iterable[float], commands: tuple[str, str]
) -> Iterator[Trial]:
    """Do two calls on one image, the second a moment after the first; both must end well."""
    for pause in pauses:
        home = scene.new_home("trial")
        if "merge" in commands:
            assert scene.wait(scene.fork(home, partial(scene.run, home))) == 0
        first, second = (CALLS[command] for command in commands)
        begun = time.monotonic()
        pids = [scene.fork(home, partial(first, scene, home))]
        time.sleep(pause)
        pids.append(scene.fork(home, partial(second, scene, home)))
        trial = Trial(" and ".join(commands), f"{pause:.3f} s")
        codes = [scene.wait(pid) for pid in pids]
        longest = time.monotonic() - begun
        if any(codes):
            trial.faults.append(f"they ended with {codes}: {scene.words(home)[-3000:]}")
        scene.call_again(home, trial)
        trial.seconds = max(trial.seconds, round(longest, 2))
        yield trial


def _merge(scene: Scene, home: Path) -> None:
    app(["merge", KEY, "--home", str(home)])


def _sensors(scene: Scene, home: Path) -> None:
    """Do what the daemon of a UI does: tick the sensors, and run what they ask for."""
    with open_home(home) as instance:
        Daemon(instance, {}).until_quiet()


CALLS: dict[str, Callable[[Scene, Path], None]] = {
    "run": lambda scene, home: scene.run(home),
    "merge": _merge,
    "sensors": _sensors,
}


def kill_group(pid: int) -> bool:
    """Kill a process and all that it started; tell whether one was there."""
    try:
        os.killpg(pid, signal.SIGKILL)
    except ProcessLookupError:
        return False
    return True


def trials_of(kind: str, scene: Scene, n_trials: int | None, seed: int) -> Iterator[Trial]:
    """Give the trials of a kind and a seed; the first are the same however many there are.

    Without a number of trials, they are all steps in turn.
    """
    chance = random.Random(f"{kind} {seed}")
    n_steps = scene.n_steps["EIO" if kind in ERRORS else "kill"]
    points: Iterable[int] = range(1, n_steps + 1)
    if n_trials is not None:
        points = (chance.randint(1, n_steps) for _ in range(n_trials))
    if kind == "step":
        return killed_at_steps(scene, points)
    if kind in ERRORS:
        return errors_at_steps(scene, points, kind)
    n_trials = n_trials or 0
    moments = (chance.uniform(0, scene.seconds) for _ in range(n_trials))
    if kind == "driver":
        return killed_at_times(scene, moments)
    if kind == "worker":
        return killed_workers(scene, moments)
    first, _, second = kind.partition("+")
    pauses = (chance.uniform(0, 0.5) for _ in range(n_trials))
    return two_at_once(scene, pauses, (first, second))


KINDS = ("step", *ERRORS, "driver", "worker", "run+run", "merge+merge", "run+sensors")


def main() -> None:
    """Print a line for each trial as JSON, and a table."""
    parser = argparse.ArgumentParser(description=str(__doc__).splitlines()[0])
    parser.add_argument("kinds", nargs="+", choices=KINDS)
    parser.add_argument("--trials", type=int, default=3)
    parser.add_argument("--each", action="store_true", help="Every step, in place of some.")
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    sys.path.insert(0, str(FUNCTIONS))
    os.environ.update(environment_of_functions())
    table = []
    with tempfile.TemporaryDirectory() as folder:
        for worker_kind in ("threads", "processes"):
            kinds = [
                kind for kind in options.kinds if (kind == "worker") == (worker_kind != "threads")
            ]
            if not kinds:
                continue
            scene = Scene(Path(folder) / worker_kind, worker_kind)
            scene.folder.mkdir()
            scene.prepare()
            for kind in kinds:
                trials = []
                n_trials = None if options.each else options.trials
                for trial in trials_of(kind, scene, n_trials, options.seed):
                    print(json.dumps(asdict(trial)), flush=True)
                    trials.append(trial)
                table.append(_row(kind, trials))
    print("| trials of | tried | hit | as undisturbed | tiles labelled twice | longest next call |")
    print("|---|---|---|---|---|---|")
    print("\n".join(table))


def _row(kind: str, trials: list[Trial]) -> str:
    cells = (
        kind,
        len(trials),
        sum(trial.was_hit for trial in trials),
        sum(not trial.faults for trial in trials),
        max((trial.n_tiles_twice for trial in trials), default=0),
        f"{max((trial.seconds for trial in trials), default=0):.1f} s",
    )
    return f"| {' | '.join(map(str, cells))} |"


if __name__ == "__main__":
    main()
