"""A worker of a call that is gone writes nothing into the stage of the next one."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time

import numpy as np
import pytest

from patchworks_core import tile_process

DRIVER = """
import sys, time, numpy as np
from patchworks_core import tile_process

def slow(tile):
    open(sys.argv[1] + "/started", "a").close()
    time.sleep(4)
    return np.full(tile.shape, 1, dtype="i4")

tile_process(np.ones((8, 8), "u1"), slow, tile_shape=4, write_to=sys.argv[1] + "/a.zarr",
             workers=sys.argv[2], max_workers=2, merge="none")
"""


def two(tile):
    return np.arange(1, tile.size + 1, dtype="i4").reshape(tile.shape)


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["threads", "processes"])
def test_a_call_after_a_killed_one_with_another_function_has_its_labels_alone(kind, tmp_path):
    script = tmp_path / "driver.py"
    script.write_text(DRIVER)
    driver = subprocess.Popen([sys.executable, str(script), str(tmp_path), kind])
    while not (tmp_path / "started").exists():
        assert driver.poll() is None
        time.sleep(0.05)
    os.kill(driver.pid, signal.SIGKILL)
    driver.wait()
    labels = tile_process(
        np.ones((8, 8), "u1"),
        two,
        tile_shape=4,
        write_to=tmp_path / "a.zarr",
        merge="none",
        compute=True,
        resume=False,
    )
    time.sleep(5)  # as long as a worker would take that outlived its driver
    assert len(np.unique(labels)) == 64
    assert not list(tmp_path.rglob("*.work"))
