"""Keys of images and of their tiles."""

from __future__ import annotations

import unicodedata

import pytest
from hypothesis import given
from hypothesis import strategies as st

from patchworks_core.errors import PlanError
from patchworks_pipeline.partitions import check_image_key, image_key, split_tile_key, tile_keys
from tests.tissue import tissue, write_tiff


@pytest.mark.parametrize(
    ("location", "key"),
    [
        ("B03.ome.tif", "B03"),
        ("/data/plate 1/B 03.OME.TIFF", "B_03"),
        ("/data/B03.ome.zarr/", "B03"),
        ("s3://bucket/run/B03.zarr", "B03"),
        (r"C:\scans\tissue section.svs", "tissue_section"),
        ("a...b.tif", "a.b"),
        ("..hidden.png", "hidden"),
        ("Gewebe_ä_1.tif", "Gewebe_a_1-cf1f9793"),
        ("äöü.tif", "aou-96846fc8"),
        ("細胞 7.ome.zarr", "7-59057345"),
        ("ψ.tif", "d4ee5935"),
        ("C:\\\\scans\\\\B03.zarr\\\\", "B03"),
        ("x.y.z", "x.y.z"),
    ],
)
def test_the_key_of_an_image_is_its_file_name_made_legal(location, key):
    assert image_key(location) == key


@pytest.mark.parametrize("location", ["...", "/", "", "___.png"])
def test_a_name_without_legal_characters_has_no_key(location):
    with pytest.raises(PlanError, match=r"no partition key can be made of the name .*; rename"):
        image_key(location)


def test_names_that_look_alike_in_ascii_have_keys_of_their_own():
    names = ["ä", "a", "â", "A", "細胞", "細菌", "Ж", "Д", "a" * 300, "a" * 301, "ab"]
    assert len({image_key(f"{name}.tif") for name in names}) == len(names)


def test_a_name_has_one_key_however_a_file_system_writes_its_accents():
    assert image_key("ä.tif") == image_key(unicodedata.normalize("NFD", "ä.tif"))


def test_the_key_of_a_long_name_may_name_a_folder():
    assert len(image_key("x" * 240 + ".tif")) < 200


@given(st.text(min_size=1))
def test_every_key_that_is_made_may_name_an_image_and_is_its_own_key(location):
    try:
        key = image_key(location)
    except PlanError:
        return
    assert check_image_key(key) == key
    assert image_key(key + ".tif") == key
    assert split_tile_key(*tile_keys(key, ["y000x000"])) == (key, "y000x000")


@pytest.mark.parametrize("key", ["", "a/b", "a b", "a..b", ".", "ä", "a\\b"])
def test_an_illegal_key_is_refused(key):
    with pytest.raises(PlanError, match="cannot name an image: use letters"):
        check_image_key(key)


def test_a_tile_key_has_an_image_and_a_block():
    assert split_tile_key("plate/y000x001") == ("plate", "y000x001")
    with pytest.raises(PlanError, match=r"'plate' is not the key of a tile; .*<image>/<tile"):
        split_tile_key("plate")


def test_all_tiles_of_an_image_are_one_contiguous_range(pipeline, tmp_path):
    folders = [
        pipeline.register(write_tiff(tmp_path / f"{name}.tif", tissue()), name)
        for name in ("a", "b")
    ]
    for folder in folders:
        assert pipeline.plan(folder).success
    # Replanned in other tiles, the image's keys are other keys, and still one range.
    first = pipeline.register(tmp_path / "a.tif", "a", tile_shape=(48,))
    assert pipeline.plan(first).success
    known = pipeline.instance.get_dynamic_partitions("tiles")
    for folder in folders:
        wanted = tile_keys(folder.key, folder.plan().grid.block_keys())
        start = known.index(wanted[0])
        assert known[start : start + len(wanted)] == wanted
    assert len(known) == sum(folder.plan().grid.n_blocks for folder in folders)
