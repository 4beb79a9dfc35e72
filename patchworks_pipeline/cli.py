"""The command line: ``patchworks run | segment | status | ui | demo``."""

import json
import shlex
import sys
from pathlib import Path
from typing import Annotated, Any, NoReturn

import typer
from rich.console import Console
from rich.markup import escape
from rich.table import Column, Table

from patchworks_core.errors import ImageError, PlanError, SegmentationError, TilesFailedError

app = typer.Typer(
    help="Segment images larger than memory tile by tile into one label image.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    add_completion=False,
)

console = Console()
errors = Console(stderr=True)

BAD_INPUT, TILES_FAILED = 2, 3

INPUT_ERRORS = (ImageError, PlanError, SegmentationError)

Images = Annotated[list[str], typer.Argument(help="Paths or URLs of images.", show_default=False)]
Home = Annotated[
    Path, typer.Option(envvar="PATCHWORKS_HOME", help="Folder of instance, store and landing.")
]
SegmentationOption = Annotated[
    str | None,
    typer.Option("--segmentation", help="threshold, watershed, a plugin, or module:function."),
]
Param = Annotated[
    list[str] | None,
    typer.Option("--param", metavar="K=V", help="Parameter of the function; repeat for more."),
]
TileShape = Annotated[
    str | None, typer.Option(help="Pixels of a tile: 512, or per axis from the last: 16,512,512.")
]
Overlap = Annotated[
    str | None, typer.Option(help="Halo on each side of a tile: 32, or per axis: 4,32,32.")
]
Channel = Annotated[
    str | None, typer.Option(help="Channel by position or name; 'all' segments each.")
]
Level = Annotated[int | None, typer.Option(help="Resolution level, 0 is full.")]
Axes = Annotated[
    str | None, typer.Option(help="Axes in the file's order where it does not say, such as zyx.")
]
Merge = Annotated[str | None, typer.Option(help="auto, touching, overlap or none.")]
MinIou = Annotated[float | None, typer.Option(help="Least IoU for merge=overlap.")]
MinSize = Annotated[
    int | None, typer.Option(help="Merged objects of fewer pixels become background.")
]
WorkerCount = Annotated[int | None, typer.Option("--workers", min=1, help="Tiles at once.")]
Kind = Annotated[str, typer.Option("--worker-kind", help="threads or processes.")]


@app.command()
def run(
    image: Images,
    segmentation: SegmentationOption = None,
    param: Param = None,
    tile_shape: TileShape = None,
    overlap: Overlap = None,
    channel: Channel = None,
    level: Level = None,
    axes: Axes = None,
    merge: Merge = None,
    min_iou: MinIou = None,
    min_size: MinSize = None,
    name: Annotated[str | None, typer.Option(help="Key of the image; its file name.")] = None,
    workers: WorkerCount = None,
    worker_kind: Kind = "threads",
    home: Home = Path(".patchworks"),
) -> None:
    """Run images through all assets in this process; again, it redoes only what is missing.

    Options that are left out keep what was chosen for the image before.
    """
    chosen = {
        "function": segmentation,
        "parameters": _parameters(param) if param else None,
        "tile_shape": _numbers("--tile-shape", tile_shape),
        "overlap": _numbers("--overlap", overlap),
        "channel": channel,
        "level": level,
        "axes": axes,
        "merge": {"rule": merge, "min_iou": min_iou, "min_size": min_size},
    }
    if name is not None and len(image) > 1:
        _fail("--name names one image, and several were given", BAD_INPUT)
    codes = [
        _run_one(url, name, chosen, home=home, workers=workers, worker_kind=worker_kind)
        for url in image
    ]
    raise typer.Exit(max(codes))


def _run_one(
    url: str,
    name: str | None,
    chosen: dict[str, Any],
    *,
    home: Path,
    workers: int | None = None,
    worker_kind: str = "threads",
) -> int:
    """Run one image and say what came of it; return the exit code."""
    from patchworks_pipeline.partitions import check_image_key, image_key
    from patchworks_pipeline.progress_bars import progress_bars
    from patchworks_pipeline.resources import ComputeBudget, LabelStore
    from patchworks_pipeline.runs import open_home, plan_of, register, run_image

    try:
        budget = ComputeBudget(workers=workers or 0, kind=worker_kind)
        with open_home(home.absolute()) as instance:
            store = LabelStore()
            url = url if "://" in url else str(Path(url).absolute())
            key = check_image_key(name) if name else image_key(url)
            acquisition = _acquisition(store.folder(key), url, chosen)
            plan = plan_of(acquisition, budget)
            folder = register(instance, store, key, acquisition)
            with progress_bars(key, console):
                result = run_image(instance, folder, plan, budget=budget)
    except INPUT_ERRORS as error:
        _say_error(str(error))
        return BAD_INPUT
    _say(result, home)
    if result.failures:
        return TILES_FAILED
    return 0 if result.is_complete else 1


def _acquisition(folder: Any, url: str, chosen: dict[str, Any]) -> Any:
    """Return the record of an image: what is chosen now over what was chosen before."""
    from dataclasses import replace

    from patchworks_pipeline.records import Acquisition

    known = folder.has("acquisition.json") and folder.acquisition().url == url
    before = folder.acquisition() if known else Acquisition(url)
    given = {k: v for k, v in chosen.items() if v is not None and k not in ("merge", "channel")}
    if chosen["channel"] is not None:
        given["channel"] = _channel(chosen["channel"])
    if "function" in given and "parameters" not in given:
        given["parameters"] = None
    rule = {k: v for k, v in chosen["merge"].items() if v is not None}
    return replace(before, **given, merge={**before.merge, **rule})


def _say(result: Any, home: Path) -> None:
    """Print what came of an image, and what to do next."""
    folder = result.folder
    if result.failures:
        n = len(result.failures)
        title = f"{n} tile{'' if n == 1 else 's'} failed"
        table = Table(Column("tile", overflow="fold"), "error", title=title, expand=False)
        for failure in result.failures:
            message = f"{failure.error_type}: {failure.message}"
            table.add_row(f"{folder.key}/{failure.block}", escape(message))
        errors.print(table)
        _print(
            "the other tiles are staged; when the cause is mended, retry the failed ones with\n"
            f"  {_retry_command(folder, home)}",
            on=errors,
        )
        return
    if result.error:
        _say_error(result.error)
        return
    summary = json.loads((folder.report / "summary.json").read_text())
    done = ", ".join(result.steps) or "nothing was missing"
    lines = [
        f"{folder.key}: {summary['n_objects']} objects, "
        f"{summary['n_objects_across_seams']} of them across seams ({done})",
        f"  labels   {folder.labels(folder.plan()).path}",
        f"  overlay  {folder.report / 'overlay.png'}",
        f"  table    {folder.path / 'objects.csv'}",
    ]
    _print("\n".join(lines))


def _retry_command(folder: Any, home: Path) -> str:
    """Return the command that runs an image again; what was chosen for it is kept."""
    url = folder.acquisition().url
    return shlex.join(["patchworks", "run", url, "--name", folder.key, "--home", str(home)])


@app.command()
def segment(
    image: Annotated[str, typer.Argument(help="Path or URL of an image.", show_default=False)],
    output: Annotated[
        str, typer.Option("-o", "--output", help="OME-Zarr to write labels/<name> into.")
    ],
    segmentation: Annotated[str, typer.Option(help="As for run.")] = "watershed",
    param: Param = None,
    tile_shape: TileShape = "1024",
    overlap: Overlap = "32",
    channel: Channel = "0",
    level: Level = 0,
    axes: Axes = None,
    merge: Merge = "auto",
    min_iou: MinIou = 0.3,
    min_size: MinSize = 0,
    name: Annotated[str, typer.Option(help="Of the label image.")] = "labels",
    workers: WorkerCount = 1,
    worker_kind: Kind = "threads",
    resume: Annotated[bool, typer.Option(help="Take up an interrupted call.")] = False,
) -> None:
    """Segment one image with the library alone: no Dagster, no home."""
    from patchworks_core import open_image, segment_to_ome_zarr, segmentation_of
    from patchworks_core.rules import MergeOptions
    from patchworks_core.workers import Workers
    from patchworks_pipeline.progress import report
    from patchworks_pipeline.progress_bars import progress_bars

    try:
        opened = open_image(image, channel=_channel(channel), level=level or 0, axes=axes)
        with progress_bars(image, console):
            written = segment_to_ome_zarr(
                opened,
                segmentation_of(segmentation, _parameters(param or [])),
                output,
                name=name,
                tile_shape=_one_or_all(_numbers("--tile-shape", tile_shape)),
                overlap=_one_or_all(_numbers("--overlap", overlap)),
                options=MergeOptions(merge, None, min_iou, min_size),  # type: ignore[arg-type]
                workers=Workers(workers or 1, worker_kind),  # type: ignore[arg-type]
                progress=report,
                resume=resume,
            )
    except INPUT_ERRORS as error:
        _fail(str(error), BAD_INPUT)
    except TilesFailedError as error:
        _fail(str(error), TILES_FAILED)
    _print(f"{written.n_objects} objects\n  labels  {written.path}")


@app.command()
def status(
    image: Annotated[str | None, typer.Argument(help="Key or path of one image.")] = None,
    home: Home = Path(".patchworks"),
) -> None:
    """Show how far images are: tiles staged, failed and missing, objects, where the labels are."""
    from patchworks_pipeline.partitions import image_key, images
    from patchworks_pipeline.resources import LabelStore
    from patchworks_pipeline.runs import open_home, status_of

    if not (home / "dagster").is_dir():
        _fail(f"no patchworks home at {home}; make one with 'patchworks run IMAGE'", BAD_INPUT)
    with open_home(home.absolute()) as instance:
        known = sorted(instance.get_dynamic_partitions(str(images.name)))
        keys = known if image is None else [image if image in known else image_key(image)]
        if image is not None and keys[0] not in known:
            _fail(f"no image {image!r} in {home}; its images are {known!r}", BAD_INPUT)
        numbers = ("tiles", "staged", "failed", "missing", "objects")
        table = Table(Column("image", overflow="fold"), *numbers)
        labels = []
        for key in keys:
            row = status_of(LabelStore().folder(key))
            table.add_row(key, *("-" if row[n] is None else str(row[n]) for n in numbers))
            labels += [f"{key}: labels {row['labels']}"] if row["labels"] else []
            for failure in LabelStore().folder(key).failures() if image else ():
                failed = f"{key}/{failure.block}: {failure.error_type}: {failure.message}"
                _print(failed, on=errors)
    console.print(table)
    for line in labels:
        _print(line)


@app.command()
def ui(
    home: Home = Path(".patchworks"),
    port: Annotated[int, typer.Option(help="Of the webserver.")] = 3000,
    host: Annotated[str, typer.Option(help="Address to listen on.")] = "127.0.0.1",
) -> None:
    """Serve the Dagster UI of a home, with its daemon, until interrupted."""
    from patchworks_pipeline.serving import serve

    raise typer.Exit(serve(home.absolute(), host=host, port=port))


@app.command()
def demo(
    home: Home = Path(".patchworks"),
) -> None:
    """Segment a real micrograph that scikit-image carries, through all assets."""
    from patchworks_pipeline.demo import describe, write_micrograph
    from patchworks_pipeline.home import prepare_home

    path = write_micrograph(prepare_home(home.absolute()) / "landing")
    chosen: dict[str, Any] = {
        "function": "watershed",
        "parameters": {"sigma": 1.5, "min_distance": 5},
        "tile_shape": (128,),
        "overlap": (32,),
        "channel": None,
        "level": None,
        "axes": None,
        "merge": {"min_size": 30},
    }
    code = _run_one(str(path), None, chosen, home=home)
    if code == 0:
        _print(describe(home))
    raise typer.Exit(code)


def _parameters(pairs: list[str]) -> dict[str, Any]:
    """Read K=V pairs; values are JSON where they can be, text otherwise."""
    found: dict[str, Any] = {}
    for pair in pairs:
        key, separator, value = pair.partition("=")
        if not separator or not key:
            _fail(f"--param wants K=V, got {pair!r}; for example --param sigma=2", BAD_INPUT)
        try:
            found[key] = json.loads(value)
        except json.JSONDecodeError:
            found[key] = value
    return found


def _numbers(option: str, text: str | None) -> tuple[int, ...] | None:
    """Read whole numbers parted by commas."""
    if text is None:
        return None
    try:
        return tuple(int(part) for part in text.split(","))
    except ValueError:
        _fail(f"{option} wants whole numbers such as 512 or 16,512,512, got {text!r}", BAD_INPUT)


def _one_or_all(numbers: tuple[int, ...] | None) -> Any:
    """Return one number as it is, several as a tuple."""
    return numbers[0] if numbers is not None and len(numbers) == 1 else numbers


def _channel(text: str | None) -> int | str | None:
    """Read a channel: a position, a name, or 'all'."""
    if text is None or text == "all":
        return None
    return int(text) if text.lstrip("-").isdigit() else text


def _fail(message: str, code: int) -> NoReturn:
    """End with a message and an exit code."""
    _say_error(message)
    sys.exit(code)


def _say_error(message: str) -> None:
    """Print an error as it is: its brackets are no markup."""
    errors.print(f"[red]error[/]: {escape(message)}", highlight=False, soft_wrap=True)


def _print(text: str, *, on: Console = console) -> None:
    """Print text as it is, and never break a path."""
    on.print(text, highlight=False, soft_wrap=True, markup=False)


if __name__ == "__main__":
    app()
