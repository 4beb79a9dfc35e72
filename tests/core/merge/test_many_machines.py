"""The steps of a merge on workers that share nothing but the store: small tasks, the same bytes."""

from __future__ import annotations

import os
import pickle
import shutil
import signal
from pathlib import Path
from typing import Any

import cloudpickle
import numpy as np
import pytest

from patchworks_core import make_local_cluster
from patchworks_core.errors import ClusterError, StageError
from patchworks_core.files.storage import as_path
from patchworks_core.images.image import open_image
from patchworks_core.machine.executors import ThreadPool
from patchworks_core.machine.faults import NO_RETRY
from patchworks_core.machine.pools import ONE_MORE_WORKER, Pool
from patchworks_core.machine.sending import PickledCall, TaskInFile, in_file
from patchworks_core.machine.workers import Workers
from patchworks_core.merge import apply, outlines, steps
from patchworks_core.merge.outlines import outlines_of
from patchworks_core.merge.steps import look_up, measure_drawn, pair_tiles
from patchworks_core.ome_zarr import pyramid
from patchworks_core.ome_zarr.label_image import LabelImage, write_merged
from patchworks_core.seams.rules import MergeOptions
from patchworks_core.stage.stage import Stage
from tests.core.staging import stage_into
from tests.functions.tissue_functions import wavering
from tests.tissue import files_under, tissue, write_tiff

FEATHERED = MergeOptions("overlap", 1, outline="feather", min_size=30)
CORES = MergeOptions("overlap", 1, outline="core", min_size=30)
SHAPE = (288, 96)


@pytest.fixture(scope="module")
def stage(tmp_path_factory) -> Stage:
    folder = tmp_path_factory.mktemp("staged")
    image = write_tiff(folder / "tissue.ome.tif", tissue(SHAPE, n_cells=100))
    return stage_into(folder / "stage", str(image), wavering, tile_shape=48, overlap=8)


def merged(stage: Stage, folder: Path, options: MergeOptions, pool: Pool) -> dict[str, bytes]:
    """Merge as the pipeline does; return the files of the labels, and what was measured."""
    edges = pair_tiles(stage, pool=pool)
    drawn = outlines_of(stage, edges, options)
    lut = look_up(stage, edges, options, outlines=drawn, pool=pool)
    target = LabelImage(as_path(folder), "cells", stage.plan)
    with target.writing() as working:
        write_merged(stage, lut, target, working, provenance={}, pool=pool, outlines=drawn)
    files = files_under(folder / "labels" / "cells")
    assert {name.split("/")[0] for name in files} >= {"0", "1"}, "there is a pyramid"
    table = measure_drawn(stage.grid, open_labels(target), open_image(stage.plan.image.url), pool)
    return {**files, "table": pickle.dumps([a.tobytes() for a in (table.label, table.area)])}


def open_labels(target: LabelImage) -> Any:
    return apply.open_array(target.path / "0")


@pytest.fixture(scope="module")
def here(stage, tmp_path_factory) -> dict[MergeOptions, dict[str, bytes]]:
    """What two threads make of it."""
    folder = tmp_path_factory.mktemp("here")
    with Pool.open(Workers(2)) as pool:
        return {o: merged(stage, folder / o.outline, o, pool) for o in (FEATHERED, CORES)}


def dying(monkeypatch, module, name: str, marker: Path, method: str = "__call__") -> None:
    """Let the first worker that comes to a step be killed in it, when it has done its part."""
    base = getattr(module, name)
    do = getattr(base, method)
    path = str(marker)

    def die(self, *arguments):
        value = do(self, *arguments)
        try:
            os.close(os.open(path, os.O_CREAT | os.O_EXCL))
        except FileExistsError:
            return value
        os.kill(os.getpid(), signal.SIGKILL)

    # Of no module, so that it goes to the workers as it is.
    monkeypatch.setattr(module, name, type(name, (base,), {method: die, "__module__": "__main__"}))


STEPS = {
    "pair": (steps, "_PairTask"),
    "areas": (steps, "_AreasTask"),
    "areas as drawn": (outlines, "_CountTask"),
    "apply": (apply, "_ApplyTask"),
    "apply, between the pixels and their record": (apply, "_ApplyTask", "_merged"),
    "pyramid": (pyramid, "LevelTask"),
    "table": (steps, "_MeasureTask"),
}


@pytest.mark.slow
@pytest.mark.parametrize("n_workers", [1, 2, 4])
def test_the_bytes_are_those_of_one_machine_whatever_the_number_of_workers(
    tmp_path, stage, here, n_workers
):
    with make_local_cluster(
        n_workers=n_workers, memory_bytes=n_workers << 30, dashboard_address=None
    ) as client:
        pool = Pool.of_cluster(client, NO_RETRY)
        for name, options in (("feathered", FEATHERED), ("cores", CORES)):
            assert merged(stage, tmp_path / name, options, pool) == here[options]


@pytest.fixture
def client():
    with make_local_cluster(n_workers=2, memory_bytes=2 << 30, dashboard_address=None) as client:
        yield client


@pytest.mark.slow
@pytest.mark.parametrize("step", STEPS)
def test_what_a_killed_dask_worker_was_at_is_done_again(
    tmp_path, stage, here, client, monkeypatch, step
):
    options = CORES if step == "areas" else FEATHERED
    client.wait_for_workers(2, 60)
    dying(monkeypatch, STEPS[step][0], STEPS[step][1], tmp_path / "killed", *STEPS[step][2:])
    labels = merged(stage, tmp_path / "there", options, Pool.of_cluster(client, ONE_MORE_WORKER))
    assert (tmp_path / "killed").exists()
    assert labels == here[options]
    assert not list(Path(str(stage.path)).rglob("*.part")), "nothing is left in the stage"


@pytest.mark.slow
@pytest.mark.parametrize("step", ["pair", "apply", "pyramid"])
def test_what_a_killed_worker_process_was_at_is_done_again(
    tmp_path, stage, here, monkeypatch, step
):
    dying(monkeypatch, *STEPS[step], tmp_path / "killed")
    with Pool.open(Workers(2, "processes")) as pool:
        labels = merged(stage, tmp_path / "there", CORES, pool)
    assert (tmp_path / "killed").exists()
    assert labels == here[CORES]


class Sending(ThreadPool):
    """Threads that get their calls as a cluster would, pickled; counts the bytes of each."""

    def __init__(self, count: int) -> None:
        super().__init__(count)
        self.sizes: list[int] = []

    def sharing(self, task, place=None):
        assert place is not None or len(cloudpickle.dumps(task)) < 20_000, task
        return in_file(task, place)

    def submit(self, fn, /, *args, **kwargs):
        call = PickledCall.of(fn, args, kwargs)
        self.sizes.append(len(call.pickled))
        return super().submit(call)


@pytest.mark.parametrize("options", [FEATHERED, CORES], ids=["feathered", "cores"])
def test_a_task_carries_neither_the_lookup_table_nor_pixels(
    tmp_path, stage, here, monkeypatch, options
):
    monkeypatch.setattr("patchworks_core.machine.sending.PLACED_BYTES", 2000)
    executor = Sending(2)
    try:
        labels = merged(stage, tmp_path / "there", options, Pool(executor, 4))
    finally:
        executor.shutdown()
    assert labels == here[options]
    assert max(executor.sizes) < 20_000
    assert np.median(executor.sizes) < 3000
    assert not list(Path(str(stage.path)).rglob("*.part")), "nothing is left in the stage"


def test_what_a_killed_driver_left_in_the_stage_is_cleaned(tmp_path):
    stage = stage_into(tmp_path / "stage", tissue())
    left = str(stage.file_for_task())
    gone = left.replace(f"{os.getpid():08x}", "7fffffff")
    for path in (left, gone):
        Path(path).write_bytes(b"table")
    stage.clean()
    assert os.path.exists(left)
    assert not os.path.exists(gone)


def test_a_worker_that_does_not_reach_the_stage_says_so(tmp_path):
    stage = stage_into(tmp_path / "stage", tissue())
    sent = pickle.dumps(stage)
    shutil.move(tmp_path / "stage", tmp_path / "elsewhere")
    words = r"the stage at .*/stage is gone, or not to be reached from .*; let it lie on a file"
    with pytest.raises(StageError, match=words):
        pickle.loads(sent)


def test_a_worker_that_does_not_reach_what_tasks_share_says_so(tmp_path):
    with pytest.raises(ClusterError, match="not to be reached from"):
        TaskInFile(str(tmp_path / "task"), ((0, 1),))(0)
