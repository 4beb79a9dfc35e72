"""What people look at in a notebook draws as a table, of the values that it has."""

from __future__ import annotations

import re

import numpy as np
import pytest
from scipy import ndimage

from patchworks_core import estimate_empty_tiles, seam_report, suggest_overlap, tile_process


def image():
    noise = ndimage.gaussian_filter(np.random.default_rng(0).random((64, 64)), 2)
    return (noise > 0.5).astype("u1")


def label(tile):
    return ndimage.label(tile)[0]


RESULTS = {
    "empty": (lambda: estimate_empty_tiles(image(), 16), ("n_tiles", "16")),
    "seams": (lambda: seam_report(label(image()), 16), ("x", "3")),
    "pilot": (lambda: suggest_overlap(image(), label, 16), ("(0, 0)", "touching")),
    "estimate": (
        lambda: tile_process(image(), label, tile_shape=16, dry_run=True),
        ("n_tiles", "16"),
    ),
}


@pytest.mark.parametrize("name", RESULTS)
def test_results_draw_as_a_table(name):
    make, (first, second) = RESULTS[name]
    html = make()._repr_html_()
    rows = [re.findall("<td>(.*?)</td>", row) for row in re.findall("<tr>(.*?)</tr>", html)]
    assert [row for row in rows if row[:2] == [first, second]], html
    assert len({len(row) for row in rows if row}) == 1
    assert len(html) < 5000
