"""The façade for measuring: the object table of a label image, with any number of channels.

For labels that patchworks made, the pipeline has the table already; this one is for labels from
anywhere, for labels that were changed, and for further channels.
"""

from __future__ import annotations

import io
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, Unpack

import numpy as np
import numpy.typing as npt

from patchworks_core.errors import ImageError, PlanError
from patchworks_core.files.replacing import check_reads, check_replaceable, replacing
from patchworks_core.files.storage import Location, as_path, write_bytes
from patchworks_core.images.image import DEFAULT_LEVEL, Image, open_all_channels
from patchworks_core.images.image_source import ImageSource
from patchworks_core.labels.intensities import IntensitySums
from patchworks_core.labels.options import LabelOptions, pool_of, source_of, takes_options
from patchworks_core.labels.source import LabelSource, check_same_pixels
from patchworks_core.machine.pools import Pool
from patchworks_core.merge.objects import object_table
from patchworks_core.stage.object_sums import ObjectSums, measure_tile, merge_objects
from patchworks_core.stage.tile_labels import number_ids
from patchworks_core.tiles.grid import Tile, TileGrid

if TYPE_CHECKING:
    import pyarrow as pa

Array = npt.NDArray[Any]

TABLE = "a table"
"""What is written here, for messages."""


@takes_options(LabelOptions)
def measure_objects(
    labels: ImageSource,
    image: ImageSource | None = None,
    *,
    channels: Sequence[int | str] | int | str | None = None,
    grid: TileGrid | None = None,
    write_to: Location | None = None,
    image_axes: str | None = None,
    **options: Unpack[LabelOptions],
) -> pa.Table:
    """Measure every object of a label image: size, place, and intensity in each channel.

    Parameters
    ----------
    labels : array, path or URL
        As in `patchworks_core.labels.postprocess.fill_holes`.
    image : array, path or URL, optional
        Anything `open_image` opens, with the pixels of the labels; its channels are measured.
    channels : int, str, or several, optional
        Channels of `image` by number or name; None is all.
    grid : TileGrid, optional
        The tiles that the labels were made with: adds `n_tiles` and `crosses_seam`. They are also
        the tiles that are read.
    write_to : path or URL, optional
        File to write the table into, ``.parquet`` or ``.csv``.
    image_axes : str, optional
        Axes of the image in their own order, where its metadata do not say.
    **options
        As in `patchworks_core.labels.postprocess.fill_holes`; `level` is that of the image, too.

    Returns
    -------
    pyarrow.Table
        One row per object, by ascending id within each time and channel of the labels: what
        `patchworks_core.merge.objects.object_table` lists, and for each channel ``intensity_mean``,
        ``_sum``, ``_min``, ``_max`` and, where its pixels are integers of at most 16 bits,
        ``_std`` (over the pixels, not an estimate). Where the image has a channel axis their names
        end in the channel's: ``intensity_mean_DAPI``, or ``intensity_mean_c0`` if it has none.

    Raises
    ------
    ImageError
        If image and labels are not of the same pixels, or either cannot be read.
    PlanError
        If `grid` is not one of the labels, or the table cannot be written as asked.

    Notes
    -----
    All but the intensities of float pixels is exact, and the same for any tiles. Labels and
    channels are read once. Micrometers come from the labels, and from the image where they do not
    say.

    Examples
    --------
    >>> import numpy as np
    >>> labels = np.array([[4, 4, 0, 9], [4, 0, 0, 9]])
    >>> table = measure_objects(labels, labels * 10, tile_shape=2)
    >>> table["label"].to_pylist(), table["area_pixels"].to_pylist()
    ([4, 9], [3, 2])
    >>> table["intensity_mean"].to_pylist()
    [40.0, 90.0]
    """
    if write_to is not None:
        _check_suffix(write_to)
    overwrite = options.get("overwrite", False)
    source = source_of(labels, options)
    if grid is not None:
        source = _on_grid(source, grid, options.get("tile_shape"))
    measured = _channels(image, channels, options.get("level", DEFAULT_LEVEL), image_axes)
    for channel in measured:
        check_same_pixels(source.image, channel.image)
    if write_to is not None:
        reads = [
            read
            for opened in (source.image, *(channel.image for channel in measured))
            for read in (opened.source, opened.pixels)
        ]
        check_reads(as_path(write_to), reads, what=TABLE, another="write_to")
        check_replaceable(as_path(write_to), what=TABLE, another="write_to", overwrite=overwrite)
    with pool_of(options) as pool:
        table = _tabulate(source, measured, _measure(source, measured, pool))
    if grid is None:
        table = table.drop_columns(["n_tiles", "crosses_seam"])
    if write_to is not None:
        write_table(table, write_to, overwrite=overwrite)
    return table


def write_table(table: pa.Table, location: Location, *, overwrite: bool = False) -> None:
    """Write a table whole or not at all, as Parquet or CSV by the extension.

    Raises
    ------
    PlanError
        If the extension is neither, or something is there that is not ours to replace.
    """
    buffer = io.BytesIO()
    if _check_suffix(location) == ".csv":
        import pyarrow.csv

        pyarrow.csv.write_csv(table, buffer)
    else:
        import pyarrow.parquet

        pyarrow.parquet.write_table(table, buffer, compression="zstd")
    with replacing(as_path(location), what=TABLE, overwrite=overwrite) as working:
        write_bytes(working.new, buffer.getvalue())


def _check_suffix(location: Location) -> str:
    suffix: str = as_path(location).suffix.lower()
    if suffix not in (".parquet", ".csv"):
        raise PlanError(
            f"a table is written as .parquet or .csv, got {str(location)!r}; name the file so"
        )
    return suffix


def _on_grid(
    source: LabelSource, grid: TileGrid, tile_shape: Sequence[int] | int | None
) -> LabelSource:
    """Return the labels with the tiles of a grid."""
    if tile_shape is not None:
        raise PlanError(f"the tiles are those of grid, got tile_shape={tile_shape!r} too; drop one")
    if (grid.axes, grid.shape) != (source.grid.axes, source.grid.shape):
        raise PlanError(
            f"grid must be one of the labels, got {grid.axes!r} {grid.shape} for "
            f"{source.grid.axes!r} {source.grid.shape} in {source.name}"
        )
    return LabelSource(
        source.image, TileGrid(grid.axes, grid.shape, grid.tile_shape, (0,) * grid.ndim)
    )


@dataclass(frozen=True, slots=True)
class _Channel:
    """One channel to measure."""

    image: Image
    suffix: str
    """Of the names of its columns."""


def _channels(
    image: Any, channels: Sequence[int | str] | int | str | None, level: int, axes: str | None
) -> list[_Channel]:
    """Open the channels to measure."""
    if image is None:
        if channels is not None:
            raise PlanError(f"channels are those of image, got channels={channels!r} and no image")
        return []
    opened = open_all_channels(image, level=level, axes=axes)
    if channels is not None:
        opened = opened.reopened(channel=None)
    if "c" not in opened.axes:
        if channels not in (None, 0, [0], (0,)):
            raise ImageError(
                f"channels={channels!r} needs a channel axis, got axes {opened.axes!r} in "
                f"{opened.url or opened.format!r}; leave channels out, or name the axes"
            )
        return [_Channel(opened, "")]
    if channels is None:
        chosen: Sequence[int | str] = range(opened.shape[opened.axes.index("c")])
    else:
        chosen = [channels] if isinstance(channels, int | str) else channels
    # opened once more only to find a channel by name, and to hear that there is none
    numbers = [opened.reopened(channel=c).channel or 0 for c in chosen]
    names = opened.channel_names
    return [
        _Channel(
            replace(opened, channel=number),
            f"_{names[number]}" if names and names.count(names[number]) == 1 else f"_c{number}",
        )
        for number in numbers
    ]


@dataclass(frozen=True, slots=True)
class _Measured:
    """What one tile holds."""

    number: int
    ids: Array
    sums: ObjectSums
    intensities: list[IntensitySums]


@dataclass(frozen=True, slots=True)
class _MeasureTask:
    source: LabelSource
    channels: list[_Channel]

    def __call__(self, tile: Tile) -> _Measured:
        ids, numbers = number_ids(self.source.read(tile.core))
        n, axes = len(ids) - 1, self.source.grid.axes
        sums = measure_tile(numbers, axes=axes, origin=tile.core.start, n_labels=n)
        # The channels of labels are no channels of the image: each sees all of those.
        region = tile.core.take([i for i, axis in enumerate(axes) if axis != "c"])
        intensities = [
            IntensitySums.of_tile(numbers, channel.image.read(region).reshape(numbers.shape), n)
            for channel in self.channels
        ]
        return _Measured(tile.number, ids[1:], sums, intensities)


def _measure(source: LabelSource, channels: list[_Channel], pool: Pool) -> list[_Measured]:
    """Return what each tile holds, in row-major order: sums of floats depend on the order."""
    n = source.grid.n_tiles
    task = _MeasureTask(source, channels)
    measured = list(pool.map(task, source.grid.tiles(), step="measure", n=n))
    return sorted(measured, key=lambda one: one.number)


def _tabulate(source: LabelSource, channels: list[_Channel], measured: list[_Measured]) -> pa.Table:
    """Merge the tiles of each time and channel, and join their tables."""
    import pyarrow as pa

    image = source.image
    calibrated = image if image.unit or not channels else channels[0].image
    planes: dict[tuple[int, ...], list[_Measured]] = {}
    for tile, one in zip(source.grid.tiles(), measured, strict=True):
        planes.setdefault(source.plane(tile), []).append(one)
    tables = []
    for pieces in planes.values():
        merged = merge_objects([p.sums for p in pieces], [p.ids for p in pieces])
        table = object_table(
            merged,
            image_shape=source.grid.shape,
            pixel_size=calibrated.pixel_size,
            unit=calibrated.unit,
        )
        rows = np.searchsorted(merged.label, np.concatenate([p.ids for p in pieces]))
        for i, channel in enumerate(channels):
            sums = IntensitySums.merge([p.intensities[i] for p in pieces], rows, len(merged))
            for name, values in sums.columns(merged.area, channel.suffix).items():
                table = table.append_column(name, pa.array(values))
        tables.append(table)
    return pa.concat_tables(tables)
