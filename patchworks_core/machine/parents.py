"""A worker process ends when the process that started it is gone, however that ended.

A process that is killed (out of memory, a batch system, power of a container) cannot stop its
workers; they would wait for tasks for ever, with their memory and their GPU.

1. On Linux the kernel kills the worker, whatever it is doing.
2. Everywhere else, and besides, a thread looks for the parent; it waits for a function that holds
   the GIL.
"""

from __future__ import annotations

import ctypes
import os
import signal
import sys
import threading
import time

SECONDS_BETWEEN_LOOKS = 1.0
"""How long a worker may outlive its parent where the kernel does not end it."""

PR_SET_PDEATHSIG = 1
"""Number of the option in ``<linux/prctl.h>``."""


def end_with_parent(parent: int) -> None:
    """End this process soon after its parent; called once, as it starts.

    Parameters
    ----------
    parent : int
        Process id of the parent, which may be gone already. The kernel takes the *thread* that
        started this process for its parent: this process ends with that thread.

    References
    ----------
    prctl(2), ``PR_SET_PDEATHSIG``.
    """
    if sys.platform == "linux":
        libc = ctypes.CDLL(None, use_errno=True)
        libc.prctl(PR_SET_PDEATHSIG, signal.SIGKILL, 0, 0, 0)
    threading.Thread(target=_watch, args=(parent,), name="patchworks-parent", daemon=True).start()


def _watch(parent: int) -> None:
    """End this process once its parent is another than the one that started it."""
    while os.getppid() == parent:
        time.sleep(SECONDS_BETWEEN_LOOKS)
    # Not `sys.exit`, which ends a thread only; there is nobody left to clean up for.
    os._exit(1)
