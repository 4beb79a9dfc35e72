"""Hidden records: one that is damaged, or holds something else, is absent or is named."""

from __future__ import annotations

import json

import numpy as np
import pyarrow as pa
import pytest
import zarr
from scipy import ndimage

from patchworks_core import open_image, segment_to_ome_zarr, segmentation_of, tile_process
from patchworks_core.errors import ImageError, PlanError, StageError
from patchworks_core.pictures.viewing import grid_of_labels
from patchworks_core.stage.object_sums import ObjectSums
from patchworks_core.stage.plan import Plan
from patchworks_core.statistics.statistics import ImageStatistics

PIXELS = np.zeros((32, 32), np.uint16)
PIXELS[3:9, 3:29] = 100

DAMAGED = {
    "list": b"[1, 2]",
    "text": b'"words"',
    "number": b"3",
    "null": b"null",
    "half": b'{"record_version": 1, "fing',
    "no text": b"\xff\xfe\x00",
    "empty": b"",
    "deep": b"[" * 100_000,
}

damaged = pytest.mark.parametrize("content", DAMAGED.values(), ids=DAMAGED)


def components(tile):
    return ndimage.label(tile > 0)[0]


@damaged
def test_a_record_of_empty_tiles_is_measured_anew(content, tmp_path):
    zarr.create_array(str(tmp_path / "i.zarr"), data=PIXELS, chunks=(16, 16))
    call = {"tile_shape": 16, "skip_empty": True}
    expected = tile_process(str(tmp_path / "i.zarr"), components, **call)
    (record,) = tmp_path.glob(".i.zarr.occupancy-*.json")
    fingerprint = json.loads(record.read_text())["fingerprint"]
    record.write_bytes(content)
    again = tile_process(str(tmp_path / "i.zarr"), components, **call)
    np.testing.assert_array_equal(again, expected)
    assert json.loads(record.read_text())["fingerprint"] == fingerprint
    for name in ("maxima", "statistics"):
        changed = {**json.loads(record.read_text()), name: 3}
        record.write_text(json.dumps(changed))
        np.testing.assert_array_equal(
            tile_process(str(tmp_path / "i.zarr"), components, **call), expected
        )


@damaged
def test_a_plan_that_is_none_is_named(content, tmp_path):
    where = {"tile_shape": 16, "write_to": str(tmp_path / "o.zarr"), "keep_stage": True}
    tile_process(PIXELS, components, **where)
    plan = tmp_path / "o.zarr" / "labels.work" / "stage.zarr" / "plan.json"
    plan.write_bytes(content)
    with pytest.raises(PlanError, match=r"plan.json is not the record of a plan .*plan the image"):
        Plan.read(plan)
    tile_process(PIXELS, components, **where, resume=True, merge="none")
    assert Plan.read(plan).grid.n_tiles > 0, "it is written again, as the tiles vouch for it"


@damaged
def test_a_provenance_record_that_is_none_is_absent(content, tmp_path):
    container = tmp_path / "o.ome.zarr"
    call = (open_image(PIXELS), segmentation_of(components), container)
    segment_to_ome_zarr(*call, tile_shape=16)
    (container / "labels" / "labels" / "provenance.json").write_bytes(content)
    assert grid_of_labels(str(container / "labels" / "labels")) is None
    with pytest.raises(PlanError, match="changed since patchworks wrote it"):
        segment_to_ome_zarr(*call, tile_shape=16)
    assert segment_to_ome_zarr(*call, tile_shape=16, overwrite=True).n_objects == 1


@damaged
def test_a_table_of_object_sums_without_a_record_is_named(content):
    table = pa.table({"label": [1]}).replace_schema_metadata({"patchworks": content})
    with pytest.raises(StageError, match="not a table of object sums"):
        ObjectSums.from_table(table)


@pytest.mark.parametrize("record", [[1], "words", None, {"bins": [1]}])
def test_statistics_that_are_none_are_named(record):
    with pytest.raises(ImageError, match="not the record of image statistics"):
        ImageStatistics.from_dict(record)
