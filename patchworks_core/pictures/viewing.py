"""Looking at an image, its labels and its tiles: napari layers, and a picture where there is none.

`layers_of` says what is shown as plain values, so that it needs no napari; `show` hands them to
it. Pixels are read when they are looked at, level by level.
"""

from __future__ import annotations

from collections.abc import Sequence
from math import ceil
from typing import Any

import numpy as np

from patchworks_core.errors import ImageError
from patchworks_core.files.records import read_mapping
from patchworks_core.files.storage import as_path
from patchworks_core.images.dask_view import Slices, as_dask
from patchworks_core.images.image import Image, open_image
from patchworks_core.ome_zarr.metadata import contrast
from patchworks_core.pictures.report import overlay_picture, overview_region
from patchworks_core.tiles.grid import TileGrid

LayerData = tuple[Any, dict[str, Any], str]
"""Data, keyword arguments and kind of a layer, as napari's ``Layer.create`` takes them."""

COLORMAPS = ("cyan", "magenta", "yellow", "red", "green", "blue")
"""Of channels, in turn; a single one is grey."""

LOADED_AT_ONCE = 1024
"""Chunks are joined until they are at least this long in y and x, so that they are not too many."""

_LENGTHS = ("angstrom", "picometer", "nanometer", "micrometer", "millimeter", "centimeter", "meter")
_TIMES = ("microsecond", "millisecond", "second", "minute", "hour", "day")
_UNITS = frozenset({*_LENGTHS, *_TIMES, "inch"})
"""Units that napari can compare; others are shown as pixels."""


def layers_of(image: Image, labels: Image | None = None, grid: TileGrid | None = None) -> Any:
    """Return the layers that show an image, its labels, and the tiles they were made in.

    Parameters
    ----------
    image : Image
        With ``channel=None`` every channel is a layer.
    labels : Image, optional
        A label image, in the same space.
    grid : TileGrid, optional
        Tiles of `image`, at its level.

    Returns
    -------
    list of (data, dict, str)
        `LayerData`, the lowest layer first; every level of a multiscale image that is not finer
        than the one it was opened at. Data are Dask arrays, or lines for the tiles.

    Examples
    --------
    >>> layers = layers_of(open_image(np.zeros((40, 60))), None, TileGrid("yx", (40, 60), (20, 20),
    ...                                                                   (0, 0)))
    >>> [(kind, settings["name"]) for _, settings, kind in layers]
    [('image', 'image'), ('shapes', 'tiles')]
    """
    layers = [_channel_layer(image, c) for c in _channels_of(image)]
    if labels is not None:
        like = image if not labels.pixel_size and _same_space(labels, image) else labels
        data = [_lazy(level) for level in _levels(labels, None)]
        place = {**_place(like, labels.axes), "multiscale": len(data) > 1}
        layers.append((data if len(data) > 1 else data[0], {"name": "labels", **place}, "labels"))
    if grid is not None and {"y", "x"} <= set(grid.axes):
        layers.append(_tiles_layer(image, grid))
    return layers


def _channels_of(image: Image) -> list[int | None]:
    """Return the channels that become layers: None where there is no choice, or it was made."""
    if "c" not in image.axes:
        return [image.channel]
    return list(range(image.shape[image.axes.index("c")]))


def _channel_layer(image: Image, channel: int | None) -> LayerData:
    """Return the layer of one channel."""
    levels = _levels(image, channel)
    data = [_lazy(level) for level in levels]
    lowest = levels[-1]
    names = image.channel_names
    n_layers = len(_channels_of(image))
    fallback = "image" if channel is None else f"channel {channel}"
    settings = {
        "name": names[channel] if names and channel is not None else fallback,
        "colormap": "gray" if n_layers == 1 else COLORMAPS[(channel or 0) % len(COLORMAPS)],
        "blending": "additive",
        "contrast_limits": contrast(lowest.read(overview_region(lowest.axes, lowest.shape))),
        "multiscale": len(data) > 1,
        **_place(image, levels[0].axes),
    }
    return (data if len(data) > 1 else data[0]), settings, "image"


def _levels(image: Image, channel: int | None) -> list[Image]:
    """Open the level an image was opened at, and every coarser one."""
    axes = image.requested_axes
    numbers = range(image.level, image.n_levels)
    levels = [open_image(image.source, channel=channel, level=n, axes=axes) for n in numbers]
    sizes = image.requested_pixel_size
    if sizes is None:
        return levels
    full = dict(zip(levels[0].axes, levels[0].shape, strict=True))
    return [
        level.of_pixel_size(
            {
                axis: sizes[axis] * full[axis] / n
                for axis, n in zip(level.axes, level.shape, strict=True)
                if axis in sizes
            }
        )
        for level in levels
    ]


def _lazy(image: Image) -> Any:
    """Return the pixels as a Dask array of chunks worth a read each."""
    stored = image.chunks or (1,) * image.ndim
    chunks = tuple(
        c * ceil(LOADED_AT_ONCE / c) if axis in "yx" else c
        for c, axis in zip(stored, image.axes, strict=True)
    )
    return as_dask(image, chunks)


def _place(image: Image, axes: str) -> dict[str, Any]:
    """Return where pixels lie: scale, translation, units and names of the axes."""
    units = (image.unit.get(axis, "pixel") for axis in axes)
    return {
        "scale": tuple(image.pixel_size.get(axis, 1.0) for axis in axes),
        "translate": tuple(image.translation.get(axis, 0.0) for axis in axes),
        "units": tuple(unit if unit in _UNITS else "pixel" for unit in units),
        "axis_labels": tuple(axes),
    }


def _same_space(a: Image, b: Image) -> bool:
    """Tell whether two images have the same spatial axes with the same pixels."""
    sizes = [dict(zip(i.axes, i.shape, strict=True)) for i in (a, b)]
    return all(sizes[0].get(axis) == sizes[1].get(axis) for axis in "zyx")


def _tiles_layer(image: Image, grid: TileGrid) -> LayerData:
    """Return the layer of lines between tiles in y and x; it lies over every plane and time."""
    y, x = grid.axes.index("y"), grid.axes.index("x")
    height, width = grid.shape[y], grid.shape[x]
    # A pixel reaches half a pixel to either side of its centre, and so do faces.
    rows = np.arange(0, height + grid.tile_shape[y], grid.tile_shape[y]).clip(max=height) - 0.5
    columns = np.arange(0, width + grid.tile_shape[x], grid.tile_shape[x]).clip(max=width) - 0.5
    lines = [np.array([[row, -0.5], [row, width - 0.5]]) for row in np.unique(rows)]
    lines += [np.array([[-0.5, column], [height - 0.5, column]]) for column in np.unique(columns)]
    settings = {
        "name": "tiles",
        "shape_type": "line",
        "edge_color": "yellow",
        "edge_width": max(height, width) / 1000,
        "opacity": 0.5,
        **_place(image, "yx"),
    }
    return lines, settings, "shapes"


def show(layers: Sequence[LayerData], *, title: str) -> None:
    """Open napari with layers, and wait until it is closed.

    Raises
    ------
    ImageError
        If napari is not installed.
    """
    try:
        import napari
    except ImportError as error:
        raise ImageError(
            "looking at an image needs napari, which is not installed; "
            "pip install 'patchworks-pipeline[napari]', or write a picture"
        ) from error
    viewer = napari.Viewer(title=title)
    for data, settings, kind in layers:
        viewer.add_layer(napari.layers.Layer.create(data, settings, kind))
    napari.run()


def grid_of_labels(location: str) -> TileGrid | None:
    """Return the tiles that an OME-Zarr label image was made in, None where it does not say."""
    grid = (read_mapping(as_path(location) / "provenance.json") or {}).get("grid")
    return None if grid is None else TileGrid.from_dict(grid)


def picture_of(image: Image, labels: Image | None = None, grid: TileGrid | None = None) -> bytes:
    """Return a PNG of the middle plane with outlines and tiles: what a static look can show.

    Parameters
    ----------
    image : Image
        Of one channel.
    labels : Image, optional
        Of the same shape.
    grid : TileGrid, optional
        Tiles of `image`.

    Raises
    ------
    ImageError
        If the labels have another shape than the image.
    """
    if labels is not None and labels.shape != image.shape:
        raise ImageError(
            f"labels over an image need its shape, got {labels.shape!r} over {image.shape!r}; "
            "choose the level they were made at"
        )
    shown: Any = np.broadcast_to(np.int32(0), image.shape) if labels is None else Slices(labels)
    if grid is None:
        whole = tuple(n if a in "zyx" else 1 for n, a in zip(image.shape, image.axes, strict=True))
        grid = TileGrid(image.axes, image.shape, whole, (0,) * image.ndim)
    return overlay_picture(image, shown, grid, overview_region(image.axes, image.shape))
