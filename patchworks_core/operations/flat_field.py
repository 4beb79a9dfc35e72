"""The flat field: illumination measured in the image, as what its planes have in common.

1. The mean or median of each pixel over time points, z planes and fields, in bands of lines, so
   that memory is bounded whatever the number of planes.
2. The dark field is subtracted, and what is left of the objects is smoothed away.
3. The result is divided by its mean.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import product
from typing import Any, Literal, Protocol, TypeAlias

import numpy as np
import numpy.typing as npt

from patchworks_core.errors import ImageError
from patchworks_core.tiles.regions import Region

Array: TypeAlias = npt.NDArray[Any]

Plane: TypeAlias = "tuple[Planes, tuple[int, ...]]"
"""An image and the index of one plane, one number per axis before y and x."""

_TRUNCATE = 4.0
"""Where the Gaussian is cut off, in sigmas."""


class Planes(Protocol):
    """What a flat field is measured in, such as a `patchworks_core.images.image.Image`."""

    @property
    def axes(self) -> str:
        """Axes that are read, a subset of ``tczyx`` in that order."""

    @property
    def shape(self) -> tuple[int, ...]:
        """Pixels per axis of `axes`."""

    @property
    def chunks(self) -> tuple[int, ...] | None:
        """Pixels of a storage chunk per axis of `axes`, None where there are none."""

    def read(self, region: Region) -> Array:
        """Read a region."""


def estimate_flat_field(
    *images: Planes,
    statistic: Literal["mean", "median"] = "median",
    sigma: float | None = None,
    dark_field: npt.ArrayLike = 0.0,
    max_planes: int = 128,
    memory_bytes: int = 256_000_000,
) -> npt.NDArray[np.float64]:
    """Measure the illumination from what many planes have in common, per channel.

    Parameters
    ----------
    *images : Image
        Fields or acquisitions of the same axes and planes; each time point and z plane of each is
        one plane.
    statistic : {"mean", "median"}
        Of a pixel over the planes. The median is right where each pixel is background in more
        than half of them, or object in more than half.
    sigma : float, optional
        Of the Gaussian that smooths it, pixels; a tenth of the longer side of a plane by default.
    dark_field : array or float
        What the camera gives without light, subtracted; (y, x), (channel, y, x) or one number.
    max_planes : int
        Planes looked at per channel, evenly spread over all of them.
    memory_bytes : int
        Of the lines that are read at a time.

    Returns
    -------
    ndarray of float64
        Shape (y, x), or (channel, y, x) where the images have a channel axis; mean 1 per channel.
        Give it to `shading_correction` with the dark field *added* only if that is given there
        too: ``shading_correction(dark + estimate, dark)``.

    Raises
    ------
    ImageError
        If the images have no planes or differ in them, a number is out of range, or the light of a
        channel is not positive.

    Examples
    --------
    >>> from patchworks_core.images.image import open_image
    >>> light = np.linspace(0.5, 1.5, 32)
    >>> frames = np.random.default_rng(0).normal(100, 1, (50, 32, 32)) * light
    >>> field = estimate_flat_field(open_image(frames, axes="tyx"), sigma=1)
    >>> bool(abs(field / light - 1)[:, 2:-2].max() < 0.01)
    True
    """
    first = _check_planes(images)
    _check_estimate(statistic, sigma, max_planes, memory_bytes)
    height, width = first.shape[-2:]
    n_channels = first.shape[first.axes.index("c")] if "c" in first.axes else 1
    smoothing = max(height, width) / 10 if sigma is None else sigma
    fields = []
    for channel in range(n_channels):
        field = np.empty((height, width))
        planes = _planes_of(images, channel, max_planes)
        for lines in _bands(planes, statistic, memory_bytes):
            field[lines] = _common(planes, lines, statistic)
        fields.append(field)
    common = np.stack(fields) - np.asarray(dark_field, np.float64)
    light = np.stack([_smooth(field, smoothing) for field in common])
    if not (np.isfinite(light).all() and light.min() > 0):
        raise ImageError(
            f"the light must be above the dark field everywhere, got {light.min():g} at the lowest"
            "; check dark_field, or leave out planes without light"
        )
    light /= light.mean(axis=(-2, -1), keepdims=True)
    return light if "c" in first.axes else light[0]


def _check_planes(images: Sequence[Planes]) -> Planes:
    """Return the first image; raise ImageError unless the others have such planes."""
    if not images:
        raise ImageError("a flat field is measured in at least one image, got none")
    kinds = {
        (image.axes.replace("t", "").replace("z", ""), *_plane_shape(image)) for image in images
    }
    if len(kinds) > 1 or images[0].axes[-2:] != "yx":
        raise ImageError(
            "a flat field is measured in images of the same planes (y, x) and channels, got axes "
            f"{[image.axes for image in images]!r} of shapes {[image.shape for image in images]!r}"
        )
    return images[0]


def _plane_shape(image: Planes) -> tuple[int, ...]:
    """Return the pixels of the axes that all images share: channel, y and x."""
    return tuple(n for n, axis in zip(image.shape, image.axes, strict=True) if axis in "cyx")


def _check_estimate(
    statistic: str, sigma: float | None, max_planes: int, memory_bytes: int
) -> None:
    """Raise ImageError where a choice is out of range."""
    if statistic not in ("mean", "median"):
        raise ImageError(f"statistic must be 'mean' or 'median', got {statistic!r}")
    if sigma is not None and not sigma >= 0:
        raise ImageError(f"sigma must be 0 or more pixels, got {sigma!r}")
    if max_planes < 1 or memory_bytes < 1:
        raise ImageError(
            f"max_planes and memory_bytes must be at least 1, got {max_planes!r} and "
            f"{memory_bytes!r}"
        )


def _planes_of(images: Sequence[Planes], channel: int, most: int) -> list[Plane]:
    """Return the planes of a channel, evenly spread over all of them, `most` at most."""
    planes = []
    for image in images:
        before = zip(image.axes[:-2], image.shape[:-2], strict=True)
        ranges = [(channel,) if axis == "c" else range(n) for axis, n in before]
        planes += [(image, index) for index in product(*ranges)]
    kept = np.linspace(0, len(planes) - 1, min(most, len(planes))).round().astype(int)
    return [planes[number] for number in kept]


def _bands(planes: Sequence[Plane], statistic: str, memory_bytes: int) -> Iterator[slice]:
    """Cut the lines of a plane into bands, whole chunks high where that many fit in memory."""
    image = planes[0][0]
    height, width = image.shape[-2:]
    # The median sorts a copy of all its planes; the mean adds up one after the other.
    n_held = 2 * len(planes) if statistic == "median" else 2
    rows = max(1, memory_bytes // (8 * n_held * width))
    chunk = image.chunks[-2] if image.chunks else 1
    rows = rows // chunk * chunk or rows
    yield from (slice(a, min(height, a + rows)) for a in range(0, height, rows))


def _common(planes: Sequence[Plane], lines: slice, statistic: str) -> npt.NDArray[np.float64]:
    """Return the mean or median over planes of a band of lines."""
    if statistic == "median":
        stack = np.stack([_read(plane, lines) for plane in planes])
        return np.asarray(np.median(stack, axis=0, overwrite_input=True), np.float64)
    total = _read(planes[0], lines).astype(np.float64)
    for plane in planes[1:]:
        total += _read(plane, lines)
    return total / len(planes)


def _read(plane: Plane, lines: slice) -> Array:
    image, index = plane
    start = (*index, lines.start, 0)
    stop = (*(i + 1 for i in index), lines.stop, image.shape[-1])
    return image.read(Region(start, stop)).reshape(lines.stop - lines.start, -1)


def _smooth(field: npt.NDArray[np.float64], sigma: float) -> npt.NDArray[np.float64]:
    """Smooth with a Gaussian; near the borders with the straight line that fits best under it.

    A Gaussian that reflects the image there would flatten the light where it falls off most.
    """
    radius = int(_TRUNCATE * sigma + 0.5)
    for axis, n in enumerate(field.shape):
        if radius and n > 1:
            area, lever, inertia = (
                _moment(np.ones((n, 1)), power, sigma, radius) for power in (0, 1, 2)
            )
            lines = field.swapaxes(0, axis)
            level, slope = (_moment(lines, power, sigma, radius) for power in (0, 1))
            fitted = (inertia * level - lever * slope) / (inertia * area - lever**2)
            field = fitted.swapaxes(0, axis)
    return field


def _moment(lines: Array, power: int, sigma: float, radius: int) -> Array:
    """Sum over the first axis with Gaussian weights, times the distance to a power."""
    from scipy.signal import oaconvolve

    distance = np.arange(-radius, radius + 1)[:, None]
    # A convolution turns its kernel round, hence the sign of the distance.
    kernel = np.exp(-0.5 * (distance / sigma) ** 2) * (-distance) ** power
    # By Fourier transform, because sigmas are wide.
    return np.asarray(oaconvolve(lines, kernel, mode="full", axes=0)[radius : radius + len(lines)])
