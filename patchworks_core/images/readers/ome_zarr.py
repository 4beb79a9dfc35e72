"""OME-Zarr 0.1 to 0.5: which array a level is, and what the metadata says about it.

Metadata are read through `ome-zarr-models`, which checks them against the specification. Channel
names are the exception: neither version specifies ``omero.channels.label``, so the models have no
field for it.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import zarr

from patchworks_core.errors import ImageError
from patchworks_core.images.readers.ngff import (
    MULTISCALES,
    is_uncalibrated,
    ome_attributes,
    parse_attributes,
    stated_version,
)
from patchworks_core.images.readers.node_paths import member
from patchworks_core.images.readers.opened import Opened, check_level, check_size, file_axes
from patchworks_core.tiles.grid import AXES, SPATIAL_AXES

if TYPE_CHECKING:
    from ome_zarr_models.v04.multiscales import Multiscale as Multiscale04
    from ome_zarr_models.v05.multiscales import Multiscale as Multiscale05

    Multiscale = Multiscale04 | Multiscale05

_CORRECT = "correct them, or open the array of one level by its own path with axes="
_AXIS_OF_TYPE = {"channel": "c", "time": "t"}


@dataclass(frozen=True, slots=True)
class _Metadata:
    """The OME part of a group's attributes."""

    version: str
    multiscale: Multiscale
    labels: tuple[str, ...]
    is_label_image: bool
    is_calibrated: bool


def open_multiscale(
    group: zarr.Group,
    level: int,
    axes: str | None,
    where: str,
    stamp: Callable[[zarr.Array[Any]], Callable[[], Any]],
    number: int = 0,
) -> Opened:
    """Open one level of a multiscale group.

    Parameters
    ----------
    group : zarr.Group
        A group that describes multiscales; a label image is one too.
    level : int
        Which resolution; 0 is full.
    axes : str, optional
        Letters that win over those of the metadata, in file order.
    where : str
        The image, for messages.
    stamp : callable
        Gives the `Opened.stamp` of an array.
    number : int
        Which multiscale, where the group has several.

    Returns
    -------
    Opened

    Raises
    ------
    ImageError
        If the metadata are not valid OME-Zarr, or there is no such level.
    """
    metadata = _read_metadata(group, where, number)
    datasets = metadata.multiscale.datasets
    arrays = [_level_array(group, dataset.path, where) for dataset in datasets]
    check_level(level, [array.shape for array in arrays], where)
    array = arrays[level]
    check_size(array.shape, array.chunks, array.dtype.itemsize, where)
    names = _axis_names(metadata.multiscale)
    if len(names) != array.ndim:
        raise ImageError(
            f"OME-Zarr metadata need one axis per dimension, got axes {names!r} for shape "
            f"{array.shape!r} of {datasets[level].path!r} in {where}"
        )
    letters = file_axes(names, array.shape, axes, where)
    size, translation = _geometry(metadata.multiscale, level, letters)
    if not metadata.is_calibrated:
        size, translation = {}, {}
    units = zip(letters, (axis.unit for axis in metadata.multiscale.axes), strict=True)
    n_channels = array.shape[letters.index("c")] if "c" in letters else 0
    return Opened(
        pixels=array,
        axes=letters,
        format=f"OME-Zarr {metadata.version}",
        stamp=stamp(array),
        chunks=tuple(array.chunks),
        # Names that do not fit the channels would name the wrong ones.
        channel_names=metadata.labels if len(metadata.labels) == n_channels else (),
        pixel_size=size,
        unit={a: str(u) for a, u in units if u is not None and _measured(a)},
        translation=translation,
        level=level,
        n_levels=len(arrays),
        is_label_image=metadata.is_label_image,
    )


def _read_metadata(group: zarr.Group, where: str, number: int) -> _Metadata:
    """Parse a multiscale of a group with the model of its version."""
    version, ome = ome_attributes(group)
    multiscales = parse_attributes(group, MULTISCALES, where, _CORRECT)
    labels = _channel_labels(ome.get("omero"))
    is_calibrated = not is_uncalibrated(ome)
    version = version if is_calibrated else stated_version(ome, MULTISCALES) or version
    multiscale = multiscales[number]
    return _Metadata(version, multiscale, labels, "image-label" in ome, is_calibrated)


def _channel_labels(omero: Any) -> tuple[str, ...]:
    """Return the channel names of an ``omero`` block, if every channel has one."""
    channels = omero.get("channels") if isinstance(omero, dict) else None
    if not isinstance(channels, Sequence):
        return ()
    labels = [c.get("label") if isinstance(c, dict) else None for c in channels]
    return tuple(map(str, labels)) if all(label is not None for label in labels) else ()


def _level_array(group: zarr.Group, path: str, where: str) -> zarr.Array[Any]:
    """Return the array that a dataset path names."""
    node = member(group, path, where)
    if node is None:
        raise ImageError(
            f"the metadata name a level {path!r} that is not in {where}; the copy may be incomplete"
        )
    if not isinstance(node, zarr.Array):
        raise ImageError(f"the metadata name a level {path!r} that is not an array in {where}")
    return node


def _axis_names(multiscale: Multiscale) -> list[str]:
    """Return the names of the axes, a channel or time axis by its type whatever it is called."""
    return [_AXIS_OF_TYPE.get(axis.type or "", str(axis.name)) for axis in multiscale.axes]


def _geometry(
    multiscale: Multiscale, level: int, letters: str
) -> tuple[dict[str, float], dict[str, float]]:
    """Compose pixel size and translation of a level, the level's transformations coming first."""
    scale = [1.0] * len(letters)
    offset = [0.0] * len(letters)
    has_offset = False
    for transform in (
        *multiscale.datasets[level].coordinateTransformations,
        *(multiscale.coordinateTransformations or ()),
    ):
        # A transformation may also be a path to an array, which NGFF names but does not define.
        factors = getattr(transform, "scale", None)
        shifts = getattr(transform, "translation", None)
        if isinstance(factors, list):
            scale = [a * b for a, b in zip(scale, factors, strict=True)]
            offset = [a * b for a, b in zip(offset, factors, strict=True)]
        elif isinstance(shifts, list):
            offset = [a + b for a, b in zip(offset, shifts, strict=True)]
            has_offset = True
    sizes = {a: s for a, s in zip(letters, scale, strict=True) if _measured(a)}
    translation = {a: o for a, o in zip(letters, offset, strict=True) if _measured(a)}
    return sizes, translation if has_offset else {}


def _measured(letter: str) -> bool:
    """Tell whether positions along an axis are lengths or times."""
    return letter in SPATIAL_AXES or letter == AXES[0]
