"""An image whose record is lost: what was made of it by choices that nobody remembers is kept."""

from upath import UPath

from patchworks_core.errors import PlanError, StageError
from patchworks_core.seams.rules import MergeOptions
from patchworks_core.stage.plan import Plan
from patchworks_pipeline.records import ACQUISITION, ImageFolder


def has_results(folder: ImageFolder) -> bool:
    """Tell whether something was made of an image, by a plan."""
    return any(path.exists() for path in (*_plans(folder), folder.container))


def check_choices(folder: ImageFolder, plan: Plan, merge: MergeOptions) -> None:
    """Raise PlanError where what was made of an image was made by other choices than these.

    For an image whose record is not there, or damaged: nobody knows whether other choices are
    meant.
    """
    differences = _differences(folder, plan, merge)
    if differences:
        raise PlanError(
            f"image {folder.title!r} has results at {folder.path}, but its {ACQUISITION}, which "
            "says what was chosen for it, is gone or damaged; it would be made by other choices "
            f"now ({'; '.join(differences)}): call 'patchworks run' with the options that it had, "
            "and the record is written again, or with --overwrite to replace what is there"
        )


def _differences(folder: ImageFolder, plan: Plan, merge: MergeOptions) -> list[str]:
    """Return what of an image was made by another plan or another rule, in words."""
    differences = dict.fromkeys(
        plan.difference(before)
        for before in _plans_before(folder)
        if before.fingerprint != plan.fingerprint
    )
    try:
        provenance = folder.provenance(plan)
    except StageError as error:
        return [*differences, str(error)]
    if provenance is None:
        return list(differences)
    if not differences and provenance.get("plan") != plan.fingerprint:
        differences["the labels were made by another plan"] = None
    before, now = provenance.get("merge"), merge.to_dict()
    if before != now:
        differences[f"merge options: {now!r} are not {before!r}"] = None
    return list(differences)


def _plans(folder: ImageFolder) -> list[UPath]:
    return [folder.path / "plan.json", folder.path / "stage.zarr" / "plan.json"]


def _plans_before(folder: ImageFolder) -> list[Plan]:
    """Return the plans that are recorded and can be read."""
    plans = []
    for path in _plans(folder):
        try:
            plans.append(Plan.read(path))
        except (FileNotFoundError, PlanError):
            continue
    return plans
