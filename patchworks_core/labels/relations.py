"""The façade for two label images of one image: which nucleus lies in which cell."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from patchworks_core.errors import ImageError
from patchworks_core.images.image import DEFAULT_LEVEL
from patchworks_core.labels.contingency import PairCounts, Relations, count_pairs
from patchworks_core.labels.source import LabelSource, check_same_pixels
from patchworks_core.machine.pools import Pool
from patchworks_core.machine.progress import Progress
from patchworks_core.machine.workers import WorkerKind, Workers
from patchworks_core.tiles.grid import SPATIAL_AXES, Tile
from patchworks_core.tiles.numbers import finite_number


def label_relations(
    a: Any,
    b: Any,
    *,
    min_fraction: float = 0.0,
    level: int = DEFAULT_LEVEL,
    axes: str | None = None,
    tile_shape: Sequence[int] | int | None = None,
    max_workers: int = 1,
    workers: WorkerKind = "threads",
    progress: Progress | None = None,
) -> Relations:
    """Tell for each object of one label image which object of another contains most of it.

    Parameters
    ----------
    a, b : array, path or URL
        Label images of the same pixels, such as nuclei and cells; each as in
        `patchworks_core.labels.postprocess.fill_holes`. Their chunks may differ.
    min_fraction : float
        Least share of an object of `a` that must lie in an object of `b` to belong to it, 0 to 1.
    level, axes, tile_shape, max_workers, workers, progress
        As in `patchworks_core.labels.postprocess.fill_holes`, for both; None takes tiles from `a`.

    Returns
    -------
    Relations
        ``to_table()`` has one row per object of `a`, ``contingency`` one per pair of objects that
        have a pixel in common.

    Raises
    ------
    ImageError
        If the two have not the same axes, shape, pixel size and position.
    PlanError
        If `min_fraction` is no share.

    Notes
    -----
    Exact for any tiles. Objects are compared within one time and channel. What is held in memory
    grows with the pairs that occur, 64 bytes each, not with the image.

    Examples
    --------
    >>> import numpy as np
    >>> nuclei = np.array([[0, 1, 1, 1, 0, 2]])
    >>> cells = np.array([[7, 7, 7, 8, 8, 0]])
    >>> table = label_relations(nuclei, cells, tile_shape=(1, 2)).to_table()
    >>> table["b"].to_pylist(), table["n_b"].to_pylist()
    ([7, 0], [2, 0])
    """
    min_fraction = finite_number("min_fraction", min_fraction, least=0, most=1)
    source = LabelSource.open(a, level=level, axes=axes, tile_shape=tile_shape)
    other = LabelSource.open(b, level=level, axes=axes)
    if (source.grid.axes, source.grid.shape) != (other.grid.axes, other.grid.shape):
        raise ImageError(
            f"label images that are related have the same axes and shape, got "
            f"{source.grid.axes!r} {source.grid.shape} in {source.name} and {other.grid.axes!r} "
            f"{other.grid.shape} in {other.name}; crop or resample one to the other"
        )
    check_same_pixels(source.image, other.image)
    plane_axes = {
        axis: n
        for axis, n in zip(source.grid.axes, source.grid.shape, strict=True)
        if axis not in SPATIAL_AXES
    }
    counts = PairCounts()
    with Pool.open(Workers(max_workers, workers), progress) as pool:
        task = _PairTask(source, other, tuple(plane_axes.values()))
        tiles = pool.map(task, source.grid.tiles(), step="relate", n=source.grid.n_tiles)
        for plane, pairs in tiles:
            counts.add(plane, pairs)
    return Relations(counts.sums(), plane_axes, min_fraction)


@dataclass(frozen=True, slots=True)
class _PairTask:
    a: LabelSource
    b: LabelSource
    planes: tuple[int, ...]
    """Times and channels there are."""

    def __call__(self, tile: Tile) -> tuple[int, npt.NDArray[Any]]:
        plane = np.ravel_multi_index(self.a.plane(tile), self.planes) if self.planes else 0
        return int(plane), count_pairs(self.a.read(tile.core), self.b.read(tile.core))
