"""Killing a call at every step that it does to files or objects."""

from __future__ import annotations

import sys
from functools import cache

from patchworks_core.files.storage import as_path

CHANGES = frozenset({"os.rename", "os.remove", "os.link"})
"""Steps after which something else is there."""

STEPS = CHANGES | {"open", "os.rmdir", "os.mkdir", "os.listdir", "os.scandir"}
"""What the interpreter tells of before it is done to a file or folder."""


class Killed(BaseException):
    """The process is gone: nothing it does to files from now on is done."""


class Faults:
    """Interrupts the n-th thing that is done to files."""

    def __init__(self) -> None:
        self.at: int | None = None
        self.is_final = False
        self.steps = STEPS
        self.seen = 0

    def arm(self, at: int, *, is_final: bool, steps: frozenset[str] = STEPS) -> None:
        """Let the n-th of these steps be interrupted; where that is final, all after it too."""
        self.is_final, self.steps, self.seen = is_final, steps, 0
        self.at = at

    def disarm(self) -> bool:
        """Return whether the fault came."""
        came = self.at is not None and self.seen > self.at
        self.at = None
        return came

    def __call__(self, event: str, arguments: tuple[object, ...]) -> None:
        if self.at is None or event not in STEPS:
            return
        if event == "open" and "pytest-" not in str(arguments[0]):
            return
        is_dead = self.is_final and self.seen > self.at
        if event not in self.steps and not is_dead:
            return
        self.seen += 1
        if self.seen == self.at + 1 or is_dead:
            raise Killed if self.is_final else KeyboardInterrupt


FAULTS = Faults()


@cache
def listen() -> None:
    """Let the interpreter tell `FAULTS`; it cannot be told to stop."""
    sys.addaudithook(FAULTS)


class Store:
    """An object store of which every step can be the last."""

    def __init__(self, monkeypatch, steps=("pipe_file", "cp_file", "rm_file", "_open")) -> None:
        self.left: int | None = None
        fs = as_path("memory://killed").fs
        for name in steps:
            monkeypatch.setattr(type(fs), name, self.counted(getattr(type(fs), name)))

    def counted(self, step):
        def run(*arguments, **options):
            if self.left is not None:
                if self.left == 0:
                    raise Killed
                self.left -= 1
            return step(*arguments, **options)

        return run
