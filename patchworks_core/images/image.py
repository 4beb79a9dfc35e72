"""The image: pixels opened lazily, one channel of one level, in canonical axis order.

What a format looks like on disk is the readers' business; here are the axes, the channel, what is
read, and how an image is recognised and travels to another process.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass, field, replace
from functools import cached_property, lru_cache
from hashlib import blake2b
from typing import Any

import numpy as np
import numpy.typing as npt
import zarr

from patchworks_core.calls.values import html_table
from patchworks_core.errors import ImageError
from patchworks_core.files.locations import changed_at
from patchworks_core.images.channels import channel_note
from patchworks_core.images.readers.chunk_cache import keeping_anew
from patchworks_core.images.readers.decode import decode_pixels
from patchworks_core.images.readers.memory import MappedArray
from patchworks_core.images.readers.opened import (
    Gaps,
    Opened,
    check_dtype,
    choose_channel,
    complete,
)
from patchworks_core.images.readers.sources import open_source, source_url
from patchworks_core.images.readers.zarr_decoding import stores_none
from patchworks_core.images.units import MICROMETERS, PixelSize, pixel_sizes, sizes_in_words
from patchworks_core.tiles.grid import AXES
from patchworks_core.tiles.regions import Region


class _Default(int):
    """A number that nobody asked for: an image that is open already keeps its own."""


DEFAULT_CHANNEL: int = _Default(0)
"""Channel 0, unless the image was opened with another."""

DEFAULT_LEVEL: int = _Default(0)
"""Level 0, unless the image was opened with another."""


def is_default(channel: object) -> bool:
    """Tell whether a channel is the one that is read where nobody chose one."""
    return isinstance(channel, _Default)


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

    requested_pixel_size: dict[str, float] | None = field(default=None, repr=False, kw_only=True)
    """The `pixel_size` that `open_image` was given, per axis in micrometers."""

    stamp: Callable[[], Iterable[bytes]] = field(repr=False)
    """Gives what identifies the content, for `fingerprint`."""

    is_label_image: bool = False
    """Whether the metadata say that pixels are the ids of objects (OME-Zarr ``image-label``)."""

    notes: tuple[str, ...] = field(default=(), repr=False)
    """What was assumed where the file leaves a choice, in words."""

    count_gaps: Callable[[], Gaps | None] = field(default=complete, repr=False)
    """Counts the chunks that are not stored, for `gaps`."""

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
        """Pixels of a storage chunk per axis of `axes`, None where the source has no chunks.

        Of a sharded Zarr these are the chunks within a shard: what is decoded at once, and so
        what a tile is best aligned with for reading.
        """
        if self.file_chunks is None:
            return None
        return tuple(int(self.file_chunks[i]) for i in self._order)

    def _repr_html_(self) -> str:
        names = ("axes", "shape", "dtype", "chunks", "channel", "channel_names", "level", "format")
        rows = [(name, getattr(self, name)) for name in names]
        sizes = sizes_in_words(self.axes, self.pixel_size, self.unit)
        rows += [("pixel_size", sizes), ("place", self.where)]
        return html_table(("", "Image"), rows)

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
            If the region is not within the image, or its pixels are of another type than declared.

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
                f"shape {shape!r} in {self.where}"
            )
        block = decode_pixels(
            self.pixels,
            self._index(region),
            is_stored=self.url is not None or isinstance(self.pixels, zarr.Array),
            at=str(region),
            where=self.where,
        )
        single = [i for i in range(block.ndim) if i not in self._order]
        if block.dtype.newbyteorder("=") != self.dtype:
            raise ImageError(
                f"pixels must be of the type that the image declares, {self.dtype}, got "
                f"{block.dtype} at {region} in {self.where}; convert them, or declare that type"
            )
        block = block.transpose(single + list(self._order))[(0,) * len(single)]
        # Zarr gives fresh arrays; any other may be a view that the caller must not write to.
        is_new = isinstance(self.pixels, zarr.Array)
        copy = None if is_new or getattr(self.pixels, "makes_new_arrays", False) else True
        return np.array(block, dtype=self.dtype, order="C", copy=copy)

    def is_unstored(self, region: Region) -> bool:
        """Tell whether a region is known to be 0 without reading: no chunk of it is stored."""
        return stores_none(self.pixels, self._index(region))

    def _index(self, region: Region) -> tuple[slice, ...]:
        """Return where a region lies in `pixels`."""
        index = [slice(0, 1)] * len(self.file_axes)
        if self.channel is not None and "c" in self.file_axes:
            index[self.file_axes.index("c")] = slice(self.channel, self.channel + 1)
        for position, part in zip(self._order, region.slices, strict=True):
            index[position] = part
        return tuple(index)

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

    @cached_property
    def gaps(self) -> Gaps | None:
        """Chunks that are not stored, and so are read as a fill value; None where all are.

        Lists every chunk, once; None too where they are too many for that, or cannot be listed.
        """
        return self.count_gaps()

    def other_channel(self, channel: int | str) -> Image:
        """Return another channel of the same image.

        Raises
        ------
        ImageError
            If there is no such channel, or every channel is read.
        """
        if self.channel is None:
            raise ImageError(
                f"channel {channel!r} is read beside one other, and {self.where} has one or is "
                "read with all; choose one with channel="
            )
        opened_file = Opened(
            self.pixels, self.file_axes, self.format, self.stamp, channel_names=self.channel_names
        )
        return replace(self, channel=choose_channel(channel, opened_file, self.where))

    def reopened(
        self,
        channel: int | str | None = DEFAULT_CHANNEL,
        level: int = DEFAULT_LEVEL,
        axes: str | None = None,
        pixel_size: PixelSize | None = None,
    ) -> Image:
        """Return the image opened as asked; what is left out stays, and it is itself where all is.

        Raises
        ------
        ImageError
            If it has no such channel, level or axes.
        """
        if isinstance(channel, _Default) and isinstance(level, _Default) and axes is None:
            return self if pixel_size is None else self.of_pixel_size(pixel_size)
        again = open_image(
            self.source,
            channel=self.channel if isinstance(channel, _Default) else channel,
            level=self.level if isinstance(level, _Default) else level,
            axes=self.requested_axes if axes is None else axes,
        )
        choice = (again.channel, again.level, again.file_axes)
        image = self if choice == (self.channel, self.level, self.file_axes) else again
        # That of another level is another one.
        is_same_level = again.level == self.level and axes is None
        if pixel_size is None and is_same_level:
            pixel_size = self.requested_pixel_size
        return image if pixel_size is None else image.of_pixel_size(pixel_size)

    def of_pixel_size(self, pixel_size: PixelSize) -> Image:
        """Return the same image with another pixel size, in micrometers, than the file says.

        Raises
        ------
        ImageError
            If it is not one of the image's spatial axes.
        """
        sizes = pixel_sizes(pixel_size, self.axes, self.where)
        # Its place was given in the unit of the file.
        factors = {a: MICROMETERS.get(self.unit.get(a, "")) for a in sizes}
        place = {
            axis: shift if axis not in sizes else shift * (factors[axis] or 1)
            for axis, shift in self.translation.items()
            if axis not in sizes or factors[axis]
        }
        return replace(
            self,
            pixel_size={**self.pixel_size, **sizes},
            unit={**self.unit, **dict.fromkeys(sizes, "micrometer")},
            translation=place,
            requested_pixel_size=sizes,
        )

    def mapped_from(self, path: str) -> Image:
        """Put a NumPy array into a ``.npy`` file that other processes map; other images stay."""
        if self.url is not None or not isinstance(self.pixels, np.ndarray):
            return self
        np.save(path, self.pixels)
        image = replace(self, source=MappedArray(path))
        image.__dict__["fingerprint"] = self.fingerprint  # the same pixels; not read again for it
        return image

    @property
    def where(self) -> str:
        """Its path or URL, or what it is, for messages."""
        return repr(self.url) if self.url else f"a {self.format}"

    def __reduce__(self) -> tuple[Callable[..., Image], tuple[Any, ...]]:
        """Pickle what opens the image, not the open files."""
        chosen = (
            *(self.source, self.channel, self.level, self.requested_axes),
            self.requested_pixel_size,
        )
        if self.url is None:
            return _open_again, chosen
        return _open_url_again, (*chosen, self.__dict__.get("fingerprint"))


def open_image(
    source: Any,
    *,
    channel: int | str | None = DEFAULT_CHANNEL,
    level: int = DEFAULT_LEVEL,
    axes: str | None = None,
    pixel_size: PixelSize | None = None,
) -> Image:
    """Open an image without reading its pixels.

    Parameters
    ----------
    source : str, os.PathLike, UPath, ndarray, dask array, zarr.Array, zarr.Group or Image
        A path, a URL (``s3://``, ``https://``, ``memory://``), or an object in memory. By path:
        OME-Zarr 0.1 to 0.5 (also in a zip file, ``.ome.zarr.zip`` or ``.ozx``), Zarr v2 and v3,
        TIFF with its dialects, PNG, JPEG, BMP, ``.npy``; LIF, ND2 and others with the extra
        ``bioio``. PNG, JPEG and BMP are decoded whole, into memory. Of a TIFF with several images
        the first is opened; of a plate the field that the path names, ``a.zarr/B/03/0``; of a
        file with scenes the first, or the one after ``#``, ``a.lif#2``.
    channel : int or str, optional
        Number or name of the channel to read, None for all. Matters only where the image has a
        channel axis; `Image.notes` then says which one is read where none was chosen.
    level : int
        Resolution; 0 is full.
    axes : str, optional
        One letter of ``tczyx`` per axis of the file, in the order of the file, such as ``'yxc'``.
        Wins over the metadata. Without metadata 1, 2 and 3 dimensions are ``x``, ``yx`` and
        ``zyx``, and more must be named.

        An `Image` keeps the channel, level and axes it was opened with, unless others are given.
    pixel_size : mapping of str to float, sequence of float, or float, optional
        Micrometers per pixel of the level that is opened: by axis, one for each spatial axis, or
        one for all of them. Wins over the metadata.

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
    if isinstance(source, Image):
        return source.reopened(channel, level, axes, pixel_size)
    url = source_url(source)
    opened = open_source(source, level, axes)
    where = repr(url) if url else f"a {opened.format}"
    check_dtype(opened.pixels.dtype, where)
    chosen = choose_channel(channel, opened, where)
    unasked = chosen if is_default(channel) else None
    image = Image(
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
        is_label_image=opened.is_label_image,
        notes=(*opened.notes, *channel_note(unasked, opened, where)),
        count_gaps=opened.gaps,
    )
    return image if pixel_size is None else image.of_pixel_size(pixel_size)


def open_all_channels(
    source: Any,
    *,
    level: int = DEFAULT_LEVEL,
    axes: str | None = None,
    pixel_size: PixelSize | None = None,
) -> Image:
    """Open an image with all its channels; an `Image` keeps those that it was opened with."""
    if isinstance(source, Image):
        return source.reopened(level=level, axes=axes, pixel_size=pixel_size)
    return open_image(source, channel=None, level=level, axes=axes, pixel_size=pixel_size)


def _open_again(
    source: Any,
    channel: int | None,
    level: int,
    axes: str | None,
    pixel_size: dict[str, float] | None,
) -> Image:
    return open_image(source, channel=channel, level=level, axes=axes, pixel_size=pixel_size)


def _open_url_again(
    url: str,
    channel: int | None,
    level: int,
    axes: str | None,
    pixel_size: dict[str, float] | None,
    fingerprint: str | None,
) -> Image:
    """Open an image in another process, sharing the open files with its earlier tasks."""
    # A copy, because a fingerprint taken for an earlier task may be out of date.
    changed = changed_at(url)
    image = replace(_open_once(url, channel, level, axes, changed, fingerprint))
    if changed is None and fingerprint is None:  # nothing tells whether it was replaced
        image = replace(image, pixels=keeping_anew(image.pixels))
    return image if pixel_size is None else image.of_pixel_size(pixel_size)


@lru_cache(maxsize=8)
def _open_once(
    url: str,
    channel: int | None,
    level: int,
    axes: str | None,
    changed: int | None,
    fingerprint: str | None,
) -> Image:
    """Open an image, once per process for as long as its content is not replaced.

    `changed` is when its file was, `known` the fingerprint of the image that was sent.
    """
    return open_image(url, channel=channel, level=level, axes=axes)
