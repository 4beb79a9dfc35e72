"""Progress bars of the runs in this process."""

from collections.abc import Iterator
from contextlib import contextmanager

from rich.console import Console

from patchworks_core.machine.progress import step_bars
from patchworks_pipeline.progress import listen


@contextmanager
def progress_bars(title: str, console: Console) -> Iterator[None]:
    """Show the progress of what runs in this context."""
    with step_bars(title, console) as show, listen(show):
        yield
