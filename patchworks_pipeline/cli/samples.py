"""The command ``patchworks samples``: the images that the documentation speaks of."""

from collections.abc import Callable
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import numpy.typing as npt
import typer

from patchworks_pipeline.cli.terminal import say

SHAPE = (12, 160, 200)
"""Of the volume, zyx."""


def samples(
    folder: Annotated[Path, typer.Argument(help="Where to write them.")] = Path("."),
) -> None:
    """Write the sample images of the documentation; what is there already is kept."""
    for path in write_samples(folder):
        say(f"wrote {path}")


def write_samples(folder: Path) -> list[Path]:
    """Write each sample that is not there yet; return what was written."""
    folder.mkdir(parents=True, exist_ok=True)
    pixels = _volume()
    writers: dict[str, Callable[[Path, npt.NDArray[np.uint16]], None]] = {
        "volume.ome.zarr": _write_volume,
        "nuclei.tif": _write_plane,
        "tiles.zarr": _write_tiles,
    }
    written = []
    for name, write in writers.items():
        path = folder / name
        if not path.exists():
            write(path, pixels)
            written.append(path)
    return written


def _volume() -> npt.NDArray[np.uint16]:
    """Return two channels of round objects over noise, axes czyx."""
    z, y, x = np.ogrid[: SHAPE[0], : SHAPE[1], : SHAPE[2]]
    waves = np.sin(y / 9) * np.sin(x / 11) * np.sin((z + 3) / 6)
    noise = np.random.default_rng(0).normal(100, 3, (2, *SHAPE))
    signal = np.clip(np.stack([waves, -waves]) - 0.4, 0, None)
    return (noise + 1500 * signal).astype(np.uint16)


def _plane(pixels: npt.NDArray[np.uint16]) -> npt.NDArray[np.uint16]:
    """Return the plane in the middle of the first channel."""
    plane: npt.NDArray[np.uint16] = pixels[0, SHAPE[0] // 2]
    return plane


def _write_volume(path: Path, pixels: npt.NDArray[np.uint16]) -> None:
    """Write both channels as OME-Zarr with two levels and the size of a pixel."""
    import zarr

    group = zarr.open_group(str(path), mode="w", zarr_format=3)
    datasets: list[Any] = []
    for level, step in enumerate((1, 2)):
        part = pixels[:, :, ::step, ::step]
        array = group.create_array(
            str(level), shape=part.shape, dtype=part.dtype, chunks=(1, SHAPE[0], 64, 64)
        )
        array[...] = part
        scale = [1.0, 0.5, 0.2 * step, 0.2 * step]
        transform = {"type": "scale", "scale": scale}
        datasets.append({"path": str(level), "coordinateTransformations": [transform]})
    space = [{"name": axis, "type": "space", "unit": "micrometer"} for axis in "zyx"]
    axes: list[Any] = [{"name": "c", "type": "channel"}, *space]
    group.attrs["ome"] = {
        "version": "0.5",
        "multiscales": [{"axes": axes, "datasets": datasets}],
        "omero": {"channels": [{"label": "DAPI"}, {"label": "GFP"}]},
    }


def _write_plane(path: Path, pixels: npt.NDArray[np.uint16]) -> None:
    """Write one plane of the first channel as TIFF."""
    import tifffile

    tifffile.imwrite(path, _plane(pixels), photometric="minisblack")


def _write_tiles(path: Path, pixels: npt.NDArray[np.uint16]) -> None:
    """Write labels of that plane that were made in four tiles, each counting from 1."""
    import zarr
    from scipy import ndimage

    plane = _plane(pixels)
    half = (plane.shape[0] // 2, plane.shape[1] // 2)
    stored = zarr.open_group(str(path), mode="w").create_array(
        "labels", shape=plane.shape, dtype="int32", chunks=half
    )
    for y in (0, half[0]):
        for x in (0, half[1]):
            tile = (slice(y, y + half[0]), slice(x, x + half[1]))
            stored[tile] = ndimage.label(plane[tile] > 300)[0]
