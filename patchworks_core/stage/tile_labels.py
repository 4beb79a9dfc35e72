"""Labels of one tile: checked as they come from a segmentation function, then numbered densely.

1. `check_labels` accepts whole numbers >= 0, one per pixel, and nothing else.
2. `number_labels` gives the labels that reach the core 1..n in ascending order, and those seen
   only in the halo n+1..m: the core is written, all of it goes into the strips.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import numpy.typing as npt

from patchworks_core.errors import TileOutputError
from patchworks_core.stage.label_runs import LabelRuns, count_ids
from patchworks_core.tiles.regions import Region

Array = npt.NDArray[Any]

MAX_LABELS = np.iinfo(np.int32).max
"""Labels one tile may hold: local ids are int32."""

_MAX_UINT16 = np.iinfo(np.uint16).max

_DENSE_LOOKUP_FACTOR = 4
"""Ids up to this many times the pixel count are renumbered by a table, larger ones by sorting."""


@dataclass(frozen=True, slots=True)
class NumberedLabels:
    """The labels of one tile over all it read, local ids dense."""

    pixels: np.ndarray[Any, Any]
    """Local ids over what the tile reads, of `dtype` or as the function returned them; 0 is
    background."""

    n_core: int
    """Labels with a pixel in the core: ids 1..n_core."""

    n_seen: int
    """Labels in all: ids n_core+1..n_seen were seen only in the halo."""

    areas: npt.NDArray[np.int64]
    """Pixels in the core of each of 1..n_core."""

    core_runs: LabelRuns | None = None
    """Of the core; None where they gain nothing."""

    @property
    def dtype(self) -> type[np.integer[Any]]:
        """What local ids are kept in: uint16 where they fit and int32 otherwise."""
        return _local_dtype(self.n_seen)


def _local_dtype(n_labels: int) -> type[np.integer[Any]]:
    return np.uint16 if n_labels <= _MAX_UINT16 else np.int32


def check_labels(labels: object, *, shape: tuple[int, ...], where: str) -> np.ndarray[Any, Any]:
    """Return `labels` if they are a label image of `shape`.

    Parameters
    ----------
    labels : object
        What the segmentation function returned.
    shape : tuple of int
        Shape of the tile the function was given.
    where : str
        Image and tile, for the error.

    Returns
    -------
    ndarray of int
        The same array.

    Raises
    ------
    TileOutputError
        If it is not an array of whole numbers >= 0 with one label per pixel.

    Examples
    --------
    >>> check_labels(np.array([0, 2]), shape=(2,), where="tile 'x000'")
    array([0, 2])
    """
    rule = f"{where}: the segmentation function"
    # A masked array would show the labels under its mask again.
    if not isinstance(labels, np.ndarray) or isinstance(labels, np.ma.MaskedArray):
        raise TileOutputError(
            f"{rule} returned {type(labels).__module__}.{type(labels).__qualname__}; it must "
            "return a numpy array of labels"
        )
    if labels.shape != shape:
        raise TileOutputError(
            f"{rule} was given shape {shape} and returned {labels.shape}; it must return one label "
            "per pixel"
        )
    if labels.dtype == bool:
        raise TileOutputError(
            f"{rule} returned a mask (dtype bool); label its objects first, "
            "for example with scipy.ndimage.label"
        )
    if not np.issubdtype(labels.dtype, np.integer):
        raise TileOutputError(
            f"{rule} returned dtype {labels.dtype}{_example(labels)}; labels are whole numbers: "
            "return an integer dtype"
        )
    if labels.size and labels.min() < 0:
        place = np.unravel_index(int(labels.argmin()), labels.shape)
        raise TileOutputError(
            f"{rule} returned {labels.min()} at pixel {tuple(map(int, place))} of the tile; "
            "labels are >= 0 and 0 is background"
        )
    return labels


def _example(labels: np.ndarray[Any, Any]) -> str:
    """Show the value that makes a float array no label image, if there is one."""
    if labels.dtype.kind != "f":
        return ""
    bad = labels[~np.isfinite(labels) | (labels != np.round(labels))]
    return f" with values such as {float(bad.flat[0])!r}" if bad.size else ""


def number_labels(
    labels: np.ndarray[Any, Any], core: Region | None, *, where: str, keeps: bool = True
) -> NumberedLabels:
    """Give labels dense numbers, those of the core first.

    Parameters
    ----------
    labels : ndarray of int
        Labels >= 0 over all the tile read.
    core : Region or None
        The core, counted from the first pixel of `labels`; None where that is all of them.
    where : str
        Image and tile, for the error.
    keeps : bool
        False returns `labels` themselves where they have the right numbers already, for a caller
        that is done with them before anything else is.

    Raises
    ------
    TileOutputError
        If the tile holds more labels than local ids (2**31 - 1).

    Examples
    --------
    >>> numbered = number_labels(np.array([7, 0, 9, 5]), Region((1,), (4,)), where="tile 'x000'")
    >>> numbered.pixels, numbered.n_core, numbered.n_seen
    (array([3, 0, 2, 1], dtype=uint16), 2, 3)
    """
    largest = int(labels.max(initial=0))
    if largest == 0:
        return without_labels(labels.shape)
    compact, runs, n_ids = _compact(labels, largest)
    inside = compact if core is None else compact[core.slices]
    core_runs = runs if core is None else LabelRuns.of(inside)
    areas = count_ids(inside, n_ids) if core_runs is None else core_runs.counts(n_ids)
    areas[0] = 0
    is_in_core = areas > 0
    n_core = n_seen = int(np.count_nonzero(is_in_core))
    beyond = np.zeros(0, dtype=np.int64)
    if core is not None:
        is_there = np.zeros(n_ids, dtype=bool)
        is_there[compact.reshape(-1) if runs is None else runs.ids] = True
        is_there[0] = False
        beyond = np.flatnonzero(is_there & ~is_in_core)
        n_seen += len(beyond)
    if n_seen > MAX_LABELS:
        raise TileOutputError(f"{where}: {n_seen} labels in one tile; use smaller tiles")
    dtype = _local_dtype(n_seen)
    if n_core == n_ids - 1:  # they have those numbers already
        kept = compact.astype(dtype) if keeps or core_runs is None else compact
        return NumberedLabels(kept, n_core, n_seen, areas[1:], core_runs)
    lookup = np.zeros(n_ids, dtype=dtype)
    lookup[is_in_core] = np.arange(1, n_core + 1, dtype=dtype)
    lookup[beyond] = np.arange(n_core + 1, n_seen + 1, dtype=dtype)
    numbered = np.take(lookup, compact) if runs is None else runs.taken_from(lookup)
    if core_runs is not None:
        core_runs = replace(core_runs, ids=lookup[core_runs.ids])
    return NumberedLabels(numbered, n_core, n_seen, areas[is_in_core], core_runs)


def _compact(labels: Array, largest: int) -> tuple[Array, LabelRuns | None, int]:
    """Return labels of which no id is much larger than there are pixels, with their runs."""
    runs = LabelRuns.of(labels)
    if largest <= _DENSE_LOOKUP_FACTOR * labels.size + 1024:
        return labels, runs, largest + 1
    values = labels if runs is None else runs.ids
    ids, compact = np.unique(values, return_inverse=True)
    compact = compact.reshape(values.shape) + (ids[0] != 0)
    n_ids = len(ids) + int(ids[0] != 0)
    if runs is None:
        return compact, None, n_ids
    runs = replace(runs, ids=compact)
    return runs.labels, runs, n_ids


def without_labels(shape: tuple[int, ...]) -> NumberedLabels:
    """Return a tile of background."""
    background = np.broadcast_to(np.zeros((), dtype=np.uint16), shape)  # which takes no memory
    return NumberedLabels(background, 0, 0, np.zeros(0, dtype=np.int64))


def number_ids(labels: Array) -> tuple[Array, Array]:
    """Give the labels of a region the numbers 1..n, in ascending order.

    Parameters
    ----------
    labels : ndarray of int
        Labels >= 0.

    Returns
    -------
    ids : ndarray of int64, shape (n + 1,)
        The label behind each number; 0 is background.
    numbers : ndarray of uint16 or int32
        Shape of `labels`.

    Examples
    --------
    >>> number_ids(np.array([7, 0, 9, 7]))
    (array([0, 7, 9]), array([1, 0, 2, 1], dtype=uint16))
    """
    numbered = number_labels(labels, None, where="label image")
    ids = np.zeros(numbered.n_seen + 1, dtype=np.int64)
    ids[numbered.pixels.reshape(-1)] = labels.reshape(-1)
    return ids, numbered.pixels
