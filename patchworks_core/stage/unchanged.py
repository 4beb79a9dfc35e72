"""Whether an image is still the one that its tiles were staged from.

Every staged tile keeps a checksum of the pixels that it read (`Stage.pixel_checksums`):

1. `check_image` takes the fingerprint of the image again, before its tiles are merged. Where that
   is another, every tile is read again to tell which are of other pixels.
2. `check_tiles` reads tiles again in any case: those that an earlier call left, of which size and
   time of change of the file do not tell enough.
"""

from __future__ import annotations

import pickle
from collections.abc import Iterable
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

from patchworks_core.errors import ImageError, StageError
from patchworks_core.files.stores import places_of
from patchworks_core.images.image import Image
from patchworks_core.machine.pools import Pool
from patchworks_core.operations.processed import ProcessedImage, process_lazily
from patchworks_core.stage.block_files import NOT_STAGED
from patchworks_core.stage.pixel_checksums import is_of_pixels
from patchworks_core.stage.staging import Staging
from patchworks_core.tiles.grid import TileBlock

_MAX_NAMED = 5


def check_image(staging: Staging, *, pool: Pool) -> None:
    """Raise StageError where staged tiles are of other pixels than the image has now.

    Parameters
    ----------
    staging : Staging
        What staged them. Arrays of this process are not looked at again.
    pool : Pool
        What reads them, where the fingerprint of the image is another.
    """
    image = staging.image
    if not places_of((image.source, image.pixels)):
        return
    now = _as_it_is_now(image)
    if now.fingerprint != staging.stage.plan.image.fingerprint:
        check_tiles(replace(staging, image=now), pool=pool)


def check_tiles(staging: Staging, *, pool: Pool) -> None:
    """Read every staged tile again; raise StageError where its pixels are others now."""
    stage = staging.stage
    checksums = stage.pixel_checksums()
    counts = stage.counts()
    blocks = [
        block
        for block in stage.grid.blocks()
        if any(checksums[tile.index] and counts[tile.index] != NOT_STAGED for tile in block.tiles)
    ]
    changed = pool.map(
        _CheckTask(staging, checksums),
        blocks,
        step="check",
        n=len(blocks),
        doing="reading the image again",
    )
    _fail_if_any([key for keys in changed for key in keys], staging)


@dataclass(frozen=True, slots=True)
class _CheckTask:
    staging: Staging
    checksums: np.ndarray[Any, Any]

    def __call__(self, block: TileBlock) -> list[str]:
        """Return the key of the block if a tile of it read other pixels than it would now."""
        pixels, beside = self.staging.read(block)
        changed = []
        for tile in block.tiles:
            place = tile.read.slices_from(block.read.start)
            read = [pixels[place], *(other[place] for other in beside.values())]
            if not is_of_pixels(int(self.checksums[tile.index]), read):
                changed.append(tile.index)
        return [block.key] if changed else []


def _as_it_is_now(image: Image) -> Image:
    """Return the image with its fingerprint to be taken again, opened anew where it has a place."""
    if isinstance(image, ProcessedImage):
        return process_lazily(_as_it_is_now(image.original), *image.operations)
    return replace(image) if image.url is None else _opened_anew(image)


def _opened_anew(image: Image) -> Image:
    """Return the image as it is now: open files may still show the old one."""
    try:
        opened: Image = pickle.loads(pickle.dumps(image))
        if opened.shape == image.shape and opened.dtype == image.dtype:
            return opened
        why = f"it has shape {opened.shape} and type {opened.dtype} now"
    except ImageError as error:
        why = str(error)
    raise StageError(
        f"image {image.url!r} changed while it was worked on, {why}; restore it, or begin anew: "
        "resume=False, or plan it again"
    )


def _fail_if_any(changed: Iterable[str], staging: Staging) -> None:
    keys = sorted(changed)
    if not keys:
        return
    stage = staging.stage
    named = ", ".join(keys[:_MAX_NAMED]) + (", ..." if len(keys) > _MAX_NAMED else "")
    raise StageError(
        f"{len(keys)} of {stage.grid.n_blocks} tile blocks staged at {stage.path} are of other "
        f"pixels than {staging.image.where} has now: {named}. It was changed while it was worked "
        "on, or since, and two images are never merged; restore it, or begin anew: resume=False, "
        "or plan it again"
    )
