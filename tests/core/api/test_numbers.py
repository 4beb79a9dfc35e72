"""The numbers that are seldom given are checked like those that often are."""

from __future__ import annotations

from math import inf, nan

import numpy as np
import pytest

from patchworks_core import (
    PlanError,
    auto_tile_shape,
    auto_tile_shape_cellpose,
    expand_labels,
    label_relations,
    safe_worker_count,
)
from patchworks_core.pilot.trials import pilot
from patchworks_core.seams.rules import MergeOptions
from patchworks_core.tiles.grid import plan_grid
from tests.core.staging import label_components

LABELS = np.zeros((32, 32), np.int32)
LABELS[4:12, 4:12] = 1

WHOLE = {
    "at_most": lambda n: safe_worker_count((64, 64), "u1", at_most=n),
    "max_blocks": lambda n: plan_grid("yx", (64, 64), tile_shape=8, max_blocks=n),
    "n_regions": lambda n: pilot(LABELS, label_components, tile_shape=8, n_regions=n),
    "n_workers": lambda n: auto_tile_shape_cellpose((64, 64), "u1", n_workers=n),
}
BYTES = {
    "function_bytes_per_pixel of a tile": lambda n: auto_tile_shape(
        (64, 64), "u1", function_bytes_per_pixel=n
    ),
    "function_bytes_per_pixel": lambda n: safe_worker_count(
        (64, 64), "u1", function_bytes_per_pixel=n
    ),
    "measured_bytes": lambda n: safe_worker_count((64, 64), "u1", measured_bytes=n),
}
REAL = {
    "spacing": lambda x: expand_labels(LABELS, 1, spacing=x),
    "min_fraction": lambda x: label_relations(LABELS, LABELS, min_fraction=x),
    "diameter": lambda x: auto_tile_shape_cellpose((64, 64), "u1", x),
}


@pytest.mark.parametrize("value", [1.5, 2.0, nan, inf, True, "2", -3, 0])
@pytest.mark.parametrize("name", WHOLE)
def test_a_whole_number_is_whole_and_at_least_1(name, value):
    with pytest.raises(PlanError, match=f"{name} must be a whole number, 1 or more, got"):
        WHOLE[name](value)


@pytest.mark.parametrize("value", [nan, np.float32("nan"), inf, True, "0.5", -1])
@pytest.mark.parametrize("name", REAL)
def test_a_real_number_is_a_finite_number(name, value):
    with pytest.raises(PlanError, match=f"{name} (must be a finite number|needs one size above 0)"):
        REAL[name](value)


@pytest.mark.parametrize("value", [1.5, nan, inf, True, "64", -1])
@pytest.mark.parametrize("name", BYTES)
def test_bytes_are_whole_and_none_is_allowed(name, value):
    argument = name.partition(" ")[0]
    with pytest.raises(PlanError, match=f"{argument} must be a whole number, 0 or more, got"):
        BYTES[name](value)
    BYTES[name](0)


@pytest.mark.parametrize("value", [nan, inf, True, "64", -1])
def test_free_memory_of_a_gpu_is_a_finite_number(value):
    with pytest.raises(PlanError, match="vram_bytes must be a finite number, 0 or more, got"):
        auto_tile_shape_cellpose((64, 64), "u1", use_gpu=True, vram_bytes=value)


@pytest.mark.parametrize("name", [*WHOLE, *BYTES, *REAL])
def test_numbers_of_numpy_are_welcome(name):
    (WHOLE | BYTES | REAL)[name](np.int64(1))


def test_merge_options_hold_plain_numbers_that_a_record_can_hold():
    given = MergeOptions("touching", np.int64(2), np.float32(0.5), np.uint8(3), True, np.int32(9))
    assert given == MergeOptions("touching", 2, 0.5, 3, True, 9)
    assert {type(value) for value in given.to_dict().values()} == {str, int, float, bool}
