"""Judging the seams: a fault is named, and a sound image is left alone."""

from __future__ import annotations

from dataclasses import fields

import numpy as np
import pytest
from scipy import ndimage
from scipy.stats import binom

from patchworks_core.pilot.in_memory import TilesInMemory
from patchworks_core.seams.edge_table import EdgeTable
from patchworks_core.seams.faces import SeamFaces, judge_sizes, tile_key
from patchworks_core.seams.judge import SeamReport, _upper_tail, judge_seams
from patchworks_core.seams.rules import MergeOptions
from patchworks_core.tiles.grid import plan_grid
from tests.core.oracles import InParts, merge_in_memory
from tests.core.seams.test_merge_properties import perfect_labels, touching_cells

OVERLAP = MergeOptions("overlap", 1)
BAD = (1, 2)
FACES_OF_BAD = {
    "y000x002|y001x002",
    "y001x001|y001x002",
    "y001x002|y001x003",
    "y001x002|y002x002",
}


def cells(shape=(160, 160), n_cells=160, seed=0):
    """Touching cells, a third of them background."""
    found = touching_cells(shape, seed, n_cells=n_cells)
    found[np.isin(found, np.random.default_rng(seed).choice(n_cells, n_cells // 3))] = 0
    return found


def blobs(shape=(160, 160), seed=0):
    """A smooth image of bright blobs, 0 to 1."""
    noise = ndimage.gaussian_filter(np.random.default_rng(seed).random(shape), 3)
    return (noise - noise.min()) / np.ptp(noise)


def judge(image, function, options=OVERLAP, *, tile=40, halo=12) -> SeamReport:
    grid = plan_grid("zyx"[-image.ndim :], image.shape, tile_shape=tile, overlap=halo)
    tiles = TilesInMemory.stage(image, function, grid)
    return judge_seams(grid, tiles.edges, tiles.counts, options)


def at_tile(bad, ordinary, *indices):
    """A function that is another in some tiles."""
    return lambda pixels, tile: (bad if tile.index in indices else ordinary)(pixels, tile)


def brighter_than(level):
    return lambda pixels, tile: ndimage.label(pixels > level)[0]


def shifted(function, pixels_off=5):
    return lambda pixels, tile: np.roll(function(pixels, tile), pixels_off, axis=(0, 1))


@pytest.mark.parametrize("options", [OVERLAP, MergeOptions("touching", 1)])
def test_seams_of_a_table_in_parts_are_judged_as_those_of_the_whole(options):
    grid = plan_grid("yx", (160, 160), tile_shape=40, overlap=12)
    function = at_tile(shifted(perfect := brighter_than(0.5)), perfect, BAD)
    tiles = TilesInMemory.stage(blobs(), function, grid)
    whole = judge_seams(grid, tiles.edges, tiles.counts, options)
    parts = judge_seams(grid, InParts(tiles.edges, 1), tiles.counts, options)
    assert parts.to_dict() == whole.to_dict()
    for field in fields(SeamFaces):
        np.testing.assert_array_equal(*(getattr(r.faces, field.name) for r in (parts, whole)))


@pytest.mark.parametrize("seed", range(5))
@pytest.mark.parametrize("halo", [4, 12])
def test_perfect_labels_raise_no_alarm(seed, halo):
    truth = cells(seed=seed)
    report = judge(truth, perfect_labels(truth, seed), halo=halo)
    assert report.agrees, report.problems()
    assert report.n_contested == 0
    assert report.agreement > 0.97


def test_perfect_labels_in_three_dimensions_raise_no_alarm():
    truth = touching_cells((32, 48, 48), 1, n_cells=120)
    report = judge(truth, perfect_labels(truth, 0), tile=16, halo=6)
    assert report.agrees, report.problems()
    assert [axis.axis for axis in report.axes] == ["z", "y", "x"]


@pytest.mark.parametrize("halo", [0, 8])
def test_components_of_a_mask_raise_no_alarm(halo):
    report = judge(blobs(), brighter_than(0.6), MergeOptions("touching", 1), halo=halo)
    assert report.agrees, report.problems()


@pytest.mark.parametrize("halo", [0, 12])
def test_objects_that_no_rule_joins_are_said_to_be_cut(halo):
    truth = cells()
    report = judge(truth, perfect_labels(truth, 0), MergeOptions("none"), halo=halo)
    (words,) = report.problems()
    assert words.startswith(f"{report.n_unjoined} of {report.n_crossing} objects across seams are")
    assert "merge='none' does not join them; merge by 'overlap'" in words
    assert report.n_unjoined == report.n_crossing > 40


def test_objects_that_a_high_min_iou_leaves_cut_are_said_to_be():
    higher_in_every_other = at_tile(brighter_than(0.54), brighter_than(0.5), (0, 0), (1, 1), (2, 2))
    report = judge(blobs(), higher_in_every_other, MergeOptions("overlap-pairs", 1, min_iou=0.99))
    assert 0 < report.n_unjoined < report.n_crossing
    assert any(words.endswith("does not join them; lower min_iou") for words in report.problems())


def test_a_tile_staged_with_a_shift_is_named_with_exactly_its_faces():
    truth = cells()
    sound = perfect_labels(truth, 0)
    report = judge(truth, at_tile(shifted(sound), sound, BAD))
    (fault,) = report.faults
    assert fault.where == "tile y001x002"
    assert set(fault.faces) == FACES_OF_BAD == set(report.worst_faces())
    assert not report.poor_axes


def test_a_tile_staged_with_another_threshold_is_named_with_exactly_its_faces():
    report = judge(blobs(seed=3), at_tile(brighter_than(0.68), brighter_than(0.55), BAD))
    (fault,) = report.faults
    assert fault.where == "tile y001x002"
    assert set(fault.faces) == FACES_OF_BAD


def test_a_tile_staged_empty_is_named():
    truth = cells()
    nothing = at_tile(lambda pixels, tile: np.zeros_like(pixels), perfect_labels(truth, 0), BAD)
    (fault,) = judge(truth, nothing).faults
    assert fault.where == "tile y001x002"


def test_two_bad_tiles_are_two_faults():
    truth = cells((240, 240), 400)
    sound = perfect_labels(truth, 0)
    report = judge(truth, at_tile(shifted(sound), sound, (1, 1), (4, 4)))
    assert {fault.where for fault in report.faults} == {"tile y001x001", "tile y004x004"}


def test_one_bad_face_is_named_as_a_face():
    truth = cells((160, 160), 500)

    def segment(pixels, tile):
        labels = perfect_labels(truth, 0)(pixels, tile)
        if tile.index == BAD:
            labels[:, -12:] = np.roll(labels[:, -12:], 5, axis=0)
            labels[:12] = perfect_labels(truth, 0)(pixels, tile)[:12]
            labels[-12:] = perfect_labels(truth, 0)(pixels, tile)[-12:]
        return labels

    (fault,) = judge(truth, segment).faults
    assert fault.where == "face y001x002|y001x003"


@pytest.mark.parametrize("n_cells", [1, 3])
def test_few_objects_that_disagree_raise_no_alarm(n_cells):
    image = np.zeros((160, 160), dtype=int)
    for i in range(n_cells):
        image[10 + 45 * i : 20 + 45 * i, 35:45] = i + 1

    def some(pixels, tile):
        return pixels if tile.index[1] == 0 else np.zeros_like(pixels)

    report = judge(image, some)
    assert report.agreement < 0.5
    assert report.agrees


def test_an_image_without_objects_has_no_agreement_and_raises_no_alarm():
    report = judge(np.zeros((80, 80), dtype=int), perfect_labels(np.zeros((80, 80), int), 0))
    assert report.agrees
    assert report.agreement is None
    assert report.to_dict()["n_objects"] == 0


def test_tiles_that_disagree_everywhere_make_every_axis_poor():
    truth = cells(n_cells=300)
    rng = np.random.default_rng(0)

    def restless(pixels, tile):
        return np.roll(perfect_labels(truth, 0)(pixels, tile), rng.integers(-6, 7, 2), (0, 1))

    report = judge(truth, restless)
    assert report.poor_axes == ("y", "x")
    assert "first use an overlap of one diameter" in " ".join(report.problems())


def test_touching_on_tissue_is_contested_and_overlap_is_not():
    truth = touching_cells((160, 160), 0, n_cells=200)
    labels = perfect_labels(truth, 0)
    touching = judge(truth, labels, MergeOptions("touching", 1))
    assert touching.n_contested > 0.2 * touching.n_joined
    assert "merge by 'overlap'" in " ".join(touching.problems())
    assert judge(truth, labels).agrees


def test_an_object_cut_along_a_face_is_an_orphan_and_a_straight_cut():
    image = np.zeros((40, 80), dtype=int)
    image[10:30, 30:50] = 1

    def only_left(pixels, tile):
        return pixels if tile.index == (0, 0) else np.zeros_like(pixels)

    report = judge(image, only_left)
    assert report.faces.n_orphans.tolist() == [1]
    assert report.faces.n_cuts.tolist() == [1]
    whole = judge(image, perfect_labels(image, 0))
    assert whole.faces.n_orphans.tolist() == [0]
    assert whole.faces.n_cuts.tolist() == [0]


def test_a_label_that_met_no_other_is_in_the_edge_table_and_joins_nothing():
    image = np.zeros((8, 16), dtype=int)
    image[2:5, 6:8] = 1
    grid = plan_grid("yx", image.shape, tile_shape=8, overlap=3)

    def only_left(pixels, tile):
        return pixels if tile.index == (0, 0) else np.zeros_like(pixels)

    edges = TilesInMemory.stage(image, only_left, grid).edges
    assert edges.id_a.tolist() == [1]
    assert edges.id_b.tolist() == [0]
    assert edges.plane_a.tolist() == [3]
    assert edges.area_a.tolist() == [6]
    assert not edges.is_pair.any()
    for rule in ("overlap", "touching", "none"):
        merged = merge_in_memory(image, only_left, grid, MergeOptions(rule, 1))
        assert merged.max() == 1


def test_the_planes_of_a_face_are_counted_in_each_label_s_own_core():
    image = np.zeros((8, 16), dtype=int)
    image[1:6, 5:8] = 1
    image[3:6, 8:12] = 1
    grid = plan_grid("yx", image.shape, tile_shape=8, overlap=3)
    edges = TilesInMemory.stage(image, perfect_labels(image, 0), grid).edges
    assert (edges.plane_a.tolist(), edges.plane_b.tolist()) == ([5], [3])
    assert EdgeTable.from_arrow(edges.to_arrow()).plane_a.tolist() == [5]


def test_agreement_of_tiles_is_the_mean_over_their_faces():
    truth = cells()
    sound = perfect_labels(truth, 0)
    grid = plan_grid("yx", truth.shape, tile_shape=40, overlap=12)
    report = judge(truth, at_tile(shifted(sound), sound, BAD))
    per_tile = report.of_tiles(grid)
    assert per_tile.shape == (4, 4)
    assert np.unravel_index(np.nanargmin(per_tile), per_tile.shape) == BAD


def test_tiles_are_named_like_their_blocks():
    grid = plan_grid("zyx", (4, 40, 40), tile_shape=(2, 10, 10))
    keys = [tile_key(grid, n) for n in range(grid.n_tiles)]
    assert keys == grid.block_keys()


def test_objects_across_seams_are_large_only_against_those_inside_tiles():
    area = np.random.default_rng(0).normal(100, 10, 60).clip(50)
    inside = np.ones(60, dtype=int)
    fused = judge_sizes(np.append(area, [900.0, 105.0]), np.append(inside, [4, 2]))
    assert (fused.n_large, fused.n_large_inside) == (1, 0)
    few = judge_sizes(np.array([10.0, 900.0]), np.array([1, 4]))
    assert few.limit is None


def test_how_likely_disagreement_is_by_chance_is_that_of_a_binomial_distribution():
    rng = np.random.default_rng(0)
    n = rng.integers(1, 5000, 2000)
    k = np.minimum(n, rng.integers(0, 5000, 2000))
    share = rng.random(2000) * 0.9 + 1e-3
    np.testing.assert_array_equal(_upper_tail(k, n, share), binom.sf(k - 1, n, share))
    assert _upper_tail(0, 5, 0.1) == 1
