"""Staged labels: the segmentation function on every tile, one run for a whole range of tiles."""

import time
from collections.abc import Sequence

import dagster as dg

from patchworks_core.engine import WINDOW_PER_WORKER, Outcome
from patchworks_core.grid import TileBlock
from patchworks_core.segmentation import Segmentation as SegmentationFunction
from patchworks_core.segmentation import segmentation_of
from patchworks_core.errors import StageError
from patchworks_core.plan import Plan
from patchworks_core.stage import Stage
from patchworks_core.steps import StagedBlock, stage_blocks
from patchworks_pipeline.assets.acquiring import OWNERS, image_statistics
from patchworks_pipeline.partitions import NOT_BY_KEY, split_tile_key, tiles
from patchworks_pipeline.progress import report
from patchworks_pipeline.records import ImageFolder, TileFailure
from patchworks_pipeline.resources import ComputeBudget, GpuPool, LabelStore

STAGED_LABELS = "staged_labels"

SECONDS_BETWEEN_LOG_LINES = 10
"""Progress is logged at most this often."""

SHOWN_FAILURES = 20
"""Failed tiles listed in the failure's metadata; all of them are in the image's folder."""


class StagingConfig(dg.Config):
    """Choices of one staging run."""

    skip_staged: bool = False
    """True leaves tiles alone that the current plan has staged already."""


@dg.multi_asset(
    name=STAGED_LABELS,
    specs=[
        dg.AssetSpec(
            STAGED_LABELS,
            deps=[dg.AssetDep(image_statistics, partition_mapping=NOT_BY_KEY)],
            description="Labels of each tile with ids of its own, and its strips along the seams.",
            group_name="tiles",
            kinds={"zarr", "scikitlearn"},
            owners=OWNERS,
            code_version="1",
            skippable=True,
        )
    ],
    partitions_def=tiles,
    backfill_policy=dg.BackfillPolicy.single_run(),
)
def staged_labels(
    context: dg.AssetExecutionContext,
    config: StagingConfig,
    store: LabelStore,
    budget: ComputeBudget,
    gpus: GpuPool,
) -> None:
    """Labels of each tile; every tile that finishes is a materialization of its own."""
    blocks_of: dict[str, list[str]] = {}
    for key in context.partition_keys:
        image, block = split_tile_key(key)
        blocks_of.setdefault(image, []).append(block)
    devices = gpus.devices()
    names = ", ".join(device["name"] for device in devices)
    context.log.info(f"GPUs: {names}" if devices else "no GPU found: functions run on the CPU")
    failures = {
        image: _stage_image(context, store.folder(image), blocks, config, budget)
        for image, blocks in blocks_of.items()
    }
    _fail_if_any(failures, n_tiles=len(context.partition_keys))


def _stage_image(
    context: dg.AssetExecutionContext,
    folder: ImageFolder,
    keys: Sequence[str],
    config: StagingConfig,
    budget: ComputeBudget,
) -> list[TileFailure]:
    """Stage tile blocks of one image and return those that failed."""
    plan = folder.plan()
    stage = folder.stage(plan)
    if config.skip_staged:
        missing = set(stage.missing_blocks())
        keys = [key for key in keys if key in missing]
    blocks = [plan.grid.block_of_key(key) for key in keys]
    function = _planned_function(plan)
    statistics = folder.statistics() if function.wants_statistics else None
    decision = budget.decide(plan)
    context.log.info(f"{folder.key}: staging {len(blocks)} tiles; {decision.reason}")
    progress = _Progress(context, folder.key, len(blocks))
    failures = []
    with budget.open(decision.count).open() as executor:
        for outcome in stage_blocks(
            folder.acquisition().open(),
            stage,
            function.bind(statistics),
            blocks,
            executor=executor,
            window=WINDOW_PER_WORKER * decision.count,
        ):
            if outcome.failure is not None:
                failure = TileFailure.of(outcome.item.key, outcome.failure)
                failures.append(failure)
                folder.write_failure(failure)
                context.log.error(
                    f"{folder.key}/{failure.block} failed: {failure.error_type}: "
                    f"{failure.message}\n{failure.traceback}"
                )
            else:
                folder.clear_failure(outcome.item.key)
                _record(context, folder.key, outcome)
            progress.count(outcome)
    return failures


def _planned_function(plan: Plan) -> SegmentationFunction:
    """Return the function that was planned, and only that version of it."""
    planned = plan.segmentation
    function = segmentation_of(planned["function"], planned["parameters"])
    if function.version != planned["version"]:
        raise StageError(
            f"segmentation function {planned['function']!r} was planned at version "
            f"{planned['version']!r} and is now {function.version!r}; tiles of two versions are "
            "not mixed: materialize image again"
        )
    return function


def _record(
    context: dg.AssetExecutionContext, image: str, outcome: Outcome[TileBlock, StagedBlock]
) -> None:
    """Log one tile as materialized at once, so that the partition bar fills while the run goes."""
    staged = outcome.value
    assert staged is not None
    context.log_event(
        dg.AssetMaterialization(
            asset_key=STAGED_LABELS,
            partition=f"{image}/{staged.key}",
            metadata={
                "n_labels": staged.n_labels,
                "n_pixels_read": staged.n_pixels_read,
                "seconds": round(outcome.seconds, 3),
                "seconds_reading": round(staged.seconds_reading, 3),
                "seconds_segmenting": round(staged.seconds_segmenting, 3),
                "seconds_writing": round(staged.seconds_writing, 3),
            },
        )
    )


class _Progress:
    """Counts tiles and pixels, and says how it goes now and then."""

    def __init__(self, context: dg.AssetExecutionContext, image: str, n_tiles: int) -> None:
        self._context = context
        self._image = image
        self._n_tiles = n_tiles
        self._n_done = 0
        self._n_failed = 0
        self._n_pixels = 0
        self._start = self._last = time.monotonic()

    def count(self, outcome: Outcome[TileBlock, StagedBlock]) -> None:
        """Count one tile."""
        self._n_done += 1
        self._n_failed += outcome.failure is not None
        self._n_pixels += outcome.item.core.size
        report("stage", self._n_done, self._n_tiles)
        now = time.monotonic()
        if now - self._last < SECONDS_BETWEEN_LOG_LINES and self._n_done < self._n_tiles:
            return
        self._last = now
        seconds = max(now - self._start, 1e-3)
        left = (self._n_tiles - self._n_done) * seconds / self._n_done
        self._context.log.info(
            f"{self._image}: {self._n_done} of {self._n_tiles} tiles done, {self._n_failed} failed; "
            f"{self._n_done / seconds:.1f} tiles/s, {self._n_pixels / seconds / 1e6:.1f} Mpx/s, "
            f"{left:.0f} s left"
        )


def _fail_if_any(failures: dict[str, list[TileFailure]], *, n_tiles: int) -> None:
    """End the run as failed, naming the tiles, if any failed."""
    failed = [(image, failure) for image, found in failures.items() for failure in found]
    if not failed:
        return
    rows = [
        dg.TableRecord(
            {
                "tile": f"{image}/{failure.block}",
                "error": f"{failure.error_type}: {failure.message}"[:500],
            }
        )
        for image, failure in failed[:SHOWN_FAILURES]
    ]
    names = ", ".join(f"{image}/{failure.block}" for image, failure in failed[:5])
    raise dg.Failure(
        description=(
            f"{len(failed)} of {n_tiles} tiles failed: {names}"
            f"{', ...' if len(failed) > 5 else ''}; the others are staged: materialize the failed "
            "partitions again when the cause is mended"
        ),
        metadata={
            "failed_tiles": dg.MetadataValue.table(
                records=rows,
                schema=dg.TableSchema(
                    columns=[dg.TableColumn("tile", "string"), dg.TableColumn("error", "string")]
                ),
            ),
            "n_failed": len(failed),
            "traceback_of_the_first": dg.MetadataValue.md(f"```\n{failed[0][1].traceback}\n```"),
        },
        allow_retries=False,
    )
