"""Bars where somebody looks, a line a minute where nobody does."""

from __future__ import annotations

import io
import sys
from types import SimpleNamespace

import numpy as np
import tqdm.auto
from rich.console import Console

from patchworks_core import tile_process
from patchworks_core.machine.progress import Lines, step_bars
from tests.core.staging import label_components


def test_a_log_file_gets_a_line_a_minute():
    now, lines = [0.0], []
    tell = Lines("patchworks", lines.append, clock=lambda: now[0])
    for done in range(101):
        tell("stage", done, 100)
        now[0] += 4
    assert len(lines) == 6
    assert lines[0] == "patchworks: stage 15 of 100 (15%), 6 min left"
    tell("apply", 0, 100)
    assert len(lines) == 6


def test_a_short_call_says_nothing_in_a_log_file(capsys):
    tile_process(np.ones((8, 8)), label_components, tile_shape=4, progress=True)
    assert capsys.readouterr().err == ""


def test_a_terminal_gets_bars():
    terminal = io.StringIO()
    with step_bars("a", Console(file=terminal, force_terminal=True, width=80)) as show:
        show("stage", 3, 3)
    assert "a: stage" in terminal.getvalue()


def test_a_notebook_gets_bars_of_its_own(monkeypatch):
    shell = type("ZMQInteractiveShell", (), {})()
    monkeypatch.setitem(sys.modules, "IPython", SimpleNamespace(get_ipython=lambda: shell))
    bars = []

    class Bar:
        def __init__(self, desc, total):
            self.desc, self.total, self.n, self.is_closed = desc, total, 0, False
            bars.append(self)

        def update(self, n):
            self.n += n

        def close(self):
            self.is_closed = True

    monkeypatch.setattr(tqdm.auto, "tqdm", Bar)
    tile_process(np.ones((8, 8)), label_components, tile_shape=4, progress=True)
    steps = {bar.desc: (bar.n, bar.total, bar.is_closed) for bar in bars}
    assert steps["patchworks: stage"] == steps["patchworks: apply"] == (4, 4, True)
