"""Options that commands share, how their values are read, and what holds where one is left out.

A command of a home (``run``, ``retry``, ``merge``, ``view``) leaves it at None: that keeps what was
chosen for the image before, or else what the home's file or `built_in` says
(`patchworks_pipeline.resources.settings`). ``segment`` and ``pilot`` know no home: they go by
`built_in` alone.
"""

import json
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any

import typer

from patchworks_core.machine.workers import WorkerKind
from patchworks_pipeline.cli.advice import BUDGET_OPTIONS, home_of_call
from patchworks_pipeline.cli.exit_codes import BAD_INPUT
from patchworks_pipeline.cli.terminal import fail
from patchworks_pipeline.instance.home import DEFAULT_HOME
from patchworks_pipeline.resources import built_in

FUNCTION = built_in.FUNCTION
TILE_SHAPE = str(built_in.TILE_SHAPE)
OVERLAP = str(built_in.OVERLAP)
MERGE = built_in.MERGE
MIN_IOU = built_in.MIN_IOU
OUTLINE = built_in.OUTLINE
WORKER_KIND = built_in.WORKER_KIND
HOME = Path(DEFAULT_HOME)
LEVEL = 0
"""Of an image that is opened for the first time."""

Only = Annotated[
    str | None,
    typer.Option("--only", help="One of the segmentations, where images have several; else all."),
]
Images = Annotated[list[str], typer.Argument(help="Paths or URLs of images.", show_default=False)]


def _note_home(context: typer.Context, home: Path) -> Path:
    """Note whether ``--home`` was given, for commands that are advised."""
    source = context.get_parameter_source("home")
    home_of_call.set(str(home) if source is not None and source.name == "COMMANDLINE" else None)
    return home


Home = Annotated[
    Path,
    typer.Option(
        envvar="PATCHWORKS_HOME",
        callback=_note_home,
        help="Folder of instance, store and landing.",
    ),
]
SegmentationOption = Annotated[
    str | None,
    typer.Option(
        "--segmentation",
        help="threshold, watershed, cellpose, stardist, a plugin, or module:function.",
    ),
]
Param = Annotated[
    list[str] | None,
    typer.Option("--param", metavar="K=V", help="Parameter of the function; repeat for more."),
]
TileShape = Annotated[
    str | None, typer.Option(help="Pixels of a tile: 512, or per axis from the last: 16,512,512.")
]
Overlap = Annotated[
    str | None, typer.Option(help="Halo on each side of a tile: 32, per axis: 4,32,32, or auto.")
]
Overwrite = Annotated[
    bool,
    typer.Option(
        help="Replace labels and tables that were changed, and what was made by choices whose "
        "record is lost."
    ),
]
Channel = Annotated[
    str | None,
    typer.Option(help="Channel by position or name, the first unless chosen; 'all' segments each."),
]
Priority = Annotated[
    int | None,
    typer.Option(min=0, help="Runs of an image go before those of images of a lower one; 0 is it."),
]
Level = Annotated[int | None, typer.Option(help="Resolution level, 0 is full.")]
Axes = Annotated[
    str | None, typer.Option(help="Axes in the file's order where it does not say, such as zyx.")
]
PixelSizes = Annotated[
    str | None,
    typer.Option(
        "--pixel-size",
        help="Micrometers per pixel, over what the file says: 0.1, 0.5,0.1,0.1 or z=0.5,x=0.1.",
    ),
]
Merge = Annotated[str | None, typer.Option(help="auto, overlap, overlap-pairs, touching or none.")]
MinIou = Annotated[float | None, typer.Option(help="How much two views must agree, 0 to 1.")]
Outline = Annotated[
    str | None, typer.Option(help="auto, feather or core: how objects are drawn where tiles met.")
]
MinSize = Annotated[
    int | None, typer.Option(help="Merged objects of fewer pixels become background.")
]
Faces = Annotated[
    int | None, typer.Option(min=1, help="At most so many, the worst; no limit unless said.")
]
MinAgreement = Annotated[
    float | None,
    typer.Option(
        min=0, max=1, help="Mend faces whose objects agree less: mean IoU, 0.75 unless said."
    ),
]
WorkerCount = Annotated[int | None, typer.Option("--workers", min=1, help="Tiles at once.")]
Json = Annotated[bool, typer.Option("--json", help="Print JSON, one line, on standard output.")]
TileTimeout = Annotated[
    float | None,
    typer.Option(
        "--tile-timeout",
        min=0,
        help="Seconds after which a tile fails, in worker processes: 0.1 or more; 0 is no limit.",
    ),
]
WorkerMemory = Annotated[
    str | None,
    typer.Option("--worker-memory", help="What a worker process may take: 8GB, auto or none."),
]
Kind = Annotated[WorkerKind | None, typer.Option("--worker-kind", help="Of the tiles at once.")]
TileKind = Annotated[
    built_in.TileWorkerKind | None,
    typer.Option("--worker-kind", help="Of the tiles at once; auto: as the function declares."),
]

_FIELD_OF_BUDGET = re.compile(rf"\bbudget\.({'|'.join(BUDGET_OPTIONS)})\b")


def choices_of(
    *,
    segmentation: str | None,
    param: list[str] | None,
    tile_shape: str | None,
    overlap: str | None,
    channel: str | None,
    level: int | None,
    axes: str | None,
    pixel_size: str | None,
    merge: Mapping[str, Any],
    priority: int | None = None,
) -> dict[str, Any]:
    """Return what options choose for an image, as `Acquisition` has it; None is not chosen."""
    return {
        "function": segmentation,
        "parameters": parameters(param) if param else None,
        "tile_shape": numbers_of("--tile-shape", tile_shape),
        "overlap": overlap if overlap == "auto" else numbers_of("--overlap", overlap),
        "channel": None if channel is None else (channel_of(channel),),
        "level": level,
        "axes": axes,
        "pixel_size": pixel_size_of(pixel_size),
        "priority": priority,
        "merge": dict(merge),
    }


def is_chosen(options: Mapping[str, Any]) -> bool:
    """Tell whether an option says something of how an image is segmented or merged."""
    of_image = ("axes", "level", "pixel_size", "priority")
    values = [value for name, value in options.items() if name not in of_image]
    return any(is_chosen(v) if isinstance(v, Mapping) else v is not None for v in values)


def parameters(pairs: list[str]) -> dict[str, Any]:
    """Read K=V pairs; values are JSON where they can be, text otherwise."""
    values: dict[str, Any] = {}
    for pair in pairs:
        key, separator, value = pair.partition("=")
        if not separator or not key:
            fail(f"--param wants K=V, got {pair!r}; for example --param sigma=2", BAD_INPUT)
        try:
            values[key] = json.loads(value)
        except json.JSONDecodeError:
            values[key] = value
    return values


def numbers_of(option: str, text: str | None) -> tuple[int, ...] | None:
    """Read whole numbers parted by commas."""
    if text is None:
        return None
    try:
        return tuple(int(part) for part in text.split(","))
    except ValueError:
        fail(f"{option} wants whole numbers such as 512 or 16,512,512, got {text!r}", BAD_INPUT)


def pixel_size_of(text: str | None) -> Any:
    """Read micrometers: one number, one per spatial axis, or some by axis."""
    if text is None:
        return None
    parts = [part.rpartition("=") for part in text.split(",")]
    try:
        sizes = [float(size) for _, _, size in parts]
    except ValueError:
        sizes = []
    named = [axis for axis, _, _ in parts if axis]
    if not sizes or len(named) not in (0, len(parts)):
        fail(
            f"--pixel-size wants numbers such as 0.1 or z=0.5,y=0.1,x=0.1, got {text!r}", BAD_INPUT
        )
    if named:
        return dict(zip(named, sizes, strict=True))
    return sizes[0] if len(sizes) == 1 else sizes


def overlap_of(text: str | None) -> Any:
    """Read a halo: pixels, or ``auto``."""
    return text if text == "auto" else one_or_all(numbers_of("--overlap", text))


def one_or_all(numbers: tuple[int, ...] | None) -> Any:
    """Return one number as it is, several as a tuple."""
    return numbers[0] if numbers is not None and len(numbers) == 1 else numbers


def limits_of(tile_timeout: float | None, worker_memory: str | None) -> Any:
    """Read what a tile may take in a worker process, as a home's file has it."""
    return checked_budget({"tile_timeout": tile_timeout, "worker_memory": worker_memory}).limits()


def checked_budget(fields: dict[str, Any]) -> Any:
    """Return the `ComputeBudget` that options set, or end and name the option that is wrong."""
    from patchworks_core.errors import PlanError
    from patchworks_pipeline.resources.compute_budget import ComputeBudget

    try:
        return ComputeBudget(**fields)
    except PlanError as error:
        fail(_FIELD_OF_BUDGET.sub(lambda field: BUDGET_OPTIONS[field[1]], str(error)), BAD_INPUT)


def first_or_chosen(text: str | None) -> int | str | None:
    """Read a channel; left out it is the first, and nobody chose it."""
    from patchworks_core.images.image import DEFAULT_CHANNEL

    return DEFAULT_CHANNEL if text is None else channel_of(text)


def channel_of(text: str | None) -> int | str | None:
    """Read a channel: a position, a name, or 'all'."""
    if text is None or text == "all":
        return None
    return int(text) if text.lstrip("-").isdigit() else text
