"""Label images made from label images, tile by tile.

1. `written` makes a label array, which takes the place of what was there: in memory, as one array
   of a Zarr group, or as a label image of an OME-Zarr, with pyramid and calibration.
2. `filter_tiles` does so for a filter that answers within a bounded reach.
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import zarr
from upath import UPath

from patchworks_core.files.array_writer import ArrayWriter
from patchworks_core.files.label_arrays import (
    create_label_array,
    open_label_group,
    refuse_file_name,
)
from patchworks_core.files.replacing import Working, component_path, replacing
from patchworks_core.files.storage import Location, ZarrFormat, as_path, open_array, zarr_store
from patchworks_core.labels.source import LabelSource
from patchworks_core.machine.pools import Pool
from patchworks_core.ome_zarr.label_image import LabelImage, version_of
from patchworks_core.ome_zarr.metadata import OmeVersion, check_axes
from patchworks_core.stage.plan import ImageRecord, Plan
from patchworks_core.tiles.grid import Tile

Array = npt.NDArray[Any]


@dataclass(frozen=True, slots=True)
class Destination:
    """Where labels go."""

    write_to: Location | None
    """Zarr group to write into; None returns a NumPy array. Where its name ends in ``.ome.zarr``
    the labels become a label image of that OME-Zarr, with pyramid and calibration."""

    component: str
    """Name of the array in the group, or of the label image."""

    overwrite: bool = False
    """Replace what patchworks did not write there, or what was changed since."""

    @property
    def is_ome_zarr(self) -> bool:
        """Whether the labels become a label image of an OME-Zarr."""
        return self.write_to is not None and as_path(self.write_to).name.endswith(OME_ZARR)


OME_ZARR = ".ome.zarr"
"""How the name of a group ends that is to be an OME-Zarr."""


def written(
    source: LabelSource, to: Destination, make: Callable[[Working, ZarrFormat], None], pool: Pool
) -> Any:
    """Make a label array and return it, in memory or where it was to be written.

    Parameters
    ----------
    source : LabelSource
        What it is made from; never written over.
    to : Destination
    make : callable
        ``make(working, zarr_format)`` writes the array to ``working.new``.
    pool : Pool
        Writes the pyramid, where there is one.

    Returns
    -------
    dask.array.Array or numpy.ndarray

    Raises
    ------
    PlanError
        If it would replace what it is made from, or what is not ours to replace, or be part of an
        array.
    """
    if to.write_to is None:
        with tempfile.TemporaryDirectory(prefix="patchworks-") as folder:
            working = Working(UPath(folder), UPath(folder) / "new")
            make(working, 3)
            return np.asarray(open_array(working.new)[...])
    import dask.array as da

    if to.is_ome_zarr:
        path = write_ome(source, to, make, pool)
        return da.from_zarr(open_array(path / "0"))
    group = as_path(to.write_to)
    refuse_file_name(group)
    target = component_path(group, to.component)
    with replacing(
        target,
        reads=(source.image.source, source.image.pixels),
        what="an array of labels",
        another="output_component or write_to",
        overwrite=to.overwrite,
    ) as working:
        make(working, open_label_group(group))
    return da.from_zarr(open_array(target))


def write_ome(
    source: LabelSource,
    to: Destination,
    make: Callable[[Working, ZarrFormat], None],
    pool: Pool,
    *,
    version: OmeVersion | None = None,
    reads: Sequence[Any] = (),
) -> UPath:
    """Make a label image of an OME-Zarr; return its path.

    Parameters
    ----------
    source, to, make, pool
        As in `written`; axes and calibration are those of the source.
    version : {"0.5", "0.4"}, optional
        Of OME-NGFF; by default that of the container, 0.5 where there is none.
    reads : sequence, optional
        What else must not be written over.

    Raises
    ------
    PlanError
        As `written`; or if OME-Zarr cannot hold the axes, or the container is of another version.
    """
    check_axes(source.grid.axes)
    container = as_path(to.write_to)  # type: ignore[arg-type]
    plan = Plan(ImageRecord.of(source.image), source.grid, {"function": "labels from elsewhere"})
    target = LabelImage(container, to.component, plan, version or version_of(container))
    with target.writing(
        reads=(source.image.source, source.image.pixels, *reads),
        another="output_component or write_to",
        overwrite=to.overwrite,
    ) as working:
        group = zarr.open_group(zarr_store(working.new), mode="w", zarr_format=target.zarr_format)
        make(Working(working.folder, working.new / "0"), group.metadata.zarr_format)
        target.record(working, {"made_from": source.name})
        target.finish(working, None, pool=pool)
    return target.path


@dataclass(frozen=True, slots=True)
class _FilterTask:
    source: LabelSource
    target: ArrayWriter
    reach: tuple[int, ...]
    function: Callable[[Array], Array]

    def __call__(self, tile: Tile) -> None:
        grid = self.source.grid
        read = tile.core.grow(self.source.halo(self.reach), within=grid.shape)
        labels = self.source.read(read)
        if not labels.any():
            return  # what is not written is background
        spatial = labels.reshape([labels.shape[i] for i in grid.spatial])
        filtered = self.function(spatial).reshape(labels.shape)
        core = tile.core.slices_from(read.start)
        self.target.write(tile.core, filtered[core])


def filter_tiles(
    source: LabelSource,
    function: Callable[[Array], Array],
    reach: tuple[int, ...],
    *,
    to: Destination,
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
    to : Destination
    pool : Pool
    """
    return written(source, to, filtered(source, function, reach, pool), pool)


def filtered(
    source: LabelSource,
    function: Callable[[Array], Array],
    reach: tuple[int, ...],
    pool: Pool,
) -> Callable[[Working, ZarrFormat], None]:
    """Return what makes the array of a filter, for `written`; arguments as in `filter_tiles`."""

    def make(working: Working, zarr_format: ZarrFormat) -> None:
        dtype = id_type(source, pool)
        create_label_array(working.new, source.grid, dtype, zarr_format=zarr_format)
        task = _FilterTask(source, ArrayWriter.of(working.new), reach, function)
        for _ in pool.map(task, source.grid.tiles(), step="filter", n=source.grid.n_tiles):
            pass

    return make


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
