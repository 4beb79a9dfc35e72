"""Convert: any image that opens becomes a calibrated OME-Zarr with pyramid, in bounded memory.

1. `layout_of` chooses chunks, shards, and the unit that one task handles: whole shards (or whole
   chunks), so that no two tasks write one file.
2. `_Copy` writes the full resolution unit by unit.
3. `LevelTask` writes each level from the one above it, unit by unit and within it chunk by chunk:
   of 2 pixels along every halved axis the rounded mean, or of labels the most frequent id.
4. The metadata come last, and then it takes the place of what was there
   (`patchworks_core.files.replacing`). A killed call leaves no image.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from math import ceil
from typing import Any

import numpy as np
import zarr
from upath import UPath

from patchworks_core.errors import ImageError, PlanError
from patchworks_core.files.array_writer import ArrayWriter
from patchworks_core.files.label_arrays import refuse_file_name
from patchworks_core.files.replacing import replacing
from patchworks_core.files.storage import (
    Location,
    as_path,
    create_array,
    open_array,
    zarr_store,
)
from patchworks_core.images.image import Image, open_all_channels
from patchworks_core.images.image_source import ImageSource
from patchworks_core.machine.pools import Pool
from patchworks_core.machine.progress import Progress
from patchworks_core.machine.workers import Workers
from patchworks_core.ome_zarr.averaging import local_mean
from patchworks_core.ome_zarr.layout import Layout, ShardsWanted, layout_of
from patchworks_core.ome_zarr.metadata import (
    ZARR_FORMATS,
    Levels,
    OmeVersion,
    Window,
    check_axes,
    contrast,
    image_attributes,
    label_attributes,
)
from patchworks_core.ome_zarr.most_frequent import most_frequent
from patchworks_core.ome_zarr.pyramid import LevelTask, level_steps
from patchworks_core.tiles.numbers import whole_number
from patchworks_core.tiles.regions import Region


@dataclass(frozen=True, slots=True)
class ConvertedImage:
    """What `convert_image` wrote."""

    path: UPath
    """The OME-Zarr."""

    shapes: list[tuple[int, ...]]
    """Pixels per axis, of every level."""

    layout: Layout
    """Of the full resolution."""

    peak_bytes: int
    """Most memory that pixels took at once, as `Layout.peak_bytes` reckons it."""


def convert_image(
    image: ImageSource,
    write_to: Location,
    *,
    chunks: Sequence[int] | None = None,
    shards: ShardsWanted = "auto",
    version: OmeVersion = "0.5",
    levels: int | None = None,
    labels: bool | None = None,
    workers: Workers | None = None,
    progress: Progress | None = None,
    overwrite: bool = False,
) -> ConvertedImage:
    """Write an image as OME-Zarr with a pyramid, in memory that its size does not change.

    Parameters
    ----------
    image : Image, array, path or URL
        Anything `open_image` opens, all its channels; an `Image` is taken as it was opened.
    write_to : path or URL
        The OME-Zarr to write, such as ``plate1.ome.zarr``.
    chunks : sequence of int, optional
        Pixels of a chunk per axis of the image; 512 x 512, or 16 x 256 x 256 where there is z.
    shards : sequence of int, "auto" or None
        Pixels of a shard, which is one file of many chunks; None writes a file per chunk. OME-Zarr
        0.4 has no shards.
    version : {"0.5", "0.4"}
        Of OME-NGFF: 0.5 on Zarr v3, 0.4 on v2.
    levels : int, optional
        Resolutions at most, the full one included; None goes on to 256 pixels.
    labels : bool, optional
        Whether pixels are ids of objects, 0 background: lower levels then hold ids that are there,
        and the result says that it is a label image. None asks the metadata of the image, which
        only OME-Zarr has.
    workers : Workers, optional
        One thread by default.
    progress : callable, optional
        ``progress(step, done, total)``.
    overwrite : bool
        Replace whatever is at `write_to`; what patchworks wrote there itself, and nobody changed
        since, is replaced anyway.

    Returns
    -------
    ConvertedImage

    Raises
    ------
    ImageError
        If the image cannot be opened, or is to be labels and is not.
    PlanError
        If something is at `write_to` that is not ours to replace, or is read, or another call
        writes there; or the image or the values do not make an OME-Zarr.

    Examples
    --------
    >>> from patchworks_core.images.image import open_image
    >>> image = open_image(np.arange(12, dtype="u1").reshape(1, 3, 4), axes="cyx", channel=None)
    >>> written = convert_image(image, "memory://examples/a.ome.zarr")
    >>> open_image(written.path).read(Region((0, 0), (2, 2)))
    array([[0, 1],
           [4, 5]], dtype=uint8)
    """
    opened = open_all_channels(image)
    target = as_path(write_to)
    refuse_file_name(target)
    if levels is not None:
        whole_number("levels", levels, least=1)
    layout = layout_of(opened, chunks, None if version == "0.4" and shards == "auto" else shards)
    is_labels = opened.is_label_image if labels is None else labels
    _check(opened, layout, version, is_labels=is_labels)
    steps = level_steps(opened.axes, opened.shape, opened.pixel_size)
    steps = steps[: None if levels is None else max(0, levels - 1)]
    workers = workers or Workers()
    name = target.name.removesuffix(".zarr").removesuffix(".ome")
    what = "a converted image"
    with replacing(target, reads=[opened], what=what, overwrite=overwrite) as working:
        group = _open_group(working.new, version)
        with Pool.open(workers, progress) as pool:
            shapes = _write_levels(
                opened, working.new, steps, layout, version, pool, is_labels=is_labels
            )
        if is_labels:
            placed = Levels(opened.axes, steps, opened.pixel_size, opened.unit, opened.translation)
            attributes = label_attributes(placed, name=name, version=version)
        else:
            windows = _windows(opened, working.new / str(len(steps)))
            attributes = image_attributes(
                opened, steps, name=name, version=version, windows=windows
            )
        group.attrs.put(attributes)
    return ConvertedImage(target, shapes, layout, layout.peak_bytes(workers.count))


def _check(image: Image, layout: Layout, version: OmeVersion, *, is_labels: bool) -> None:
    """Raise PlanError or ImageError, naming the first rule that is broken."""
    if version not in ZARR_FORMATS:
        raise PlanError(f"version must be '0.5' or '0.4', got {version!r}")
    if version == "0.4" and layout.shards is not None:
        raise PlanError(
            f"OME-Zarr 0.4 has no shards, got {layout.shards!r}; write version '0.5', or pass "
            "shards=None"
        )
    check_axes(image.axes)
    if is_labels and image.dtype.kind not in "iub":
        raise ImageError(
            f"labels must be whole numbers, got {image.dtype} in {image.url or image.format}; "
            "convert it as an image, labels=False (--no-labels on the command line)"
        )


def _open_group(path: UPath, version: OmeVersion) -> zarr.Group:
    return zarr.open_group(zarr_store(path), mode="a", zarr_format=ZARR_FORMATS[version])


def _write_levels(
    image: Image,
    group: UPath,
    steps: Sequence[tuple[int, ...]],
    layout: Layout,
    version: OmeVersion,
    pool: Pool,
    *,
    is_labels: bool,
) -> list[tuple[int, ...]]:
    """Write the full resolution and every level from the one above; return their shapes."""
    shapes = [image.shape]
    for level, step in enumerate([None, *steps]):
        if step is not None:
            shapes.append(tuple(ceil(n / s) for n, s in zip(shapes[-1], step, strict=True)))
        fitted = layout.fitted(shapes[-1])
        target = group / str(level)
        create_array(
            target,
            shape=fitted.shape,
            chunks=fitted.chunks,
            shards=fitted.shards,
            dtype=image.dtype,
            axes=image.axes,
            zarr_format=ZARR_FORMATS[version],
        )
        writer = ArrayWriter.of(target)
        task: Callable[[Region], None] = _Copy(image, writer, is_labels)
        if step is not None:
            choose = most_frequent if is_labels else local_mean
            task = LevelTask(group / str(level - 1), writer, step, choose)
        grid = fitted.grid(image.axes)
        regions = (block.core for block in grid.blocks())
        name = f"level {level}"
        for _ in pool.map(task, regions, step=name, n=grid.n_blocks, doing=f"writing {name}"):
            pass
    return shapes


@dataclass(frozen=True, slots=True)
class _Copy:
    """Write a region of the full resolution."""

    image: Image
    target: ArrayWriter

    is_labels: bool

    def __call__(self, region: Region) -> None:
        pixels = self.image.read(region)
        if self.is_labels and pixels.dtype.kind == "i" and pixels.min() < 0:
            raise ImageError(
                f"labels must be 0 or more, got {pixels.min()} in {region} of "
                f"{self.image.url or self.image.format}; convert it as an image, labels=False"
            )
        self.target.write(region, pixels)


def _windows(image: Image, lowest: UPath) -> list[Window]:
    """Return the contrast of every channel: of the middle plane of the lowest level."""
    pixels = open_array(lowest)
    where: list[Any] = [0 if axis == "t" else slice(None) for axis in image.axes]
    if "z" in image.axes:
        where[image.axes.index("z")] = pixels.shape[image.axes.index("z")] // 2
    if "c" not in image.axes:
        return []
    channels = []
    for c in range(image.shape[image.axes.index("c")]):
        where[image.axes.index("c")] = c
        channels.append(contrast(np.asarray(pixels[tuple(where)])))
    return channels
