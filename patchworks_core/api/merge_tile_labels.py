"""The façade for labels that are there already: per-tile labels become one label image."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import zarr
from upath import UPath

from patchworks_core.api.options import TileOptions, planned_job
from patchworks_core.api.tile_process import labels_of
from patchworks_core.calls.spellings import also_spelled
from patchworks_core.errors import ImageError, PlanError
from patchworks_core.files.label_arrays import check_chunks
from patchworks_core.files.storage import Location, as_path, open_array
from patchworks_core.images.calibration import LengthUnit
from patchworks_core.images.image import Image, open_all_channels
from patchworks_core.images.readers.memory import OverlappingBlocks, is_dask_array
from patchworks_core.machine.progress import Progress, progress_of
from patchworks_core.plugins.segmentation import declare
from patchworks_core.seams.rules import MergeRule, Outline
from patchworks_core.stage.plan import tile_by_tile
from patchworks_core.tiles.grid import SPATIAL_AXES
from patchworks_core.tiles.numbers import whole_number


@also_spelled(
    {"iou_threshold": "min_iou", "min_voxels": "min_size", "max_voxels": "max_size"},
    absent={
        "label_counts": "labels are counted as they are read",
        "halo_dir": "give blocks that overlap, and overlap=",
        "parts_dir": "give min_size= and max_size=, and measure_objects the result",
        "objects_out": "measure_objects tabulates the result",
    },
)
def merge_tile_labels(
    labeled: Any,
    write_to: Location | None = None,
    *,
    tile_shape: Sequence[int] | int | None = None,
    axes: str | None = None,
    input_component: str = "labels",
    output_component: str = "labels",
    output_chunks: Sequence[int] | None = None,
    overwrite: bool = False,
    overlap: Sequence[int] | int = 0,
    merge: MergeRule = "auto",
    connectivity: int | None = None,
    min_iou: float = 0.3,
    outline: Outline = "auto",
    min_size: float = 0,
    max_size: float | None = None,
    size_unit: LengthUnit = "pixels",
    sequential_labels: bool = True,
    n_workers: int | None = None,
    stage_dir: Location | None = None,
    keep_stage: bool = False,
    compute: bool = False,
    return_count: bool = False,
    progress: bool | Progress = False,
) -> Any:
    """Make one label image of labels that were made tile by tile; ids may repeat between tiles.

    Parameters
    ----------
    labeled : array, path or URL
        Label image (whole numbers >= 0) whose tiles were labelled apart; never modified. For a
        Zarr group, `input_component` names the array in it. Of a Zarr on this disk, tiles of which
        nothing is stored are background, and are not read.
    write_to : path or URL, optional
        Zarr group to write into, as in `tile_process`.
    tile_shape : int or tuple of int, optional
        The tiles that were labelled apart; None is the array's chunks.
    axes : str, optional
        Axes in the array's order, where its metadata does not say.
    input_component, output_component : str
        Arrays within the groups.
    output_chunks : sequence of int, optional
        Chunks of the result; a tile is a whole number of them.
    overlap : int or sequence of int
        What each block of a dask array holds of each of its neighbours, pixels, where the function
        ran on blocks that ``dask.array.overlap.overlap(image, depth, boundary="none")`` made. It is
        not in the result, and shows what both saw there.
    merge : {"auto", "touching", "overlap", "overlap-pairs", "none"}
        ``touching`` joins labels in contact across a seam. ``overlap`` joins two labels that two
        blocks gave to the same pixels; where blocks do not overlap, two that agree in the planes on
        the two sides of a seam. ``auto`` is ``overlap`` where there is one, else ``touching``.
    return_count : bool
        Return ``(labels, n)``, with the number of objects; None unless they are numbered 1..N.
    overwrite, connectivity, min_iou, outline, min_size, max_size, size_unit, sequential_labels
        As in `tile_process`.
    stage_dir, keep_stage, compute, progress
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
    array = _array_of(labeled, input_component)
    if np.any(overlap):
        array, overlap = _overlapping(array, axes, overlap)
    options = TileOptions(
        tile_shape=_chunks_of(array, axes) if tile_shape is None else tile_shape,
        overlap=overlap,
        channel=None,
        axes=axes,
        merge=merge,
        connectivity=connectivity,
        min_iou=min_iou,
        outline=outline,
        min_size=min_size,
        max_size=max_size,
        size_unit=size_unit,
        sequential_labels=sequential_labels,
        max_workers=n_workers,
        stage_dir=stage_dir,
        keep_stage=keep_stage,
        overwrite=overwrite,
    )
    with progress_of(progress) as report:
        job, plan = planned_job(array, _as_they_are, options, report, is_temporary=write_to is None)
        _check_dtype(job.image)
        job = replace(job, leaves_gaps=True)
        if isinstance(array, OverlappingBlocks):  # only of one block is there what it overlaps
            plan = tile_by_tile(plan)
        if output_chunks is not None:
            job = replace(job, output_chunks=check_chunks(plan.grid, output_chunks))
        labels = labels_of(job, plan, write_to, output_component, compute=compute, resume="auto")
    if not return_count:
        return labels
    return labels, (int(labels.max()) if sequential_labels else None)


def _check_dtype(labeled: Image) -> None:
    """Raise ImageError where an image cannot be one of labels, before any tile is read."""
    if labeled.dtype.kind not in "iu":
        way_out = "convert it, for example with .astype('int32')"
        if labeled.dtype == bool:
            way_out = "label the objects of a mask first, for example with scipy.ndimage.label"
        raise ImageError(
            f"labels are whole numbers >= 0, got {labeled.dtype} in {labeled.where}; {way_out}"
        )


def _overlapping(
    array: Any, axes: str | None, overlap: Sequence[int] | int
) -> tuple[OverlappingBlocks, tuple[int, ...]]:
    """Return blocks that overlap as an image, and by how much, per axis of it."""
    if not is_dask_array(array):
        raise PlanError(
            f"overlap={overlap!r} is of the blocks of a dask array, got {type(array).__name__}; "
            "label blocks that dask.array.overlap.overlap(image, depth, boundary='none') made"
        )
    image = open_all_channels(array, axes=axes)
    spatial = [axis in SPATIAL_AXES for axis in image.axes]
    values = [overlap] * sum(spatial) if np.ndim(overlap) == 0 else [*overlap]  # type: ignore[misc]
    if len(values) == len(spatial):
        depth = tuple(whole_number("overlap", value) for value in values)
    elif len(values) == sum(spatial):
        rest = iter(values)
        depth = tuple(whole_number("overlap", next(rest)) if s else 0 for s in spatial)
    else:
        raise PlanError(f"overlap needs one number per axis of {image.axes!r}, got {overlap!r}")
    by_axis = dict(zip(image.axes, depth, strict=True))
    blocks = OverlappingBlocks(array, tuple(by_axis[axis] for axis in image.file_axes))
    return blocks, tuple(d for d, is_spatial in zip(depth, spatial, strict=True) if is_spatial)


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
    if is_dask_array(labeled):
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
