"""Sequential ids for label images that have gaps: 1..N in the order of the old ids.

1. The ids of every chunk are collected; what is kept in memory is the sorted list of ids.
2. Each chunk is written with the rank of its ids. Chunks are whole, so no two tasks write one.

Labels of `tile_process` need none of this: its lookup table numbers them while it writes.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import zarr
from upath import UPath

from patchworks_core.errors import ImageError, PlanError
from patchworks_core.files.replacing import component_path, recover, replacing
from patchworks_core.files.storage import Location, as_path, open_array, zarr_store
from patchworks_core.labels.writing import integer_type
from patchworks_core.machine.budget import granted_cores
from patchworks_core.machine.pools import Pool
from patchworks_core.machine.workers import Workers
from patchworks_core.tiles.regions import Region

Array = npt.NDArray[Any]


def relabel_sequential_array(labels: Any) -> Any:
    """Return a label image with its ids renumbered 1..N, in the order of the old ids.

    Parameters
    ----------
    labels : ndarray or dask array
        Whole numbers >= 0; 0 is background. Not modified.

    Returns
    -------
    ndarray or dask array, as given
        int32, or int64 beyond 2**31 - 1 objects. A dask array is read once now, for its ids, and
        again when the result is computed.

    Raises
    ------
    ImageError
        If these are not labels.

    Examples
    --------
    >>> relabel_sequential_array(np.array([[0, 7, 7], [9, 0, 12]]))
    array([[0, 1, 1],
           [2, 0, 3]], dtype=int32)
    """
    import dask.array as da
    from dask.base import compute
    from dask.delayed import delayed

    _check_dtype(labels, "labels")
    if not isinstance(labels, da.Array):
        pixels = np.asarray(labels)
        return _ranked(pixels, ids_of(pixels))
    pieces = [delayed(ids_of)(block) for block in labels.to_delayed().ravel()]
    ids = _union(compute(*pieces))
    ranked: Any = _ranked
    return labels.map_blocks(ranked, ids, dtype=integer_type(len(ids)))


def relabel_sequential_zarr(
    store_path: Location,
    component: str = "labels",
    *,
    write_to: Location | None = None,
    output_component: str = "labels",
    in_place: bool | None = None,
    n_workers: int | None = None,
    overwrite: bool = False,
) -> int:
    """Renumber the ids of a stored label image 1..N, in the order of the old ids.

    Parameters
    ----------
    store_path : path or URL
        Zarr group that holds the label image, an array.
    component : str
        Name of the array in the group.
    write_to : path or URL, optional
        Zarr group for the result; made if it is not there. None replaces the label image itself:
        the new one is written beside it first, so that a killed call leaves one or the other,
        whole.
    output_component : str
        Name of the array in `write_to`.
    in_place : bool, optional
        Says the same once more: True is without `write_to`, False with it.
    n_workers : int, optional
        Chunks at once; None is the granted cores less one.
    overwrite : bool
        Replace whatever is at `write_to`; what patchworks wrote there itself, and nobody changed
        since, is replaced anyway.

    Returns
    -------
    int
        The number of objects.

    Raises
    ------
    PlanError
        If the place to write to is the one that is read, or what is there is not ours to replace.
    ImageError
        If these are not labels.
    """
    if not isinstance(component, str):
        raise PlanError(
            f"component is the name of an array in {store_path}, got {component!r}; a place to "
            "write to is write_to="
        )
    source = component_path(as_path(store_path), component)
    if in_place is not None and in_place != (write_to is None):
        raise PlanError(
            "labels are written to write_to, or else replaced, got "
            f"in_place={in_place!r} and write_to={write_to!r}"
        )
    in_place = write_to is None
    target = source if write_to is None else as_path(write_to) / output_component
    if write_to is not None:
        target = component_path(as_path(write_to), output_component)
        if target == source:
            raise PlanError(
                f"write_to names the labels that are read, {source}; leave it out to replace them"
            )
    recover(source)
    labels = open_array(source)
    _check_dtype(labels, str(source))
    workers = Workers(max(1, granted_cores().value - 1) if n_workers is None else n_workers)
    # What is asked for by in_place is to replace these labels, whoever made them.
    with (
        replacing(
            target,
            reads=() if in_place else (source,),
            what="renumbered labels",
            another="output_component or write_to",
            overwrite=overwrite or in_place,
        ) as working,
        Pool.open(workers) as pool,
    ):
        ids = _union(pool.map(_CollectIds(source), _chunks(labels), step="collecting ids"))
        zarr.open_group(zarr_store(target.parent), mode="a")
        _like(labels, working.new, integer_type(len(ids)))
        task = _WriteRanks(source, working.new, ids)
        for _ in pool.map(task, _chunks(labels), step="renumbering labels"):
            pass
    return len(ids)


def ids_of(labels: Array) -> npt.NDArray[np.int64]:
    """Return the ids of a label image, ascending, without background.

    Raises
    ------
    ImageError
        If an id is negative.
    """
    ids = np.unique(labels).astype(np.int64)
    if len(ids) and ids[0] < 0:
        raise ImageError(
            f"labels must be 0 or more, got {int(ids[0])}; an id beyond 2**63 - 1 wraps as well"
        )
    return ids[ids > 0]


@dataclass(frozen=True, slots=True)
class _CollectIds:
    source: UPath

    def __call__(self, chunk: Region) -> npt.NDArray[np.int64]:
        return ids_of(np.asarray(open_array(self.source)[chunk.slices]))


@dataclass(frozen=True, slots=True)
class _WriteRanks:
    source: UPath
    target: UPath
    ids: npt.NDArray[np.int64]

    def __call__(self, chunk: Region) -> None:
        pixels = np.asarray(open_array(self.source)[chunk.slices])
        if pixels.any():
            open_array(self.target, mode="r+")[chunk.slices] = _ranked(pixels, self.ids)


def _ranked(labels: Array, ids: npt.NDArray[np.int64]) -> Array:
    """Return the rank of each label among `ids`, from 1; 0 stays 0."""
    ranks = np.searchsorted(ids, labels).astype(integer_type(len(ids)))
    return np.asarray(np.where(labels == 0, 0, ranks + 1).astype(ranks.dtype))


def _union(pieces: Any) -> npt.NDArray[np.int64]:
    return np.unique(np.concatenate([np.zeros(0, np.int64), *pieces]))


def _check_dtype(labels: Any, where: str) -> None:
    dtype = np.dtype(getattr(labels, "dtype", np.asarray(labels).dtype))
    if dtype.kind not in "iub":
        raise ImageError(f"labels must be whole numbers, got {dtype} in {where}")


def _chunks(labels: zarr.Array[Any]) -> Iterator[Region]:
    """Yield the chunks of an array, or its shards where it has them: what is written whole."""
    whole = Region((0,) * labels.ndim, tuple(labels.shape))
    return whole.pieces(labels.shards or labels.chunks)


def _like(labels: zarr.Array[Any], path: UPath, dtype: np.dtype[Any]) -> None:
    """Create an empty array that is cut and compressed as `labels` is."""
    zarr.create_array(
        zarr_store(path),
        shape=labels.shape,
        chunks=labels.chunks,
        shards=labels.shards,
        dtype=dtype,
        compressors=labels.compressors,
        dimension_names=getattr(labels.metadata, "dimension_names", None),
        attributes=labels.attrs.asdict(),
        zarr_format=labels.metadata.zarr_format,
        overwrite=True,
    )
