"""The assets, in the order of the lineage."""

import dagster as dg

from patchworks_pipeline.assets.acquiring import (
    define_image,
    define_image_statistics,
    define_shared_image,
    define_tile_plan,
)
from patchworks_pipeline.assets.merging import (
    define_boundary_pairs,
    define_global_lut,
    define_merged_labels,
)
from patchworks_pipeline.assets.relating import define_relation
from patchworks_pipeline.assets.reporting import define_object_table, define_quality_report
from patchworks_pipeline.assets.staging import define_staged_labels
from patchworks_pipeline.lineage import Lineage, Mount


def define_assets(mount: Mount, backfill_policy: dg.BackfillPolicy) -> list[dg.AssetsDefinition]:
    """Return the assets of a deployment."""
    assets = [define_shared_image(mount.shared)] if mount.segmentations else []
    for lineage in mount.lineages:
        assets += _define_segmentation(lineage, backfill_policy)
    for a, b in mount.relations:
        assets.append(define_relation(mount.lineage(a), mount.lineage(b)))
    return assets


def _define_segmentation(
    lineage: Lineage, backfill_policy: dg.BackfillPolicy
) -> list[dg.AssetsDefinition]:
    """Return the assets of one segmentation."""
    first = define_tile_plan(lineage) if lineage.segmentation else define_image(lineage)
    return [
        first,
        define_image_statistics(lineage),
        define_staged_labels(lineage, backfill_policy),
        define_boundary_pairs(lineage),
        define_global_lut(lineage),
        define_merged_labels(lineage),
        define_object_table(lineage),
        define_quality_report(lineage),
    ]
