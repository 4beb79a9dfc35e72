"""Progress bars in the terminal, one per step, shown once a step takes longer than a moment."""

from collections.abc import Iterator
from contextlib import contextmanager

from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    TaskID,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)

from patchworks_pipeline.progress import listen


@contextmanager
def progress_bars(title: str, console: Console) -> Iterator[None]:
    """Show the progress of what runs in this context."""
    bars = Progress(
        TextColumn("{task.description}", markup=False),
        BarColumn(),
        MofNCompleteColumn(),
        TimeElapsedColumn(),
        TimeRemainingColumn(),
        console=console,
        disable=not console.is_terminal,
    )
    tasks: dict[str, TaskID] = {}

    def show(step: str, done: int, total: int) -> None:
        if step not in tasks:
            tasks[step] = bars.add_task(f"{title}: {step}", total=total)
        bars.update(tasks[step], completed=done, total=total)

    with bars, listen(show):
        yield
