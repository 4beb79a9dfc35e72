"""The recipe for SLURM as `docs/deploy.md` says it, on a SLURM that the test starts."""

from __future__ import annotations

import os
import re
import subprocess
import sys
import time
from collections.abc import Iterator
from itertools import pairwise
from pathlib import Path

import pytest

from tests.e2e.conftest import until
from tests.e2e.slurm import N_GPUS, missing_program, running_slurm
from tests.tissue import environment_of_functions, files_under, tissue, write_tiff

ROOT = Path(__file__).parents[2]

RECORD = "PATCHWORKS_TEST_RECORD"
"""As in `tissue_functions`."""

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(missing_program() is not None, reason=f"{missing_program()} is missing"),
]

RECIPE = re.compile(r"## A SLURM cluster\n.*?```console\n(.*?)```", re.DOTALL)

OPTIONS = "--segmentation tissue_functions:recorded --tile-shape 32 --overlap 8"


@pytest.fixture(scope="module")
def slurm() -> Iterator[dict[str, str]]:
    with running_slurm() as environment:
        yield {**os.environ, **environment, **environment_of_functions()}


def recipe(home: Path, command: str) -> str:
    """Return what the page on deploying says, with another command in place of the last one.

    Left out is the installation; the home is the test's.
    """
    (text,) = RECIPE.findall((ROOT / "docs" / "deploy.md").read_text())
    install, *lines, serve = text.splitlines()
    assert (install[:12], serve) == ("pip install ", "patchworks ui")
    script = "\n".join([*lines, f"{sys.executable} -m patchworks_pipeline {command}"])
    assert "/shared/patchworks/home" in script
    return script.replace("/shared/patchworks/home", str(home))


def records(path: Path) -> list[tuple[str, float, float]]:
    """Return the job of each tile, when it was begun and when it was done."""
    if not path.exists():
        return []
    rows = [line.split() for line in path.read_text().splitlines()]
    return [(job, float(start), float(stop)) for job, start, stop in rows]


@pytest.mark.timeout(900)
def test_tiles_run_in_jobs_one_on_each_gpu_and_one_that_waited_takes_that_of_a_cancelled_job(
    tmp_path, slurm
):
    image = write_tiff(tmp_path / "tissue.ome.tif", tissue())
    record = tmp_path / "record"
    environment = {**slurm, RECORD: str(record), "SBATCH_OUTPUT": str(tmp_path / "slurm-%j.out")}
    environment.pop("PATCHWORKS_HOME", None)
    options = OPTIONS.replace("32", "20")  # tiles enough to go on until the other job is there
    script = recipe(tmp_path / "home", f"run {image} {options}")
    start = time.monotonic()
    with (tmp_path / "log").open("wb") as log:
        run = subprocess.Popen(
            ["bash", "-euc", script], cwd=ROOT, env=environment, stdout=log, stderr=log
        )
        try:
            until(lambda: len(records(record)) >= 3, seconds=180, what="the third tile")
            cancelled = records(record)[-1][0]
            cancelled_at = time.time()
            subprocess.run(["scancel", cancelled], env=environment, check=True)
            assert run.wait(240) == 0, (tmp_path / "log").read_text()
        finally:
            if run.poll() is None:
                run.terminate()
                run.wait()
    rows = records(record)
    jobs = {job for job, *_ in rows}
    print(f"\n{len(rows)} tiles in {len(jobs)} jobs in {time.monotonic() - start:.0f} s")
    assert "none" not in jobs, "tiles ran outside of jobs"
    began = {job: min(start for name, start, _ in rows if name == job) for job in jobs}
    late = [job for job in jobs if began[job] > cancelled_at]
    assert len(jobs) == N_GPUS + len(late), "more jobs than there are GPUs"
    assert late, "no job that waited took the GPU of the cancelled one"
    after = [start for job, start, _ in rows if job == cancelled and start > cancelled_at + 10]
    assert not after, "the cancelled job went on"
    for job in jobs:
        times = sorted(row[1:] for row in rows if row[0] == job)
        assert all(a[1] <= b[0] for a, b in pairwise(times)), "two at once"

    environment[RECORD] = str(tmp_path / "quiet")
    quiet = [sys.executable, "-m", "patchworks_pipeline", "run", str(image), *options.split()]
    subprocess.run([*quiet, "--home", str(tmp_path / "home_without")], env=environment, check=True)
    assert labels_of(tmp_path / "home") == labels_of(tmp_path / "home_without")


@pytest.mark.timeout(900)
def test_jobs_that_submit_wrote_stage_and_merge_and_a_cancelled_task_is_written_again(
    tmp_path, slurm
):
    image, home, record = tmp_path / "tissue.ome.tif", tmp_path / "home", tmp_path / "record"
    write_tiff(image, tissue())
    environment = {**slurm, RECORD: str(record), "PATCHWORKS_HOME": str(home)}

    def call(*command: str) -> str:
        return subprocess.run(
            command, env=environment, check=True, capture_output=True, text=True
        ).stdout

    patchworks = [sys.executable, "-m", "patchworks_pipeline"]
    asked = [
        "--tasks",
        "3",
        "--sbatch=--gres=gpu:1",
        "--sbatch=--mem=1G",
        "--merge-sbatch=--mem=1G",
    ]

    def submit(*options: str) -> str:
        """Let jobs be written, and submit them; return the number of the array."""
        words = call(*patchworks, "submit", str(image), *asked, *options)
        before = set(queued())
        call("bash", "-c", words.splitlines()[-1].strip())
        return min(set(queued()) - before, key=int)

    def queued() -> list[str]:
        return call("squeue", "--noheader", "--states=all", "-o", "%A").split()

    def are_done() -> bool:
        return not call("squeue", "--noheader", "-o", "%A").split()

    array = submit(*OPTIONS.split())
    until(lambda: len(records(record)) >= 2, seconds=120, what="the second tile")
    call("scancel", f"{array}_0")
    until(are_done, seconds=240, what="the end of the other tasks")
    assert not list(home.glob("store/*/*/labels")), "nothing is merged where a task was cancelled"
    n_staged = len(records(record))
    assert 8 <= n_staged < 12

    submit()
    until(are_done, seconds=240, what="the end of the jobs")
    rows = records(record)
    assert len(rows) - n_staged <= 4, "what was staged is staged no second time"
    assert "none" not in {job for job, *_ in rows}
    print(f"\n{n_staged} tiles, a task cancelled, then {len(rows) - n_staged} more")
    environment[RECORD] = str(tmp_path / "quiet")
    other = tmp_path / "home_without"
    call(*patchworks, "run", str(image), *OPTIONS.split(), "--home", str(other))
    assert labels_of(home) == labels_of(other)


def labels_of(home: Path) -> dict[str, bytes]:
    """Return the files of the merged labels of a home's only image."""
    (labels,) = home.glob("store/*/*/labels/labels/0")
    return files_under(labels)
