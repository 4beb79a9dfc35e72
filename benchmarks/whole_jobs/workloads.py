"""The images that every tool is given, and the functions that label their tiles.

Everything is a function of the shape and a seed. Nothing here needs more than NumPy, SciPy and
Zarr, because tools run in environments of their own; `tissue` alone is made in ours.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import zarr
from scipy import ndimage

LEVEL = 500
"""Between the background's 100 and the objects' 1,000."""


@dataclass(frozen=True)
class Workload:
    """An image and how it is cut."""

    name: str
    what: str
    kind: str
    """``nuclei`` or ``tissue``."""

    shape: tuple[int, ...]
    tile_shape: tuple[int, ...]
    density: float = 0.0
    """Objects per pixel."""

    occupied: float = 1.0
    """Share of the first axes' extent that holds objects."""

    halo: int = 0

    @property
    def axes(self) -> str:
        """Names of the axes."""
        return "zyx"[-len(self.shape) :]

    @property
    def chunks(self) -> tuple[int, ...]:
        """Chunks of the image: the same for all tilings of one image."""
        return (1024, 1024) if len(self.shape) == 2 else (64, 256, 256)

    @property
    def image_name(self) -> str:
        """Name of the image, which several workloads may share."""
        return f"{self.kind}_{'x'.join(map(str, self.shape))}_{self.occupied:g}"


NUCLEI_2D = 57_174 / 8192**2
NUCLEI_3D = 12_000 / (256 * 1024 * 1024)

WORKLOADS = [
    Workload("W1", "2-D, 64 tiles of 1024²", "nuclei", (8192, 8192), (1024, 1024), NUCLEI_2D),
    Workload(
        "W2",
        "3-D, 64 tiles of 64, 256, 256 pixels",
        "nuclei",
        (256, 1024, 1024),
        (64, 256, 256),
        NUCLEI_3D,
    ),
    Workload("W3", "W1 in 4,096 tiles of 128²", "nuclei", (8192, 8192), (128, 128), NUCLEI_2D),
    Workload(
        "W4",
        "3-D, 95 % of 1,024 tiles of 64³ empty",
        "nuclei",
        (256, 1024, 1024),
        (64, 64, 64),
        NUCLEI_3D,
        occupied=0.05,
    ),
    Workload(
        "W5",
        "3-D confluent tissue, halo 8, by overlap",
        "tissue",
        (128, 384, 384),
        (64, 128, 128),
        halo=8,
    ),
    Workload("W1x4", "W1 four times", "nuclei", (16384, 16384), (1024, 1024), NUCLEI_2D),
    Workload("W2x4", "W2 four times", "nuclei", (256, 2048, 2048), (64, 256, 256), NUCLEI_3D),
]

MANY_TILES = Workload(
    "W3x4", "W1x4 in 16,384 tiles of 128²", "nuclei", (16384, 16384), (128, 128), NUCLEI_2D
)
"""For what a tile takes beside its pixels; other tools would take minutes."""

BY_NAME = {workload.name: workload for workload in (*WORKLOADS, MANY_TILES)}


def label_bright(tile: np.ndarray) -> np.ndarray:
    """Label connected components of what is bright: a cheap function of one tile."""
    return ndimage.label(tile > LEVEL)[0].astype(np.int32, copy=False)


def number_cells(tile: np.ndarray) -> np.ndarray:
    """Give the cells of a tile numbers of its own, as a function that sees one tile would."""
    largest = int(tile.max(initial=0)) + 1
    there = np.zeros(largest, dtype=bool)
    there[tile.ravel()] = True
    there[0] = False
    numbers = np.cumsum(there, dtype=np.int32) * there
    return numbers[tile]


FUNCTIONS = {"nuclei": label_bright, "tissue": number_cells}


def write_image(workload: Workload, path: Path) -> None:
    """Write the image of a workload, slab by slab."""
    dtype = "uint16" if workload.kind == "nuclei" else "int32"
    array = zarr.create_array(
        str(path), shape=workload.shape, chunks=workload.chunks, dtype=dtype, overwrite=True
    )
    if workload.kind == "tissue":
        from benchmarks.tissue import voronoi_tissue

        array[...] = voronoi_tissue(workload.shape, diameter=24, seed=1)
        return
    for number, start in enumerate(range(0, workload.shape[0], workload.chunks[0])):
        stop = min(start + workload.chunks[0], workload.shape[0])
        array[start:stop] = _nuclei((stop - start, *workload.shape[1:]), workload, number)


def _nuclei(shape: tuple[int, ...], workload: Workload, seed: int) -> np.ndarray:
    """Return balls of radius 4 to 8 over noise; a slab has its own, none crosses its border."""
    rng = np.random.default_rng(seed)
    image = rng.integers(80, 120, shape, dtype=np.uint16)
    most = 8
    offsets = np.stack(np.meshgrid(*[np.arange(-most, most + 1)] * len(shape), indexing="ij"))
    distance = np.sqrt((offsets**2).sum(axis=0))
    room = [(most, n - most) for n in shape]
    room[-1] = (most, max(most + 1, round(shape[-1] * workload.occupied) - most))
    n = round(workload.density * np.prod(shape) * workload.occupied)
    centres = np.stack([rng.integers(a, b, n) for a, b in room], axis=1)
    for centre, radius in zip(centres, rng.integers(4, most + 1, n), strict=True):
        box = tuple(slice(c - most, c + most + 1) for c in centre)
        image[box][distance <= radius] = 1000
    return image


def write_truth(workload: Workload, image: Path, path: Path) -> None:
    """Write the labels of the whole image, untiled."""
    pixels = zarr.open_array(str(image), mode="r")[...]
    truth = label_bright(pixels) if workload.kind == "nuclei" else pixels
    array = zarr.create_array(
        str(path), shape=truth.shape, chunks=workload.chunks, dtype="int32", overwrite=True
    )
    array[...] = truth
