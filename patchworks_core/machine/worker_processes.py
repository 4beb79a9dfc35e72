"""One worker process: what starts it, gives it calls and ends it; and what it does itself.

1. `WorkerProcess` starts an interpreter that shares nothing with this one but a pair of sockets.
   cloudpickle sends functions that are defined in notebooks and scripts, and no ``__main__`` guard
   is needed.
2. `serve` runs there: it takes calls one by one until this process is gone.
3. `WorkerProcess.call` notices a worker that dies, takes too long or takes too much memory, and
   knows what it was working on.
"""

from __future__ import annotations

import os
import pickle
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Mapping
from contextlib import suppress
from multiprocessing.connection import Connection, wait
from typing import Any, TypeVar

import cloudpickle
import psutil

from patchworks_core.errors import TileTimeoutError, WorkerLostError, WorkerMemoryError
from patchworks_core.machine.faults import free_reserve
from patchworks_core.machine.limits import Deadline, over_memory, over_time
from patchworks_core.machine.parents import end_with_parent

T = TypeVar("T")

SECONDS_BETWEEN_LOOKS = 0.05
"""How often a worker at work is looked at: for its memory, and whether it is there."""

SECONDS_TO_START = 600.0
"""Until a call has begun: the interpreter starts, and imports what the call is made of."""

STARTS = 5
"""Workers that may be killed, one after the other, before they begin with one call."""

SHARES_DEVICE = "PATCHWORKS_SHARES_DEVICE"
"""Set in the environment of a worker whose GPU others use too: what it holds in reserve between two
calls would be missing to them."""

BEGUN = b""
"""Sent when what was received is whole and is about to run, and by `begin_next`: from now on its
time counts."""

_PROGRAM = """
import sys
from multiprocessing.connection import Connection
connection, parent = Connection(int(sys.argv[1])), int(sys.argv[2])
sys.path[:], sys.argv[:] = connection.recv()
from patchworks_core.machine.worker_processes import serve
serve(connection, parent)
"""


class NotBegunError(WorkerLostError):
    """The process was killed before it began with the call, which is then not to blame."""


def answered(call: Callable[[], T], *, goes_on: Callable[[], bool] = lambda: True) -> T:
    """Return what a worker gives; one that was killed before it began has a successor.

    Parameters
    ----------
    call : callable
        Makes the call, with another worker where the last one is gone.
    goes_on : callable
        Tells whether there is to be a successor.
    """
    for _ in range(STARTS - 1):
        try:
            return call()
        except NotBegunError:
            if not goes_on():
                raise
    return call()


class WorkerProcess:
    """A process that runs one call at a time; made and used by one thread, with which it ends."""

    def __init__(self, environ: Mapping[str, str]) -> None:
        ours, theirs = socket.socketpair()
        with theirs:
            number = str(theirs.fileno())
            self._process = subprocess.Popen(
                # -P: what lies in the working directory does not stand in for Python's own.
                [sys.executable, "-P", "-c", _PROGRAM, number, str(os.getpid())],
                stdin=subprocess.DEVNULL,  # a function that asks a question gets no answer
                pass_fds=[theirs.fileno()],
                env={**os.environ, **environ},
                # Of its own, so that what the function starts is ended with it.
                process_group=0,
            )
        self._connection = Connection(ours.detach())
        self._seen = psutil.Process(self._process.pid)
        with suppress(OSError):  # it is gone already: the first call says so
            self._connection.send(([os.path.abspath(path) for path in sys.path], sys.argv))

    def call(
        self,
        call: bytes,
        *,
        deadline: Deadline,
        memory: int | None,
        is_wanted: Callable[[], bool] = lambda: True,
    ) -> Any:
        """Run a pickled call, and return what it returns.

        Parameters
        ----------
        call : bytes
            As `pickled_call` gives it.
        deadline : Deadline
            Of calls, or of their parts (`begin_next`); learns how long each took.
        memory : int or None
            Bytes that the process may take.
        is_wanted : callable
            Tells whether somebody still waits for the call.

        Raises
        ------
        WorkerLostError
            If the process died, or was ended for its time or memory, or as nobody waited for the
            call; it is gone then.
        NotBegunError
            If it was killed before it began.
        """
        has_begun = False
        try:
            self._connection.send_bytes(call)
            answer = self._answer(lambda: SECONDS_TO_START, memory, is_wanted)
            start = time.monotonic()
            while answer == BEGUN:
                if has_begun:
                    deadline.add(time.monotonic() - start)
                has_begun, start = True, time.monotonic()
                answer = self._answer(lambda: deadline.seconds, memory, is_wanted)
        except WorkerLostError:
            self.end()
            raise
        except (EOFError, OSError):
            with suppress(subprocess.TimeoutExpired):
                self._process.wait(5)
            code = self._process.poll()
            self.end()
            if not has_begun and code in (-signal.SIGKILL, -signal.SIGTERM):
                raise NotBegunError(_how_it_ended(code)) from None
            raise WorkerLostError(_how_it_ended(code)) from None
        deadline.add(time.monotonic() - start)
        is_value, value, is_last = pickle.loads(answer)
        if is_last:
            self.end()
        if not is_value:
            raise value
        return value

    @property
    def is_running(self) -> bool:
        """True while the process is there."""
        return self._process.poll() is None

    def _answer(
        self, seconds: Callable[[], float], memory: int | None, is_wanted: Callable[[], bool]
    ) -> bytes:
        """Wait for the next answer; `seconds` says how long, and may say more while it waits."""
        start = time.monotonic()
        while not wait([self._connection], SECONDS_BETWEEN_LOOKS):
            if time.monotonic() - start > seconds():
                raise TileTimeoutError(over_time(seconds()))
            if memory is not None and (used := self._memory_bytes()) > memory:
                raise WorkerMemoryError(over_memory(used, memory))
            if self._process.poll() is not None:
                raise EOFError
            if not is_wanted():
                raise WorkerLostError("nobody waits for it any more, and its process was ended")
        return self._connection.recv_bytes()

    def _memory_bytes(self) -> int:
        """Return the memory that is the process's own; not the files that it maps."""
        try:
            memory = self._seen.memory_info()
        except psutil.Error:
            return 0  # it is gone, which is noticed
        return int(memory.rss - getattr(memory, "shared", 0))

    def end(self) -> None:
        """Kill the process and what it started; harmless more than once, and from any thread."""
        if self._process.poll() is None:
            with suppress(ProcessLookupError, PermissionError):
                os.killpg(self._process.pid, signal.SIGKILL)
            self._process.wait()

    def close(self) -> None:
        """End the process, and forget it."""
        self.end()
        self._connection.close()


def pickled_call(function: Any, arguments: tuple[Any, ...], keywords: dict[str, Any]) -> bytes:
    """Return a call as it is sent to a worker process."""
    return bytes(cloudpickle.dumps((function, arguments, keywords)))


def _how_it_ended(code: int | None) -> str:
    """Say how a worker process ended, going by its exit code."""
    if code is None or code >= 0:
        return (
            f"its worker process ended with exit code {code}: the function, or a library that it "
            "uses, ended the process"
        )
    name = signal.Signals(-code).name if -code in set(signal.Signals) else f"signal {-code}"
    why = "the function, or a library that it uses, crashed"
    if name in ("SIGKILL", "SIGTERM"):
        why = "the system does so when memory runs out, as do batch systems and people"
    return f"its worker process was ended by {name}: {why}"


_is_last = False
"""Whether this worker process can do nothing more after the call that it is at."""


def end_after_call() -> None:
    """Let another worker take the next call, where this process is one: it lost its GPU."""
    global _is_last
    _is_last = True


_here: tuple[int, Connection] | None = None
"""Number of this process and its line to the one that sends calls, where it is a worker."""


def begin_next() -> None:
    """Count the time of the call that a worker process is at from now on: its next tile begins.

    Elsewhere nothing happens.
    """
    if _here is not None and _here[0] == os.getpid():
        _here[1].send_bytes(BEGUN)


def serve(connection: Connection, parent: int) -> None:
    """Take calls and answer them, until the process that sends them is gone."""
    global _here
    end_with_parent(parent)
    _here = os.getpid(), connection
    os.set_inheritable(connection.fileno(), False)
    own = os.getpid()
    while True:
        try:
            call = connection.recv_bytes()
        except (EOFError, OSError):
            return
        answer = _answer(call, connection)
        if os.getpid() != own:  # a copy that the function made of this process, and that came back
            os._exit(0)
        for stream in (sys.stdout, sys.stderr):
            with suppress(OSError, ValueError, AttributeError):
                stream.flush()  # the process is killed in the end
        connection.send_bytes(answer)
        if SHARES_DEVICE in os.environ:
            free_reserve()


def _answer(call: bytes, connection: Connection) -> bytes:
    """Run a pickled call; return what came of it, pickled.

    That is whether it gave a value, the value or the error, and whether it was the last call that
    this process can do.
    """
    try:
        function, arguments, keywords = pickle.loads(call)
        connection.send_bytes(BEGUN)
        value = function(*arguments, **keywords)
        return bytes(cloudpickle.dumps((True, value, _is_last)))
    except BaseException as error:
        try:
            return bytes(cloudpickle.dumps((False, error, _is_last)))
        except Exception:
            return pickle.dumps((False, RuntimeError(f"{type(error).__name__}: {error}"), _is_last))
