"""The same labels of the same tiles, merged by every rule and by other tools."""

from __future__ import annotations

import json
import subprocess
import tempfile
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from peer_runner import view_key

from patchworks_core.seams.lookup import build_lut
from patchworks_core.seams.pairs import compare_faces
from patchworks_core.seams.rules import MergeOptions, MergeRule, joined_pairs
from patchworks_core.seams.strips import cut_strip
from patchworks_core.stage.tile_labels import number_labels
from patchworks_core.tiles.grid import TileGrid

HERE = Path(__file__).parent

Labels = npt.NDArray[Any]
Views = dict[tuple[int, ...], Labels]
"""The labels of all that a tile read, by the index of the tile."""


@dataclass(frozen=True, slots=True)
class Tool:
    """Another tool that merges labels of tiles; `peer_runner` has a function for it."""

    requirement: str
    """What an environment of its own is made with: ``pip install`` of this."""

    modes: dict[str, dict[str, str]]
    """What the tables call its modes, and what the runner is told for each."""

    dimensions: tuple[int, ...] = (2, 3)
    """Of the images that it can merge."""


TOOLS = {
    "patchworks": Tool(
        "patchworks==3.3.0",
        {"patchworks, touch": {"stitch": "touch"}, "patchworks, iou": {"stitch": "iou"}},
    ),
    "ngio": Tool("ngio==1.1.3", {"ngio": {}}),
    "bioimage-py": Tool("bioimage-py==0.2.2", {"bioimage-py": {}}),
    "cellpose": Tool("cellpose[distributed]==3.1.1.3", {"cellpose": {}}, dimensions=(3,)),
    "sopa": Tool("sopa==2.2.11", {"sopa": {}}, dimensions=(2,)),
    "squidpy": Tool("squidpy==1.8.2", {"squidpy": {}}, dimensions=(2,)),
}


def merge(views: Views, grid: TileGrid, rules: Iterable[MergeRule]) -> dict[str, Labels]:
    """Merge the labels of every tile in memory; return a label image per rule."""
    numbered = {}
    for tile in grid.tiles():
        core = tile.core.relative_to(tile.read.start)
        numbered[tile.index] = number_labels(views[tile.index], core, where="")

    def strips(tiles: Labels, axis: int, side: Any) -> Labels:
        indexes = map(tuple, tiles.tolist())
        return np.stack(
            [cut_strip(grid, grid.tile(i), numbered[i].pixels, axis, side) for i in indexes]
        )

    edges = compare_faces(grid, np.array([tile.index for tile in grid.tiles()]), strips)
    counts = np.array([numbered[tile.index].n_core for tile in grid.tiles()])
    results: dict[str, Labels] = {}
    for rule in rules:
        options = MergeOptions(rule, connectivity=1)
        lut = build_lut(edges.select(joined_pairs(edges, counts, options)), counts)
        merged = np.zeros(grid.shape, np.int64)
        for tile in grid.tiles():
            core = tile.core.relative_to(tile.read.start)
            staged = numbered[tile.index].pixels[core.slices]
            merged[tile.core.slices] = lut.of_tile(tile.number)[staged]
        results[rule] = merged
    return results


def merge_with_tool(
    tool: str, python: Path, scenes: Sequence[tuple[Views, TileGrid]]
) -> list[dict[str, Labels | str]]:
    """Merge the same labels with another tool; return a label image, or its error, per mode.

    `python` is the interpreter of an environment that has the tool; it is started once.
    """
    known = TOOLS[tool]
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        jobs = []
        for i, (views, grid) in enumerate(scenes):
            keyed = {
                view_key(tile.read.start, tile.read.shape): views[tile.index]
                for tile in grid.tiles()
            }
            np.savez(folder / f"views_{i}.npz", **keyed)
            common = {
                "tool": tool,
                "views": f"views_{i}.npz",
                "shape": grid.shape,
                "tile_shape": grid.tile_shape,
                "overlap": max(grid.halo),
            }
            jobs += [
                {**common, **told, "result": _name(i, mode)} for mode, told in known.modes.items()
            ]
        (folder / "jobs.json").write_text(json.dumps(jobs))
        command = [python, HERE / "peer_runner.py", folder, known.requirement]
        run = subprocess.run(command, capture_output=True, text=True)
        if run.returncode:
            raise RuntimeError(f"{python} did not run {tool}: {run.stderr[-2000:]}")
        return [{m: _result(folder, _name(i, m)) for m in known.modes} for i in range(len(scenes))]


def _name(scene: int, mode: str) -> str:
    return f"{scene} {mode}"


def _result(folder: Path, name: str) -> Labels | str:
    error = folder / f"{name}.txt"
    return error.read_text() if error.exists() else np.load(folder / f"{name}.npy")
