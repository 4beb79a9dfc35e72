"""Every numbered step of the small calls, or some of them: stopped there, and called again."""

from __future__ import annotations

import os
import random
import shutil
from collections.abc import Iterator
from pathlib import Path

from tests.faults.trials import CALLS, FAULTS, Fault, Trial, reference_of, tried


def warm_up(folder: Path) -> None:
    """Import everything, and start what is started once, before copies of this process are made."""
    for name, call in CALLS.items():
        place = folder / f"warm {name}"
        calls = folder / f"warm {name} calls"
        place.mkdir(parents=True)
        calls.mkdir()
        os.environ["PATCHWORKS_TEST_CALLS"] = str(calls)
        call(place)
        shutil.rmtree(place)
        shutil.rmtree(calls)
    del os.environ["PATCHWORKS_TEST_CALLS"]


def trials(folder: Path, *, seed: int, n: int | None = None) -> Iterator[Trial]:
    """Stop calls at steps, and call again.

    Parameters
    ----------
    folder : Path
        Empty.
    seed : int
        Of the choice of steps.
    n : int, optional
        How many, spread over calls and faults; all by default.
    """
    warm_up(folder)
    for name in CALLS:
        reference, n_steps = reference_of(name, folder / "reference")
        for fault, at in _chosen(n_steps, seed, None if n is None else n // len(CALLS)):
            yield tried(name, fault, at, folder / "trial", reference)


def _chosen(n_steps: int, seed: int, n: int | None) -> list[tuple[Fault, int]]:
    """Return faults and steps, each stretch of the call as often as another."""
    places = [(fault, at) for at in range(1, n_steps + 1) for fault in FAULTS]
    if n is None:
        return places
    chance = random.Random(seed)
    width = n_steps / n
    return [
        (FAULTS[i % len(FAULTS)], min(n_steps, 1 + int(i * width + chance.random() * width)))
        for i in range(n)
    ]


def table(done: list[Trial]) -> str:
    """Return what came of trials, as a table of Markdown."""
    lines = [
        "| call | fault | steps | same bytes after the call again | tiles computed twice, at most "
        "| files left over | longest call, s |",
        "|---|---|---|---|---|---|---|",
    ]
    for call in CALLS:
        for fault in FAULTS:
            rows = [t for t in done if (t.call, t.fault) == (call, fault)]
            if not rows:
                continue
            n_same = sum(not any("bytes" in f or "again" in f for f in t.faults) for t in rows)
            n_left = sum(any("left over" in f for f in t.faults) for t in rows)
            longest = max(max(t.first.seconds, t.again.seconds) for t in rows)
            lines.append(
                f"| {call} | {fault} | {len(rows)} | {n_same} | {max(t.n_twice for t in rows)} | "
                f"{n_left} | {longest:.1f} |"
            )
    return "\n".join(lines)
