"""Units of length, and the pixel size that somebody gives in place of what a file says."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import TypeAlias

from patchworks_core.errors import ImageError
from patchworks_core.tiles.grid import SPATIAL_AXES
from patchworks_core.tiles.numbers import finite_number

MICROMETERS = {
    "angstrom": 1e-4,
    "nanometer": 1e-3,
    "nm": 1e-3,
    "micrometer": 1.0,
    "um": 1.0,
    "µm": 1.0,
    "millimeter": 1e3,
    "mm": 1e3,
    "centimeter": 1e4,
    "meter": 1e6,
}
"""Micrometres per unit of length; the long names are OME-NGFF's (0.5, section "axes")."""

PixelSize: TypeAlias = Mapping[str, float] | Sequence[float] | float
"""Micrometers per pixel: of some axes by name, of each spatial axis in order, or of all alike."""


def pixel_sizes(pixel_size: PixelSize, axes: str, where: str) -> dict[str, float]:
    """Return the size of a pixel that was given, per axis, in micrometers.

    Parameters
    ----------
    pixel_size : mapping of str to float, sequence of float, or float
    axes : str
        Of the image, in the order in which a sequence goes along them.
    where : str
        The image, for messages.

    Raises
    ------
    ImageError
        If it names other than spatial axes of the image, has another number of sizes, or one that
        is not greater than 0.

    Examples
    --------
    >>> pixel_sizes((0.5, 0.1, 0.1), "tzyx", "an image")
    {'z': 0.5, 'y': 0.1, 'x': 0.1}
    >>> pixel_sizes(0.1, "yx", "an image"), pixel_sizes({"z": 2}, "zyx", "an image")
    ({'y': 0.1, 'x': 0.1}, {'z': 2.0})
    """
    spatial = [axis for axis in axes if axis in SPATIAL_AXES]
    if isinstance(pixel_size, Mapping):
        sizes = dict(pixel_size)
    elif isinstance(pixel_size, Sequence):
        sizes = dict(zip(spatial, pixel_size, strict=False))
    else:
        sizes = dict.fromkeys(spatial, pixel_size)
    is_short = isinstance(pixel_size, Sequence) and len(pixel_size) != len(spatial)
    if not sizes or set(sizes) - set(spatial) or is_short:
        raise ImageError(
            f"pixel_size= needs micrometers of the axes {''.join(spatial)!r}, by name or one for "
            f"each, got {pixel_size!r} for {where}"
        )
    for axis, size in sizes.items():
        if finite_number(f"pixel_size of {axis!r}", size, least=0, error=ImageError) == 0:
            raise ImageError(f"pixel_size of {axis!r} must be greater than 0, got 0 for {where}")
    return {axis: float(size) for axis, size in sizes.items()}


def sizes_in_words(axes: str, pixel_size: Mapping[str, float], unit: Mapping[str, str]) -> str:
    """Say the sizes of a pixel.

    Examples
    --------
    >>> sizes_in_words("zyx", {"y": 0.5, "x": 0.25}, {"y": "micrometer"})
    'y 0.5 micrometer, x 0.25'
    """
    axes_of_size = [axis for axis in axes if axis in pixel_size]
    words = (f"{axis} {pixel_size[axis]:.4g} {unit.get(axis, '')}" for axis in axes_of_size)
    return ", ".join(word.strip() for word in words) or "not recorded"
