"""Pictures of pixels for people: thumbnails, and outlines of objects over them.

Every picture is a uint8 array of shape (height, width, 3), which `png_bytes` encodes. Pixels may
be averaged when a picture is smaller than the image; labels never are.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal

import numpy as np
import numpy.typing as npt

from patchworks_core.errors import ImageError
from patchworks_core.tiles.grid import SPATIAL_AXES

Array = npt.NDArray[Any]
Rgb = npt.NDArray[np.uint8]

FILL_OPACITY = 0.22
"""How much of an object's colour lies over its pixels."""

MAX_ENLARGEMENT = 8
"""Largest factor by which small images are enlarged."""

BAND_PIXELS = 1 << 20
"""Pixels that are averaged at once: an overview of 8,192 squared would be 268 MB of floats."""

DASH = 6
"""Length of the light and of the dark dashes of a grid line, picture pixels."""

GRID_OPACITY = 0.65
"""Opacity of grid lines."""

GOLDEN_RATIO = 0.6180339887498949
"""Step of the hue from one id to the next: neighbours differ most, and no two ids repeat soon."""


def flatten(pixels: Array, axes: str, how: Literal["middle", "max"] = "middle") -> Array:
    """Return a 2-D view of an n-D image: the first time and channel, one plane of z.

    Parameters
    ----------
    pixels : ndarray
        Pixels or labels.
    axes : str
        Axis names of `pixels`, some of ``tczyx``.
    how : {"middle", "max"}, default "middle"
        The middle plane of z, or the maximum over z (for pixels; not for labels).

    Returns
    -------
    ndarray, 2-D
        Axes y and x; an image without y is one row.

    Raises
    ------
    ImageError
        If `how` is unknown or `axes` do not fit.

    Examples
    --------
    >>> flatten(np.arange(24).reshape(3, 2, 4), "zyx")
    array([[ 8,  9, 10, 11],
           [12, 13, 14, 15]])
    """
    if pixels.ndim != len(axes) or how not in ("middle", "max"):
        raise ImageError(
            f"a picture needs one name per axis and how='middle' or 'max', got axes {axes!r} for"
            f" shape {pixels.shape} and how={how!r}"
        )
    flat = pixels
    for axis in [a for a in axes if a not in "yx"]:
        if axis in SPATIAL_AXES and how == "max":
            flat = flat.max(axis=0)
        else:
            flat = flat[flat.shape[0] // 2 if axis in SPATIAL_AXES else 0]
    return np.atleast_2d(flat)


def to_display(pixels: Array, *, low: float | None = None, high: float | None = None) -> Rgb:
    """Stretch the contrast of pixels to 0..255.

    Parameters
    ----------
    pixels : ndarray
        Boolean, integer or real pixels; NaN is shown black.
    low, high : float, optional
        Values shown black and white; by default the percentiles 0.5 and 99.8 of `pixels`. Give
        those of the whole image where pictures are to be compared.

    Returns
    -------
    ndarray of uint8, shape of `pixels`

    Examples
    --------
    >>> to_display(np.array([[10, 20, 30]]), low=10, high=30)
    array([[  0, 128, 255]], dtype=uint8)
    """
    values = np.asarray(pixels, np.float32)
    finite = values[np.isfinite(values)]
    if finite.size == 0:
        return np.zeros(values.shape, np.uint8)
    measured = np.percentile(finite, (0.5, 99.8))
    black = float(measured[0]) if low is None else low
    white = float(measured[1]) if high is None else high
    if white <= black:  # percentiles meet on sparse images
        black, white = min(black, float(finite.min())), max(white, float(finite.max()))
    scale = 255 / (white - black) if white > black else 0.0
    shown = np.clip((np.nan_to_num(values, nan=black) - black) * scale, 0, 255)
    return np.asarray(np.rint(shown), np.uint8)


def thumbnail(pixels2d: Array, max_size: int = 512) -> Rgb:
    """Return a small grey picture, pixels averaged and stretched in contrast.

    Examples
    --------
    >>> thumbnail(np.eye(1000), max_size=100).shape
    (100, 100, 3)
    """
    grey = to_display(_shrink(pixels2d, _reduction(pixels2d.shape, max_size)))
    return np.repeat(grey[..., None], 3, axis=2)


def overlay(
    pixels2d: Array,
    labels2d: Array,
    *,
    grid_lines_y: Sequence[int] = (),
    grid_lines_x: Sequence[int] = (),
    max_size: int = 1024,
    low: float | None = None,
    high: float | None = None,
) -> Rgb:
    """Draw each object's outline and a light fill over the image, and the tile grid.

    Parameters
    ----------
    pixels2d : ndarray, 2-D
        Pixels.
    labels2d : ndarray of int, 2-D
        Labels of the same shape; an id has the same colour in every picture.
    grid_lines_y, grid_lines_x : sequence of int
        First row or column of each tile; a line is drawn on the face before it.
    max_size : int, default 1024
        Longest side of the picture; smaller images are enlarged by a whole number.
    low, high : float, optional
        As `to_display`.

    Returns
    -------
    ndarray of uint8, shape (height, width, 3)

    Raises
    ------
    ImageError
        If pixels and labels are not 2-D and of one shape.

    Examples
    --------
    >>> overlay(np.zeros((8, 8)), np.eye(8, dtype=int), grid_lines_x=[4], max_size=32).shape
    (32, 32, 3)
    """
    if pixels2d.shape != labels2d.shape or pixels2d.ndim != 2:
        raise ImageError(
            "an overlay needs pixels and labels of one 2-D shape, got"
            f" {pixels2d.shape} and {labels2d.shape}; use flatten on both"
        )
    step = _reduction(labels2d.shape, max_size)
    factor = min(MAX_ENLARGEMENT, max(1, max_size // max(1, *labels2d.shape)))
    pixels, labels = _shrink(pixels2d, step), _decimate(labels2d, step)
    grey = to_display(pixels, low=low, high=high)
    picture = np.repeat(grey[..., None], 3, axis=2).astype(np.float32)
    inside = labels != 0
    picture[inside] += FILL_OPACITY * (label_colours(labels[inside]) - picture[inside])
    picture = picture.repeat(factor, axis=0).repeat(factor, axis=1)
    labels = labels.repeat(factor, axis=0).repeat(factor, axis=1)
    outline = _outlines(labels)
    # of objects a few pixels wide opaque outlines would leave nothing to see
    opacity = 1.0 if step == 1 else 0.7
    picture[outline] += opacity * (label_colours(labels[outline]) - picture[outline])
    for axis, lines in enumerate((grid_lines_y, grid_lines_x)):
        for line in lines:
            if 0 < line < labels2d.shape[axis]:
                _draw_line(picture, axis, line * factor // step)
    return np.asarray(np.rint(picture), np.uint8)


def label_colours(labels: Array) -> npt.NDArray[np.float32]:
    """Return the colour of each label, shape (..., 3), 0..255; that of an id never changes.

    Examples
    --------
    >>> bool((label_colours(np.array([1])) != label_colours(np.array([2]))).any())
    True
    """
    hue = 6 * np.mod(labels * GOLDEN_RATIO, 1)
    # saturation and brightness take turns too, so that near hues can be told apart
    saturation = np.array([0.95, 0.6, 0.8])[labels % 3]
    brightness = np.array([1.0, 0.85])[labels // 3 % 2] * 255
    channels = []
    for shift in (5, 3, 1):
        position = np.mod(shift + hue, 6)
        rise = np.clip(np.minimum(position, 4 - position), 0, 1)
        channels.append(brightness * (1 - saturation * rise))
    return np.stack(channels, axis=-1).astype(np.float32)


def _reduction(shape: Sequence[int], max_size: int) -> int:
    """Return the whole number to divide by so that the longest side fits."""
    return max(1, -(-max(shape) // max_size))


def _offsets(shape: Sequence[int], step: int) -> tuple[slice, ...]:
    """Return every `step`-th pixel, from the middle of the first `step` where there are as many."""
    return tuple(slice(min(step // 2, n - 1), None, step) for n in shape)


def _decimate(labels: Array, step: int) -> Array:
    return labels[_offsets(labels.shape, step)]


def _shrink(pixels: Array, step: int) -> Array:
    """Average boxes of `step` pixels; the picture has the shape of `_decimate`'s."""
    if step == 1:
        return pixels
    height, width = _decimate(pixels, step).shape
    shrunk = np.empty((height, width), np.float32)
    n_rows = max(1, BAND_PIXELS // (step * step * width))
    for row in range(0, height, n_rows):
        n = min(n_rows, height - row)
        band = pixels[row * step : (row + n) * step, : width * step].astype(np.float32)
        short = (n * step - band.shape[0], width * step - band.shape[1])
        padded = np.pad(band, [(0, rest) for rest in short], mode="edge") if any(short) else band
        padded.reshape(n, step, width, step).mean(axis=(1, 3), out=shrunk[row : row + n])
    return shrunk


def _outlines(labels: Array) -> npt.NDArray[np.bool_]:
    """Return the pixels of objects that face another label."""
    outline = np.zeros(labels.shape, bool)
    for axis in (0, 1):
        differs = np.diff(labels, axis=axis) != 0
        before, after = [slice(None)] * 2, [slice(None)] * 2
        before[axis], after[axis] = slice(0, -1), slice(1, None)
        outline[tuple(before)] |= differs
        outline[tuple(after)] |= differs
    return np.asarray(outline & (labels != 0))


def _draw_line(picture: npt.NDArray[np.float32], axis: int, position: int) -> None:
    """Draw a line of light and dark dashes, one of which shows on any background."""
    line = picture[position] if axis == 0 else picture[:, position]
    light = (np.arange(len(line)) // DASH % 2 == 0)[:, None]
    line += GRID_OPACITY * (np.where(light, 255, 0) - line)


def png_bytes(rgb: Rgb) -> bytes:
    r"""Encode a picture as PNG.

    Examples
    --------
    >>> png_bytes(np.zeros((2, 2, 3), np.uint8))[:4]
    b'\x89PNG'
    """
    from io import BytesIO

    from PIL import Image

    buffer = BytesIO()
    Image.fromarray(rgb).save(buffer, format="png")
    return buffer.getvalue()
