"""What OME-Zarr images and label images say of themselves: axes, levels, channels and contrast.

Checked against the models of `ome-zarr-models` before anything is written.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np

from patchworks_core.errors import PlanError
from patchworks_core.files.storage import ZarrFormat
from patchworks_core.images.image import Image
from patchworks_core.tiles.grid import SPATIAL_AXES

OmeVersion = Literal["0.4", "0.5"]

ZARR_FORMATS: dict[OmeVersion, ZarrFormat] = {"0.4": 2, "0.5": 3}
"""Zarr format that each OME-NGFF version asks for."""

ONE_COLOUR = ("FFFFFF",)
COLOURS = ("00FFFF", "FF00FF", "FFFF00", "FF0000", "00FF00", "0000FF")
"""Colours of channels, in turn; cyan and magenta can be told apart by everybody."""

RGB = ("FF0000", "00FF00", "0000FF")
"""Colours of three unnamed channels of 8 bits: a photograph."""

Window = tuple[float, float]
"""Values shown black and white."""


def check_axes(axes: str) -> None:
    """Raise PlanError unless OME-Zarr can hold an image of these axes.

    References
    ----------
    OME-NGFF 0.5, section "multiscales": two or three axes of type space.
    """
    if sum(axis in SPATIAL_AXES for axis in axes) < 2:
        raise PlanError(
            f"OME-Zarr needs two or three spatial axes, got {axes!r}; tile_process writes arrays "
            "of any number of axes"
        )


@dataclass(frozen=True, slots=True)
class Levels:
    """Where the pixels of a pyramid lie."""

    axes: str
    """A subset of ``tczyx``, in that order."""

    steps: Sequence[Sequence[int]]
    """Pixels of a level that become one of the next, per axis and level."""

    pixel_size: Mapping[str, float]
    """Of the full resolution, per axis that is calibrated."""

    unit: Mapping[str, str]
    """Of pixel size and translation, per axis that has one."""

    translation: Mapping[str, float]
    """Place of the first pixel of the full resolution."""

    def multiscale(self, name: str, kind: str) -> dict[str, Any]:
        """Return the ``multiscales`` entry; `kind` says how a level is made from the one above."""
        return {
            "name": name,
            "axes": [self._axis(axis) for axis in self.axes],
            "datasets": self._datasets(),
            "type": kind,
        }

    def _axis(self, axis: str) -> dict[str, str]:
        kind = "space" if axis in SPATIAL_AXES else {"t": "time", "c": "channel"}[axis]
        return {
            "name": axis,
            "type": kind,
            **({"unit": self.unit[axis]} if axis in self.unit else {}),
        }

    def _datasets(self) -> list[dict[str, Any]]:
        """Return path, scale and translation of every level.

        The centre of the first pixel of a level lies in the middle of the pixels it was made from,
        which is what its translation says.
        """
        size = np.array([self.pixel_size.get(axis, 1.0) for axis in self.axes])
        origin = np.array([self.translation.get(axis, 0.0) for axis in self.axes])
        datasets = []
        factor = np.ones(len(self.axes))
        for level, step in enumerate([(1,) * len(self.axes), *self.steps]):
            factor = factor * np.array(step)
            translation = origin + (factor - 1) / 2 * size
            transformations: list[dict[str, Any]] = [
                {"type": "scale", "scale": (size * factor).tolist()}
            ]
            if translation.any():
                transformations.append({"type": "translation", "translation": translation.tolist()})
            datasets.append({"path": str(level), "coordinateTransformations": transformations})
        return datasets


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
        JSON-ready.
    """
    levels = Levels(image.axes, steps, image.pixel_size, image.unit, image.translation)
    ome: dict[str, Any] = {"multiscales": [levels.multiscale(name, "local mean")]}
    if "c" in image.axes:
        ome["omero"] = {"channels": _channels(image, windows), "rdefs": {"model": "color"}}
    return _checked(ome, version)


def label_attributes(levels: Levels, *, name: str, version: OmeVersion) -> dict[str, Any]:
    """Return the attributes of a label group, checked against the OME-NGFF models."""
    multiscale = levels.multiscale(name, "most frequent id")
    return _checked({"multiscales": [multiscale], "image-label": {"version": version}}, version)


def _checked(ome: dict[str, Any], version: OmeVersion) -> dict[str, Any]:
    """Return attributes as a version nests them, checked against its models."""
    from ome_zarr_models import v04, v05
    from ome_zarr_models.common.omero import Omero

    is_label = "image-label" in ome
    if version == "0.4":
        for multiscale in ome["multiscales"]:
            multiscale["version"] = version
        old: Any = v04.image_label.ImageLabelAttrs if is_label else v04.image.ImageAttrs
        old.model_validate(ome)
        return ome
    ome = {"version": version, **ome}
    model: Any = v05.image_label.ImageLabelAttrs if is_label else v05.image.ImageAttrs
    model.model_validate(ome)
    if "omero" in ome:
        Omero.model_validate(ome["omero"])
    return {"ome": ome}


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
