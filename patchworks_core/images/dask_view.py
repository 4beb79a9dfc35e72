"""Images as lazy dask arrays."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from patchworks_core.files.storage import Location
from patchworks_core.images.image import DEFAULT_CHANNEL, DEFAULT_LEVEL, Image, open_image
from patchworks_core.tiles.regions import Region


def load_ome_zarr(
    store_path: Location,
    channel: int | str | None = DEFAULT_CHANNEL,
    level: int = DEFAULT_LEVEL,
    chunks: Sequence[int] | int | str | None = None,
) -> Any:
    """Open one channel of one level of an OME-Zarr image as a lazy dask array.

    Parameters
    ----------
    store_path : path or URL
        OME-Zarr 0.4 or 0.5; anything else that `open_image` opens will do.
    channel : int, str or None
        Position or name; None keeps every channel.
    level : int
        Resolution, 0 is full.
    chunks : sequence of int, int or str, optional
        Pixels of a dask chunk per axis, as `dask.array.from_array` takes them; by default those of
        the file.

    Returns
    -------
    dask.array.Array
        Axes as in `Image.axes`: those of ``tczyx`` that the image has, less the channel.

    Raises
    ------
    ImageError
        If there is no such image, channel or level.

    Examples
    --------
    ::

        nuclei = load_ome_zarr("plate.ome.zarr/B/03/0", channel="DAPI", level=1)
        nuclei[0].mean().compute()
    """
    return as_dask(open_image(store_path, channel=channel, level=level), chunks)


def as_dask(image: Image, chunks: Sequence[int] | int | str | None = None) -> Any:
    """Return an image as a lazy dask array; each chunk is read when it is computed.

    Parameters
    ----------
    image : Image
    chunks : sequence of int, int or str, optional
        As in `load_ome_zarr`.

    Examples
    --------
    >>> image = open_image(np.arange(12, dtype="u1").reshape(3, 4))
    >>> as_dask(image, chunks=2).sum().compute().item()
    66
    """
    import dask.array as da

    return da.from_array(
        Slices(image),
        chunks=chunks or image.chunks or "auto",
        name=False,  # a name from the content would mean looking at every chunk
        fancy=False,
        meta=np.empty((0,) * image.ndim, image.dtype),
    )


@dataclass(frozen=True, slots=True)
class Slices:
    """An image as an array that is read where it is sliced."""

    image: Image

    @property
    def shape(self) -> tuple[int, ...]:
        """Pixels per axis."""
        return self.image.shape

    @property
    def dtype(self) -> np.dtype[Any]:
        """Type of the pixels."""
        return self.image.dtype

    @property
    def ndim(self) -> int:
        """Number of axes."""
        return self.image.ndim

    def __getitem__(self, index: tuple[slice | int, ...]) -> np.ndarray[Any, Any]:
        ranges = [
            part.indices(n) if isinstance(part, slice) else (part, part + 1, 1)
            for part, n in zip(index, self.shape, strict=True)
        ]
        # The box that holds what is asked for, then whatever steps there are in it.
        start = tuple(min(r) if (r := range(*bounds)) else 0 for bounds in ranges)
        stop = tuple(max(r) + 1 if (r := range(*bounds)) else 0 for bounds in ranges)
        steps = tuple(
            slice(None, None, part.step) if isinstance(part, slice) else 0 for part in index
        )
        return self.image.read(Region(start, stop))[steps]
