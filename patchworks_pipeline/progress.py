"""Progress of the run in this process, for whoever listens: the command line's progress bars."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar

Listener = Callable[[str, int, int], None]
"""Called with the name of a step, how much of it is done, and how much there is."""

_listener: ContextVar[Listener | None] = ContextVar("patchworks_progress", default=None)


@contextmanager
def listen(listener: Listener) -> Iterator[None]:
    """Send the progress of runs in this context to `listener`."""
    token = _listener.set(listener)
    try:
        yield
    finally:
        _listener.reset(token)


def report_progress(step: str, done: int, total: int) -> None:
    """Say how much of a step is done."""
    listener = _listener.get()
    if listener is not None:
        listener(step, done, total)
