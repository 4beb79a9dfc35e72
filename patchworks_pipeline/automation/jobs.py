"""Jobs: the lineage cut where a decision falls, plan, stage, merge; and the repair of an image."""

from typing import TYPE_CHECKING, Any, TypeAlias

import dagster as dg

from patchworks_pipeline.assets.relating import relation_name
from patchworks_pipeline.assets.staging import define_stage_missing_tiles
from patchworks_pipeline.lineage import Lineage, Mount
from patchworks_pipeline.partitions import IMAGE

if TYPE_CHECKING:
    from dagster._core.definitions.unresolved_asset_job_definition import (
        UnresolvedAssetJobDefinition,
    )

MERGED = ("boundary_pairs", "global_lut", "merged_labels", "object_table", "quality_report")
"""Assets that a merge makes."""

PLANNED = ("tile_plan", "image_statistics")
"""Assets that a plan of one of several segmentations makes."""

Job: TypeAlias = "dg.JobDefinition | UnresolvedAssetJobDefinition"


def define_shared_jobs(mount: Mount) -> list[Job]:
    """Return the jobs that are about all segmentations of an image."""
    keys = [lineage.key(name) for lineage in mount.lineages for name in PLANNED]
    jobs: list[Job] = [
        dg.define_asset_job(
            mount.shared.name("plan_image"),
            selection=[mount.shared.key("image"), *keys],
            description="Open an acquisition, cut it into the tiles of each segmentation, and "
            "measure its histograms.",
            executor_def=dg.in_process_executor,
        )
    ]
    if mount.relations:
        jobs.append(
            dg.define_asset_job(
                mount.shared.name("relate"),
                selection=[mount.lineage(a).key(relation_name(b)) for a, b in mount.relations],
                description="Say in which objects of other segmentations objects lie.",
                executor_def=dg.in_process_executor,
            )
        )
    return jobs


def define_jobs(lineage: Lineage) -> list[Job]:
    """Return the jobs of one segmentation."""
    return [
        _asset_job(
            lineage,
            "plan_image",
            PLANNED if lineage.segmentation else ("image", "image_statistics"),
            "Open an acquisition, cut it into tiles, and measure its histogram.",
        ),
        _asset_job(
            lineage,
            "stage_tiles",
            ("staged_labels",),
            "Run the segmentation function on a range of tiles.",
        ),
        _repair_job(lineage),
        _asset_job(
            lineage,
            "merge_image",
            MERGED,
            "Make one label image of an image whose tiles are all staged.",
        ),
    ]


def _asset_job(
    lineage: Lineage, name: str, assets: tuple[str, ...], description: str
) -> "UnresolvedAssetJobDefinition":
    return dg.define_asset_job(
        lineage.name(name),
        selection=[lineage.key(asset) for asset in assets],
        description=description,
        # Steps are few and short, and staging fans out by itself: a process per step costs seconds.
        executor_def=dg.in_process_executor,
    )


def _repair_job(lineage: Lineage) -> dg.JobDefinition:
    """Define the job that stages what an image lacks, as its config says."""
    stage_missing_tiles = define_stage_missing_tiles(lineage)

    @dg.job(
        name=lineage.name("repair_image"),
        description="Stage the failed and missing tiles of one image in one run.",
        executor_def=dg.in_process_executor,
    )
    def repair_image() -> None:
        stage_missing_tiles()

    return repair_image


def repair_run(
    lineage: Lineage, image: str, *, run_key: str, only_transient: bool
) -> dg.RunRequest:
    """Return the run that stages what an image lacks; the merge follows by itself."""
    config = {"image": image, "only_transient": only_transient}
    return dg.RunRequest(
        run_key=run_key,
        job_name=lineage.name("repair_image"),
        tags={IMAGE: image},
        run_config={"ops": {lineage.name("stage_missing_tiles"): {"config": config}}},
    )


def image_to_repair(lineage: Lineage, run: dg.DagsterRun) -> str | None:
    """Return the image that a run repairs, as its config says; None where it is another job."""
    if run.job_name != lineage.name("repair_image"):
        return None
    try:
        config: Any = run.run_config
        return str(config["ops"][lineage.name("stage_missing_tiles")]["config"]["image"])
    except (KeyError, TypeError):
        return None
