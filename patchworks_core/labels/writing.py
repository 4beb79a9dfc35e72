"""Label images made from label images, tile by tile.

1. `written` makes a label array under a working name, and moves it into place.
2. `filter_tiles` does so for a filter that answers within a bounded reach.
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import zarr
from upath import UPath

from patchworks_core.errors import PlanError
from patchworks_core.files.label_arrays import create_label_array
from patchworks_core.files.storage import (
    Location,
    ZarrFormat,
    as_path,
    group_format,
    move,
    open_array,
    remove,
    zarr_store,
)
from patchworks_core.labels.source import LabelSource
from patchworks_core.machine.pools import Pool
from patchworks_core.tiles.grid import Tile

Array = npt.NDArray[Any]


def written(
    source: LabelSource,
    write_to: Location | None,
    component: str,
    make: Callable[[UPath, ZarrFormat], UPath],
) -> Any:
    """Make a label array and return it, in memory or where it was to be written.

    Parameters
    ----------
    source : LabelSource
        What it is made from; never written over.
    write_to : path or URL, optional
        Zarr group to write into; None returns a NumPy array.
    component : str
        Name of the array in the group.
    make : callable
        ``make(folder, zarr_format)`` writes the array into a working folder and returns its path.

    Returns
    -------
    dask.array.Array or numpy.ndarray

    Raises
    ------
    PlanError
        If it would replace what it is made from, or a group, or be part of an array.
    """
    if write_to is None:
        with tempfile.TemporaryDirectory(prefix="patchworks-") as folder:
            return np.asarray(open_array(make(UPath(folder), 3))[...])
    group = as_path(write_to)
    target, work = group / component, group / f"{component}.work"
    _check_target(source, group, target)
    zarr_format = zarr.open_group(zarr_store(group), mode="a").metadata.zarr_format
    remove(work)
    try:
        made = make(work, zarr_format)
        remove(target)
        move(made, target)
    finally:
        remove(work)
    import dask.array as da

    return da.from_zarr(open_array(target))


def _check_target(source: LabelSource, group: UPath, target: UPath) -> None:
    """Raise PlanError where writing would replace what is read, or more than an array."""
    if _node_kind(group) is zarr.Array:
        raise PlanError(
            f"labels are written into a Zarr group, and {group} is an array; name another write_to"
        )
    if _node_kind(target) is zarr.Group:
        raise PlanError(
            f"one array of labels does not replace a whole Zarr group, and {target} is one; name "
            "another output_component or write_to"
        )
    image = source.image
    for read in (*_paths_read(image.source), *_paths_read(image.pixels)):
        if read == str(target) or read.startswith(f"{target}/"):
            raise PlanError(
                f"labels are never written over what they are made from, got {target} for both; "
                "name another output_component or write_to"
            )


def _node_kind(path: UPath) -> type[Any] | None:
    """Return whether a Zarr array or group is at `path`, None where there is neither."""
    if group_format(path) is None:
        return None
    node = zarr.open(zarr_store(path, read_only=True), mode="r")
    return zarr.Group if isinstance(node, zarr.Group) else zarr.Array


def _paths_read(source: Any) -> list[str]:
    """Return where pixels come from, as far as the source tells."""
    import dask.array as da

    if isinstance(source, da.Array):
        # `dask.array.from_zarr` keeps the array it reads in a layer of this name.
        layers = [v for k, v in source.dask.layers.items() if str(k).startswith("original-")]
        held = [value for layer in layers for value in layer.values()]
        return [
            path for value in held if isinstance(value, zarr.Array) for path in _paths_read(value)
        ]
    if isinstance(source, zarr.Array | zarr.Group):
        source = str(source.store_path)
    return [str(as_path(source))] if isinstance(source, str) else []


@dataclass(frozen=True, slots=True)
class _FilterTask:
    source: LabelSource
    target: UPath
    reach: tuple[int, ...]
    function: Callable[[Array], Array]

    def __call__(self, tile: Tile) -> None:
        grid = self.source.grid
        read = tile.core.grow(self.source.halo(self.reach), within=grid.shape)
        seen = self.source.read(read)
        if not seen.any():
            return  # what is not written is background
        spatial = seen.reshape([seen.shape[i] for i in grid.spatial])
        filtered = self.function(spatial).reshape(seen.shape)
        core = tile.core.relative_to(read.start).slices
        target = open_array(self.target, mode="r+")
        target[tile.core.slices] = filtered[core].astype(target.dtype, copy=False)


def filter_tiles(
    source: LabelSource,
    function: Callable[[Array], Array],
    reach: tuple[int, ...],
    *,
    write_to: Location | None,
    component: str,
    pool: Pool,
) -> Any:
    """Write what a filter makes of labels.

    Parameters
    ----------
    source : LabelSource
    function : callable
        Labels of a region to labels of the same shape, spatial axes only; makes no new id.
    reach : tuple of int
        How far a pixel of the result depends on others, per spatial axis.
    write_to, component
        As in `written`.
    pool : Pool
    """

    def make(folder: UPath, zarr_format: ZarrFormat) -> UPath:
        target = folder / "result"
        dtype = id_type(source, pool)
        create_label_array(target, source.grid, dtype, zarr_format=zarr_format)
        task = _FilterTask(source, target, reach, function)
        for _ in pool.map(task, source.grid.tiles(), step="filter", n=source.grid.n_tiles):
            pass
        return target

    return written(source, write_to, component, make)


@dataclass(frozen=True, slots=True)
class _LargestTask:
    source: LabelSource

    def __call__(self, tile: Tile) -> int:
        return int(self.source.read(tile.core).max())


def id_type(source: LabelSource, pool: Pool) -> np.dtype[Any]:
    """Return int32, or int64 where an id is beyond it; reads wide types to know."""
    if not source.is_wide:
        return np.dtype(np.int32)
    largest = pool.map(
        _LargestTask(source), source.grid.tiles(), step="find ids", n=source.grid.n_tiles
    )
    return integer_type(max(largest))


def integer_type(largest: int) -> np.dtype[Any]:
    """Return the type of labels whose largest id is given.

    Examples
    --------
    >>> integer_type(2**31 - 1), integer_type(2**31)
    (dtype('int32'), dtype('int64'))
    """
    return np.dtype(np.int32 if largest <= np.iinfo(np.int32).max else np.int64)
