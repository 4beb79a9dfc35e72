"""From staged labels to one label image: pairs, lookup table, apply."""

import time
from datetime import timedelta
from math import prod
from typing import Any

import dagster as dg
import numpy as np
from pydantic import Field

from patchworks_core.api.provenance import provenance_of
from patchworks_core.errors import StageError
from patchworks_core.files.label_arrays import output_chunks
from patchworks_core.files.replacing import NO_OTHER
from patchworks_core.files.storage import open_array, write_bytes
from patchworks_core.merge.outlines import jumps_of, outlines_of
from patchworks_core.merge.pairing import pair_tiles
from patchworks_core.merge.steps import ids_are_sequential, look_up
from patchworks_core.ome_zarr.label_image import LabelImage, WrittenLabels, write_merged
from patchworks_core.pictures.report import overlay_picture, overview_region, seam_region
from patchworks_core.seams.edge_table import Edges
from patchworks_core.seams.judge import SeamReport, judge_seams
from patchworks_core.seams.lookup import LookupTable
from patchworks_core.seams.rules import MergeOptions, warning_of
from patchworks_core.stage.plan import Plan
from patchworks_core.stage.stage import Stage
from patchworks_core.stage.staging import Staging, other_channels_of
from patchworks_core.stage.third_views import views_for
from patchworks_core.stage.unchanged import check_tiles
from patchworks_pipeline.assets.corrected import check_before_merge
from patchworks_pipeline.assets.defining import defining_checks, image_asset
from patchworks_pipeline.assets.mending import MendConfig, mend_image, mending_figures
from patchworks_pipeline.assets.metadata import file_of, picture, shape_text
from patchworks_pipeline.assets.planned import planned_function
from patchworks_pipeline.assets.stage_reading import read_once
from patchworks_pipeline.lineage import Lineage
from patchworks_pipeline.partitions import NOT_BY_KEY
from patchworks_pipeline.progress import report_progress
from patchworks_pipeline.records import ImageFolder
from patchworks_pipeline.resources.clusters import DaskCluster
from patchworks_pipeline.resources.compute_budget import ComputeBudget
from patchworks_pipeline.resources.gpus import GpuPool
from patchworks_pipeline.resources.pools import DeployedCompute
from patchworks_pipeline.resources.resources import LabelStore, SegmentationDefaults

CODE_VERSION = "2"
"""Of the steps of a merge."""

EVERY_TILE_IS_MERGED = "every_tile_is_merged"
IDS_ARE_SEQUENTIAL = "ids_are_sequential"
SEAMS_AGREE = "seams_agree"

N_THIRD_VIEWS = "n_third_views"
"""Field of the provenance, where labels heard some; a figure of labels and report."""

N_TILES_MISSING = "n_tiles_missing"
"""Field of the provenance, where labels lack tiles; a figure of pairs, labels and report."""

FRESHNESS = dg.FreshnessPolicy.time_window(
    fail_window=timedelta(days=7), warn_window=timedelta(days=2)
)
"""Labels of a facility in use: something is merged every few days, or somebody should look."""


class PairingConfig(dg.Config):
    """Choices of one merge that begin with the pairs."""

    allow_missing_tiles: bool = Field(
        default=False,
        description="True merges with holes where tiles are not staged; the result is marked as "
        "partial, and heals when the tiles arrive.",
    )
    mend: MendConfig | None = Field(
        default=None,
        description="Segment one more tile at each face where two tiles disagree, for this merge "
        "and those to come; left out, no face gets one.",
    )


def define_boundary_pairs(lineage: Lineage) -> dg.AssetsDefinition:
    """Define the asset `boundary_pairs`."""
    return image_asset(
        lineage,
        "boundary_pairs",
        boundary_pairs,
        deps=[dg.AssetDep(lineage.key("staged_labels"), partition_mapping=NOT_BY_KEY)],
        group_name="labels",
        kinds={"parquet"},
        code_version=CODE_VERSION,
    )


def boundary_pairs(
    context: dg.AssetExecutionContext,
    lineage: Lineage,
    config: PairingConfig,
    store: LabelStore,
    segmentation: SegmentationDefaults,
    budget: ComputeBudget,
    gpus: GpuPool,
    cluster: DaskCluster,
) -> dg.MaterializeResult:
    """Every two staged labels that met across a seam, with the evidence that they are one."""
    folder = store.folder(context.partition_key, lineage.segmentation)
    folder.clear_unfinished()
    plan = folder.plan()
    check_before_merge(context, lineage, folder, plan)
    stage = read_once(folder.stage(plan))
    allow_missing = config.allow_missing_tiles
    opened = folder.image(plan)
    compute = DeployedCompute(budget, gpus, cluster)
    with compute.open_steps(plan) as pool:
        if opened.fingerprint != plan.image.fingerprint:
            others = other_channels_of(planned_function(folder, plan), opened)
            check_tiles(Staging(opened, stage, np.asarray, other_channels=others), pool=pool)
        edges = pair_tiles(stage, pool=pool, allow_missing=allow_missing)
    with edges:
        figures = pair_figures(edges)
        if config.mend is not None:
            options = segmentation.merge_options(folder.acquisition(), plan, {})
            mended = mend_image(folder, stage, edges, options, config.mend, compute)
            figures |= mending_figures(mended)
        # Of the tiles that were paired, and of the third views as they are now.
        folder.write_edges(edges, stage.content(), allow_missing=allow_missing)
    counts = stage.settled_counts(allow_missing=allow_missing)
    return dg.MaterializeResult(
        metadata={
            "n_staged_labels": int(counts.sum()),
            N_TILES_MISSING: len(stage.missing_blocks()),
            **figures,
        }
    )


def pair_figures(edges: Edges) -> dict[str, Any]:
    """Return what a person reads of an edge table; 8 bytes a pair are held for the median."""
    n_touching = n_overlapping = 0
    ious = [np.zeros(0)]
    for part in edges.parts():
        n_touching += int((part.connectivity > 0).sum())
        n_overlapping += int((part.intersection > 0).sum())
        ious.append(part.iou[part.is_pair])
    iou = np.concatenate(ious)
    return {
        "n_pairs": len(iou),
        "n_touching": n_touching,
        "n_overlapping": n_overlapping,
        "median_iou": round(float(np.median(iou)), 4) if len(iou) else 0.0,
    }


class MergeConfig(dg.Config):
    """Choices of one merge; left out, the image's own or the deployment's apply."""

    merge: str | None = Field(
        default=None,
        description="auto, overlap, overlap-pairs, touching or none: which labels are one object.",
    )
    connectivity: int | None = Field(
        default=None,
        ge=0,
        le=3,
        description="Contact that counts for 'touching', 1 to 3; 0 is the function's.",
    )
    min_iou: float | None = Field(
        default=None, ge=0, le=1, description="How much two views must agree, 0 to 1."
    )
    outline: str | None = Field(
        default=None,
        description="auto, feather or core: how objects are drawn where tiles met.",
    )
    min_size: int | None = Field(
        default=None, ge=0, description="Merged objects of fewer pixels become background."
    )

    def chosen(self) -> dict[str, Any]:
        """Return the fields of `MergeOptions` that were chosen."""
        values = {
            "rule": self.merge,
            "connectivity": self.connectivity,
            "min_iou": self.min_iou,
            "outline": self.outline,
            "min_size": self.min_size,
        }
        return {name: value for name, value in values.items() if value is not None}


def define_global_lut(lineage: Lineage) -> dg.AssetsDefinition:
    """Define the asset `global_lut`."""
    return image_asset(
        lineage,
        "global_lut",
        global_lut,
        deps=[lineage.key("boundary_pairs")],
        group_name="labels",
        kinds={"scipy"},
        code_version=CODE_VERSION,
    )


def global_lut(
    context: dg.AssetExecutionContext,
    lineage: Lineage,
    config: MergeConfig,
    store: LabelStore,
    segmentation: SegmentationDefaults,
    budget: ComputeBudget,
    gpus: GpuPool,
    cluster: DaskCluster,
) -> dg.MaterializeResult:
    """Lookup table that gives every staged label its merged id."""
    folder = store.folder(context.partition_key, lineage.segmentation)
    plan = folder.plan()
    check_before_merge(context, lineage, folder, plan, before="boundary_pairs")
    stage = read_once(folder.stage(plan))
    content = stage.content()
    options = segmentation.merge_options(folder.acquisition(), plan, config.chosen())
    if (warning := warning_of(plan.grid, options)) is not None:
        context.log.warning(warning)
    edges = folder.edges(stage)
    allow_missing = folder.allows_missing(stage)
    outlines = outlines_of(stage, edges, options, allow_missing=allow_missing)
    compute = DeployedCompute(budget, gpus, cluster)
    with compute.open_steps(plan, is_light=not options.filters_sizes) as pool:
        lut = look_up(
            stage, edges, options, allow_missing=allow_missing, outlines=outlines, pool=pool
        )
    folder.write_lut(lut, options, content)
    counts = stage.settled_counts(allow_missing=allow_missing)
    joins = views_for(stage, options).joins(edges, counts, options)
    return dg.MaterializeResult(
        metadata={
            "rule": options.rule,
            "options": dg.MetadataValue.json(options.to_dict()),
            "n_staged_labels": lut.n_staged,
            "n_pairs_joined": sum(int(joins.rows(part).sum()) for part in edges.parts()),
            "n_labels_joined": lut.n_joined,
            "n_objects": lut.n_objects,
            "dtype": str(lut.dtype),
        }
    )


class WritingConfig(dg.Config):
    """Choices of one merge that end with the labels."""

    overwrite: bool = Field(
        default=False,
        description="True replaces labels that were changed by hand, or that patchworks did not "
        "write; all tiles are then written anew.",
    )


def define_merged_labels(lineage: Lineage) -> dg.AssetsDefinition:
    """Define the asset `merged_labels`."""
    return image_asset(
        lineage,
        "merged_labels",
        merged_labels,
        deps=[lineage.key("global_lut")],
        group_name="labels",
        kinds={"zarr"},
        code_version=CODE_VERSION,
        freshness_policy=FRESHNESS,
        check_specs=_checks(lineage),
    )


def _checks(lineage: Lineage) -> list[dg.AssetCheckSpec]:
    """Return what is checked of the merged labels of each image, apart from those of others."""
    descriptions = {
        EVERY_TILE_IS_MERGED: "No tile is missing; where missing tiles were allowed this only "
        "warns.",
        IDS_ARE_SEQUENTIAL: "The ids are 1 to the number of objects, each used.",
        SEAMS_AGREE: "No tile or face is at odds with its neighbours as the rest is not, and "
        "the seams as a whole are good. Warns, and names the worst.",
    }
    with defining_checks():
        return [
            dg.AssetCheckSpec(
                name,
                asset=lineage.key("merged_labels"),
                blocking=name != SEAMS_AGREE,
                description=description,
                partitions_def=lineage.images,
            )
            for name, description in descriptions.items()
        ]


def merged_labels(
    context: dg.AssetExecutionContext,
    lineage: Lineage,
    config: WritingConfig,
    store: LabelStore,
    budget: ComputeBudget,
    gpus: GpuPool,
    cluster: DaskCluster,
) -> dg.MaterializeResult:
    """The label image: one id per object across all tiles, as OME-Zarr with a pyramid."""
    folder = store.folder(context.partition_key, lineage.segmentation)
    plan = folder.plan()
    stage = read_once(folder.stage(plan))
    content = stage.content()
    lut, options = folder.lut(stage)
    target = folder.labels(plan)
    outlines = outlines_of(
        stage, folder.edges(stage), options, allow_missing=folder.allows_missing(stage)
    )
    mended = _mended_by(stage, options)
    provenance = provenance_of(plan, options, lut, pilot=folder.acquisition().pilot)
    done: list[str] = []

    def count(key: str) -> None:
        done.append(key)
        report_progress("merge", len(done), plan.grid.n_blocks)

    start = time.perf_counter()
    with (
        target.writing(another=NO_OTHER, overwrite=config.overwrite) as working,
        DeployedCompute(budget, gpus, cluster).open_steps(plan) as pool,
    ):
        written = write_merged(
            stage,
            lut,
            target,
            working,
            provenance={**provenance, "stage": content, **mended, **_lacked_by(stage)},
            pool=pool,
            on_block=count,
            outlines=outlines,
        )
        _check_content(folder.stage(plan), content)
    seconds = time.perf_counter() - start
    seams = seams_of(folder, stage)
    return dg.MaterializeResult(
        metadata={
            **file_of(folder),
            "labels": dg.MetadataValue.path(str(target.path)),
            **_figures(stage, lut, written, seconds),
            **mended,
            **seam_figures(seams),
            **_jump_figures(stage, lut, target, options),
            "seams": dg.MetadataValue.json(seams.to_dict()),
            **{name: picture(png, name) for name, png in _pictures(folder, stage, target).items()},
        },
        check_results=[
            _every_tile_is_merged(stage.missing_blocks(), plan),
            _seams_agree(seams),
            _ids_are_sequential(lut, options),
        ],
    )


def _mended_by(stage: Stage, options: MergeOptions) -> dict[str, int]:
    """Return how many third views labels hear, under its name; nothing where they hear none."""
    n_views = len(views_for(stage, options))
    return {N_THIRD_VIEWS: n_views} if n_views else {}


def _lacked_by(stage: Stage) -> dict[str, int]:
    """Return how many tiles labels lack, under its name; nothing where they lack none."""
    n_missing = len(stage.missing_blocks())
    return {N_TILES_MISSING: n_missing} if n_missing else {}


def _check_content(stage: Stage, content: str) -> None:
    """Raise StageError where tiles were staged again since a stage had that content."""
    if stage.content() != content:
        raise StageError(
            f"tiles at {stage.path} were staged again while they were merged; nothing was "
            "published: merge again"
        )


def _ids_are_sequential(lut: LookupTable, options: MergeOptions) -> dg.AssetCheckResult:
    """Tell whether each id is used, where that was asked for."""
    return dg.AssetCheckResult(
        check_name=IDS_ARE_SEQUENTIAL,
        passed=not options.sequential or ids_are_sequential(lut),
        severity=dg.AssetCheckSeverity.ERROR,
        metadata={"n_objects": lut.n_objects, "sequential": options.sequential},
    )


def _figures(
    stage: Stage, lut: LookupTable, written: WrittenLabels, seconds: float
) -> dict[str, Any]:
    """Return what a person reads of the labels, and how fast they were written."""
    grid, n_missing = stage.grid, len(stage.missing_blocks())
    return {
        "n_objects": lut.n_objects,
        "shape": shape_text(grid.axes, grid.shape),
        "chunks": shape_text(grid.axes, output_chunks(grid)),
        "dtype": str(lut.dtype),
        "is_partial": n_missing > 0,
        N_TILES_MISSING: n_missing,
        "n_tiles_written": written.n_blocks_written,
        "n_tiles_unchanged": written.n_blocks_unchanged,
        "seconds": round(seconds, 3),
        "tiles_per_second": round(written.n_blocks_written / seconds, 2),
        "megapixels_per_second": round(_pixels_written(stage.plan, written) / seconds / 1e6, 2),
    }


def _pictures(folder: ImageFolder, stage: Stage, target: LabelImage) -> dict[str, bytes]:
    """Draw the labels over the image, at a seam and as a whole, into the report."""
    opened = folder.image(stage.plan)
    labels = open_array(target.path / "0")
    grid = stage.grid
    regions = {
        "overlay": seam_region(grid, stage.counts()),
        "overview": overview_region(grid.axes, grid.shape),
    }
    pictures = {
        name: overlay_picture(opened, labels, grid, region) for name, region in regions.items()
    }
    for name, png in pictures.items():
        write_bytes(folder.report / f"{name}.png", png)
    return pictures


def _every_tile_is_merged(missing: list[str], plan: Plan) -> dg.AssetCheckResult:
    """Tell which tiles are holes; they were allowed, or the merge would not have come so far."""
    return dg.AssetCheckResult(
        check_name=EVERY_TILE_IS_MERGED,
        passed=not missing,
        severity=dg.AssetCheckSeverity.WARN,
        description=f"{len(missing)} of {plan.grid.n_blocks} {plan.grid.units} are holes"
        if missing
        else None,
        metadata={"missing": ", ".join(missing[:50]) or "none"},
    )


def seams_of(folder: ImageFolder, stage: Stage) -> SeamReport:
    """Judge the seams of an image as it is merged now."""
    _, options = folder.lut(stage)
    counts = stage.settled_counts(allow_missing=folder.allows_missing(stage))
    third = views_for(stage, options)
    return judge_seams(stage.grid, folder.edges(stage), counts, options, third)


def seam_figures(seams: SeamReport) -> dict[str, Any]:
    """Return the figures of the seams that a person follows from run to run."""
    figures = {
        "seam_agreement": None if seams.agreement is None else round(seams.agreement, 4),
        "n_objects_at_seams": seams.n_objects,
        "n_orphans_at_seams": int(seams.faces.n_orphans.sum()),
        "n_straight_cuts": int(seams.faces.n_cuts.sum()),
        "n_unjoined_at_seams": seams.n_unjoined,
        "n_seam_faults": len(seams.faults),
    }
    return {name: value for name, value in figures.items() if value is not None}


def _jump_figures(
    stage: Stage, lut: LookupTable, target: LabelImage, options: MergeOptions
) -> dict[str, float]:
    """Return how far outlines jump at faces, in pixels, before and after they are drawn anew."""
    if not options.feathers or stage.missing_blocks():
        return {}
    jumps = jumps_of(stage, lut, open_array(target.path / "0"))
    named = {"outline_jump_by_cores": jumps.by_cores, "outline_jump": jumps.drawn}
    return {name: round(value, 2) for name, value in named.items() if value is not None}


def _seams_agree(seams: SeamReport) -> dg.AssetCheckResult:
    """Say what is wrong with the seams, the worst first."""
    problems = seams.problems()
    return dg.AssetCheckResult(
        check_name=SEAMS_AGREE,
        passed=not problems,
        severity=dg.AssetCheckSeverity.WARN,
        description="; ".join(problems[:5]) or None,
        metadata={
            "problems": dg.MetadataValue.md("\n".join(f"- {p}" for p in problems) or "none"),
            "worst_faces": ", ".join(seams.worst_faces()) or "none",
            **seam_figures(seams),
        },
    )


def _pixels_written(plan: Plan, written: WrittenLabels) -> float:
    """Estimate the pixels written from the share of blocks that were."""
    return prod(plan.grid.shape) * written.n_blocks_written / plan.grid.n_blocks
