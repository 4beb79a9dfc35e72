"""Calibration: how large a pixel is, in micrometres."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

MICROMETERS = {
    "angstrom": 1e-4,
    "nanometer": 1e-3,
    "nm": 1e-3,
    "micrometer": 1.0,
    "um": 1.0,
    "µm": 1.0,
    "millimeter": 1e3,
    "mm": 1e3,
    "centimeter": 1e4,
    "meter": 1e6,
}
"""Micrometres per unit of length; the long names are OME-NGFF's (0.5, section "axes")."""


def pixel_size_um(
    names: Sequence[str], pixel_size: Mapping[str, float], unit: Mapping[str, str]
) -> list[float]:
    """Return the pixel size per axis in micrometres, or nothing unless all are known lengths."""
    known = all(pixel_size.get(name) and unit.get(name) in MICROMETERS for name in names)
    return [pixel_size[name] * MICROMETERS[unit[name]] for name in names] if known else []
