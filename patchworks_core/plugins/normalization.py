"""Which pixel values become 0 and 1 before a neural network sees them: the same in every tile.

Networks are trained on images scaled by percentiles. Percentiles of a tile differ from its
neighbour's, so the network disagrees with itself at the seam; those of the whole image do not.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal

import numpy as np
import numpy.typing as npt

from patchworks_core.errors import SegmentationError
from patchworks_core.statistics.statistics import ImageStatistics

Array = npt.NDArray[Any]

Normalize = Literal["global", "tile"] | Sequence[float]
"""Where the two values come from: the whole image, the tile, or they are given."""


def check_normalize(normalize: object, percentiles: object) -> None:
    """Raise SegmentationError where these do not say which values become 0 and 1."""
    if not (isinstance(normalize, str) and normalize in ("global", "tile")):
        _pair("normalize", normalize, "'global', 'tile', or two values (low, high)")
    low, high = _pair("percentiles", percentiles, "two percentiles")
    if not 0 <= low < high <= 100:
        raise SegmentationError(
            f"percentiles must be within 0 to 100, the lower first, got {percentiles!r}"
        )


def _pair(name: str, value: object, rule: str) -> tuple[float, float]:
    """Return two different finite numbers, or raise."""
    if isinstance(value, Sequence) and not isinstance(value, str) and len(value) == 2:
        low, high = value
        are_numbers = all(isinstance(v, int | float) for v in value)
        if are_numbers and np.isfinite([low, high]).all() and low != high:
            return float(low), float(high)
    raise SegmentationError(f"{name} must be {rule}, got {value!r}")


def value_range(
    tile: Array,
    *,
    normalize: Normalize,
    percentiles: Sequence[float],
    statistics: ImageStatistics | None,
) -> tuple[float, float] | None:
    """Return the values that become 0 and 1, or None where the pixels are all the same.

    Parameters
    ----------
    tile : ndarray
        Read only for ``normalize="tile"``.
    normalize : {"global", "tile"} or (low, high)
        ``global`` takes percentiles of the whole image.
    percentiles : (float, float)
        Lower and upper, 0 to 100.
    statistics : ImageStatistics, optional
        Of the whole image.

    Raises
    ------
    SegmentationError
        If the whole image's percentiles are asked for and not known, or are one value.

    Examples
    --------
    >>> pixels = np.arange(101.0)
    >>> value_range(pixels, normalize="tile", percentiles=(1, 99), statistics=None)
    (1.0, 99.0)
    """
    check_normalize(normalize, percentiles)
    if not isinstance(normalize, str):
        low, high = normalize
        return float(low), float(high)
    if normalize == "tile":
        finite = tile[np.isfinite(tile)]
        low, high = np.percentile(finite, percentiles).tolist() if finite.size else (0.0, 0.0)
        return (low, high) if high > low else None
    if statistics is None:
        raise SegmentationError(
            "normalize='global' takes percentiles of the whole image, and got statistics=None; run "
            "it through tile_process or the pipeline, which measure them, or pass normalize=(low, "
            "high), the values that become 0 and 1"
        )
    if statistics.minimum == statistics.maximum:
        return None
    low, high = (statistics.percentile(q) for q in percentiles)
    if low == high:
        raise SegmentationError(
            f"percentiles {tuple(percentiles)!r} of the whole image are both {low!r}, while its "
            f"pixels reach from {statistics.minimum!r} to {statistics.maximum!r}: nearly all are "
            "background; pass percentiles further out, such as (1, 99.99), or normalize=(low, high)"
        )
    return low, high


def finite_pixels(tile: Array, fill: float) -> npt.NDArray[np.float32]:
    """Return the pixels as float32, NaN and infinities replaced; one NaN would spread in a network.

    Examples
    --------
    >>> finite_pixels(np.array([1.0, np.nan]), 0)
    array([1., 0.], dtype=float32)
    """
    pixels = tile.astype(np.float32)
    if tile.dtype.kind == "f":
        pixels[~np.isfinite(pixels)] = fill
    return pixels
