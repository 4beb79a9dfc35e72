"""A synthetic tissue of touching cells, and what is done with it in the tests of the pipeline."""

from __future__ import annotations

import os
import sys
from pathlib import Path

import numpy as np
import tifffile
from scipy.spatial import cKDTree

FUNCTIONS = Path(__file__).parent / "functions"
"""Folder of the segmentation functions; on the import path of whoever runs them."""

MARK = 60_000
"""As in `tissue_functions`."""

TILE, HALO = 32, 8

MARKED_TILE = (1, 2)
"""Index of the only tile that sees the marked object."""

MARKED_KEY = "y001x002"


def tissue(shape: tuple[int, ...] = (96, 128), *, seed: int = 0, n_cells: int = 40) -> np.ndarray:
    """Return Voronoi cells with their ids as values; a quarter of them is background."""
    rng = np.random.default_rng(seed)
    centres = rng.random((n_cells, len(shape))) * shape
    points = np.stack(np.indices(shape), axis=-1).reshape(-1, len(shape))
    ids = np.arange(1, n_cells + 1, dtype=np.uint16)
    ids[rng.random(n_cells) < 0.25] = 0
    return ids[cKDTree(centres).query(points)[1]].reshape(shape)


def marked_tissue() -> np.ndarray:
    """Return a tissue with one small marked object in the middle of one tile."""
    image = tissue()
    y, x = (i * TILE + TILE // 2 for i in MARKED_TILE)
    image[y - 2 : y + 2, x - 2 : x + 2] = MARK
    return image


def write_tiff(path: Path, image: np.ndarray, axes: str = "YX") -> Path:
    """Write an OME-TIFF that says its axes."""
    tifffile.imwrite(path, image, ome=True, metadata={"axes": axes})
    return path


def files_under(folder: Path) -> dict[str, bytes]:
    """Return the content of every file under a folder, by its path in it."""
    found = {
        str(path.relative_to(folder)): path.read_bytes()
        for path in sorted(Path(folder).rglob("*"))
        if path.is_file()
    }
    assert found, f"no files under {folder}"
    return found


def environment_of_functions() -> dict[str, str]:
    """Return the variable that lets another Python import the segmentation functions."""
    known = os.environ.get("PYTHONPATH")
    return {"PYTHONPATH": os.pathsep.join([str(FUNCTIONS), *([known] if known else [])])}


def python_command(name: str) -> str:
    """Return the path of a command installed beside this Python."""
    return str(Path(sys.executable).with_name(name))
