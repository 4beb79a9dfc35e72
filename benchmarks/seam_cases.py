"""The images and functions that `seams.py` measures: synthetic tissue, real images with truth."""

from __future__ import annotations

import json
import subprocess
import tempfile
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import tifffile
from peer_runner import view_key
from tissue import MILD, PERFECT, Disagreement, TileView, hard, shuffled, voronoi_tissue

from patchworks_core import open_image
from patchworks_core.plugins.watershed import watershed
from patchworks_core.statistics.measuring import measure
from patchworks_core.statistics.statistics import ImageStatistics
from patchworks_core.tiles.regions import Region

HERE = Path(__file__).parent
Labels = npt.NDArray[Any]
Segment = Callable[[Region], Labels]
"""Labels of a region of one image."""

PIECE_SHARE = 0.25
"""Pieces below this share of the median object are not scored, where labels are not perfect."""


@dataclass(frozen=True)
class Scene:
    """One image whose objects are known, and a function of its regions."""

    truth: Labels
    segment: Callable[[Sequence[Region]], list[Labels]]
    """Labels of regions that tiles read."""

    min_piece: int
    """Smallest piece that is scored, pixels."""


@dataclass(frozen=True)
class Case:
    """One function on one kind of image, in tiles of one shape."""

    title: str
    axes: str
    tile_shape: tuple[int, ...]
    diameter: float
    """Of an object, pixels."""

    scenes: Callable[[], Iterator[Scene]]

    @property
    def halos(self) -> dict[str, int]:
        """Quarter, half and one diameter, in pixels."""
        return {name: round(self.diameter * f) for name, f in (("¼", 0.25), ("½", 0.5), ("1", 1))}


def cases(data: Path, cellpose_python: Path | None, seeds: Sequence[int]) -> list[Case]:
    """Return every case; Cellpose only where there is an interpreter for it."""
    found = [
        Case(f"{name} tissue, {how}", axes, tile, diameter, scenes)
        for name, axes, shape, tile, diameter in (
            ("2-D", "yx", (640, 640), (128, 128), 24.0),
            ("3-D", "zyx", (96, 128, 128), (48, 64, 64), 16.0),
        )
        for how, disagreement in (("mild", MILD), ("hard", hard(diameter)))
        for scenes in [partial(_tissue, shape, diameter, disagreement, seeds)]
    ]
    cells = data / "plantseg_ovule_cells_labels.tif"
    nuclei = data / "plantseg_ovule_nuclei_1135.tif"
    nuclei_labels = data / "plantseg_ovule_nuclei_1135_labels.tif"
    mosaic, mosaic_labels = (data / f"dsb2018_mosaic_4096{end}" for end in (".png", "_labels.tif"))
    nuclei_parameters = {"sigma": 2, "min_distance": 8, "spacing": [0.284, 0.127, 0.127]}
    found += [
        Case("ovule cells, perfect labels", "zyx", (16, 64, 64), 28, partial(_perfect, cells)),
        Case(
            "ovule nuclei, perfect labels", "zyx", (50,) * 3, 20, partial(_perfect, nuclei_labels)
        ),
        Case("mosaic, perfect labels", "yx", (256, 256), 23, partial(_perfect, mosaic_labels)),
        Case(
            "ovule nuclei, watershed",
            "zyx",
            (50,) * 3,
            20,
            partial(_watershed, nuclei, nuclei_labels, nuclei_parameters),
        ),
        Case(
            "mosaic (2048²), watershed",
            "yx",
            (256, 256),
            23,
            partial(_watershed, mosaic, mosaic_labels, {}),
        ),
        Case(
            "mosaic (2048²), watershed with a threshold per tile",
            "yx",
            (256, 256),
            23,
            partial(_watershed, mosaic, mosaic_labels, {}, per_tile=True),
        ),
    ]
    if cellpose_python is not None:
        weights = data / "models" / "cp3_small_f16.torchscript.pt"
        found += [
            Case(
                "mosaic (1536²), Cellpose",
                "yx",
                (256, 256),
                23,
                partial(_cellpose, mosaic, mosaic_labels, 1536, weights, cellpose_python),
            )
        ]
    return found


def _tissue(
    shape: tuple[int, ...], diameter: float, disagreement: Disagreement, seeds: Sequence[int]
) -> Iterator[Scene]:
    for seed in seeds:
        truth = voronoi_tissue(shape, diameter=diameter, seed=seed)
        view = TileView(truth, disagreement, diameter / 3, seed)
        yield Scene(truth, _one_by_one(view), _min_piece(truth))


def _perfect(path: Path) -> Iterator[Scene]:
    truth = tifffile.imread(path)
    yield Scene(truth, _one_by_one(TileView(truth, PERFECT, 0, seed=0)), min_piece=1)


def _watershed(
    path: Path,
    truth_path: Path,
    parameters: dict[str, Any],
    *,
    size: int = 2048,
    per_tile: bool = False,
) -> Iterator[Scene]:
    whole = tifffile.imread(truth_path)
    truth = whole[tuple(slice(0, min(n, size)) for n in whole.shape)]
    everywhere = Region((0,) * truth.ndim, truth.shape)
    pixels = open_image(path).read(everywhere)

    def statistics_of(region: Region) -> ImageStatistics:
        return measure(open_image(pixels), [region])

    over_all = statistics_of(everywhere)

    def segment(region: Region) -> Labels:
        statistics = statistics_of(region) if per_tile else over_all
        labels = watershed(pixels[region.slices], statistics=statistics, **parameters)
        return shuffled(labels, np.random.default_rng([*region.start, *region.stop]))

    yield Scene(truth, _one_by_one(segment), _min_piece(truth))


def _cellpose(
    path: Path, truth_path: Path, size: int, weights: Path, python: Path
) -> Iterator[Scene]:
    pixels = open_image(path).read(Region((0, 0), (size, size))).astype(np.float32)
    low, high = np.percentile(pixels, (1, 99))
    truth = tifffile.imread(truth_path)[:size, :size]

    def segment(regions: Sequence[Region]) -> list[Labels]:
        keys = [view_key(region.start, region.shape) for region in regions]
        with tempfile.TemporaryDirectory() as name:
            folder = Path(name)
            np.save(folder / "image.npy", (pixels - low) / (high - low))
            wanted = {k: (r.start, r.stop) for k, r in zip(keys, regions, strict=True)}
            (folder / "regions.json").write_text(json.dumps(wanted))
            files = (folder / "image.npy", folder / "regions.json", folder / "labels.npz")
            command = [python, HERE / "cellpose_runner.py", weights, *files]
            subprocess.run(command, check=True, capture_output=True)
            with np.load(folder / "labels.npz") as labels:
                return [labels[key] for key in keys]

    yield Scene(truth, segment, _min_piece(truth))


def _one_by_one(segment: Segment) -> Callable[[Sequence[Region]], list[Labels]]:
    return lambda regions: [segment(region) for region in regions]


def _min_piece(truth: Labels) -> int:
    sizes = np.bincount(truth.ravel())[1:]
    return round(PIECE_SHARE * float(np.median(sizes[sizes > 0])))
