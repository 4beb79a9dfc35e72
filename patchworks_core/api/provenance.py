"""How labels were made: the record that lies beside them."""

from __future__ import annotations

from typing import Any

from patchworks_core.seams.lookup import LookupTable
from patchworks_core.seams.rules import MergeOptions
from patchworks_core.stage.plan import Plan


def provenance_of(
    plan: Plan,
    options: MergeOptions,
    lut: LookupTable,
    *,
    pilot: dict[str, Any] | None = None,
) -> dict[str, Any]:
    """Return how labels were made, JSON-ready.

    Parameters
    ----------
    plan : Plan
    options : MergeOptions
        Resolved.
    lut : LookupTable
    pilot : dict, optional
        The report of the pilot that chose overlap and rule, where one did.
    """
    return {
        "plan": plan.fingerprint,
        "image": {"url": plan.image.url, "fingerprint": plan.image.fingerprint},
        "segmentation": plan.segmentation,
        "merge": options.to_dict(),
        "n_objects": lut.n_objects,
        "versions": plan.versions,
        **({} if pilot is None else {"pilot": pilot}),
    }
