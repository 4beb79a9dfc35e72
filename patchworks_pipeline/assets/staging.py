"""Staged labels: the segmentation function on every tile, one run for a whole range of tiles.

A range is what Dagster can ask for. Tiles of one image that lie apart are staged in one run by the
op `stage_missing_tiles`, which is told the image.
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace

import dagster as dg
from pydantic import Field

from patchworks_core.errors import StorageError
from patchworks_core.machine.engine import Outcome
from patchworks_core.machine.pools import Pool
from patchworks_core.plugins.segmentation import Segmentation
from patchworks_core.stage.stage import Stage
from patchworks_core.stage.staging import StagedBlock, Staging, StagingCount, stage_all
from patchworks_core.tiles.grid import TileBlock
from patchworks_pipeline.assets.defining import OWNERS
from patchworks_pipeline.assets.planned import Beside, planned_function
from patchworks_pipeline.assets.throughput import StagingFigures
from patchworks_pipeline.assets.tile_events import (
    StagingProgress,
    fail_if_any,
    input_pictures,
    log_failure,
    not_logged,
    skipped_tile,
    staged_tile,
    tag_run,
)
from patchworks_pipeline.image_faults import ImageFaults
from patchworks_pipeline.instance.tile_log import TileLog
from patchworks_pipeline.lineage import Lineage
from patchworks_pipeline.partitions import IMAGE, NOT_BY_KEY, check_image_key
from patchworks_pipeline.records import ImageFolder
from patchworks_pipeline.resources.clusters import DaskCluster
from patchworks_pipeline.resources.compute_budget import ComputeBudget
from patchworks_pipeline.resources.gpus import GpuPool
from patchworks_pipeline.resources.pools import DeployedCompute
from patchworks_pipeline.resources.resources import LabelStore
from patchworks_pipeline.tile_failures import TileFailure

POOL = "gpu"
"""Across runs: as many at once stage tiles as the pool's limit allows, one by default."""

RESUMED = "dagster/is_resume_retry"
"""Tag of runs that re-execute another from its failure."""

MIN_FAILURES_TO_STOP = 5
"""The circuit breaker stays closed below this: a few bad tiles are the ordinary case."""


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
        ge=0,
        le=1,
        description="A run is stopped once more than this share of an image's tile partitions, and "
        f"at least {MIN_FAILURES_TO_STOP}, have failed; 1 never stops.",
    )


class RepairConfig(dg.Config):
    """Choices of one run that repairs an image."""

    image: str = Field(description="Key of the image.")
    only_transient: bool = Field(
        default=False,
        description="True takes only tiles that failed of something that passes: memory, I/O, a "
        "killed worker. False takes all that are missing.",
    )


@dataclass(frozen=True, slots=True)
class _Run:
    """A staging run, and what it works with."""

    context: dg.AssetExecutionContext | dg.OpExecutionContext
    lineage: Lineage
    config: StagingConfig
    compute: DeployedCompute
    log: TileLog

    @property
    def skips_staged(self) -> bool:
        """True where tiles that are staged already are left alone."""
        # Taken up from its failure, by a person or after a power cut, a run goes on where it ended.
        return self.config.skip_staged or self.context.run.tags.get(RESUMED) == "true"


def keep_failure(
    folder: ImageFolder,
    stage: Stage,
    outcome: Outcome[TileBlock, StagedBlock],
    failed_before: frozenset[str],
) -> TileFailure | None:
    """Keep beside the stage why a tile block failed, or forget why it did before."""
    if outcome.failure is not None:
        failure = TileFailure.of(outcome, stage.grid)
        if stage.is_current:  # it says nothing of the tiles of another plan
            folder.write_failure(failure)
        return failure
    if outcome.item.key in failed_before:
        folder.clear_failure(outcome.item.key)
    return None


@dataclass(slots=True)
class _Staged:
    """What became of the tiles of one image; listens to `stage_all`, and records each."""

    run: _Run
    folder: ImageFolder
    stage: Stage
    progress: StagingProgress
    failed_before: frozenset[str]
    """Tile blocks with a record of a failure."""

    unkept_limits: str | None
    failures: list[TileFailure] = field(default_factory=list)
    pictures: dict[str, bytes] = field(default_factory=dict)
    stopped: str | None = None

    def started(self, pool: Pool, count: StagingCount) -> None:
        """Say what the tiles run on."""
        context = self.run.context
        what = f"{count.n_blocks} {self.stage.grid.units}"
        context.log.info(f"{self.folder.key}: staging {what}; {pool.reason}")
        if self.unkept_limits:
            context.log.warning(f"{self.folder.key}: {self.unkept_limits}")
        tag_run(context, {"workers": pool.reason, "dashboard": pool.dashboard})

    def finished(self, outcome: Outcome[TileBlock, StagedBlock], count: StagingCount) -> bool:
        """Record one tile block; stop the others where too many failed."""
        self.progress.tell(count)
        failure = keep_failure(self.folder, self.stage, outcome, self.failed_before)
        if failure is None:
            self.run.log.add(staged_tile(self.run.lineage, self.folder.key, outcome))
            return True
        self.failures.append(failure)
        log_failure(self.run.context, self.folder.key, failure)
        most = self.run.config.max_failed_fraction
        if count.n_failed < MIN_FAILURES_TO_STOP or count.n_failed <= most * count.n_blocks:
            return True
        self.stopped = (
            f"{count.n_failed} of {count.n_blocks} {self.stage.grid.units} of {self.folder.key} "
            f"failed, more than max_failed_fraction={most}; {count.n_left} were not tried"
        )
        return False


def define_staged_labels(
    lineage: Lineage, backfill_policy: dg.BackfillPolicy
) -> dg.AssetsDefinition:
    """Define the asset `staged_labels`."""
    measured = dg.AssetDep(lineage.key("image_statistics"), partition_mapping=NOT_BY_KEY)
    spec = dg.AssetSpec(
        lineage.key("staged_labels"),
        deps=[measured],
        description="Labels of each tile with ids of its own, and its strips along the seams.",
        group_name="tiles",
        kinds={"zarr", "scikitlearn"},
        owners=OWNERS,
        code_version="1",
        skippable=True,
    )
    return dg.multi_asset(
        name=lineage.name("staged_labels"),
        specs=[spec],
        partitions_def=lineage.tiles,
        backfill_policy=backfill_policy,
        pool=POOL,
    )(lineage.bound(staged_labels))


def staged_labels(
    context: dg.AssetExecutionContext,
    lineage: Lineage,
    config: StagingConfig,
    store: LabelStore,
    budget: ComputeBudget,
    gpus: GpuPool,
    cluster: DaskCluster,
) -> Iterator[dg.MaterializeResult]:
    """Labels of each tile; every tile that finishes is a materialization of its own."""
    blocks_of: dict[str, list[str]] = {}
    for key in context.partition_keys:
        image, _, block = key.rpartition("/")
        blocks_of.setdefault(image, []).append(block)
    compute = DeployedCompute(budget, gpus, cluster)
    _stage_images(context, lineage, config, compute, store, blocks_of)
    # Tiles were logged as they finished; returning would materialize the whole range once more.
    yield from ()


def define_stage_missing_tiles(lineage: Lineage) -> dg.OpDefinition:
    """Define the op `stage_missing_tiles`."""
    return dg.op(
        name=lineage.name("stage_missing_tiles"),
        pool=POOL,
        out=dg.Out(dg.Nothing),
        description="Stages the failed and missing tiles of one image, wherever they lie.",
    )(lineage.bound(stage_missing_tiles))


def stage_missing_tiles(
    context: dg.OpExecutionContext,
    lineage: Lineage,
    config: RepairConfig,
    store: LabelStore,
    budget: ComputeBudget,
    gpus: GpuPool,
    cluster: DaskCluster,
) -> None:
    """Stage what an image lacks; every tile that finishes is a materialization of its own."""
    folder = store.folder(check_image_key(config.image), lineage.segmentation)
    context.instance.add_run_tags(context.run_id, {IMAGE: folder.key})
    blocks = blocks_to_repair(folder, only_transient=config.only_transient)
    context.log.info(f"{folder.key}: {len(blocks)} tiles to repair")
    compute = DeployedCompute(budget, gpus, cluster)
    again = StagingConfig(skip_staged=True)
    _stage_images(context, lineage, again, compute, store, {folder.key: blocks})


def blocks_to_repair(folder: ImageFolder, *, only_transient: bool) -> list[str]:
    """Return the missing tile blocks of an image; all, or those that failed by chance."""
    missing = folder.stage(folder.plan()).missing_blocks()
    if not only_transient:
        return missing
    transient = {failure.block for failure in folder.failures() if failure.is_transient}
    return [block for block in missing if block in transient]


def _stage_images(
    context: dg.AssetExecutionContext | dg.OpExecutionContext,
    lineage: Lineage,
    config: StagingConfig,
    compute: DeployedCompute,
    store: LabelStore,
    blocks_of: Mapping[str, Sequence[str]],
) -> None:
    """Stage tile blocks of images, and fail in the end if any of them failed."""
    with TileLog(context) as log:
        run = _Run(context, lineage, config, compute, log)
        staged: dict[str, _Staged] = {}
        faults = ImageFaults(context.log.error)
        for image, blocks in blocks_of.items():
            with faults.about(image):
                folder = store.folder(check_image_key(image), lineage.segmentation)
                staged[image] = _stage_image(run, folder, blocks)
    stopped = {image: result.stopped for image, result in staged.items() if result.stopped}
    fail_if_any(
        {image: result.failures for image, result in staged.items()},
        n_tiles=sum(map(len, blocks_of.values())),
        stopped={**stopped, **faults.found},
        pictures={tile: png for result in staged.values() for tile, png in result.pictures.items()},
    )
    faults.raise_any()


def _stage_image(run: _Run, folder: ImageFolder, keys: Sequence[str]) -> _Staged:
    """Stage tile blocks of one image."""
    folder.clear_unfinished()
    plan = folder.plan()
    stage = folder.stage(plan)
    if run.skips_staged:
        keys = _missing(run, folder, stage, keys)
    failed = {failure.block: failure for failure in folder.failures()}
    if run.config.skip_failed:
        keys = [key for key in keys if key not in failed or failed[key].is_transient]
    blocks = [plan.grid.block_of_key(key) for key in keys]
    function = planned_function(folder, plan)
    compute = replace(run.compute, wants_gpu=function.wants_gpu, declared=function.worker_kind)
    figures = StagingFigures.begin(folder, plan)
    progress = StagingProgress(run.context, folder.key, figures)
    staged = _Staged(run, folder, stage, progress, frozenset(failed), compute.unkept_limits)
    try:
        with stage_all(staging_of(folder, stage, function), blocks, compute, staged) as (_, count):
            pass  # nothing else runs on this pool
    except StorageError as error:
        way_out = "what is staged is kept: make room, or mend the place, and run the image again"
        raise StorageError(f"{error}; {way_out}", error.errno) from error
    tag_run(run.context, progress.work(count).speed())
    figures.write(progress.work(count))
    if staged.failures:
        opened = folder.image(plan)
        staged.pictures = input_pictures(folder, opened, plan.grid.axes, staged.failures)
    return staged


def _missing(run: _Run, folder: ImageFolder, stage: Stage, keys: Sequence[str]) -> list[str]:
    """Return the tile blocks that are not staged, and log those that are.

    Dagster was told of every tile of a range that this run would make it. One of which it hears
    nothing counts as failed where another one fails, and as undone in a backfill.
    """
    stage.clean()
    missing = set(stage.missing_blocks())
    there = [key for key in keys if key not in missing]
    unheard = set(not_logged(run.context.instance, run.lineage, folder.key, there))
    counts = stage.counts()
    for key in there:
        indices = [tile.index for tile in stage.grid.block_of_key(key).tiles]
        n_labels = sum(int(counts[index]) for index in indices)
        tile = skipped_tile(run.lineage, folder.key, key, n_labels, is_new=key in unheard)
        run.log.add(tile)
    return [key for key in keys if key in missing]


def staging_of(folder: ImageFolder, stage: Stage, function: Segmentation) -> Staging:
    """Return what stages tile blocks of an image, as its plan says."""
    statistics = folder.statistics() if function.wants_statistics else None
    opened = folder.image(stage.plan)
    beside = Beside.of(folder, stage.plan, function, opened)
    bound = function.bind(statistics, beside.statistics)
    return Staging(opened, stage, bound, beside.empty, beside.other_channels, measures=True)
