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

from patchworks_core.pilot.in_memory import TilesInMemory
from patchworks_core.seams.rules import MergeOptions, MergeRule
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


def staged(views: Views, grid: TileGrid) -> TilesInMemory:
    """Return tiles that saw these labels."""
    nothing = np.broadcast_to(np.uint8(0), grid.shape)
    return TilesInMemory.stage(nothing, lambda _, tile: views[tile.index], grid)


def merge(views: Views, grid: TileGrid, rules: Iterable[MergeRule]) -> dict[str, Labels]:
    """Merge the labels of every tile in memory; return a label image per rule, cores as seen."""
    tiles = staged(views, grid)
    return {rule: tiles.merged(MergeOptions(rule, 1, outline="core")) for rule in rules}


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
