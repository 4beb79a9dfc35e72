"""Metadata a person wants to see: pictures, tables, sizes in words."""

import base64
from collections.abc import Sequence

import dagster as dg

from patchworks_pipeline.records import ImageFolder


def picture(png: bytes, title: str) -> dg.MarkdownMetadataValue:
    """Return a picture as Markdown; the UI shows it behind "Show Markdown"."""
    return dg.MetadataValue.md(
        f"![{title}](data:image/png;base64,{base64.b64encode(png).decode()})"
    )


def shape_text(axes: str, values: Sequence[float]) -> str:
    """Return one value per axis with its name.

    Examples
    --------
    >>> shape_text("yx", (512, 640))
    'y 512, x 640'
    """
    return ", ".join(f"{axis} {value}" for axis, value in zip(axes, values, strict=True))


def size_text(axes: str, pixel_size: dict[str, float], unit: dict[str, str]) -> str:
    """Return the calibration in words.

    Examples
    --------
    >>> size_text("yx", {"y": 0.5, "x": 0.5}, {"y": "micrometer", "x": "micrometer"})
    'y 0.5 micrometer, x 0.5 micrometer'
    """
    sized = [axis for axis in axes if axis in pixel_size]
    if not sized:
        return "not calibrated"
    return ", ".join(
        f"{axis} {pixel_size[axis]:.6g} {unit.get(axis, '(no unit)')}" for axis in sized
    )


def file_of(folder: ImageFolder) -> dict[str, dg.PathMetadataValue]:
    """Return where the image is: its key need not show its name."""
    return {"file": dg.MetadataValue.path(folder.acquisition().url)}
