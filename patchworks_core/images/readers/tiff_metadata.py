"""Pixel sizes and channel names in the dialects of TIFF: OME-XML, ImageJ, Aperio SVS.

The resolution tags of any other TIFF are ignored: most programs write a screen's 72 dpi there.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import tifffile
from tifffile.tifffile import svs_description_metadata

from patchworks_core.tiles.grid import SPATIAL_AXES

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


def read_metadata(tif: tifffile.TiffFile, series: tifffile.TiffPageSeries) -> TiffMetadata:
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
