"""The pyramid: lower resolutions, each made from the one above it.

Labels become the most frequent id of a box (`patchworks_core.ome_zarr.most_frequent`), so every id
at level k is an id at level 0; other images become the mean
(`patchworks_core.ome_zarr.averaging`). Work goes by whole output chunks, so no two tasks write one.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from itertools import product
from math import ceil, inf, prod
from typing import Any

import numpy as np
from upath import UPath

from patchworks_core.files.array_writer import ArrayWriter
from patchworks_core.files.storage import ZarrFormat, create_array, open_array
from patchworks_core.machine.pools import EachOf, Pool
from patchworks_core.merge.batches import regions_at_once
from patchworks_core.ome_zarr.most_frequent import most_frequent
from patchworks_core.tiles.grid import SPATIAL_AXES
from patchworks_core.tiles.regions import Region

SMALLEST_LEVEL = 256
"""Levels are added until the image is at most this long on every halved axis."""


def level_steps(
    axes: str, shape: Sequence[int], pixel_size: Mapping[str, float]
) -> list[tuple[int, ...]]:
    """Return, for each level below the full one, the step taken from the level above per axis.

    y and x are halved. z is halved only while its pixels are calibrated and not coarser than
    those of y and x, so that levels become isotropic rather than lose planes.

    Examples
    --------
    >>> level_steps("zyx", (20, 600, 600), {"z": 2.0, "y": 0.5, "x": 0.5})
    [(1, 2, 2), (1, 2, 2)]
    """
    steps: list[tuple[int, ...]] = []
    sizes = list(shape)
    spacing = dict(pixel_size)
    while True:
        halved = [axis for axis in axes if axis in "yx"]
        if halved and all(spacing.get(a, 0) >= spacing.get("z", inf) for a in halved):
            halved.append("z")
        step = tuple(
            2 if axis in halved and axis in SPATIAL_AXES and n > 1 else 1
            for axis, n in zip(axes, sizes, strict=True)
        )
        if all(n <= SMALLEST_LEVEL for n, s in zip(sizes, step, strict=True) if s == 2):
            return steps
        steps.append(step)
        sizes = [ceil(n / s) for n, s in zip(sizes, step, strict=True)]
        spacing = {a: spacing[a] * step[axes.index(a)] for a in axes if a in spacing}


@dataclass(frozen=True, slots=True)
class LevelTask:
    """Write a region of a level, which is whole chunks, from the level above."""

    source: UPath
    """The level above."""

    target: ArrayWriter
    """Of the level."""

    step: tuple[int, ...]
    """From the level above, per axis."""

    choose: Callable[[np.ndarray[Any, Any], Sequence[int]], np.ndarray[Any, Any]]
    """Makes the pixels of a chunk from those above it and the step."""

    def __call__(self, region: Region) -> None:
        """Write the region, chunk by chunk."""
        source = open_array(self.source)
        pixels = np.empty(region.shape, dtype=self.target.dtype)
        for chunk in region.pieces(self.target.chunks):
            above = tuple(
                slice(a * s, min(n, b * s))
                for a, b, s, n in zip(chunk.start, chunk.stop, self.step, source.shape, strict=True)
            )
            place = chunk.slices_from(region.start)
            pixels[place] = self.choose(np.asarray(source[above]), self.step)
        self.target.write(region, pixels)


def write_pyramid(
    group: UPath,
    steps: Sequence[tuple[int, ...]],
    *,
    changed: Iterable[Region] | None,
    axes: str,
    zarr_format: ZarrFormat,
    pool: Pool,
) -> int:
    """Write levels 1.. of labels from level 0, whole or where it changed.

    Parameters
    ----------
    group : UPath
        Holds the full resolution as ``0``; levels are written as ``1``, ``2``, ...
    steps : sequence of tuple of int
        As `level_steps` gives them.
    changed : iterable of Region or None
        Regions of level 0 that were rewritten; None rewrites all levels.
    axes : str
    zarr_format : {2, 3}
    pool : Pool

    Returns
    -------
    int
        Chunks written.
    """
    n_written = 0
    regions = None if changed is None else list(changed)
    for level, step in enumerate(steps, start=1):
        source, target = group / str(level - 1), group / str(level)
        above = open_array(source)
        shape = [ceil(n / s) for n, s in zip(above.shape, step, strict=True)]
        if regions is None:
            create_array(
                target,
                shape=shape,
                chunks=above.chunks,
                dtype=above.dtype,
                axes=axes,
                zarr_format=zarr_format,
            )
        else:
            regions = [_halved(region, step) for region in regions]
        chunks = list(_chunk_regions(shape, open_array(target).chunks, regions))
        task = LevelTask(source, ArrayWriter.of(target), step, most_frequent)
        batches = pool.batches(chunks, at_most=regions_at_once(prod(above.chunks) * prod(step)))
        for written in pool.map(EachOf(task), batches, step=f"writing {target}"):
            n_written += len(written)
        if regions is not None:
            regions = chunks  # any pixel of a chunk may follow from any other of it
    return n_written


def _halved(region: Region, step: Sequence[int]) -> Region:
    """Return where a region of the level above ends up."""
    return Region(
        tuple(a // s for a, s in zip(region.start, step, strict=True)),
        tuple(ceil(b / s) for b, s in zip(region.stop, step, strict=True)),
    )


def _chunk_regions(
    shape: Sequence[int], chunks: Sequence[int], regions: Sequence[Region] | None
) -> Iterator[Region]:
    """Yield the whole chunks that `regions` touch, each once, in row-major order."""
    if regions is None:
        regions = [Region((0,) * len(shape), tuple(shape))]
    touched: set[tuple[int, ...]] = set()
    for region in regions:
        ranges: list[Any] = [
            range(a // c, ceil(min(b, n) / c))
            for a, b, c, n in zip(region.start, region.stop, chunks, shape, strict=True)
        ]
        touched.update(product(*ranges))
    for index in sorted(touched):
        start = tuple(i * c for i, c in zip(index, chunks, strict=True))
        stop = tuple(min(n, a + c) for a, c, n in zip(start, chunks, shape, strict=True))
        yield Region(start, stop)
