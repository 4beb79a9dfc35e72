"""TIFF in all its dialects, read chunk by chunk through tifffile and Zarr.

A local file whose pixels lie in one piece, uncompressed, is mapped into memory instead: without
tiles its chunks would be whole pages.

Pixel sizes and channel names are read in the dialects of OME-XML, ImageJ and Aperio SVS. The
resolution tags of any other TIFF count where they have a unit and are not those of a screen or a
printer, such as 72 dpi, which most programs write.
"""

from __future__ import annotations

import logging
import os
import threading
import weakref
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from functools import partial
from math import inf, prod
from typing import Any
from xml.etree.ElementTree import Element

import tifffile
import zarr
from tifffile.tifffile import svs_description_metadata

from patchworks_core.errors import ImageError
from patchworks_core.files.locations import (
    check_regular_file,
    file_stamp,
    filesystem,
    is_remote,
    is_within,
    split_scene,
)
from patchworks_core.images.readers.chunk_cache import keeping
from patchworks_core.images.readers.file_array import FileArray
from patchworks_core.images.readers.gaps import gaps_in, stored_segments
from patchworks_core.images.readers.ome_xml import (
    check_counts,
    check_described_here,
    children,
    ome_images,
    ome_pixels,
    other_names,
)
from patchworks_core.images.readers.opened import (
    Opened,
    axes_notes,
    check_level,
    check_size,
    choose_scene,
    file_axes,
)
from patchworks_core.images.readers.photometric import as_shown
from patchworks_core.tiles.grid import SPATIAL_AXES

EXTENSIONS = (
    *(".tif", ".tiff", ".btf", ".tf2", ".tf8", ".stk", ".lsm", ".gel"),
    *(".svs", ".ndpi", ".scn", ".bif", ".qptiff"),
)
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
_RESOLUTION_UNITS = {2: 25400.0, 3: 10000.0}
"""Micrometers per ResolutionUnit: inch and centimeter (TIFF 6.0, section 3)."""

_DPI_OF_SCREENS = (1, 72, 96, 100, 150, 200, 300, 600, 1200)
"""Pixels per inch that say how to show or print an image, and nothing of what is in it."""

_PLAIN = ("generic", "uniform", "shaped")
"""Kinds of series, as tifffile names them, without calibration of their own."""

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
    """Open a series of a TIFF, from a local path or through fsspec.

    It is the one that is named after ``#``, or the first with pixels in this file. Samples (RGB)
    are the channel axis. A file with channels and samples, both longer than 1, is refused: merging
    them would invent an order.

    Raises
    ------
    ImageError
        If it is no TIFF, has no such series, or fewer planes or bytes are there than it says.
    """
    file, scene = split_scene(url)
    with _reading(file) as (tif, complaints):
        _check_names(tif, file)
        check_described_here(tif, axes, url)
        series = _series(tif, scene, url)
        len(tif.pages)  # follows the chain of pages to its end
        _check_silence(complaints, url)
        opened = _open_series(tif, series, file, level, axes)
        stored = opened.pixels
        opened = as_shown(opened, series.keyframe, series.kind, file)
        _check_silence(complaints, url)
        if scene is None:
            opened = replace(opened, notes=opened.notes + _others(tif, series, url))
        if isinstance(stored, zarr.Array):
            # The chunks are read from this file for as long as anybody holds the array.
            weakref.finalize(stored, tif.close)
        else:
            tif.close()
    return opened


def tiff_images(url: str) -> list[str]:
    """Return the location of every series of a TIFF, that of the file where it has but one."""
    file, scene = split_scene(url)
    if scene is not None:
        return [url]
    with _reading(file) as (tif, _):
        _check_names(tif, file)
        n_series = len(tif.series)
        tif.close()
    return [url] if n_series < 2 else [f"{url}#{i}" for i in range(n_series)]


@contextmanager
def _reading(file: str) -> Iterator[tuple[tifffile.TiffFile, list[str]]]:
    """Open a TIFF, with what tifffile logs of it; any error closes it and is an ImageError."""
    if not is_remote(file):
        check_regular_file(file, repr(file))
    with _complaints() as complaints:
        try:
            tif = tifffile.TiffFile(_file(file))
        except (tifffile.TiffFileError, OSError) as error:
            raise ImageError(f"cannot open {file!r} as TIFF: {error}") from error
        try:
            yield tif, complaints
        except BaseException as error:
            tif.close()
            # What a damaged tag makes tifffile raise is of any kind: IndexError, struct.error, ...
            if isinstance(error, Exception) and not isinstance(error, ImageError):
                raise _damaged(file, f"reading it fails with {error!r}") from error
            raise


@contextmanager
def _complaints() -> Iterator[list[str]]:
    """Collect what tifffile only logs, in this thread, while a file is opened."""
    heard: list[str] = []
    thread = threading.get_ident()

    class Listener(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            if record.thread == thread:
                heard.append(record.getMessage())

    listener = Listener(logging.WARNING)
    log = logging.getLogger("tifffile")
    log.addHandler(listener)
    try:
        yield heard
    finally:
        log.removeHandler(listener)


def _check_silence(complaints: Sequence[str], url: str) -> None:
    """Raise ImageError if tifffile complained."""
    if complaints:
        raise _damaged(url, f"reading it gives: {complaints[0]}")


def _damaged(url: str, what: str) -> ImageError:
    return ImageError(
        f"the TIFF {url!r} is damaged or not complete: {what}; copy it again from where it was "
        "written"
    )


def _file(url: str) -> Any:
    """Return what tifffile opens: a path, or a file object of a remote file."""
    if not is_remote(url):
        return url
    fs, path = filesystem(url)
    return fs.open(path, "rb")


def other_files(file: str) -> tuple[int, tuple[str, ...]]:
    """Return how many images a TIFF has, where it names other files of them, and their names.

    Only its header and description are read, so that the other files need not be there.
    """
    with _reading(file) as (tif, _):
        names = other_names(tif)
        n_images = len(ome_images(tif)) if names else 1
        tif.close()
    return n_images, names


def _check_names(tif: tifffile.TiffFile, file: str) -> None:
    """Raise ImageError where OME-XML names a file elsewhere, or what is no file, or too much."""
    check_counts(tif, repr(file))
    if is_remote(file):
        return
    folder = os.path.dirname(file)
    # A set may be put into a folder by links to its files.
    tops = [folder, os.path.dirname(os.path.realpath(file))]
    for name in other_names(tif):
        path = os.path.join(folder, name)
        if os.path.isabs(name) or ".." in name.split("/") or not is_within(path, tops):
            raise ImageError(
                f"the files of an image lie in one folder, got {name!r} named in {file!r}; put it "
                "there, and correct the metadata"
            )
        check_regular_file(path, repr(file))


def _series(tif: tifffile.TiffFile, scene: str | None, url: str) -> tifffile.TiffPageSeries:
    """Return a series by name or number; it has all the planes that the file says it has."""
    if not tif.series:
        raise ImageError(f"a TIFF needs at least one image, got none in {url!r}")
    if scene is None:
        series = next((s for s in tif.series if _has_pages_of(s, tif)), tif.series[0])
    else:
        names = [str(series.name) for series in tif.series]
        series = tif.series[choose_scene(scene, names, repr(url))]
    _check_count(tif, series, url)
    return series


def _has_pages_of(series: tifffile.TiffPageSeries, tif: tifffile.TiffFile) -> bool:
    """Tell whether a series has pixels in a file; of a set, others may have all of them."""
    return any(page is not None and page.parent is tif for page in series.pages)


def _open_series(
    tif: tifffile.TiffFile,
    series: tifffile.TiffPageSeries,
    url: str,
    level: int,
    axes: str | None,
) -> Opened:
    """Open one level of a series."""
    shapes = [tuple(part.shape) for part in series.levels]
    check_level(level, shapes, repr(url))
    part = series.levels[level]
    letters = _letters(part, axes, url)
    if part.dataoffset is None:
        check_size(part.shape, part.keyframe.chunks, part.dtype.itemsize, repr(url))
    files = _files_of(tif, part, url)
    is_stored = stored_segments(part)
    metadata = _read_metadata(tif, series)
    pixels = _pixels(tif, series, level, url)
    n_channels = part.shape[letters.index("c")] if "c" in letters else 0
    names = metadata.channel_names
    return Opened(
        pixels=pixels,
        axes=letters,
        format=_FORMATS.get(series.kind, "TIFF"),
        stamp=partial(_stamp, url, files, tif.series.index(series)),
        chunks=tuple(pixels.chunks) if isinstance(pixels, zarr.Array) else None,
        # Names that do not fit the channels would name the wrong ones.
        channel_names=names if len(names) == n_channels else (),
        pixel_size=_level_pixel_size(metadata, letters, shapes[0], shapes[level]),
        unit={axis: unit for axis, unit in metadata.unit.items() if axis in letters},
        level=level,
        n_levels=len(shapes),
        notes=axes_notes(part.axes, letters, axes, url),
        gaps=partial(gaps_in, is_stored, f"strips or tiles of {url!r}", part.keyframe.nodata),
    )


def _others(tif: tifffile.TiffFile, series: tifffile.TiffPageSeries, url: str) -> tuple[str, ...]:
    """Say that there are other images, where nobody chose one."""
    n_series, number = len(tif.series), tif.series.index(series)
    if n_series < 2:
        return ()
    other = f"{url}#{(number + 1) % n_series}"
    return (
        f"image {number} of {n_series} in {url!r} is read; name another one after '#', such as "
        f"{other!r}",
    )


def _check_count(tif: tifffile.TiffFile, series: tifffile.TiffPageSeries, url: str) -> None:
    """Raise ImageError unless a series has as many planes as the file says it has."""
    sizes = dict(zip(series.axes, series.shape, strict=True))
    n_planes = series.size // (sizes.get("Y", 1) * sizes.get("X", 1))
    for n_said, rule in _counts_said(tif, series):
        if n_said != n_planes:
            raise _damaged(url, f"{rule} says {n_said} planes, and {n_planes} are there")


def _counts_said(
    tif: tifffile.TiffFile, series: tifffile.TiffPageSeries
) -> Iterator[tuple[int, str]]:
    """Yield how many planes of samples a file says it has, and where it says so."""
    if series.kind == "ome" and tif.ome_metadata:
        pixels = ome_pixels(tif, series)
        sizes = [pixels.get(name, "") for name in ("SizeZ", "SizeC", "SizeT")]
        if all(size.isdecimal() for size in sizes):
            yield prod(map(int, sizes)), "SizeZ x SizeC x SizeT of its OME-XML"
    if tif.imagej_metadata and "images" in tif.imagej_metadata:
        samples = dict(zip(series.axes, series.shape, strict=True)).get("S", 1)
        yield int(tif.imagej_metadata["images"]) * samples, "images= of ImageJ"
    if tif.shaped_metadata and series.kind in ("shaped", "generic", "uniform"):
        described = tif.shaped_metadata
        number = tif.series.index(series) if len(described) == len(tif.series) else 0
        shape = described[number].get("shape", ())
        flat = dict(zip(series.axes, series.shape, strict=True))
        plane = flat.get("Y", 1) * flat.get("X", 1)
        if shape and plane:
            yield prod(map(int, shape)) // plane, f"shape {tuple(shape)!r} of its description"


def _files_of(tif: tifffile.TiffFile, part: tifffile.TiffPageSeries, url: str) -> tuple[str, ...]:
    """Return the files that hold a level, beside the one that was named; all pixels are in them.

    Raises
    ------
    ImageError
        If a plane is in no file, or a file ends before the pixels it should hold.
    """
    files = set()
    if part.dataoffset is not None and _has_pages_of(part, tif):
        end, size = part.dataoffset + part.nbytes, tif.filehandle.size
        if end > size:
            raise _damaged(url, f"its pixels end at byte {end}, and it has {size}")
        return ()
    for number, page in enumerate(part.pages):
        if page is None:
            raise _damaged(url, f"plane {number} of {len(part.pages)} is in no file that is there")
        handle = page.parent.filehandle
        segments = zip(page.dataoffsets, page.databytecounts, strict=True)
        end = max((offset + n for offset, n in segments if n), default=0)
        if end > handle.size:
            raise _damaged(
                url,
                f"plane {number} of {len(part.pages)} ends at byte {end}, and {handle.name!r} has "
                f"{handle.size}",
            )
        files.add(handle.path)
    return () if is_remote(url) else tuple(sorted(files - {os.path.abspath(url)}))


def _stamp(url: str, others: tuple[str, ...], series: int) -> Iterator[bytes]:
    """Yield what identifies an image in one or several files."""
    for file in (url, *others):
        yield from file_stamp(file)
    if series:
        yield f"#{series}".encode()


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
    """Return the pixels as one array in the file where they lie in one piece, else as Zarr."""
    part = series.levels[level]
    offset = part.dataoffset if _has_pages_of(part, tif) else None
    if offset is not None and not is_remote(url) and part.size:
        dtype = part.dtype.newbyteorder(tif.byteorder)
        return FileArray(tif.filehandle.path, dtype, part.shape, offset)
    return keeping(zarr.open_array(series.aszarr(level=level, read_only=True), mode="r"))


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
    """Read the metadata of a series in the dialect tifffile recognised."""
    if series.kind == "ome" and tif.ome_metadata:
        return _ome(ome_pixels(tif, series))
    if series.kind == "imagej":
        return _imagej(tif)
    # The size is of the slide, and not of the pictures of its label and of all of it.
    if series.kind == "svs" and tif.series.index(series) == 0:
        return _svs(tif)
    return _plain(series.keyframe) if series.kind in _PLAIN else TiffMetadata()


def _plain(page: tifffile.TiffPage) -> TiffMetadata:
    """Read the resolution tags of a TIFF without a dialect of its own."""
    unit = page.tags.valueof("ResolutionUnit")
    micrometers = _RESOLUTION_UNITS.get(int(unit)) if isinstance(unit, int) else None
    values: dict[str, Any] = {}
    for axis, tag in (("y", "YResolution"), ("x", "XResolution")):
        numerator, denominator = page.tags.valueof(tag) or (0, 1)
        if micrometers is None or not numerator or not denominator:
            continue
        size = micrometers * denominator / numerator
        if not any(abs(25400 / dpi / size - 1) < 0.005 for dpi in _DPI_OF_SCREENS):
            values[axis] = size
    return _metadata(values, dict.fromkeys(values, "µm"))


def _ome(pixels: Element) -> TiffMetadata:
    """Read PhysicalSize, TimeIncrement and Channel names of an OME image."""
    values: dict[str, Any] = {
        axis: pixels.get(f"PhysicalSize{axis.upper()}") for axis in SPATIAL_AXES
    }
    units = {axis: pixels.get(f"PhysicalSize{axis.upper()}Unit", "µm") for axis in SPATIAL_AXES}
    values["t"] = pixels.get("TimeIncrement")
    units["t"] = pixels.get("TimeIncrementUnit", "s")
    # As text: a channel may be called 0405 or true.
    names = [channel.get("Name") for channel in children(pixels, "Channel")]
    named = tuple(name for name in names if name is not None)
    return _metadata(values, units, named if len(named) == len(names) else ())


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
    sizes = {axis: size for axis, value in values.items() if (size := _size(value)) is not None}
    kept = {a: _NGFF_UNITS.get(units[a], units[a]) for a in sizes if units[a] not in _NOT_UNITS}
    return TiffMetadata(sizes, kept, names)


def _size(value: Any) -> float | None:
    """Return a size greater than 0, of a number or a text."""
    try:
        size = float(value)
    except (TypeError, ValueError):
        return None
    return size if 0 < size < inf else None
