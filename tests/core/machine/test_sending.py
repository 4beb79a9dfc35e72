"""What a task carries is sent to worker processes once."""

from __future__ import annotations

import os
import pickle
import tempfile
from pathlib import Path

import cloudpickle
import numpy as np
import pytest

from patchworks_core import filter_image, make_local_cluster, process_lazily
from patchworks_core.errors import PlanError
from patchworks_core.files.storage import as_path
from patchworks_core.labels.measurements import _MeasureTask
from patchworks_core.labels.source import LabelSource
from patchworks_core.machine import sending
from patchworks_core.machine.dask_clients import ClusterExecutor
from patchworks_core.machine.executors import ProcessPool
from patchworks_core.machine.pools import Pool
from patchworks_core.machine.sending import AS_RESULT, PickledCall, in_file
from patchworks_core.machine.workers import Workers
from patchworks_core.operations.filtering import _WriteTile
from patchworks_core.operations.filters import maximum
from patchworks_core.plugins.segmentation import segmentation_of
from patchworks_core.stage.plan import make_plan
from patchworks_core.stage.stage import Stage
from patchworks_core.stage.staging import Staging
from patchworks_core.statistics.measuring import measure
from patchworks_core.tiles.regions import Region
from tests.core.staging import label_components

PIXELS = np.random.default_rng(0).integers(0, 2**16, (600, 700), dtype="u2")

SMALL = 4096
"""Bytes that may go with an item; PIXELS are 840 kB."""


def stage_task(image, path):
    plan = make_plan(image, segmentation_of(label_components), tile_shape=300)
    return Staging(image, Stage.create(path, plan), label_components)


def bound_threshold(path):
    """Return a function that carries a histogram of 65536 bins."""
    regions = [tile.core for tile in LabelSource.open(PIXELS, tile_shape=300).grid.tiles()]
    image = LabelSource.open(PIXELS).image
    found = measure(image, regions)
    return segmentation_of("threshold").bind(found, {})


def processed(path):
    return process_lazily(PIXELS, maximum(3))


TASKS = {
    "image in memory": lambda path: stage_task(LabelSource.open(PIXELS).image, path),
    "processed image": lambda path: stage_task(processed(path), path),
    "filter": lambda path: _WriteTile(processed(path), path),
    "labels": lambda path: _MeasureTask(LabelSource.open(PIXELS), []),
    "statistics": bound_threshold,
    "closure": lambda path: lambda item: PIXELS[item],
}


@pytest.mark.parametrize("what", TASKS)
def test_a_task_that_carries_pixels_is_small_when_it_is_sent(what, tmp_path):
    task = TASKS[what](tmp_path / "stage")
    assert len(cloudpickle.dumps(task)) > 50_000
    with Workers(1, "processes").open() as executor, executor.sharing(task) as sent:
        assert len(pickle.dumps(sent)) < SMALL


def item_sizes(monkeypatch):
    """Note the pickled size of everything that is given to worker processes."""
    sizes = []
    submit = ProcessPool.submit

    def noted(self, fn, /, *args):
        sizes.append(len(cloudpickle.dumps((fn, *args))))
        return submit(self, fn, *args)

    monkeypatch.setattr(ProcessPool, "submit", noted)
    return sizes


@pytest.mark.slow
def test_a_processed_image_goes_to_processes_once_and_gives_the_same_pixels(monkeypatch):
    sizes = item_sizes(monkeypatch)
    image = process_lazily(PIXELS, maximum(3))
    found = filter_image(image, maximum(3), tile_shape=300, max_workers=2, workers="processes")
    np.testing.assert_array_equal(found, filter_image(image, maximum(3), tile_shape=300))
    assert len(sizes) == 6
    assert max(sizes) < SMALL


def test_what_a_task_writes_into_its_arrays_is_its_own():
    scratch = np.zeros(100_000)

    def dirty(item):
        scratch[:] += 1
        return float(scratch.sum())

    with Pool.open(Workers(1, "processes")) as pool:
        assert list(pool.map(dirty, range(3), step="writing")) == [100_000.0] * 3
    assert not scratch.any()


def test_a_small_task_goes_as_it_is_and_a_large_one_leaves_nothing_behind(tmp_path, monkeypatch):
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    with in_file(len) as sent:
        assert sent is len
    with in_file(lambda item: PIXELS[item].sum()) as sent:
        assert [p.name for p in Path(sent.path).parent.iterdir()] == ["task"]
        assert sent(3) == PIXELS[3].sum()
    assert not list(tmp_path.iterdir())


def test_a_task_that_does_not_fit_the_temporary_folder_is_refused_in_words(monkeypatch):
    def full(path, pieces):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(sending, "_write", full)
    words = r"\d+ bytes could not be written to .*No space left.*; set TMPDIR to"
    with pytest.raises(PlanError, match=words), in_file(lambda item: PIXELS[item]):
        pass


def test_a_task_that_cannot_be_pickled_fails_item_by_item():
    lock = __import__("threading").Lock()
    with Pool.open(Workers(1, "processes")) as pool:
        outcomes = list(pool.outcomes(lambda item: lock, range(2)))
    assert all(o.failure is not None and "pickle" in str(o.failure) for o in outcomes)


@pytest.mark.slow
def test_a_cluster_gets_a_large_task_once():
    pid = os.getpid()

    def row_sum(item):
        return int(PIXELS[item].sum()), os.getpid() != pid

    with make_local_cluster(n_workers=1, memory_bytes=10**9, dashboard_address=None) as client:
        with ClusterExecutor(client).sharing(row_sum) as sent:
            assert len(cloudpickle.dumps(sent)) < SMALL
        pool = Pool(ClusterExecutor(client), window=2)
        found = list(pool.map(row_sum, range(5), step="adding", is_ordered=True))
    assert found == [(int(PIXELS[i].sum()), True) for i in range(5)]


def test_a_processed_image_is_mapped_as_its_original_is(tmp_path):
    image = processed(None)
    mapped = image.mapped_from(str(tmp_path / "image.npy"))
    assert len(pickle.dumps(mapped)) < SMALL
    again = pickle.loads(pickle.dumps(mapped))
    assert again.fingerprint == mapped.fingerprint == image.fingerprint
    whole = Region((0, 0), image.shape)
    np.testing.assert_array_equal(again.read(whole), image.read(whole))


@pytest.mark.parametrize("name", ["{folder}/stage", "memory://sent/stage"])
def test_workers_of_other_machines_find_a_large_task_where_they_reach_it(tmp_path, name):
    place = as_path(name.format(folder=tmp_path)) / "task.part"
    place.parent.mkdir(parents=True, exist_ok=True)
    with in_file(lambda item: int(PIXELS[item].sum()), place) as sent:
        pickled = cloudpickle.dumps(sent)
        assert len(pickled) < 2000
        assert [pickle.loads(pickled)(i) for i in (0, 3)] == [PIXELS[0].sum(), PIXELS[3].sum()]
        assert place.exists()
    assert not place.exists()


OPENED: list[str] = []


def opened(what):
    OPENED.append(what)


class Opening:
    """Says when it is unpickled."""

    def __reduce__(self):
        return opened, ("opened",)


def test_who_hands_a_call_on_opens_nothing_of_it():
    call = pickle.loads(pickle.dumps(PickledCall.of(max, [AS_RESULT, 3], {"key": abs})))
    assert call(-7) == -7
    opening = pickle.loads(pickle.dumps(PickledCall.of(lambda *a: len(a), [Opening(), 1], {})))
    assert not OPENED
    assert opening() == 2
    assert OPENED == ["opened"]
