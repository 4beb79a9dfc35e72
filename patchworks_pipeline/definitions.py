"""The code location: everything Dagster is to know, named explicitly."""

import dagster as dg

from patchworks_pipeline import assets, jobs
from patchworks_pipeline.resources import (
    AcquisitionSource,
    ComputeBudget,
    GpuPool,
    LabelStore,
    Segmentation,
)

defs = dg.Definitions(
    assets=[
        assets.image,
        assets.image_statistics,
        assets.staged_labels,
        assets.boundary_pairs,
        assets.global_lut,
        assets.merged_labels,
        assets.object_table,
        assets.quality_report,
    ],
    jobs=[jobs.plan_image, jobs.stage_tiles, jobs.merge_image],
    resources={
        "store": LabelStore(),
        "source": AcquisitionSource(),
        "segmentation": Segmentation(),
        "budget": ComputeBudget(),
        "gpus": GpuPool(),
    },
    # Steps are few and short, and staging fans out by itself: a process per step costs seconds.
    executor=dg.in_process_executor,
)
