"""The stage: what is kept of every tile block of one plan, on disk.

::

    plan.json                      the plan; written last when a stage is made
    generation                     name of this making of it
    blocks/<generation>/<block>    one file per tile block, which vouches for all that is in it

A block is committed when its file has its name; one without a file was not staged. What a worker of
an earlier call still writes is of another generation, and never taken for this one's.

What is damaged is never merged: its file is removed, so that the block is staged again by whoever
stages what is missing. A stage of version 0.1.0 is read as it was laid out (`first_layout`); what
is staged again in it is staged in files.
"""

from __future__ import annotations

import errno
import logging
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from functools import lru_cache
from typing import Any, TypeVar

import numpy as np
import numpy.typing as npt
from upath import UPath

from patchworks_core.errors import PlanError, StageError, StorageError
from patchworks_core.files.faults import storing
from patchworks_core.files.packed import PackedFile, open_packed
from patchworks_core.files.storage import (
    Location,
    as_path,
    be_durable,
    is_durable,
    is_local,
    part_name,
    remove,
    remove_parts,
    write_bytes,
    write_text,
)
from patchworks_core.files.tables import DamagedError
from patchworks_core.machine.error_texts import not_reached
from patchworks_core.seams.strips import Side, strip_of_tile
from patchworks_core.stage import first_layout
from patchworks_core.stage.block_files import (
    NOT_STAGED,
    BlockSummary,
    StagedTile,
    encode_block,
    objects_in,
    strips_in,
)
from patchworks_core.stage.block_labels import labels_in, local_labels
from patchworks_core.stage.block_listing import SUFFIX, BlockListing
from patchworks_core.stage.content import content_of_stage
from patchworks_core.stage.first_layout import FirstLayout
from patchworks_core.stage.label_runs import LabelRuns
from patchworks_core.stage.object_sums import ObjectSums
from patchworks_core.stage.plan import STAGE_AGAIN, OtherLayoutError, Plan
from patchworks_core.stage.stage_folder import (
    BLOCKS,
    begin_generation,
    check_stage_only,
    read_generation,
)
from patchworks_core.stage.view_files import read_pixels
from patchworks_core.tiles.grid import TileBlock, TileGrid

Array = npt.NDArray[Any]

T = TypeVar("T")

log = logging.getLogger(__name__)


class Stage:
    """The staged labels of one plan.

    Make one with `Stage.create` or `Stage.open`. It may be used from several threads, and pickles
    as its location.
    """

    def __init__(self, location: Location, plan: Plan) -> None:
        self.path = as_path(location)
        self.plan = plan
        self.grid: TileGrid = plan.grid
        self._fingerprint = plan.fingerprint
        self.generation = read_generation(self.path)
        self.blocks_folder = self.path / BLOCKS / self.generation
        """Where the files of the tile blocks are, and of what goes with them."""
        self._first_layout = FirstLayout.at(self.path, self.grid)
        self._listing = BlockListing(self.blocks_folder)
        self._damage: dict[str, str] = {}
        """What was wrong with blocks that were taken back, for whoever reads a neighbour next."""

    def __reduce__(self) -> tuple[Any, ...]:
        return _reopen, (self.path, self.plan.to_json(), self.generation, is_durable())

    @classmethod
    def create(cls, location: Location, plan: Plan) -> Stage:
        """Create an empty stage for `plan`, replacing the stage that is there.

        Raises
        ------
        StageError
            If the folder holds what is no part of a stage.
        """
        path = as_path(location)
        check_stage_only(path)
        # The record of the plan goes first and comes last: what lies between is no stage.
        for name in ("plan.json", BLOCKS, *sorted(first_layout.PARTS)):
            remove(path / name)
        begin_generation(path)
        write_text(path / "plan.json", plan.to_json())
        return cls(path, plan)

    @classmethod
    def open(cls, location: Location, plan: Plan) -> Stage:
        """Open the stage of `plan`; a damaged record of it is mended where all blocks vouch for it.

        Raises
        ------
        PlanError, StageError
            If there is none, it is of another plan, or nobody can say of which.
        """
        path = as_path(location)
        record = path / "plan.json"
        if not record.exists():
            raise StageError(f"no stage at {path}; stage the tiles of the image first")
        try:
            staged = Plan.read(record)
        except PlanError as error:
            if isinstance(error, OtherLayoutError) or not cls.is_of(path, plan):
                raise
            log.warning("%s; it is written again, as all tile blocks are of this plan", error)
            write_text(record, plan.to_json())
            staged = plan
        if staged.fingerprint != plan.fingerprint:
            raise StageError(
                f"the stage at {path} was made by another plan ({plan.difference(staged)}); its "
                f"tiles cannot be mixed with this plan's{STAGE_AGAIN}"
            )
        return cls(path, plan)

    @classmethod
    def is_of(cls, location: Location, plan: Plan) -> bool:
        """Tell whether there are tile blocks, and all that can be read vouch for `plan`."""
        stage = cls(location, plan)
        plans = {summary.plan for summary in stage._listing.read().values()}
        return stage._first_layout is None and plans == {plan.fingerprint}

    @classmethod
    def open_or_create(cls, location: Location, plan: Plan) -> Stage:
        """Open the stage of `plan`, or replace what is there by an empty one."""
        try:
            return cls.open(location, plan)
        # None, of another plan, or damaged: nobody can say what its tiles are of.
        except (PlanError, StageError):
            return cls.create(location, plan)

    @property
    def is_current(self) -> bool:
        """True until another call begins the stage anew."""
        return read_generation(self.path) == self.generation

    def forget(self, block: TileBlock) -> None:
        """Take back the commit record of a block, before it is staged again."""
        path = self._block_path(block.key)
        with storing(self.path, path):
            path.unlink(missing_ok=True)
            if self._first_layout is not None:
                self._first_layout.forget(block)

    def write(self, block: TileBlock, tiles: Sequence[StagedTile]) -> int:
        """Write the file of a block; return how many bytes it has.

        Parameters
        ----------
        block : TileBlock
        tiles : sequence of StagedTile
            One per tile of the block, in its order.

        Raises
        ------
        StageError
            If the stage was begun anew since this one was opened.
        StorageError
            If the place cannot be written to.
        """
        content = encode_block(self.grid, block, tiles, plan=self._fingerprint)
        if not self.is_current:
            if not (self.path / "plan.json").exists():
                raise StorageError(f"the stage at {self.path} is gone", errno.ENOENT)
            raise StageError(
                f"the stage at {self.path} was begun anew by another call while tile block "
                f"{block.key!r} was worked on; what this call made of it is left out"
            )
        path = self._block_path(block.key)
        with storing(self.path, path):
            write_bytes(path, content)
        return len(content)

    def clean(self) -> None:
        """Remove what processes of this machine that are gone had begun to write."""
        remove_parts(self.path / BLOCKS, of_the_dead=True)

    def file_for_task(self, name: str = "task") -> UPath:
        """Return a file for what is kept beside tile blocks while a step runs.

        `clean` removes it where the process that asked for it is gone.
        """
        return self.path / BLOCKS / part_name(name)

    def counts(self) -> Array:
        """Return the labels of each tile, int64, shape ``grid_shape``; -1 is not staged.

        A count that cannot be read is none: its tile was not staged.
        """
        if self._first_layout is not None:
            counts = self._first_layout.counts()
        else:
            counts = np.full(self.grid.grid_shape, NOT_STAGED, dtype=np.int64)
        for index, summary in self._committed():
            counts[index] = np.reshape(summary.counts, counts[index].shape)
        return counts

    def digests(self) -> Array:
        """Return a digest of the labels of each tile, uint64, shape ``grid_shape``; 0 of none.

        Tiles of one block share theirs.

        Raises
        ------
        StageError
            If one is damaged.
        """
        digests = self._of_first_layout("the digests", FirstLayout.digests)
        for index, summary in self._committed():
            digests[index] = summary.digest
        return digests

    def strip_digests(self) -> Array:
        """Return a digest of the strips of each tile, uint64, shape ``grid_shape``; 0 of none.

        Tiles of one block share theirs. In the first layout, to which nothing is added, the labels'
        digests stand in: strips are written with them.
        """
        digests = self._of_first_layout("the digests", FirstLayout.digests)
        for index, summary in self._committed():
            digests[index] = summary.strips
        return digests

    def pixel_checksums(self) -> Array:
        """Return the checksum of what each tile read, 0 where nobody knows.

        Returns
        -------
        ndarray of uint64
            Shape ``grid_shape``.
        """
        checksums = self._of_first_layout("checksums of pixels", FirstLayout.pixel_checksums)
        for index, summary in self._committed():
            checksums[index] = np.reshape(summary.pixels, checksums[index].shape)
        return checksums

    def _of_first_layout(
        self, what: str, read: Callable[[FirstLayout, tuple[int, ...]], Array]
    ) -> Array:
        """Return one number per tile as the first layout has it, 0 where it has none."""
        values = np.zeros(self.grid.grid_shape, dtype=np.uint64)
        if self._first_layout is not None:
            counts = self._first_layout.counts()
            for block in self.grid.blocks():
                place = self.grid.tile_slices(block.index)
                if (counts[place] != NOT_STAGED).any():
                    with self._reading(what, block):
                        values[place] = read(self._first_layout, block.index)
        return values

    def _committed(self) -> Iterator[tuple[tuple[slice, ...], BlockSummary]]:
        """Yield where the tiles of each block with a file stand, and what its header says."""
        for key, summary in self._listing.read().items():
            index = self.grid.block_index_of_key.get(key)
            if index is not None and summary.plan == self._fingerprint:
                yield self.grid.tile_slices(index), summary

    def content(self) -> str:
        """Return a digest of all that is staged; it changes when any is staged otherwise."""
        return content_of_stage(self)

    def settled_counts(self, *, allow_missing: bool = False) -> np.ndarray[Any, Any]:
        """Return the labels of each tile in row-major order, int64, shape (n_tiles,).

        Parameters
        ----------
        allow_missing : bool
            Take a tile that is not staged for one without labels.

        Raises
        ------
        StageError
            If a tile is not staged and that is not allowed, naming the first ones.
        """
        counts = self.counts()  # once: a tile may be taken back at any time
        missing = [] if allow_missing else self._missing_in(counts)
        if missing:
            shown = ", ".join(missing[:5]) + (", ..." if len(missing) > 5 else "")
            raise StageError(
                f"{len(missing)} of {self.grid.n_blocks} tile blocks are not staged at "
                f"{self.path}: {shown}; stage them before merging"
            )
        return np.asarray(np.maximum(counts.ravel(), 0))

    def missing_blocks(self) -> list[str]:
        """Return the keys of the blocks without a commit record, in row-major order."""
        return self._missing_in(self.counts())

    def _missing_in(self, counts: Array) -> list[str]:
        missing = np.argwhere(counts == NOT_STAGED) // np.array(self.grid.block_shape)
        return [self.grid.block_key(index) for index in np.unique(missing, axis=0)]

    def labels(self, block: TileBlock) -> Array:
        """Return the staged labels of a block's core.

        Returns
        -------
        ndarray of uint16 or int32
            Local ids.

        Raises
        ------
        StageError
            If they are damaged, or the block is not staged.
        """
        return self._read(
            "the labels",
            block,
            lambda packed: local_labels(labels_in(packed, block), packed.header["counts"]),
            FirstLayout.labels,
        )

    def kept_labels(self, block: TileBlock) -> Array | LabelRuns:
        """Return the staged labels of a block's core as they are kept.

        Returns
        -------
        ndarray of uint16 or int32, or LabelRuns
            Local ids; those of runs are counted over the tiles of the block.

        Raises
        ------
        StageError
            If they are damaged, or the block is not staged.
        """
        return self._read(
            "the labels", block, lambda packed: labels_in(packed, block), FirstLayout.labels
        )

    def strips(
        self, block: TileBlock, places: Sequence[tuple[int, Side]] | None = None
    ) -> dict[tuple[int, Side], Array]:
        """Return strips of a block by axis and side, those of its tiles side by side.

        Parameters
        ----------
        block : TileBlock
        places : sequence of (axis, side), optional
            Which; all by default.

        Raises
        ------
        StageError
            If they are damaged, or the block is not staged.
        """
        return self._read(
            "the strips",
            block,
            lambda packed: strips_in(self.grid, packed, places),
            FirstLayout.strips,
        )

    def strip(self, index: tuple[int, ...], axis: int, side: Side) -> Array:
        """Return one strip of the tile at `index`, shape `slot_shape`.

        Raises
        ------
        StageError
            If it is damaged, or not staged.
        """
        block = self.grid.block(self.grid.block_index_of(index))
        return strip_of_tile(self.grid, self.strips(block)[axis, side], index, axis)

    def third_view(self, key: str) -> Array:
        """Return the local ids of a third view; raise StageError where they are damaged."""
        return read_pixels(self.blocks_folder, key)

    def areas(self, block: TileBlock) -> Array:
        """Return the pixels of each label of a block in its core, int64, tile after tile.

        Raises
        ------
        StageError
            If they are damaged, or the block is not staged.
        """
        return self._read(
            "the areas",
            block,
            lambda packed: packed.load(["areas"])["areas"],
            lambda stage, block: stage.objects(block).area,
        )

    def objects(self, block: TileBlock) -> ObjectSums:
        """Return the object sums of a block, one row per label, tile after tile.

        Raises
        ------
        StageError
            If they are damaged, or the block is not staged, or was staged without.
        """
        return self._read(
            "the object sums",
            block,
            lambda packed: objects_in(self.grid.axes, packed),
            FirstLayout.objects,
        )

    def _read(
        self,
        what: str,
        block: TileBlock,
        from_file: Callable[[PackedFile], T],
        from_arrays: Callable[[FirstLayout, TileBlock], T],
    ) -> T:
        """Read something of a block from where it is staged."""
        with self._reading(what, block):
            with suppress(FileNotFoundError):
                try:
                    return self._read_file(block, from_file)
                except DamagedError:
                    if is_local(self.path):
                        raise
                    # An object may have been replaced between two requests.
                    return self._read_file(block, from_file)
            first = self._first_layout
            if first is not None and (first.counts_of(block.index) != NOT_STAGED).any():
                return from_arrays(first, block)
        absent = f"tile block {block.key!r} is not staged at {self.path}"
        absent += "; stage it before it is merged"
        raise StageError(self._damage.get(block.key, absent))

    def _read_file(self, block: TileBlock, read: Callable[[PackedFile], T]) -> T:
        """Read something of the file of a block; raise FileNotFoundError where it has none."""
        path = self._block_path(block.key)
        with open_packed(path) as packed:
            if BlockSummary.of(packed, key=block.key).plan != self._fingerprint:
                raise FileNotFoundError(f"{path} is of another plan")
            return read(packed)

    @contextmanager
    def _reading(self, what: str, block: TileBlock) -> Iterator[None]:
        """Say which block is damaged, and take back its count so that it is staged again."""
        try:
            yield
        except DamagedError as error:
            damaged = f"{what} of tile block {block.key!r} at {self.path} are damaged ({error})"
            self._damage[block.key] = damaged
            try:
                self.forget(block)
                way_out = "it counts as not staged now: call again, or run "
                way_out += "'patchworks retry' on its image"
            except Exception as fault:  # a stage that can only be read
                way_out = f"it must be staged again, which could not be noted ({fault!r})"
            self._damage[block.key] = f"{damaged}; {way_out}"
            raise StageError(self._damage[block.key]) from error

    def _block_path(self, key: str) -> UPath:
        return self.blocks_folder / f"{key}{SUFFIX}"


@lru_cache(maxsize=8)
def _reopen(path: UPath, plan: str, generation: str, is_to_last: bool = False) -> Stage:
    """Open a stage once per worker process, not once per tile."""
    if is_to_last:  # a worker of a cluster does not inherit the environment
        be_durable()
    if not (path / "plan.json").exists():
        raise StageError(not_reached(f"the stage at {path}"))
    stage = Stage(path, Plan.from_json(plan))
    if stage.generation != generation:
        raise StageError(f"another call began the stage at {path} anew since this one was started")
    return stage
