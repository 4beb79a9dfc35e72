"""The steps of a merge on workers that share nothing but the store: small tasks, the same bytes."""

from __future__ import annotations

import os
import pickle
import shutil
import signal
from dataclasses import fields
from pathlib import Path
from typing import Any

import cloudpickle
import numpy as np
import pytest

from patchworks_core import make_local_cluster
from patchworks_core.errors import ClusterError, StageError
from patchworks_core.files.packed import open_packed
from patchworks_core.files.storage import as_path, open_array
from patchworks_core.images.image import open_image
from patchworks_core.machine.executors import ThreadPool
from patchworks_core.machine.faults import NO_RETRY
from patchworks_core.machine.pools import ONE_MORE_WORKER, Pool
from patchworks_core.machine.sending import PickledCall, TaskInFile, in_file
from patchworks_core.machine.workers import Workers
from patchworks_core.merge import apply, outlines, pairing, steps
from patchworks_core.merge.outlines import outlines_of
from patchworks_core.merge.pairing import EdgeFile, pair_tiles
from patchworks_core.merge.steps import look_up, measure_drawn
from patchworks_core.ome_zarr import pyramid
from patchworks_core.ome_zarr.label_image import LabelImage, write_merged
from patchworks_core.seams.edge_table import EdgeTable
from patchworks_core.seams.rules import MergeOptions
from patchworks_core.stage.stage import Stage
from tests.core.staging import block_file, spoil_array, stage_into
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
    with pair_tiles(stage, pool=pool) as edges:
        drawn = outlines_of(stage, edges, options)
        lut = look_up(stage, edges, options, outlines=drawn, pool=pool)
    target = LabelImage(as_path(folder), "cells", stage.plan)
    with target.writing() as working:
        write_merged(stage, lut, target, working, provenance={}, pool=pool, outlines=drawn)
    files = files_under(folder / "labels" / "cells")
    assert {name.split("/")[0] for name in files} >= {"0", "1"}, "there is a pyramid"
    table = measure_drawn(stage.grid, open_labels(target), open_image(stage.plan.image.url), pool)
    return {**files, "table": pickle.dumps([a.tobytes() for a in (table.label, table.area)])}


def pickled_parts(stage: Stage, pool: Pool | None = None) -> list[bytes]:
    """Return the parts of the table of edges, of few rows each."""
    with Pool.open(Workers(2)) as here, pair_tiles(stage, pool=pool or here) as edges:
        return [pickle.dumps([*map(np.ndarray.tobytes, columns(part))]) for part in edges.parts()]


def columns(edges: EdgeTable) -> list[np.ndarray]:
    return [getattr(edges, field.name) for field in fields(EdgeTable)]


def open_labels(target: LabelImage) -> Any:
    return open_array(target.path / "0")


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
    "pair": (pairing, "_PairTask"),
    "pair, rows in files": (pairing, "_PairTask"),
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
    tmp_path, stage, here, monkeypatch, n_workers
):
    whole = pickled_parts(stage)
    with make_local_cluster(
        n_workers=n_workers, memory_bytes=n_workers << 30, dashboard_address=None
    ) as client:
        pool = Pool.of_cluster(client, NO_RETRY)
        for name, options in (("feathered", FEATHERED), ("cores", CORES)):
            assert merged(stage, tmp_path / name, options, pool) == here[options]
        monkeypatch.setattr(pairing, "ROWS_HELD", 0)
        assert merged(stage, tmp_path / "in files", CORES, pool) == here[CORES]
        assert pickled_parts(stage, pool) == whole
    assert not list(Path(str(stage.path)).rglob("*.part")), "nothing is left in the stage"


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
    if step == "pair, rows in files":
        monkeypatch.setattr(pairing, "ROWS_HELD", 0)
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


def test_rows_of_edges_that_workers_leave_in_files_are_the_same_bytes(
    tmp_path, stage, here, monkeypatch
):
    whole = pickled_parts(stage)
    monkeypatch.setattr(pairing, "ROWS_HELD", 0)
    with Pool.open(Workers(2)) as pool:
        assert merged(stage, tmp_path / "there", CORES, pool) == here[CORES]
        with pair_tiles(stage, pool=pool) as edges:
            assert any(isinstance(batch, EdgeFile) for batch in edges._batches)
            assert list(Path(str(stage.path)).rglob("pairs-*.part"))
        assert pickled_parts(stage, pool) == whole
    assert not list(Path(str(stage.path)).rglob("*.part")), "nothing is left in the stage"


def test_tiles_in_blocks_give_the_same_parts_whatever_the_batches(tmp_path, monkeypatch):
    pixels, tiles = tissue(), {"tile_shape": 16, "overlap": 4, "max_blocks": 6}
    stage = stage_into(tmp_path / "stage", pixels, wavering, **tiles)
    assert stage.grid.n_blocks < stage.grid.n_tiles
    with Pool.open(Workers(1)) as one, Pool.open(Workers(3)) as three:
        first = pickled_parts(stage, one)
        monkeypatch.setattr(pairing, "_BYTES_BATCHED", 1)
        assert pickled_parts(stage, three) == first


def test_rows_of_edges_that_are_damaged_or_gone_are_never_merged(tmp_path, monkeypatch):
    stage = stage_into(tmp_path / "stage", tissue(), wavering, tile_shape=48, overlap=8)
    monkeypatch.setattr(pairing, "ROWS_HELD", 0)
    with Pool.open(Workers()) as pool, pair_tiles(stage, pool=pool) as edges:
        path = next(iter(Path(str(stage.path)).rglob("pairs-*.part")))
        content = path.read_bytes()
        for damaged in (content[:-9], content[:-1] + bytes([content[-1] ^ 1]), None):
            path.write_bytes(damaged) if damaged else path.unlink()
            with pytest.raises(StageError, match="damaged or gone .*; merge again"):
                look_up(stage, edges, MergeOptions("touching", 1), pool=pool)


def test_pairing_that_fails_leaves_no_file(tmp_path, monkeypatch):
    stage = stage_into(tmp_path / "stage", tissue(), wavering, tile_shape=48, overlap=8)
    monkeypatch.setattr(pairing, "ROWS_HELD", 0)
    path = block_file(stage.path, stage.grid.block_keys()[-1])
    with open_packed(as_path(path)) as packed:
        names = [name for name in packed.arrays if name.startswith("strips/")]
    for name in names:
        spoil_array(path, name)
    with Pool.open(Workers()) as pool, pytest.raises(StageError):
        pair_tiles(stage, pool=pool)
    assert not list(Path(str(stage.path)).rglob("*.part"))


def test_what_a_killed_driver_left_in_the_stage_is_cleaned(tmp_path):
    stage = stage_into(tmp_path / "stage", tissue())
    left = str(stage.file_for_task())
    gone = left.replace(f"{os.getpid():08x}", "7fffffff")
    rows = gone.replace("task.", "pairs-00000012.")
    half_written = f"{rows}.{Path(rows).name.split('.')[1]}.part"
    for path in (left, gone, rows, half_written):
        Path(path).write_bytes(b"table")
    stage.clean()
    assert os.path.exists(left)
    assert not any(map(os.path.exists, (gone, rows, half_written)))


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
