"""Third views of an image: staged within the run that merges it, before anything is joined."""

from contextlib import suppress
from dataclasses import replace
from functools import partial
from typing import Any

import dagster as dg
from pydantic import Field

from patchworks_core.errors import StageError
from patchworks_core.merge.mending import (
    MIN_AGREEMENT,
    Mended,
    Mending,
    faces_to_mend,
    mend_faces,
)
from patchworks_core.seams.edge_table import Edges
from patchworks_core.seams.rules import MergeOptions
from patchworks_core.stage.stage import Stage
from patchworks_pipeline.assets.planned import planned_function
from patchworks_pipeline.assets.staging import staging_of
from patchworks_pipeline.progress import report_progress
from patchworks_pipeline.records import ImageFolder
from patchworks_pipeline.resources.pools import DeployedCompute


class MendConfig(dg.Config):
    """Which faces get one more view."""

    faces: int | None = Field(
        default=None, ge=1, description="At most so many, the worst; left out there is no limit."
    )
    min_agreement: float = Field(
        default=MIN_AGREEMENT,
        ge=0,
        le=1,
        description="Mean IoU of the objects at a face below which it is mended.",
    )

    @property
    def mending(self) -> Mending:
        """The same for the core."""
        return Mending(self.faces, self.min_agreement)


def mend_image(
    folder: ImageFolder,
    stage: Stage,
    edges: Edges,
    options: MergeOptions,
    config: MendConfig,
    compute: DeployedCompute,
) -> Mended:
    """Stage the third views of an image.

    Raises
    ------
    PlanError, StageError
        As `mend_faces`.
    TilesFailedError
        If a third view failed; the others are kept.
    """
    function = planned_function(folder, stage.plan)
    staging = staging_of(folder, stage, function)
    compute = replace(compute, wants_gpu=function.wants_gpu, declared=function.worker_kind)
    say = partial(report_progress, "mend")
    with compute.open(stage.grid, staging.image.dtype) as pool:
        mended = mend_faces(staging, edges, options, config.mending, pool=pool, say=say)
    mended.check()
    return mended


def mending_figures(mended: Mended) -> dict[str, Any]:
    """Return what a person reads of a mending."""
    figures: dict[str, Any] = {
        "n_faces_mended": len(mended.faces),
        "n_third_views_staged": mended.n_views,
        "faces_mended": ", ".join(mended.faces[:50]) or "none",
    }
    if mended.agreement is not None:
        figures["agreement_of_mended_faces"] = round(mended.agreement, 4)
    return figures


def left_to_mend(
    folder: ImageFolder, stage: Stage, options: MergeOptions, mending: Mending
) -> list[str] | None:
    """Return the faces that lack a third view; None where nobody knows before tiles are paired."""
    with suppress(StageError):
        left = faces_to_mend(stage, folder.edges(stage), options, mending)
        return [face.key(stage.grid) for face in left]
    return None
