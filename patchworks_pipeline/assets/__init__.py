"""The assets, in the order of the lineage."""

import dagster as dg

from patchworks_pipeline.assets.acquiring import define_image, define_image_statistics
from patchworks_pipeline.assets.merging import (
    define_boundary_pairs,
    define_global_lut,
    define_merged_labels,
)
from patchworks_pipeline.assets.reporting import define_object_table, define_quality_report
from patchworks_pipeline.assets.staging import define_staged_labels
from patchworks_pipeline.lineage import Lineage


def define_assets(
    lineage: Lineage, backfill_policy: dg.BackfillPolicy
) -> list[dg.AssetsDefinition]:
    """Return the assets of one segmentation."""
    return [
        define_image(lineage),
        define_image_statistics(lineage),
        define_staged_labels(lineage, backfill_policy),
        define_boundary_pairs(lineage),
        define_global_lut(lineage),
        define_merged_labels(lineage),
        define_object_table(lineage),
        define_quality_report(lineage),
    ]
