"""Labels from anywhere say themselves whether their tiles show."""

from __future__ import annotations

import numpy as np
import pytest
import zarr
from scipy import ndimage

from patchworks_core import ImageError, PlanError, seam_report, tile_process


def image(shape=(200, 240)):
    noise = ndimage.gaussian_filter(np.random.default_rng(0).random(shape), 3)
    return noise > np.percentile(noise, 65)


def label(tile):
    return ndimage.label(tile)[0]


def test_merged_labels_agree_and_labels_of_tiles_do_not(tmp_path):
    whole = label(image())
    sound = seam_report(whole, 40)
    assert sound.agrees, sound.problems()
    assert set(sound["axes"]) == {"y", "x"}
    assert (sound.axes["y"].n_seams, sound.axes["x"].n_seams) == (4, 5)
    cut = tile_process(image(), label, tile_shape=40, merge="none")
    poor = seam_report(cut, 40)
    assert len(poor.problems()) == 2
    assert "larger overlap" in poor.problems()[0]
    assert poor.axes["y"]["seam_rate"] == 1.0
    assert poor.axes["y"]["interior_rate"] < 0.2
    assert poor.worst_seams[0]["orphans"] > 5
    assert "5 seams" in str(poor)


@pytest.mark.parametrize("workers", [1, 3])
def test_counts_are_those_of_the_planes(workers, tmp_path):
    labels = np.random.default_rng(1).integers(0, 6, (5, 12, 14))
    stored = zarr.create_array(str(tmp_path / "l.zarr"), data=labels, chunks=(2, 5, 5))
    report = seam_report(stored, (2, 12, 14), min_pixels=3, max_workers=workers)
    expected = np.zeros(2, int)
    for position in (2, 4):
        for a, b in ((position - 1, position), (position, position - 1)):
            for i in range(1, 6):
                if (labels[a] == i).sum() >= 3:
                    expected += (1, not ((labels[a] == i) & (labels[b] == i)).any())
    assert [report.axes["z"].seam_labels, report.axes["z"].seam_orphans] == expected.tolist()


def test_one_tile_has_no_seam_and_what_are_no_labels_is_refused():
    assert str(seam_report(np.ones((4, 4), int), -1)) == "one tile, no seam"
    with pytest.raises(ImageError, match="labels are whole numbers, got 'float64'"):
        seam_report(np.ones((4, 4)), 2)
    with pytest.raises(PlanError, match="min_pixels must be a whole number, 1 or more, got 0"):
        seam_report(np.ones((4, 4), int), 2, min_pixels=0)
