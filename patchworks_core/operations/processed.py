"""The processed image: an image whose pixels go through operations as they are read.

It is an `Image` like any other: statistics, thresholds, tiles and labels are then those of the
processed pixels, and nothing is written. Time points and channels are never mixed.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from dataclasses import dataclass, fields
from functools import partial
from math import prod
from typing import Any

import numpy as np
import numpy.typing as npt

from patchworks_core.images.image import DEFAULT_CHANNEL, DEFAULT_LEVEL, Image, open_image
from patchworks_core.images.units import PixelSize
from patchworks_core.operations.operations import Chain, Operation, chain
from patchworks_core.operations.places import TilePlace
from patchworks_core.tiles.grid import SPATIAL_AXES
from patchworks_core.tiles.regions import Region


class ProcessedImage(Image):
    """An image whose pixels go through operations as they are read; made by `process_lazily`."""

    @property
    def original(self) -> Image:
        """The image before the operations."""
        return self._processing.image

    @property
    def operations(self) -> tuple[Operation, ...]:
        """What is done to its pixels, the first first."""
        return self._processing.chain.operations

    @property
    def halo(self) -> tuple[int, ...]:
        """Pixels read on each side of a region to process it, per axis of `axes`."""
        return self._processing.halo

    def other_channel(self, channel: int | str) -> ProcessedImage:
        """Return another channel of the same image, processed alike."""
        return process_lazily(self.original.other_channel(channel), *self.operations)

    def mapped_from(self, path: str) -> ProcessedImage:
        """Put the original, where it is a NumPy array, into a ``.npy`` file."""
        original = self.original.mapped_from(path)
        if original is self.original:
            return self
        image = process_lazily(original, *self.operations)
        image.__dict__["fingerprint"] = self.fingerprint  # the same pixels; not read again for it
        return image

    def reopened(
        self,
        channel: int | str | None = DEFAULT_CHANNEL,
        level: int = DEFAULT_LEVEL,
        axes: str | None = None,
        pixel_size: PixelSize | None = None,
    ) -> Image:
        """Return the original opened as asked, processed alike."""
        again = self.original.reopened(channel, level, axes, pixel_size)
        return self if again is self.original else process_lazily(again, *self.operations)

    def of_pixel_size(self, pixel_size: PixelSize) -> ProcessedImage:
        """Return the original with another pixel size, processed alike."""
        return process_lazily(self.original.of_pixel_size(pixel_size), *self.operations)

    @property
    def _processing(self) -> _ProcessedPixels:
        pixels: _ProcessedPixels = self.pixels
        return pixels

    def __reduce__(self) -> tuple[Callable[..., Image], tuple[Any, ...]]:
        """Pickle what opens the original, and the operations."""
        return process_lazily, (self.original, *self.operations)


def process_lazily(image: Any, *operations: Operation | Chain) -> ProcessedImage:
    """Return an image whose pixels go through operations when they are read.

    Parameters
    ----------
    image : Image, array, path or URL
        An image from `open_image`, or processed before; anything else is opened with its defaults.
    *operations : Operation or Chain
        The first is run first.

    Returns
    -------
    ProcessedImage
        Axes, shape, chunks and calibration of `image`; its `fingerprint` is of the content and the
        operations.

    Raises
    ------
    ImageError
        If there is no operation, or one does not fit the axes of the image.

    Notes
    -----
    Reading a region reads it with the halos of all operations added up, clipped to the image, so
    what is read equals that region of the operations run on the whole image, to the bit. A region
    should be large against the halo.

    Examples
    --------
    >>> from patchworks_core.operations.filters import maximum
    >>> processed = process_lazily(np.eye(4, dtype="u1"), maximum(3))
    >>> processed.read(Region((0, 0), (2, 4)))
    array([[1, 1, 1, 0],
           [1, 1, 1, 1]], dtype=uint8)
    """
    done: Chain = chain(*operations)
    original = open_image(image)
    if isinstance(original, ProcessedImage):
        done = chain(*original.operations, done)
        original = original.original
    values = {field.name: getattr(original, field.name) for field in fields(Image)}
    values |= {
        "pixels": _ProcessedPixels.of(original, done),
        "file_axes": original.axes,
        "file_chunks": original.chunks,
        "format": f"{original.format}, processed: {done.name}",
        "stamp": partial(_stamp, original, done),
    }
    return ProcessedImage(**values)


def _stamp(image: Image, done: Chain) -> Iterator[bytes]:
    """Yield what identifies the content of a processed image."""
    yield image.fingerprint.encode()
    yield json.dumps(done.to_dict(), sort_keys=True).encode()


@dataclass(frozen=True, slots=True)
class _ProcessedPixels:
    """The pixels of a processed image, axes as the image is read."""

    image: Image
    chain: Chain
    shape: tuple[int, ...]
    dtype: np.dtype[Any]
    halo: tuple[int, ...]
    spatial: tuple[int, ...]

    makes_new_arrays = True
    """What slicing gives is the caller's own."""

    @classmethod
    def of(cls, image: Image, done: Chain) -> _ProcessedPixels:
        spatial = tuple(i for i, axis in enumerate(image.axes) if axis in SPATIAL_AXES)
        halo = [0] * image.ndim
        axes = "".join(image.axes[i] for i in spatial)
        for axis, n in zip(spatial, done.halo_of(axes), strict=True):
            halo[axis] = n
        return cls(image, done, image.shape, done.dtype_of(image.dtype), tuple(halo), spatial)

    def __getitem__(self, index: tuple[slice, ...]) -> npt.NDArray[Any]:
        """Read a box: grow, read, process each time point and channel, and cut back."""
        core = Region(tuple(s.start for s in index), tuple(s.stop for s in index))
        read = core.grow(self.halo, within=self.shape)
        pixels = self.image.read(read)
        whole_core = core.take(self.spatial)
        counts = [1 if axis in self.spatial else n for axis, n in enumerate(core.shape)]
        parts = (
            self.chain.on_core(pixels[self._plane(number)], self._place(read, number), whole_core)
            for number in np.ndindex(*counts)
        )
        if prod(counts) == 1:
            only = next(parts).reshape(core.shape)
            return only if only.flags.writeable else only.copy()
        result = np.empty(core.shape, self.dtype)
        for number, part in zip(np.ndindex(*counts), parts, strict=True):
            result[self._plane(number)] = part
        return result

    def _plane(self, number: tuple[int, ...]) -> tuple[slice | int, ...]:
        """Return the index of one time point and channel."""
        return tuple(slice(None) if axis in self.spatial else i for axis, i in enumerate(number))

    def _place(self, read: Region, number: tuple[int, ...]) -> TilePlace:
        """Return where the pixels of one time point and channel lie."""
        axes = self.image.axes
        index = {} if self.image.channel is None else {"c": self.image.channel}
        index |= {
            axis: read.start[i] + number[i] for i, axis in enumerate(axes) if i not in self.spatial
        }
        return TilePlace(
            "".join(axes[i] for i in self.spatial),
            read.take(self.spatial),
            tuple(self.shape[i] for i in self.spatial),
            index,
        )
