"""How far the images of a home are, and what it refused: read from what lies on disk."""

from typing import Any

from patchworks_core.errors import StageError
from patchworks_core.stage.plan import Plan
from patchworks_pipeline.landing.arrivals import Quarantine
from patchworks_pipeline.records import ImageFolder
from patchworks_pipeline.resources.resources import LabelStore

UNKNOWN = dict.fromkeys(("tiles", "staged", "failed", "missing", "objects", "labels"))
"""Of an image of which nothing can be read."""


def status_of(folder: ImageFolder) -> dict[str, Any]:
    """Return how far an image is: tiles by state, objects, and where its labels are.

    Raises
    ------
    PlanError, StageError, OSError
        If a record of the image cannot be read.
    """
    if not folder.has("plan.json"):
        return {"tiles": 0, "staged": 0, "failed": 0, "missing": 0, "objects": None, "labels": None}
    plan = folder.plan()
    missing = _missing_blocks(folder, plan)
    failed = {failure.block for failure in folder.failures()} & missing
    labels = folder.labels(plan).path
    provenance = folder.provenance(plan)
    return {
        "tiles": plan.grid.n_blocks,
        "staged": plan.grid.n_blocks - len(missing),
        "failed": len(failed),
        "missing": len(missing) - len(failed),
        "objects": None if provenance is None else provenance.get("n_objects"),
        "labels": None if provenance is None else str(labels),
    }


def refusals() -> list[str]:
    """Return the versions of acquisitions that were refused in this home, each with the reason."""
    quarantine = Quarantine(LabelStore().of_home().path() / ".quarantine")
    return [
        f"{name} was refused: {reason}; {quarantine.release(name)}"
        for name, reason in quarantine.reasons().items()
    ]


def _missing_blocks(folder: ImageFolder, plan: Plan) -> set[str]:
    """Return the tile blocks that are not staged; without a stage of the plan, all."""
    try:
        return set(folder.stage(plan).missing_blocks())
    except StageError:
        return set(plan.grid.block_keys())
