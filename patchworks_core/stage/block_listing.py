"""Which tile blocks of a stage have a file, and what the header of each says.

A header is read once, and again when its file is another: of a thousand tiles that are there, a
question costs a listing. Of many thousand, what the headers say is kept beside the files for the
next process (`_HEADERS`), which believes it of every file that is still the same.
"""

from __future__ import annotations

import logging
import os
from collections.abc import Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import AbstractContextManager, suppress
from typing import Any

import numpy as np
from upath import UPath

from patchworks_core.files.packed import PackedFile, open_local_packed, open_packed
from patchworks_core.files.storage import is_local, write_bytes
from patchworks_core.files.tables import DamagedError
from patchworks_core.stage.block_files import BlockSummary, pack_summaries, unpack_summaries

log = logging.getLogger("patchworks_core")

SUFFIX = ".tiles"

_REQUESTS_AT_ONCE = 16
"""To an object store, for the headers of blocks."""

_HEADERS = "headers"
"""File of what the headers of all blocks said."""

_MANY = 4096
"""Headers that are read before they are kept."""

_NEVER: tuple[Any, None] = (None, None)


class BlockListing:
    """The files of tile blocks in one folder."""

    def __init__(self, folder: UPath) -> None:
        self.folder = folder
        self._local = str(folder) if is_local(folder) else None
        """A path of text, which takes a tenth as long to add a name to."""
        self._summaries: dict[str, tuple[Any, BlockSummary | None]] = {}
        """What was read of each file, with what told then that it is that one."""

    def read(self) -> dict[str, BlockSummary]:
        """Return what the header of each file says, by block; a damaged one is logged, and none."""
        if not self._summaries:
            self._summaries = self._kept()
        before = self._summaries
        listed = dict(_list_files(self.folder))
        new = [key for key, mark in listed.items() if before.get(key, _NEVER)[0] != mark]
        if is_local(self.folder):
            summaries = [self._read_summary(key) for key in new]
        else:
            with ThreadPoolExecutor(_REQUESTS_AT_ONCE) as threads:
                summaries = list(threads.map(self._read_summary, new))
        read = {key: (listed[key], value) for key, value in zip(new, summaries, strict=True)}
        self._summaries = {key: read.get(key) or before[key] for key in listed}
        if len(new) >= _MANY and is_local(self.folder):
            self._keep()
        return {key: value for key, (_, value) in self._summaries.items() if value is not None}

    def _keep(self) -> None:
        """Keep what the headers say, where the folder may be written to."""
        kept = {key: both for key, both in self._summaries.items() if both[1] is not None}
        if not kept:  # all are damaged
            return
        marks = np.array([mark for mark, _ in kept.values()], dtype=np.int64)
        content = pack_summaries(list(kept), [of for _, of in kept.values() if of], marks)
        with suppress(OSError):
            write_bytes(self.folder / _HEADERS, content)

    def _kept(self) -> dict[str, tuple[Any, BlockSummary | None]]:
        """Return what an earlier process kept; nothing where that is damaged."""
        if not is_local(self.folder):
            return {}
        try:
            with open_packed(self.folder / _HEADERS) as packed:
                keys, summaries, marks = unpack_summaries(packed)
        except (DamagedError, OSError):
            return {}
        return {
            key: (tuple(mark), summary)
            for key, summary, mark in zip(keys, summaries, marks.tolist(), strict=True)
        }

    def _read_summary(self, key: str) -> BlockSummary | None:
        """Return what the header of a file says; None where it is damaged, or gone meanwhile."""
        name = f"{key}{SUFFIX}"
        try:
            with self._opened(name) as packed:
                return BlockSummary.of(packed, key=key)
        except FileNotFoundError:
            return None
        except DamagedError as error:
            log.warning(
                "tile block %s counts as not staged: its file %s is damaged (%s)",
                key,
                self.folder / name,
                error,
            )
            return None

    def _opened(self, name: str) -> AbstractContextManager[PackedFile]:
        if self._local is None:
            return open_packed(self.folder / name)
        return open_local_packed(f"{self._local}{os.sep}{name}")


def _list_files(folder: UPath) -> Iterator[tuple[str, Any]]:
    """Yield the key of every block that has a file, with what differs when it is replaced."""
    try:
        if is_local(folder):
            with os.scandir(str(folder)) as entries:
                for entry in entries:
                    if entry.name.endswith(SUFFIX) and (mark := _mark_of_file(entry)) is not None:
                        yield entry.name.removesuffix(SUFFIX), mark
            return
        for entry in folder.fs.ls(folder.path, detail=True):
            name = entry["name"].rsplit("/", 1)[-1]
            if name.endswith(SUFFIX):
                yield name.removesuffix(SUFFIX), _mark_of(entry)
    except (FileNotFoundError, NotADirectoryError):
        return


def _mark_of_file(entry: os.DirEntry[str]) -> Any:
    """Return what differs when a file is replaced; None where it was removed meanwhile."""
    try:
        status = entry.stat()
    except FileNotFoundError:
        return None
    return status.st_mtime_ns, status.st_size, status.st_ino


def _mark_of(entry: Mapping[str, Any]) -> Any:
    """Return what an object store says that is another once an object is replaced."""
    names = ("ETag", "etag", "generation", "mtime", "LastModified", "last_modified", "created")
    marks = tuple(str(entry[name]) for name in names if entry.get(name) is not None)
    return (*marks, entry.get("size")) if marks else object()
