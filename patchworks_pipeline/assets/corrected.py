"""Labels that somebody corrected: no merge begins whose end would be to refuse to replace them.

The first step of a merge asks, not the last one: pairs, third views and a lookup table by another
rule would be left, and the next merge would take them for its own.
"""

from typing import Any

import dagster as dg

from patchworks_core.files.replacing import NO_OTHER
from patchworks_core.stage.plan import Plan
from patchworks_pipeline.lineage import Lineage
from patchworks_pipeline.records import ImageFolder


def check_corrected(folder: ImageFolder, plan: Plan, *, overwrite: bool) -> None:
    """Raise PlanError where labels were changed, or are not patchworks'; not with `overwrite`."""
    folder.labels(plan).check_replaceable(another=NO_OTHER, overwrite=overwrite)


def check_before_merge(
    context: dg.AssetExecutionContext,
    lineage: Lineage,
    folder: ImageFolder,
    plan: Plan,
    *,
    before: str = "",
) -> None:
    """Raise PlanError in a step of a run that would come to refuse to replace labels.

    Parameters
    ----------
    context : AssetExecutionContext
    lineage : Lineage
    folder : ImageFolder
    plan : Plan
    before : str
        Asset whose step asks before this one, where it is part of the run.
    """
    chosen = context.run.asset_selection
    if chosen is not None and lineage.key("merged_labels") not in chosen:
        return
    if before and (chosen is None or lineage.key(before) in chosen):
        return
    ops: Any = context.run.run_config.get("ops", {})
    config = ops.get(lineage.name("merged_labels"), {}).get("config") or {}
    check_corrected(folder, plan, overwrite=bool(config.get("overwrite")))
