"""The assets, in the order of the lineage."""

from patchworks_pipeline.assets.acquiring import image, image_statistics
from patchworks_pipeline.assets.merging import boundary_pairs, global_lut, merged_labels
from patchworks_pipeline.assets.reporting import object_table, quality_report
from patchworks_pipeline.assets.staging import staged_labels

__all__ = [
    "boundary_pairs",
    "global_lut",
    "image",
    "image_statistics",
    "merged_labels",
    "object_table",
    "quality_report",
    "staged_labels",
]
