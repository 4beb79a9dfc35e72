"""Interruptions: a person's Ctrl-C and the system's SIGTERM end a call the same way.

By itself SIGTERM ends Python on the spot: nothing is cleared away, and nobody is told what is kept.
"""

from __future__ import annotations

import signal
import socket
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType
from typing import NoReturn

INTERRUPTIONS = (KeyboardInterrupt, SystemExit)
"""What a person or the system ends a call with: what is running is given up, not waited for."""

EXIT_CODE_OF_INTERRUPT = 128 + signal.SIGINT
"""Of a command that Ctrl-C ended, as shells have it."""

EXIT_CODE_OF_SIGTERM = 128 + signal.SIGTERM


class TerminatedError(SystemExit):
    """SIGTERM; where nobody catches it, this process ends with the exit code that says so."""


def is_interruption(error: BaseException | None) -> bool:
    """Tell whether an error is an interruption, or came while one was on its way.

    Those of frameworks are no `Exception` either.
    """
    while error is not None:
        if not isinstance(error, Exception | GeneratorExit):
            return True
        error = error.__cause__ or error.__context__
    return False


@contextmanager
def ended_by_sigterm() -> Iterator[None]:
    """Let SIGTERM raise `TerminatedError` in this context, unless it does something already.

    Python gives signals to the main thread; in another one nothing changes.
    """
    is_main = threading.current_thread() is threading.main_thread()
    if not is_main or signal.getsignal(signal.SIGTERM) != signal.SIG_DFL:
        yield
        return
    signal.signal(signal.SIGTERM, _terminate)
    try:
        yield
    finally:
        signal.signal(signal.SIGTERM, signal.SIG_DFL)


@contextmanager
def noting_signals() -> Iterator[Callable[[], int | None]]:
    """Give what tells which signal came last in this context, or None, whoever handles it.

    Frameworks make one error of all signals, and the exit code of a command is not the same.
    """
    if threading.current_thread() is not threading.main_thread():
        yield lambda: None
        return
    read, write = socket.socketpair()
    with read, write:
        read.setblocking(False)
        write.setblocking(False)
        before = signal.set_wakeup_fd(write.fileno(), warn_on_full_buffer=False)
        try:
            yield lambda: _last_number(read)
        finally:
            signal.set_wakeup_fd(before)


def _last_number(noted: socket.socket) -> int | None:
    try:
        return noted.recv(4096)[-1]
    except BlockingIOError:
        return None


def raise_for_signal(number: int) -> NoReturn:
    """Raise what a signal raises where nobody handles it otherwise."""
    if number == signal.SIGINT:
        raise KeyboardInterrupt
    raise TerminatedError(128 + number)


def _terminate(number: int, frame: FrameType | None) -> None:
    raise_for_signal(number)
