"""What the stored values of a TIFF mean: read as they are, inverted, or refused.

TIFF says in PhotometricInterpretation how values are to be shown. ImageJ, OME and tifffile count
the stored values themselves, whatever a lookup table makes of them on the screen; tifffile writes
every mask of one bit with 0 for white.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import numpy.typing as npt
import tifffile

from patchworks_core.errors import ImageError
from patchworks_core.images.readers.opened import Opened, orientation_notes

_DATA = {"imagej", "ome", "shaped", "lsm", "stk", "mmstack", "ndtiff", "scanimage"}
"""Kinds of series, as tifffile names them, whose stored values are what was measured."""

ORIENTATION = 274
"""Tag of TIFF and EXIF."""

_COLOURS: dict[int, str] = {
    tifffile.PHOTOMETRIC.SEPARATED: "inks (CMYK)",
    tifffile.PHOTOMETRIC.CIELAB: "CIE L*a*b*",
    tifffile.PHOTOMETRIC.ICCLAB: "CIE L*a*b*",
    tifffile.PHOTOMETRIC.ITULAB: "CIE L*a*b*",
    tifffile.PHOTOMETRIC.CFA: "a mosaic of colour filters (Bayer)",
    tifffile.PHOTOMETRIC.LOGL: "logarithms of luminance",
    tifffile.PHOTOMETRIC.LOGLUV: "logarithms of luminance and chromaticity",
}
"""Interpretations that nothing here turns into intensities."""

_CODECS_WITH_COLOUR = {
    tifffile.COMPRESSION.NONE,
    tifffile.COMPRESSION.LZW,
    tifffile.COMPRESSION.ADOBE_DEFLATE,
    tifffile.COMPRESSION.DEFLATE,
    tifffile.COMPRESSION.PACKBITS,
    tifffile.COMPRESSION.ZSTD,
}
"""Compressions that leave YCbCr as it is; JPEG and its like give RGB."""


@dataclass(frozen=True, slots=True)
class Inverted:
    """Pixels that are stored as how far they are from white."""

    stored: Any
    white: int

    makes_new_arrays = True

    @property
    def shape(self) -> tuple[int, ...]:
        """Pixels per axis."""
        return tuple(self.stored.shape)

    @property
    def dtype(self) -> np.dtype[Any]:
        """Type of the pixels."""
        dtype: np.dtype[Any] = np.dtype(self.stored.dtype)
        return dtype

    def __getitem__(self, index: Any) -> npt.NDArray[Any]:
        block = np.asarray(self.stored[index])
        if block.dtype == bool:
            return ~block
        return np.asarray(block.dtype.type(self.white) - block)


def as_shown(opened: Opened, page: tifffile.TiffPage, kind: str, url: str) -> Opened:
    """Return an image with the values that are meant.

    Parameters
    ----------
    opened : Opened
        With the values as they are stored.
    page : TiffPage
        A page of it.
    kind : str
        Of its series, as tifffile names it.
    url : str
        Of the file, for messages.

    Raises
    ------
    ImageError
        If the values are no intensities and cannot be turned into them.
    """
    turned = orientation_notes(page.tags.valueof(ORIENTATION), url)
    opened = replace(opened, notes=(*opened.notes, *turned))
    meaning = page.photometric
    colours = _COLOURS.get(meaning)
    is_ycbcr = meaning == tifffile.PHOTOMETRIC.YCBCR
    if is_ycbcr and page.compression in _CODECS_WITH_COLOUR:
        colours = "luminance and colour differences (YCbCr)"
    if colours is not None:
        raise ImageError(
            f"pixels must be intensities or RGB, got {colours} in {url!r}; save it as gray levels "
            "or RGB"
        )
    if meaning == tifffile.PHOTOMETRIC.PALETTE:
        return _of_palette(opened, page, kind, url)
    if meaning == tifffile.PHOTOMETRIC.MINISWHITE:
        return _of_white(opened, page, kind, url)
    return opened


def _of_palette(opened: Opened, page: tifffile.TiffPage, kind: str, url: str) -> Opened:
    """Return what a colour table shows, where the values go from dark to bright or are data."""
    table = page.colormap
    is_ramp = table is not None and bool((np.diff(table.astype(np.int64), axis=-1) >= 0).all())
    if not is_ramp and kind not in _DATA:
        raise ImageError(
            f"pixels must be intensities or RGB, got numbers of colours in a table in {url!r}; "
            "save it as gray levels or RGB"
        )
    note = f"{url!r} is shown through a colour table; its values are read, and not its colours"
    return replace(opened, notes=(*opened.notes, note))


def _of_white(opened: Opened, page: tifffile.TiffPage, kind: str, url: str) -> Opened:
    """Return values that grow with brightness, where 0 is white."""
    if kind in _DATA:
        note = f"{url!r} is shown inverted; its values are read, as they are stored"
        return replace(opened, notes=(*opened.notes, note))
    if np.dtype(opened.pixels.dtype).kind not in "bu":
        raise ImageError(
            f"0 can be white only where values have a greatest one, got {opened.pixels.dtype} in "
            f"{url!r}; save it with 0 for black"
        )
    note = f"0 is white in {url!r}; its values are read inverted, so that bright is high"
    pixels = Inverted(opened.pixels, 2 ** int(page.bitspersample) - 1)
    return replace(opened, pixels=pixels, notes=(*opened.notes, note))
