"""Ctrl-C and SIGTERM end a call at once, and what is done is kept."""

from __future__ import annotations

import gc
import os
import signal
import threading
import time

import numpy as np
import pytest

from patchworks_core import tile_process
from patchworks_core.machine.interrupts import (
    TerminatedError,
    ended_by_sigterm,
    is_interruption,
    noting_signals,
)
from tests.core.staging import label_components

# A signal may come between the opening of a file and its being closed by name.
pytestmark = pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")

IMAGE = np.ones((8, 16), "u1")


@pytest.fixture(autouse=True)
def sigint_is_heard():
    """A shell that starts the tests in the background has them ignore SIGINT."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


@pytest.fixture(autouse=True)
def nothing_left_open():
    """What a signal left open is closed before another test is blamed for it."""
    yield
    gc.collect()


def interrupt_once(tiles, n, number):
    """Send this process a signal once there are so many files of tiles."""

    def watch():
        while len(list(tiles.rglob("*.tiles"))) < n:
            time.sleep(0.01)
        os.kill(os.getpid(), number)

    threading.Thread(target=watch, daemon=True).start()


@pytest.mark.parametrize(
    ("number", "error"), [(signal.SIGINT, KeyboardInterrupt), (signal.SIGTERM, TerminatedError)]
)
def test_an_interrupted_call_ends_at_once_and_keeps_its_tiles(number, error, tmp_path, caplog):
    is_released = threading.Event()
    calls = []

    def waits(tile):
        calls.append(1)
        if len(calls) > 3 and not is_released.is_set():
            while not is_released.is_set():
                time.sleep(0.01)
        return label_components(tile)

    options = {"tile_shape": 4, "write_to": tmp_path / "a.zarr", "max_workers": 2}
    interrupt_once(tmp_path, 3, number)
    start = time.monotonic()
    with pytest.raises(error):
        tile_process(IMAGE, waits, **options)
    assert time.monotonic() - start < 10
    (text,) = [r.message for r in caplog.records if r.message.startswith("interrupted")]
    assert text.startswith("interrupted: 3 of 8 tile blocks are staged at ")
    assert "call again, and they are taken up" in text
    assert signal.getsignal(signal.SIGTERM) == signal.SIG_DFL
    is_released.set()
    time.sleep(0.2)
    assert len(list(tmp_path.rglob("*.tiles"))) == 3, "what was given up wrote nothing"
    n_before = len(calls)
    labels = tile_process(IMAGE, waits, **options, resume=True, compute=True)
    assert len(calls) - n_before == 5
    assert labels.max() == 1


def test_a_call_that_leaves_nothing_says_so(tmp_path, caplog):
    def waits(tile):
        os.kill(os.getpid(), signal.SIGINT)
        time.sleep(5)

    with pytest.raises(KeyboardInterrupt):
        tile_process(IMAGE, waits, tile_shape=8, max_workers=1)
    assert "interrupted: nothing is kept; write_to= keeps the tiles" in caplog.text


def test_sigterm_is_left_to_whoever_handles_it():
    heard = []
    before = signal.signal(signal.SIGTERM, lambda number, frame: heard.append(number))
    try:
        with ended_by_sigterm():
            os.kill(os.getpid(), signal.SIGTERM)
        assert heard == [signal.SIGTERM]
    finally:
        signal.signal(signal.SIGTERM, before)


def test_a_signal_is_noted_whoever_handles_it():
    before = signal.signal(signal.SIGUSR1, lambda number, frame: None)
    try:
        with noting_signals() as last_signal:
            assert last_signal() is None
            os.kill(os.getpid(), signal.SIGUSR1)
            assert last_signal() == signal.SIGUSR1
    finally:
        signal.signal(signal.SIGUSR1, before)


def test_an_interruption_is_seen_behind_what_it_led_to():
    closed = GeneratorExit()
    closed.__context__ = KeyboardInterrupt()
    assert is_interruption(closed)
    assert not is_interruption(GeneratorExit())
    assert not is_interruption(ValueError())
