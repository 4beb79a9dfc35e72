"""One digest of all that labels are made from in a stage."""

from __future__ import annotations

import hashlib
from typing import Any, Protocol

import numpy as np
from upath import UPath

from patchworks_core.stage.plan import Plan
from patchworks_core.stage.view_files import content_of_views

Array = np.ndarray[Any, Any]


class StagedTiles(Protocol):
    """What is asked of a stage."""

    plan: Plan

    @property
    def blocks_folder(self) -> UPath:
        """Folder of the tile blocks."""

    def counts(self) -> Array:
        """Return the labels of each tile."""

    def digests(self) -> Array:
        """Return a digest of the labels of each tile."""

    def strip_digests(self) -> Array:
        """Return a digest of the strips of each tile."""

    def pixel_checksums(self) -> Array:
        """Return the checksum of what each tile read."""


def content_of_stage(stage: StagedTiles) -> str:
    """Return a digest of the labels, of the strips, and of third views with what makes them stale.

    A tile may be staged again with the same labels in its core and others in its halo: pairs are of
    these too, and outlines.
    """
    digests, strips = stage.digests(), stage.strip_digests()
    columns = [stage.counts(), digests]
    if (strips != digests).any():  # the first layout has none: what it was merged from is the same
        columns.append(strips)
    if views := content_of_views(stage.blocks_folder):
        columns.append(stage.pixel_checksums())
    content = hashlib.blake2b(stage.plan.fingerprint.encode(), digest_size=16)
    for column in columns:
        content.update(np.ascontiguousarray(column).data)
    content.update(views)
    return content.hexdigest()
