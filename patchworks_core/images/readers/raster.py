"""PNG, JPEG and BMP: formats without random access, decoded whole into memory once."""

from __future__ import annotations

import io
import os
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from math import prod
from typing import Any

import imagecodecs
import imageio.v3 as iio
import numpy as np
import numpy.typing as npt
from PIL import Image as PillowImage
from PIL import UnidentifiedImageError

from patchworks_core.errors import ImageError
from patchworks_core.files.locations import file_stamp, filesystem, is_remote
from patchworks_core.images.readers.opened import (
    Opened,
    check_level,
    check_size,
    file_axes,
    orientation_notes,
)

FORMATS = {".png": "PNG", ".jpg": "JPEG", ".jpeg": "JPEG", ".bmp": "BMP"}
"""Extensions and what they mean."""

MAX_PIXELS = 2**31
"""Largest raster that is decoded: the widest a BMP or PNG side can be, and 2 to 8 GB of memory."""

_PIXELS_PER_BYTE = {"PNG": 8 * 1032, "JPEG": 1024, "BMP": 8 * 1032}
"""What compresses best: deflate 1032 times, 1 bit a pixel; JPEG takes a bit for 8 by 8 pixels."""

_INKS = {"CMYK", "YCbCr", "LAB", "HSV"}
"""Pillow's names of colours that are not intensities."""

_PNG = b"\x89PNG\r\n\x1a\n"

_PILLOW_LIMIT = threading.Lock()


def open_raster(url: str, level: int, axes: str | None) -> Opened:
    """Decode a raster file whole, into memory, once; use TIFF or Zarr for what must stay on disk.

    Colour, and opacity where the file has a channel of it, is a channel axis that comes last; a
    palette is applied. That one colour is to be shown transparent is left out, and said.
    """
    extension = next(e for e in FORMATS if url.lower().endswith(e))
    array, notes = _decode(url, extension)
    letters = file_axes("yx" if array.ndim == 2 else "yxc", array.shape, axes, repr(url))
    check_level(level, [array.shape], repr(url))
    return Opened(array, letters, FORMATS[extension], partial(file_stamp, url), notes=notes)


def _check_plausible(n_pixels: int, n_bytes: int, extension: str, url: str) -> None:
    """Raise ImageError where a file is too short for the pixels that its header speaks of."""
    most = _PIXELS_PER_BYTE[FORMATS[extension]]
    if n_pixels > most * n_bytes:
        raise ImageError(
            f"a byte of {FORMATS[extension]} holds {most} pixels at most, got {n_pixels} in "
            f"{n_bytes} bytes of {url!r}; it is damaged: copy it again from where it was written"
        )


def _decode(url: str, extension: str) -> tuple[npt.NDArray[Any], tuple[str, ...]]:
    """Return the first image of a raster file, and what is to be said of it."""
    source: Any = url
    if is_remote(url):
        fs, path = filesystem(url)
        source = io.BytesIO(fs.cat_file(path))
    n_bytes = len(source.getbuffer()) if is_remote(url) else os.path.getsize(url)
    try:
        with _large_images_allowed(), iio.imopen(source, "r", plugin="pillow") as file:
            shape = file.properties(index=0).shape
            if prod(shape[:2]) > MAX_PIXELS:
                raise ImageError(
                    f"a raster image is decoded whole and may have {MAX_PIXELS} pixels, got "
                    f"{shape!r} in {url!r}; convert it to tiled TIFF or Zarr"
                )
            check_size(shape, shape, 1, repr(url))
            _check_plausible(prod(shape[:2]), n_bytes, extension, url)
            metadata = file.metadata(index=0, exclude_applied=False)
            mode = metadata.get("mode")
            if mode in _INKS:
                raise ImageError(
                    f"pixels must be intensities or RGB, got {mode} in {url!r}; save it as gray "
                    "levels or RGB"
                )
            notes = orientation_notes(metadata.get("Orientation"), url)
            if deep := _deep_png(source):
                return np.asarray(imagecodecs.png_decode(deep)), notes
            if "transparency" in metadata:
                notes += (f"colours of {url!r} are to be shown transparent; that is not read",)
                if mode == "P":  # Pillow warns of leaving it out by itself
                    with_opacity: dict[str, Any] = {"mode": "RGBA"}
                    return np.asarray(file.read(index=0, **with_opacity))[..., :3], notes
            return np.asarray(file.read(index=0)), notes
    except (UnidentifiedImageError, OSError, imagecodecs.PngError) as error:
        raise ImageError(f"cannot decode {url!r}: {error}; the file may be damaged") from error


def _deep_png(source: str | io.BytesIO) -> bytes | None:
    """Return the bytes of a PNG of 16 bits with colour or opacity, of which Pillow reads 8."""
    with open(source, "rb") if isinstance(source, str) else io.BytesIO(source.getvalue()) as opened:
        head = opened.read(26)  # its last bytes are the bits of a sample, and the kind of colour
        is_deep = head[:8] == _PNG and head[24] == 16 and head[25] != 0
        return head + opened.read() if is_deep else None


@contextmanager
def _large_images_allowed() -> Iterator[None]:
    """Lift Pillow's limit of 89 million pixels, which is for servers fed by strangers.

    The limit is a global of Pillow, so one thread at a time may change it; `MAX_PIXELS` is asked
    instead, before anything is decoded.
    """
    with _PILLOW_LIMIT:
        limit = PillowImage.MAX_IMAGE_PIXELS
        PillowImage.MAX_IMAGE_PIXELS = None
        try:
            yield
        finally:
            PillowImage.MAX_IMAGE_PIXELS = limit
