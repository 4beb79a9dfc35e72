"""The command ``patchworks pilot``: what it tries, and what it says."""

import shlex
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.table import Table

from patchworks_pipeline.cli.options import (
    FUNCTION,
    LEVEL,
    MIN_IOU,
    TILE_SHAPE,
    Axes,
    Channel,
    Level,
    MinIou,
    Param,
    PixelSizes,
    TileShape,
    first_or_chosen,
    numbers_of,
    one_or_all,
    parameters,
    pixel_size_of,
)
from patchworks_pipeline.cli.terminal import console, errors, in_options, say

if TYPE_CHECKING:
    from patchworks_core.pilot.trials import PilotReport, Trial


def pilot(
    image: Annotated[str, typer.Argument(help="Path or URL of an image.", show_default=False)],
    segmentation: Annotated[str, typer.Option(help="As for run.")] = FUNCTION,
    param: Param = None,
    tile_shape: TileShape = TILE_SHAPE,
    overlap: Annotated[
        list[str] | None, typer.Option(help="Halo to try; repeat for more. From the objects' size.")
    ] = None,
    channel: Channel = None,
    level: Level = LEVEL,
    axes: Axes = None,
    pixel_size: PixelSizes = None,
    min_iou: MinIou = MIN_IOU,
    n_regions: Annotated[int, typer.Option(min=1, help="Regions of 2 x 2 (x 2) tiles.")] = 3,
    seed: Annotated[int, typer.Option(help="Draws the regions.")] = 0,
) -> None:
    """Try halos and merge rules on a few regions, and say which to use; writes nothing."""
    from patchworks_core import open_image, segmentation_of
    from patchworks_core.pilot.trials import pilot as try_out
    from patchworks_core.seams.rules import MergeOptions
    from patchworks_pipeline.cli.progress_bars import progress_bars
    from patchworks_pipeline.progress import report_progress

    opened = open_image(
        image,
        channel=first_or_chosen(channel),
        level=level or LEVEL,
        axes=axes,
        pixel_size=pixel_size_of(pixel_size),
    )
    for note in opened.notes:
        say(in_options(note), on=errors)
    with progress_bars(image, console):
        report = try_out(
            opened,
            segmentation_of(segmentation, parameters(param or [])),
            tile_shape=one_or_all(numbers_of("--tile-shape", tile_shape)),
            overlaps=[one_or_all(numbers_of("--overlap", o)) for o in overlap or ()] or None,
            n_regions=n_regions,
            seed=seed,
            options=MergeOptions(min_iou=MIN_IOU if min_iou is None else min_iou),
            progress=report_progress,
        )
    console.print(trial_table(report))
    options: dict[str, Any] = {
        "segmentation": segmentation,
        "tile-shape": tile_shape,
        "channel": channel,
    }
    options |= {"level": level or None, "axes": axes, "pixel-size": pixel_size}
    say(describe(report, next_command(image, options, param or [])))


def trial_table(report: "PilotReport") -> Table:
    """Return the trials as a table, the recommended one marked."""
    table = Table(title=f"against no tiles, {report.n_objects} objects in {_regions(report)}")
    for column in ("overlap", "rule", "F1", "F1 at seams", "pixels read", "seconds"):
        table.add_column(column)
    for trial in report.trials:
        table.add_row(
            overlap_text(trial),
            trial.rule,
            f"{trial.f1:.4f}",
            f"{trial.seam_f1:.4f}",
            f"{trial.read_factor:.2f} x",
            f"{trial.seconds:.1f}",
            style="bold green" if trial == report.recommended else None,
        )
    return table


def describe(report: "PilotReport", command: list[str]) -> str:
    """Say what is recommended, how sure that is, what it costs, and what to run next.

    Parameters
    ----------
    report : PilotReport
    command : list of str
        The command that segments the image, without overlap and rule.
    """
    lines = [report.confidence, f"the pilot took {report.seconds:.1f} s"]
    best = report.recommended
    if best is not None and best.is_enough:
        overlap = overlap_text(best)
        cost = best.read_factor - 1
        lines.insert(0, f"overlap {overlap}, merge {best.rule}: reads {cost:.0%} more pixels")
        arguments = ["--overlap", overlap, "--merge", best.rule]
        lines += ["next:", f"  {shlex.join([*command, *arguments])}"]
    return "\n".join(lines)


def next_command(image: str, options: dict[str, Any], parameters: list[str]) -> list[str]:
    """Return the command that segments an image with the options of its pilot.

    Examples
    --------
    >>> next_command("a.tif", {"tile-shape": "512", "axes": None}, ["sigma=2"])
    ['patchworks', 'run', 'a.tif', '--tile-shape', '512', '--param', 'sigma=2']
    """
    options_given = [(name, value) for name, value in options.items() if value is not None]
    command = ["patchworks", "run", image]
    for name, value in [*options_given, *(("param", pair) for pair in parameters)]:
        command += [f"--{name}", str(value)]
    return command


def overlap_text(trial: "Trial") -> str:
    """Return a halo as the command line takes it.

    Examples
    --------
    >>> from patchworks_core.pilot.trials import Trial
    >>> overlap_text(Trial((0, 8, 8), "overlap", 1.0, 1.0, 0.1, 1.2))
    '0,8,8'
    """
    return ",".join(str(n) for n in trial.overlap)


def _regions(report: "PilotReport") -> str:
    sizes = " x ".join(str(n) for n in report.regions[0].shape)
    return f"{len(report.regions)} region{'s' * (len(report.regions) > 1)} of {sizes} pixels"
