"""The pilot recommends what works, says how sure it is, and refuses to guess."""

from __future__ import annotations

import json

import numpy as np
import pytest
from scipy import ndimage

from patchworks_core import (
    PlanError,
    open_image,
    segment_to_ome_zarr,
    segmentation_of,
    tile_process,
)
from patchworks_core.pilot.trials import pilot, recommend_overlap
from patchworks_core.seams.rules import MergeOptions
from tests.core.seams.test_merge_properties import touching_cells


def tissue(shape=(128, 128), n_cells=120):
    return touching_cells(shape, 0, n_cells=n_cells).astype(np.uint16)


def truth(tile):
    """The true labels of a picture whose values are the ids."""
    return tile.astype(np.int32)


def components(tile):
    return ndimage.label(tile > 0)[0]


def needs_context(tile):
    """Labels of a picture smoothed over 9 pixels."""
    return ndimage.label(ndimage.uniform_filter(tile.astype(float), 9) > 0.5)[0]


def test_tissue_wants_overlap_and_a_halo():
    report = pilot(tissue(), truth, tile_shape=32)
    assert report.recommended.rule == "overlap"
    assert report.recommended.is_enough
    assert min(report.recommended.overlap) > 0
    assert all(not t.is_enough for t in report.trials if t.rule == "touching")


def test_components_without_filters_need_no_halo():
    mask = ndimage.gaussian_filter(np.random.default_rng(0).random((128, 128)), 2) > 0.5
    report = pilot(mask, components, tile_shape=32)
    assert report.recommended.rule == "touching"
    assert report.recommended.overlap == (0, 0)
    assert (report.recommended.f1, report.recommended.seam_f1) == (1, 1)
    assert report.recommended.read_factor == 1


def test_a_function_that_smooths_needs_a_halo():
    mask = np.random.default_rng(0).random((128, 128)) > 0.5
    report = pilot(mask, needs_context, tile_shape=32, overlaps=[0, 4, 16])
    scores = [t.seam_f1 for t in report.trials if t.rule == "touching"]
    assert scores == sorted(scores)
    assert scores[0] < 0.6
    assert report.recommended.overlap == (16, 16)


def test_the_default_halos_are_parts_of_a_large_object():
    report = pilot(tissue(), truth, tile_shape=48)
    halos = sorted({t.overlap for t in report.trials})
    assert halos[0] == (0, 0)
    assert halos[-1] == report.extent
    assert len(halos) == 4


def test_thin_axes_get_a_thin_halo():
    cells = tissue((8, 96, 96), 200)
    report = pilot(cells, truth, tile_shape=(4, 32, 32), n_regions=1)
    assert report.extent[0] < report.extent[1]
    assert report.regions[0].shape == (8, 64, 64)


def test_the_same_seed_gives_the_same_regions_and_scores():
    first, second = (pilot(tissue(), truth, tile_shape=16, seed=3) for _ in range(2))
    assert first.regions == second.regions
    assert [(t.f1, t.seam_f1) for t in first.trials] == [(t.f1, t.seam_f1) for t in second.trials]


def test_regions_are_disjoint_and_lie_where_the_signal_is():
    image = np.zeros((256, 256), dtype=np.uint16)
    image[128:, 128:] = tissue()
    report = pilot(image, truth, tile_shape=32, n_regions=2)
    seen = np.zeros(image.shape, dtype=int)
    for region in report.regions:
        seen[region.slices] += 1
        assert image[region.slices].any()
    assert seen.max() == 1


def test_regions_are_made_smaller_to_fit():
    report = pilot(tissue(), truth, tile_shape=64, max_pixels=64 * 64, n_regions=1)
    assert report.regions[0].size <= 64 * 64
    assert report.tile_shape == (32, 32)


def test_a_rule_that_was_chosen_is_the_only_one_tried():
    report = pilot(tissue(), truth, tile_shape=32, options=MergeOptions("overlap"))
    assert {t.rule for t in report.trials} == {"overlap"}


def test_time_and_channel_are_never_crossed():
    stack = np.stack([tissue(), tissue()])
    report = pilot(open_image(stack, axes="tyx"), truth, tile_shape=32)
    assert all(region.shape[0] == 1 for region in report.regions)
    assert all(t.overlap[0] == 0 for t in report.trials)


def test_few_objects_make_it_unsure_and_many_make_it_sure():
    few = pilot(tissue(n_cells=20), truth, tile_shape=32, n_regions=1)
    assert few.confidence.startswith("not sure, few objects")
    many = pilot(tissue((256, 256), 900), truth, tile_shape=32, n_regions=8)
    assert many.confidence.startswith("sure: ")


def test_an_image_without_objects_gets_no_recommendation():
    report = pilot(np.zeros((64, 64), dtype=np.uint8), truth, tile_shape=16)
    assert report.recommended is None
    assert report.confidence.startswith("no recommendation: 0 objects at seams in 3 regions")
    assert json.loads(json.dumps(report.to_dict()))["n_objects"] == 0


@pytest.mark.parametrize("dtype", ["bool", "u1", "i4", "u8", "f8"])
@pytest.mark.parametrize("value", [0, 1])
def test_auto_needs_no_halo_for_an_image_seen_whole_in_which_there_is_no_object(dtype, value):
    said = []
    report, chosen = recommend_overlap(
        np.full((64, 64), value, dtype), "threshold", tile_shape=32, say=said.append
    )
    assert (report.recommended, chosen.overlap) == (None, (0, 0))
    assert said == [
        "overlap 'auto' takes (0, 0) without a trial: the function finds no object in 1 region"
    ]


def test_auto_assumes_a_halo_where_an_object_may_lie_outside_of_what_was_looked_at():
    image = np.zeros((512, 512), np.uint8)
    _, chosen = recommend_overlap(image, truth, tile_shape=64, options=MergeOptions("overlap"))
    assert (chosen.overlap, chosen.rule) == ((32, 32), "overlap")


def test_an_empty_well_is_segmented_with_overlap_auto(tmp_path):
    empty_well = np.full((64, 64), 7, np.uint16)
    labels = tile_process(empty_well, "watershed", tile_shape=32, overlap="auto", max_workers=1)
    assert not np.asarray(labels).any()


def test_auto_refuses_where_nothing_is_good_enough():
    with pytest.raises(PlanError, match="overlap 'auto' found none to recommend"):
        recommend_overlap(tissue(), truth, tile_shape=32, options=MergeOptions("none"))


def test_an_image_of_one_tile_has_no_seam_to_try():
    with pytest.raises(PlanError, match="a pilot needs seams"):
        pilot(tissue(), truth, tile_shape=128)


def test_the_number_of_regions_is_at_least_one():
    with pytest.raises(PlanError, match="n_regions must be a whole number, 1 or more, got 0"):
        pilot(tissue(), truth, tile_shape=32, n_regions=0)


def test_a_function_that_asks_gets_statistics_common_to_all_tiles():
    seen = []

    def curious(tile, statistics):
        seen.append(statistics.maximum)
        return tile.astype(np.int32)

    image = tissue()
    pilot(image, curious, tile_shape=32, n_regions=1)
    assert set(seen) == {int(image.max())}


def test_auto_overlap_gives_the_labels_of_the_recommended_halo_and_rule():
    image = tissue()
    best = pilot(image, truth, tile_shape=32).recommended
    asked = tile_process(image, truth, tile_shape=32, overlap="auto")
    given = tile_process(image, truth, tile_shape=32, overlap=best.overlap, merge=best.rule)
    np.testing.assert_array_equal(asked, given)


def test_auto_overlap_is_recorded_beside_the_labels(tmp_path):
    written = segment_to_ome_zarr(
        open_image(tissue()), segmentation_of(truth), tmp_path / "a", tile_shape=32, overlap="auto"
    )
    record = json.loads((written.path / "provenance.json").read_text())
    assert tuple(record["pilot"]["recommended"]["overlap"]) == written.plan.grid.halo
    assert record["merge"]["rule"] == record["pilot"]["recommended"]["rule"]


def test_an_overlap_in_other_words_than_auto_is_refused():
    with pytest.raises(PlanError, match="overlap must be pixels or 'auto', got 'much'"):
        tile_process(tissue(), truth, tile_shape=32, overlap="much")
