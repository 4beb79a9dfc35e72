"""What a deployment says of channel and operations is segmented, planned and recorded."""

from __future__ import annotations

import json

import numpy as np
import tifffile
import zarr

from patchworks_core import open_image, process_lazily, tile_process
from patchworks_core.operations.filters import median
from patchworks_core.stage.plan import OPERATIONS
from patchworks_pipeline.records import Acquisition
from patchworks_pipeline.resources.resources import LabelStore, SegmentationDefaults
from tests.tissue import tissue

SHAPE = (96, 96)


def settle(home, **fields: object) -> None:
    """Write the section of the segmentation; YAML reads JSON."""
    home.mkdir(parents=True, exist_ok=True)
    (home / "patchworks.yaml").write_text(f"segmentation: {json.dumps(fields)}")


def write_channels(path) -> str:
    """Write two channels: one that is dark, and cells with single bright pixels between them."""
    cells = (tissue(SHAPE, n_cells=20) > 0).astype("u2") * 1000
    rng = np.random.default_rng(5)
    cells[tuple(rng.integers(0, n, 200) for n in SHAPE)] = 3000
    tifffile.imwrite(path, np.stack([cells * 0, cells]), metadata={"axes": "CYX"})
    return str(path)


def test_the_channel_and_the_operations_of_the_settings_are_segmented(pipeline, home, tmp_path):
    path = write_channels(tmp_path / "two.tif")
    settle(home, function="threshold", channel=1, operations=[{"median": 3}])
    folder = pipeline.register(path, function=None, overlap=(8,))
    pipeline.run_to_labels(folder)
    plan = folder.plan()
    assert plan.image.channel == 1
    assert plan.segmentation[OPERATIONS] == [{"median": 3}]
    smooth = process_lazily(open_image(path, channel=1), median(3))
    assert plan.image.fingerprint == smooth.fingerprint
    expected = tile_process(smooth, "threshold", tile_shape=plan.grid.tile_shape, overlap=8)
    merged = zarr.open_array(str(folder.labels(plan).path / "0"), mode="r")[:]
    np.testing.assert_array_equal(merged, np.asarray(expected))
    raw = tile_process(open_image(path, channel=1), "threshold", tile_shape=96)
    assert merged.max() < np.asarray(raw).max()


def test_another_operation_is_another_plan(home, tmp_path):
    path = write_channels(tmp_path / "two.tif")
    folder = LabelStore().folder("two")
    acquisition = Acquisition(path)
    fingerprints = set()
    for size in (None, 3, 5):
        operations = [] if size is None else [{"median": size}]
        segmentation = SegmentationDefaults(operations=operations)
        plan = segmentation.plan_of(acquisition, segmentation.open(acquisition), folder)
        assert (OPERATIONS in plan.segmentation) == bool(operations)
        fingerprints.add(plan.fingerprint)
    assert len(fingerprints) == 3


def test_the_channel_that_was_chosen_for_an_image_goes_first(home, tmp_path):
    path = write_channels(tmp_path / "two.tif")
    segmentation = SegmentationDefaults(channel="1")
    assert segmentation.open(Acquisition(path)).channel == 1
    assert segmentation.open(Acquisition(path, channel=0)).channel == 0
