"""The image as it landed: opened, planned, measured."""

from collections.abc import Iterable
from typing import Any

import dagster as dg

from patchworks_core.errors import PlanError
from patchworks_core.images.image import Image
from patchworks_core.machine.pools import Pool
from patchworks_core.ome_zarr.metadata import check_axes
from patchworks_core.pictures.report import image_picture
from patchworks_core.stage.plan import EMPTY_THRESHOLD, ImageRecord, Plan
from patchworks_core.stage.stage import Stage
from patchworks_core.stage.staging import other_channels_of
from patchworks_core.statistics.background import has_bright_background
from patchworks_core.statistics.measuring import measure, measure_tiles
from patchworks_core.tiles.halos import warning_of_halo
from patchworks_pipeline.assets.acquisitions import ACQUISITION
from patchworks_pipeline.assets.defining import image_asset
from patchworks_pipeline.assets.lost_choices import check_choices, has_results
from patchworks_pipeline.assets.metadata import file_of, picture, shape_text, size_text
from patchworks_pipeline.assets.planned import Measured, is_asked_for, planned_function
from patchworks_pipeline.assets.stage_reading import what_is_replaced
from patchworks_pipeline.assets.tile_events import log_tiles_again
from patchworks_pipeline.instance.tile_partitions import replace_tile_keys, tile_keys_of
from patchworks_pipeline.lineage import Lineage
from patchworks_pipeline.partitions import tile_keys
from patchworks_pipeline.progress import report_progress
from patchworks_pipeline.records import Acquisition, ImageFolder
from patchworks_pipeline.resources.compute_budget import ComputeBudget
from patchworks_pipeline.resources.resources import (
    AcquisitionSource,
    LabelStore,
    SegmentationDefaults,
)


def define_image(lineage: Lineage) -> dg.AssetsDefinition:
    """Define the asset `image`."""
    return image_asset(
        lineage,
        "image",
        image,
        deps=[lineage.shared.key(ACQUISITION)],
        group_name="acquisition",
        kinds={"zarr"},
        code_version="1",
    )


def image(
    context: dg.AssetExecutionContext,
    lineage: Lineage,
    store: LabelStore,
    source: AcquisitionSource,
    segmentation: SegmentationDefaults,
    budget: ComputeBudget,
) -> dg.MaterializeResult:
    """An acquisition, opened and cut into tiles: the plan that every later step asserts."""
    folder = store.folder(context.partition_key)
    is_lost = not folder.is_registered and has_results(folder)
    if not is_lost:
        _register(folder, source)
    acquisition = source.find(folder.key) if is_lost else folder.acquisition()
    opened = segmentation.open(acquisition)
    notes = _check(context, opened)
    plan = segmentation.plan_of(acquisition, opened, folder)
    if is_lost:
        check_choices(folder, plan, segmentation.merge_options(acquisition, plan, {}))
        _register(folder, source)
    return dg.MaterializeResult(
        metadata={
            **_pixels(acquisition, ImageRecord.of(opened), opened),
            **_planned(context, lineage, folder, plan, budget),
            "notes": notes,
            "thumbnail": picture(image_picture(opened), context.partition_key),
        }
    )


def define_shared_image(lineage: Lineage) -> dg.AssetsDefinition:
    """Define the asset `image` of images that have several segmentations."""
    return image_asset(
        lineage,
        "image",
        shared_image,
        deps=[lineage.shared.key(ACQUISITION)],
        group_name="acquisition",
        kinds={"zarr"},
        code_version="1",
    )


def shared_image(
    context: dg.AssetExecutionContext, store: LabelStore, source: AcquisitionSource
) -> dg.MaterializeResult:
    """An acquisition, opened; each of its segmentations has a plan of its own."""
    folder = store.folder(context.partition_key)
    _register(folder, source)
    acquisition = folder.acquisition()
    opened = acquisition.open()
    notes = _check(context, opened)
    return dg.MaterializeResult(
        metadata={
            **_pixels(acquisition, ImageRecord.of(opened), opened),
            "notes": notes,
            "thumbnail": picture(image_picture(opened), context.partition_key),
        }
    )


def define_tile_plan(lineage: Lineage) -> dg.AssetsDefinition:
    """Define the asset `tile_plan`."""
    return image_asset(
        lineage,
        "tile_plan",
        tile_plan,
        deps=[lineage.shared.key("image")],
        group_name="acquisition",
        kinds={"zarr"},
        code_version="1",
    )


def tile_plan(
    context: dg.AssetExecutionContext,
    lineage: Lineage,
    store: LabelStore,
    segmentation: SegmentationDefaults,
    budget: ComputeBudget,
) -> dg.MaterializeResult:
    """The image cut into tiles for one segmentation: the plan that its later steps assert."""
    folder = store.folder(context.partition_key, lineage.segmentation)
    folder.clear_unfinished()
    acquisition = folder.acquisition()
    opened = segmentation.open(acquisition)
    notes = _check(context, opened)
    plan = segmentation.plan_of(acquisition, opened, folder)
    channel = _channel_text(plan.image.channel, plan.grid.axes)
    planned = _planned(context, lineage, folder, plan, budget)
    return dg.MaterializeResult(
        metadata={**file_of(folder), "channel": channel, **planned, "notes": notes}
    )


def _register(folder: ImageFolder, source: AcquisitionSource) -> None:
    """Record where an image is, if it is not recorded yet."""
    folder.clear_unfinished()
    if not folder.is_registered:
        folder.write_acquisition(source.find(folder.key))


def _check(context: dg.AssetExecutionContext, image: Image) -> str:
    """Refuse axes that labels cannot have; log and return what was assumed, and what is missing."""
    check_axes(image.axes)
    notes = list(image.notes)
    for note in notes:
        context.log.info(note)
    if (gaps := image.gaps) is not None:
        notes.append(gaps.text)
        (context.log.warning if gaps.is_suspicious else context.log.info)(gaps.text)
    return "; ".join(notes) or "none"


def _pixels(acquisition: Acquisition, record: ImageRecord, image: Image) -> dict[str, Any]:
    """Return what a person reads of the pixels of an image."""
    return {
        "image": dg.MetadataValue.path(acquisition.url),
        "format": record.format,
        "shape": shape_text(image.axes, image.shape),
        "dtype": record.dtype,
        "channel": _channel_text(record.channel, image.axes),
        "level": record.level,
        "pixel_size": size_text(image.axes, record.pixel_size, record.unit),
    }


def _planned(
    context: dg.AssetExecutionContext,
    lineage: Lineage,
    folder: ImageFolder,
    plan: Plan,
    budget: ComputeBudget,
) -> dict[str, Any]:
    """Take up a plan, and return what a person reads of it."""
    decision = budget.decide(plan)
    if replaced := what_is_replaced(folder, plan):
        context.log.warning(replaced)
    if (warning := warning_of_halo(plan.grid)) is not None:
        context.log.warning(warning)
    n_new, n_retired = _take_up(context, lineage, folder, plan)
    grid = plan.grid
    return {
        "tile_shape": shape_text(grid.axes, grid.tile_shape),
        "halo": shape_text(grid.axes, grid.halo),
        "n_tiles": grid.n_tiles,
        "n_tile_partitions": grid.n_blocks,
        "n_tile_partitions_new": n_new,
        "n_tile_partitions_retired": n_retired,
        "pixels_read_per_pixel": round(grid.read_factor, 3),
        "segmentation": dg.MetadataValue.json(plan.segmentation),
        "stage": replaced or "kept as it is, or new",
        "workers": decision.reason,
        "fingerprint": plan.fingerprint,
    }


def _channel_text(channel: int | None, axes: str) -> int | str:
    """Return the channel that is segmented; an image without such an axis has none to name."""
    if channel is not None:
        return channel
    return "all" if "c" in axes else "the image has one"


def _is_plan_of(folder: ImageFolder, plan: Plan) -> bool:
    """Tell whether an image was planned so before; a record nobody can read is planned anew."""
    try:
        return folder.has("plan.json") and folder.plan().fingerprint == plan.fingerprint
    except PlanError:
        return False


def _take_up(
    context: dg.AssetExecutionContext, lineage: Lineage, folder: ImageFolder, plan: Plan
) -> tuple[int, int]:
    """Write the plan, make its stage, and bring the tile partitions in line with it."""
    is_same = _is_plan_of(folder, plan)
    Stage.open_or_create(folder.path / "stage.zarr", plan)
    if not is_same:
        folder.clear_failures()
    folder.write_plan(plan)
    was_retired = folder.is_retired
    folder.clear_retired()
    keys = tile_keys(folder.key, plan.grid.block_keys())
    before = tile_keys_of(context.instance, lineage, folder.key)
    n_new, n_retired = len(set(keys) - set(before)), len(set(before) - set(keys))
    if n_new or n_retired:
        replace_tile_keys(context.instance, lineage, before, keys)
    if was_retired:  # what was logged of its tiles may be gone with their keys
        log_tiles_again(context, lineage, folder)
    return n_new, n_retired


def define_image_statistics(lineage: Lineage) -> dg.AssetsDefinition:
    """Define the asset `image_statistics`."""
    return image_asset(
        lineage,
        "image_statistics",
        image_statistics,
        deps=[lineage.key("tile_plan" if lineage.segmentation else "image")],
        group_name="acquisition",
        kinds={"numpy"},
        code_version="1",
    )


def image_statistics(
    context: dg.AssetExecutionContext, lineage: Lineage, store: LabelStore, budget: ComputeBudget
) -> dg.MaterializeResult:
    """Exact histogram of the whole image, so that tiles do not disagree by their own."""
    folder = store.folder(context.partition_key, lineage.segmentation)
    plan = folder.plan()
    opened = folder.image(plan)
    regions = [block.core for block in plan.grid.blocks()]
    with Pool.open(budget.open(budget.decide(plan).count), report_progress) as pool:
        function = planned_function(folder, plan)
        maxima: Iterable[float] = ()
        if EMPTY_THRESHOLD in plan.segmentation:
            maxima, statistics = measure_tiles(opened, plan.grid, pool)
        else:
            statistics = measure(opened, regions, pool)
        if is_asked_for(function, plan):
            others = other_channels_of(function, opened)
            measured = {
                name: measure(others[name], regions, pool) for name in function.measured_channels
            }
            Measured(measured, tuple(maxima)).write(folder, plan)
    folder.write_statistics(statistics)
    notes = function.notes_on(statistics)
    for note in notes:
        context.log.info(note)
    return dg.MaterializeResult(
        metadata={
            "background": "bright" if has_bright_background(statistics) else "dark",
            "notes": "; ".join(notes) or "none",
            "minimum": float(statistics.minimum),
            "maximum": float(statistics.maximum),
            "mean": statistics.mean,
            "std": statistics.std,
            "percentile_1": statistics.percentile(1),
            "percentile_50": statistics.percentile(50),
            "percentile_99": statistics.percentile(99),
            "n_pixels": statistics.n_pixels,
            "n_not_finite": statistics.n_not_finite,
        }
    )
