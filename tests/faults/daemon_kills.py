"""Kills of workers, of runs and of the daemon of one home, in which images land all the time.

``python -m tests.faults.daemon_kills --kills 300 --seed 1`` prints each kill, and a table.

1. The daemon is the one that ``patchworks ui`` starts, without the webserver. It is started again
   whenever it is gone, as a supervisor does.
2. A new image lands as soon as fewer than `N_AT_ONCE` are not merged.
3. Every one to four seconds a process is killed: a worker of a function, the process of a run, or
   the daemon. A seed decides which kind, after how long, and which of several.
4. After the last kill the home must come to rest within `SECONDS_TO_REST`: every image merged, no
   run open, no slot held. Tiles that failed are staged again by one ``patchworks retry``, as a
   person would; that is counted.
5. Then labels and files are those of a home that nobody disturbed.

Which kinds of processes there are at a moment depends on the machine, so a seed gives the same
choices, not the same trial.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import subprocess
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import asdict, dataclass, field
from pathlib import Path

import dagster as dg
import numpy as np
import psutil

from patchworks_core.files.storage import as_path
from patchworks_pipeline.instance.home import home_environment, prepare_home
from patchworks_pipeline.instance.run_processes import open_instance
from patchworks_pipeline.landing.arrivals import Quarantine
from patchworks_pipeline.partitions import IMAGE
from tests.e2e.facility import choose, is_merged, label_files
from tests.faults.runs import open_ends, store_files
from tests.tissue import environment_of_functions, python_command, tissue, write_tiff

KINDS = ("worker", "run", "daemon")

WEIGHTS = (5, 3, 1)
"""How often each is chosen; a daemon takes long to be there again."""

PAUSE = (1.0, 4.0)
"""Seconds between two kills, at least and at most."""

SECONDS_TO_MEET = 60.0
"""To wait for a process of the kind that is chosen; then another kind is."""

SECONDS_OF_A_RUN = 3.0
"""A run is met when it begins; it is killed so long after that at most."""

SECONDS_TO_REST = 1200.0
"""From the last kill until nothing is left to do; runs that failed are tried again later."""

N_AT_ONCE = 6

SHAPE = (320, 384)

N_TILES = 120

IDS = 100
"""As in `tissue_functions`."""

N_STAGING = 3
"""Runs that stage at once, so that there is a worker at most times."""

N_IN_FLIGHT = 2
"""Workers of a run: what a kill may let be done twice."""

SETTINGS = """
source: {settle_seconds: 1}
budget: {workers: 2}
automation: {finish_first: true}
"""


@dataclass
class Kill:
    """A process that was killed."""

    kind: str
    seconds: float
    """Since the beginning."""

    pid: int
    hit: str = ""
    """What the process was at: a job and its image; a tile of an image."""

    image: int | None = None
    """Whose tile or run was hit."""


@dataclass
class Night:
    """A home in which processes are killed, and what became of it."""

    folder: Path
    seed: int
    kills: list[Kill] = field(default_factory=list)
    n_images: int = 0
    n_daemons: int = 0
    daemon: subprocess.Popen[bytes] | None = None
    begun: float = field(default_factory=time.monotonic)
    faults: list[str] = field(default_factory=list)
    seconds_to_rest: float = 0.0
    n_twice: int = 0
    """Tiles that were labelled once more."""
    n_repaired: int = 0
    """Images with tiles that failed, whose last word was a person's."""

    lines: list[str] = field(default_factory=list)
    """What the function noted while there were kills."""

    undisturbed: Counter[tuple[int, str]] = field(default_factory=Counter)
    """How often a home that nobody disturbs labels what a tile of an image looks like."""

    ours: dict[tuple[int, float], bool] = field(default_factory=dict)
    """Whether a process, by its id and its start, is of this home."""

    def __post_init__(self) -> None:
        self.chance = random.Random(self.seed)
        self.home = prepare_home(self.folder / "home")
        (self.home / "patchworks.yaml").write_text(SETTINGS)
        instance = self.home / "dagster" / "dagster.yaml"
        slots = f"default_limit: {N_STAGING} #"
        instance.write_text(instance.read_text().replace("default_limit: 1 #", slots))
        self.notes = self.folder / "notes.txt"
        self.notes.touch()
        self.environment = {
            **os.environ,
            **environment_of_functions(),
            **home_environment(self.home),
            "PATCHWORKS_TEST_NOTED": str(self.notes),
            "PATCHWORKS_AUTOMATION": "on",
        }
        os.environ.update(home_environment(self.home))
        with open_instance(self.home):
            pass

    # -- the home ------------------------------------------------------------------------------

    def supervise(self) -> None:
        """Start the daemon where it is gone."""
        if self.daemon is None or self.daemon.poll() is not None:
            command = ["-m", "dagster._daemon", "run", "-m", "patchworks_pipeline.definitions"]
            with (self.folder / "daemon.log").open("ab") as log:
                self.daemon = subprocess.Popen(
                    [sys.executable, *command],
                    env=self.environment,
                    stdout=log,
                    stderr=log,
                    start_new_session=True,
                )
            self.n_daemons += 1

    def land(self) -> None:
        """Let images land until enough are not merged."""
        n_open = self.n_images - sum(self.merged(i) for i in range(self.n_images))
        for _ in range(N_AT_ONCE - n_open):
            path = self.home / "landing" / f"{key_of(self.n_images)}.ome.tif"
            choose(self.home, path, "noted")
            write_tiff(path, picture(self.n_images))
            self.n_images += 1

    def merged(self, number: int) -> bool:
        """Tell whether an image has its labels."""
        return is_merged(self.home, key_of(number))

    # -- the killing ---------------------------------------------------------------------------

    def kill(self, n_kills: int, minutes: float = 1000.0) -> Iterator[Kill]:
        """Kill processes, until so many are, or so many minutes have gone by."""
        while len(self.kills) < n_kills and time.monotonic() - self.begun < 60 * minutes:
            self.supervise()
            self.land()
            time.sleep(self.chance.uniform(*PAUSE))
            (kind,) = self.chance.choices(KINDS, WEIGHTS)
            processes = self.meet(kind)
            if kind == "run":
                time.sleep(self.chance.uniform(0, SECONDS_OF_A_RUN))
                processes = self.processes(kind)
            if not processes:
                continue
            process = processes[int(self.chance.random() * len(processes))]
            kill = Kill(kind, round(time.monotonic() - self.begun, 1), process.pid)
            with suppress(psutil.NoSuchProcess):
                process.kill()
                self.kills.append(kill)
                yield kill
            if kind == "daemon" and self.daemon is not None:
                self.daemon.wait(30)

    def meet(self, kind: str) -> list[psutil.Process]:
        """Wait for processes of a kind."""
        deadline = time.monotonic() + SECONDS_TO_MEET
        while not (processes := self.processes(kind)) and time.monotonic() < deadline:
            self.supervise()
            self.land()
            time.sleep(0.1)
        return processes

    def processes(self, kind: str) -> list[psutil.Process]:
        """Return the processes of a kind, the oldest first."""
        if kind == "daemon":
            is_up = self.daemon is not None and self.daemon.poll() is None
            return [psutil.Process(self.daemon.pid)] if self.daemon is not None and is_up else []
        servers = [p for p in self.family() if "api" in words(p) and "grpc" in words(p)]
        runs = [
            child
            for server in servers
            for child in children(server)
            if any("spawn_main" in word for word in words(child))
        ]
        if kind == "run":
            return runs
        return [
            child
            for run in runs
            for child in children(run)
            if any("worker_processes" in word for word in words(child))
        ]

    def family(self) -> list[psutil.Process]:
        """Return the processes of this home, also those whose parent is gone."""
        return [p for p in psutil.process_iter() if p.pid != os.getpid() and self._is_ours(p)]

    def _is_ours(self, process: psutil.Process) -> bool:
        """Tell by its environment, which is read once: what is forked has it from the start."""
        known = (process.pid, process.create_time())
        if known not in self.ours:
            with suppress(psutil.Error):
                home = process.environ().get("DAGSTER_HOME")
                self.ours[known] = home == self.environment["DAGSTER_HOME"]
        return self.ours.get(known, False)

    # -- the rest ------------------------------------------------------------------------------

    def rest(self) -> None:
        """Wait until everything is done, and note what is not as it must be."""
        begun = time.monotonic()
        deadline = begun + SECONDS_TO_REST
        left: list[str] = ["not looked"]
        repaired: set[str] = set()
        while left and time.monotonic() < deadline:
            self.supervise()
            time.sleep(2)
            with open_instance(self.home) as instance:
                left = [
                    *(
                        f"image {i} is not merged"
                        for i in range(self.n_images)
                        if not self.merged(i)
                    ),
                    *open_ends(instance),
                ]
                if left and not open_ends(instance):
                    self.repair(repaired)
        self.seconds_to_rest = round(time.monotonic() - begun, 1)
        self.n_repaired = len(repaired)
        self.faults += left

    def repair(self, repaired: set[str]) -> None:
        """Stage the failed tiles of images again, each image once, as a person would."""
        for failure in sorted((self.home / "store").glob("*/failures/*.json")):
            key = failure.parent.parent.name
            if key not in repaired:
                repaired.add(key)
                self.command("retry", key, "--home", str(self.home))

    def command(self, *arguments: str, **environment: str) -> str:
        """Run a command of the command line, and return what it said."""
        done = subprocess.run(
            [python_command("patchworks"), *arguments],
            env={**self.environment, **environment},
            capture_output=True,
            text=True,
        )
        return done.stdout + done.stderr

    def stop(self) -> None:
        """End what belongs to the home."""
        for process in self.family():
            with suppress(psutil.Error):
                process.kill()

    # -- what became of it ---------------------------------------------------------------------

    def judge(self) -> None:
        """Compare with a home that nobody disturbed."""
        quiet = self.folder / "quiet"
        landed = [str(self.home / "landing" / f"{key_of(i)}.ome.tif") for i in range(self.n_images)]
        options = ["--segmentation", "tissue_functions:noted", "--tile-shape", "32"]
        options += ["--overlap", "8", "--workers", "4", "--worker-kind", "threads"]
        self.lines = self.notes.read_text().splitlines()  # the file's name is part of a version
        words = self.command(
            "run", *landed, "--home", str(quiet), *options, **home_environment(quiet)
        )
        self.undisturbed = tiles_done(self.notes.read_text().splitlines()[len(self.lines) :])
        for number in range(self.n_images):
            key = key_of(number)
            if not is_merged(quiet, key):
                self.faults.append(f"{key} is not merged in the quiet home: {words[-2000:]}")
            elif self.merged(number) and label_files(self.home, key) != label_files(quiet, key):
                self.faults.append(f"{key} has other labels")
        mine, theirs = (
            {name for name in store_files(home) if not name.startswith(".")}
            for home in (self.home, quiet)
        )
        self.faults += [f"{name} is left over" for name in sorted(mine - theirs)]
        self.faults += [f"{name} is missing" for name in sorted(theirs - mine)]
        refused = Quarantine(as_path(self.home / "store" / ".quarantine")).reasons()
        self.faults += [f"{name} is in quarantine: {why}" for name, why in refused.items()]
        self.attribute()
        self.count_tiles()

    def attribute(self) -> None:
        """Say of each kill what it hit, by the notes of tiles and the books of runs."""
        tiles = [line.split() for line in self.lines]
        last = {int(pid): (word, int(image)) for word, image, _, pid, _ in tiles}
        runs = runs_by_process(self.home)
        for kill in self.kills:
            if kill.kind == "worker":
                word, image = last.get(kill.pid, ("nothing", -1))
                kill.hit = {"begun": "a tile", "done": "between tiles"}.get(word, "as it started")
                kill.image = None if image < 0 else image
            elif kill.kind == "run":
                job, image_key = runs.get(kill.pid, ("as it started", ""))
                kill.hit = job
                kill.image = int(image_key[1:]) if image_key else None
            else:
                kill.hit = "the daemon"

    def count_tiles(self) -> None:
        """Note tiles that were labelled more often than kills explain.

        Two tiles of an image may look the same, where one object fills both.
        """
        twice: Counter[int] = Counter()
        for (image, tile), count in tiles_done(self.lines).items():
            twice[image] += max(0, count - self.undisturbed[image, tile])
        self.n_twice = sum(twice.values())
        for image, n in sorted(twice.items()):
            hits = sum(kill.image == image for kill in self.kills)
            if n > N_IN_FLIGHT * hits:
                self.faults.append(f"image {image}: {n} tiles more than once, {hits} kills")

    def table(self) -> str:
        """Return what was hit, and what came of it."""
        counts = Counter((kill.kind, kill.hit) for kill in self.kills)
        lines = ["| killed | while | kills |", "|---|---|---|"]
        lines += [f"| {kind} | {hit} | {n} |" for (kind, hit), n in sorted(counts.items())]
        with open_instance(self.home) as instance:
            runs = Counter(run.status.value for run in instance.get_runs())
        figures = {
            "images": self.n_images,
            "merged": sum(self.merged(i) for i in range(self.n_images)),
            "tiles": self.n_images * N_TILES,
            "tiles labelled more than once": self.n_twice,
            "daemons": self.n_daemons,
            "runs": dict(runs),
            "images with a tile that failed": self.n_repaired,
            "seconds of killing": self.kills[-1].seconds if self.kills else 0,
            "seconds to rest": self.seconds_to_rest,
        }
        return "\n".join([*lines, "", json.dumps(figures)])


def key_of(number: int) -> str:
    """Return the key of an image."""
    return f"n{number:03}"


def picture(number: int) -> np.ndarray:
    """Return an image whose pixels say which it is."""
    cells = tissue(SHAPE, seed=number)
    return np.where(cells > 0, cells + IDS * (number + 1), 0).astype(np.uint16)


def words(process: psutil.Process) -> list[str]:
    """Return the command line of a process; of one that is gone, nothing."""
    with suppress(psutil.Error):
        return process.cmdline()
    return []


def children(process: psutil.Process) -> list[psutil.Process]:
    """Return the children of a process; of one that is gone, none."""
    with suppress(psutil.Error):
        return process.children()
    return []


def tiles_done(lines: list[str]) -> Counter[tuple[int, str]]:
    """Count the tiles that were labelled, by image and digest of their pixels."""
    words = (line.split() for line in lines)
    # A tile without a pixel is of no image.
    return Counter((int(w[1]), w[2]) for w in words if w[0] == "done" and int(w[1]) >= 0)


def runs_by_process(home: Path) -> dict[int, tuple[str, str]]:
    """Return job and image of the runs of a home by the process that they were in."""
    found = {}
    with open_instance(home) as instance:
        for run in instance.get_runs():
            events = instance.get_records_for_run(
                run.run_id, of_type=dg.DagsterEventType.ENGINE_EVENT, limit=20
            )
            for record in events.records:
                event = record.event_log_entry.dagster_event
                pid = event.engine_event_data.metadata.get("pid") if event else None
                if pid is not None:
                    key = run.tags.get(IMAGE) or run.tags.get("dagster/partition", "")
                    found[int(str(pid.value))] = (run.job_name, key.partition("/")[0])
    return found


def main() -> int:
    """Kill, let it rest, and print what came of it."""
    parser = argparse.ArgumentParser(description=str(__doc__).splitlines()[0])
    parser.add_argument("--kills", type=int, default=300)
    parser.add_argument("--minutes", type=float, default=1000.0, help="To kill for at most.")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--keep", help="A folder for the home, which stays.")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(options.keep or name)
        folder.mkdir(parents=True, exist_ok=True)
        night = Night(folder, options.seed)
        try:
            for kill in night.kill(options.kills, options.minutes):
                print(json.dumps(asdict(kill)), flush=True)
            night.rest()
        finally:
            night.stop()
        night.judge()
        print(night.table())
        for fault in night.faults:
            print(fault)
    return min(1, len(night.faults))


if __name__ == "__main__":
    sys.exit(main())
