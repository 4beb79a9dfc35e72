"""The façade for labels that are there already: per-tile labels become one label image."""

from __future__ import annotations

import os
from collections.abc import Sequence
from typing import Any

import dask.array
import numpy as np
import zarr
from upath import UPath

from patchworks_core.api.tile_process import tile_process
from patchworks_core.errors import PlanError
from patchworks_core.files.storage import Location, as_path, open_array
from patchworks_core.images.image import open_all_channels
from patchworks_core.machine.progress import Progress
from patchworks_core.plugins.segmentation import declare
from patchworks_core.seams.rules import MergeRule
from patchworks_core.tiles.grid import SPATIAL_AXES


def merge_tile_labels(
    labeled: Any,
    write_to: Location | None = None,
    *,
    tile_shape: Sequence[int] | int | None = None,
    axes: str | None = None,
    input_component: str = "labels",
    output_component: str = "labels",
    overwrite: bool = False,
    merge: MergeRule = "touching",
    connectivity: int | None = None,
    min_iou: float = 0.3,
    sequential_labels: bool = True,
    n_workers: int | None = None,
    compute: bool = False,
    progress: bool | Progress = False,
) -> Any:
    """Make one label image of labels that were made tile by tile; ids may repeat between tiles.

    Parameters
    ----------
    labeled : array, path or URL
        Label image (whole numbers >= 0) whose tiles were labelled apart; never modified. For a
        Zarr group, `input_component` names the array in it.
    write_to : path or URL, optional
        Zarr group to write into, as in `tile_process`.
    tile_shape : int or tuple of int, optional
        The tiles that were labelled apart; None is the array's chunks.
    axes : str, optional
        Axes in the array's order, where its metadata does not say.
    input_component, output_component : str
        Arrays within the groups.
    merge : {"touching", "overlap", "none"}
        ``touching`` joins labels in contact across a seam. ``overlap``, without the halos that the
        tiles read, joins two labels that agree in the planes on the two sides of a seam.
    overwrite, connectivity, min_iou, sequential_labels, compute, progress
        As in `tile_process`.
    n_workers : int, optional
        Tiles at once; None is as many as cores and memory allow.

    Returns
    -------
    dask.array.Array or numpy.ndarray
        As `tile_process`.

    Examples
    --------
    >>> import numpy as np
    >>> tiles = np.array([[1, 1, 2, 0], [0, 0, 0, 1]])  # two tiles of two columns
    >>> merge_tile_labels(tiles, tile_shape=(-1, 2))
    array([[1, 1, 1, 0],
           [0, 0, 0, 2]], dtype=int32)
    """
    return tile_process(
        array := _array_of(labeled, input_component),
        _as_they_are,
        tile_shape=_chunks_of(array, axes) if tile_shape is None else tile_shape,
        channel=None,
        axes=axes,
        merge=merge,
        connectivity=connectivity,
        min_iou=min_iou,
        sequential_labels=sequential_labels,
        max_workers=n_workers,
        write_to=write_to,
        output_component=output_component,
        overwrite=overwrite,
        compute=compute,
        progress=progress,
    )


@declare(version="1")
def _as_they_are(tile: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
    """Return labels as they are."""
    return tile


def _array_of(labeled: Any, component: str) -> Any:
    """Return the array that a group or a path to one holds."""
    if isinstance(labeled, zarr.Group):
        return labeled[component]
    if isinstance(labeled, str | os.PathLike | UPath) and (as_path(labeled) / component).exists():
        return open_array(as_path(labeled) / component)
    return labeled


def _chunks_of(labeled: Any, axes: str | None) -> tuple[int, ...]:
    """Return the chunks that were labelled apart, in the order of the label image's axes.

    Raises
    ------
    PlanError
        If there are none, or no grid describes them.
    """
    image = open_all_channels(labeled, axes=axes)
    if image.chunks is None:
        raise PlanError(
            f"the labels of shape {image.shape} have no chunks that say which tiles were labelled "
            "apart; give tile_shape"
        )
    if isinstance(labeled, dask.array.Array):
        for axis, sizes in zip(image.file_axes, labeled.chunks, strict=True):
            if axis in SPATIAL_AXES and (len({*sizes[:-1]}) > 1 or sizes[-1] > sizes[0]):
                raise PlanError(
                    "tiles have one shape and are smaller only at the end of an axis, got chunks "
                    f"{sizes!r} along {axis!r}; label chunks of one shape, and merge the labels "
                    "before they are rechunked"
                )
    return tuple(
        n if axis in SPATIAL_AXES else 1 for n, axis in zip(image.chunks, image.axes, strict=True)
    )
