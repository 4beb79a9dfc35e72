"""Microscope formats through bioio: LIF, ND2, CZI and whatever else a plugin of it reads.

bioio and its plugins are the extra ``bioio``; plugins under other licences are installed beside
it. A chunk is what the plugin decodes at once, mostly a plane or a whole volume, so tiles that cut
planes decode each more than once: convert such an image first where it is to be read often.
"""

from __future__ import annotations

import os
from collections.abc import Iterator
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
import numpy.typing as npt

from patchworks_core.errors import ImageError
from patchworks_core.files.locations import file_stamp, split_scene
from patchworks_core.images.readers.opened import Opened, check_level, choose_scene, file_axes
from patchworks_core.tiles.grid import SPATIAL_AXES

EXTRA = "pip install 'patchworks-pipeline[bioio]'"
"""Command that installs bioio and the plugins of permissive licences."""

PLUGINS = {
    ".lif": EXTRA,
    ".nd2": EXTRA,
    ".czi": "pip install bioio bioio-czi (GPL)",
    ".dv": "pip install bioio bioio-dv",
    ".r3d": "pip install bioio bioio-dv",
    ".sldy": "pip install bioio bioio-sldy",
    ".ims": "pip install bioio bioio-bioformats (needs Java)",
    ".vsi": "pip install bioio bioio-bioformats (needs Java)",
    ".oib": "pip install bioio bioio-bioformats (needs Java)",
    ".oif": "pip install bioio bioio-bioformats (needs Java)",
}
"""Microscope formats by extension, and the command that installs what reads them."""

_IN_MICROMETERS = (".czi", ".lif", ".nd2", ".dv", ".r3d")
"""Formats whose plugin gives pixel sizes in micrometers without saying so."""


@dataclass(frozen=True, slots=True)
class _Lazy:
    """A Dask array that is computed where it is sliced, in the thread that asks.

    Tiles are read in parallel already, and within a Dask worker the default scheduler would wait
    for the worker it occupies.
    """

    array: Any

    @property
    def shape(self) -> tuple[int, ...]:
        return tuple(self.array.shape)

    @property
    def dtype(self) -> np.dtype[Any]:
        dtype: np.dtype[Any] = np.dtype(self.array.dtype)
        return dtype

    def __getitem__(self, index: Any) -> npt.NDArray[Any]:
        return np.asarray(self.array[index].compute(scheduler="synchronous"))


def open_bioio(url: str, level: int, axes: str | None) -> Opened:
    """Open one scene of a local file with the bioio plugin that reads it.

    Parameters
    ----------
    url : str
        Path of a file, with ``#`` and the number or name of a scene; the first by default.
    level, axes
        As in `patchworks_core.images.image.open_image`.

    Returns
    -------
    Opened
        Time and z of size 1, which bioio adds where a file has none, are left out.

    Raises
    ------
    ImageError
        If bioio or the plugin is not installed, or the file cannot be read.
    """
    file, scene = split_scene(url)
    image = _bio_image(file)
    if scene is not None:
        image.set_scene(choose_scene(scene, [str(name) for name in image.scenes], repr(url)))
    levels = sorted(image.resolution_level_dims.items())
    check_level(level, [tuple(shape) for _, shape in levels], repr(url))
    image.set_resolution_level(levels[level][0])
    pixels = image.dask_data
    names = _names(image.dims.order, pixels.shape)
    letters = file_axes(names, pixels.shape, axes, repr(url))
    n_channels = pixels.shape[letters.index("c")] if "c" in letters else 0
    labels = tuple(map(str, image.channel_names or ()))
    sizes = _pixel_sizes(image, letters)
    return Opened(
        pixels=_Lazy(pixels),
        axes=letters,
        format=f"{os.path.splitext(file)[1][1:].upper()} (bioio)",
        stamp=partial(_stamp, file, str(image.current_scene)),
        chunks=tuple(int(n) for n in pixels.chunksize),
        # Names that do not fit the channels would name the wrong ones.
        channel_names=labels if len(labels) == n_channels else (),
        pixel_size=sizes,
        unit=_units(image, sizes, file),
        level=level,
        n_levels=len(levels),
        notes=_notes(image, scene, url),
    )


def _notes(image: Any, scene: str | None, url: str) -> tuple[str, ...]:
    """Say that there are other scenes, where nobody chose one."""
    n_scenes = len(image.scenes)
    if scene is not None or n_scenes < 2:
        return ()
    return (
        f"image 0 of {n_scenes} in {url!r} is read; name another one after '#', such as "
        f"{url + '#1'!r}",
    )


def bioio_images(url: str) -> list[str]:
    """Return the location of every scene of a file, that of the file where it has but one."""
    n_scenes = len(_bio_image(url).scenes)
    return [url] if n_scenes < 2 else [f"{url}#{i}" for i in range(n_scenes)]


def _bio_image(file: str) -> Any:
    """Open a file with the plugin that reads it."""
    extension = os.path.splitext(file)[1].lower()
    try:
        from bioio import BioImage
    except ImportError as error:
        raise ImageError(
            f"reading {extension!r} needs bioio and a plugin of it, which are not installed, got "
            f"{file!r}; {PLUGINS.get(extension, EXTRA)}"
        ) from error
    try:
        return BioImage(file)
    # A plugin may raise anything on a file it does not read; it is handed on, in words.
    except Exception as error:
        command = PLUGINS.get(extension)
        way_out = f"; if no plugin reads {extension!r} yet, {command}" if command else ""
        raise ImageError(
            f"bioio cannot open {file!r}: {type(error).__name__}: {error}{way_out}"
        ) from error


def _names(order: str, shape: tuple[int, ...]) -> list[str]:
    """Return the name of every axis; samples (RGB) are the channel, and one of t or z is none.

    Examples
    --------
    >>> _names("TCZYXS", (1, 1, 4, 8, 8, 3))
    ['-', '-', 'z', 'y', 'x', 'c']
    """
    sizes = dict(zip(order, shape, strict=True))
    if sizes.get("S", 1) > 1 and sizes.get("C", 1) == 1:
        order = order.replace("C", "-").replace("S", "C")
    return [
        "-" if n == 1 and letter in "TZ" else letter.lower()
        for letter, n in zip(order, shape, strict=True)
    ]


def _pixel_sizes(image: Any, letters: str) -> dict[str, float]:
    """Return the pixel size of every axis of which the file says one."""
    sizes = {axis: getattr(image.physical_pixel_sizes, axis.upper()) for axis in SPATIAL_AXES}
    interval: Any = getattr(image, "time_interval", None)
    sizes["t"] = interval.total_seconds() if hasattr(interval, "total_seconds") else interval
    return {
        axis: abs(float(size))
        for axis, size in sizes.items()
        if axis in letters and isinstance(size, (int, float)) and size
    }


def _units(image: Any, sizes: dict[str, float], file: str) -> dict[str, str]:
    """Return the units of pixel sizes that the plugin says or that are known of the format."""
    usual = dict.fromkeys(SPATIAL_AXES, "micrometer")
    usual = usual if file.lower().endswith(_IN_MICROMETERS) else {}
    usual["t"] = "second"
    units = {}
    for axis in sizes:
        unit_name = getattr(getattr(image.dimension_properties, axis.upper(), None), "unit", None)
        if (unit := unit_name or usual.get(axis)) is not None:
            units[axis] = str(unit)
    return units


def _stamp(file: str, scene: str) -> Iterator[bytes]:
    yield from file_stamp(file)
    yield scene.encode()
