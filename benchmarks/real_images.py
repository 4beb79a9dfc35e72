"""Tiled against untiled on real images with ground truth: what tiles cost in quality.

    python benchmarks/real_images.py [--data FOLDER]

Segments each image with the same function once whole and once in tiles, and prints the object F1
of both against the ground truth, and of the two against each other.
"""

from __future__ import annotations

import argparse
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import tifffile

from patchworks_core import open_image, tile_process
from patchworks_core.pilot.agreement import compare_objects

DATA = Path(__file__).parents[2] / "shared" / "data"


@dataclass(frozen=True)
class Case:
    """One image, one function, one tiling."""

    image: str
    truth: str
    tile_shape: int | tuple[int, ...]
    overlap: int | tuple[int, ...]
    function: str = "watershed"
    parameters: dict[str, Any] = field(default_factory=dict)


CASES = (
    Case("dsb2018_mosaic_4096.png", "dsb2018_mosaic_4096_labels.tif", 512, 32),
    Case(
        "plantseg_ovule_nuclei_1135.tif",
        "plantseg_ovule_nuclei_1135_labels.tif",
        50,
        20,
        parameters={"sigma": 2, "min_distance": 8, "spacing": [0.284, 0.127, 0.127]},
    ),
)


def main() -> None:
    """Print one row per case."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--data", type=Path, default=DATA)
    data = parser.parse_args().data
    print("| image | F1 untiled | F1 tiled | F1 tiled : untiled | objects | s untiled | s tiled |")
    print("|---|---|---|---|---|---|---|")
    for case in CASES:
        print(measure(case, data), flush=True)


def measure(case: Case, data: Path) -> str:
    """Return one row of the table."""
    image = open_image(data / case.image)
    truth = tifffile.imread(data / case.truth)
    labels, seconds = {}, {}
    for name, tile_shape, overlap in (
        ("untiled", -1, 0),
        ("tiled", case.tile_shape, case.overlap),
    ):
        start = time.perf_counter()
        labels[name] = tile_process(
            data / case.image,
            case.function,
            parameters=case.parameters,
            tile_shape=tile_shape,
            overlap=overlap,
        )
        seconds[name] = time.perf_counter() - start
    scores = {name: compare_objects(truth, found).f1 for name, found in labels.items()}
    same = compare_objects(labels["untiled"], labels["tiled"])
    return (
        f"| {case.image} {image.shape} | {scores['untiled']:.4f} | {scores['tiled']:.4f} "
        f"| {same.f1:.4f} | {same.n_truth} : {same.n_found} "
        f"| {seconds['untiled']:.1f} | {seconds['tiled']:.1f} |"
    )


if __name__ == "__main__":
    main()
