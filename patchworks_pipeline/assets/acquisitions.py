"""The acquisitions as the instrument left them: an asset that no run makes, where lineages begin.

The landing sensor reports each version that landed as a materialization, and what it refused as the
failed check `can_be_taken` of the image's partition.
"""

from collections.abc import Mapping
from typing import Any

import dagster as dg

from patchworks_core.errors import ImageError, PlanError
from patchworks_pipeline.assets.defining import OWNERS, defining_checks
from patchworks_pipeline.image_faults import words_of
from patchworks_pipeline.landing.arrivals import why_unreadable
from patchworks_pipeline.lineage import Lineage
from patchworks_pipeline.resources.resources import AcquisitionSource, LabelStore

ACQUISITION = "acquisition"

CAN_BE_TAKEN = "can_be_taken"

DATA_VERSION = "dagster/data_version"
"""Tag by which Dagster tells whether what was made of a materialization is out of date."""


def define_acquisition(lineage: Lineage) -> dg.AssetSpec:
    """Define the asset `acquisition`."""
    return dg.AssetSpec(
        lineage.key(ACQUISITION),
        partitions_def=lineage.images,
        description="An image as the instrument left it in the landing folder.",
        group_name="acquisition",
        kinds={"file"},
        owners=OWNERS,
    )


def define_can_be_taken(lineage: Lineage) -> dg.AssetChecksDefinition:
    """Define the check of the asset `acquisition`."""
    with defining_checks():
        return dg.asset_check(
            asset=lineage.key(ACQUISITION),
            name=CAN_BE_TAKEN,
            description="The file can be opened, and its name is free. The landing sensor says so "
            "of what it takes and refuses; run, it opens the file again.",
            partitions_def=lineage.images,
        )(lineage.bound(can_be_taken))


def can_be_taken(
    context: dg.AssetCheckExecutionContext, store: LabelStore, source: AcquisitionSource
) -> dg.AssetCheckResult:
    """Open the acquisition of an image without reading pixels."""
    if not context.has_partition_key:
        raise dg.Failure("the check is of one acquisition: choose the partition of an image")
    key = context.partition_key
    try:
        folder = store.folder(key)
        is_here = folder.has("acquisition.json")
        why = why_unreadable(folder.acquisition() if is_here else source.find(key))
    except (ImageError, PlanError, OSError) as error:
        why = words_of(error)
    return dg.AssetCheckResult(passed=why is None, description=why)


def landed(
    lineage: Lineage, image: str, signature: str, facts: Mapping[str, Any]
) -> dg.AssetMaterialization:
    """Return what is reported of a version of an acquisition that landed."""
    metadata = {name: fact for name, fact in facts.items() if fact is not None}
    return dg.AssetMaterialization(
        lineage.key(ACQUISITION),
        partition=image,
        metadata={**metadata, "signature": signature},
        tags={DATA_VERSION: signature},
    )


def verdict(
    lineage: Lineage, image: str | None, url: str, reason: str | None
) -> dg.AssetCheckEvaluation:
    """Return what is reported of an acquisition that was refused; without a reason, was taken.

    `image` is None where the acquisition has no partition of its own.
    """
    return dg.AssetCheckEvaluation(
        asset_key=lineage.key(ACQUISITION),
        check_name=CAN_BE_TAKEN,
        passed=reason is None,
        description=None if reason is None else f"{url} was refused: {reason}",
        metadata={"path": url},
        partition=image,
    )
