"""The samples of the documentation are what its pages say of them, and never replace a file."""

from __future__ import annotations

import numpy as np
import zarr
from typer.testing import CliRunner

from patchworks_core import open_image
from patchworks_pipeline.cli.main import app


def test_samples_are_images_that_open(tmp_path):
    result = CliRunner().invoke(app, ["samples", str(tmp_path / "made")])
    assert result.exit_code == 0, result.output
    volume = open_image(tmp_path / "made" / "volume.ome.zarr", channel="DAPI")
    assert (volume.axes, volume.shape, volume.n_levels) == ("zyx", (12, 160, 200), 2)
    plane = open_image(tmp_path / "made" / "nuclei.tif")
    assert np.array_equal(plane.pixels[:], volume.pixels[0, 6])
    tiles = zarr.open_array(str(tmp_path / "made" / "tiles.zarr" / "labels"))
    corners = [tiles[y : y + 80, x : x + 100] for y in (0, 80) for x in (0, 100)]
    assert all(corner.min() == 0 and 1 in corner for corner in corners)


def test_a_sample_that_is_there_is_kept(tmp_path):
    (tmp_path / "nuclei.tif").write_text("mine")
    (tmp_path / "volume.ome.zarr").mkdir()
    result = CliRunner().invoke(app, ["samples", str(tmp_path)])
    assert result.output.splitlines() == [f"wrote {tmp_path / 'tiles.zarr'}"]
    assert (tmp_path / "nuclei.tif").read_text() == "mine"
