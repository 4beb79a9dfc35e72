"""OME-Zarr labels: the merged labels of an image as others read them.

``<container>/labels/<name>`` is a multiscale label image (OME-NGFF 0.5 on Zarr v3, 0.4 on v2). It
is replaced as everything is (`patchworks_core.files.replacing`): until the new one is whole, the
old one stays in its place.

1. `LabelImage.writing` gives the folder of work, ``<name>.work``.
2. `LabelImage.begin` starts the new one there: with what a killed call left, with a copy of the
   published one (hard links, where the file system has them), or with nothing.
3. Level 0 is written tile by tile, where it changed (`patchworks_core.merge.apply`).
4. `LabelImage.finish` writes the pyramid and the metadata.
5. The new one gets its name, and is then listed in ``labels``, so that a listed name exists.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import numpy as np
import zarr
from upath import UPath

from patchworks_core.errors import PlanError
from patchworks_core.files.faults import storing
from patchworks_core.files.label_arrays import (
    create_label_array,
    open_group,
    refuse_file_name,
    update_attributes,
)
from patchworks_core.files.records import read_mapping
from patchworks_core.files.replacing import (
    Working,
    check_reads,
    check_replaceable,
    component_path,
    replacing,
)
from patchworks_core.files.storage import (
    ZarrFormat,
    claimed,
    discard,
    duplicate,
    group_format,
    open_array,
    remove,
    write_text,
    zarr_store,
)
from patchworks_core.files.written import RECORD, record_path
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
from patchworks_core.seams.views import Outlines
from patchworks_core.stage.plan import Plan
from patchworks_core.stage.stage import Stage
from patchworks_core.tiles.regions import Region

SECONDS_TO_LIST = 30.0
"""Given to other calls that add their names to the same container."""

WHAT = "a label image"
"""What is said to be replaced, or not."""

PYRAMID = "most frequent id"
"""How lower levels are made; those that were made otherwise are not mixed with these."""

VOUCHED_IN = "vouched_in"
"""Field of the provenance that names the record; labels of version 0.1.0 have neither."""


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
        """Raise PlanError where the container is damaged, or of another format than `version`.

        Metadata of one format written into the other would hide the image from its readers.
        """
        if self.version not in ZARR_FORMATS:
            raise PlanError(f"version must be '0.5' or '0.4', got {self.version!r}")
        refuse_file_name(self.container)
        actual = group_format(self.container)
        if actual not in (None, self.zarr_format):
            fitting = next(v for v, zarr_format in ZARR_FORMATS.items() if zarr_format == actual)
            raise PlanError(
                f"{self.container} is Zarr v{actual}, which labels of OME-NGFF {self.version!r} "
                f"cannot be part of; write version {fitting!r}, or into another container"
            )
        for group in (self.container, self.container / "labels"):
            if group_format(group) is not None:  # damage is said before the work, not behind it
                self._open_group(group)

    def check_replaceable(self, *, another: str = "name or container", overwrite: bool) -> None:
        """Raise PlanError where the labels that are there are not to be replaced, as `writing`."""
        check_replaceable(
            self.path,
            what=WHAT,
            another=another,
            overwrite=overwrite,
            is_ours=_is_of_0_1_0,
        )

    @contextmanager
    def writing(
        self,
        *,
        reads: Iterable[Any] = (),
        another: str = "name or container",
        overwrite: bool = False,
        made_from: Mapping[str, Any] | None = None,
        resume: bool = False,
        clear: Callable[[UPath], None] = discard,
    ) -> Iterator[Working]:
        """Give the place for `write_merged`; what is whole at the end is published and listed.

        Parameters
        ----------
        reads, another, overwrite, made_from, resume, clear
            As in `patchworks_core.files.replacing.replacing`.

        Yields
        ------
        Working

        Raises
        ------
        PlanError
            If the container is of another Zarr format than `version` asks for, another call is
            writing the labels, or those that are there are not patchworks' or were changed since.
        """
        self.check_container()
        target = component_path(self.container / "labels", self.name)
        naming = {"what": WHAT, "another": another}
        reads, left = list(reads), self._left_by_0_1_0()
        if left is not None:
            check_reads(left, reads, **naming)
        with replacing(
            target,
            reads=reads,
            **naming,
            overwrite=overwrite,
            made_from=made_from,
            resume=resume,
            keeps=True,
            takes_up=lambda new: self._reusable_type(new) is not None,
            is_ours=_is_of_0_1_0,
            clear=clear,
        ) as working:
            yield working
        with storing(target, self.container, doing=f"the labels are at {target}; listing them"):
            self._list()
            if left is not None:
                discard(left)

    def begin(self, working: Working, dtype: np.dtype[Any]) -> bool:
        """Start the new labels.

        Parameters
        ----------
        working : Working
            Of `writing`.
        dtype : dtype
            Of the merged labels.

        Returns
        -------
        bool
            True where it is a copy of the published labels, so that the pyramid is sound outside
            the blocks that will be rewritten.
        """
        new = working.new
        if self._reusable_type(new) == dtype:
            return False
        discard(new)
        if working.old is not None and self._reusable_type(working.old) == dtype:
            duplicate(working.old, new)
            remove(record_path(new))
            return True
        self._open_group(new)
        create_label_array(new / "0", self.plan.grid, dtype, zarr_format=self.zarr_format)
        create_apply_records(new / "applied", self.plan.grid, zarr_format=self.zarr_format)
        return False

    def _reusable_type(self, path: UPath) -> np.dtype[Any] | None:
        """Return the type of the labels at `path`; None where none of the same layout are there."""
        layout = read_mapping(path / "provenance.json")
        if layout is None or {name: layout.get(name) for name in self._layout} != self._layout:
            return None
        if group_format(path / "0") != self.zarr_format or group_format(path / "applied") is None:
            return None
        try:
            zarr.open_group(zarr_store(path), mode="r")
            open_array(path / "applied")
            return open_array(path / "0").dtype
        except (ValueError, TypeError, KeyError, AttributeError, FileNotFoundError):  # damaged
            return None

    def n_objects(self) -> int:
        """Return how many objects the published labels are, as their provenance says."""
        return int((read_mapping(self.path / "provenance.json") or {})["n_objects"])

    def record(self, working: Working, provenance: Mapping[str, Any]) -> None:
        """Write the provenance record beside the new labels."""
        content = {**self._layout, VOUCHED_IN: RECORD, **provenance}
        write_text(working.new / "provenance.json", json.dumps(content, indent=2) + "\n")

    def finish(self, working: Working, changed: Iterable[Region] | None, *, pool: Pool) -> int:
        """Write the pyramid and the metadata; the new labels are whole then.

        Parameters
        ----------
        working : Working
            Of `writing`.
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
            working.new,
            steps,
            changed=changed,
            axes=grid.axes,
            zarr_format=self.zarr_format,
            pool=pool,
        )
        levels = Levels(grid.axes, steps, image.pixel_size, image.unit, image.translation)
        attributes = label_attributes(levels, name=self.name, version=self.version)
        self._open_group(working.new)
        update_attributes(working.new, attributes)
        return n_written

    def _open_group(self, path: UPath) -> zarr.Group:
        return open_group(path, self.zarr_format)

    def _list(self) -> None:
        """Add the name to the ``labels`` of the container, one call after the other."""
        folder = self.container / "labels"
        with claimed(folder, doing="adding a name to", patience=SECONDS_TO_LIST):
            self._open_group(self.container)
            labels = self._open_group(folder)
            attributes: dict[str, Any] = dict(labels.attrs)
            names = _listed(attributes)
            if self.name in names:
                return
            if self.version == "0.5":
                ome = {**attributes.get("ome", {}), "version": "0.5"}
                update_attributes(folder, {"ome": {**ome, "labels": sorted([*names, self.name])}})
            else:
                update_attributes(folder, {"labels": sorted([*names, self.name])})

    def _left_by_0_1_0(self) -> UPath | None:
        """Return what a killed call of version 0.1.0 left; labels of that name are not it."""
        labels = self.container / "labels"
        left = labels / f"{self.name}.partial"
        if not (left / "applied").is_dir():
            return None
        is_group = group_format(labels) is not None
        return None if is_group and left.name in _listed(self._open_group(labels).attrs) else left


def version_of(container: UPath) -> OmeVersion:
    """Return the version of OME-NGFF whose labels can be part of a container; 0.5 of a new one."""
    actual = group_format(container)
    return next((v for v, zarr_format in ZARR_FORMATS.items() if zarr_format == actual), "0.5")


def _listed(attributes: Mapping[str, Any]) -> list[str]:
    """Return the names in the attributes of a group of label images, 0.4 or 0.5."""
    return list(attributes.get("ome", attributes).get("labels", []))


def _is_of_0_1_0(path: UPath) -> bool:
    """Tell whether labels were published by version 0.1.0, which could not vouch for them."""
    layout = read_mapping(path / "provenance.json")
    return (
        layout is not None
        and {"grid", "level_steps"} <= layout.keys()
        and VOUCHED_IN not in layout
        and (path / "applied").is_dir()
    )


@dataclass(frozen=True, slots=True)
class WrittenLabels:
    """What writing merged labels cost."""

    n_blocks_written: int
    n_blocks_unchanged: int
    n_pyramid_chunks: int


def write_merged(
    stage: Stage,
    lut: LookupTable,
    target: LabelImage,
    working: Working,
    *,
    provenance: Mapping[str, Any],
    pool: Pool,
    on_block: Callable[[str], None] = lambda key: None,
    outlines: Outlines | None = None,
) -> WrittenLabels:
    """Write merged labels as an OME-Zarr label image, rewriting only what changed.

    Parameters
    ----------
    stage : Stage
    lut : LookupTable
        Of that stage.
    target : LabelImage
    working : Working
        Of ``target.writing()``.
    provenance : mapping
        JSON-ready; kept beside the labels.
    pool : Pool
    on_block : callable
        Told the key of each block that was written.
    outlines : Outlines, optional
        As in `apply_lut`.
    """
    was_published = target.begin(working, lut.dtype)
    target.record(working, provenance)
    blocks = apply_lut(
        stage,
        lut,
        labels=working.new / "0",
        records=working.new / "applied",
        pool=pool,
        outlines=outlines,
        published=working.old / "applied" if was_published and working.old else None,
    )
    changed: list[Region] = []
    for block in blocks:
        changed.append(block.core)
        on_block(block.key)
    n_chunks = target.finish(working, changed if was_published else None, pool=pool)
    n_blocks = stage.grid.n_blocks
    return WrittenLabels(len(changed), n_blocks - len(changed), n_chunks)
