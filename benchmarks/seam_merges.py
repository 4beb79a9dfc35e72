"""The same labels of the same tiles, merged by every rule and by the peer."""

from __future__ import annotations

import json
import subprocess
import tempfile
from collections.abc import Iterable
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

PEER_MODES = {"peer, touch": "touch", "peer, iou": "iou"}
"""What the tables call the peer's two modes, and their names there."""

Labels = npt.NDArray[Any]
Views = dict[tuple[int, ...], Labels]
"""The labels of all that a tile read, by the index of the tile."""


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


def merge_with_peer(views: Views, grid: TileGrid, python: Path) -> dict[str, Labels | str]:
    """Merge the same labels with the peer; return a label image, or its error, per mode."""
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        keyed = {
            view_key(tile.read.start, tile.read.shape): views[tile.index] for tile in grid.tiles()
        }
        np.savez(folder / "views.npz", **keyed)
        common = {
            "views": "views.npz",
            "shape": grid.shape,
            "tile_shape": grid.tile_shape,
            "overlap": max(grid.halo),
        }
        jobs = [{**common, "stitch": mode, "result": mode} for mode in PEER_MODES.values()]
        (folder / "jobs.json").write_text(json.dumps(jobs))
        subprocess.run([python, HERE / "peer_runner.py", folder], check=True, capture_output=True)
        return {label: _result(folder, mode) for label, mode in PEER_MODES.items()}


def _result(folder: Path, mode: str) -> Labels | str:
    error = folder / f"{mode}.txt"
    return error.read_text() if error.exists() else np.load(folder / f"{mode}.npy")
