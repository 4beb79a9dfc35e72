"""Limits of one worker process: how long a tile may take, and how much memory.

Only a process can be ended from outside, so threads have no limits.
"""

from __future__ import annotations

import math
import re
from contextlib import suppress
from dataclasses import dataclass
from typing import Any, Literal

from patchworks_core.errors import PlanError
from patchworks_core.machine.budget import granted_memory_bytes, human_bytes
from patchworks_core.tiles.numbers import finite_number

Auto = Literal["auto"]

LEAST_TIMEOUT = 0.1
"""Seconds; less than it takes to look."""

LEAST_MEMORY = 1_000_000
"""Bytes; a process takes more before it has a tile, and who says 8 means gigabytes."""

MEMORY_RULE = "must be a number of bytes, 1 MB or more, or text such as '8GB'"
"""Of `bytes_of`, after the name."""

SECONDS_OF_FIRST = 6 * 3600.0
"""A tile may take so long while none has passed, and nobody knows what one takes."""

LEAST_SECONDS = 1800.0
"""A tile may take at least so long, however quick the others were: they may have been empty."""

TIMES_SLOWEST = 50
"""A tile may take so many times as long as the slowest that passed."""

MEMORY_FRACTION = 0.95
"""Share of the granted memory that one worker may take: beyond it, the system kills something."""

_BYTES = re.compile(r"\s*([0-9.]+)\s*([kMGT]?)(i?)B?\s*", re.IGNORECASE)

_PREFIXES = "kmgt"


@dataclass(frozen=True, slots=True)
class WorkerLimits:
    """What one tile may take in a worker process, before it fails and the process is ended."""

    timeout: float | Auto | None = "auto"
    """Seconds; ``auto`` goes by the tiles that passed (`Deadline`), None is no limit."""

    memory: int | str | None = "auto"
    """Bytes, or text such as ``8GB``; ``auto`` is 95 % of what was granted, None is no limit."""

    def __post_init__(self) -> None:
        if not _is_off(self.timeout) and self.timeout != "auto":
            finite_number("tile_timeout", self.timeout, least=LEAST_TIMEOUT)
        if not _is_off(self.memory) and self.memory != "auto":
            bytes_of("worker_memory", self.memory)

    @property
    def is_asked_for(self) -> bool:
        """True where somebody named a limit."""
        return any(not _is_off(limit) and limit != "auto" for limit in (self.timeout, self.memory))

    def memory_bytes(self) -> int | None:
        """Return the bytes that a worker may take, None where there is no limit."""
        if _is_off(self.memory):
            return None
        if self.memory == "auto":
            return int(MEMORY_FRACTION * granted_memory_bytes().value)
        return bytes_of("worker_memory", self.memory)


def _is_off(limit: Any) -> bool:
    return limit is None or (isinstance(limit, float) and math.isinf(limit) and limit > 0)


AUTO_LIMITS = WorkerLimits()
"""What holds where nobody chose."""


class Deadline:
    """How long a tile may take, going by those that passed; shared by the workers of one pool."""

    def __init__(self, timeout: float | Auto | None) -> None:
        self._timeout = math.inf if _is_off(timeout) else timeout
        self._slowest: float | None = None

    def add(self, seconds: float) -> None:
        """Learn from a tile that passed."""
        self._slowest = max(seconds, self._slowest or 0.0)

    @property
    def seconds(self) -> float:
        """How long a tile may take now; infinite where there is no limit."""
        if self._timeout != "auto":
            return float(self._timeout or 0.0)
        if self._slowest is None:
            return SECONDS_OF_FIRST
        return max(LEAST_SECONDS, TIMES_SLOWEST * self._slowest)


def bytes_of(name: str, value: Any) -> int:
    """Return a number of bytes, from a number or from text.

    Parameters
    ----------
    name : str
        Of the argument, for messages.
    value : int or str

    Examples
    --------
    >>> bytes_of("worker_memory", "8GB"), bytes_of("worker_memory", "1.5 GiB")
    (8000000000, 1610612736)
    """
    number = value
    if isinstance(value, str) and (match := _BYTES.fullmatch(value)):
        digits, prefix, binary = match.groups()
        power = _PREFIXES.find(prefix.lower()) + 1 if prefix else 0
        with suppress(ValueError):
            number = int(float(digits) * (1024 if binary else 1000) ** power)
    is_number = isinstance(number, int | float) and not isinstance(number, bool)
    if not is_number or not LEAST_MEMORY <= number < math.inf:
        raise PlanError(f"{name} {MEMORY_RULE}, got {value!r}")
    return int(number)


def over_memory(used: int, limit: int) -> str:
    """Say that a worker took more than it may."""
    return (
        f"its worker process took {human_bytes(used)}, more than the {human_bytes(limit)} that "
        "one may take, and was ended; use smaller tiles, or allow more with worker_memory="
    )


def over_time(seconds: float) -> str:
    """Say that a tile took longer than it may."""
    return (
        f"it was not done after {seconds:.3g} s and its worker process was ended; if tiles may "
        "take as long, allow more with tile_timeout="
    )
