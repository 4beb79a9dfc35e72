"""The image: pixels opened lazily, one channel of one level, in canonical axis order.

What a format looks like on disk is the readers' business; here are the axes, the channel, what is
read, and how an image is recognised and travels to another process.
"""

from __future__ import annotations

import operator
import os
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field, replace
from functools import cached_property, lru_cache
from hashlib import blake2b
from typing import Any

import numpy as np
import numpy.typing as npt
import zarr

from patchworks_core.errors import ImageError
from patchworks_core.grid import AXES
from patchworks_core.readers.locations import is_remote
from patchworks_core.readers.opened import DROPPED, Opened
from patchworks_core.readers.sources import open_source, source_url
from patchworks_core.regions import Region

_PIXEL_KINDS = "buif"


# eq=False: comparing pixels would read them; `fingerprint` is what tells images apart.
@dataclass(frozen=True, eq=False)
class Image:
    """An image whose pixels are read when asked for; made by `open_image`.

    Examples
    --------
    >>> image = open_image(np.arange(12, dtype="u1").reshape(3, 4), axes="xy")
    >>> image.axes, image.shape
    ('yx', (4, 3))
    >>> image.read(Region((0, 1), (2, 3)))
    array([[4, 8],
           [5, 9]], dtype=uint8)
    """

    pixels: Any = field(repr=False)
    """Has `shape`, `dtype` and slicing by a tuple of slices; every channel, file axis order."""

    file_axes: str
    """One letter per axis of `pixels`: ``tczyx``, or ``-`` for an axis of size 1 left out."""

    format: str
    """What the source is, such as ``OME-Zarr 0.5``."""

    url: str | None
    """Absolute path or URL; None for an object in memory."""

    channel: int | None
    """The channel that is read; None where all are, or the image has no channel axis."""

    channel_names: tuple[str, ...]
    """Names of all channels of the source; empty where it names none."""

    level: int
    """Resolution that is read; 0 is full."""

    n_levels: int
    """Resolutions the source has."""

    pixel_size: dict[str, float]
    """Distance between pixel centres, per axis the metadata speaks of."""

    unit: dict[str, str]
    """Unit of `pixel_size` and `translation`, per axis the metadata speaks of."""

    translation: dict[str, float]
    """Place of the first pixel in `unit`, per axis the metadata speaks of."""

    file_chunks: tuple[int, ...] | None = field(repr=False)
    """Pixels of a storage chunk per axis of `pixels`, where the source has chunks."""

    source: Any = field(repr=False)
    """What `open_image` was given, or `url`; another process opens it again."""

    requested_axes: str | None = field(repr=False)
    """The `axes` that `open_image` was given."""

    stamp: Callable[[], Iterable[bytes]] = field(repr=False)
    """Gives what identifies the content, for `fingerprint`."""

    @cached_property
    def _order(self) -> tuple[int, ...]:
        """Positions in `pixels` of the canonical axes."""
        kept = AXES if self.channel is None else AXES.replace("c", "")
        return tuple(self.file_axes.index(axis) for axis in kept if axis in self.file_axes)

    @property
    def axes(self) -> str:
        """Axes that are read, a subset of ``tczyx`` in that order."""
        return "".join(self.file_axes[i] for i in self._order)

    @property
    def shape(self) -> tuple[int, ...]:
        """Pixels per axis of `axes`."""
        return tuple(int(self.pixels.shape[i]) for i in self._order)

    @property
    def ndim(self) -> int:
        """Number of axes."""
        return len(self._order)

    @property
    def dtype(self) -> np.dtype[Any]:
        """Type of the pixels as they are read, in native byte order."""
        dtype: np.dtype[Any] = np.dtype(self.pixels.dtype)
        return dtype.newbyteorder("=")

    @property
    def chunks(self) -> tuple[int, ...] | None:
        """Pixels of a storage chunk per axis of `axes`, None where the source has no chunks."""
        if self.file_chunks is None:
            return None
        return tuple(int(self.file_chunks[i]) for i in self._order)

    def read(self, region: Region) -> npt.NDArray[Any]:
        """Read a region; only the chunks it touches are loaded.

        Parameters
        ----------
        region : Region
            Pixels per axis of `axes`.

        Returns
        -------
        ndarray
            The caller's own: C-contiguous, native byte order, `region.shape`, axes as in `axes`.

        Raises
        ------
        ImageError
            If the region is not within the image.

        Notes
        -----
        Threads may read at the same time.
        """
        shape = self.shape
        if len(region.start) != len(shape) or any(
            stop > n for stop, n in zip(region.stop, shape, strict=True)
        ):
            raise ImageError(
                f"a region must lie within the image, got {region} for axes {self.axes!r} of "
                f"shape {shape!r} in {self._where}"
            )
        index: list[slice | int] = [slice(0, 1)] * len(self.file_axes)
        if self.channel is not None:
            index[self.file_axes.index("c")] = slice(self.channel, self.channel + 1)
        for position, part in zip(self._order, region.slices, strict=True):
            index[position] = part
        block = np.asarray(self.pixels[tuple(index)])
        single = [i for i in range(block.ndim) if i not in self._order]
        block = block.transpose(single + list(self._order))[(0,) * len(single)]
        # Zarr gives fresh arrays; any other may be a view that the caller must not write to.
        copy = None if isinstance(self.pixels, zarr.Array) else True
        return np.array(block, dtype=self.dtype, order="C", copy=copy)

    @cached_property
    def fingerprint(self) -> str:
        """Identity of the content, 32 hexadecimal digits.

        The place, sizes and times of change (or ETags) of the files, or the bytes of an array in
        memory, with shape, type, axes, channel and level. Asks about every chunk, once.
        """
        facts = (self.pixels.shape, self.dtype.str, self.file_axes, self.channel, self.level)
        digest = blake2b(repr(facts).encode(), digest_size=16)
        for part in self.stamp():
            digest.update(len(part).to_bytes(8, "little"))
            digest.update(part)
        return digest.hexdigest()

    @property
    def _where(self) -> str:
        """The image, for messages."""
        return repr(self.url) if self.url else f"a {self.format}"

    def __reduce__(self) -> tuple[Callable[..., Image], tuple[Any, ...]]:
        """Pickle what opens the image, not the open files."""
        reopen = _open_again if self.url is None else _open_url_again
        return reopen, (self.source, self.channel, self.level, self.requested_axes)


def open_image(
    source: Any, *, channel: int | str | None = 0, level: int = 0, axes: str | None = None
) -> Image:
    """Open an image without reading its pixels.

    Parameters
    ----------
    source : str, os.PathLike, UPath, ndarray, dask array, zarr.Array or zarr.Group
        A path, a URL (``s3://``, ``https://``, ``memory://``), or an object in memory. By path:
        OME-Zarr 0.4 and 0.5, Zarr v2 and v3, TIFF with its dialects, PNG, JPEG, BMP, ``.npy``.
        PNG, JPEG and BMP are decoded whole, into memory. Of a TIFF with several images the first
        is opened.
    channel : int or str, optional
        Number or name of the channel to read, None for all. Matters only where the image has a
        channel axis.
    level : int
        Resolution; 0 is full.
    axes : str, optional
        One letter of ``tczyx`` per axis of the file, in the order of the file, such as ``'yxc'``.
        Wins over the metadata. Without metadata 1, 2 and 3 dimensions are ``x``, ``yx`` and
        ``zyx``, and more must be named.

    Returns
    -------
    Image

    Raises
    ------
    ImageError
        If there is no image, it cannot be read, or it has no such axes, channel or level.

    Notes
    -----
    The array of one level of an OME-Zarr opens by its own path as plain Zarr, without the names,
    axes and sizes that only the group knows; prefer `level`.

    Examples
    --------
    >>> volume = np.zeros((2, 5, 6), "u2")
    >>> open_image(volume).axes
    'zyx'
    >>> open_image(volume, axes="cyx", channel=1).shape
    (5, 6)
    """
    url = source_url(source)
    opened = open_source(source, level, axes)
    where = repr(url) if url else f"a {opened.format}"
    _check_dtype(opened.pixels.dtype, where)
    chosen = _choose_channel(channel, opened, where)
    return Image(
        pixels=opened.pixels,
        file_axes=opened.axes,
        format=opened.format,
        url=url,
        channel=chosen,
        channel_names=opened.channel_names,
        level=opened.level,
        n_levels=opened.n_levels,
        pixel_size=opened.pixel_size,
        unit=opened.unit,
        translation=opened.translation,
        file_chunks=opened.chunks,
        source=source if url is None else url,
        requested_axes=axes,
        stamp=opened.stamp,
    )


def _check_dtype(dtype: Any, where: str) -> None:
    """Raise ImageError unless pixels are numbers or booleans."""
    if getattr(dtype, "kind", "?") not in _PIXEL_KINDS or dtype.fields is not None:
        raise ImageError(
            f"pixels must be bool, integers or floats, got {str(dtype)!r} in {where}; convert them"
        )


def _choose_channel(channel: int | str | None, opened: Opened, where: str) -> int | None:
    """Return the number of the channel to read, None where there is no choice or it is all."""
    if "c" not in opened.axes:
        if channel is None or (channel == 0 and not isinstance(channel, str)):
            return None
        raise ImageError(
            f"channel={channel!r} needs a channel axis, got axes "
            f"{opened.axes.replace(DROPPED, '')!r} in {where}; leave channel out, or say with "
            "axes= which axis is 'c'"
        )
    if channel is None:
        return None
    names = opened.channel_names
    n_channels = int(opened.pixels.shape[opened.axes.index("c")])
    available = f"0 to {n_channels - 1}" + (f", named {list(names)!r}" if names else ", unnamed")
    if isinstance(channel, str):
        if names.count(channel) == 1:
            return names.index(channel)
        count = "no" if channel not in names else "more than one"
        raise ImageError(f"{count} channel {channel!r} in {where}; its channels are {available}")
    number = operator.index(channel)
    if not 0 <= number < n_channels:
        raise ImageError(f"no channel {number} in {where}; its channels are {available}")
    return number


def _open_again(source: Any, channel: int | None, level: int, axes: str | None) -> Image:
    """Open an image from memory in another process."""
    return open_image(source, channel=channel, level=level, axes=axes)


def _open_url_again(url: str, channel: int | None, level: int, axes: str | None) -> Image:
    """Open an image in another process, sharing the open files with its earlier tasks."""
    changed = None if is_remote(url) or not os.path.exists(url) else os.stat(url).st_mtime_ns
    # A copy, because a fingerprint taken for an earlier task may be out of date.
    return replace(_open_once(url, channel, level, axes, changed))


@lru_cache(maxsize=8)
def _open_once(
    url: str, channel: int | None, level: int, axes: str | None, changed: int | None
) -> Image:
    """Open an image, once per process for as long as its file is not replaced (`changed`)."""
    return open_image(url, channel=channel, level=level, axes=axes)
