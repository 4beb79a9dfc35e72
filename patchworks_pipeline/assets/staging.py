"""Staged labels: the segmentation function on every tile, one run for a whole range of tiles."""

from collections.abc import Generator, Iterator, Sequence
from dataclasses import dataclass, field

import dagster as dg
from pydantic import Field

from patchworks_core.machine.engine import Outcome
from patchworks_core.machine.pools import Pool
from patchworks_core.stage.stage import Stage
from patchworks_core.stage.staging import StagedBlock, stage_blocks
from patchworks_core.tiles.grid import TileBlock
from patchworks_pipeline.assets.acquiring import OWNERS, image_statistics
from patchworks_pipeline.assets.planned import Beside, planned_function
from patchworks_pipeline.assets.throughput import add_staging
from patchworks_pipeline.assets.tile_events import (
    STAGED_LABELS,
    Progress,
    fail_if_any,
    found_tile,
    input_pictures,
    log_failure,
    not_logged,
    staged_tile,
    tag_run,
)
from patchworks_pipeline.instance.tile_log import TileLog
from patchworks_pipeline.partitions import NOT_BY_KEY, split_tile_key, tiles
from patchworks_pipeline.records import ImageFolder, TileFailure
from patchworks_pipeline.resources.clusters import DaskCluster
from patchworks_pipeline.resources.pools import TilePools
from patchworks_pipeline.resources.resources import ComputeBudget, GpuPool, LabelStore

RESUMED = "dagster/is_resume_retry"
"""Tag of runs that re-execute another from its failure."""

MIN_FAILURES_TO_STOP = 5
"""The circuit breaker stays closed below this: a few bad tiles are the ordinary case."""


Outcomes = Generator[Outcome[TileBlock, StagedBlock], None, None]


class StagingConfig(dg.Config):
    """Choices of one staging run."""

    skip_staged: bool = Field(
        default=False,
        description="True leaves tiles alone that the current plan has staged already.",
    )
    skip_failed: bool = Field(
        default=False,
        description="True leaves tiles alone that failed in a way that another try would repeat.",
    )
    max_failed_fraction: float = Field(
        default=0.5,
        description="A run is stopped once more than this share of an image's tiles, and at least "
        f"{MIN_FAILURES_TO_STOP}, have failed; 1 never stops.",
    )


@dataclass(frozen=True, slots=True)
class _Run:
    """A staging run, and what it works with."""

    context: dg.AssetExecutionContext
    config: StagingConfig
    pools: TilePools
    log: TileLog

    @property
    def skips_staged(self) -> bool:
        """True where tiles that are staged already are left alone."""
        # Taken up from its failure, by a person or after a power cut, a run goes on where it ended.
        return self.config.skip_staged or self.context.run.tags.get(RESUMED) == "true"


@dataclass(slots=True)
class _Staged:
    """What became of the tiles of one image."""

    failures: list[TileFailure] = field(default_factory=list)
    pictures: dict[str, bytes] = field(default_factory=dict)
    stopped: str | None = None


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
    # Across runs: as many runs at once stage tiles as the pool's limit allows, one by default.
    pool="gpu",
)
def staged_labels(
    context: dg.AssetExecutionContext,
    config: StagingConfig,
    store: LabelStore,
    budget: ComputeBudget,
    gpus: GpuPool,
    cluster: DaskCluster,
) -> Iterator[dg.MaterializeResult]:
    """Labels of each tile; every tile that finishes is a materialization of its own."""
    blocks_of: dict[str, list[str]] = {}
    for key in context.partition_keys:
        image, block = split_tile_key(key)
        blocks_of.setdefault(image, []).append(block)
    pools = TilePools(budget, gpus, cluster)
    with TileLog(context) as log:
        run = _Run(context, config, pools, log)
        staged = {
            image: _stage_image(run, store.folder(image), blocks)
            for image, blocks in blocks_of.items()
        }
    fail_if_any(
        {image: found.failures for image, found in staged.items()},
        n_tiles=len(context.partition_keys),
        stopped={image: found.stopped for image, found in staged.items() if found.stopped},
        pictures={tile: png for found in staged.values() for tile, png in found.pictures.items()},
    )
    # Tiles were logged as they finished; returning would materialize the whole range once more.
    yield from ()


def _stage_image(run: _Run, folder: ImageFolder, keys: Sequence[str]) -> _Staged:
    """Stage tile blocks of one image."""
    plan = folder.plan()
    stage = folder.stage(plan)
    if run.skips_staged:
        keys = _missing(run, folder, stage, keys)
    failed = {failure.block: failure for failure in folder.failures()}
    if run.config.skip_failed:
        keys = [key for key in keys if key not in failed or failed[key].is_transient]
    blocks = [plan.grid.block_of_key(key) for key in keys]
    progress = Progress(run.context, folder.key, len(blocks))
    staged = _Staged()
    outcomes = _outcomes(run, folder, stage, blocks)
    for outcome in outcomes:
        progress.count(outcome)
        if outcome.failure is None:
            if outcome.item.key in failed:
                folder.clear_failure(outcome.item.key)
            run.log.add(staged_tile(folder.key, outcome))
            continue
        failure = TileFailure.of(outcome, plan.grid.axes)
        staged.failures.append(failure)
        folder.write_failure(failure)
        log_failure(run.context, folder.key, failure)
        n = len(staged.failures)
        if n >= MIN_FAILURES_TO_STOP and n > run.config.max_failed_fraction * len(blocks):
            staged.stopped = (
                f"{n} of {len(blocks)} tiles of {folder.key} failed, more than "
                f"max_failed_fraction={run.config.max_failed_fraction}; "
                f"{len(blocks) - progress.n_done} were not tried"
            )
            break
    outcomes.close()
    tag_run(run.context, progress.speed())
    add_staging(folder, plan, progress.work())
    if staged.failures:
        opened = folder.acquisition().open()
        staged.pictures = input_pictures(folder, opened, plan.grid.axes, staged.failures)
    return staged


def _missing(run: _Run, folder: ImageFolder, stage: Stage, keys: Sequence[str]) -> list[str]:
    """Return the tile blocks that are not staged; log those that are and were never logged."""
    missing = set(stage.missing_blocks())
    there = [key for key in keys if key not in missing]
    for key in not_logged(run.context.instance, folder.key, there):
        run.log.add(found_tile(folder.key, key))
    return [key for key in keys if key in missing]


def _outcomes(
    run: _Run, folder: ImageFolder, stage: Stage, blocks: Sequence[TileBlock]
) -> Outcomes:
    """Stage the first tile alone to see what it takes, then the others side by side."""
    plan, pools = stage.plan, run.pools
    function = planned_function(plan)
    statistics = folder.statistics() if function.wants_statistics else None
    opened = folder.acquisition().open()
    beside = Beside.of(folder, plan, function, opened)

    def staged(pool: Pool, some: Sequence[TileBlock]) -> Outcomes:
        return stage_blocks(
            opened,
            stage,
            function.bind(statistics, beside.statistics),
            some,
            pool=pool,
            empty=beside.empty,
            companions=beside.companions,
        )

    measured_bytes = 0
    rest = list(blocks)
    if not pools.is_decided and len(rest) > 1:
        with pools.open(plan, wants_gpu=function.wants_gpu) as pool:
            for outcome in staged(pool, rest[:1]):
                measured_bytes = outcome.value.peak_bytes if outcome.value else 0
                yield outcome
        rest = rest[1:]
    with pools.open(plan, wants_gpu=function.wants_gpu, measured_bytes=measured_bytes) as pool:
        run.context.log.info(f"{folder.key}: staging {len(blocks)} tiles; {pool.reason}")
        tag_run(run.context, {"workers": pool.reason, "dashboard": pool.dashboard})
        yield from staged(pool, rest)
