"""Signs of life of runs in processes that another host, or another container, cannot see.

A run of the command line counts up in the storage of the instance for as long as it goes on. Who
watches the count takes the run for gone once it has stood still for minutes by the clock of the
watcher: that clocks of two hosts differ, or that one is set, does not matter.
"""

import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress

import dagster as dg
from sqlalchemy.exc import SQLAlchemyError

SECONDS_TO_BEAT = 20.0

SECONDS_TO_BE_GONE = 300.0
"""So long a count stands still before its run is taken for gone."""


@contextmanager
def beating(instance: dg.DagsterInstance, run_id: str) -> Iterator[None]:
    """Count up for a run while the block goes on."""
    has_ended = threading.Event()

    def beat() -> None:
        count = 0
        while not has_ended.wait(SECONDS_TO_BEAT if count else 0):
            count += 1
            with suppress(SQLAlchemyError):  # one that is busy or away is told the next count
                instance.daemon_cursor_storage.set_cursor_values({_key(run_id): str(count)})

    thread = threading.Thread(target=beat, name="heartbeat", daemon=True)
    thread.start()
    try:
        yield
    finally:
        has_ended.set()
        thread.join()


class Heartbeats:
    """What one watcher has seen of the counts of runs; kept from look to look."""

    def __init__(self) -> None:
        self._last: dict[str, tuple[str, float]] = {}

    def why_gone(self, instance: dg.DagsterInstance, run: dg.DagsterRun) -> str | None:
        """Return why a run is taken for gone; None where it is not, or never counted."""
        key = _key(run.run_id)
        count = instance.daemon_cursor_storage.get_cursor_values({key}).get(key)
        if count is None:
            return None
        last, since = self._last.get(run.run_id, (None, 0.0))
        now = time.monotonic()
        if last != count:
            self._last[run.run_id] = (count, now)
            return None
        if now - since < SECONDS_TO_BE_GONE:
            return None
        return f"it gave no sign of life for {(now - since) / 60:.0f} minutes"


def _key(run_id: str) -> str:
    return f"patchworks/heartbeat/{run_id}"
