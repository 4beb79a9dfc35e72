"""The façade: segment an image tile by tile and get one label image back."""

from __future__ import annotations

import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import zarr
import zarr.errors
from upath import UPath

from patchworks_core.errors import PlanError
from patchworks_core.image import Image, open_image
from patchworks_core.job import Job, Progress
from patchworks_core.ngff import LabelImage, OmeVersion
from patchworks_core.plan import Plan
from patchworks_core.rules import MergeOptions
from patchworks_core.segmentation import LabelFunction, MergeRule, Segmentation, segmentation_of
from patchworks_core.storage import (
    Location,
    as_path,
    group_format,
    open_array,
    zarr_store,
)
from patchworks_core.workers import WorkerKind, Workers


def tile_process(
    image: Any,
    fn: str | LabelFunction | Segmentation,
    *,
    tile_shape: Sequence[int] | int | None = None,
    overlap: Sequence[int] | int | Literal["auto"] = 0,
    channel: int | str | None = 0,
    level: int = 0,
    axes: str | None = None,
    parameters: Mapping[str, Any] | None = None,
    merge: MergeRule = "auto",
    connectivity: int | None = None,
    min_iou: float = 0.3,
    min_size: int = 0,
    sequential_labels: bool = True,
    max_workers: int = 1,
    workers: WorkerKind = "threads",
    write_to: Location | None = None,
    output_component: str = "labels",
    compute: bool = False,
    progress: Progress | None = None,
    resume: bool = False,
) -> Any:
    """Segment an image tile by tile; an object has one id however many tiles it crosses.

    Parameters
    ----------
    image : array, path or URL
        NumPy, dask or Zarr array, or anything `open_image` opens; axes ``tczyx`` or some of them.
    fn : callable or str
        ``fn(tile) -> labels``: the pixels of one tile (spatial axes only) to whole numbers >= 0 of
        the same shape. Or the name of a built-in function, or ``module:function``.
    tile_shape : int or tuple of int, optional
        Pixels of a tile without halo; as in `plan_grid`. None is the image's own chunks.
    overlap : int or tuple of int
        Halo on *each side* of a tile, pixels. ``auto`` asks a pilot (`patchworks_core.pilot`),
        which settles the rule too where `merge` is ``auto``.
    channel : int, str or None
        Channel to segment, by position or name; None segments each channel.
    level : int
        Resolution level of a multiscale image, 0 is full.
    axes : str, optional
        Axes of the image in its own order, where its metadata does not say.
    parameters : mapping, optional
        Keyword arguments of `fn`.
    merge : {"auto", "overlap", "touching", "none"}
        Which labels on two sides of a seam are one object. ``touching`` joins whatever touches and
        is exact for functions that label connected components; ``overlap`` joins two labels that
        the two tiles gave to the same pixels. ``auto`` is what `fn` declares, else ``overlap``
        where there is a halo and ``touching`` where there is none.
    connectivity : int, optional
        For ``touching``: 1 joins across faces of pixels, 2 also across edges, 3 across corners.
        None is the function's own where it says, else 1.
    min_iou : float
        For ``overlap``: least intersection over union.
    min_size : int
        Merged objects of fewer pixels become background.
    sequential_labels : bool
        True numbers the objects 1..N; False leaves gaps but keeps ids when other objects change.
    max_workers : int
        Tiles at once.
    workers : {"threads", "processes"}
        ``processes`` for functions that hold the GIL.
    write_to : path or URL, optional
        Zarr group to write the labels into. The stage is kept beside it while the work is not
        complete.
    output_component : str
        Name of the label array in `write_to`.
    compute : bool
        Return a NumPy array even when it was written.
    progress : callable, optional
        ``progress(step, done, total)``.
    resume : bool
        Take up the tiles that an interrupted call with the same image, grid and function left.

    Returns
    -------
    dask.array.Array or numpy.ndarray
        Labels of the image's axes less the channel, int32 (int64 beyond 2**31 - 1 objects): lazy
        over `write_to`, or in memory when nothing was written or `compute` asks for it.

    Raises
    ------
    ImageError, PlanError, SegmentationError
        If the input cannot be used as asked.
    TilesFailedError
        If tiles failed; all others are staged.

    Examples
    --------
    >>> import numpy as np
    >>> from scipy import ndimage
    >>> mask = np.zeros((8, 8), dtype=bool)
    >>> mask[2:4, 1:7] = mask[6, 6] = True
    >>> labels = tile_process(mask, lambda tile: ndimage.label(tile)[0], tile_shape=4)
    >>> int(labels.max()), len(set(labels[2:4, 1:7].ravel()))
    (2, 1)
    """
    job = Job(
        opened := open_image(image, channel=channel, level=level, axes=axes),
        segmentation_of(fn, parameters),
        MergeOptions(merge, connectivity, min_iou, min_size, sequential_labels),
        Workers(max_workers, workers),
        progress or (lambda step, done, total: None),
        is_temporary=write_to is None,
    )
    job, halo = job.settled(tiles := _tile_shape(tile_shape, opened), overlap)
    plan = job.plan(tiles, halo)
    if write_to is None:
        with tempfile.TemporaryDirectory(prefix="patchworks-") as folder:
            job.write_array(plan, UPath(folder), "labels", resume=False)
            return np.asarray(open_array(UPath(folder) / "labels")[...])
    group = as_path(write_to)
    _check_target(opened, group / output_component)
    job.write_array(plan, group, output_component, resume=resume)
    labels = open_array(group / output_component)
    if compute:
        return np.asarray(labels[...])
    import dask.array as da

    return da.from_zarr(labels)  # type: ignore[no-untyped-call]


@dataclass(frozen=True, slots=True)
class SegmentedImage:
    """What `segment_to_ome_zarr` wrote."""

    path: UPath
    """The label image, ``<container>/labels/<name>``."""

    n_objects: int
    plan: Plan


def segment_to_ome_zarr(
    image: Image,
    segmentation: Segmentation,
    container: Location,
    *,
    name: str = "labels",
    tile_shape: Sequence[int] | int,
    overlap: Sequence[int] | int | Literal["auto"] = 0,
    options: MergeOptions | None = None,
    workers: Workers | None = None,
    version: OmeVersion = "0.5",
    progress: Progress | None = None,
    resume: bool = False,
) -> SegmentedImage:
    """Segment an image tile by tile into an OME-Zarr label image with pyramid and calibration.

    Parameters
    ----------
    image : Image
    segmentation : Segmentation
    container : path or URL
        OME-Zarr to write ``labels/<name>`` into; made if it is not there.
    name : str
        Of the label image.
    tile_shape, overlap, progress, resume
        As in `tile_process`.
    options : MergeOptions, optional
    workers : Workers, optional
    version : {"0.5", "0.4"}
        Of OME-NGFF.

    Returns
    -------
    SegmentedImage

    Raises
    ------
    PlanError
        If the image has fewer than two spatial axes, which OME-Zarr cannot hold.
    TilesFailedError
        If tiles failed; all others are staged.
    """
    job = Job(
        image,
        segmentation,
        options or MergeOptions(),
        workers or Workers(),
        progress or (lambda step, done, total: None),
    )
    job, halo = job.settled(tile_shape, overlap)
    plan = job.plan(tile_shape, halo)
    if len(plan.grid.spatial) < 2:
        raise PlanError(f"OME-Zarr needs two or three spatial axes, got {plan.grid.axes!r}")
    target = LabelImage(as_path(container), name, plan, version)
    lut = job.write_ome(plan, target, resume=resume)
    return SegmentedImage(target.path, lut.n_objects, plan)


def _check_target(image: Image, target: UPath) -> None:
    """Raise PlanError where writing the labels would replace the image, or a whole group."""
    if group_format(target) and isinstance(zarr.open(zarr_store(target), mode="r"), zarr.Group):
        raise PlanError(
            f"one array of labels does not replace a whole Zarr group, and {target} is one; name "
            "another output_component or write_to"
        )
    source = image.source
    if isinstance(source, zarr.Array | zarr.Group):
        source = str(source.store_path)
    if not isinstance(source, str):
        return
    read, written = str(as_path(source)), str(target)
    if read == written or read.startswith(written + "/"):
        raise PlanError(
            f"labels are never written over what they are made from, got {written} for both; "
            "name another output_component or write_to"
        )


def _tile_shape(tile_shape: Sequence[int] | int | None, image: Image) -> Sequence[int] | int:
    """Return the tile asked for, or the image's chunks where they make sense as tiles."""
    if tile_shape is not None:
        return tile_shape
    chunks = image.chunks
    if chunks is None:
        raise PlanError(
            f"the image of shape {image.shape} has no chunks to take as tiles; "
            "give tile_shape, for example 1024, or -1 for one tile"
        )
    spatial = [n for n, axis in zip(chunks, image.axes, strict=True) if axis in "yx"]
    if any(n < 32 for n in spatial):
        raise PlanError(
            f"the image's chunks {chunks} are too small to be tiles; give tile_shape, a few "
            "hundred pixels per axis or more"
        )
    return tuple(n if axis in "zyx" else 1 for n, axis in zip(chunks, image.axes, strict=True))
