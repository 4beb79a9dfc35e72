"""Labels to work on: opened from anywhere, cut into tiles, every region checked as it is read."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from math import isclose, prod
from typing import Any

import numpy as np
import numpy.typing as npt

from patchworks_core.errors import ImageError, PlanError
from patchworks_core.images.calibration import (
    LengthUnit,
    check_unit,
    sizes_um,
)
from patchworks_core.images.image import DEFAULT_LEVEL, Image, open_all_channels
from patchworks_core.images.units import MICROMETERS, PixelSize
from patchworks_core.tiles.grid import SPATIAL_AXES, Tile, TileGrid, plan_grid
from patchworks_core.tiles.numbers import finite_number
from patchworks_core.tiles.regions import Region

Array = npt.NDArray[Any]

TILE_PIXELS = 1 << 22
"""Tiles grow from chunks to at most this many pixels (2048 x 2048): 16 MB of int32."""

SMALLEST_TILE = 64
"""Length of a tile before it grows, where the labels have no chunks."""


@dataclass(frozen=True, slots=True)
class LabelSource:
    """A label image, and the tiles it is worked on by."""

    image: Image

    grid: TileGrid
    """Without halos: who needs one grows the cores."""

    @classmethod
    def open(
        cls,
        labels: Any,
        *,
        level: int = DEFAULT_LEVEL,
        axes: str | None = None,
        pixel_size: PixelSize | None = None,
        tile_shape: Sequence[int] | int | None = None,
    ) -> LabelSource:
        """Open labels.

        Parameters
        ----------
        labels : array, path or URL
            Anything `open_image` opens that holds whole numbers; all channels.
        level, axes, pixel_size
            As in `open_image`.
        tile_shape : int or tuple of int, optional
            As in `plan_grid`; None grows the chunks to `TILE_PIXELS`.

        Raises
        ------
        ImageError
            If the pixels are no labels.
        """
        image = open_all_channels(labels, level=level, axes=axes, pixel_size=pixel_size)
        if image.dtype.kind not in "bui":
            raise ImageError(
                f"labels are whole numbers, got {str(image.dtype)!r} in {image.where}; convert "
                "them to integers first"
            )
        grid = plan_grid(
            image.axes,
            image.shape,
            tile_shape=_default_tile(image) if tile_shape is None else tile_shape,
        )
        return cls(image, grid)

    @property
    def name(self) -> str:
        """The label image, for messages."""
        return self.image.where

    def read(self, region: Region) -> Array:
        """Read labels, int32 where the type of the pixels fits into it, else int64.

        Raises
        ------
        ImageError
            If a pixel is below 0 or beyond int64.
        """
        pixels = self.image.read(region)
        if pixels.size and pixels.dtype.kind == "i" and pixels.min() < 0:
            raise ImageError(f"labels are >= 0, got {pixels.min()} in {self.name}, {region}")
        if pixels.dtype == np.uint64 and pixels.size and pixels.max() > np.iinfo(np.int64).max:
            raise ImageError(
                f"labels fit into int64, got {pixels.max()} in {self.name}, {region}; renumber them"
            )
        return pixels.astype(np.int64 if self.is_wide else np.int32, copy=False)

    @property
    def is_wide(self) -> bool:
        """Whether ids may be beyond int32, as far as the type of the pixels tells."""
        return not np.can_cast(self.image.dtype, np.int32)

    def plane(self, tile: Tile) -> tuple[int, ...]:
        """Return the index of a tile along time and channel."""
        return tuple(
            i
            for i, axis in zip(tile.index, self.grid.axes, strict=True)
            if axis not in SPATIAL_AXES
        )

    def halo(self, reach: Sequence[int]) -> tuple[int, ...]:
        """Spread one value per spatial axis over all axes."""
        values = iter(reach)
        return tuple(next(values) if axis in SPATIAL_AXES else 0 for axis in self.grid.axes)


def _default_tile(image: Image) -> tuple[int, ...]:
    """Double the shortest side of a chunk while the tile is small enough."""
    chunks = image.chunks or (SMALLEST_TILE,) * image.ndim
    spatial = [i for i, axis in enumerate(image.axes) if axis in SPATIAL_AXES]
    tile = [
        min(c, n) if i in spatial else 1
        for i, (c, n) in enumerate(zip(chunks, image.shape, strict=True))
    ]
    while True:
        growing = [i for i in spatial if tile[i] < image.shape[i]]
        if not growing or 2 * prod(tile) > TILE_PIXELS:
            return tuple(tile)
        shortest = min(growing, key=lambda i: tile[i])
        tile[shortest] = min(2 * tile[shortest], image.shape[shortest])


def spacing_of(
    source: LabelSource, spacing: Sequence[float] | float | None, unit: LengthUnit
) -> tuple[float, ...]:
    """Return the size of a pixel per spatial axis, in what lengths are given in.

    Parameters
    ----------
    source : LabelSource
    spacing : float or sequence of float, optional
        As asked for; None is 1 for pixels, and what the image says for micrometers.
    unit : {"pixels", "micrometers"}

    Raises
    ------
    PlanError
        If the values are no sizes.
    ImageError
        If the image has no pixel size in micrometers.
    """
    check_unit(unit)
    names = [axis for axis in source.grid.axes if axis in SPATIAL_AXES]
    if spacing is None:
        return tuple(sizes_um(source.image)) if unit == "micrometers" else (1.0,) * len(names)
    sizes = [spacing] * len(names) if np.ndim(spacing) == 0 else spacing
    lengths = [finite_number("spacing", size) for size in sizes]  # type: ignore[union-attr]
    if len(lengths) != len(names) or not all(size > 0 for size in lengths):
        raise PlanError(
            f"spacing needs one size above 0 per axis of {''.join(names)!r}, got {spacing!r}"
        )
    return tuple(lengths)


def check_same_pixels(a: Image, b: Image) -> None:
    """Raise ImageError unless the pixels of two images are the same places; channels aside.

    Sizes and positions are compared where both images know them, to a thousandth of a pixel size
    and of a pixel.
    """
    lengths = [
        {n: m for n, m in zip(image.axes, image.shape, strict=True) if n != "c"} for image in (a, b)
    ]
    if lengths[0] != lengths[1]:
        raise ImageError(
            f"two images of the same pixels have the same axes and shape, got {a.axes!r} "
            f"{a.shape} in {a.where} and {b.axes!r} {b.shape} in {b.where}; crop or resample "
            "one to the other, or say what its axes are"
        )
    for axis in SPATIAL_AXES:
        sizes = [_micrometers(image, image.pixel_size, axis) for image in (a, b)]
        if None in sizes:
            continue
        places = [_micrometers(image, image.translation, axis) or 0.0 for image in (a, b)]
        if not isclose(sizes[0], sizes[1], rel_tol=1e-3):  # type: ignore[arg-type]
            _fail("size", axis, (a, b), sizes)
        if not isclose(places[0], places[1], rel_tol=0, abs_tol=1e-3 * min(sizes)):  # type: ignore
            _fail("position", axis, (a, b), places)


def _micrometers(image: Image, values: dict[str, float], axis: str) -> float | None:
    """Return a length of an image in micrometers, None where it does not say."""
    factor = MICROMETERS.get(image.unit.get(axis, ""))
    return None if factor is None or axis not in values else values[axis] * factor


def _fail(what: str, axis: str, images: tuple[Image, Image], values: Sequence[Any]) -> None:
    a, b = (f"{v:g} µm in {i.where}" for i, v in zip(images, values, strict=True))
    raise ImageError(
        f"two images of the same pixels have one pixel {what} on axis {axis!r}, got {a} and {b}; "
        "correct the metadata of the wrong one, or open its array, which has none"
    )
