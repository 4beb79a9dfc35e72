"""Retention: stages and tile partitions of images that were merged long ago.

Labels, tables, records and the image's own partition are never touched. To stage a retired image
again, materialize ``image``: its tiles become partitions anew.
"""

import json
from dataclasses import dataclass
from time import time as now

import dagster as dg
from pydantic import Field

from patchworks_core.files.storage import discard, write_text
from patchworks_pipeline.automation.events import IN_PROGRESS, image_of, images_of_run
from patchworks_pipeline.automation.sensors import merged_content
from patchworks_pipeline.image_faults import ImageFaults
from patchworks_pipeline.partitions import tiles
from patchworks_pipeline.records import ImageFolder
from patchworks_pipeline.resources.resources import LabelStore

RETIRED = "retired.json"
"""Record of an image whose stage was removed: the content it had."""

SECONDS_PER_DAY = 86_400


class RetentionConfig(dg.Config):
    """What is old enough to be retired."""

    days: float = Field(
        default=30,
        ge=0,
        allow_inf_nan=False,
        description="Stages go of images whose labels were merged longer ago.",
    )


@dataclass(frozen=True, slots=True)
class Retired:
    """What retiring an image removed."""

    image: str
    n_tiles: int


@dg.op
def retire_old_stages(
    context: dg.OpExecutionContext, config: RetentionConfig, store: LabelStore
) -> None:
    """Remove stage and tile partitions of every image that was merged long enough ago."""
    instance = context.instance
    keys_of: dict[str, list[str]] = {}
    for key in instance.get_dynamic_partitions(str(tiles.name)):
        keys_of.setdefault(image_of(key), []).append(key)
    busy = {
        image
        for run in instance.get_runs(dg.RunsFilter(statuses=IN_PROGRESS))
        for image in images_of_run(instance, run)
    }
    before = now() - config.days * SECONDS_PER_DAY
    n_images = n_tiles = 0
    faults = ImageFaults(context.log.warning)
    for image in sorted(set(keys_of) - busy):
        with faults.about(image):
            folder = store.folder(image)
            if not _is_finished(instance, folder, before=before):
                continue
            retire(instance, folder, keys_of[image])
            n_images, n_tiles = n_images + 1, n_tiles + len(keys_of[image])
            context.log.info(f"{image}: stage and {len(keys_of[image])} tile partitions retired")
    context.add_output_metadata({"n_images_retired": n_images, "n_tiles_retired": n_tiles})


@dg.job(description="Remove stages and tile partitions of images that were merged long ago.")
def retire_images() -> None:
    """Retire images; their labels stay."""
    retire_old_stages()


def retire(instance: dg.DagsterInstance, folder: ImageFolder, keys: list[str]) -> None:
    """Remove the stage and the tile partitions of an image; if cut short, call it again."""
    if not is_retired(folder):
        record = {"stage": merged_content(folder), "n_tiles": len(keys)}
        write_text(folder.path / RETIRED, json.dumps(record) + "\n")
    # The partitions go last: they are how an image is found that was not retired to the end.
    discard(folder.path / "stage.zarr")
    for key in keys:
        instance.delete_dynamic_partition(str(tiles.name), key)


def is_retired(folder: ImageFolder) -> bool:
    """Tell whether the stage of an image was removed, and its labels kept."""
    return folder.has(RETIRED) and not (folder.path / "stage.zarr" / "plan.json").exists()


def _is_finished(instance: dg.DagsterInstance, folder: ImageFolder, *, before: float) -> bool:
    """Tell whether the labels are of the tiles staged now, and were made before a moment."""
    if is_retired(folder):
        return True  # begun, and cut short
    if not folder.has("plan.json") or merged_content(folder) != folder.stage().content():
        return False
    records = instance.fetch_materializations(
        dg.AssetRecordsFilter(
            asset_key=dg.AssetKey("merged_labels"), asset_partitions=[folder.key]
        ),
        limit=1,
    ).records
    return bool(records) and records[0].timestamp < before
