"""The command ``patchworks convert``: an image becomes an OME-Zarr that reads fast in tiles."""

from typing import Annotated, Any, cast

import typer

from patchworks_pipeline.cli.options import (
    LEVEL,
    Axes,
    Level,
    PixelSizes,
    WorkerCount,
    channel_of,
    numbers_of,
    pixel_size_of,
)
from patchworks_pipeline.cli.terminal import console, say


def convert(
    image: Annotated[str, typer.Argument(help="Path or URL of an image.", show_default=False)],
    output: Annotated[
        str, typer.Option("-o", "--output", help="OME-Zarr to write, such as plate1.ome.zarr.")
    ],
    chunks: Annotated[
        str | None, typer.Option(help="Pixels of a chunk per axis, such as 16,256,256.")
    ] = None,
    shards: Annotated[
        str, typer.Option(help="auto, none, or pixels of a shard per axis.")
    ] = "auto",
    ome_version: Annotated[str, typer.Option(help="0.5, or 0.4, which has no shards.")] = "0.5",
    levels: Annotated[
        int | None, typer.Option(min=1, help="Resolutions at most; down to 256 pixels.")
    ] = None,
    channel: Annotated[
        str, typer.Option(help="Channel by position or name; 'all' keeps each.")
    ] = "all",
    level: Level = LEVEL,
    axes: Axes = None,
    pixel_size: PixelSizes = None,
    labels: Annotated[
        bool | None,
        typer.Option(
            "--labels/--no-labels",
            help="Pixels are ids of objects, never averaged; by default as OME-Zarr metadata say.",
            show_default=False,
        ),
    ] = None,
    workers: WorkerCount = 1,
    overwrite: Annotated[bool, typer.Option(help="Replace what is at the output.")] = False,
) -> None:
    """Convert an image to a calibrated OME-Zarr with pyramid, whatever its size, in little memory.

    Chunks and shards count the last axes; those they leave out are 1.
    """
    from patchworks_core import open_image
    from patchworks_core.machine.workers import Workers
    from patchworks_core.ome_zarr.convert import convert_image
    from patchworks_pipeline.cli.progress_bars import progress_bars
    from patchworks_pipeline.progress import report_progress

    opened = open_image(
        image,
        channel=channel_of(channel),
        level=level or LEVEL,
        axes=axes,
        pixel_size=pixel_size_of(pixel_size),
    )
    with progress_bars(image, console):
        written = convert_image(
            opened,
            output,
            chunks=_per_axis("--chunks", chunks, opened.ndim),
            shards=_shards(shards, opened.ndim),
            version=cast(Any, ome_version),
            levels=levels,
            labels=labels,
            workers=Workers(workers or 1),
            progress=report_progress,
            overwrite=overwrite,
        )
    say(describe(written))


def describe(written: Any) -> str:
    """Say where the OME-Zarr is, how it is laid out, and what memory it took.

    Parameters
    ----------
    written : ConvertedImage
    """
    layout = written.layout
    shards = "no shards" if layout.shards is None else f"shards {_sizes(layout.shards)}"
    shapes = [_sizes(shape) for shape in written.shapes]
    return "\n".join(
        [
            f"{len(shapes)} level{'s' * (len(shapes) > 1)}: {', '.join(shapes)}",
            f"  image   {written.path}",
            f"  layout  chunks {_sizes(layout.chunks)}, {shards}",
            f"  memory  at most {written.peak_bytes / 2**20:,.0f} MB of pixels at once",
        ]
    )


def _sizes(sizes: tuple[int, ...]) -> str:
    return " x ".join(str(n) for n in sizes)


def _shards(text: str, n_axes: int) -> Any:
    """Read ``auto``, ``none`` or sizes per axis."""
    if text == "none":
        return None
    return text if text == "auto" else _per_axis("--shards", text, n_axes)


def _per_axis(option: str, text: str | None, n_axes: int) -> tuple[int, ...] | None:
    """Read sizes of the last axes; those before are 1."""
    sizes = numbers_of(option, text)
    return None if sizes is None else (1,) * (n_axes - len(sizes)) + sizes
