"""Every file of a home's store is removed, cut short, or has one bit turned; then the next run.

``python -m tests.faults.home_damage --every 3 --seed 1`` prints a line for each trial and a table.

1. Three homes: ``patchworks run`` was killed with half of the tiles staged, or half of the labels
   written, or came to its end.
2. A file of one is harmed, and the same ``patchworks run`` is called once more.
3. It leaves what a home that nobody harmed has, byte for byte; or it ends with an error that names
   what is damaged; or it leaves a file as it is that is no result. Labels and tables of objects
   that are other ones, and nothing said, are silent.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import shutil
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path

from patchworks_core.files.tables import DamagedError, table_of
from tests.faults.damage import HARMS, Harm, harm_file
from tests.faults.runs import N_TILES, Scene, kill_group, store_files
from tests.tissue import FUNCTIONS, environment_of_functions

KINDS = (
    ("record of the stage", r"stage\.zarr/(plan\.json|generation)"),
    ("tile block", r"\.tiles$"),
    ("record of applied blocks", r"/applied/"),
    ("record that vouches", r"\.patchworks\.json"),
    ("provenance", r"provenance\.json"),
    ("metadata of Zarr", r"zarr\.json"),
    ("labels", r"/c/"),
    ("record of the image", r"/(acquisition|plan|statistics)\.json"),
    ("pairs, lookup table", r"(boundary_pairs|lut)\.parquet"),
    ("table of objects", r"/objects\."),
    ("report", r"/report/"),
    ("figures of speed", r"staging\.json|^\.days/"),
)
"""What files are, by how their names look; the first that fits."""

STATES = ("half staged", "half merged", "finished")

RESULTS = r"/labels/labels/(?!\.patchworks)|/objects\."
"""What a home is for. Other files are made again before anything is made from them, or belong to a
group that may be a person's."""


@dataclass(frozen=True, slots=True)
class Damage:
    """A file of a home that was harmed, and the run that came then."""

    state: str
    file: str
    kind: str
    harm: Harm
    outcome: str
    """``as unharmed``, ``refused``, ``left``, or what was wrong."""

    n_tiles: int
    """That were labelled again, though they were staged."""

    seconds: float

    @property
    def is_silent(self) -> bool:
        """True where results are other ones and nothing was said."""
        return self.outcome.startswith("silent")


def trials(scene: Scene, *, seed: int, every: int = 1) -> Iterator[Damage]:
    """Harm each file of each home, or every so-manieth, and run again."""
    number = 0
    same = _the_same_each_time(scene)
    for state in STATES:
        before = scene.folder / "before"
        _bring_to(state, scene, before)
        for file in _files(before):
            for harm in HARMS:
                number += 1
                if number % every == 0:
                    yield _harmed(state, scene, before, file, harm, seed, same)


def _the_same_each_time(scene: Scene) -> dict[str, bytes]:
    """Return the files that hold the same in every home."""
    home = scene.new_home("again")
    assert scene.wait(scene.fork(home, partial(scene.run, home))) == 0
    again = store_files(home)
    return {name: content for name, content in scene.files.items() if again.get(name) == content}


def _bring_to(state: str, scene: Scene, before: Path) -> None:
    """Make a home in a state."""
    if state == "finished":
        home = scene.new_home("trial")
        assert scene.wait(scene.fork(home, partial(scene.run, home))) == 0
    else:
        n_steps = scene.n_steps["kill"]
        points = range(n_steps // 4, n_steps, 2)
        for point in points if state == "half staged" else reversed(points):
            home = scene.new_home("trial")
            pid = scene.fork(home, partial(scene.run, home, last=point))
            scene.wait(pid)
            kill_group(pid)
            if _is(state, home):
                break
        else:
            raise AssertionError(f"no step leaves a home {state}")
    shutil.rmtree(before, ignore_errors=True)
    shutil.copytree(home, before)


def _is(state: str, home: Path) -> bool:
    """Tell whether a home is in a state of a run that was killed."""
    files = _files(home)
    n_staged = sum(name.endswith(".tiles") for name in files)
    if state == "half staged":
        return n_staged >= N_TILES // 2
    n_labels = sum(".work/new/0/c/" in name for name in files)
    return n_staged == N_TILES and N_TILES // 2 <= n_labels < N_TILES


def _files(home: Path) -> list[str]:
    """Return the files of the store of a home, without locks."""
    store = home / "store"
    paths = sorted(str(p.relative_to(store)) for p in store.rglob("*") if p.is_file())
    return [path for path in paths if not path.endswith(".lock")]


def _kind(file: str) -> str:
    return next((kind for kind, name in KINDS if re.search(name, file)), "other")


def _harmed(
    state: str,
    scene: Scene,
    before: Path,
    file: str,
    harm: Harm,
    seed: int,
    same: dict[str, bytes],
) -> Damage:
    home = scene.folder / "trial"
    shutil.rmtree(home, ignore_errors=True)
    shutil.copytree(before, home)
    harmed = home / "store" / file
    harm_file(harmed, harm, seed)
    content = harmed.read_bytes() if harmed.exists() else None
    (home / "words.txt").write_text("")
    n_before = len(scene.notes(home))
    begun = time.monotonic()
    code = scene.wait(scene.fork(home, partial(scene.run, home)))
    seconds = round(time.monotonic() - begun, 1)
    words = scene.words(home)
    left = harmed.exists() and harmed.read_bytes() == content
    outcome = _outcome(home, file, code, words, same, is_left=left)
    n_left = N_TILES - len(set(scene.notes(before)))
    n_tiles = max(0, len(scene.notes(home)) - n_before - n_left)
    return Damage(state, file, _kind(file), harm, outcome, n_tiles, seconds)


def _outcome(
    home: Path, file: str, code: int, words: str, same: dict[str, bytes], *, is_left: bool
) -> str:
    """Say what came of harm to a file."""
    if code:
        if code < 0 or "Traceback" in words:
            return f"ended with {code}: {words[-1500:]}"
        names = {Path(file).stem, "/".join(Path(file).parts[2:4]).replace(".work", "")}
        is_named = any(name in words for name in names if len(name) > 3)
        return "refused" if is_named else f"refused, and the file is not named: {words[-1500:]}"
    now = store_files(home)
    others = [name for name in same if now.get(name) != same[name]]
    results = [name for name in others if re.search(RESULTS, name)]
    results = [name for name in results if not _holds_the_same(name, now.get(name), same[name])]
    if results:
        return f"silent: {', '.join(results)} are other ones"
    return "left" if others or is_left else "as unharmed"


def _holds_the_same(name: str, content: bytes | None, expected: bytes) -> bool:
    """Tell whether a table is as it was, though a bit of its file that is none of it was turned."""
    if content is None or not name.endswith(".parquet"):
        return False
    with suppress(DamagedError):
        return table_of(content).equals(table_of(expected))
    return False


def table(done: list[Damage]) -> str:
    """Return what came of damage by kind of file, as a table of Markdown."""
    lines = [
        "| state | kind of file | trials | as unharmed | refused by name | left as it is | "
        "silently other | other | tiles labelled again, at most | longest, s |",
        "|---|---|---|---|---|---|---|---|---|---|",
    ]
    for state in STATES:
        for kind in (*(kind for kind, _ in KINDS), "other"):
            rows = [d for d in done if (d.state, d.kind) == (state, kind)]
            if not rows:
                continue
            counts = Counter(d.outcome for d in rows)
            n_silent = sum(d.is_silent for d in rows)
            alike = [counts["as unharmed"], counts["refused"]]
            left = counts["left"] + counts["left, and named"]
            others = len(rows) - sum(alike) - left - n_silent
            figures = [len(rows), *alike, left, n_silent, others, max(d.n_tiles for d in rows)]
            figures.append(max(d.seconds for d in rows))
            lines.append(f"| {state} | {kind} | {' | '.join(map(str, figures))} |")
    return "\n".join(lines)


def main() -> int:
    """Harm files, run again, and print what came of it."""
    parser = argparse.ArgumentParser(description=str(__doc__).splitlines()[0])
    parser.add_argument(
        "--every", type=int, default=1, help="Of the files and harms, one in so many."
    )
    parser.add_argument("--seed", type=int, default=1)
    options = parser.parse_args()
    sys.path.insert(0, str(FUNCTIONS))
    os.environ.update(environment_of_functions())
    with tempfile.TemporaryDirectory() as folder:
        scene = Scene(Path(folder) / "scene")
        scene.folder.mkdir()
        scene.prepare()
        done = []
        for damage in trials(scene, seed=options.seed, every=options.every):
            print(json.dumps(asdict(damage)), flush=True)
            done.append(damage)
    print(table(done))
    return int(any(damage.is_silent for damage in done))


if __name__ == "__main__":
    sys.exit(main())
