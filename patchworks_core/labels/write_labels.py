"""The façade for labels from elsewhere: written into an OME-Zarr, as viewers look for them.

1. The labels are opened, and get axes, pixel size and place of the image they are of.
2. They are copied tile by tile, every region checked as it is read.
3. `patchworks_core.ome_zarr.label_image` writes pyramid and metadata, and lists the name.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any, Unpack

from upath import UPath

from patchworks_core.errors import ImageError
from patchworks_core.files.storage import Location
from patchworks_core.images.image import Image, open_all_channels
from patchworks_core.images.image_source import ImageSource
from patchworks_core.labels.options import LabelOptions, pool_of, source_of, takes_options
from patchworks_core.labels.source import LabelSource, check_same_pixels
from patchworks_core.labels.writing import Destination, filtered, write_ome
from patchworks_core.ome_zarr.metadata import OmeVersion


@dataclass(frozen=True, slots=True)
class WrittenLabelImage:
    """What `write_labels` wrote."""

    path: UPath
    """The label image, ``<target>/labels/<name>``."""

    axes: str
    shape: tuple[int, ...]

    pixel_size: dict[str, float]
    """Per axis that is calibrated."""

    n_levels: int
    """Resolutions, the full one included."""


@takes_options(LabelOptions)
def write_labels(
    labels: ImageSource,
    target: Location,
    like: ImageSource | None = None,
    *,
    name: str = "labels",
    version: OmeVersion | None = None,
    **options: Unpack[LabelOptions],
) -> WrittenLabelImage:
    """Write labels that were made elsewhere as a label image of an OME-Zarr.

    Parameters
    ----------
    labels : array, path or URL
        As in `patchworks_core.labels.postprocess.fill_holes`: a NumPy, dask or Zarr array, a TIFF,
        ...
    target : path or URL
        OME-Zarr to write ``labels/<name>`` into: that of the image, or a new one.
    like : Image, array, path or URL, optional
        The image that the labels are of: it gives axes, pixel size and place. Open it at the level
        that was segmented, ``open_image(path, level=1)``. None takes what the labels say.
    name : str
        Of the label image.
    version : {"0.5", "0.4"}, optional
        Of OME-NGFF; by default that of the target, 0.5 for a new one.
    **options
        As in `patchworks_core.labels.postprocess.fill_holes`; `pixel_size` wins over what labels
        and image say.

    Returns
    -------
    WrittenLabelImage

    Raises
    ------
    ImageError
        If the labels are none, or are not of the pixels of `like`.
    PlanError
        If a label image of that name is there that patchworks did not write or that was changed
        since, or OME-Zarr cannot hold the axes.

    Notes
    -----
    Ids are kept. Lower levels hold the most frequent id of their pixels. A killed call leaves no
    label image, or the one that was there.

    Examples
    --------
    >>> import numpy as np
    >>> labels = np.array([[0, 7, 7], [9, 0, 12]])
    >>> image = np.zeros((2, 3), "u2")
    >>> written = write_labels(labels, "memory://written/a.ome.zarr", like=image, pixel_size=0.5)
    >>> written.axes, written.pixel_size
    ('yx', {'y': 0.5, 'x': 0.5})
    """
    image = None if like is None else open_all_channels(like)
    source = _placed_like(labels, image, options)
    if (size := options.get("pixel_size")) is not None:
        source = replace(source, image=source.image.of_pixel_size(size))
    to = Destination(target, name, options.get("overwrite", False))
    n_axes = len(source.grid.spatial)
    with pool_of(options) as pool:
        make = filtered(source, _unchanged, (0,) * n_axes, pool)
        reads = () if image is None else (image.source, image.pixels)
        path = write_ome(source, to, make, pool, version=version, reads=reads)
    levels = open_all_channels(path).n_levels
    sizes = dict(source.image.pixel_size)
    return WrittenLabelImage(path, source.grid.axes, source.grid.shape, sizes, levels)


def _unchanged(labels: Any) -> Any:
    return labels


def _placed_like(labels: ImageSource, image: Image | None, options: LabelOptions) -> LabelSource:
    """Open labels, with axes, pixel size and place of the image they are of."""
    if image is None:
        return source_of(labels, options)
    axes = image.axes.replace("c", "")
    letters = options.get("axes")
    opened = source_of(labels, {**options, "axes": letters or _axes_like(labels, axes)})
    n_channels = dict(zip(image.axes, image.shape, strict=True)).get("c", 1)
    if "c" in opened.grid.axes and n_channels == 1:
        raise ImageError(
            f"labels of an image without channels have none, got axes {opened.grid.axes!r} and "
            f"shape {opened.grid.shape} for {image.where}; say axes="
        )
    check_same_pixels(opened.image, image)
    placed = replace(
        opened.image,
        pixel_size=_of_axes(image.pixel_size, opened.grid.axes),
        unit=_of_axes(image.unit, opened.grid.axes),
        translation=_of_axes(image.translation, opened.grid.axes),
    )
    return replace(opened, image=placed)


def _axes_like(labels: ImageSource, axes: str) -> str | None:
    """Return the axes of an image for labels that say none, as arrays in memory do."""
    is_plain = hasattr(labels, "shape") and not isinstance(labels, Image)
    return axes if is_plain and len(labels.shape) == len(axes) else None  # type: ignore[union-attr]


def _of_axes(values: dict[str, Any], axes: str) -> dict[str, Any]:
    return {axis: value for axis, value in values.items() if axis in axes}
