"""The benchmark of whole jobs measures what it says, and sees labels that are wrong."""

from __future__ import annotations

import sys
from dataclasses import replace

import numpy as np
import zarr

from benchmarks.whole_jobs.limits import limits, wrong_pixels
from benchmarks.whole_jobs.measured import measure
from benchmarks.whole_jobs.report import Cell, Row, write_report
from benchmarks.whole_jobs.workloads import Workload, write_image, write_truth

SMALL = Workload("S", "a small one", "nuclei", (1024, 96), (64, 32), density=1 / 900)


def write(path, labels):
    zarr.create_array(str(path), shape=labels.shape, dtype="int32", chunks=(8, 8))[...] = labels
    return path


def test_pixels_of_objects_that_are_split_or_fused_are_counted(tmp_path):
    truth = np.zeros((8, 8), int)
    truth[:3], truth[5:] = 1, 2
    other_ids, fused, split = np.where(truth, truth + 7, 0), np.where(truth, 1, 0), truth.copy()
    split[0, :2] = 9
    expected = write(tmp_path / "truth.zarr", truth)
    counts = [
        wrong_pixels(expected, write(tmp_path / f"{i}.zarr", labels))
        for i, labels in enumerate((other_ids, fused, split, np.zeros_like(truth)))
    ]
    assert counts == [0, 48, 2, 48]


def test_a_process_is_measured_with_its_children(tmp_path):
    code = (
        "import subprocess, sys, time, json; held = bytearray(60_000_000);"
        "subprocess.run([sys.executable, '-c', 'held = bytearray(60_000_000);"
        "import time; time.sleep(0.3)']); print(json.dumps({'seconds': 1.5, 'phases': {'a': 1}}))"
    )
    run = measure([sys.executable, "-c", code], limit=30, folder=tmp_path)
    assert (run.seconds, run.phases, run.error) == (1.5, {"a": 1}, "")
    assert run.peak_bytes > 120_000_000
    assert run.cpu_seconds > 0
    assert measure([sys.executable, "-c", "1 / 0"], limit=30, folder=tmp_path).error.startswith(
        "ZeroDivisionError"
    )


def test_what_was_measured_is_a_page_and_a_chart(tmp_path):
    image, truth = tmp_path / "image.zarr", tmp_path / "truth.zarr"
    write_image(SMALL, image)
    write_truth(SMALL, image, truth)
    assert zarr.open_array(str(truth))[...].max() > 40
    machine = limits(SMALL, image, truth, tmp_path / "scratch.zarr", 1)
    assert all(seconds > 0 for seconds in machine.values())
    cells = {
        "patchworks": Cell(2.0, 1.9, 2.2, 3.0, 10**8, 0, {"stage": 1.5}),
        "peer": Cell(5.0, 4.0, 6.0, 7.0, 10**9, 12),
        "dask": Cell(float("nan"), 0, 0, 0, 0, error="no such thing"),
    }
    four = {"patchworks": Cell(12.0, 12.0, 12.0, 9.0, 11 * 10**7)}
    large = Row(replace(SMALL, name="Sx4"), four, machine)
    write_report([Row(SMALL, cells, machine), large], tmp_path, repeats=1, workers=2)
    page = (tmp_path / "RESULTS.md").read_text()
    assert "| S | patchworks | 1.50 | 1.10 |" in page
    assert "| S | 2.50 |  |" in page
    assert "**12 pixels wrong**" in page
    assert "failed: no such thing" in page
    assert (tmp_path / "results.png").stat().st_size > 5000
