"""What people try first and should not have: each is one sentence, and nothing is lost."""

from __future__ import annotations

import numpy as np
import pytest
import zarr

from patchworks_core import (
    convert_image,
    fill_holes,
    filter_image,
    make_local_cluster,
    open_image,
    segment_to_ome_zarr,
    tile_process,
    write_labels,
)
from patchworks_core.errors import ClusterError, ImageError, PlanError
from patchworks_core.operations.filters import median
from patchworks_pipeline.cli.samples import write_samples


@pytest.fixture
def samples(tmp_path, monkeypatch):
    write_samples(tmp_path)
    monkeypatch.chdir(tmp_path)
    return tmp_path


def bright(tile):
    return (tile > 300).astype("int32")


def test_an_array_does_not_take_the_place_of_the_label_images_of_an_ome_zarr(samples):
    image = "volume.ome.zarr"
    with pytest.raises(PlanError, match="OME-Zarr image, .* segment_to_ome_zarr"):
        tile_process(image, bright, channel="DAPI", tile_shape=64, write_to=image)
    assert not (samples / image / "labels").exists()
    tile_process(
        image, bright, channel="DAPI", tile_shape=64, write_to=image, output_component="mine"
    )
    made = segment_to_ome_zarr(image, "threshold", image, channel="DAPI", tile_shape=64)
    assert zarr.open_array(str(made.path / "0")).shape == (12, 160, 200)


def test_labels_do_not_go_into_an_array(samples):
    labels = np.ones((160, 200), int)
    with pytest.raises(PlanError, match="tiles.zarr/labels is an array"):
        write_labels(labels, "tiles.zarr", like="nuclei.tif")
    with pytest.raises(PlanError, match="tiles.zarr/labels is an array"):
        segment_to_ome_zarr("nuclei.tif", "threshold", "tiles.zarr", tile_shape=64)


def test_a_version_that_is_none_is_named(samples):
    with pytest.raises(PlanError, match="version must be '0.5' or '0.4', got '0.6'"):
        write_labels(np.ones((4, 4), int), "a.ome.zarr", version="0.6")
    with pytest.raises(PlanError, match="version must be '0.5' or '0.4', got '0.6'"):
        segment_to_ome_zarr("nuclei.tif", "threshold", "a.ome.zarr", version="0.6", tile_shape=64)


def test_functions_for_labels_draw_bars_too():
    ring = np.array([[1, 1, 1], [1, 0, 1], [1, 1, 1]])
    assert fill_holes(ring, progress=True).min() == 1


@pytest.mark.parametrize("n_colours", [3, 4])
def test_an_array_that_may_be_a_picture_in_colour_says_so(n_colours):
    pixels = np.zeros((40, 50, n_colours), "u1")
    pixels[5:9, 5:9, 1] = 9
    with pytest.raises(ImageError, match="say axes='yxc' .* or axes='zyx'"):
        tile_process(pixels, bright, tile_shape=32)
    assert open_image(pixels, axes="yxc", channel=1).pixels[..., 1].sum() == 9 * 16
    assert open_image(pixels, axes="zyx").shape == pixels.shape


def test_what_is_no_client_is_named():
    with pytest.raises(ClusterError, match=r"client= is a distributed.Client.* got 'tcp://x:1'"):
        tile_process(np.zeros((8, 8)), bright, tile_shape=4, client="tcp://x:1")


def test_a_local_cluster_is_a_client_until_it_is_closed():
    local = make_local_cluster(n_workers=1, dashboard_address=None)
    pixels = np.full((8, 8), 400)
    try:
        assert tile_process(pixels, bright, tile_shape=4, client=local, merge="touching").max() == 1
        with pytest.raises(ClusterError, match="Client"):
            tile_process(pixels, bright, tile_shape=4, client=local.cluster)
    finally:
        local.close()
    with pytest.raises(ClusterError, match="is closed"):
        tile_process(pixels, bright, tile_shape=4, client=local)


@pytest.mark.parametrize("name", ["labels.tif", "labels.OME.TIFF", "labels.png", "a.zarr.zip"])
def test_a_folder_does_not_get_the_name_of_a_file(name, tmp_path):
    image, target = np.full((8, 8), 400), tmp_path / name
    for write in (
        lambda: tile_process(image, bright, tile_shape=4, write_to=target, merge="touching"),
        lambda: segment_to_ome_zarr(image, bright, target, tile_shape=4, merge="touching"),
        lambda: write_labels(np.ones((8, 8), np.int32), target),
        lambda: filter_image(image, median(3), write_to=target),
        lambda: convert_image(open_image(image, axes="yx"), target),
    ):
        with pytest.raises(
            PlanError, match=r"is the name of a file; name it '(labels|labels.OME|a).zarr'"
        ):
            write()
    assert not any(tmp_path.iterdir())


def test_a_group_under_such_a_name_is_written_into(tmp_path):
    target = tmp_path / "labels.tif"
    zarr.create_group(str(target))
    options = {"tile_shape": 4, "merge": "touching", "write_to": target}
    assert tile_process(np.full((8, 8), 400), bright, **options).max() == 1
