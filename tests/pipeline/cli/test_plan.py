"""What a plan is said to cost, and that saying it leaves nothing behind."""

from __future__ import annotations

import json

import pytest
import zarr

from tests.pipeline.conftest import call_command_line as patchworks
from tests.tissue import tissue, write_tiff

TILED = ("--segmentation", "tissue_functions:perfect", "--tile-shape", "32", "--overlap", "8")


@pytest.fixture
def image(tmp_path):
    return write_tiff(tmp_path / "tissue.tif", tissue((64, 64)))


def test_a_cost_names_where_each_number_comes_from_and_writes_nothing(home, image):
    before = sorted(home.rglob("*"))
    code, words = patchworks("plan", image, *TILED, "--cost", "--json")
    assert code == 0, words
    record = json.loads(words)
    assert record["cost"]["bytes_read"]["value"] == 4 * 40**2 * tissue((8, 8)).dtype.itemsize
    assert "measured on 2 tile blocks" in record["cost"]["core_hours"]["basis"]
    assert all(amount["basis"] for amount in record["cost"].values())
    assert record["money"] == {}, "no price is assumed"
    assert sorted(home.rglob("*")) == before


def test_money_is_hours_times_their_price_and_seconds_may_be_given(home, image):
    given = (*TILED, "--cost", "--json", "--core-hour", "2", "--seconds-per-tile")
    costs = []
    for seconds in (0, 3600):
        code, words = patchworks("plan", image, *given, seconds)
        assert code == 0, words
        costs.append(json.loads(words)["money"])
    assert costs[1]["core_hour"] - costs[0]["core_hour"] == pytest.approx(2 * 4)
    assert costs[1]["total"] == costs[1]["core_hour"]


def test_a_halo_that_is_large_for_its_tiles_is_said(home, image):
    code, words = patchworks("plan", image, *TILED[:2], "--tile-shape", "8", "--overlap", "32")
    assert code == 0
    assert "warning: a halo of (32, 32) around tiles of (8, 8) (axes 'yx') shows the" in words
    assert "smaller overlap, take less time: say --tile-shape or --overlap" in words
    assert "warning" not in patchworks("plan", image, *TILED)[1]


def test_a_price_without_a_cost_is_refused(home, image):
    code, words = patchworks("plan", image, "--core-hour", "2")
    assert (code, "add --cost" in words) == (2, True)


def test_a_hole_among_stored_chunks_is_said(home, tmp_path):
    array = zarr.create_array(str(tmp_path / "tissue.zarr"), data=tissue((64, 64)), chunks=(16, 16))
    code, words = patchworks("plan", str(tmp_path / "tissue.zarr"), *TILED)
    assert code == 0, words
    assert "are not stored" not in words
    (tmp_path / "tissue.zarr" / array.metadata.encode_chunk_key((1, 1))).unlink()
    code, words = patchworks("plan", str(tmp_path / "tissue.zarr"), *TILED)
    assert code == 0, words
    assert "warning: 1 of 16 chunks of" in words
    assert "are not stored, 1 of them among stored ones; they are read as 0" in words
