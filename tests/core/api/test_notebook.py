"""What people look at in a notebook draws as a table, of the values that it has."""

from __future__ import annotations

import re

import numpy as np
import pytest
from scipy import ndimage

from patchworks_core import (
    estimate_empty_tiles,
    label_relations,
    open_image,
    seam_report,
    segment_to_ome_zarr,
    suggest_overlap,
    tile_process,
)


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


def test_an_image_draws_what_was_read_of_its_file():
    html = open_image(image(), axes="yx", pixel_size=(0.5, 0.25))._repr_html_()
    assert "<td>pixel_size</td><td>y 0.5 micrometer, x 0.25 micrometer</td>" in html
    assert "<td>shape</td><td>(64, 64)</td>" in html


def test_a_label_image_draws_where_it_is(tmp_path):
    made = segment_to_ome_zarr(image(), label, tmp_path / "made.ome.zarr", tile_shape=16)
    html = made._repr_html_()
    assert f"<td>n_objects</td><td>{made.n_objects}</td>" in html
    assert f"<td>path</td><td>{made.path}</td>" in html


def test_of_many_relations_the_first_are_drawn():
    html = label_relations(np.arange(1, 31).reshape(5, 6), np.ones((5, 6), int))._repr_html_()
    assert html.count("<tr>") == 11
    assert html.endswith("<p>and 20 more objects</p>")


@pytest.mark.parametrize("name", RESULTS)
def test_results_draw_as_a_table(name):
    make, (first, second) = RESULTS[name]
    html = make()._repr_html_()
    rows = [re.findall("<td>(.*?)</td>", row) for row in re.findall("<tr>(.*?)</tr>", html)]
    assert [row for row in rows if row[:2] == [first, second]], html
    assert len({len(row) for row in rows if row}) == 1
    assert len(html) < 5000
