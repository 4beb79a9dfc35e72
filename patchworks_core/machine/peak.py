"""The peak of memory that a stretch of work takes in this process."""

from __future__ import annotations

import threading
from types import TracebackType

_CLEAR_REFS = "/proc/self/clear_refs"
_STATUS = "/proc/self/status"

_RESET_PEAK = b"5"
"""Written to ``clear_refs``, sets the peak back to what is resident now; see proc(5)."""

SECONDS_BETWEEN_LOOKS = 0.01
"""Where the kernel keeps no peak, memory is looked at this often."""


class PeakMemory:
    """Context that measures by how much the resident memory of this process grows at its peak.

    Meaningful where one tile at a time is worked on in the process. `bytes` is set at the end.
    """

    def __init__(self) -> None:
        self.bytes = 0
        self._start = 0
        self._peak = 0
        self._stop: threading.Event | None = None
        self._thread: threading.Thread | None = None

    def __enter__(self) -> PeakMemory:
        if _reset_kernel_peak():
            self._start = _kernel_peak()  # which is what is resident now
        else:
            self._start = self._peak = _resident()
            self._stop = threading.Event()
            self._thread = threading.Thread(target=self._look, daemon=True)
            self._thread.start()
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if self._thread is None or self._stop is None:
            self._peak = _kernel_peak()
        else:
            self._stop.set()
            self._thread.join()
        self.bytes = max(0, self._peak - self._start)

    def _look(self) -> None:
        assert self._stop is not None
        while not self._stop.wait(SECONDS_BETWEEN_LOOKS):
            self._peak = max(self._peak, _resident())


def _resident() -> int:
    import psutil

    return int(psutil.Process().memory_info().rss)


def _reset_kernel_peak() -> bool:
    """Set the kernel's peak to what is resident now; False where it keeps none."""
    try:
        with open(_CLEAR_REFS, "wb", buffering=0) as file:
            file.write(_RESET_PEAK)
    except OSError:
        return False
    return True


def _kernel_peak() -> int:
    """Return the peak of resident memory since it was reset, bytes."""
    with open(_STATUS, "rb", buffering=0) as file:
        _, _, peak = file.read().partition(b"VmHWM:")
    return int(peak.split(None, 1)[0]) * 1024 if peak else 0
