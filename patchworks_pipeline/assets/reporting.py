"""What people look at: the object table, and the pictures and figures of one image."""

import json
from datetime import UTC, datetime
from typing import Any

import dagster as dg
import numpy as np
import pyarrow as pa

from patchworks_core.files.storage import open_array, write_bytes, write_text
from patchworks_core.merge.objects import object_table as table_of_objects
from patchworks_core.merge.steps import add_up_objects, measure_drawn
from patchworks_core.pictures.charts import size_histogram, tile_map
from patchworks_core.pictures.drawing import png_bytes
from patchworks_core.pictures.report import image_picture
from patchworks_core.seams.faces import judge_sizes
from patchworks_pipeline.assets.defining import image_asset
from patchworks_pipeline.assets.merging import (
    N_THIRD_VIEWS,
    N_TILES_MISSING,
    seam_figures,
    seams_of,
)
from patchworks_pipeline.assets.metadata import file_of, picture
from patchworks_pipeline.assets.reported import OF_LABELS, SUMMARY, what_labels_are
from patchworks_pipeline.assets.stage_reading import read_once
from patchworks_pipeline.assets.throughput import figures_of, finish
from patchworks_pipeline.lineage import Lineage
from patchworks_pipeline.records import OBJECTS_CSV
from patchworks_pipeline.resources.clusters import DaskCluster
from patchworks_pipeline.resources.compute_budget import ComputeBudget
from patchworks_pipeline.resources.gpus import GpuPool
from patchworks_pipeline.resources.pools import DeployedCompute
from patchworks_pipeline.resources.resources import LabelStore
from patchworks_pipeline.tables import words_on_kept


def define_object_table(lineage: Lineage) -> dg.AssetsDefinition:
    """Define the asset `object_table`."""
    return image_asset(
        lineage,
        "object_table",
        object_table,
        deps=[lineage.key("merged_labels")],
        group_name="results",
        kinds={"parquet"},
        code_version="2",
    )


def object_table(
    context: dg.AssetExecutionContext,
    lineage: Lineage,
    store: LabelStore,
    budget: ComputeBudget,
    gpus: GpuPool,
    cluster: DaskCluster,
) -> dg.MaterializeResult:
    """Size, place and intensity of every object, added up from the tiles."""
    folder = store.folder(context.partition_key, lineage.segmentation)
    plan = folder.plan()
    stage = read_once(folder.stage(plan))
    lut, options = folder.lut(stage)
    with DeployedCompute(budget, gpus, cluster).open_steps(plan) as pool:
        if options.feathers:  # what is drawn are other pixels than those that were staged
            labels = open_array(folder.labels(plan).path / "0")
            sums = measure_drawn(plan.grid, labels, folder.image(plan), pool)
        else:
            sums = add_up_objects(stage, lut, pool)
    table = table_of_objects(
        sums,
        image_shape=plan.grid.shape,
        pixel_size=plan.image.pixel_size,
        unit=plan.image.unit,
    )
    if kept := folder.write_objects(table):
        context.log.warning(words_on_kept(kept))
    sizes, label = object_sizes(table)
    return dg.MaterializeResult(
        metadata={
            "n_objects": table.num_rows,
            "columns": ", ".join(table.column_names),
            "table": dg.MetadataValue.path(str(folder.path / "objects.parquet")),
            "table_csv": dg.MetadataValue.path(str(folder.path / OBJECTS_CSV)),
            "sizes": picture(png_bytes(size_histogram(sizes, label)), "sizes"),
            **({"changed_table_kept": words_on_kept(kept)} if kept else {}),
        }
    )


def object_sizes(table: pa.Table) -> tuple[np.ndarray[Any, Any], str]:
    """Return the size of every object, and what it is: calibrated where the image is."""
    columns = {
        "volume_um3": "volume (µm³)",
        "area_um2": "area (µm²)",
        "volume_pixels": "volume (pixels)",
        "area_pixels": "area (pixels)",
    }
    name = next(name for name in columns if name in table.column_names)
    return table[name].to_numpy(), columns[name]


def define_quality_report(lineage: Lineage) -> dg.AssetsDefinition:
    """Define the asset `quality_report`."""
    return image_asset(
        lineage,
        "quality_report",
        quality_report,
        deps=[lineage.key("object_table")],
        group_name="results",
        kinds={"matplotlib"},
        code_version="1",
    )


def quality_report(
    context: dg.AssetExecutionContext, lineage: Lineage, store: LabelStore
) -> dg.MaterializeResult:
    """Pictures and a table to judge one image by, on disk and here."""
    folder = store.folder(context.partition_key, lineage.segmentation)
    plan = folder.plan()
    stage = read_once(folder.stage(plan))
    counts = stage.counts()
    seams = seams_of(folder, stage)
    table = folder.objects()
    sizes, label = object_sizes(table)
    per_tile = counts.clip(min=0).sum(axis=tuple(range(max(0, counts.ndim - 2))))
    pictures = {
        "image": image_picture(folder.image(plan)),
        "sizes": png_bytes(size_histogram(sizes, label)),
        "objects_per_tile": png_bytes(
            tile_map(np.atleast_2d(per_tile), "staged labels per tile", "labels")
        ),
        "seams": png_bytes(
            tile_map(
                flat_mean(seams.of_tiles(plan.grid)),
                "agreement at seams",
                "mean IoU; 1: neighbours saw the same",
                limits=(0, 1),
                grey="no object at its seams",
            )
        ),
    }
    for name, png in pictures.items():
        write_bytes(folder.report / f"{name}.png", png)
    summary = summarize(
        table, sizes, label, n_staged=int(counts.clip(min=0).sum()), plan_url=plan.image.url
    )
    summary |= seam_figures(seams)
    provenance = folder.provenance(plan) or {}
    named = (N_THIRD_VIEWS, N_TILES_MISSING)
    summary |= {name: provenance[name] for name in named if name in provenance}
    labels = what_labels_are(provenance)
    content = {**summary, "seam_problems": seams.problems(), OF_LABELS: labels}
    today = finish(store.path(), folder.key, plan, datetime.now(UTC).date())
    # Last: with it an image counts as merged, and a run that was killed before is taken up.
    write_text(folder.path / SUMMARY, json.dumps(content, indent=2) + "\n")
    return dg.MaterializeResult(
        metadata={
            **file_of(folder),
            "report": dg.MetadataValue.path(str(folder.report)),
            **{name: value for name, value in summary.items() if value is not None},
            **figures_of(folder, plan),
            **today,
            **{
                name: picture((folder.report / f"{name}.png").read_bytes(), name)
                for name in ("overlay", "overview", *pictures)
            },
        }
    )


def flat_mean(per_tile: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
    """Average values of tiles over all axes but the last two; NaN is left out."""
    figures = np.ma.masked_invalid(np.atleast_2d(per_tile))
    mean = np.ma.mean(figures, axis=tuple(range(figures.ndim - 2)))
    return np.asarray(np.ma.filled(mean, np.nan))


def summarize(
    table: pa.Table,
    sizes: np.ndarray[Any, Any],
    size_label: str,
    *,
    n_staged: int,
    plan_url: str | None,
) -> dict[str, Any]:
    """Return the figures of one image."""
    crossing = table["n_tiles"].to_numpy() > 1
    quantiles = np.percentile(sizes, [5, 50, 95]) if len(sizes) else [0.0, 0.0, 0.0]
    return {
        "image_url": plan_url,
        "n_objects": table.num_rows,
        "n_staged_labels": n_staged,
        "n_objects_across_seams": int(crossing.sum()),
        "n_large_across_seams": judge_sizes(sizes, table["n_tiles"].to_numpy()).n_large,
        "n_objects_at_border": int(np.sum(table["touches_border"].to_numpy())),
        "size": size_label,
        "size_percentile_5": float(quantiles[0]),
        "size_median": float(quantiles[1]),
        "size_percentile_95": float(quantiles[2]),
    }
