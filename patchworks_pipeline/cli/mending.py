"""The command that mends an image: third views where tiles disagree, and the merge."""

from collections.abc import Mapping
from typing import Any

import dagster as dg

from patchworks_core.errors import PlanError
from patchworks_core.stage.third_views import RULE
from patchworks_pipeline.assets.mending import MendConfig, left_to_mend
from patchworks_pipeline.cli.advice import command_on
from patchworks_pipeline.cli.image_runs import ImageRun
from patchworks_pipeline.cli.results import is_merged
from patchworks_pipeline.cli.runs import merge_again, segmentation_of_home
from patchworks_pipeline.cli.terminal import say_step
from patchworks_pipeline.records import ImageFolder


def mend_again(
    instance: dg.DagsterInstance,
    folder: ImageFolder,
    chosen: Mapping[str, Any],
    *,
    budget: Mapping[str, Any],
    overwrite: bool = False,
) -> ImageRun:
    """Stage what third views an image lacks, and merge it again; nothing where it lacks none.

    Parameters
    ----------
    instance : DagsterInstance
    folder : ImageFolder
        Of an image that was staged.
    chosen : mapping
        Fields of `MendConfig`; None is not chosen.
    budget : mapping
        Fields of `ComputeBudget` that hold for this call.
    overwrite : bool
        Replace labels that were changed, or that are not patchworks'.

    Raises
    ------
    PlanError, StageError
        If tiles are not merged by ``overlap``, saw no pixel in common, or are missing.
    """
    config = MendConfig(**{name: value for name, value in chosen.items() if value is not None})
    plan = folder.plan()
    segmentation, acquisition = segmentation_of_home(folder), folder.acquisition()
    options = segmentation.merge_options(acquisition, plan, {})
    _check_rule(folder, options.rule, acquisition.merge.get("rule") or segmentation.merge)
    left = left_to_mend(folder, folder.stage(plan), options, config.mending)
    if left == [] and not overwrite and is_merged(folder, plan, options):
        say_step(
            f"{folder.title}: every face at which tiles agree by less than "
            f"{config.mending.min_agreement:g} has its third view; nothing is to be mended"
        )
        return ImageRun(folder, (), (), None)
    if left:
        shown = ", ".join(left[:5]) + (", ..." if len(left) > 5 else "")
        say_step(
            f"{folder.title}: mending {len(left)} faces ({shown}); how far seams agree is of "
            "two tiles alone, and stays as it was"
        )
    return merge_again(
        instance, folder, {}, mend=config.model_dump(), budget=budget, overwrite=overwrite
    )


def _check_rule(folder: ImageFolder, rule: str, chosen: str) -> None:
    """Raise PlanError where the rule of an image hears no third view."""
    if rule == RULE:
        return
    how = "" if rule == chosen else f" (the rule {chosen!r} is that for its function and tiles)"
    again = command_on(folder, "merge", "--merge", RULE)
    raise PlanError(
        f"{folder.title} is merged by {rule!r}{how}, which hears no third view; '{again}' merges "
        f"it by {RULE!r}"
    )
