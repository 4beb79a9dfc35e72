"""The façade for label images that are there already: filled, opened, grown, filtered by size.

All of it is done tile by tile and comes out as if the whole image had been in memory: the same
pixels for any tile shape and any number of workers. Time and channel are never crossed. The input
is never written to. For measuring see `patchworks_core.labels.measurements`, for two label images
of one image `patchworks_core.labels.relations`.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import Any, Unpack

from patchworks_core.files.storage import Location
from patchworks_core.images.calibration import LengthUnit, SizeLimits
from patchworks_core.images.image_source import ImageSource
from patchworks_core.labels.holes import write_filled
from patchworks_core.labels.morphology import expand_objects, open_objects, reach_of
from patchworks_core.labels.options import LabelOptions, pool_of, source_of, takes_options
from patchworks_core.labels.sizes import write_sized
from patchworks_core.labels.source import spacing_of
from patchworks_core.labels.writing import Destination, filter_tiles
from patchworks_core.tiles.numbers import finite_number


@takes_options(LabelOptions)
def fill_holes(
    labels: ImageSource,
    write_to: Location | None = None,
    *,
    max_size: float | None = None,
    unit: LengthUnit = "pixels",
    per_plane: bool = False,
    output_component: str = "filled_labels",
    **options: Unpack[LabelOptions],
) -> Any:
    """Fill the background that one object encloses.

    Parameters
    ----------
    labels : array, path or URL
        Label image: a NumPy, dask or Zarr array, or anything `open_image` opens that holds whole
        numbers >= 0, such as a Zarr array or an OME-Zarr label image. 0 is background.
    write_to : path or URL, optional
        Zarr group to write the result into; None returns it in memory. Where its name ends in
        ``.ome.zarr`` it becomes a label image of that OME-Zarr, ``labels/<output_component>``, with
        pyramid and the calibration of the labels.
    max_size : float, optional
        Holes larger than this stay; area or volume in `unit`.
    unit : {"pixels", "micrometers"}
        ``micrometers`` means µm² or µm³ by the pixel size that the labels carry.
    per_plane : bool
        Fill the holes of each z plane on its own, open or not to the planes beside it; `max_size`
        is then an area in pixels.
    output_component : str
        Name of the array in `write_to`.
    **options
        `patchworks_core.labels.options.LabelOptions`: `level`, `axes`, `pixel_size`, `tile_shape`,
        `max_workers`, `workers`, `overwrite` and `progress`.

    Returns
    -------
    dask.array.Array or numpy.ndarray
        int32 (int64 where an id is beyond it), axes in the order ``tczyx``: lazy over `write_to`,
        or in memory.

    Raises
    ------
    ImageError, PlanError
        If the labels are none, or cannot be written as asked.

    Notes
    -----
    A hole is a connected component of the background (across faces of pixels, in the plane or in
    the volume as the axes are) that does not touch the border of the image and has one id, and no
    other, beside its pixels. An axis one pixel thick has no border. A hole with another object in
    it is left as it is.

    Examples
    --------
    >>> import numpy as np
    >>> ring = np.zeros((5, 7), int)
    >>> ring[:, 1:6] = 3
    >>> ring[1:4, 2:5] = 0
    >>> int((fill_holes(ring, tile_shape=2) == 3).sum())
    25
    """
    source = source_of(labels, options)
    limits = SizeLimits.of(source.image, None, max_size, unit)
    with pool_of(options) as pool:
        return write_filled(
            source,
            limits.most,
            per_plane=per_plane,
            to=Destination(write_to, output_component, options.get("overwrite", False)),
            pool=pool,
        )


@takes_options(LabelOptions)
def morphological_opening(
    labels: ImageSource,
    radius: float,
    *,
    unit: LengthUnit = "pixels",
    spacing: Sequence[float] | float | None = None,
    write_to: Location | None = None,
    output_component: str = "opened_labels",
    **options: Unpack[LabelOptions],
) -> Any:
    """Keep of each object what a disk or ball that fits into it covers.

    Takes away spurs, bridges and whole objects that are thinner than the disk (ball, where the
    labels have z).

    Parameters
    ----------
    labels
        As in `fill_holes`.
    radius : float
        Of the disk or ball, in `unit`. 0 changes nothing.
    unit : {"pixels", "micrometers"}
        ``micrometers`` by the pixel size that the labels carry, so that a ball is round although
        planes are farther apart than pixels.
    spacing : float or sequence of float, optional
        Size of a pixel per spatial axis in `unit`, in place of 1 or of what the labels carry.
    write_to, output_component, **options
        As in `fill_holes`. A tile reads twice the radius on each side of it.

    Returns
    -------
    dask.array.Array or numpy.ndarray
        As `fill_holes`. Ids are unchanged; one that vanished is missing, and the parts of an object
        that falls apart keep its id (label them anew with `tile_process` to tell them apart).

    Notes
    -----
    The morphological opening of each object on its own: an object that touches it is as good as
    background. What lies beyond the border of the image counts as more of the object, so that one
    cut off by the border is not rounded there (as in `skimage.morphology.opening`).

    Examples
    --------
    >>> import numpy as np
    >>> spur = np.zeros((7, 9), int)
    >>> spur[1:6, 1:6] = spur[3, 6:] = 2  # what is left of the spur is the tip of a disk
    >>> morphological_opening(spur, 1, tile_shape=4)[3]
    array([0, 2, 2, 2, 2, 2, 2, 0, 0], dtype=int32)
    """
    source = source_of(labels, options)
    sizes = spacing_of(source, spacing, unit)
    finite_number("radius", radius, least=0)
    with pool_of(options) as pool:
        return filter_tiles(
            source,
            partial(open_objects, radius=radius, spacing=sizes),
            reach_of(2 * radius, sizes),
            to=Destination(write_to, output_component, options.get("overwrite", False)),
            pool=pool,
        )


@takes_options(LabelOptions)
def expand_labels(
    labels: ImageSource,
    distance: float,
    *,
    unit: LengthUnit = "pixels",
    spacing: Sequence[float] | float | None = None,
    write_to: Location | None = None,
    output_component: str = "expanded_labels",
    **options: Unpack[LabelOptions],
) -> Any:
    """Grow objects into the background by a distance, never into each other.

    Parameters
    ----------
    labels
        As in `fill_holes`.
    distance : float
        How far, between pixel centres, in `unit`. 0 changes nothing.
    unit, spacing
        As in `morphological_opening`.
    write_to, output_component, **options
        As in `fill_holes`. A tile reads the distance on each side of it.

    Returns
    -------
    dask.array.Array or numpy.ndarray
        As `fill_holes`; ids are unchanged.

    Notes
    -----
    As `skimage.segmentation.expand_labels`, except where two objects are equally near: there the
    smaller id wins, for any tiles. Where pixels are not as long as wide, distances within a
    millionth of each other may count as equal.

    Examples
    --------
    >>> import numpy as np
    >>> expand_labels(np.array([[7, 0, 0, 0, 0, 0, 4]]), 3, tile_shape=(1, 2))
    array([[7, 7, 7, 4, 4, 4, 4]], dtype=int32)
    """
    source = source_of(labels, options)
    sizes = spacing_of(source, spacing, unit)
    finite_number("distance", distance, least=0)
    with pool_of(options) as pool:
        return filter_tiles(
            source,
            partial(expand_objects, distance=distance, spacing=sizes),
            reach_of(distance, sizes),
            to=Destination(write_to, output_component, options.get("overwrite", False)),
            pool=pool,
        )


@takes_options(LabelOptions)
def filter_sizes(
    labels: ImageSource,
    min_size: float | None = None,
    max_size: float | None = None,
    *,
    unit: LengthUnit = "pixels",
    sequential: bool = True,
    write_to: Location | None = None,
    output_component: str = "filtered_labels",
    **options: Unpack[LabelOptions],
) -> Any:
    """Remove objects that are too small or too large.

    Parameters
    ----------
    labels
        As in `fill_holes`.
    min_size, max_size : float, optional
        Objects of less than `min_size` or more than `max_size` become background; area or volume
        in `unit`.
    unit : {"pixels", "micrometers"}
        ``micrometers`` means µm² or µm³ by the pixel size that the labels carry.
    sequential : bool
        True numbers what is left 1..N, in the order of the ids; False keeps the ids.
    write_to, output_component, **options
        As in `fill_holes`.

    Returns
    -------
    dask.array.Array or numpy.ndarray
        As `fill_holes`.

    Notes
    -----
    An id that occurs at several times (a track) or in several channels is weighed in each on its
    own, and has one id in the result.

    Examples
    --------
    >>> import numpy as np
    >>> filter_sizes(np.array([[7, 7, 7, 0, 5, 0, 9, 9]]), min_size=2, tile_shape=(1, 2))
    array([[1, 1, 1, 0, 0, 0, 2, 2]], dtype=int32)
    """
    source = source_of(labels, options)
    limits = SizeLimits.of(source.image, min_size, max_size, unit)
    with pool_of(options) as pool:
        return write_sized(
            source,
            limits,
            sequential=sequential,
            to=Destination(write_to, output_component, options.get("overwrite", False)),
            pool=pool,
        )
