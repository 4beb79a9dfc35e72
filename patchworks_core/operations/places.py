"""Places: where the pixels that an operation is given lie, and numbers that differ by axis."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TypeAlias

from patchworks_core.errors import ImageError
from patchworks_core.tiles.grid import SPATIAL_AXES
from patchworks_core.tiles.regions import Region

PerAxis: TypeAlias = float | Sequence[float] | Mapping[str, float]
"""One number for all spatial axes, one per axis counted from the last, or numbers by axis name."""


def per_axis(name: str, value: PerAxis, axes: str, *, missing: float = 0) -> tuple[float, ...]:
    """Return one number per axis.

    Parameters
    ----------
    name : str
        What the numbers are, for messages.
    value : float, sequence or mapping
        One number for every axis; a sequence for the last axes; or numbers by name, of which those
        of axes that are not there are left out.
    axes : str
        Some of ``zyx``.
    missing : float
        Number of the axes that `value` does not speak of.

    Raises
    ------
    ImageError
        If there are more numbers than axes, or a name is no axis.

    Examples
    --------
    >>> per_axis("sigma", 2, "zyx"), per_axis("sigma", (2, 3), "zyx")
    ((2, 2, 2), (0, 2, 3))
    >>> per_axis("size", {"z": 3}, "zyx", missing=1)
    (3, 1, 1)
    """
    if isinstance(value, Mapping):
        if not set(value) <= set(SPATIAL_AXES):
            raise ImageError(f"{name} by axis is given for {SPATIAL_AXES!r} only, got {value!r}")
        return tuple(value.get(axis, missing) for axis in axes)
    if not isinstance(value, Sequence):
        return (value,) * len(axes)
    if len(value) > len(axes):
        raise ImageError(
            f"{name} needs one number, or one per axis of {axes!r} counted from the last, got "
            f"{tuple(value)!r}"
        )
    return (missing,) * (len(axes) - len(value)) + tuple(value)


@dataclass(frozen=True, slots=True)
class TilePlace:
    """Where the pixels that an operation is given lie in their image."""

    axes: str
    """Spatial axes of the image, some of ``zyx``."""

    region: Region
    """The pixels, per axis of `axes`."""

    image_shape: tuple[int, ...]
    """Pixels of the whole image, per axis of `axes`."""

    index: Mapping[str, int] = field(default_factory=dict)
    """Time point and channel by axis name, where the image has them."""

    @classmethod
    def whole(cls, shape: Sequence[int]) -> TilePlace:
        """Return the place of a whole image of one to three spatial axes.

        Raises
        ------
        ImageError
            If there are more.
        """
        if not 1 <= len(shape) <= len(SPATIAL_AXES):
            raise ImageError(
                f"an operation sees one to three spatial axes at a time, got shape {tuple(shape)!r}"
                "; process_lazily takes time and channel apart"
            )
        axes = SPATIAL_AXES[-len(shape) :]
        return cls(axes, Region((0,) * len(shape), tuple(shape)), tuple(shape))
