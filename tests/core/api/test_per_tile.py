"""Tiles that people run themselves, in processes of their own, give what one call gives."""

from __future__ import annotations

import os
import subprocess
import sys
import textwrap
import threading
from pathlib import Path

import numpy as np
import pytest
from scipy import ndimage

from patchworks_core import (
    PlanError,
    StageError,
    TilesFailedError,
    merge_stage,
    plan_tiles,
    planned_tiles,
    stage_tile,
    tile_process,
)
from tests.core.staging import blobs

MODULE = """
from scipy import ndimage

def label(tile, cut=0.5):
    return ndimage.label(tile > cut)[0]
"""

OPTIONS = {"tile_shape": (2, 20, 24), "overlap": 6, "min_size": 3}


def smooth_blobs(shape=(4, 50, 60)):
    noise = ndimage.gaussian_filter(np.random.default_rng(2).random(shape), (0.5, 2, 2))
    return (noise > np.percentile(noise, 70)).astype("f4")


def python(folder: Path, code: str) -> str:
    done = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(code)], cwd=folder, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


def content_of(path: Path) -> dict[str, bytes]:
    return {p.relative_to(path).as_posix(): p.read_bytes() for p in path.rglob("*") if p.is_file()}


@pytest.mark.slow
def test_separate_processes_write_the_bytes_of_one_call(tmp_path, monkeypatch):
    np.save(tmp_path / "image.npy", smooth_blobs())
    (tmp_path / "mine.py").write_text(MODULE)
    made = python(
        tmp_path,
        """
        from mine import label
        from patchworks_core import plan_tiles
        planned = plan_tiles("image.npy", label, "stage", tile_shape=(2, 20, 24), overlap=6,
                             min_size=3, parameters={"cut": 0.6})
        print(planned.n_tiles, planned.plan.fingerprint)
        """,
    ).split()
    assert int(made[0]) == 18
    with pytest.raises(StageError, match=r"18 of 18 tiles are not staged .* 0 \(z000y000x000\)"):
        merge_stage(tmp_path / "stage")
    (tmp_path / "elsewhere").mkdir()
    running = [
        subprocess.Popen(
            [
                *(sys.executable, "-c"),
                "import sys; from patchworks_core import stage_tile\n"
                "for i in [0, *range(int(sys.argv[1]), 18, 2)]: stage_tile('../stage', i)",
                str(first),
            ],
            cwd=tmp_path / "elsewhere",
            env={**os.environ, "PYTHONPATH": f"{tmp_path}:{':'.join(sys.path)}"},
        )
        for first in (1, 2)  # both begin with the first
    ]
    assert [process.wait() for process in running] == [0, 0]
    monkeypatch.syspath_prepend(tmp_path)
    from mine import label

    del sys.modules["mine"]
    merged = merge_stage(tmp_path / "stage", tmp_path / "merged.zarr")
    one = {**OPTIONS, "parameters": {"cut": 0.6}, "keep_stage": True, "stage_dir": tmp_path / "own"}
    tile_process(tmp_path / "image.npy", label, write_to=tmp_path / "one.zarr", **one)
    assert merged.max().compute() > 5
    ours, theirs = (content_of(tmp_path / f"{n}.zarr" / "labels") for n in ("merged", "one"))
    assert ours == theirs
    stages = [content_of(tmp_path / f / "stage.zarr") for f in ("stage", "own")]
    records = [s.pop("plan.json") for s in stages]
    for stage in stages:  # each has a name of its own, which is also that of its folder
        name = stage.pop("generation").decode()
        stage |= {path.replace(name, "one"): stage.pop(path) for path in list(stage)}
    assert stages[0] == stages[1]
    assert len(stages[0]) == 18
    assert records[0] == records[1]
    assert made[1].encode() in records[0]


def staged(folder, *, without=(), function=None, image=None):
    image = smooth_blobs() if image is None else image
    label = function or (lambda tile: ndimage.label(tile > 0.5)[0])
    planned = plan_tiles(image, label, folder, **OPTIONS)
    for i in range(planned.n_tiles):
        if i not in without:
            stage_tile(planned, i)
    return planned


def test_a_missing_tile_is_named_and_nothing_is_written(tmp_path):
    planned = staged(tmp_path / "stage", without=(3, 7))
    assert planned.missing() == [3, 7]
    with pytest.raises(StageError, match=r"2 of 18 tiles .*: 3 \(z000y001x000\), 7 \(z000y002x001"):
        merge_stage(tmp_path / "stage", tmp_path / "labels.zarr")
    assert not (tmp_path / "labels.zarr").exists()
    stage_tile(tmp_path / "stage", "z000y001x000")
    stage_tile(str(tmp_path / "stage"), "7")
    np.testing.assert_array_equal(
        merge_stage(tmp_path / "stage"),
        tile_process(smooth_blobs(), lambda tile: ndimage.label(tile > 0.5)[0], **OPTIONS),
    )


def test_a_tile_is_segmented_once_unless_again_is_asked_for(tmp_path):
    calls = tmp_path / "calls"
    calls.mkdir()

    def counted(tile):
        import time
        import uuid

        (calls / uuid.uuid4().hex).touch()
        time.sleep(0.2)
        return ndimage.label(tile > 0.5)[0]

    planned = plan_tiles(smooth_blobs(), counted, tmp_path / "stage", **OPTIONS)
    numbers: list[int] = []
    threads = [
        threading.Thread(target=lambda: numbers.append(stage_tile(tmp_path / "stage", 4)))
        for _ in range(3)
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len({*numbers}) == 1
    assert numbers[0] > 0
    assert len(list(calls.iterdir())) == 1
    assert stage_tile(planned, 4, again=True) == numbers[0]
    assert len(list(calls.iterdir())) == 2


def test_planning_again_keeps_what_is_staged(tmp_path):
    label = ndimage_label
    first = plan_tiles(smooth_blobs(), label, tmp_path / "stage", **OPTIONS)
    stage_tile(first, 0)
    again = plan_tiles(smooth_blobs(), label, tmp_path / "stage", **OPTIONS)
    assert again.missing() == list(range(1, 18))
    anew = plan_tiles(smooth_blobs(), label, tmp_path / "stage", **OPTIONS, resume=False)
    assert len(anew.missing()) == 18
    with pytest.raises(StageError, match="holds the stage of another plan .*tile_shape"):
        plan_tiles(smooth_blobs(), label, tmp_path / "stage", tile_shape=16)


def ndimage_label(tile):
    return ndimage.label(tile > 0.5)[0]


def test_another_rule_merges_the_same_tiles(tmp_path):
    planned = staged(tmp_path / "stage")
    apart = merge_stage(planned, merge="none", min_size=0)
    joined = merge_stage(planned, tmp_path / "l.zarr", merge="touching", min_size=9, compute=True)
    assert apart.max() > joined.max()
    assert np.bincount(joined[joined > 0])[1:].min() >= 9
    assert planned.missing() == []
    with pytest.raises(PlanError, match="merge must be one of"):
        merge_stage(planned, merge="glue")


def test_a_function_that_changed_after_planning_is_refused(tmp_path, monkeypatch):
    monkeypatch.syspath_prepend(tmp_path)
    (tmp_path / "changing.py").write_text(MODULE)
    import changing

    plan_tiles(smooth_blobs(), changing.label, tmp_path / "stage", **OPTIONS)
    del sys.modules["changing"]
    (tmp_path / "changing.py").write_text(MODULE.replace("> cut", ">= cut"))
    for message in (
        "'changing:label' is not what was planned",
        "let this process import the modules that plan_tiles saw",
    ):
        with pytest.raises(StageError, match=message):
            stage_tile(tmp_path / "stage", 0)
        sys.modules.pop("changing", None)
        (tmp_path / "changing.py").unlink(missing_ok=True)


def test_what_is_not_planned_is_said(tmp_path):
    with pytest.raises(StageError, match="no tiles are planned at .*; call plan_tiles first"):
        stage_tile(tmp_path / "nothing", 0)
    planned = plan_tiles(blobs((8, 8)), "threshold", tmp_path / "s", tile_shape=4)
    assert (planned.n_tiles, planned.keys[3]) == (4, "y001x001")
    assert planned_tiles(str(tmp_path / "s")) == planned
    for tile, message in [
        (4, "tile must be a whole number, from 0 to 3, got 4"),
        (-1, "from 0 to 3, got -1"),
        ("y9", "no tile 'y9'; they are 'y000x000' to 'y001x001'"),
    ]:
        with pytest.raises(PlanError, match=message):
            stage_tile(planned, tile)
    with pytest.raises(PlanError, match="leave stage_dir= out"):
        plan_tiles(blobs((8, 8)), "threshold", tmp_path / "t", tile_shape=4, stage_dir=tmp_path)


def test_the_stage_is_an_ordinary_one_that_tile_process_completes(tmp_path):
    planned = plan_tiles(smooth_blobs(), ndimage_label, tmp_path / "stage", **OPTIONS)
    stage_tile(planned, 5)
    labels = tile_process(
        smooth_blobs(), ndimage_label, stage_dir=tmp_path / "stage", keep_stage=True, **OPTIONS
    )
    np.testing.assert_array_equal(labels, tile_process(smooth_blobs(), ndimage_label, **OPTIONS))
    assert planned.missing() == []


@pytest.mark.slow
def test_of_many_small_tiles_each_has_its_number(tmp_path):
    options = {"tile_shape": (4, 5, 6), "overlap": 2, "merge": "touching"}
    planned = plan_tiles(smooth_blobs(), ndimage_label, tmp_path / "stage", **options)
    assert planned.n_tiles == planned.grid.n_tiles == 10 * 10
    for i in range(planned.n_tiles):
        stage_tile(planned, i)
    expected = tile_process(smooth_blobs(), ndimage_label, **options)
    np.testing.assert_array_equal(merge_stage(planned), expected)


def test_a_function_that_fails_on_a_tile_is_said_with_the_tile_and_the_way_out(tmp_path):
    def fails(tile):
        raise KeyError("no model")

    plan_tiles(smooth_blobs(), fails, tmp_path / "s", **OPTIONS)
    with pytest.raises(
        TilesFailedError, match=r"tile 'z000y000x001' at .*s failed: .*no model"
    ) as e:
        stage_tile(tmp_path / "s", 1)
    assert "call stage_tile again for this tile" in str(e.value)
    assert isinstance(e.value.__cause__, KeyError)
    assert list(e.value.failures) == ["z000y000x001"]


def test_what_was_settled_by_the_plan_is_refused_by_the_merge_with_the_way_out(tmp_path):
    plan_tiles(smooth_blobs(), "threshold", tmp_path / "s", **OPTIONS)
    with pytest.raises(PlanError, match=r"tile_shape= is settled by plan_tiles .* got 3; plan in"):
        merge_stage(tmp_path / "s", tile_shape=3)
    with pytest.raises(TypeError, match=r"no parameter 'tiles'; it takes also merge=, connect"):
        merge_stage(tmp_path / "s", tiles=3)
