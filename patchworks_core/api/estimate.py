"""What a job would take, from a few tiles of the image itself: bytes, memory, disk and time."""

from __future__ import annotations

import tempfile
from collections.abc import Sequence
from dataclasses import dataclass, fields
from math import prod

import numpy as np
from upath import UPath

from patchworks_core.api.job import Job
from patchworks_core.calls.values import html_table, is_short
from patchworks_core.errors import PlanError
from patchworks_core.files.label_arrays import output_chunks
from patchworks_core.machine.budget import block_bytes, human_bytes
from patchworks_core.stage.plan import Plan
from patchworks_core.stage.stage import Stage
from patchworks_core.stage.staging import StagedBlock, Staging, other_channels_of, stage_alone
from patchworks_core.tiles.grid import TileBlock, TileGrid

SAMPLED_TILES = 3
"""Tiles that are segmented to find out: the brightest, or spread over the image."""


@dataclass(frozen=True, slots=True)
class Estimate:
    """What a call of `tile_process` would do and take; from `dry_run`."""

    grid: TileGrid
    """The tiles."""

    n_tiles: int
    """Tiles in all."""

    n_tiles_with_signal: int
    """Tiles that would be segmented; all, unless empty ones are skipped."""

    bytes_read: int
    """Pixels that would be read, with halo, uncompressed."""

    n_workers: int
    """Tiles at once."""

    peak_memory_bytes: int
    """Of all workers together."""

    disk_bytes: int
    """Stage and merged labels together, compressed, while both are there."""

    seconds: float
    """Of all steps, from what the sampled tiles took; merging is counted as staging's I/O."""

    reason: str
    """Why so many workers."""

    def _repr_html_(self) -> str:
        rows = [(field.name, getattr(self, field.name)) for field in fields(self)]
        return html_table(("", "Estimate"), [row for row in rows if is_short(row[1])])

    def __str__(self) -> str:
        return (
            f"{self.n_tiles} tiles of {self.grid.tile_shape} with a halo of {self.grid.halo} "
            f"(axes {self.grid.axes!r}), {self.n_tiles_with_signal} to segment; the function sees "
            f"{self.grid.read_factor:.2f} times the pixels of the image; about "
            f"{human_bytes(self.bytes_read)} read, {human_bytes(self.peak_memory_bytes)} of memory "
            f"at the peak, {human_bytes(self.disk_bytes)} of disk, {self.seconds:.0f} s with "
            f"{self.n_workers} at once ({self.reason})"
        )


def estimate(job: Job, plan: Plan) -> Estimate:
    """Segment a few tiles and say what all of them would take.

    Raises
    ------
    PlanError
        If one of the sampled tiles failed; it says which, and why.
    """
    grid = plan.grid
    empty = job.empty.empty_tiles if job.empty else frozenset()
    full = [block for block in grid.blocks() if {t.number for t in block.tiles} - empty]
    staged, stored = staged_sample(job, plan, _sample(job, full))
    peak = max([s.peak_bytes for s in staged], default=0)
    with job.compute.open(grid, job.image.dtype, measured_bytes=peak) as pool:
        n_workers, reason = pool.n_workers, pool.reason
    timings = np.array(
        [(s.seconds_reading, s.seconds_segmenting, s.seconds_writing) for s in staged]
    ).reshape(-1, 3)
    reading, segmenting, writing = timings.mean(axis=0) if len(timings) else np.zeros(3)
    # Merging reads the staged labels once and writes them once: what staging wrote, twice over.
    seconds = len(full) * (reading + segmenting + 3 * writing) / n_workers
    n_pixels = sum(block.read.size for block in full)
    per_tile = max(peak, block_bytes(grid, job.image.dtype, function_bytes_per_pixel=0))
    return Estimate(
        grid=grid,
        n_tiles=grid.n_tiles,
        n_tiles_with_signal=grid.n_tiles - len(empty),
        bytes_read=n_pixels * job.image.dtype.itemsize,
        n_workers=n_workers,
        peak_memory_bytes=per_tile * n_workers,
        disk_bytes=_disk_bytes(stored, len(staged), len(full), grid),
        seconds=float(seconds),
        reason=reason,
    )


def staged_sample(
    job: Job, plan: Plan, blocks: Sequence[TileBlock], *, measures: bool = False
) -> tuple[list[StagedBlock], int]:
    """Stage a few tile blocks in a folder that is removed; return them, and their bytes on disk.

    `measures` keeps sums of their objects too, as the pipeline does.

    Raises
    ------
    PlanError
        If one of them failed; it says which, and why.
    """
    with tempfile.TemporaryDirectory(prefix="patchworks-") as folder:
        stage = Stage.create(UPath(folder) / "stage.zarr", plan)
        before = _bytes_below(folder)
        staged = _stage(job, stage, blocks, measures=measures)
        return staged, _bytes_below(folder) - before


def _bytes_below(folder: str) -> int:
    return sum(p.stat().st_size for p in UPath(folder).rglob("*") if p.is_file())


def spread(n_blocks: int) -> list[int]:
    """Return positions of the sampled blocks among `n_blocks`, spread evenly.

    Examples
    --------
    >>> spread(9), spread(1)
    ([2, 4, 6], [0])
    """
    places = np.linspace(0, n_blocks - 1, min(SAMPLED_TILES, n_blocks) + 2)[1:-1]
    return sorted({round(float(place)) for place in places})


def _sample(job: Job, full: list[TileBlock]) -> list[TileBlock]:
    """Return a few tile blocks: the brightest where that is known, else spread evenly."""
    if job.empty is not None:
        brightness = np.nan_to_num(job.empty.maxima.ravel(), nan=-np.inf)
        ranked = sorted(full, key=lambda b: -max(brightness[t.number] for t in b.tiles))
        return ranked[:SAMPLED_TILES]
    return [full[i] for i in spread(len(full))]


def _stage(
    job: Job, stage: Stage, blocks: Sequence[TileBlock], *, measures: bool
) -> list[StagedBlock]:
    """Stage a few tile blocks, one after the other."""
    others = other_channels_of(job.segmentation, job.image)
    staging = Staging(
        job.image, stage, job.bound(stage.plan), other_channels=others, measures=measures
    )
    staged = []
    for outcome in stage_alone(staging, blocks, job.compute):
        if outcome.value is None:
            raise PlanError(
                f"tile {outcome.item.key!r}, tried for the estimate, failed: {outcome.failure}"
                f"\n{outcome.failure.traceback if outcome.failure else ''}"
            )
        staged.append(outcome.value)
    return staged


def _disk_bytes(stored: int, n_staged: int, n_full: int, grid: TileGrid) -> int:
    """Scale what a few staged tiles took; the merged labels are about as large as staged ones."""
    if not n_staged:
        return 0
    chunk_bytes = 4 * prod(output_chunks(grid))
    return max(2 * stored * n_full // n_staged, chunk_bytes)
