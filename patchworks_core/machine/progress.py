"""Progress bars in the terminal, one per step."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from rich.console import Console

Progress = Callable[[str, int, int], None]
"""Called with the name of a step, how much of it is done, and how much there is."""


def no_progress(step: str, done: int, total: int) -> None:
    """Take no notice of progress."""


def say_aloud(text: str) -> None:
    """Say something on standard error."""
    print(text, file=sys.stderr, flush=True)


@contextmanager
def step_bars(title: str, console: Console | None = None) -> Iterator[Progress]:
    """Give a function that draws a bar for each step it is told of; nothing where no person looks.

    Parameters
    ----------
    title : str
        Before the name of each step.
    console : rich.console.Console, optional
        Standard error by default.
    """
    from rich import progress
    from rich.console import Console

    shown = console or Console(stderr=True)
    bars = progress.Progress(
        progress.TextColumn("{task.description}", markup=False),
        progress.BarColumn(),
        progress.MofNCompleteColumn(),
        progress.TimeElapsedColumn(),
        progress.TimeRemainingColumn(),
        console=shown,
        disable=not shown.is_terminal,
    )
    tasks: dict[str, progress.TaskID] = {}

    def show(step: str, done: int, total: int) -> None:
        if step not in tasks:
            tasks[step] = bars.add_task(f"{title}: {step}", total=total)
        bars.update(tasks[step], completed=done, total=total)

    with bars:
        yield show
