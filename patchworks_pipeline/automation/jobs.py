"""Jobs: the lineage cut where a decision falls; plan an image, stage its tiles, merge them."""

import dagster as dg

from patchworks_pipeline.assets import (
    boundary_pairs,
    global_lut,
    image,
    image_statistics,
    merged_labels,
    object_table,
    quality_report,
    staged_labels,
)

plan_image = dg.define_asset_job(
    "plan_image",
    selection=[image, image_statistics],
    description="Open an acquisition, cut it into tiles, and measure its histogram.",
)

stage_tiles = dg.define_asset_job(
    "stage_tiles",
    selection=[staged_labels],
    description="Run the segmentation function on a range of tiles.",
)

merge_image = dg.define_asset_job(
    "merge_image",
    selection=[boundary_pairs, global_lut, merged_labels, object_table, quality_report],
    description="Make one label image of an image whose tiles are all staged.",
)
