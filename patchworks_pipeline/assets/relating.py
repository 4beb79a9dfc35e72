"""Two segmentations of one image, related: which nucleus lies in which cell."""

import json
from typing import Any

import dagster as dg
import numpy as np
import pyarrow as pa
from upath import UPath

from patchworks_core.errors import StageError
from patchworks_core.files.tables import table_of
from patchworks_core.labels.relations import label_relations
from patchworks_pipeline.assets.defining import image_asset
from patchworks_pipeline.lineage import Lineage
from patchworks_pipeline.records import ImageFolder
from patchworks_pipeline.resources.compute_budget import ComputeBudget
from patchworks_pipeline.resources.resources import LabelStore
from patchworks_pipeline.tables import csv_path, words_on_kept, write_table

_CONTENT = b"content"
"""Field of the table's metadata: what it was made of."""


def relation_name(other: str) -> str:
    """Return what the relation of a segmentation to another one is called."""
    return f"in_{other}"


def define_relation(lineage: Lineage, other: Lineage) -> dg.AssetsDefinition:
    """Define the asset that says in which object of another segmentation each object lies."""
    return image_asset(
        lineage,
        relation_name(other.segmentation),
        relation,
        hidden={"other": other},
        deps=[lineage.key("merged_labels"), other.key("merged_labels")],
        group_name="results",
        kinds={"parquet"},
        code_version="1",
    )


def relation(
    context: dg.AssetExecutionContext,
    lineage: Lineage,
    other: Lineage,
    store: LabelStore,
    budget: ComputeBudget,
) -> dg.MaterializeResult:
    """For each object the object of another segmentation that contains most of it."""
    a, b = (store.folder(context.partition_key, names.segmentation) for names in (lineage, other))
    content = related_content(a, b)
    if content is None:
        raise StageError(
            f"image {a.key!r} has not both labels, {a.segmentation!r} and {b.segmentation!r}; "
            "materialize merged_labels of both first"
        )
    plan = a.plan()
    paths = [str(folder.labels(folder.plan()).path) for folder in (a, b)]
    relations = label_relations(*paths, max_workers=budget.decide(plan).count)
    table = relations.to_table()
    recorded = table.replace_schema_metadata({_CONTENT: content.encode()})
    kept = write_table(relation_path(a, b.segmentation), recorded)
    if kept:
        context.log.warning(words_on_kept(kept))
    return dg.MaterializeResult(metadata=_figures(table, a, b))


def related_content(a: ImageFolder, b: ImageFolder) -> str | None:
    """Return what identifies the labels of two segmentations; None while one has none."""
    records = [
        folder.provenance(folder.plan()) if folder.has("plan.json") else None for folder in (a, b)
    ]
    if any(record is None for record in records):
        return None
    made_of = ("stage", "merge")
    parts = [{name: record.get(name) for name in made_of} for record in records if record]
    return json.dumps(parts, sort_keys=True)


def relation_path(folder: ImageFolder, other: str) -> UPath:
    """Return where the relation of a segmentation to another one is."""
    return folder.path / f"{relation_name(other)}.parquet"


def is_related(a: ImageFolder, b: ImageFolder) -> bool:
    """Tell whether the relation of two segmentations is of their labels as they are, or cannot be.

    A relation that is damaged is made again.
    """
    path, content = relation_path(a, b.segmentation), related_content(a, b)
    if content is None:
        return True
    if not csv_path(path).exists():
        return False
    try:
        record = table_of(bytes(path.read_bytes())).schema.metadata or {}
        return bool(record.get(_CONTENT) == content.encode())
    except (OSError, ValueError):
        return False


def _figures(table: pa.Table, a: ImageFolder, b: ImageFolder) -> dict[str, Any]:
    """Return how many objects lie in one of the others, and where the table is."""
    partners = table["b"].to_numpy()
    inside = partners[partners > 0]
    return {
        "n_objects": table.num_rows,
        "n_inside": len(inside),
        "n_outside": table.num_rows - len(inside),
        f"n_{b.segmentation}_with_any": len(np.unique(inside)),
        "columns": ", ".join(table.column_names),
        "table": dg.MetadataValue.path(str(relation_path(a, b.segmentation))),
    }
