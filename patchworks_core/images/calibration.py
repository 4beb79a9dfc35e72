"""Calibration: how large a pixel is in micrometres, and how many pixels a size is."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from math import ceil, floor, prod
from typing import Any, Literal

import numpy as np
import numpy.typing as npt

from patchworks_core.errors import ImageError, PlanError
from patchworks_core.images.image import Image
from patchworks_core.images.units import MICROMETERS
from patchworks_core.tiles.grid import SPATIAL_AXES
from patchworks_core.tiles.numbers import finite_number

Array = npt.NDArray[Any]

LengthUnit = Literal["pixels", "micrometers"]
"""What a length, area or volume is given in."""


def pixel_size_um(
    names: Sequence[str], pixel_size: Mapping[str, float], unit: Mapping[str, str]
) -> list[float]:
    """Return the pixel size per axis in micrometres, or nothing unless all are known lengths."""
    has_sizes = all(pixel_size.get(name) and unit.get(name) in MICROMETERS for name in names)
    return [pixel_size[name] * MICROMETERS[unit[name]] for name in names] if has_sizes else []


def sizes_um(image: Image) -> list[float]:
    """Return the size of a pixel per spatial axis, in micrometers.

    Raises
    ------
    ImageError
        If the image does not say.
    """
    names = [axis for axis in image.axes if axis in SPATIAL_AXES]
    sizes = pixel_size_um(names, image.pixel_size, image.unit)
    if not sizes:
        raise ImageError(
            f"micrometers need a pixel size on each of the axes {''.join(names)!r}, got "
            f"{image.pixel_size!r} with units {image.unit!r} in {image.where}; give pixels, or "
            "say it with pixel_size= where the image is opened, or open a label image that is "
            "calibrated, such as OME-Zarr by its group"
        )
    return sizes


def check_unit(unit: str) -> None:
    """Raise PlanError unless a unit is one of `LengthUnit`."""
    if unit not in ("pixels", "micrometers"):
        raise PlanError(f"unit must be 'pixels' or 'micrometers', got {unit!r}")


_ROUNDING = 1e-9
"""A size this close to a whole number of pixels is that number."""


@dataclass(frozen=True, slots=True)
class SizeLimits:
    """Which sizes are kept, in pixels."""

    least: int
    """Fewer pixels are too few."""

    most: int | None
    """More pixels are too many; None is no limit."""

    @classmethod
    def of(
        cls,
        image: Image,
        min_size: float | None,
        max_size: float | None,
        unit: LengthUnit,
    ) -> SizeLimits:
        """Return limits in pixels.

        Raises
        ------
        PlanError
            If a limit is below 0, or nothing lies between them.
        ImageError
            If they are micrometers and the image is not calibrated.
        """
        check_unit(unit)
        if max_size == np.inf:
            max_size = None
        for name, value in (("min_size", min_size), ("max_size", max_size)):
            if value is not None:
                finite_number(name, value, least=0)
        if min_size is not None and max_size is not None and min_size > max_size:
            raise PlanError(
                f"min_size must be at most max_size, got {min_size!r} and {max_size!r}; every "
                "object would be removed"
            )
        has_limits = min_size is not None or max_size is not None
        pixel = prod(sizes_um(image)) if unit == "micrometers" and has_limits else 1.0
        least = ceil((min_size or 0) / pixel * (1 - _ROUNDING))
        if max_size is None:
            return cls(least, None)
        return cls(least, floor(max_size / pixel * (1 + _ROUNDING)))

    def keep(self, sizes: Array) -> Array:
        """Return which sizes are kept, bool."""
        kept: Array = sizes >= self.least
        return kept if self.most is None else kept & (sizes <= self.most)
