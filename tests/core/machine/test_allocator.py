"""Memory that is freed goes back to the system."""

from __future__ import annotations

import threading

import psutil
import pytest

from patchworks_core.machine import allocator
from patchworks_core.machine.allocator import return_freed_memory

MANY = 2000
"""Times 100 kB, which the C library does not map one by one."""


@pytest.mark.skipif(
    not hasattr(allocator._C_LIBRARY, "malloc_trim"), reason="the C library is not glibc"
)
def test_what_a_thread_freed_is_given_back() -> None:
    kept: list[bytes] = []

    def work() -> None:
        taken = []
        for _ in range(MANY):
            taken.append(bytes([1]) * 100_000)
            kept.append(bytes([1]) * 1000)  # in between: what is freed is not the end of the heap

    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
    before = psutil.Process().memory_info().rss

    return_freed_memory()

    assert len(kept) == MANY
    assert psutil.Process().memory_info().rss < before - MANY * 50_000


def test_nothing_is_asked_of_another_c_library(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(allocator, "_C_LIBRARY", None)
    return_freed_memory()
