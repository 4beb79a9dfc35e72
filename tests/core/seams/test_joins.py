"""Joins by all the evidence: against a plain contraction of the whole table, and on small ones."""

from __future__ import annotations

import time
from dataclasses import replace

import numpy as np
import pytest

from patchworks_core.seams.edge_table import EdgeTable
from patchworks_core.seams.joins import REPULSION, evidence, rows_within_objects
from patchworks_core.seams.lookup import HaloOwners, build_lut, offsets_of
from patchworks_core.seams.rules import Joins, MergeOptions, joined_pairs
from tests.core.oracles import InParts, edge_table, random_table

OVERLAP = MergeOptions("overlap", 1)

UNIT = 1 << 20


def row(a, b, intersection, area_a, area_b, *, tiles=(0, 1), contact=1):
    return tiles[0], a, tiles[1], b, intersection, area_a, area_b, contact


def joined(rows, counts=(9, 9, 9), options=OVERLAP):
    return joined_pairs(edge_table(rows), np.array(counts), options).tolist()


def plainly_contracted(edges: EdgeTable, counts) -> dict[int, int]:
    """Contract the pair with the largest sum of scores until none is positive; slow and plain."""
    scores = evidence(edges, counts, min_iou=0.3)
    offsets = offsets_of(counts)
    links: dict[tuple[int, int], int] = {}
    partners: dict[int, set[int]] = {}
    tile_of = {}
    for i in np.flatnonzero(~np.isnan(scores)):
        x, y = (
            int(offsets[edges.tile_a[i]] + edges.id_a[i]),
            int(offsets[edges.tile_b[i]] + edges.id_b[i]),
        )
        tile_of[x], tile_of[y] = int(edges.tile_a[i]), int(edges.tile_b[i])
        pair = min(x, y), max(x, y)
        links[pair] = links.get(pair, 0) + int(np.rint(scores[i] * UNIT))
        partners.setdefault(x, set()).add(y)
        partners.setdefault(y, set()).add(x)
    repelled = {
        (p, q)
        for shared in partners.values()
        for p in shared
        for q in shared
        if p < q and tile_of[p] == tile_of[q]
    }
    for pair in repelled:
        links[pair] = links.get(pair, 0) - round(REPULSION * UNIT)
    root = {x: x for x in tile_of}
    while links:
        (x, y), score = min(links.items(), key=lambda item: (-item[1], item[0]))
        if score <= 0:
            break
        root = {z: x if r == y else r for z, r in root.items()}
        rest: dict[tuple[int, int], int] = {}
        for (p, q), value in links.items():
            p, q = (x if p == y else p), (x if q == y else q)
            if p != q:
                pair = min(p, q), max(p, q)
                rest[pair] = rest.get(pair, 0) + value
        links = rest
    return root


@pytest.mark.parametrize(
    ("n_rows", "n_tiles", "n_labels"), [(6, 3, 2), (40, 4, 8), (60, 3, 6), (150, 5, 30)]
)
@pytest.mark.parametrize("seed", range(6))
def test_objects_are_those_of_a_plain_contraction_of_the_whole_table(
    seed, n_rows, n_tiles, n_labels
):
    edges = random_table(seed, n_rows, n_tiles, n_labels)
    counts = np.full(n_tiles, n_labels)
    root = plainly_contracted(edges, counts)
    lut = build_lut(edges.select(joined_pairs(edges, counts, OVERLAP)), counts, sequential=False)
    ids = np.concatenate([lut.of_tile(tile)[1:] for tile in range(n_tiles)])
    assert {x: int(ids[x - 1]) for x in root} == root
    assert n_rows < 40 or len(set(root.values())) < len(root)  # something was joined


RULES = ["touching", "overlap", "overlap-pairs", "none"]


@pytest.mark.parametrize("rule", RULES)
def test_joins_of_a_table_in_parts_are_those_of_the_whole(rule):
    options, counts = MergeOptions(rule, 1), np.full(6, 12)
    edges = random_table(5, 150, 6, 12)
    edges = EdgeTable.concatenate([edges])
    whole = Joins.of(edges, counts, options)
    lut = whole.standing(edges)
    plain = build_lut(edges.select(whole.rows(edges)), counts, sequential=False)
    for n_rows in (1, 20):
        parts = InParts(edges, n_rows)
        joins = Joins.of(parts, counts, options)
        rows = [joins.rows(part) for part in parts.parts()]
        assert len(rows) > 2
        np.testing.assert_array_equal(np.concatenate(rows), whole.rows(edges))
        for table in (lut, plain):
            np.testing.assert_array_equal(joins.standing(parts).joined, table.joined)
            np.testing.assert_array_equal(joins.standing(parts).merged, table.merged)
        owners = HaloOwners.of(edges, counts), HaloOwners.of(parts, counts)
        assert len(owners[0].id)
        for name in ("tile", "id", "owner"):
            np.testing.assert_array_equal(*(getattr(of, name) for of in owners))


@pytest.mark.parametrize("seed", range(4))
def test_the_order_of_the_rows_changes_nothing(seed):
    edges, counts = random_table(seed, 80, 4, 10), np.full(4, 10)
    order = np.random.default_rng(seed).permutation(len(edges))
    within = rows_within_objects(edges, counts, min_iou=0.3)
    assert within.any()
    assert not within.all()
    shuffled = rows_within_objects(edges.select(order), counts, min_iou=0.3)
    assert shuffled.tolist() == within[order].tolist()


def test_a_view_that_was_cut_off_is_joined_though_its_iou_is_small():
    assert joined([row(1, 1, 20, 100, 20)]) == [True]
    assert joined([row(1, 1, 20, 100, 20)], options=MergeOptions("overlap-pairs", 1)) == [False]


@pytest.mark.parametrize(
    ("contact", "order", "least"), [(1, 1, 0.06), (0, 1, 0.21), (1, 2, 0.36), (0, 3, 0.51)]
)
def test_more_is_asked_for_of_labels_that_do_not_touch_or_meet_at_a_corner(contact, order, least):
    for iou, wanted in ((least - 0.01, False), (least + 0.01, True)):
        edges = edge_table([row(1, 1, round(1000 * iou), 1000, round(1000 * iou), contact=contact)])
        edges.order[:] = order
        assert joined_pairs(edges, np.array([1, 1]), OVERLAP).tolist() == [wanted]


@pytest.mark.parametrize(("common", "wanted"), [(20, False), (40, True)])
def test_planes_that_stand_in_for_pixels_that_both_saw_must_agree_better(common, wanted):
    edges = edge_table([row(1, 1, common, 100, common)])
    edges = replace(edges, plane_a=edges.area_a, plane_b=edges.area_b)
    assert joined_pairs(edges, np.array([1, 1]), OVERLAP).tolist() == [wanted]


def test_two_labels_of_one_tile_that_share_a_partner_repel_each_other():
    assert joined([row(1, 1, 60, 100, 60), row(1, 2, 20, 100, 20)]) == [True, False]
    assert joined([row(1, 2, 20, 100, 20)]) == [True]  # by itself it would be


def test_what_a_third_tile_saw_outweighs_a_pair():
    chain = [row(1, 1, 40, 60, 80, tiles=(0, 1)), row(1, 1, 12, 80, 20, tiles=(1, 2))]
    assert joined(chain) == [True, True]
    against = row(1, 1, 2, 50, 50, tiles=(0, 2), contact=0)
    assert joined([*chain, against]) == [True, False, False]


def test_rows_that_say_nothing_join_nothing():
    no_pixel_in_common = row(1, 1, 0, 50, 50)
    seen_in_a_halo_only = row(10, 1, 50, 50, 50)
    assert joined([no_pixel_in_common, seen_in_a_halo_only]) == [False, False]
    scores = evidence(
        edge_table([no_pixel_in_common, seen_in_a_halo_only]), np.array([9, 9]), min_iou=0.3
    )
    assert np.isnan(scores).all()


@pytest.mark.parametrize(("min_iou", "wanted"), [(0.3, True), (0.7, True), (0.75, False)])
def test_a_higher_min_iou_joins_less(min_iou, wanted):
    options = MergeOptions("overlap", 1, min_iou=min_iou)
    assert joined([row(1, 1, 50, 80, 75)], options=options) == [wanted]


def test_rows_by_the_hundred_thousand_take_seconds():
    rng = np.random.default_rng(0)
    n, n_tiles = 200_000, 200
    per_tile = n // n_tiles
    tile = np.repeat(np.arange(n_tiles - 1), per_tile)
    label = np.tile(np.arange(1, per_tile + 1), n_tiles - 1)
    other = np.clip(label + rng.integers(-1, 2, len(label)), 1, per_tile)
    zero, area = np.zeros(len(label), np.int64), np.full(len(label), 100)
    edges = EdgeTable(
        tile, label, tile + 1, other, rng.integers(0, 100, len(label)), area, area,
        rng.integers(0, 2, len(label)), zero, zero, np.ones(len(label), np.int64), zero, zero,
    )  # fmt: skip
    start = time.process_time()
    within = rows_within_objects(edges, np.full(n_tiles, per_tile), min_iou=0.3)
    assert 0.1 < within.mean() < 0.9
    assert time.process_time() - start < 10
