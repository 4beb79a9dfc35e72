"""Filtering: operations run over a whole image, tile by tile, into memory or a Zarr array.

To segment what operations give, nothing needs to be written: `process_lazily` is enough. Writing
pays where the result is read many times, or by others.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from typing import Any, Literal

import numpy as np
import numpy.typing as npt
from upath import UPath

from patchworks_core.errors import PlanError, StorageError, TilesFailedError
from patchworks_core.files.array_writer import ArrayWriter
from patchworks_core.files.label_arrays import output_chunks, refuse_file_name
from patchworks_core.files.replacing import replacing
from patchworks_core.files.storage import Location, as_path, create_array, open_array
from patchworks_core.images.image import DEFAULT_LEVEL, Image, open_all_channels, open_image
from patchworks_core.machine.budget import block_bytes
from patchworks_core.machine.pools import Pool
from patchworks_core.machine.progress import Progress
from patchworks_core.machine.sizing import MIN_TILE_EXTENT, auto_tile_shape
from patchworks_core.machine.workers import WorkerKind, Workers
from patchworks_core.operations.operations import Chain, Operation
from patchworks_core.operations.processed import ProcessedImage, process_lazily
from patchworks_core.statistics.measuring import measure
from patchworks_core.statistics.statistics import ImageStatistics
from patchworks_core.tiles.grid import SPATIAL_AXES, Tile, TileGrid, plan_grid

TILE_BYTES = 1 << 29
"""Memory planned for a tile where none is asked for: 2048 x 2048 pixels and more."""

FILTER_BYTES_PER_PIXEL = 24
"""What an operation takes for every pixel, beyond what goes in and out: three arrays of float64."""


def filter_image(
    image: Any,
    *operations: Operation | Chain,
    write_to: Location | None = None,
    tile_shape: Sequence[int] | int | Literal["auto"] = "auto",
    sharded: bool = False,
    channel: int | str | None = None,
    level: int = DEFAULT_LEVEL,
    axes: str | None = None,
    max_workers: int = 1,
    workers: WorkerKind = "threads",
    overwrite: bool = False,
    progress: Progress | None = None,
) -> Any:
    """Run operations over an image tile by tile; the result is that of the whole image.

    Parameters
    ----------
    image : array, path, URL or Image
        Anything `open_image` opens.
    *operations : Operation or Chain
        The first is run first; see `patchworks_core.operations.filters`.
    write_to : path or URL, optional
        Zarr v3 array to write. None returns the pixels.
    tile_shape : int, tuple of int, or "auto"
        Pixels written at a time, as in `plan_grid`. ``auto`` is whole chunks of the image, of at
        most 512 MB with all that is needed to make them; more where a wide halo leaves no choice.
    sharded : bool
        Store each tile as one file (a shard) instead of one per chunk.
    channel, level, axes
        As in `open_image`; every channel by default, and of an `Image` those it was opened with.
    max_workers : int
        Tiles at once.
    workers : {"threads", "processes"}
        Filters of this package release the GIL, so threads are right for them; ``processes`` for
        functions of your own that hold it.
    overwrite : bool
        Replace whatever is at `write_to`. Otherwise only what patchworks wrote there, and nobody
        changed since, is replaced.
    progress : callable, optional
        ``progress(step, done, total)``.

    Returns
    -------
    dask.array.Array or numpy.ndarray
        Axes of the image; lazy over `write_to`, or in memory.

    Raises
    ------
    ImageError
        If the image cannot be opened, or an operation does not fit it.
    PlanError
        If `write_to` is what the image is read from, or is not ours to replace.
    TilesFailedError
        If a tile failed. What was at `write_to` is then still there.

    Examples
    --------
    >>> from patchworks_core.operations.filters import median
    >>> spots = np.zeros((6, 6), "u1")
    >>> spots[2, 2] = 9
    >>> int(filter_image(spots, median(3), tile_shape=3).max())
    0
    """
    opened = (
        open_all_channels(image, level=level, axes=axes)
        if channel is None
        else open_image(image, channel=channel, level=level, axes=axes)
    )
    processed = process_lazily(opened, *operations)
    grid = plan_filtering(processed, tile_shape)
    started = Workers(max_workers, workers)
    if write_to is None:
        pixels = np.empty(processed.shape, processed.dtype)
        with Pool.open(started, progress) as pool:
            for tile, part in _run(partial(_read, processed), grid, pool):
                pixels[tile.core.slices] = part
        return pixels
    import dask.array as da

    target = as_path(write_to)
    refuse_file_name(target)
    with replacing(
        target,
        reads=(processed.source, processed.pixels),
        what="a filtered image",
        overwrite=overwrite,
    ) as working:
        _create(working.new, processed, grid, sharded=sharded)
        with Pool.open(started, progress) as pool:
            for _ in _run(_WriteTile(processed, ArrayWriter.of(working.new)), grid, pool):
                pass
    return da.from_zarr(open_array(target))


def image_statistics(image: Any, *, max_workers: int = 1, **how_to_open: Any) -> ImageStatistics:
    """Measure the exact histogram of an image, streaming it; of a processed one, as processed.

    Parameters
    ----------
    image : array, path, URL or Image
    max_workers : int
        Pieces at once, in threads.
    **how_to_open
        `channel`, `level` and `axes`, as in `open_image`.

    Examples
    --------
    >>> image_statistics(np.arange(10, dtype="u1")).percentile(50)
    4.0
    """
    opened = open_image(image, **how_to_open)
    tiles = plan_filtering(opened, "auto").tiles()
    regions = [tile.core for tile in tiles]
    with Pool.open(Workers(max_workers)) as pool:
        return measure(opened, regions, pool)


def global_threshold(
    image: Any, method: str = "otsu", *, max_workers: int = 1, **how_to_open: Any
) -> float:
    """Return the threshold of a whole image, streaming it; foreground is what lies above.

    That of an image of one value, such as an empty well, is that value: nothing lies above.

    Parameters
    ----------
    image : array, path, URL or Image
        Of a processed image, the threshold of the processed pixels.
    method : {"otsu", "li", "yen"}
    max_workers, **how_to_open
        As in `image_statistics`.

    Examples
    --------
    >>> global_threshold(np.array([1, 2, 2, 80, 81, 82], "u1"))
    2.0
    """
    statistics = image_statistics(image, max_workers=max_workers, **how_to_open)
    return statistics.threshold(method)


def plan_filtering(
    image: Image, tile_shape: Sequence[int] | int | Literal["auto"] = "auto"
) -> TileGrid:
    """Plan the tiles that operations are run in; the halo is read by the processed image itself."""
    if not isinstance(tile_shape, str):
        return plan_grid(image.axes, image.shape, tile_shape=tile_shape)
    if tile_shape != "auto":
        raise PlanError(f"tile_shape in words can only be 'auto', got {tile_shape!r}")
    halo = image.halo if isinstance(image, ProcessedImage) else (0,) * image.ndim
    widest = max(image.dtype, np.dtype(np.float32), key=lambda dtype: dtype.itemsize)
    # A tile narrower than its halo is hardly worth reading, whatever it takes.
    narrow = [
        max(n, MIN_TILE_EXTENT) if a in SPATIAL_AXES else 1
        for a, n in zip(image.axes, halo, strict=True)
    ]
    least = plan_grid(image.axes, image.shape, tile_shape=narrow, overlap=halo)
    needed = block_bytes(least, widest, function_bytes_per_pixel=FILTER_BYTES_PER_PIXEL)
    tile = auto_tile_shape(
        image.shape,
        widest,
        axes=image.axes,
        chunks=image.chunks,
        overlap=halo,
        n_workers=1,
        memory_bytes=max(TILE_BYTES, needed),
        function_bytes_per_pixel=FILTER_BYTES_PER_PIXEL,
    )
    return plan_grid(image.axes, image.shape, tile_shape=tile)


def _read(image: ProcessedImage, tile: Tile) -> npt.NDArray[Any]:
    """Run the operations on one tile."""
    return image.read(tile.core)


@dataclass(frozen=True, slots=True)
class _WriteTile:
    """Runs the operations on one tile and writes its core, which no other tile writes."""

    image: ProcessedImage
    target: ArrayWriter

    def __call__(self, tile: Tile) -> None:
        self.target.write(tile.core, self.image.read(tile.core))


def _run(task: Callable[[Tile], Any], grid: TileGrid, pool: Pool) -> Iterator[tuple[Tile, Any]]:
    """Run a task on every tile and yield what it returned; at the end raise what failed."""
    failures = {}
    for n, outcome in enumerate(pool.outcomes(task, grid.tiles()), start=1):
        if outcome.failure is not None:
            if outcome.failure.is_of_storage:
                raise StorageError(outcome.failure.message)
            failures[grid.block_key(outcome.item.index)] = outcome.failure
            if outcome.failure.kind == "refused":
                break  # what does not fit one tile fits none
        else:
            yield outcome.item, outcome.value
        pool.progress("filter", n, grid.n_tiles)
    if failures:
        key, first = min(failures.items())
        raise TilesFailedError(
            f"{len(failures)} of {grid.n_tiles} tiles failed, the first is {key!r}: {first}\n"
            f"{first.traceback}\nnothing was written; mend the operation and call again",
            {key: str(failure) for key, failure in failures.items()},
        )


def _create(path: UPath, image: ProcessedImage, grid: TileGrid, *, sharded: bool) -> None:
    """Create the array that is written, with a record of what it is made of."""
    array = create_array(
        path,
        shape=grid.shape,
        chunks=output_chunks(grid),
        shards=grid.tile_shape if sharded else None,
        dtype=image.dtype,
        axes=grid.axes,
    )
    array.attrs["patchworks"] = {
        "image": {
            "url": image.url,
            "fingerprint": image.original.fingerprint,
            "channel": image.channel,
            "level": image.level,
        },
        "operations": [operation.to_dict() for operation in image.operations],
        "pixel_size": dict(image.pixel_size),
        "unit": dict(image.unit),
        "translation": dict(image.translation),
    }
