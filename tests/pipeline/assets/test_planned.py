"""What a plan asks for beside the tile: other channels of the image, and which tiles are empty."""

from __future__ import annotations

import json

import numpy as np
import pytest
import tifffile
import zarr

from patchworks_core import tile_process
from tests.core.oracles import assert_same_partition
from tests.pipeline.conftest import error_of
from tests.tissue import HALO, TILE, tissue, write_tiff


def merged(folder) -> np.ndarray:
    return np.asarray(zarr.open_array(str(folder.labels(folder.plan()).path / "0"))[...])


@pytest.fixture
def sparse(tmp_path):
    """One object in the first tile, far from the others."""
    pixels = np.zeros((96, 128), np.uint16)
    pixels[4:20, 5:20] = 7
    return write_tiff(tmp_path / "sparse.tif", pixels), pixels


@pytest.mark.parametrize("chosen", [{"skip_empty": True}, {"empty_threshold": 3}])
def test_tiles_without_signal_are_not_segmented(pipeline, sparse, chosen):
    path, pixels = sparse
    pipeline.resources["segmentation"] = {"config": chosen}
    # A function that would fail on a tile without signal.
    folder = pipeline.register(path, function="tissue_functions:only_signal")
    pipeline.run_to_labels(folder)
    assert_same_partition(merged(folder), pixels)
    assert folder.stage().counts().sum() == 1
    assert len(json.loads((folder.path / "measured.json").read_text())["maxima"]) == 12


def test_without_being_asked_every_tile_is_segmented(pipeline, sparse):
    folder = pipeline.register(sparse[0], function="tissue_functions:only_signal")
    pipeline.plan(folder)
    done = pipeline.stage(folder)
    assert "of 12 tiles failed" in error_of(done)
    assert not (folder.path / "measured.json").exists()


def test_a_plan_that_skips_is_another_plan(pipeline, sparse):
    folder = pipeline.register(sparse[0])
    pipeline.plan(folder)
    before = folder.plan().fingerprint
    pipeline.resources["segmentation"] = {"config": {"skip_empty": True}}
    pipeline.plan(folder)
    assert folder.plan().fingerprint != before


def test_another_channel_and_its_statistics_reach_the_function(pipeline, tmp_path):
    nuclei = np.random.default_rng(0).integers(0, 200, tissue().shape).astype(np.uint16)
    both = np.stack([tissue().astype(np.uint16), nuclei])
    path = tmp_path / "cells.ome.tif"
    tifffile.imwrite(path, both, metadata={"axes": "CYX"})
    chosen = {"function": "tissue_functions:with_nuclei", "parameters": {"nuclei_channel": 1}}
    folder = pipeline.register(path, **chosen)
    pipeline.run_to_labels(folder)
    import tissue_functions

    library = tile_process(
        both,
        tissue_functions.with_nuclei,
        axes="cyx",
        parameters={"nuclei_channel": 1},
        tile_shape=TILE,
        overlap=HALO,
    )
    np.testing.assert_array_equal(merged(folder), library)
    assert merged(folder).any()


def test_staging_says_what_to_do_where_it_was_not_measured(pipeline, sparse):
    pipeline.resources["segmentation"] = {"config": {"skip_empty": True}}
    folder = pipeline.register(sparse[0])
    pipeline.plan(folder)
    (folder.path / "measured.json").unlink()
    done = pipeline.stage(folder)
    assert not done.success
    assert "materialize image_statistics again" in str(done.all_events)


def test_the_maxima_are_those_of_the_tiles_whatever_the_order_they_came_in(pipeline, tmp_path):
    path = write_tiff(tmp_path / "tissue.tif", tissue())
    pipeline.resources["segmentation"] = {"config": {"skip_empty": True}}
    folder = pipeline.register(path)
    pipeline.plan(folder)
    pixels, grid = tissue(), folder.plan().grid
    maxima = json.loads((folder.path / "measured.json").read_text())["maxima"]
    assert maxima == [pixels[tile.read.slices].max() for tile in grid.tiles()]
    of_cores = [pixels[tile.core.slices].max() for tile in grid.tiles()]
    assert folder.statistics().tile_maximum.tolist() == of_cores
