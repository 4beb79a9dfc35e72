"""Jobs: the lineage cut where a decision falls, plan, stage, merge; and the repair of an image."""

from typing import Any

import dagster as dg

from patchworks_pipeline.assets import (
    boundary_pairs,
    global_lut,
    image,
    image_statistics,
    merged_labels,
    object_table,
    quality_report,
    staged_labels,
)
from patchworks_pipeline.assets.staging import stage_missing_tiles
from patchworks_pipeline.partitions import IMAGE

plan_image = dg.define_asset_job(
    "plan_image",
    selection=[image, image_statistics],
    description="Open an acquisition, cut it into tiles, and measure its histogram.",
)

stage_tiles = dg.define_asset_job(
    "stage_tiles",
    selection=[staged_labels],
    description="Run the segmentation function on a range of tiles.",
)


@dg.job(description="Stage the failed and missing tiles of one image in one run.")
def repair_image() -> None:
    """Stage what an image lacks, as the config says; the merge follows by itself."""
    stage_missing_tiles()


merge_image = dg.define_asset_job(
    "merge_image",
    selection=[boundary_pairs, global_lut, merged_labels, object_table, quality_report],
    description="Make one label image of an image whose tiles are all staged.",
)


def repair_run(image: str, *, run_key: str, only_transient: bool) -> dg.RunRequest:
    """Return the run that stages what an image lacks."""
    config = {"image": image, "only_transient": only_transient}
    return dg.RunRequest(
        run_key=run_key,
        job_name=repair_image.name,
        tags={IMAGE: image},
        run_config={"ops": {stage_missing_tiles.name: {"config": config}}},
    )


def image_to_repair(run: dg.DagsterRun) -> str | None:
    """Return the image that a run repairs, as its config says; None where it is another job."""
    if run.job_name != repair_image.name:
        return None
    try:
        config: Any = run.run_config
        return str(config["ops"][stage_missing_tiles.name]["config"]["image"])
    except (KeyError, TypeError):
        return None
