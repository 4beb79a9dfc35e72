"""Tiles are logged as materialized while a run goes on: a few at a time, beside the segmentation.

An event of its own costs a connection and several commits, more than a small tile takes to segment.
So a thread collects the tiles of half a second and logs them together. A run that is killed loses
the events of that half second and no tile: the run that takes it up logs them.
"""

import time
from collections.abc import Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import AbstractContextManager, nullcontext
from queue import Empty, SimpleQueue
from types import TracebackType
from typing import Self

import dagster as dg

from patchworks_pipeline.instance.tile_partitions import own_storage

SECONDS_TOGETHER = 0.5
"""A tile waits at most so long for others."""

TILES_TOGETHER = 100
"""Tiles that are logged together at most."""

_END = None


def together(instance: dg.DagsterInstance) -> AbstractContextManager[None]:
    """Write what this thread logs of assets meanwhile in one go, at the end.

    Does nothing special where the instance has one of Dagster's own storages.
    """
    storage = own_storage(instance)
    return nullcontext() if storage is None else storage.together()


class TileLog:
    """Logs tiles in the order in which they are added; all of them when it is left."""

    def __init__(self, context: dg.AssetExecutionContext | dg.OpExecutionContext) -> None:
        self._context = context
        self._tiles: SimpleQueue[dg.AssetMaterialization | None] = SimpleQueue()
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="tile-log")
        self._written: Future[None] | None = None

    def __enter__(self) -> Self:
        self._written = self._thread.submit(self._write_all)
        return self

    def add(self, tile: dg.AssetMaterialization) -> None:
        """Have a tile logged, within half a second."""
        assert self._written is not None, "a tile log is used in a with statement"
        if self._written.done():
            self._written.result()  # it ended before its time: with an error
        self._tiles.put(tile)

    def __exit__(
        self,
        error_type: type[BaseException] | None,
        error: BaseException | None,
        traceback: TracebackType | None,
    ) -> None:
        assert self._written is not None
        self._tiles.put(_END)
        self._thread.shutdown()
        self._written.result()

    def _write_all(self) -> None:
        is_open = True
        while is_open:
            tiles, is_open = self._next_tiles()
            self._write(tiles)

    def _next_tiles(self) -> tuple[list[dg.AssetMaterialization], bool]:
        """Return the tiles of the next half second, and whether more may come."""
        tiles: list[dg.AssetMaterialization] = []
        tile = self._tiles.get()
        deadline = time.monotonic() + SECONDS_TOGETHER
        while tile is not _END:
            tiles.append(tile)
            if len(tiles) == TILES_TOGETHER:
                return tiles, True
            try:
                tile = self._tiles.get(timeout=max(0.0, deadline - time.monotonic()))
            except Empty:
                return tiles, True
        return tiles, False

    def _write(self, tiles: Sequence[dg.AssetMaterialization]) -> None:
        with together(self._context.instance):
            for tile in tiles:
                self._context.log_event(tile)
