"""Worker processes: their threads, and what becomes of them when the process above them is gone."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
import time

import psutil
import pytest

from patchworks_core.machine.executors import THREAD_VARIABLES
from patchworks_core.machine.pools import Pool
from patchworks_core.machine.workers import Workers

DRIVER = """
import ctypes, os, sys, threading, time
from patchworks_core.machine.pools import Pool
from patchworks_core.machine.workers import Workers

def idle(item):
    open(os.path.join({folder!r}, str(os.getpid())), "w").close()
    time.sleep(0.5 if item < 2 else 600)

def hold_the_lock(item):
    open(os.path.join({folder!r}, str(os.getpid())), "w").close()
    ctypes.PyDLL(None).sleep(600)

def work():
    with Pool.open(Workers(2, "processes")) as pool:
        list(pool.map({task}, range(4), step="waiting"))

if {in_thread}:
    thread = threading.Thread(target=work)
    thread.start()
    thread.join()
else:
    work()
"""


def wait_until(is_so, seconds):
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        if is_so():
            return True
        time.sleep(0.1)
    return is_so()


def is_running(pid):
    return psutil.pid_exists(pid) and psutil.Process(pid).status() != psutil.STATUS_ZOMBIE


@pytest.mark.parametrize(
    ("task", "in_thread"), [("idle", False), ("idle", True), ("hold_the_lock", False)]
)
def test_workers_end_with_a_driver_that_was_killed(task, in_thread, tmp_path):
    code = DRIVER.format(folder=str(tmp_path), task=task, in_thread=in_thread)
    driver = subprocess.Popen([sys.executable, "-c", code], start_new_session=True)
    try:
        assert wait_until(lambda: len(list(tmp_path.iterdir())) == 2, 60)
        workers = [int(p.name) for p in tmp_path.iterdir()]
        assert all(is_running(pid) for pid in workers)
        driver.kill()
        driver.wait(10)
        assert wait_until(lambda: not any(is_running(pid) for pid in workers), 10)
    finally:
        if driver.poll() is None:
            driver.kill()
            driver.wait(10)
        for pid in (int(p.name) for p in tmp_path.iterdir()):
            if is_running(pid):
                os.kill(pid, signal.SIGKILL)


@pytest.mark.slow
def test_workers_outlive_the_thread_that_started_the_first_of_them():
    with Pool.open(Workers(1, "processes")) as pool:
        pids = []

        def start():
            pids.extend(pool.map(pid_of, range(1), step="starting"))

        thread = threading.Thread(target=start)
        thread.start()
        thread.join()
        time.sleep(1.5)
        assert list(pool.map(pid_of, range(2), step="again")) == pids * 2


def pid_of(item):
    return os.getpid()


def threads_of(item):
    return {name: os.environ[name] for name in THREAD_VARIABLES}


def test_a_worker_process_computes_with_one_thread_unless_told_otherwise(monkeypatch):
    for name in THREAD_VARIABLES:
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("MKL_NUM_THREADS", "3")
    with Pool.open(Workers(1, "processes")) as pool:
        (found,) = pool.map(threads_of, range(1), step="looking")
    assert found == {name: "1" for name in THREAD_VARIABLES} | {"MKL_NUM_THREADS": "3"}


def arguments_of(item):
    return sys.argv


def test_a_function_sees_the_arguments_of_the_program(monkeypatch):
    monkeypatch.setattr(sys, "argv", ["program", "--option"])
    with Pool.open(Workers(1, "processes")) as pool:
        assert list(pool.map(arguments_of, range(1), step="looking")) == [["program", "--option"]]
