"""Pictures of the merge rules for docs/seams.md: what each does to the same labels of two tiles."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
from seam_merges import merge
from skimage.measure import label
from tissue import MILD, TileView, voronoi_tissue

from patchworks_core.pictures.drawing import label_colours
from patchworks_core.tiles.grid import TileGrid, plan_grid

Labels = npt.NDArray[Any]
DARK, SEAM, HALO = "#222222", "#c8553d", "#1f7a8c"


def draw_pictures(folder: Path) -> None:
    """Draw one picture per rule and one of the halo into `folder`, as seams_<name>.png."""
    folder.mkdir(parents=True, exist_ok=True)
    _draw_tissue(folder)
    _draw_blobs(folder)


def _draw_tissue(folder: Path) -> None:
    """Cells that touch each other: no rule, `touching`, `overlap`, and what the two tiles saw."""
    truth = voronoi_tissue((96, 144), diameter=26, seed=3)
    grid = plan_grid("yx", truth.shape, tile_shape=(96, 72), overlap=(0, 26))
    view = TileView(truth, MILD, 8, seed=3)
    views = {tile.index: view(tile.read) for tile in grid.tiles()}
    merged = merge(views, grid, ("none", "touching", "overlap"))
    pictures = [("cells", truth), *((f"merge={rule!r}", found) for rule, found in merged.items())]
    _save(folder / "seams_tissue.png", pictures, grid)
    _save_views(folder / "seams_strips.png", views, grid)


def _draw_blobs(folder: Path) -> None:
    """Draw connected components, which `touching` gives back exactly."""
    rng = np.random.default_rng(5)
    y, x = np.ogrid[:96, :144]
    mask = np.zeros((96, 144), bool)
    for _ in range(16):
        centre, radius = rng.random(2) * (96, 144), rng.uniform(4, 12)
        mask |= (y - centre[0]) ** 2 + ((x - centre[1]) / 2) ** 2 < radius**2
    grid = plan_grid("yx", mask.shape, tile_shape=(96, 72), overlap=0)
    views = {tile.index: label(mask[tile.read.slices], connectivity=1) for tile in grid.tiles()}
    merged = merge(views, grid, ("none", "touching"))
    whole = label(mask, connectivity=1)
    pictures = [("whole image", whole), *((f"merge={r!r}", m) for r, m in merged.items())]
    _save(folder / "seams_components.png", pictures, grid)


def _figure(n: int, width: float = 3.0) -> tuple[Any, list[Any]]:
    """Return a figure with n panels without axes."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(width * n, 2.3), dpi=90, layout="constrained")
    FigureCanvasAgg(figure)
    panels = list(np.atleast_1d(figure.subplots(1, n)))
    for panel in panels:
        panel.set_axis_off()
    return figure, panels


def _show(panel: Any, labels: Labels, title: str, left: int = 0) -> None:
    """Draw labels in colour with dark outlines."""
    from skimage.segmentation import find_boundaries

    colours = np.asarray(label_colours(labels), np.float64)
    colours = colours / max(1.0, colours.max())
    colours[labels == 0] = 1
    big = np.kron(colours, np.ones((4, 4, 1)))
    big[find_boundaries(np.kron(labels, np.ones((4, 4), int)), mode="inner")] = 0.15
    height, width = labels.shape
    panel.imshow(big, extent=(left, left + width, height, 0), interpolation="none")
    panel.set_title(title, fontsize=9, color=DARK)


def _save(path: Path, pictures: list[tuple[str, Labels]], grid: TileGrid) -> None:
    """Draw label images side by side, the seam as a line."""
    figure, panels = _figure(len(pictures))
    for panel, (title, labels) in zip(panels, pictures, strict=True):
        n = len(np.unique(labels[labels > 0]))
        _show(panel, labels, f"{title}: {n} objects")
        panel.axvline(grid.tile_shape[1], color=SEAM, linewidth=1.6, linestyle="--")
    figure.savefig(path)


def _save_views(path: Path, views: dict[tuple[int, ...], Labels], grid: TileGrid) -> None:
    """Draw what each of two tiles read, and the strip in which they are compared."""
    figure, panels = _figure(2, width=3.6)
    face, halo = grid.tile_shape[1], grid.halo[1]
    for panel, tile, name in zip(panels, grid.tiles(), "ab", strict=True):
        _show(panel, views[tile.index], f"what tile {name} saw", left=tile.read.start[1])
        panel.axvline(face, color=SEAM, linewidth=1.6, linestyle="--")
        panel.axvspan(face - halo, face + halo, facecolor="none", edgecolor=HALO, linewidth=2.5)
        panel.set_xlim(-2, grid.shape[1] + 2)
    figure.savefig(path)
