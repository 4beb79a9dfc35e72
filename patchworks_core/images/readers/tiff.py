"""TIFF in all its dialects, read chunk by chunk through tifffile and Zarr.

A local file whose pixels lie in one piece, uncompressed, is mapped into memory instead: without
tiles its chunks would be whole pages.

Pixel sizes and channel names are read in the dialects of OME-XML, ImageJ and Aperio SVS. The
resolution tags of any other TIFF are ignored: most programs write a screen's 72 dpi there.
"""

from __future__ import annotations

import weakref
from dataclasses import dataclass, field
from functools import partial
from typing import Any

import tifffile
import zarr
from tifffile.tifffile import svs_description_metadata

from patchworks_core.errors import ImageError
from patchworks_core.files.locations import file_stamp, filesystem, is_remote
from patchworks_core.images.readers.opened import Opened, check_level, file_axes
from patchworks_core.tiles.grid import SPATIAL_AXES

EXTENSIONS = (".tif", ".tiff", ".btf", ".tf2", ".tf8", ".svs", ".stk", ".lsm")
"""Extensions that tifffile reads as TIFF."""

_FORMATS = {"ome": "OME-TIFF", "imagej": "ImageJ TIFF", "svs": "SVS"}

_NGFF_UNITS = {
    "µm": "micrometer",
    "μm": "micrometer",
    "um": "micrometer",
    "\\u00B5m": "micrometer",
    "micron": "micrometer",
    "microns": "micrometer",
    "nm": "nanometer",
    "mm": "millimeter",
    "cm": "centimeter",
    "m": "meter",
    "Å": "angstrom",
    "in": "inch",
    "s": "second",
    "sec": "second",
    "ms": "millisecond",
    "min": "minute",
    "h": "hour",
}
_NOT_UNITS = {"", "pixel", "pixels", "reference frame"}


@dataclass(frozen=True, slots=True)
class TiffMetadata:
    """What a TIFF says about its full resolution, beyond shape and type."""

    pixel_size: dict[str, float] = field(default_factory=dict)
    """Distance between pixel centres, per axis."""

    unit: dict[str, str] = field(default_factory=dict)
    """Unit of `pixel_size`."""

    channel_names: tuple[str, ...] = ()
    """Names of the channels."""


def open_tiff(url: str, level: int, axes: str | None) -> Opened:
    """Open the first series of a TIFF, from a local path or through fsspec.

    Samples (RGB) are the channel axis. A file with channels and samples, both longer than 1, is
    refused: merging them would invent an order.
    """
    try:
        tif = tifffile.TiffFile(_file(url))
    except (tifffile.TiffFileError, OSError) as error:
        raise ImageError(f"cannot open {url!r} as TIFF: {error}") from error
    try:
        opened = _open_series(tif, url, level, axes)
    except BaseException:
        tif.close()
        raise
    if isinstance(opened.pixels, zarr.Array):
        # The chunks are read from this file for as long as anybody holds the array.
        weakref.finalize(opened.pixels, tif.close)
    else:
        tif.close()
    return opened


def _file(url: str) -> Any:
    """Return what tifffile opens: a path, or a file object of a remote file."""
    if not is_remote(url):
        return url
    fs, path = filesystem(url)
    return fs.open(path, "rb")


def _open_series(tif: tifffile.TiffFile, url: str, level: int, axes: str | None) -> Opened:
    """Open one level of the first series."""
    if not tif.series:
        raise ImageError(f"a TIFF needs at least one image, got none in {url!r}")
    series = tif.series[0]
    shapes = [tuple(part.shape) for part in series.levels]
    check_level(level, shapes, repr(url))
    part = series.levels[level]
    letters = _letters(part, axes, url)
    metadata = _read_metadata(tif, series)
    pixels = _pixels(tif, series, level, url)
    n_channels = part.shape[letters.index("c")] if "c" in letters else 0
    names = metadata.channel_names
    return Opened(
        pixels=pixels,
        axes=letters,
        format=_FORMATS.get(series.kind, "TIFF"),
        stamp=partial(file_stamp, url),
        chunks=tuple(pixels.chunks) if isinstance(pixels, zarr.Array) else None,
        # Names that do not fit the channels would name the wrong ones.
        channel_names=names if len(names) == n_channels else (),
        pixel_size=_level_pixel_size(metadata, letters, shapes[0], shapes[level]),
        unit={axis: unit for axis, unit in metadata.unit.items() if axis in letters},
        level=level,
        n_levels=len(shapes),
    )


def _letters(part: tifffile.TiffPageSeries, axes: str | None, url: str) -> str:
    """Return the letter of every axis of a series."""
    sizes = dict(zip(part.axes, part.shape, strict=True))
    if axes is None and min(sizes.get("C", 1), sizes.get("S", 1)) > 1:
        raise ImageError(
            f"an image has one channel axis, got channels (C) and samples (S) in axes "
            f"{part.axes!r} of shape {tuple(part.shape)!r} in {url!r}; save it with one of them, "
            "or pass axes= with another letter for one, such as 't' for the channels"
        )
    names = ["c" if letter == "S" else letter for letter in part.axes]
    return file_axes(names, part.shape, axes, repr(url))


def _pixels(tif: tifffile.TiffFile, series: tifffile.TiffPageSeries, level: int, url: str) -> Any:
    """Return the pixels as a memory map where they lie in one piece, else as a Zarr array."""
    part = series.levels[level]
    if part.dataoffset is not None and not is_remote(url) and part.size:
        dtype = part.dtype.newbyteorder(tif.byteorder)
        return tif.filehandle.memmap_array(dtype, part.shape, part.dataoffset, mode="r")
    return zarr.open_array(series.aszarr(level=level), mode="r")


def _level_pixel_size(
    metadata: TiffMetadata, letters: str, full: tuple[int, ...], shape: tuple[int, ...]
) -> dict[str, float]:
    """Return the pixel size of a level, which spans the same width with fewer pixels."""
    sizes = {}
    for letter, whole, pixels in zip(letters, full, shape, strict=True):
        if letter in metadata.pixel_size:
            sizes[letter] = metadata.pixel_size[letter] * (whole / pixels)
    return sizes


def _read_metadata(tif: tifffile.TiffFile, series: tifffile.TiffPageSeries) -> TiffMetadata:
    """Read the metadata of the first series in the dialect tifffile recognised."""
    if series.kind == "ome" and tif.ome_metadata:
        return _ome(tifffile.xml2dict(tif.ome_metadata))
    if series.kind == "imagej":
        return _imagej(tif)
    if series.kind == "svs":
        return _svs(tif)
    return TiffMetadata()


def _ome(xml: dict[str, Any]) -> TiffMetadata:
    """Read PhysicalSize, TimeIncrement and Channel names of the first OME image."""
    images = xml.get("OME", {}).get("Image", {})
    pixels = (images[0] if isinstance(images, list) else images).get("Pixels", {})
    values = {axis: pixels.get(f"PhysicalSize{axis.upper()}") for axis in SPATIAL_AXES}
    units = {axis: pixels.get(f"PhysicalSize{axis.upper()}Unit", "µm") for axis in SPATIAL_AXES}
    values["t"] = pixels.get("TimeIncrement")
    units["t"] = pixels.get("TimeIncrementUnit", "s")
    channels = pixels.get("Channel", [])
    channels = channels if isinstance(channels, list) else [channels]
    names = [c.get("Name") if isinstance(c, dict) else None for c in channels]
    named = all(name is not None for name in names)
    return _metadata(values, units, tuple(map(str, names)) if named else ())


def _imagej(tif: tifffile.TiffFile) -> TiffMetadata:
    """Read the resolution tags, which ImageJ counts in its own unit, and the spacing in z."""
    facts = tif.imagej_metadata or {}
    unit = str(facts.get("unit", ""))
    page = tif.pages.first
    values: dict[str, Any] = {"z": facts.get("spacing"), "t": facts.get("finterval")}
    for axis, tag in (("y", "YResolution"), ("x", "XResolution")):
        numerator, denominator = page.tags[tag].value if tag in page.tags else (0, 1)
        values[axis] = denominator / numerator if numerator else None
    units = {**dict.fromkeys(SPATIAL_AXES, unit), "t": str(facts.get("tunit", "s"))}
    if unit in _NOT_UNITS:
        values.update(dict.fromkeys(SPATIAL_AXES))
    return _metadata(values, units)


def _svs(tif: tifffile.TiffFile) -> TiffMetadata:
    """Read Aperio's MPP, micrometers per pixel."""
    mpp = svs_description_metadata(tif.pages.first.description).get("MPP")
    return _metadata({"y": mpp, "x": mpp}, {"y": "µm", "x": "µm"})


def _metadata(
    values: dict[str, Any], units: dict[str, str], names: tuple[str, ...] = ()
) -> TiffMetadata:
    """Keep the axes that have a size greater than 0, with OME-NGFF words for units."""
    sizes = {
        axis: float(value)
        for axis, value in values.items()
        if isinstance(value, (int, float)) and value > 0
    }
    kept = {a: _NGFF_UNITS.get(units[a], units[a]) for a in sizes if units[a] not in _NOT_UNITS}
    return TiffMetadata(sizes, kept, names)
