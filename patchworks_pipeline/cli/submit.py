"""``patchworks submit`` and ``patchworks stage-range``: an image as jobs of a batch system."""

import os
import shlex
from pathlib import Path
from typing import Annotated, Any

import typer

from patchworks_pipeline.cli.advice import command_on, options_of
from patchworks_pipeline.cli.exit_codes import BAD_INPUT, TILES_FAILED
from patchworks_pipeline.cli.homes import budget_of, check_one, segmentations_of
from patchworks_pipeline.cli.options import (
    HOME,
    Axes,
    Channel,
    Home,
    Level,
    Merge,
    MinIou,
    MinSize,
    Only,
    Outline,
    Overlap,
    Overwrite,
    Param,
    PixelSizes,
    SegmentationOption,
    TileKind,
    TileShape,
    TileTimeout,
    WorkerCount,
    WorkerMemory,
    choices_of,
)
from patchworks_pipeline.cli.terminal import fail, say, say_error

Directive = list[str] | None


def submit(
    image: Annotated[str, typer.Argument(help="Path or URL of an image.", show_default=False)],
    tasks: Annotated[
        int, typer.Option(min=1, max=1000, help="Ranges of tiles, at most; one task of the array.")
    ] = 100,
    sbatch: Annotated[
        Directive, typer.Option(metavar="OPTION", help="Of each task, such as --gres=gpu:1.")
    ] = None,
    merge_sbatch: Annotated[
        Directive, typer.Option(metavar="OPTION", help="Of the merge, such as --mem=64G.")
    ] = None,
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
    workers: WorkerCount = None,
    worker_kind: TileKind = None,
    tile_timeout: TileTimeout = None,
    worker_memory: WorkerMemory = None,
    overwrite: Overwrite = False,
    home: Home = HOME,
) -> None:
    """Plan an image, and write SLURM jobs for ranges of its tiles and for the merge after them.

    Nothing is submitted: the last line is the command that does. Again, it writes jobs for the
    tiles that are missing then. Options are those of run.
    """
    names = segmentations_of(home, only)
    check_one(names, home, "a set of jobs")
    chosen = choices_of(
        segmentation=segmentation,
        param=param,
        tile_shape=tile_shape,
        overlap=overlap,
        channel=channel,
        level=level,
        axes=axes,
        pixel_size=pixel_size,
        merge={"rule": merge, "min_iou": min_iou, "outline": outline, "min_size": min_size},
    )
    budget = budget_of(workers, worker_kind, tile_timeout, worker_memory)
    jobs = (tasks, sbatch or [], merge_sbatch or [])
    _submit(image, name, chosen, budget, jobs, names[0], home, overwrite=overwrite)


def _submit(
    image: str,
    name: str | None,
    chosen: dict[str, Any],
    budget: dict[str, Any],
    jobs: tuple[int, list[str], list[str]],
    segmentation: str,
    home: Path,
    *,
    overwrite: bool,
) -> None:
    """Plan an image and write its jobs."""
    from patchworks_pipeline.cli.runs import choose_image, open_home, plan_image
    from patchworks_pipeline.cli.submitting import Directives, write_scripts
    from patchworks_pipeline.resources.compute_budget import ComputeBudget

    n_tasks, of_tiles, of_merge = jobs
    with open_home(home.absolute()) as instance:
        deployed = ComputeBudget(**budget).of_home()
        folder, plan = choose_image(
            instance,
            image,
            name,
            chosen,
            budget=deployed,
            segmentation=segmentation,
            overwrite=overwrite,
            say=say,
        )
        planned = plan_image(instance, folder, plan, budget=deployed)
        if planned.error:
            fail(planned.error, planned.exit_code)
        missing = folder.stage(plan).missing_blocks()
        script = write_scripts(
            folder,
            home.absolute(),
            missing,
            n_tasks=n_tasks,
            directives=Directives(of_tiles, of_merge),
            options=options_of(budget),
            overwrite=overwrite,
        )
    if script is None:
        merge = command_on(folder, "merge", *(["--overwrite"] if overwrite else []))
        say(f"{folder.title}: no tile is missing; merge it with '{merge}'")
        return
    which = f"{len(missing)} {plan.grid.units}"
    say(f"{folder.title}: {which} are missing; this submits their jobs, and the merge:")
    say(f"  bash {shlex.quote(str(script))}")


def stage_range(
    image: Annotated[str, typer.Argument(help="Key of an image in the home.")],
    first: Annotated[str, typer.Argument(help="First tile of the range, such as y000x000.")],
    last: Annotated[str, typer.Argument(help="Last tile of it.")],
    plan: Annotated[str, typer.Option(help="Fingerprint of the plan that it is of.")] = "",
    only: Only = None,
    workers: WorkerCount = None,
    worker_kind: TileKind = None,
    tile_timeout: TileTimeout = None,
    worker_memory: WorkerMemory = None,
    home: Home = HOME,
) -> None:
    """Stage the missing tiles of a range: one task of the jobs that submit writes."""
    from patchworks_pipeline.cli.submitting import stage_range as stage
    from patchworks_pipeline.instance.home import home_environment
    from patchworks_pipeline.resources.compute_budget import ComputeBudget
    from patchworks_pipeline.resources.gpus import GpuPool
    from patchworks_pipeline.resources.resources import LabelStore

    os.environ.update(home_environment(home.absolute()))
    (segmentation,) = segmentations_of(home, only) if only else ("",)
    folder = LabelStore().of_home().folder(image, segmentation)
    if not folder.is_registered:
        fail(f"no image {image!r} in {home}; plan it with 'patchworks submit'", BAD_INPUT)
    budget = ComputeBudget(**budget_of(workers, worker_kind, tile_timeout, worker_memory))
    failures = stage(
        folder, first, last, budget=budget.of_home(), gpus=GpuPool().of_home(), plan=plan
    )
    for failure in failures:
        say_error(f"{folder.title}/{failure.block}: {failure.error_type}: {failure.message}")
    raise typer.Exit(TILES_FAILED if failures else 0)
