"""What `tile_process` can be asked for besides labels: tile shapes in words, stages, estimates."""

from __future__ import annotations

import pickle

import dask.array as da
import numpy as np
import pytest
import zarr
from scipy import ndimage

from patchworks_core import (
    ImageError,
    PlanError,
    StageError,
    TilesFailedError,
    declare,
    load_ome_zarr,
    open_image,
    segment_to_ome_zarr,
    segmentation_of,
    tile_process,
)
from patchworks_core.api.estimate import Estimate
from patchworks_core.tiles.regions import Region
from tests.core.oracles import assert_same_partition
from tests.core.staging import blobs, label_components

PIXELS = blobs((70, 50), 0.55)


def whole(pixels) -> np.ndarray:
    return ndimage.label(pixels)[0]


@declare(version="1")
def record(tile):
    SEEN.append(tile.shape)
    return whole(tile)


SEEN: list[tuple[int, ...]] = []


@pytest.fixture(autouse=True)
def nothing_seen():
    SEEN.clear()


@pytest.mark.parametrize(
    ("tile_shape", "first"),
    [
        ("auto", (70, 50)),
        ((-1, 20), (70, 20)),
        ((30,), (70, 30)),
        (lambda shape, dtype: (shape[0] // 2, 25), (35, 25)),
        (lambda shape, dtype: 16 if dtype.kind == "b" else 1, (16, 16)),
    ],
)
def test_a_tile_may_be_given_in_many_ways(tile_shape, first):
    labels = tile_process(PIXELS, record, tile_shape=tile_shape, max_workers=1)
    assert SEEN[0] == first
    assert_same_partition(labels, whole(PIXELS))


def test_an_unknown_word_for_a_tile_is_refused():
    with pytest.raises(PlanError, match="tile_shape in words can only be 'auto', got 'large'"):
        tile_process(PIXELS, record, tile_shape="large")


def test_an_opened_image_is_taken_as_it_is():
    image = open_image(np.stack([PIXELS, ~PIXELS]), axes="cyx", channel=1)
    assert_same_partition(tile_process(image, record, tile_shape=32), whole(~PIXELS))


def test_progress_may_be_bars_or_a_function(capsys):
    told = []
    tile_process(PIXELS, record, tile_shape=32, progress=lambda *step: told.append(step))
    assert told[-1] == ("apply", 6, 6)
    tile_process(PIXELS, record, tile_shape=32, progress=True)


def test_a_kept_stage_is_merged_again_by_another_rule_without_segmenting(tmp_path):
    where = {"tile_shape": 32, "write_to": tmp_path / "o.zarr", "stage_dir": tmp_path / "stage"}
    apart = tile_process(PIXELS, record, merge="none", keep_stage=True, **where)
    assert len(SEEN) == 6
    assert apart.max().compute() > whole(PIXELS).max()
    joined = tile_process(PIXELS, record, merge="touching", resume=True, **where)
    assert len(SEEN) == 6
    assert_same_partition(joined.compute(), whole(PIXELS))
    assert not list((tmp_path / "stage").iterdir())


def test_a_stage_folder_of_another_image_is_not_wiped(tmp_path):
    where = {"tile_shape": 32, "stage_dir": tmp_path / "stage"}
    tile_process(PIXELS, record, keep_stage=True, **where)
    with pytest.raises(StageError, match=r"holds the stage of another plan .*name another folder"):
        tile_process(~PIXELS, record, **where)
    assert_same_partition(tile_process(PIXELS, record, resume=True, **where), whole(PIXELS))
    assert len(SEEN) == 6


def test_a_stage_beside_the_labels_is_kept_when_asked(tmp_path):
    where = {"tile_shape": 32, "write_to": tmp_path / "o.zarr"}
    tile_process(PIXELS, record, keep_stage=True, **where)
    assert (tmp_path / "o.zarr" / "labels.work" / "stage.zarr").is_dir()
    tile_process(PIXELS, record, resume=True, **where)
    assert len(SEEN) == 6
    assert sorted(p.name for p in (tmp_path / "o.zarr").iterdir()) == ["labels", "zarr.json"]


def test_two_calls_with_one_target_do_not_wipe_each_other(tmp_path):
    where = {"tile_shape": 32, "write_to": tmp_path / "o.zarr"}
    refusals = []

    @declare(merge="touching", version="1")
    def calls_again(tile):
        if not refusals:
            refusals.append("")
            try:
                tile_process(PIXELS, label_components, **where)
            except PlanError as error:
                refusals[0] = str(error)
        return whole(tile)

    labels = tile_process(PIXELS, calls_again, **where)
    assert "one call at a time is writing to" in refusals[0]
    assert_same_partition(labels.compute(), whole(PIXELS))
    assert sorted(p.name for p in (tmp_path / "o.zarr").iterdir()) == ["labels", "zarr.json"]


def calibrated(path) -> str:
    group = zarr.open_group(str(path), mode="w", zarr_format=3)
    array = group.create_array("0", shape=PIXELS.shape, dtype="u1", chunks=(32, 32))
    array[...] = PIXELS
    axes = [{"name": a, "type": "space", "unit": "micrometer"} for a in "yx"]
    scale = [{"type": "scale", "scale": [0.5, 0.2]}]
    datasets = [{"path": "0", "coordinateTransformations": scale}]
    group.attrs["ome"] = {"version": "0.5", "multiscales": [{"axes": axes, "datasets": datasets}]}
    return str(path)


@pytest.mark.parametrize(
    "limits", [{"min_size": 0.5}, {"max_size": 2}, {"min_size": 0.3, "max_size": 9}]
)
def test_sizes_may_be_given_in_micrometers(limits, tmp_path):
    path = calibrated(tmp_path / "i.ome.zarr")
    found = tile_process(path, label_components, tile_shape=32, size_unit="micrometers", **limits)
    expected = whole(PIXELS)
    areas = 0.1 * np.bincount(expected.ravel())
    least, most = limits.get("min_size", 0), limits.get("max_size", 1e9)
    keep = (areas >= least - 1e-9) & (areas <= most + 1e-9)
    keep[0] = False
    assert_same_partition(found, expected * keep[expected])
    assert found.max() == keep.sum()


def test_sizes_in_micrometers_need_a_calibration():
    with pytest.raises(ImageError, match="micrometers need a pixel size on each of the axes 'yx'"):
        tile_process(PIXELS, record, tile_shape=32, min_size=3, size_unit="micrometers")
    with pytest.raises(PlanError, match="unit must be 'pixels' or 'micrometers', got 'inches'"):
        tile_process(PIXELS, record, tile_shape=32, min_size=3, size_unit="inches")
    with pytest.raises(PlanError, match="every object would be removed"):
        tile_process(PIXELS, record, tile_shape=32, min_size=9, max_size=4)


def test_an_estimate_says_what_a_call_would_take_and_leaves_nothing(tmp_path):
    pixels = np.zeros((256, 256), "u2")
    pixels[100:180, 30:90] = 500
    found = tile_process(
        pixels,
        record,
        tile_shape=64,
        overlap=8,
        skip_empty=True,
        write_to=tmp_path / "o.zarr",
        dry_run=True,
    )
    assert isinstance(found, Estimate)
    assert (found.n_tiles, found.n_tiles_with_signal) == (16, 4)
    assert len(SEEN) == 3
    assert found.bytes_read == 2 * sum(
        t.read.size for t in found.grid.tiles() if (pixels[t.read.slices] > 0).any()
    )
    assert found.seconds > 0
    assert found.disk_bytes > 0
    assert found.peak_memory_bytes >= found.n_workers * 80 * 80 * 2
    assert "16 tiles of (64, 64) with a halo of (8, 8)" in str(found)
    assert "4 to segment" in str(found)
    assert not list(tmp_path.iterdir())


def test_an_estimate_of_a_function_that_fails_says_so():
    with pytest.raises(PlanError, match=r"tried for the estimate, failed: .*: ZeroDivisionError"):
        tile_process(PIXELS, lambda tile: 1 // 0, tile_shape=32, dry_run=True)


def test_a_failing_tile_is_told_where_its_neighbours_are_staged(tmp_path):
    with pytest.raises(TilesFailedError, match="none is staged; mend what failed and call again$"):
        tile_process(PIXELS, lambda tile: 1 // 0, tile_shape=32, stage_dir=tmp_path / "other")

    def fails_where_the_image_ends(tile):
        return np.zeros(tile.shape, int) + 1 // int(len(tile) == 32)

    with pytest.raises(TilesFailedError, match=r"others are staged at .*/mine; mend"):
        tile_process(PIXELS, fails_where_the_image_ends, tile_shape=32, stage_dir=tmp_path / "mine")


def test_an_ome_zarr_skips_empty_tiles_too(tmp_path):
    path = calibrated(tmp_path / "i.ome.zarr")
    written = segment_to_ome_zarr(
        open_image(path),
        segmentation_of(label_components),
        tmp_path / "o.ome.zarr",
        tile_shape=None,
        skip_empty=True,
    )
    assert written.n_objects == whole(PIXELS).max()
    assert written.plan.segmentation["empty_threshold"] == 0


@pytest.mark.parametrize("chunks", [None, 16, (20, -1)])
def test_one_channel_of_a_level_is_loaded_as_a_lazy_array(chunks, tmp_path):
    path = calibrated(tmp_path / "i.ome.zarr")
    loaded = load_ome_zarr(path, chunks=chunks)
    assert isinstance(loaded, da.Array)
    np.testing.assert_array_equal(loaded, PIXELS)
    np.testing.assert_array_equal(loaded[3:40, 7], PIXELS[3:40, 7])
    if chunks is None:
        assert loaded.chunksize == (32, 32)
    both = tile_process(loaded, label_components, tile_shape=32)
    assert_same_partition(both, whole(PIXELS))


@pytest.mark.slow
def test_worker_processes_map_an_image_in_memory_and_are_not_sent_its_pixels(tmp_path):
    image = open_image(np.random.default_rng(0).random((512, 512)), channel=0)
    mapped = image.mapped_from(str(tmp_path / "image.npy"))
    sent = pickle.dumps(mapped)
    assert len(sent) < 2000 < len(pickle.dumps(image))
    found = pickle.loads(sent)
    assert mapped.fingerprint == image.fingerprint
    box = Region((3, 4), (60, 50))
    np.testing.assert_array_equal(found.read(box), image.read(box))
    labels = tile_process(PIXELS, label_components, tile_shape=32, workers="processes")
    assert_same_partition(labels, whole(PIXELS))


@declare(merge="touching", version="1", other_channels={"nuclei": "nuclei_channel"})
def cells_with_nuclei(tile, *, nuclei_channel=None, nuclei=None, nuclei_statistics=None):
    """Label what is bright and, where nuclei are given, brighter there than their mean."""
    if nuclei is None:
        return whole(tile > 0)
    return whole((tile > 0) & (nuclei > nuclei_statistics.mean))


@pytest.mark.slow
@pytest.mark.parametrize("workers", ["threads", "processes"])
def test_a_function_may_be_given_another_channel_and_its_statistics(workers):
    nuclei = np.random.default_rng(1).random(PIXELS.shape)
    image = np.stack([PIXELS.astype(float), nuclei])
    options = {"axes": "cyx", "tile_shape": 32, "workers": workers, "max_workers": 2}
    function = segmentation_of(cells_with_nuclei, {"nuclei_channel": 1})
    found = tile_process(image, function, **options)
    assert_same_partition(found, whole(PIXELS & (nuclei > nuclei.mean())))
    alone = tile_process(image, cells_with_nuclei, **options)
    assert_same_partition(alone, whole(PIXELS))


def test_another_channel_must_be_there_and_be_another():
    image = np.stack([PIXELS, ~PIXELS]).astype(float)
    options = {"axes": "cyx", "tile_shape": 32, "parameters": {"nuclei_channel": 5}}
    with pytest.raises(ImageError, match="no channel 5"):
        tile_process(image, cells_with_nuclei, **options)
    options["parameters"] = {"nuclei_channel": 1}
    with pytest.raises(ImageError, match="is read beside one other, .* choose one with channel="):
        tile_process(image, cells_with_nuclei, channel=None, **options)
    with pytest.raises(PlanError, match="a pilot tries one channel"):
        tile_process(image, cells_with_nuclei, overlap="auto", **options)
