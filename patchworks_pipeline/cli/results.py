"""Which results of an image are there already, and whether they are as they were written."""

from math import isclose

from upath import UPath

from patchworks_core.errors import PlanError, StageError
from patchworks_core.files.written import fault_of, record_path
from patchworks_core.images.image import open_image
from patchworks_core.seams.rules import MergeOptions
from patchworks_core.stage.plan import Plan
from patchworks_core.tiles.grid import SPATIAL_AXES
from patchworks_pipeline.assets.corrected import check_corrected
from patchworks_pipeline.assets.planned import Measured, is_asked_for, planned_function
from patchworks_pipeline.assets.reported import is_reported
from patchworks_pipeline.cli.advice import command_on
from patchworks_pipeline.cli.terminal import errors, say
from patchworks_pipeline.records import OBJECTS_CSV, ImageFolder


def is_planned(folder: ImageFolder, plan: Plan) -> bool:
    """Tell whether the plan is this one, and its stage and its statistics are there."""
    try:
        folder.stage(plan)
        folder.statistics()
        planned = folder.plan()
        if is_asked_for(planned_function(folder, plan), plan):
            Measured.read(folder, plan)
        is_same = planned.fingerprint == plan.fingerprint
        return is_same and _calibration(planned) == _calibration(plan)
    except (PlanError, StageError):  # missing, or of another plan: it is planned again
        return False


def _calibration(plan: Plan) -> tuple[dict[str, float], dict[str, str]]:
    return plan.image.pixel_size, plan.image.unit


def check_results(folder: ImageFolder, plan: Plan, merge: MergeOptions, *, overwrite: bool) -> None:
    """Refuse an image whose results were changed, before anything is written for it.

    What is written, such as the rule that was chosen, would hold for the next call, which nobody
    asked for it.

    Raises
    ------
    PlanError
        If its object table was changed, or its labels were.
    """
    if overwrite:
        return
    if folder.has_changed_objects:
        raise PlanError(why_table_is_kept(folder, overwrite))
    is_whole = is_planned(folder, plan) and not folder.stage(plan).missing_blocks()
    if not (is_whole and is_merged(folder, plan, merge)):
        check_corrected(folder, plan, overwrite=overwrite)
    elif fault := why_not_as_written(folder, plan):
        raise PlanError(fault)


def why_not_as_written(folder: ImageFolder, plan: Plan) -> str | None:
    """Say what is wrong with labels that are there already; None where they are as written."""
    labels = folder.labels(plan).path
    fault = fault_of(labels) if record_path(labels).exists() else None
    if fault is None:
        return None
    return (
        f"{labels} is complete, but {fault}; it is left as it is: copy it elsewhere to keep it, "
        f"and '{command_on(folder, 'merge', '--overwrite')}' makes it again of the staged tiles"
    )


def why_table_is_kept(folder: ImageFolder, overwrite: bool) -> str | None:
    """Say why an object table that was changed is not replaced; None where it is to be.

    One that is replaced is kept under another name, which is said.
    """
    if overwrite:
        say_copy(folder.path / OBJECTS_CSV)
        return None
    return (
        f"{folder.path / OBJECTS_CSV} is not what objects.parquet beside it says: it was "
        "changed, or is damaged; it is left as it is, and written again once it is removed; "
        f"'{command_on(folder, 'merge', '--overwrite')}' keeps it under another name"
    )


def say_copy(table: UPath) -> None:
    """Say that what was changed in a table is kept under another name, as CSV and as Parquet."""
    say(f"{table} was changed; it is kept as {table.stem}.changed-*", on=errors)


def is_merged(folder: ImageFolder, plan: Plan, merge: MergeOptions) -> bool:
    """Tell whether labels, table and report were made of the staged labels, by the same rule."""
    try:
        provenance = folder.provenance(plan)
        if provenance is None or not is_reported(folder, provenance):
            return False
        folder.objects()
        labels = open_image(str(folder.labels(plan).path), channel=None)
    except StageError:  # missing or damaged: it is made again
        return False
    is_calibrated = all(
        labels.unit.get(axis) == plan.image.unit.get(axis)
        and isclose(labels.pixel_size.get(axis, 1), plan.image.pixel_size.get(axis, 1))
        for axis in labels.axes
        if axis in SPATIAL_AXES
    )
    return bool(
        is_calibrated
        and provenance.get("stage") == folder.stage(plan).content()
        and provenance.get("merge") == merge.to_dict()
    )
