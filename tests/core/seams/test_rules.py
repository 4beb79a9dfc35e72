"""Rules decide on hand-made edge tables."""

from __future__ import annotations

import numpy as np
import pytest

from patchworks_core.errors import PlanError
from patchworks_core.seams.rules import MergeOptions, joined_pairs
from patchworks_core.tiles.grid import TileGrid
from tests.core.oracles import edge_table

WITH_HALO = TileGrid("yx", (20, 20), (10, 10), (2, 2))
WITHOUT_HALO = TileGrid("yx", (20, 20), (10, 10), (0, 0))
PAIRS = MergeOptions("overlap-pairs", 1)


def joined(rows, options=PAIRS, counts=(9, 9, 9)):
    return joined_pairs(edge_table(rows), np.array(counts), options).tolist()


def overlap_row(a, b, intersection, area_a, area_b, tiles=(0, 1)):
    return tiles[0], a, tiles[1], b, intersection, area_a, area_b


@pytest.mark.parametrize(
    ("grid", "declared", "rule"),
    [
        (WITH_HALO, "auto", "overlap"),
        (WITHOUT_HALO, "auto", "touching"),
        (WITH_HALO, "touching", "touching"),
        (WITHOUT_HALO, "overlap", "overlap"),
        (WITH_HALO, "none", "none"),
    ],
)
def test_auto_is_what_the_function_declares_else_what_the_halo_allows(grid, declared, rule):
    options = MergeOptions("auto").resolve(grid, declared=declared, connectivity=None)
    assert (options.rule, options.connectivity) == (rule, 1)


def test_a_rule_that_is_asked_for_wins_over_the_declared_one():
    options = MergeOptions("none").resolve(WITH_HALO, declared="touching", connectivity=None)
    assert options.rule == "none"


@pytest.mark.parametrize(
    ("asked", "of_function", "resolved"),
    [(None, None, 1), (2, None, 2), (None, 2, 2), (2, 2, 2), (3, None, 2), (None, 3, 2), (2, 3, 2)],
)
def test_connectivity_is_the_functions_and_at_most_the_number_of_axes(asked, of_function, resolved):
    options = MergeOptions("touching", asked, min_iou=0.5, min_size=4, sequential=False)
    found = options.resolve(WITHOUT_HALO, declared="auto", connectivity=of_function)
    assert found == MergeOptions("touching", resolved, 0.5, 4, False, outline="core")


@pytest.mark.parametrize(("asked", "of_function"), [(1, 2), (2, 1)])
def test_a_connectivity_that_is_not_the_functions_is_refused(asked, of_function):
    options = MergeOptions("touching", asked)
    with pytest.raises(PlanError, match="give the function and the merge the same"):
        options.resolve(WITHOUT_HALO, declared="auto", connectivity=of_function)


@pytest.mark.parametrize(
    ("values", "words"),
    [
        ({"rule": "iou"}, "merge must be one of"),
        ({"outline": "smooth"}, "outline must be one of"),
        ({"min_iou": 1.5}, "min_iou must be a finite number, from 0 to 1, got 1.5"),
        ({"min_iou": float("nan")}, "min_iou must be a finite number, from 0 to 1, got nan"),
        ({"connectivity": 0}, "connectivity must be a whole number, from 1 to 3, got 0"),
        ({"connectivity": 4}, "connectivity must be a whole number, from 1 to 3, got 4"),
        ({"min_size": -1}, "min_size in pixels must be a whole number, 0 or more, got -1"),
    ],
)
def test_options_that_break_a_rule_are_refused_with_the_rule(values, words):
    with pytest.raises(PlanError, match=words):
        MergeOptions(**values)


@pytest.mark.parametrize(
    ("grid", "rule", "outline", "declared", "drawn"),
    [
        (WITH_HALO, "overlap", "auto", "auto", "feather"),
        (WITH_HALO, "auto", "auto", "auto", "feather"),
        (WITH_HALO, "overlap", "core", "auto", "core"),
        (WITH_HALO, "overlap", "auto", "core", "core"),
        (WITH_HALO, "overlap", "feather", "core", "feather"),
        (WITH_HALO, "overlap-pairs", "auto", "auto", "core"),
        (WITH_HALO, "overlap-pairs", "feather", "auto", "feather"),
        (WITH_HALO, "touching", "auto", "feather", "core"),
        (WITH_HALO, "none", "auto", "auto", "core"),
        (WITHOUT_HALO, "overlap", "auto", "auto", "core"),
        (TileGrid("yx", (20, 20), (10, 10), (1, 1)), "overlap", "auto", "auto", "core"),
        (TileGrid("yx", (20, 20), (20, 20), (0, 0)), "overlap", "feather", "auto", "core"),
    ],
)
def test_outlines_are_feathered_where_tiles_saw_enough_of_each_other(
    grid, rule, outline, declared, drawn
):
    options = MergeOptions(rule, outline=outline)
    resolved = options.resolve(grid, declared="auto", connectivity=None, outline=declared)
    assert resolved.outline == drawn


@pytest.mark.parametrize(
    ("grid", "rule", "words"),
    [
        (WITH_HALO, "touching", "merge='touching' does not look at; merge='overlap', or leave"),
        (WITHOUT_HALO, "overlap", "an overlap of 2 pixels or more on a tiled axis, got .0, 0."),
    ],
)
def test_feathering_that_cannot_be_is_refused_with_the_way_out(grid, rule, words):
    options = MergeOptions(rule, outline="feather")
    with pytest.raises(PlanError, match=words):
        options.resolve(grid, declared="auto", connectivity=None)


@pytest.mark.parametrize("rule", ["touching", "overlap", "overlap-pairs", "none"])
def test_options_are_what_they_were_recorded_as(rule):
    options = MergeOptions(rule, 1, 0.4, 5).resolve(WITH_HALO, declared="auto", connectivity=1)
    assert MergeOptions.from_dict(options.to_dict()) == options


def test_a_record_of_version_0_1_means_what_it_meant():
    record = {"rule": "overlap", "connectivity": 1, "min_iou": 0.3, "min_size": 0}
    options = MergeOptions.from_dict(record)
    assert (options.rule, options.outline) == ("overlap-pairs", "core")
    touching = {**record, "rule": "touching", "sequential": True, "max_size": None}
    assert MergeOptions.from_dict(touching).to_dict() == touching


def test_an_unresolved_rule_is_refused():
    with pytest.raises(PlanError, match="'auto' must be resolved"):
        joined([overlap_row(1, 1, 5, 5, 5)], MergeOptions("auto"))


@pytest.mark.parametrize("rule", ["touching", "overlap", "overlap-pairs", "none"])
def test_a_table_without_rows_joins_nothing(rule):
    assert joined([], MergeOptions(rule, 1)) == []


def test_none_joins_nothing():
    assert joined([overlap_row(1, 1, 5, 5, 5)], MergeOptions("none", 1)) == [False]


@pytest.mark.parametrize(
    ("reach", "wanted"), [(1, [True, False, False, False]), (3, [True, True, True, False])]
)
def test_touching_joins_what_touches_at_the_connectivity(reach, wanted):
    rows = [(0, i, 1, i, 5, 5, 5, connectivity) for i, connectivity in enumerate((1, 2, 3, 0), 1)]
    assert joined(rows, MergeOptions("touching", reach)) == wanted


def test_overlap_pairs_joins_only_where_each_is_the_others_best_partner():
    rows = [
        overlap_row(1, 1, 60, 100, 80),  # best for both
        overlap_row(1, 2, 40, 100, 40),  # 2 has no better one, but 1 has
        overlap_row(3, 3, 50, 50, 100),  # 3 of the high tile prefers the next row
        overlap_row(4, 3, 50, 50, 90),
    ]
    assert joined(rows) == [True, False, False, True]


@pytest.mark.parametrize(("min_iou", "wanted"), [(0.3, True), (0.5, True), (0.51, False)])
def test_overlap_pairs_asks_for_the_least_iou_inclusive(min_iou, wanted):
    options = MergeOptions("overlap-pairs", 1, min_iou=min_iou)
    assert joined([overlap_row(1, 1, 50, 75, 75)], options) == [wanted]


def test_overlap_pairs_joins_nothing_that_has_no_pixel_in_common_even_at_iou_0():
    rows = [(0, 1, 1, 1, 0, 5, 5, 1)]
    assert joined(rows, MergeOptions("overlap-pairs", 1, min_iou=0)) == [False]


def test_a_tie_goes_to_the_larger_intersection_then_to_the_smaller_id():
    larger = [overlap_row(1, 1, 10, 10, 20), overlap_row(1, 2, 20, 20, 40)]
    assert joined(larger) == [False, True]
    same = [overlap_row(1, 2, 10, 20, 10), overlap_row(1, 1, 10, 20, 10)]
    assert joined(same) == [False, True]


def test_a_label_has_a_best_partner_at_each_face():
    rows = [
        overlap_row(1, 1, 90, 100, 100, tiles=(0, 1)),
        overlap_row(1, 1, 50, 100, 100, tiles=(0, 2)),
    ]
    assert joined(rows) == [True, True]


def test_a_label_seen_only_in_a_halo_is_never_joined_but_may_be_the_best_partner():
    rows = [overlap_row(1, 3, 90, 100, 100), overlap_row(1, 1, 40, 100, 60)]
    assert joined(rows, counts=(1, 1, 0)) == [False, False]
    assert joined(rows, counts=(1, 3, 0)) == [True, False]
    assert joined(rows[1:], counts=(1, 1, 0)) == [True]
    assert joined(rows[:1], counts=(0, 3, 0)) == [False]
