"""What a function may do to the process it runs in; light, as each worker process imports it."""

import ctypes
import os
import signal
import subprocess
import sys
import time

import numpy as np


def misbehave(item):
    if item == "sleeps":
        time.sleep(600)
    if item == "holds the GIL":
        ctypes.PyDLL(None).sleep(600)
    if item == "crashes":
        os.kill(os.getpid(), signal.SIGSEGV)
    if item == "exits":
        os._exit(7)
    if item == "eats memory":
        pages = [np.ones(1 << 28, "u1")]
        time.sleep(600)
        del pages
    if item == "starts others":
        subprocess.Popen([sys.executable, "-c", "import time; time.sleep(600)"])
        time.sleep(600)
    if item == "forks":
        os.fork()
    return os.getpid()


class Arrives:
    """What takes its time to arrive in a worker, as often as its file has fewer than so many lines.

    The process that it arrives in is noted there.
    """

    def __init__(self, path, n_slow):
        self.how = str(path), n_slow

    def __reduce__(self):
        return arrive, self.how


def arrive(path, n_slow):
    with open(path, "a+") as notes:
        notes.write(f"{os.getpid()}\n")
        notes.seek(0)
        n_lines = len(notes.readlines())
    if n_lines <= n_slow:
        time.sleep(60)
    return os.getpid()
