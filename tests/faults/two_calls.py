"""Two calls at once on one target, or on one stage: each ends right, or names the other.

1. A pair is two calls on one place: the same function or another, with ``overwrite=``, with
   ``resume=``, or without.
2. The second is begun a moment after the first, by chance; both are copies of this process.
3. Both come to an end within seconds. One that succeeds leaves its labels, unless the other did so
   after it; one that does not says in one line which other call is there. What is at the target is
   of one call, byte for byte, and nothing else is there.
"""

from __future__ import annotations

import random
import re
import shutil
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

from patchworks_core import segment_to_ome_zarr, tile_process
from tests.faults.points import warm_up
from tests.faults.trials import (
    Ended,
    digest_of,
    files_in,
    image,
    labels_of_columns,
    labels_of_stripes,
    left_over,
    run,
    start,
)

OPTIONS: dict[str, dict[str, Any]] = {
    "as it is": {},
    "overwrite": {"overwrite": True},
    "resume": {"resume": True},
    "anew": {"resume": False},
}
"""What both calls are given."""

KINDS = ("tile_process", "OME-Zarr", "one stage_dir, two targets")

FUNCTIONS = {"the same function": labels_of_stripes, "another function": labels_of_columns}

SECONDS_AT_MOST = 30.0


@dataclass(frozen=True, slots=True)
class Pair:
    """Two calls, and what became of them."""

    kind: str
    functions: str
    options: str
    pause: float
    ends: tuple[Ended, Ended]
    faults: list[str] = field(default_factory=list)

    @property
    def n_refused(self) -> int:
        """Calls that ended with an error."""
        return sum(bool(end.error) for end in self.ends)


def call_of(kind: str, function: Any, options: str, number: int) -> Callable[[Path], None]:
    """Return the first or the second call of a pair."""
    return partial(_call, kind=kind, function=function, options=OPTIONS[options], number=number)


def _call(folder: Path, *, kind: str, function: Any, options: dict[str, Any], number: int) -> None:
    how = {"tile_shape": 8, "merge": "touching", "max_workers": 2, **options}
    if kind == "OME-Zarr":
        segment_to_ome_zarr(image(), function, folder / "b.zarr", **how)
        return
    if kind == "tile_process":
        tile_process(image(), function, write_to=folder / "a.zarr", **how)
        return
    target = folder / f"{number}.zarr"
    tile_process(image(), function, write_to=target, stage_dir=folder / "stage", **how)


def targets_of(kind: str) -> list[str]:
    """Return the targets of both calls."""
    return {"tile_process": ["a.zarr"] * 2, "OME-Zarr": ["b.zarr"] * 2}.get(
        kind, ["0.zarr", "1.zarr"]
    )


def trials(folder: Path, *, seed: int, n: int) -> Iterator[Pair]:
    """Do pairs of each kind, options and functions, so many in all of each kind."""
    warm_up(folder)
    chance = random.Random(seed)
    for kind in KINDS:
        references = {
            name: _reference(kind, function, folder) for name, function in FUNCTIONS.items()
        }
        longest = max(seconds for _, seconds in references.values())
        choices = [(name, options) for options in OPTIONS for name in FUNCTIONS]
        for i in range(n):
            name, options = choices[i % len(choices)]
            pause = chance.uniform(0, 1.2 * longest)
            yield _tried(kind, name, options, pause, folder / "trial", references)


def _reference(kind: str, function: Any, folder: Path) -> tuple[str, float]:
    """Return the digest of the labels that a call alone leaves, and its seconds."""
    place = folder / "reference"
    place.mkdir()
    ended = run(call_of(kind, function, "as it is", 0), place)
    assert not ended.error, ended.error
    digest = digest_of(place / targets_of(kind)[0])
    shutil.rmtree(place)
    return digest, ended.seconds


def _tried(
    kind: str,
    name: str,
    options: str,
    pause: float,
    folder: Path,
    references: dict[str, tuple[str, float]],
) -> Pair:
    """Do two calls, and say what is not as it must be."""
    folder.mkdir()
    shutil.rmtree(folder.with_name("calls"), ignore_errors=True)
    names = ("the same function", name)
    calls = [call_of(kind, FUNCTIONS[names[i]], options, i) for i in (0, 1)]
    first = start(calls[0], folder, name="0")
    time.sleep(pause)
    second = start(calls[1], folder, name="1")
    ends = (first.wait(), second.wait())
    faults = [f"call {i} ended with {end.code}" for i, end in enumerate(ends) if end.code]
    faults += [
        f"call {i} says no word of the other: {end.error}"
        for i, end in enumerate(ends)
        if end.error and not _names_the_other(end.error)
    ]
    faults += [
        f"call {i} took {end.seconds:.0f} s"
        for i, end in enumerate(ends)
        if end.seconds > SECONDS_AT_MOST
    ]
    if all(end.error for end in ends):
        faults.append("neither call succeeded")
    for target in sorted(set(targets_of(kind))):
        right = {
            references[names[i]][0]
            for i, end in enumerate(ends)
            if targets_of(kind)[i] == target and not end.error
        }
        is_there = (folder / target).exists()
        if right and (not is_there or digest_of(folder / target) not in right):
            faults.append(f"{target} is of neither call: {sorted(files_in(folder))}")
        if not right and is_there:
            faults.append(f"{target} is of a call that did not succeed")
    if rest := left_over(folder):
        faults.append(f"left over: {rest}")
    shutil.rmtree(folder)
    return Pair(kind, name, options, round(pause, 3), ends, faults)


def _names_the_other(error: str) -> bool:
    """Tell whether an error says in one line which other call is there."""
    return re.search(r"another one is at it \(process \d+ on .+\); wait", error) is not None


def table(done: list[Pair]) -> str:
    """Return what came of pairs, as a table of Markdown."""
    lines = [
        "| two calls | functions | trials | both succeeded | one was told of the other | "
        "mixed, lost or left over | longest, s |",
        "|---|---|---|---|---|---|---|",
    ]
    for kind in KINDS:
        for name in FUNCTIONS:
            rows = [pair for pair in done if (pair.kind, pair.functions) == (kind, name)]
            if rows:
                longest = max(end.seconds for pair in rows for end in pair.ends)
                lines.append(
                    f"| {kind} | {name} | {len(rows)} | {sum(p.n_refused == 0 for p in rows)} | "
                    f"{sum(p.n_refused == 1 for p in rows)} | {sum(bool(p.faults) for p in rows)} "
                    f"| {longest:.1f} |"
                )
    return "\n".join(lines)
