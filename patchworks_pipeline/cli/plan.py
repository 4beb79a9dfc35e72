"""The command ``patchworks plan``: how an image would be cut, and what a run would cost."""

import os
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.table import Table

from patchworks_core.machine.budget import human_bytes
from patchworks_pipeline.cli.exit_codes import BAD_INPUT
from patchworks_pipeline.cli.homes import check_one, segmentations_of
from patchworks_pipeline.cli.options import (
    HOME,
    Axes,
    Channel,
    Home,
    Json,
    Level,
    Merge,
    MinIou,
    MinSize,
    Only,
    Outline,
    Overlap,
    Param,
    PixelSizes,
    SegmentationOption,
    TileShape,
    choices_of,
)
from patchworks_pipeline.cli.terminal import console, fail, say, say_json

if TYPE_CHECKING:
    from patchworks_core.api.cost import Cost, Prices

Price = Annotated[float | None, typer.Option(min=0, help="In any currency; without, no price.")]


def plan(
    image: Annotated[str, typer.Argument(help="Path or URL of an image.", show_default=False)],
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
    cost: Annotated[
        bool, typer.Option("--cost", help="Say what a run would cost; segments a few tiles.")
    ] = False,
    seconds_per_tile: Annotated[
        float | None, typer.Option(min=0, help="Of the function; nothing is segmented then.")
    ] = None,
    core_hour: Price = None,
    gpu_hour: Price = None,
    gb_month: Price = None,
    thousand_requests: Price = None,
    json: Json = False,
    home: Home = HOME,
) -> None:
    """Say how an image would be cut into tiles, and what a run would cost. Nothing is written.

    Options are those of run.
    """
    names = segmentations_of(home, only)
    check_one(names, home, "a plan")
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
    from patchworks_core.api.cost import Prices

    prices = Prices(core_hour, gpu_hour, gb_month, thousand_requests)
    if not cost and (seconds_per_tile is not None or prices != Prices()):
        fail("prices and --seconds-per-tile are of a cost; add --cost", BAD_INPUT)
    grid, total = _planned(image, name, chosen, names[0], home, (cost, seconds_per_tile))
    if json:
        say_json({"grid": grid.to_dict(), **(_record(total, prices) if total else {})})
        return
    say(
        f"{grid.n_tiles} tiles of {grid.tile_shape} with a halo of {grid.halo} (axes "
        f"{grid.axes!r}) in {grid.n_blocks} blocks"
    )
    if total:
        _say(total, prices)


def _planned(
    image: str,
    name: str | None,
    chosen: dict[str, Any],
    segmentation: str,
    home: Path,
    costs: tuple[bool, float | None],
) -> tuple[Any, "Cost | None"]:
    """Return the grid of an image, and its cost where that is asked for."""
    from patchworks_core.api.cost import FunctionSeconds, cost_of
    from patchworks_core.api.estimate import spread, staged_sample
    from patchworks_core.api.job import Job
    from patchworks_core.machine.pools import Compute
    from patchworks_pipeline.cli.runs import choose, plan_of, segmentation_of_home
    from patchworks_pipeline.instance.home import home_environment
    from patchworks_pipeline.landing.registered import key_of
    from patchworks_pipeline.partitions import check_image_key
    from patchworks_pipeline.resources.compute_budget import ComputeBudget
    from patchworks_pipeline.resources.resources import LabelStore

    os.environ.update(home_environment(home.absolute()))
    store = LabelStore().of_home()
    url = image if "://" in image else str(Path(image).absolute())
    key = check_image_key(name) if name else key_of(store.path(), url)
    folder = store.folder(key, segmentation)
    deployed = segmentation_of_home(folder)
    wants_pilot = chosen.get("overlap") == "auto"
    acquisition = choose(folder, url, {**chosen, "overlap": None} if wants_pilot else chosen)
    if wants_pilot:
        acquisition = deployed.piloted(acquisition, say=say)
    planned = plan_of(acquisition, ComputeBudget().of_home(), folder)
    is_costed, seconds = costs
    if not is_costed:
        return planned.grid, None
    opened, function = deployed.open(acquisition), deployed.function_of(acquisition)
    options = deployed.merge_options(acquisition, planned, {})
    if seconds is not None:
        took = FunctionSeconds.of_tiles(seconds, planned.grid)
    else:
        keys = planned.grid.block_keys()
        blocks = [planned.grid.block_of_key(keys[i]) for i in spread(len(keys))]
        job = Job(opened, function, options, Compute(1))
        staged, stored = staged_sample(job, planned, blocks, measures=True)
        took = FunctionSeconds.measured(staged, stored, planned.grid)
    return planned.grid, cost_of(planned, opened, options, took, uses_gpu=function.wants_gpu)


def _record(cost: "Cost", prices: "Prices") -> dict[str, Any]:
    """Return a cost as JSON has it."""
    bill = cost.bill(prices)
    return {
        "cost": {name: asdict(amount) for name, amount in cost},
        "prices": {name: price for name, price in asdict(prices).items() if price is not None},
        "money": {**bill, "total": sum(bill.values())} if bill else {},
    }


def _in_words(name: str, value: float) -> str:
    """Return an amount as people write it."""
    if name.startswith("bytes"):
        return human_bytes(value)
    if name.endswith("hours"):
        return f"{value:,.1f}" if value >= 1 else f"{value:.4f} ({value * 3600:,.0f} s)"
    return f"{value:,.0f}"


def _say(cost: "Cost", prices: "Prices") -> None:
    """Print a cost as a table, and what it is in money."""
    table = Table("", "amount", "basis")
    for name, amount in cost:
        table.add_row(name.replace("_", " "), _in_words(name, amount.value), amount.basis)
    console.print(table)
    bill = cost.bill(prices)
    for name, money in bill.items():
        say(f"{name.replace('_', ' ')}: {money:,.4g} at {getattr(prices, name):g} each")
    if bill:
        say(f"together {sum(bill.values()):,.4g}, with disk for a month where it is priced")
