"""What an OME-Zarr image says of itself: axes, the place of every level, channels and contrast.

Checked against the models of `ome-zarr-models` before anything is written.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from patchworks_core.images.image import Image
from patchworks_core.ome_zarr.label_image import OmeVersion, axis_attributes

ONE_COLOUR = ("FFFFFF",)
COLOURS = ("00FFFF", "FF00FF", "FFFF00", "FF0000", "00FF00", "0000FF")
"""Colours of channels, in turn; cyan and magenta can be told apart by everybody."""

RGB = ("FF0000", "00FF00", "0000FF")
"""Colours of three unnamed channels of 8 bits: a photograph."""

Window = tuple[float, float]
"""Values shown black and white."""


def image_attributes(
    image: Image,
    steps: Sequence[Sequence[int]],
    *,
    name: str,
    version: OmeVersion,
    windows: Sequence[Window],
) -> dict[str, Any]:
    """Return the attributes of an image group, checked against the OME-NGFF models.

    Parameters
    ----------
    image : Image
        The full resolution; its axes, calibration and channel names are taken.
    steps : sequence of tuple of int
        Pixels of a level averaged into one of the next, per axis and level.
    name : str
        Of the image.
    version : {"0.5", "0.4"}
    windows : sequence of (float, float)
        Contrast of each channel.

    Returns
    -------
    dict
        JSON-ready. The centre of the first pixel of a level lies in the middle of the pixels it
        was averaged from, which is what its translation says.
    """
    multiscale = {
        "name": name,
        "axes": [axis_attributes(axis, image.unit) for axis in image.axes],
        "datasets": _datasets(image, steps),
        "type": "local mean",
    }
    ome: dict[str, Any] = {"multiscales": [multiscale]}
    if "c" in image.axes:
        ome["omero"] = {"channels": _channels(image, windows), "rdefs": {"model": "color"}}
    if version == "0.5":
        ome = {"version": version, **ome}
        _check_05(ome)
        return {"ome": ome}
    multiscale["version"] = version
    _check_04(ome)
    return ome


def _datasets(image: Image, steps: Sequence[Sequence[int]]) -> list[dict[str, Any]]:
    """Return path, scale and translation of every level."""
    size = np.array([image.pixel_size.get(axis, 1.0) for axis in image.axes])
    origin = np.array([image.translation.get(axis, 0.0) for axis in image.axes])
    datasets = []
    factor = np.ones(len(image.axes))
    for level, step in enumerate([(1,) * len(image.axes), *steps]):
        factor = factor * np.array(step)
        translation = origin + (factor - 1) / 2 * size
        transformations: list[dict[str, Any]] = [
            {"type": "scale", "scale": (size * factor).tolist()}
        ]
        if translation.any():
            transformations.append({"type": "translation", "translation": translation.tolist()})
        datasets.append({"path": str(level), "coordinateTransformations": transformations})
    return datasets


def _channels(image: Image, windows: Sequence[Window]) -> list[dict[str, Any]]:
    """Return name, colour and contrast of every channel."""
    n_channels = len(windows)
    names = image.channel_names or tuple(f"channel {i}" for i in range(n_channels))
    colours: tuple[str, ...] = ONE_COLOUR if n_channels == 1 else COLOURS
    if n_channels == 3 and not image.channel_names and image.dtype == np.uint8:
        colours = RGB
    channels = []
    for i, (name, (start, end)) in enumerate(zip(names, windows, strict=True)):
        low, high = _range(image.dtype, start, end)
        window = {"min": low, "max": high, "start": start, "end": end}
        channels.append(
            {"label": name, "color": colours[i % len(colours)], "active": True, "window": window}
        )
    return channels


def _range(dtype: np.dtype[Any], start: float, end: float) -> Window:
    """Return the smallest and the largest value that pixels may have."""
    if dtype.kind in "iu":
        return float(np.iinfo(dtype).min), float(np.iinfo(dtype).max)
    return (0.0, 1.0) if dtype.kind == "b" else (start, end)


def contrast(pixels: np.ndarray[Any, Any]) -> Window:
    """Return the percentiles 0.5 and 99.8 of finite pixels, apart where all are the same.

    Examples
    --------
    >>> contrast(np.full(4, 7))
    (7.0, 8.0)
    """
    values = pixels[np.isfinite(pixels)] if pixels.dtype.kind == "f" else pixels
    if values.size == 0:
        return 0.0, 1.0
    low, high = (float(v) for v in np.percentile(values.astype(np.float64), (0.5, 99.8)))
    return low, high if high > low else low + 1


def _check_05(ome: dict[str, Any]) -> None:
    from ome_zarr_models.common.omero import Omero
    from ome_zarr_models.v05.image import ImageAttrs

    ImageAttrs.model_validate(ome)
    if "omero" in ome:
        Omero.model_validate(ome["omero"])


def _check_04(attributes: dict[str, Any]) -> None:
    from ome_zarr_models.v04.image import ImageAttrs

    ImageAttrs.model_validate(attributes)
