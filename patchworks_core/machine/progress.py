"""How far a call is: bars in a terminal or a notebook, a line now and then in a log file."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from rich.console import Console

Progress = Callable[[str, int, int], None]
"""Called with the name of a step, how much of it is done, and how much there is."""


SECONDS_BETWEEN_LINES = 60.0
"""Of a log file, which nobody watches."""


def no_progress(step: str, done: int, total: int) -> None:
    """Take no notice of progress."""


def say_aloud(text: str) -> None:
    """Say something on standard error."""
    print(text, file=sys.stderr, flush=True)


@contextmanager
def step_bars(title: str, console: Console | None = None) -> Iterator[Progress]:
    """Give a function that draws a bar for each step it is told of.

    In a terminal and in a notebook; elsewhere, as in a job's log file, it says a line a minute.

    Parameters
    ----------
    title : str
        Before the name of each step.
    console : rich.console.Console, optional
        Standard error by default.
    """
    from rich.console import Console

    shown = console or Console(stderr=True)
    if in_notebook():
        with _notebook_bars(title) as show:
            yield show
    elif shown.is_terminal:
        with _terminal_bars(title, shown) as show:
            yield show
    else:
        yield Lines(title, lambda text: shown.print(text, markup=False, highlight=False))


@contextmanager
def progress_of(progress: bool | Progress | None) -> Iterator[Progress]:
    """Give the function to tell of progress: bars, the caller's own, or none."""
    if progress is True:
        with step_bars("patchworks") as show:
            yield show
    else:
        yield progress or no_progress


def in_notebook() -> bool:
    """Tell whether a notebook shows what this process draws."""
    ipython = sys.modules.get("IPython")
    shell = None if ipython is None else ipython.get_ipython()
    return type(shell).__name__ == "ZMQInteractiveShell"


@dataclass(slots=True)
class Lines:
    """Says how far a step is, at most once a minute."""

    title: str
    """Before the name of each step."""

    say: Callable[[str], None]
    clock: Callable[[], float] = time.monotonic
    step: str = ""
    began: float = 0.0
    said_at: float = 0.0

    def __call__(self, step: str, done: int, total: int) -> None:
        """Hear how far a step is."""
        now = self.clock()
        if step != self.step:
            self.step, self.began = step, now
            self.said_at = self.said_at or now
        if now - self.said_at < SECONDS_BETWEEN_LINES or not total:
            return
        self.said_at = now
        left = (now - self.began) / max(done, 1) * (total - done) / 60
        self.say(
            f"{self.title}: {step} {done} of {total} ({done / total:.0%}), {left:.0f} min left"
        )


@contextmanager
def _notebook_bars(title: str) -> Iterator[Progress]:
    from tqdm.auto import tqdm

    bars: dict[str, Any] = {}

    def show(step: str, done: int, total: int) -> None:
        if step not in bars:
            bars[step] = tqdm(desc=f"{title}: {step}", total=total)
        bars[step].total = total
        bars[step].update(done - bars[step].n)

    try:
        yield show
    finally:
        for bar in bars.values():
            bar.close()


@contextmanager
def _terminal_bars(title: str, shown: Console) -> Iterator[Progress]:
    from rich import progress

    bars = progress.Progress(
        progress.TextColumn("{task.description}", markup=False),
        progress.BarColumn(),
        progress.MofNCompleteColumn(),
        progress.TimeElapsedColumn(),
        progress.TimeRemainingColumn(),
        console=shown,
    )
    tasks: dict[str, progress.TaskID] = {}

    def show(step: str, done: int, total: int) -> None:
        if step not in tasks:
            tasks[step] = bars.add_task(f"{title}: {step}", total=total)
        bars.update(tasks[step], completed=done, total=total)

    with bars:
        yield show
