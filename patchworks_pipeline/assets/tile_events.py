"""What a staging run tells while it goes and when it ends: tiles, progress, failures."""

import time
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import dagster as dg

from patchworks_core.errors import ImageError
from patchworks_core.images.image import Image
from patchworks_core.machine.engine import Outcome
from patchworks_core.pictures.drawing import flatten, png_bytes, thumbnail
from patchworks_core.stage.staging import StagedBlock, StagingCount
from patchworks_core.tiles.grid import TileBlock
from patchworks_pipeline.assets.metadata import picture
from patchworks_pipeline.assets.throughput import StagingFigures, Work
from patchworks_pipeline.instance.tile_log import TileLog
from patchworks_pipeline.lineage import Lineage
from patchworks_pipeline.progress import report_progress
from patchworks_pipeline.records import ImageFolder
from patchworks_pipeline.tile_failures import TileFailure

SECONDS_BETWEEN_LOG_LINES = 10
"""StagingProgress is logged at most this often."""

STOPPED = "circuit_breaker"
"""Metadata of a run: why tiles were not tried, as too many others had failed."""

SHOWN_FAILURES = 20
"""Failed tiles listed in a run's failure; all of them are in the image's folder."""

SHOWN_PICTURES = 3
"""Failed tiles whose input is shown."""


def staged_tile(
    lineage: Lineage, image: str, outcome: Outcome[TileBlock, StagedBlock]
) -> dg.AssetMaterialization:
    """Return what is logged of a tile that was staged."""
    staged = outcome.value
    assert staged is not None
    return dg.AssetMaterialization(
        asset_key=lineage.key("staged_labels"),
        partition=f"{image}/{staged.key}",
        metadata={
            "n_labels": staged.n_labels,
            "n_pixels_read": staged.n_pixels_read,
            "seconds": round(outcome.seconds, 3),
            "seconds_reading": round(staged.seconds_reading, 3),
            "seconds_segmenting": round(staged.seconds_segmenting, 3),
            "seconds_writing": round(staged.seconds_writing, 3),
            "peak_megabytes": round(staged.peak_bytes / 1e6, 1),
            "n_attempts": outcome.attempts,
        },
    )


def skipped_tile(
    lineage: Lineage, image: str, block: str, n_labels: int, *, is_new: bool
) -> dg.AssetMaterialization:
    """Return what is logged of a tile that is staged already.

    It `is_new` where a run staged it that could not log it any more.
    """
    return dg.AssetMaterialization(
        asset_key=lineage.key("staged_labels"),
        partition=f"{image}/{block}",
        description="Staged by a run that was ended before it had logged this tile."
        if is_new
        else "Was staged before; this run left it as it is.",
        metadata={"n_labels": n_labels},
    )


def not_logged(
    instance: dg.DagsterInstance, lineage: Lineage, image: str, blocks: Iterable[str]
) -> list[str]:
    """Return the tile blocks of an image that were never logged as materialized."""
    blocks = list(blocks)
    staged = lineage.key("staged_labels")
    logged = instance.get_materialized_partitions(staged) if blocks else set()
    return [block for block in blocks if f"{image}/{block}" not in logged]


def log_tiles_again(
    context: dg.AssetExecutionContext, lineage: Lineage, folder: ImageFolder
) -> None:
    """Log the tiles that the stage of an image has, where it is taken up after it was retired."""
    stage = folder.stage()
    missing = set(stage.missing_blocks())
    staged = [key for key in stage.grid.block_keys() if key not in missing]
    with TileLog(context) as log:
        for key in not_logged(context.instance, lineage, folder.key, staged):
            log.add(
                dg.AssetMaterialization(
                    asset_key=lineage.key("staged_labels"),
                    partition=f"{folder.key}/{key}",
                    description="Was staged before the image was retired, and is here again.",
                )
            )


def tag_run(
    context: dg.AssetExecutionContext | dg.OpExecutionContext, facts: Mapping[str, object]
) -> None:
    """Put facts of the run where the UI lists them: into its tags."""
    tags = {f"patchworks/{name}": str(fact) for name, fact in facts.items() if fact is not None}
    context.instance.add_run_tags(context.run.run_id, tags)


def log_failure(
    context: dg.AssetExecutionContext | dg.OpExecutionContext, image: str, failure: TileFailure
) -> None:
    """Log one failed tile with its traceback."""
    context.log.error(
        f"{image}/{failure.block} failed after {failure.attempts} tries ({failure.kind}): "
        f"{failure.error_type}: {failure.message}\npixels {failure.box}\n{failure.traceback}"
    )


class StagingProgress:
    """Says how the staging of one image goes, now and then."""

    def __init__(
        self,
        context: dg.AssetExecutionContext | dg.OpExecutionContext,
        image: str,
        figures: StagingFigures,
    ) -> None:
        self._context = context
        self._image = image
        self._figures = figures
        self._start = self._last = time.monotonic()

    def tell(self, count: StagingCount) -> None:
        """Report one more tile; where the last line is a while ago, log one, and write figures."""
        report_progress("stage", count.n_done, count.n_blocks)
        now = time.monotonic()
        if now - self._last < SECONDS_BETWEEN_LOG_LINES and count.n_left:
            return
        self._last = now
        self._figures.write(self.work(count))
        speed = self.work(count).speed()
        left = count.n_left / max(speed["tiles_per_second"], 1e-9)
        self._context.log.info(
            f"{self._image}: {count.n_done} of {count.n_blocks} tiles done, {count.n_failed} "
            f"failed; {speed['tiles_per_second']:.1f} tiles/s, "
            f"{speed['megapixels_per_second']:.1f} Mpx/s, {left:.0f} s left"
        )

    def work(self, count: StagingCount) -> Work:
        """Return what was worked on so far."""
        return Work(count.n_done, count.n_pixels, time.monotonic() - self._start)


def fail_if_any(
    failures: Mapping[str, Sequence[TileFailure]],
    *,
    n_tiles: int,
    stopped: Mapping[str, str],
    pictures: Mapping[str, bytes],
) -> None:
    """End the run as failed, naming the tiles, if any failed.

    Parameters
    ----------
    failures : mapping of image to failures
    n_tiles : int
        Tiles that were asked for.
    stopped : mapping of image to reason
        Images whose circuit breaker opened.
    pictures : mapping of tile to PNG
        The input of some of them.

    Raises
    ------
    dagster.Failure
        If there is a failure.
    """
    failed = [(image, failure) for image, of_image in failures.items() for failure in of_image]
    if not failed:
        return
    names = ", ".join(f"{image}/{failure.block}" for image, failure in failed[:5])
    others = "the others that were tried are staged" if stopped else "the others are staged"
    description = (
        f"{len(failed)} of {n_tiles} tiles failed: {names}{', ...' if len(failed) > 5 else ''}; "
        f"{others if len(failed) < n_tiles else 'none is staged'}: when the cause is mended, "
        "launch job 'repair_image' for the image, or materialize the failed partitions again"
    )
    first = failed[0][1]
    metadata: dict[str, Any] = {
        "failed_tiles": _table(failed[:SHOWN_FAILURES]),
        "n_failed": len(failed),
        "traceback_of_the_first": dg.MetadataValue.md(f"```\n{first.traceback}\n```"),
    }
    if stopped:
        description = f"stopped: {'; '.join(stopped.values())}. {description}"
        metadata[STOPPED] = "; ".join(stopped.values())
    for tile, png in pictures.items():
        metadata[f"input of {tile}"] = picture(png, tile)
    raise dg.Failure(description=description, metadata=metadata, allow_retries=False)


def _table(failed: Sequence[tuple[str, TileFailure]]) -> dg.TableMetadataValue:
    columns = ("tile", "pixels", "error", "kind", "tries")
    return dg.MetadataValue.table(
        records=[
            dg.TableRecord(
                {
                    "tile": f"{image}/{failure.block}",
                    "pixels": failure.box,
                    "error": f"{failure.error_type}: {failure.message}"[:500],
                    "kind": failure.kind,
                    "tries": str(failure.attempts),
                }
            )
            for image, failure in failed
        ],
        schema=dg.TableSchema(columns=[dg.TableColumn(name, "string") for name in columns]),
    )


def input_pictures(
    folder: ImageFolder, image: Image, axes: str, failures: Sequence[TileFailure]
) -> dict[str, bytes]:
    """Return pictures of what the first failed tiles were given, as far as it can be read."""
    grid = folder.plan().grid
    pictures = {}
    for failure in failures[:SHOWN_PICTURES]:
        region = grid.block_of_key(failure.block).read
        try:
            pixels = image.read(region)
        except (OSError, ImageError):  # what cannot be read failed for that, and says so itself
            continue
        pictures[f"{folder.key}/{failure.block}"] = png_bytes(
            thumbnail(flatten(pixels, axes), max_size=256)
        )
    return pictures
