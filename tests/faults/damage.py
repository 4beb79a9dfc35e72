"""Every file of a half-finished and of a finished call: removed, cut short, one bit turned."""

from __future__ import annotations

import random
import re
import shutil
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import numpy as np
import zarr

from tests.faults.points import warm_up
from tests.faults.trials import (
    CALLS,
    KILLED,
    digest_of,
    files_in,
    left_over,
    reference_of,
    run,
)

Harm = Literal["removed", "cut short", "a bit turned"]

N_TILES = 6

HARMS: tuple[Harm, ...] = ("removed", "cut short", "a bit turned")

KINDS = (
    ("record of the stage", r"plan\.json|/generation"),
    ("tile block", r"\.tiles$"),
    ("image for workers", r"image\.npy"),
    ("record of applied blocks", r"/applied/"),
    ("record that vouches", r"\.patchworks\.json|provenance\.json"),
    ("metadata of Zarr", r"zarr\.json|\.z(array|attrs|group)"),
    ("labels", r"/c/|/\d+/\d+$"),
)
"""What files are, by how their names look; the first that fits."""


@dataclass(frozen=True, slots=True)
class Damage:
    """A file that was harmed, and the call that came then."""

    call: str
    state: str
    file: str
    kind: str
    harm: Harm
    outcome: str
    """``same bytes``, ``same values``, ``refused``, or what was wrong."""

    n_tiles: int
    """That were computed again."""

    @property
    def is_silent(self) -> bool:
        """True where the call said nothing and the labels are other ones."""
        return self.outcome not in ("same bytes", "same values", "refused")


def trials(folder: Path, *, seed: int, every: int = 1) -> Iterator[Damage]:
    """Harm each file, or every so-manieth, and call again."""
    warm_up(folder)
    number = 0
    for call in CALLS:
        _, n_steps = reference_of(call, folder / "reference")
        whole = folder / "whole"
        whole.mkdir()
        run(CALLS[call], whole)
        for state, at in (("half finished", _step_of_half(call, folder, n_steps)), ("finished", 0)):
            before = folder / "before"
            before.mkdir()
            ended = run(CALLS[call], before, at or None)
            assert ended.code == (KILLED if at else 0)
            for file in _files(before):
                for harm in HARMS:
                    number += 1
                    if number % every == 0:
                        yield _harmed(call, state, before, file, harm, whole, seed)
            shutil.rmtree(before)
        shutil.rmtree(whole)


def labels_digest(folder: Path) -> str:
    """Return a digest of labels; not of the groups above them, which are the user's."""
    labels = [folder / "a.zarr" / "labels", folder / "b.zarr" / "labels" / "labels"]
    return digest_of(next(path for path in labels if path.exists()))


def _reads_the_same(folder: Path, whole: Path, harmed: str) -> bool:
    """Tell whether only chunks of the harmed name are other ones, and read as the same values.

    A Zstandard frame has bits that say nothing.
    """
    for path in files_in(whole):
        mine, theirs = folder / path, whole / path
        if "stage.zarr" in path or path.endswith(".patchworks.json"):
            continue
        if not mine.exists():
            return False
        if mine.read_bytes() == theirs.read_bytes():
            continue
        array = next((p for p in mine.parents if (p / "zarr.json").exists()), None)
        if array is None or mine.name not in (harmed, "provenance.json"):
            return False
        if mine.name == harmed:
            other = whole / array.relative_to(folder)
            try:
                if not np.array_equal(zarr.open_array(array)[...], zarr.open_array(other)[...]):
                    return False
            except (RuntimeError, ValueError):
                return False
    return True


def _step_of_half(call: str, folder: Path, n_steps: int) -> int:
    """Return a step at which all tiles are staged and some of the labels are written."""
    for at in range(n_steps, 0, -max(1, n_steps // 40)):
        place = folder / "half"
        place.mkdir()
        run(CALLS[call], place, at)
        files = _files(place)
        is_half = len([file for file in files if file.endswith(".tiles")]) == N_TILES and all(
            ".work/" in file and not file.endswith(".patchworks.json")
            for file in files
            if _kind(file) in ("labels", "record that vouches")
        )
        is_half &= sum("c/" in file and "applied" not in file for file in files) >= N_TILES
        shutil.rmtree(place)
        if is_half:
            return at
    raise AssertionError("no step has both")


def _files(folder: Path) -> list[str]:
    return sorted(str(p.relative_to(folder)) for p in folder.rglob("*") if p.is_file())


def _kind(file: str) -> str:
    return next((kind for kind, name in KINDS if re.search(name, f"/{file}")), "other")


def _harmed(
    call: str, state: str, before: Path, file: str, harm: Harm, whole: Path, seed: int
) -> Damage:
    folder = before.with_name("trial")
    shutil.copytree(before, folder)
    harm_file(folder / file, harm, seed)
    again = run(CALLS[call], folder)
    if again.code:
        outcome = f"ended with {again.code}"
    elif again.error:
        is_named = re.match(r"(StageError|PlanError|StorageError|ImageError): ", again.error)
        outcome = "refused" if is_named else f"raised {again.error[:1500]}"
    elif labels_digest(folder) == labels_digest(whole):
        outcome = "same bytes"
    elif _reads_the_same(folder, whole, Path(file).name):
        outcome = "same values"
    else:
        outcome = f"other bytes, left over {left_over(folder)}"
    shutil.rmtree(folder)
    return Damage(call, state, file, _kind(file), harm, outcome, sum(again.calls.values()))


def harm_file(path: Path, harm: Harm, seed: int) -> None:
    """Remove a file, cut it to half, or turn one of its bits."""
    content = bytearray(path.read_bytes())
    if harm == "removed" or not content:
        path.unlink()
        return
    if harm == "cut short":
        path.write_bytes(content[: len(content) // 2])
        return
    place = random.Random(f"{seed} {path.name}").randrange(8 * len(content))
    content[place // 8] ^= 1 << place % 8
    path.write_bytes(content)


def table(done: list[Damage]) -> str:
    """Return what came of damage by kind of file, as a table of Markdown."""
    lines = [
        "| state | kind of file | trials | same bytes | refused by name | silently other | tiles "
        "computed again, at most |",
        "|---|---|---|---|---|---|---|",
    ]
    for state in ("half finished", "finished"):
        for kind in (*(kind for kind, _ in KINDS), "other"):
            rows = [d for d in done if (d.state, d.kind) == (state, kind)]
            if rows:
                same = sum(d.outcome in ("same bytes", "same values") for d in rows)
                refused = sum(d.outcome == "refused" for d in rows)
                silent = sum(d.is_silent for d in rows)
                most = max(d.n_tiles for d in rows)
                figures = " | ".join(map(str, (len(rows), same, refused, silent, most)))
                lines.append(f"| {state} | {kind} | {figures} |")
    return "\n".join(lines)
