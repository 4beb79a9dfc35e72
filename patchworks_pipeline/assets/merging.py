"""From staged labels to one label image: pairs, lookup table, apply."""

import time
from typing import Any

import dagster as dg

from patchworks_core.apply import output_chunks
from patchworks_core.engine import WINDOW_PER_WORKER
from patchworks_core.process import provenance_of
from patchworks_core.report import overlay_picture, overview_region, seam_region
from patchworks_core.rules import joined_pairs
from patchworks_core.steps import look_up, pair_tiles, write_labels
from patchworks_core.storage import open_array
from patchworks_pipeline.assets.acquiring import OWNERS
from patchworks_pipeline.assets.staging import staged_labels
from patchworks_pipeline.metadata import picture, shape_text
from patchworks_pipeline.partitions import NOT_BY_KEY, images
from patchworks_pipeline.progress import report
from patchworks_pipeline.resources import ComputeBudget, LabelStore, Segmentation


@dg.asset(
    partitions_def=images,
    deps=[dg.AssetDep(staged_labels, partition_mapping=NOT_BY_KEY)],
    group_name="labels",
    kinds={"parquet"},
    owners=OWNERS,
    code_version="1",
)
def boundary_pairs(
    context: dg.AssetExecutionContext, store: LabelStore, budget: ComputeBudget
) -> dg.MaterializeResult:
    """Every two staged labels that met across a seam, with the evidence that they are one."""
    folder = store.folder(context.partition_key)
    plan = folder.plan()
    stage = folder.stage(plan)
    content = stage.content()
    count = budget.decide(plan).count
    with budget.open(count).open() as executor:
        edges = pair_tiles(stage, executor=executor, window=WINDOW_PER_WORKER * count)
    folder.write_edges(edges, content)
    return dg.MaterializeResult(
        metadata={
            "n_pairs": len(edges),
            "n_touching": int((edges.connectivity > 0).sum()),
            "n_overlapping": int((edges.intersection > 0).sum()),
            "n_staged_labels": int(stage.complete_counts().sum()),
            "median_iou": round(float(_median(edges.iou)), 4),
        }
    )


def _median(values: Any) -> float:
    return float(sorted(values)[len(values) // 2]) if len(values) else 0.0


class MergeConfig(dg.Config):
    """Choices of one merge; left out, the image's own or the deployment's apply."""

    merge: str | None = None
    """auto, touching, overlap or none."""

    connectivity: int | None = None
    """Contact that counts for touching, 1 to 3."""

    min_iou: float | None = None
    """Least IoU for overlap, 0 to 1."""

    min_size: int | None = None
    """Merged objects of fewer pixels become background."""

    def chosen(self) -> dict[str, Any]:
        """Return the fields of `MergeOptions` that were chosen."""
        values = {
            "rule": self.merge,
            "connectivity": self.connectivity,
            "min_iou": self.min_iou,
            "min_size": self.min_size,
        }
        return {name: value for name, value in values.items() if value is not None}


@dg.asset(
    partitions_def=images,
    deps=[boundary_pairs],
    group_name="labels",
    kinds={"scipy"},
    owners=OWNERS,
    code_version="1",
)
def global_lut(
    context: dg.AssetExecutionContext,
    config: MergeConfig,
    store: LabelStore,
    segmentation: Segmentation,
) -> dg.MaterializeResult:
    """Lookup table that gives every staged label its merged id."""
    folder = store.folder(context.partition_key)
    plan = folder.plan()
    stage = folder.stage(plan)
    content = stage.content()
    options = segmentation.merge_options(folder.acquisition(), plan, config.chosen())
    edges = folder.edges(stage)
    lut = look_up(stage, edges, options)
    folder.write_lut(lut, options, content)
    joined = joined_pairs(edges, stage.complete_counts(), options)
    return dg.MaterializeResult(
        metadata={
            "rule": options.rule,
            "options": dg.MetadataValue.json(options.to_dict()),
            "n_staged_labels": lut.n_staged,
            "n_pairs_joined": int(joined.sum()),
            "n_labels_joined": lut.n_joined,
            "n_objects": lut.n_objects,
            "dtype": str(lut.dtype),
        }
    )


@dg.asset(
    partitions_def=images,
    deps=[global_lut],
    group_name="labels",
    kinds={"zarr"},
    owners=OWNERS,
    code_version="1",
)
def merged_labels(
    context: dg.AssetExecutionContext, store: LabelStore, budget: ComputeBudget
) -> dg.MaterializeResult:
    """The label image: one id per object across all tiles, as OME-Zarr with a pyramid."""
    folder = store.folder(context.partition_key)
    plan = folder.plan()
    stage = folder.stage(plan)
    content = stage.content()
    lut, options = folder.lut(stage)
    target = folder.labels(plan)
    decision = budget.decide(plan)
    done: list[str] = []

    def count(key: str) -> None:
        done.append(key)
        report("merge", len(done), plan.grid.n_blocks)

    start = time.perf_counter()
    with budget.open(decision.count).open() as executor:
        written = write_labels(
            stage,
            lut,
            target,
            provenance={**provenance_of(plan, options, lut), "stage": content},
            executor=executor,
            window=WINDOW_PER_WORKER * decision.count,
            on_block=count,
        )
    seconds = time.perf_counter() - start
    opened = folder.acquisition().open()
    labels = open_array(target.path / "0")
    pictures = {
        "overlay": seam_region(plan.grid, stage.counts()),
        "overview": overview_region(plan.grid.axes, plan.grid.shape),
    }
    return dg.MaterializeResult(
        metadata={
            "labels": dg.MetadataValue.path(str(target.path)),
            "n_objects": lut.n_objects,
            "shape": shape_text(plan.grid.axes, plan.grid.shape),
            "chunks": shape_text(plan.grid.axes, output_chunks(plan.grid)),
            "dtype": str(lut.dtype),
            "n_tiles_written": written.n_blocks_written,
            "n_tiles_unchanged": written.n_blocks_unchanged,
            "seconds": round(seconds, 3),
            "megapixels_per_second": round(_pixels_written(plan, written) / seconds / 1e6, 2),
            **{
                name: picture(overlay_picture(opened, labels, plan.grid, region), name)
                for name, region in pictures.items()
            },
        }
    )


def _pixels_written(plan: Any, written: Any) -> float:
    """Estimate the pixels written from the share of blocks that were."""
    total = 1
    for n in plan.grid.shape:
        total *= n
    return total * written.n_blocks_written / plan.grid.n_blocks
