"""OME-Zarr labels: the merged labels of an image as others read them.

``<container>/labels/<name>`` is a multiscale label image (OME-NGFF 0.5 on Zarr v3, 0.4 on v2):

1. `LabelImage.begin` makes or takes up ``<name>.partial``, its working name.
2. Level 0 is written there tile by tile (`patchworks_core.merge.apply`).
3. `LabelImage.publish` writes the pyramid and the metadata, then gives the folder its own name and
   lists it in ``labels``. A killed run leaves the working name, and the next one continues it.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import zarr
from upath import UPath

from patchworks_core.errors import PlanError
from patchworks_core.files.label_arrays import create_label_array
from patchworks_core.files.records import read_mapping
from patchworks_core.files.storage import (
    ZarrFormat,
    group_format,
    move,
    open_array,
    remove,
    write_text,
    zarr_store,
)
from patchworks_core.machine.engine import results
from patchworks_core.machine.pools import Pool
from patchworks_core.merge.apply import apply_lut, create_apply_records
from patchworks_core.ome_zarr.metadata import (
    ZARR_FORMATS,
    Levels,
    OmeVersion,
    label_attributes,
)
from patchworks_core.ome_zarr.pyramid import level_steps, write_pyramid
from patchworks_core.seams.lookup import LookupTable
from patchworks_core.stage.plan import Plan
from patchworks_core.stage.stage import Stage
from patchworks_core.tiles.regions import Region

PYRAMID = "most frequent id"
"""How lower levels are made; those that were made otherwise are not mixed with these."""


@dataclass(frozen=True, slots=True)
class LabelImage:
    """One label image in an OME-Zarr container."""

    container: UPath
    """The ``.ome.zarr`` folder."""

    name: str
    """Of the label image."""

    plan: Plan
    """Of the labels: axes, shape and calibration are taken from it."""

    version: OmeVersion = "0.5"
    """Of OME-NGFF."""

    @property
    def path(self) -> UPath:
        """The published label image."""
        return self.container / "labels" / self.name

    @property
    def working(self) -> UPath:
        """The label image while it is being written."""
        return self.container / "labels" / f"{self.name}.partial"

    @property
    def zarr_format(self) -> ZarrFormat:
        """Zarr format that the OME-NGFF version asks for."""
        return ZARR_FORMATS[self.version]

    @property
    def _layout(self) -> dict[str, Any]:
        """What the arrays on disk depend on, JSON-ready; other layouts are not reused."""
        steps = level_steps(self.plan.grid.axes, self.plan.grid.shape, self.plan.image.pixel_size)
        layout = {"grid": self.plan.grid.to_dict(), "level_steps": steps, "pyramid": PYRAMID}
        return json.loads(json.dumps(layout))  # type: ignore[no-any-return]

    def check_container(self) -> None:
        """Raise PlanError where `version` asks for another Zarr format than the container has.

        Metadata of one format written into the other would hide the image from its readers.
        """
        found = group_format(self.container)
        if found not in (None, self.zarr_format):
            fitting = next(v for v, zarr_format in ZARR_FORMATS.items() if zarr_format == found)
            raise PlanError(
                f"{self.container} is Zarr v{found}, which labels of OME-NGFF {self.version!r} "
                f"cannot be part of; write version {fitting!r}, or into another container"
            )

    def begin(self, dtype: np.dtype[Any]) -> bool:
        """Make the working folder, or take up what is there.

        Parameters
        ----------
        dtype : dtype
            Of the merged labels.

        Returns
        -------
        bool
            True where published labels were taken up, so that the pyramid is sound outside the
            blocks that will be rewritten.

        Raises
        ------
        PlanError
            If the container is of another Zarr format than `version` asks for.
        """
        self.check_container()
        if self._fits(self.path, dtype):
            remove(self.working)
            self._list(add=False)
            move(self.path, self.working)
            return True
        if not self._fits(self.working, dtype):
            remove(self.working)
            self._open_group(self.working)
            create_label_array(
                self.working / "0", self.plan.grid, dtype, zarr_format=self.zarr_format
            )
            create_apply_records(
                self.working / "applied", self.plan.grid, zarr_format=self.zarr_format
            )
        return False

    def _fits(self, path: UPath, dtype: np.dtype[Any]) -> bool:
        """Tell whether the labels at `path` have the same layout and type."""
        record = path / "provenance.json"
        if not (record.exists() and (path / "applied").exists()):
            return False
        labels, found = open_array(path / "0"), read_mapping(record)
        return (
            found is not None
            and {name: found.get(name) for name in self._layout} == self._layout
            and labels.dtype == dtype
            and labels.metadata.zarr_format == self.zarr_format
        )

    def record(self, provenance: Mapping[str, Any]) -> None:
        """Write the provenance record beside the labels."""
        content = {**self._layout, **provenance}
        write_text(self.working / "provenance.json", json.dumps(content, indent=2) + "\n")

    def publish(self, changed: Iterable[Region] | None, *, pool: Pool) -> int:
        """Write the pyramid and the metadata, then give the labels their own name.

        Parameters
        ----------
        changed : iterable of Region or None
            Regions of level 0 that were rewritten; None where all were.
        pool : Pool

        Returns
        -------
        int
            Chunks of the pyramid that were written.
        """
        grid, image = self.plan.grid, self.plan.image
        steps = level_steps(grid.axes, grid.shape, image.pixel_size)
        n_written = write_pyramid(
            self.working,
            steps,
            changed=changed,
            axes=grid.axes,
            zarr_format=self.zarr_format,
            pool=pool,
        )
        levels = Levels(grid.axes, steps, image.pixel_size, image.unit, image.translation)
        attributes = label_attributes(levels, name=self.name, version=self.version)
        self._open_group(self.working).attrs.update(attributes)
        remove(self.path)
        move(self.working, self.path)
        self._list(add=True)
        return n_written

    def _open_group(self, path: UPath) -> zarr.Group:
        return zarr.open_group(zarr_store(path), mode="a", zarr_format=self.zarr_format)

    def _list(self, *, add: bool) -> None:
        """Add the name to the ``labels`` of the container, or take it off."""
        self._open_group(self.container)
        labels = self._open_group(self.container / "labels")
        listed: dict[str, Any] = dict(labels.attrs)
        ome = dict(listed.get("ome", {})) if self.version == "0.5" else listed
        names = [name for name in ome.get("labels", []) if name != self.name]
        ome["labels"] = sorted([*names, self.name]) if add else names
        labels.attrs.update({"ome": {**ome, "version": "0.5"}} if self.version == "0.5" else ome)


@dataclass(frozen=True, slots=True)
class WrittenLabels:
    """What writing merged labels cost."""

    n_blocks_written: int
    n_blocks_unchanged: int
    n_pyramid_chunks: int


def write_labels(
    stage: Stage,
    lut: LookupTable,
    target: LabelImage,
    *,
    provenance: Mapping[str, Any],
    pool: Pool,
    on_block: Callable[[str], None] = lambda key: None,
) -> WrittenLabels:
    """Write merged labels as an OME-Zarr label image, rewriting only what changed.

    Parameters
    ----------
    stage : Stage
    lut : LookupTable
        Of that stage.
    target : LabelImage
    provenance : mapping
        JSON-ready; kept beside the labels.
    pool : Pool
    on_block : callable
        Told the key of each block that was written.
    """
    was_published = target.begin(lut.dtype)
    target.record(provenance)
    outcomes = apply_lut(
        stage,
        lut,
        labels=target.working / "0",
        records=target.working / "applied",
        pool=pool,
    )
    changed: list[Region] = []
    for outcome in outcomes:
        key = next(results([outcome], doing="writing merged labels"))
        changed.append(outcome.item.block.core)
        on_block(key)
    n_chunks = target.publish(changed if was_published else None, pool=pool)
    n_blocks = stage.grid.n_blocks
    return WrittenLabels(len(changed), n_blocks - len(changed), n_chunks)
