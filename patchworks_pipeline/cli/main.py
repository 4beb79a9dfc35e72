"""The command line: ``patchworks run | retry | merge | next | segment | status | ui | demo``."""

from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Annotated, Any

import typer
from rich.markup import escape
from rich.table import Column, Table

from patchworks_core.machine.interrupts import INTERRUPTIONS
from patchworks_pipeline.cli.advice import command_on, options_of
from patchworks_pipeline.cli.commands import Commands
from patchworks_pipeline.cli.convert import convert
from patchworks_pipeline.cli.exit_codes import BAD_INPUT, code_of, meanings
from patchworks_pipeline.cli.homes import (
    budget_of,
    check_one,
    known_image,
    known_images,
    segmentations_of,
)
from patchworks_pipeline.cli.options import (
    HOME,
    Axes,
    Channel,
    Faces,
    Home,
    Images,
    Json,
    Level,
    Merge,
    MinAgreement,
    MinIou,
    MinSize,
    Only,
    Outline,
    Overlap,
    Overwrite,
    Param,
    PixelSizes,
    Priority,
    SegmentationOption,
    TileKind,
    TileShape,
    TileTimeout,
    WorkerCount,
    WorkerMemory,
    choices_of,
    is_chosen,
)
from patchworks_pipeline.cli.pilot import pilot
from patchworks_pipeline.cli.plan import plan
from patchworks_pipeline.cli.records import record_of, rule_of, words_of_holes
from patchworks_pipeline.cli.samples import samples
from patchworks_pipeline.cli.schema import schema
from patchworks_pipeline.cli.segment import segment
from patchworks_pipeline.cli.submit import stage_range, submit
from patchworks_pipeline.cli.terminal import (
    console,
    errors,
    fail,
    in_options,
    say,
    say_error,
    say_json,
    say_step,
)
from patchworks_pipeline.cli.view import view

STEPS_DONE = {"plan_image": "planned", "stage_tiles": "staged", "merge_image": "merged"}
"""What people are told that a job did."""

app = typer.Typer(
    cls=Commands,
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    epilog=meanings(),
    context_settings={"help_option_names": ["-h", "--help"]},
)


def _version(is_wanted: bool) -> None:
    """Print the version and end, where it is asked for."""
    if is_wanted:
        from importlib.metadata import version

        say(f"patchworks {version('patchworks-pipeline')}")
        raise typer.Exit


@app.callback()
def main(
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Say the version.")
    ] = False,
) -> None:
    """Segment images larger than memory tile by tile into one label image."""


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
    pixel_size: PixelSizes = None,
    merge: Merge = None,
    min_iou: MinIou = None,
    outline: Outline = None,
    min_size: MinSize = None,
    name: Annotated[str | None, typer.Option(help="Key of the image; its file name.")] = None,
    only: Only = None,
    priority: Priority = None,
    workers: WorkerCount = None,
    worker_kind: TileKind = None,
    tile_timeout: TileTimeout = None,
    worker_memory: WorkerMemory = None,
    overwrite: Overwrite = False,
    plan: Annotated[str, typer.Option(hidden=True, help="As for stage-range.")] = "",
    json: Json = False,
    home: Home = HOME,
) -> None:
    """Run images through all assets in this process; again, it redoes only what is missing.

    Options that are left out keep what was chosen for the image before; those of workers
    (--workers, --worker-kind, --tile-timeout, --worker-memory) hold for this call alone.
    """
    options = choices_of(
        segmentation=segmentation,
        param=param,
        tile_shape=tile_shape,
        overlap=overlap,
        channel=channel,
        level=level,
        axes=axes,
        pixel_size=pixel_size,
        priority=priority,
        merge={"rule": merge, "min_iou": min_iou, "outline": outline, "min_size": min_size},
    )
    if name is not None and len(image) > 1:
        fail("--name names one image, and several were given", BAD_INPUT)
    budget = budget_of(workers, worker_kind, tile_timeout, worker_memory)
    names = segmentations_of(home, only)
    if is_chosen(options):
        check_one(names, home, "what options choose")
    codes = [
        _run_image(
            url,
            name,
            options,
            names,
            home=home,
            budget=budget,
            as_json=json,
            overwrite=overwrite,
            of_plan=plan,
        )
        for url in image
    ]
    raise typer.Exit(max(codes))


def _run_image(
    url: str,
    name: str | None,
    chosen: dict[str, Any],
    segmentations: Sequence[str] = ("",),
    **how: Any,
) -> int:
    """Run segmentations of one image as `_run_one`; what is wrong with it is said once."""
    say_step(f"{url}: begun")
    errors_before: set[str] = set()
    return max(
        _run_one(url, name, chosen, errors_before, segmentation=segmentation, **how)
        for segmentation in segmentations
    )


def _run_one(
    url: str,
    name: str | None,
    chosen: dict[str, Any],
    errors_before: set[str],
    *,
    home: Path,
    budget: dict[str, Any] | None = None,
    as_json: bool = False,
    segmentation: str = "",
    overwrite: bool = False,
    of_plan: str = "",
) -> int:
    """Run one segmentation of an image and say what came of it; return the exit code."""
    from patchworks_pipeline.cli.progress_bars import progress_bars
    from patchworks_pipeline.cli.runs import choose_image, open_home, run_image, with_relations
    from patchworks_pipeline.image_faults import IMAGE_FAULTS, words_of
    from patchworks_pipeline.resources.compute_budget import ComputeBudget

    folder = None
    try:
        with open_home(home.absolute()) as instance:
            deployed = ComputeBudget(**(budget or {})).of_home()
            tell = partial(say, on=errors if as_json else console)
            folder, plan = choose_image(
                instance,
                url,
                name,
                chosen,
                budget=deployed,
                segmentation=segmentation,
                overwrite=overwrite,
                of_plan=of_plan,
                say=tell,
            )
            with progress_bars(folder.title, errors if as_json else console):
                result = run_image(instance, folder, plan, budget=deployed, overwrite=overwrite)
                result = with_relations(instance, result)
            if as_json:
                say_json(record_of(result))
            else:
                _say(result, home, budget)
    except INTERRUPTIONS:
        say(_kept(folder) if folder is not None else "interrupted", on=errors)
        raise
    except IMAGE_FAULTS as error:
        words = words_of(error)
        if as_json:
            which = {"segmentation": segmentation} if segmentation else {}
            say_json({"source": url, **which, "error": words})
        if words not in errors_before:
            say_error(words)
            errors_before.add(words)
        return code_of(error)
    return int(result.exit_code)


def _kept(folder: Any) -> str:
    """Say what is kept of an image whose run was interrupted."""
    return f"interrupted: {_staged(folder)}; run it again, and it goes on from there"


def _staged(folder: Any) -> str:
    """Say how many tiles of an image, or blocks of them, are staged."""
    from patchworks_pipeline.cli.status import plan_if_any, status_of
    from patchworks_pipeline.image_faults import ImageFaults

    words = f"what is staged of {folder.title} is kept"
    with ImageFaults(lambda text: None).about(folder.key):
        plan = plan_if_any(folder)
        if plan is None:
            words = f"no tile of {folder.title} was planned yet"
        else:
            counted = f"{status_of(folder, plan)['staged']} of {plan.grid.n_blocks}"
            words = f"{counted} {plan.grid.units} of {folder.title} are staged and kept"
    return words


def _say(result: Any, home: Path, budget: Mapping[str, Any] | None = None) -> None:
    """Print what came of an image, and what to do next."""
    folder = result.folder
    if result.failures:
        n = len(result.failures)
        title = f"{n} tile{'' if n == 1 else 's'} failed"
        table = Table(Column("tile", overflow="fold"), "error", title=title, expand=False)
        for failure in result.failures:
            message = in_options(f"{failure.error_type}: {failure.message}")
            table.add_row(f"{folder.title}/{failure.block}", escape(message))
        errors.print(table)
        if result.stopped:
            say(f"the run was stopped: {in_options(result.stopped)}", on=errors)
        which = "the failed ones" + (" and those not tried" if result.stopped else "")
        again = command_on(folder, "retry", *options_of(budget or {}), "--home", str(home))
        say(
            f"{_staged(folder)}; when the cause is mended, retry {which} with\n  {again}",
            on=errors,
        )
        return
    if result.error:
        say_error(result.error)
        return
    summary = folder.summary()
    n = summary.get("n_third_views", 0)
    plan = folder.plan()
    holes = words_of_holes(folder, plan.grid, summary.get("n_tiles_missing"))
    done = ", ".join(STEPS_DONE.get(job, job) for job in result.steps) or "nothing was missing"
    lines = [
        f"{folder.title}: {summary['n_objects']} objects, "
        f"{summary['n_objects_across_seams']} of them across seams, by {rule_of(folder)} ({done})",
        f"  labels   {folder.labels(plan).path}",
        f"  overlay  {folder.report / 'overlay.png'}",
        f"  table    {folder.path / 'objects.csv'}",
        *([f"  holes    {holes}"] if holes else []),
        *(f"  related  {table}" for table in result.relations),
        *([f"  mended   by {n} third view{'' if n == 1 else 's'}"] if n else []),
        *(f"  seams    {problem}" for problem in summary.get("seam_problems", [])),
    ]
    say("\n".join(lines))


KnownImage = Annotated[str, typer.Argument(help="Key or path of an image in the home.")]


@app.command()
def retry(
    image: KnownImage,
    only: Only = None,
    workers: WorkerCount = None,
    worker_kind: TileKind = None,
    tile_timeout: TileTimeout = None,
    worker_memory: WorkerMemory = None,
    home: Home = HOME,
) -> None:
    """Stage the failed and missing tiles of an image again, then merge it."""
    with known_image(image, home) as (_, folder):
        url = folder.acquisition().url
    budget = budget_of(workers, worker_kind, tile_timeout, worker_memory)
    names = segmentations_of(home, only)
    raise typer.Exit(_run_image(url, folder.key, {}, names, home=home, budget=budget))


@app.command()
def merge(
    image: KnownImage,
    only: Only = None,
    merge: Merge = None,
    min_iou: MinIou = None,
    outline: Outline = None,
    min_size: MinSize = None,
    allow_missing_tiles: Annotated[
        bool, typer.Option(help="Merge with holes where tiles are not staged.")
    ] = False,
    overwrite: Annotated[
        bool, typer.Option(help="Replace labels that were changed, or that are not patchworks'.")
    ] = False,
    home: Home = HOME,
) -> None:
    """Merge an image again, by another rule or with holes; nothing is segmented again."""
    from patchworks_pipeline.cli.progress_bars import progress_bars
    from patchworks_pipeline.cli.runs import merge_again, with_relations

    values = {"rule": merge, "min_iou": min_iou, "outline": outline, "min_size": min_size}
    options = {name: value for name, value in values.items() if value is not None}
    names = segmentations_of(home, only)
    check_one(names, home, "a merge")
    with (
        known_image(image, home, names[0]) as (instance, folder),
        progress_bars(folder.title, console),
    ):
        result = merge_again(
            instance, folder, options, allow_missing=allow_missing_tiles, overwrite=overwrite
        )
        result = with_relations(instance, result)
    _say(result, home)
    raise typer.Exit(result.exit_code)


@app.command()
def mend(
    image: KnownImage,
    only: Only = None,
    faces: Faces = None,
    min_agreement: MinAgreement = None,
    workers: WorkerCount = None,
    worker_kind: TileKind = None,
    tile_timeout: TileTimeout = None,
    worker_memory: WorkerMemory = None,
    overwrite: Annotated[
        bool, typer.Option(help="Replace labels that were changed, or that are not patchworks'.")
    ] = False,
    home: Home = HOME,
) -> None:
    """Segment one more tile at each face where two tiles disagree, and merge an image again."""
    from patchworks_pipeline.cli.mending import mend_again
    from patchworks_pipeline.cli.progress_bars import progress_bars
    from patchworks_pipeline.cli.runs import with_relations

    names = segmentations_of(home, only)
    check_one(names, home, "mending")
    budget = budget_of(workers, worker_kind, tile_timeout, worker_memory)
    chosen = {"faces": faces, "min_agreement": min_agreement}
    with (
        known_image(image, home, names[0]) as (instance, folder),
        progress_bars(folder.title, console),
    ):
        result = mend_again(instance, folder, chosen, budget=budget, overwrite=overwrite)
        result = with_relations(instance, result)
    _say(result, home)
    raise typer.Exit(result.exit_code)


@app.command("next")
def next_image(image: KnownImage, home: Home = HOME) -> None:
    """Let an image that waits for its turn be the next: its runs go before those of all others."""
    from patchworks_pipeline.automation.priorities import put_first
    from patchworks_pipeline.lineage import Mount

    names = tuple(filter(None, segmentations_of(home, None)))
    with known_image(image, home) as (instance, folder):
        n_runs = put_first(instance, Mount((), names), folder)
    runs = "1 run that waits goes" if n_runs == 1 else f"{n_runs} runs that wait go"
    say(f"{folder.key}: {runs} first now, and so will those to come")


@app.command()
def status(
    image: Annotated[str | None, typer.Argument(help="Key or path of one image.")] = None,
    json: Json = False,
    home: Home = HOME,
) -> None:
    """Show how far images are: their tiles, objects and labels; and which ones were refused."""
    from patchworks_pipeline.cli.status import names_of_home, state_of

    names = names_of_home(home) if image is None else segmentations_of(home, None)
    with known_images(image, home) as (instance, keys):
        state = state_of(instance, keys, names, of_home=image is None)
    for text in state.complaints:
        say_error(text)
    for text in (*state.failed, *state.refused, *state.left_over):
        say(in_options(text), on=errors)
    if json:
        say_json(state.record())
    else:
        console.print(state.table())
        for line in state.labels():
            say(line)
    if not state.is_sound:
        raise typer.Exit(BAD_INPUT)


@app.command()
def ui(
    home: Home = HOME,
    port: Annotated[int, typer.Option(min=1, max=65535, help="Of the webserver.")] = 3000,
    host: Annotated[str, typer.Option(help="Address to listen on.")] = "127.0.0.1",
    automation: Annotated[
        bool, typer.Option(help="Whether sensors and schedules may start runs.")
    ] = True,
) -> None:
    """Serve the Dagster UI of a home, with its daemon, until interrupted."""
    from patchworks_pipeline.cli.serving import serve

    raise typer.Exit(serve(home.absolute(), host=host, port=port, automation=automation))


@app.command()
def demo(
    home: Home = HOME,
) -> None:
    """Segment a real micrograph that scikit-image carries, through all assets."""
    from patchworks_pipeline.cli.demo import CHOICES, describe, write_micrograph
    from patchworks_pipeline.instance.home import prepare_home

    path = write_micrograph(prepare_home(home.absolute()) / "landing")
    code = _run_image(str(path), None, CHOICES, home=home)
    if code == 0:
        say(describe(home))
    raise typer.Exit(code)


app.command()(plan)
app.command()(submit)
app.command()(stage_range)
app.command()(segment)
app.command()(pilot)
app.command()(convert)
app.command()(view)
app.command()(samples)
app.command()(schema)

if __name__ == "__main__":
    app()
