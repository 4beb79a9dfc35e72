"""Pixels as their source stores them; what cannot be decoded is said of the image."""

from __future__ import annotations

from typing import Any

import numpy as np
import numpy.typing as npt
import zarr

from patchworks_core.errors import ImageError
from patchworks_core.images.readers.damage import is_damage, is_of_a_codec
from patchworks_core.images.readers.zarr_decoding import places_of_chunks, read_chunks


def decode_pixels(
    pixels: Any, index: tuple[slice, ...], *, is_stored: bool, at: str, where: str
) -> npt.NDArray[Any]:
    """Read pixels of an image.

    Parameters
    ----------
    pixels : array
        `Opened.pixels`.
    index : tuple of slice
        One per axis.
    is_stored : bool
        Whether they are read from somewhere; what is in memory may be anybody's code.
    at, where : str
        The region and the image, as errors name them.

    Returns
    -------
    ndarray
        Axes of the file; of an array in memory, a view perhaps.

    Raises
    ------
    ImageError
        If they cannot be decoded.
    """
    try:
        values = read_chunks(pixels, index)
        return np.asarray(pixels[index]) if values is None else values
    except ImageError as error:
        if where in str(error):
            raise
        chunk = _damaged_chunk(pixels, index)
        raise ImageError(f"{error} (the pixels at {at} in {where}{chunk})") from error
    except Exception as error:
        # Anybody's code says best what is wrong.
        if not (is_damage(error) if is_stored else is_of_a_codec(error)):
            raise  # such as a passing fault of disk or network
        chunk = _damaged_chunk(pixels, index)
        raise ImageError(
            f"the pixels at {at} in {where}{chunk} cannot be decoded: {type(error).__name__}: "
            f"{error}; copy it again from where it was written"
        ) from error


def _damaged_chunk(pixels: Any, index: tuple[slice, ...]) -> str:
    """Name the first stored chunk of a Zarr array that cannot be decoded, for an error.

    Reads chunk by chunk; empty where each can be.
    """
    if not isinstance(pixels, zarr.Array):
        return ""
    for place in places_of_chunks(index, pixels.chunks):
        chunk = tuple(slice(i * n, (i + 1) * n) for i, n in zip(place, pixels.chunks, strict=True))
        try:
            pixels[chunk]
        except Exception:  # as the whole could not be, which the caller says why
            stored = pixels.shards or pixels.chunks
            key = tuple(part.start // n for part, n in zip(chunk, stored, strict=True))
            return f", chunk {pixels.metadata.encode_chunk_key(key)!r}"
    return ""
