"""The benchmark of seams keeps what it measured, and says who is first."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import numpy as np
import pytest

from patchworks_core.tiles.grid import plan_grid

CASE = ("tissue", "mild", "½")


@pytest.fixture
def scripts(monkeypatch):
    """Make the scripts of the folder importable, as they are to one another."""
    monkeypatch.syspath_prepend(Path(__file__).parents[1] / "benchmarks")


def rows(**pq):
    """Return a row per seed, from the PQ of everything that merged."""
    return [
        {what: {"pq": value} for what, value in zip(pq, values, strict=True)}
        for values in zip(*pq.values(), strict=True)
    ]


@pytest.mark.usefixtures("scripts")
@pytest.mark.parametrize(
    ("ours", "verdict"),
    [
        ([0.75, 0.65], "level"),
        ([0.7, 0.7], "first"),
        ([0.8, 0.5], "level"),
        ([0.6, 0.4], "level"),
        ([0.4, 0.4], "behind"),
    ],
)
def test_a_rule_is_first_level_or_behind_the_best_other_tool(ours, verdict):
    from seam_tables import against_others

    results = {CASE: rows(overlap=ours, core=[0.9, 0.9], ngio=[0.5, 0.6], sopa=[0.1, 0.69])}
    table = against_others(results, "overlap", {"overlap", "core"})
    assert f"{verdict} in 1" in table
    row = table.splitlines()[-1]
    assert f"| ngio | 0.550 (0.500 to 0.600) | {np.mean(ours) - 0.55:+.3f}" in row
    assert row.endswith(f"| {verdict} |")


@pytest.mark.usefixtures("scripts")
def test_lines_of_one_image_are_read_together_and_what_they_have_is_not_measured_again(tmp_path):
    from bench_seams import OURS, measured_rows, missing_rows
    from seam_merges import TOOLS

    job = (*CASE, 0)
    ours = {what: {} for what in OURS}
    tools = {mode: {} for tool in TOOLS.values() for mode in tool.modes}
    lines = [json.dumps([job, ours]), json.dumps([job, tools])]
    file = tmp_path / "seams.jsonl"
    file.write_text("\n".join([*lines, lines[0][:30]]))
    measured = measured_rows(file)
    assert measured == {job: ours | tools}
    assert not list(missing_rows([job], measured, dict.fromkeys(TOOLS, "no/python"), 1))


@pytest.mark.usefixtures("scripts")
def test_an_environment_without_the_tool_is_refused():
    from seam_merges import merge_with_tool

    grid = plan_grid("yx", (8, 8), tile_shape=(4, 4), overlap=1)
    views = {tile.index: np.zeros(tile.read.shape, int) for tile in grid.tiles()}
    with pytest.raises(RuntimeError, match=r"has ngio None; pip install ngio==1\.1\.3"):
        merge_with_tool("ngio", Path(sys.executable), [(views, grid)])
