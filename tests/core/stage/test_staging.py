"""One loop stages an image: the first tile alone, a decision, then the rest."""

from __future__ import annotations

import threading
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import pytest

from patchworks_core.machine.pools import Pool
from patchworks_core.machine.workers import Workers
from patchworks_core.plugins.segmentation import declare
from patchworks_core.stage.stage import Stage
from patchworks_core.stage.staging import Staging, stage_all, stage_alone
from tests.core.staging import blobs, label_components, merged_of, plan_of, stage_into

PIXELS = blobs((12, 12))


@dataclass
class Chosen:
    """Workers that are decided on, or not, and what was asked of them."""

    is_decided: bool
    n: int = 3
    asked: list[tuple[int, int]] = field(default_factory=list)

    def alone(self):
        return Chosen(True, 1, self.asked)

    @contextmanager
    def open(self, grid, dtype, *, measured_bytes=0):
        self.asked.append((self.n, measured_bytes))
        with Pool.open(Workers(self.n)) as pool:
            yield pool


@dataclass
class Heard:
    """What was told, and when to stop."""

    stop_after: int = 10**9
    told: list[object] = field(default_factory=list)

    def started(self, pool, count):
        self.told.append(("pool", pool.n_workers, count.n_done))

    def finished(self, outcome, count):
        self.told.append((outcome.item.key, count.n_done, count.n_left))
        return count.n_done < self.stop_after


def staging_of(path, function=label_components):
    image, plan = plan_of(PIXELS, function)
    return Staging(image, Stage.create(path, plan), function), list(plan.grid.blocks())


def files(path: Path) -> dict[str, bytes]:
    return {
        str(p.relative_to(path)): p.read_bytes() for p in sorted(path.rglob("*")) if p.is_file()
    }


def test_the_first_runs_alone_and_what_it_took_decides_for_the_rest(tmp_path):
    together, most = [0], [0]
    lock = threading.Lock()

    @declare(merge="touching", version="1")
    def hungry(tile):
        with lock:
            together[0] += 1
            most[0] = max(most[0], together[0])
        np.ones(60 << 20, "u1")
        with lock:
            together[0] -= 1
        return label_components(tile)

    staging, blocks = staging_of(tmp_path / "stage", hungry)
    compute, heard = Chosen(is_decided=False), Heard()
    with stage_all(staging, blocks, compute, heard) as (pool, count):
        assert pool.n_workers == 3
        assert list(pool.map(abs, [-1], step="going on")) == [1]
    assert (count.n_done, count.n_left, count.n_failed) == (9, 0, 0)
    assert count.n_pixels == PIXELS.size
    (alone, before), (n, taken) = compute.asked
    assert (alone, before, n) == (1, 0, 3)
    assert taken == count.bytes_of_first > 50 << 20
    assert heard.told[0] == (blocks[0].key, 1, 8)
    assert heard.told[1] == ("pool", 3, 1)
    assert sorted(n_done for _, n_done, _ in heard.told[2:]) == list(range(2, 10))


@pytest.mark.parametrize("n", [0, 1, 9])
def test_where_it_is_decided_or_there_is_one_nothing_runs_alone(n, tmp_path):
    staging, blocks = staging_of(tmp_path / "stage")
    compute = Chosen(is_decided=n > 1)
    with stage_all(staging, blocks[:n], compute, Heard()) as (_, count):
        assert count.n_done == n
    assert compute.asked == [(3, 0)]


def test_the_stage_is_the_same_to_the_byte_whichever_way(tmp_path, monkeypatch):
    monkeypatch.setattr("patchworks_core.stage.stage_folder.new_generation", lambda: "one")
    for name, is_decided, n in (("decided", True, 1), ("measured", False, 3)):
        staging, blocks = staging_of(tmp_path / name)
        with stage_all(staging, blocks, Chosen(is_decided, n), Heard()):
            pass
    assert files(tmp_path / "decided") == files(tmp_path / "measured")


@pytest.mark.parametrize("stop_after", [1, 4])
def test_a_listener_stops_the_others(stop_after, tmp_path):
    staging, blocks = staging_of(tmp_path / "stage")
    heard = Heard(stop_after)
    with stage_all(staging, blocks, Chosen(is_decided=False, n=1), heard) as (_, count):
        pass
    assert (count.n_done, count.n_left) == (stop_after, 9 - stop_after)
    assert len(staging.stage.missing_blocks()) >= 9 - stop_after - 2


def test_failures_are_counted_by_key_and_stop_nobody(tmp_path):
    staging, blocks = staging_of(tmp_path / "stage", function := declare(version="1")(fail_once()))
    with stage_all(staging, blocks, Chosen(is_decided=True), Heard()) as (_, count):
        pass
    assert function is staging.function
    assert (count.n_done, count.n_failed) == (9, 1)
    ((key, failure),) = count.failures.items()
    assert str(failure).endswith('function: raise ZeroDivisionError("no"): ZeroDivisionError: no')
    assert staging.stage.missing_blocks() == [key]


def fail_once():
    lock, failed = threading.Lock(), []

    def function(tile):
        with lock:
            if not failed:
                failed.append(1)
                raise ZeroDivisionError("no")
        return label_components(tile)

    return function


def test_tiles_alone_run_one_after_the_other(tmp_path):
    staging, blocks = staging_of(tmp_path / "stage")
    compute = Chosen(is_decided=True)
    found = [o.item.key for o in stage_alone(staging, blocks[:4], compute)]
    assert found == [block.key for block in blocks[:4]]
    assert compute.asked == [(1, 0)]


@pytest.mark.parametrize("measures", [False, True])
def test_a_function_that_writes_into_its_input_harms_no_other_tile_and_no_sum(measures, tmp_path):
    def blots(pixels):
        labels = label_components(pixels)
        pixels[...] = 99
        return labels

    image, plan = plan_of(PIXELS)
    stages = []
    for function in (label_components, blots):
        stage = Stage.create(tmp_path / function.__name__, plan)
        staging = Staging(image, stage, function, measures=measures)
        for block in plan.grid.blocks():
            staging(block)
        stages.append(stage)
    assert stages[0].content() == stages[1].content()
    for block in plan.grid.blocks() if measures else ():
        sums = [stage.objects(block).intensity_sum for stage in stages]
        np.testing.assert_array_equal(*sums)


@pytest.mark.parametrize("max_blocks", [1, 1000], ids=["a block of all tiles", "each by itself"])
@pytest.mark.parametrize("overlap", [0, 16])
def test_a_function_may_return_the_same_array_every_time(tmp_path, max_blocks, overlap):
    buffers: dict[tuple[int, ...], np.ndarray] = {}

    @declare(merge="touching", version="1")
    def thrifty(tile):
        labels = buffers.setdefault(tile.shape, np.zeros(tile.shape, "i4"))
        labels[...] = label_components(tile)
        return labels

    coarse = blobs((8, 8)).repeat(64, axis=0).repeat(64, axis=1)
    options = {"tile_shape": 256, "overlap": overlap, "max_blocks": max_blocks}
    kept = [
        stage_into(tmp_path / name, coarse, function, **options)
        for name, function in (("thrifty", thrifty), ("other", label_components))
    ]
    assert (kept[0].digests() == kept[1].digests()).all()
    np.testing.assert_array_equal(*map(merged_of, kept))
