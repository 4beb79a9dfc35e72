"""What a run of a plan costs: core hours, GPU hours, bytes, files, requests, and money at prices.

1. `FunctionSeconds` says what a tile takes in the segmentation function, and where that comes from.
2. `cost_of` adds what patchworks takes itself, from the constants below, and what is written.
3. `Cost.bill` multiplies by prices, of which none is assumed.

Constants were measured by programs of ``benchmarks/``, most of them in the tables of
``docs/scale.md``; ``python -m benchmarks.cost`` compares with runs.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, fields, replace
from math import ceil, prod

import numpy as np

from patchworks_core.files.label_arrays import output_chunks
from patchworks_core.images.image import Image
from patchworks_core.ome_zarr.pyramid import level_steps
from patchworks_core.seams.rules import MergeOptions
from patchworks_core.stage.plan import Plan
from patchworks_core.stage.staging import StagedBlock
from patchworks_core.tiles.grid import TileGrid

DECODING = 5e-9
"""Core seconds to decode a voxel of the image (zstd, noisy uint16); `benchmarks.steps`."""

STAGING = 3e-9
"""Core seconds to stage a voxel, without function and decoding; `benchmarks.steps`."""

PAIRING = 1e-9
"""Core seconds to pair, for each voxel of the image; `benchmarks.steps`."""

PAIRING_OVERLAP = 40e-9
"""Core seconds to pair by overlap, for each voxel that tiles see beyond the image: 15 sparse, 80 in
tissue; the table of outlines in ``docs/scale.md``."""

WRITING = 4e-9
"""Core seconds to write a voxel of merged labels; `benchmarks.steps`."""

DRAWING = 15e-9
"""Core seconds to compare views where outlines are drawn, for each voxel of the image: 10 to 26
where they agree; the same table."""

STAGE_FILE = 2e-3
"""Core seconds for each file of the stage; `benchmarks.scale`: 125.8 s for 62,500."""

STAGED_BYTES = 0.03
"""Bytes on disk for a pixel of a stage of sparse nuclei: 0.02 to 0.04; ``docs/scale.md``."""

LABEL_BYTES = 1.5
"""Bytes of merged labels with their pyramid, as a multiple of the stage's: 1.0 to 2.0;
`benchmarks.cost`."""

RUN_START = 13.5
"""Core seconds of ``patchworks run`` on an image of one small tile; `benchmarks.cost`."""

RUN_VOXEL = 60e-9
"""Core seconds of a run for each voxel beside the steps above: statistics, pyramid, pictures,
tables. Fitted, with the two that follow, to runs of `benchmarks.cost`; 54 of 268 megavoxels."""

RUN_OBJECT = 0.21e-3
"""Core seconds of a run for each label: rows of tables."""

RUN_BLOCK = 15e-3
"""Core seconds of a run for each tile block beside `STAGE_FILE`: events, records."""

FILES_OF_BLOCK = 2
"""Files of the stage for each block where objects are measured, as runs do; `benchmarks.cost`."""

RECORDS = 10
"""Files of stage and labels that hold no pixels, such as metadata: 7 to 11; `benchmarks.cost`."""

CONSTANT = "constants measured by benchmarks"
COUNTED = "counted from the plan"

HOUR = 3600.0


@dataclass(frozen=True, slots=True)
class FunctionSeconds:
    """What the segmentation function takes for a voxel that it sees."""

    per_voxel: float
    """Seconds of one core, and of one GPU where the function asks for one."""

    basis: str
    """Where it comes from, such as ``measured on 3 tiles``."""

    staged_bytes: float | None = None
    """Of the stage on disk, for a voxel of the image; None takes `STAGED_BYTES`."""

    labels: float = 0.0
    """Labels for a voxel of the image; 0 where nothing was measured, which leaves tables out."""

    @classmethod
    def of_tiles(cls, seconds: float, grid: TileGrid) -> FunctionSeconds:
        """Return what a person says a tile takes, on average."""
        n_seen = prod(grid.shape) * grid.read_factor
        return cls(seconds * grid.n_tiles / n_seen, "seconds per tile as given")

    @classmethod
    def measured(
        cls, staged: Sequence[StagedBlock], stored: int, grid: TileGrid
    ) -> FunctionSeconds:
        """Return what a few tile blocks took that were staged alone, and `stored` bytes of disk."""
        n_voxels = sum(block.n_pixels_read for block in staged)
        cores = sum(grid.block_of_key(block.key).core.size for block in staged)
        return cls(
            sum(block.seconds_segmenting for block in staged) / n_voxels,
            f"measured on {len(staged)} tile blocks",
            stored / cores,
            sum(block.n_labels for block in staged) / cores,
        )


@dataclass(frozen=True, slots=True)
class Prices:
    """What things cost, in any currency; None is not priced."""

    core_hour: float | None = None
    """Of a core, for an hour."""

    gpu_hour: float | None = None
    """Of a GPU, for an hour."""

    gb_month: float | None = None
    """Of 10⁹ bytes kept for a month."""

    thousand_requests: float | None = None
    """Of 1,000 requests to an object store."""


@dataclass(frozen=True, slots=True)
class Amount:
    """A number, and where it comes from."""

    value: float
    basis: str


@dataclass(frozen=True, slots=True)
class Cost:
    """What a run of a plan takes."""

    core_hours: Amount
    """Of the function and of patchworks."""

    gpu_hours: Amount
    """Zero where the function asks for no GPU."""

    bytes_read: Amount
    """Pixels that staging reads, with halo, uncompressed."""

    bytes_staged: Amount
    """Of the stage on disk."""

    bytes_written: Amount
    """Of merged labels on disk, all levels."""

    files: Amount
    """Of the stage and of the labels, if no chunk is empty."""

    requests: Amount
    """To an object store that holds image, stage and labels."""

    def __iter__(self) -> Iterator[tuple[str, Amount]]:
        return ((field.name, getattr(self, field.name)) for field in fields(self))

    def bill(self, prices: Prices) -> dict[str, float]:
        """Return what each priced thing costs; disk is that of stage and labels for a month."""
        disk = (self.bytes_staged.value + self.bytes_written.value) / 1e9
        amounts = {
            "core_hour": self.core_hours.value,
            "gpu_hour": self.gpu_hours.value,
            "gb_month": disk,
            "thousand_requests": self.requests.value / 1000,
        }
        prices_of = ((name, getattr(prices, name)) for name in amounts)
        return {name: amounts[name] * price for name, price in prices_of if price is not None}


def cost_of(
    plan: Plan, image: Image, options: MergeOptions, function: FunctionSeconds, *, uses_gpu: bool
) -> Cost:
    """Return what a run of a plan takes.

    Parameters
    ----------
    plan : Plan
    image : Image
        What it was made for.
    options : MergeOptions
        Resolved against the plan.
    function : FunctionSeconds
    uses_gpu : bool
        Whether the function holds a GPU while it runs.
    """
    grid = plan.grid
    n_voxels = prod(grid.shape)
    n_read = n_voxels * _of_blocks(grid).read_factor
    seconds = n_voxels * grid.read_factor * function.per_voxel
    own = _own_seconds(grid, n_read, options) + n_voxels * function.labels * RUN_OBJECT
    staged = n_voxels * (STAGED_BYTES if function.staged_bytes is None else function.staged_bytes)
    stored = CONSTANT if function.staged_bytes is None else function.basis
    n_labels = _label_files(grid, image)
    chunks = image.chunks or _of_blocks(grid).tile_shape
    n_chunks = n_read / prod(chunks) + grid.n_blocks
    # A block's file is written once; pairing and writing read it, and those of its neighbours.
    n_requests = n_chunks + grid.n_blocks * (3 + len(grid.spatial)) + n_labels
    return Cost(
        core_hours=Amount(
            (seconds + own) / HOUR,
            f"function {function.basis}; the rest {CONSTANT}",
        ),
        gpu_hours=Amount(seconds / HOUR if uses_gpu else 0.0, f"function {function.basis}"),
        bytes_read=Amount(n_read * np.dtype(image.dtype).itemsize, COUNTED),
        bytes_staged=Amount(staged, stored),
        bytes_written=Amount(staged * LABEL_BYTES, f"{stored}, times {LABEL_BYTES:g}"),
        files=Amount(grid.n_blocks * FILES_OF_BLOCK + n_labels + RECORDS, COUNTED),
        requests=Amount(n_requests, COUNTED),
    )


def _own_seconds(grid: TileGrid, n_read: float, options: MergeOptions) -> float:
    """Return core seconds beside the function."""
    n_voxels = prod(grid.shape)
    seconds = n_read * (DECODING + STAGING) + n_voxels * (PAIRING + WRITING)
    seconds += grid.n_blocks * (STAGE_FILE + RUN_BLOCK) + n_voxels * RUN_VOXEL + RUN_START
    if options.rule.startswith("overlap"):
        seconds += n_voxels * (grid.read_factor - 1) * PAIRING_OVERLAP
    if options.feathers:
        seconds += n_voxels * DRAWING
    return seconds


def _of_blocks(grid: TileGrid) -> TileGrid:
    """Return the grid with a tile for each block, which is what is read at once."""
    pairs = zip(grid.shape, grid.tile_shape, grid.block_shape, strict=True)
    tiles = tuple(min(n, t * b) for n, t, b in pairs)
    return replace(grid, tile_shape=tiles, block_shape=())


def _label_files(grid: TileGrid, image: Image) -> int:
    """Return how many chunks the levels of merged labels have."""
    chunks = output_chunks(grid)
    sizes = list(grid.shape)
    count = prod(ceil(n / c) for n, c in zip(sizes, chunks, strict=True))
    for step in level_steps(grid.axes, grid.shape, image.pixel_size):
        sizes = [ceil(n / s) for n, s in zip(sizes, step, strict=True)]
        count += prod(ceil(n / min(n, c)) for n, c in zip(sizes, chunks, strict=True))
    return count
