"""The command ``patchworks segment``: one image with the library alone."""

from dataclasses import asdict
from typing import Annotated, Any, cast

import typer

from patchworks_pipeline.cli.options import (
    FUNCTION,
    LEVEL,
    MERGE,
    MIN_IOU,
    OUTLINE,
    OVERLAP,
    TILE_SHAPE,
    WORKER_KIND,
    Axes,
    Channel,
    Json,
    Kind,
    Level,
    Merge,
    MinIou,
    Outline,
    Overlap,
    Param,
    PixelSizes,
    TileTimeout,
    WorkerCount,
    WorkerMemory,
    first_or_chosen,
    limits_of,
    numbers_of,
    one_or_all,
    overlap_of,
    parameters,
    pixel_size_of,
)
from patchworks_pipeline.cli.terminal import console, errors, in_options, say, say_json

LimitOption = Annotated[float | None, typer.Option(help="Objects beyond it become background.")]


def segment(
    image: Annotated[str, typer.Argument(help="Path or URL of an image.", show_default=False)],
    output: Annotated[
        str, typer.Option("-o", "--output", help="OME-Zarr to write labels/<name> into.")
    ],
    segmentation: Annotated[str, typer.Option(help="As for run.")] = FUNCTION,
    param: Param = None,
    tile_shape: Annotated[
        str, typer.Option(help="Pixels of a tile: 512, 16,512,512, or auto: what memory allows.")
    ] = TILE_SHAPE,
    overlap: Overlap = OVERLAP,
    channel: Channel = None,
    level: Level = LEVEL,
    axes: Axes = None,
    pixel_size: PixelSizes = None,
    merge: Merge = MERGE,
    min_iou: MinIou = MIN_IOU,
    outline: Outline = OUTLINE,
    min_size: LimitOption = 0,
    max_size: LimitOption = None,
    size_unit: Annotated[str, typer.Option(help="Of sizes: pixels or micrometers.")] = "pixels",
    skip_empty: Annotated[bool, typer.Option(help="Leave out tiles without signal.")] = False,
    empty_threshold: Annotated[
        float | None, typer.Option(help="Brightest background; from the image by default.")
    ] = None,
    name: Annotated[str, typer.Option(help="Of the label image.")] = "labels",
    workers: WorkerCount = None,
    worker_kind: Kind = WORKER_KIND,
    tile_timeout: TileTimeout = None,
    worker_memory: WorkerMemory = None,
    resume: Annotated[
        bool | None,
        typer.Option(
            "--resume/--no-resume",
            help="Take up what an earlier call left; by default where the function is the same.",
            show_default=False,
        ),
    ] = None,
    overwrite: Annotated[
        bool, typer.Option(help="Replace labels that were changed, or that are not patchworks'.")
    ] = False,
    dry_run: Annotated[bool, typer.Option(help="Only say what it would take.")] = False,
    json: Json = False,
) -> None:
    """Segment one image with the library alone: no Dagster, no home."""
    from patchworks_core import open_image, segment_to_ome_zarr, segmentation_of, tile_process
    from patchworks_core.images.calibration import SizeLimits
    from patchworks_core.machine.pools import Compute
    from patchworks_core.seams.rules import MergeOptions
    from patchworks_pipeline.cli.progress_bars import progress_bars
    from patchworks_pipeline.progress import report_progress

    tiling: dict[str, Any] = {
        "tile_shape": _tile_shape_of(tile_shape),
        "overlap": overlap_of(overlap),
        "skip_empty": skip_empty,
        "empty_threshold": empty_threshold,
    }
    opened = open_image(
        image,
        channel=first_or_chosen(channel),
        level=level or LEVEL,
        axes=axes,
        pixel_size=pixel_size_of(pixel_size),
    )
    for note in opened.notes:
        say(in_options(note), on=errors)
    function = segmentation_of(segmentation, parameters(param or []))
    limits = SizeLimits.of(opened, min_size, max_size, cast(Any, size_unit))
    options = MergeOptions(
        merge,  # type: ignore[arg-type]
        None,
        MIN_IOU if min_iou is None else min_iou,
        limits.least,
        max_size=limits.most,
        outline=outline,  # type: ignore[arg-type]
    )
    kind: Any = worker_kind
    if dry_run:
        counted = {"max_workers": workers, "workers": kind}
        needs = tile_process(opened, function, dry_run=True, **tiling, **counted)
        say_json({**asdict(needs), "reason": needs.reason}) if json else say(str(needs))
        return
    with progress_bars(image, errors if json else console):
        written = segment_to_ome_zarr(
            opened,
            function,
            output,
            name=name,
            options=options,
            compute=Compute(workers, kind, limits=limits_of(tile_timeout, worker_memory)),
            progress=report_progress,
            resume="auto" if resume is None else resume,
            overwrite=overwrite,
            **tiling,
        )
    if json:
        say_json({"objects": written.n_objects, "labels": str(written.path)})
    else:
        say(f"{written.n_objects} objects\n  labels  {written.path}")


def _tile_shape_of(text: str) -> Any:
    return text if text == "auto" else one_or_all(numbers_of("--tile-shape", text))
