"""What patchworks wrote: a record that vouches for it, so that nobody's own work is replaced.

`vouch` writes the record when everything else is there; `fault_of` tells whether what lies there is
still what was written. The record is a hidden file in the folder (beside a file) and holds one
digest of all other files: their names, sizes and contents; on object stores names, sizes and what
the store says of their versions, as looking into them would mean fetching them. Why it is so:
``docs/decisions/0010-replacing.md``.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from typing import Any

from upath import UPath

from patchworks_core.files.locations import info_stamp
from patchworks_core.files.records import read_mapping
from patchworks_core.files.storage import is_local, write_text

RECORD = ".patchworks.json"
"""Of a folder; that of a file is this after a dot and the name of the file."""

RECORD_VERSION = 1

_LITTER = frozenset({".DS_Store", "Thumbs.db", "desktop.ini"})
"""Files that looking into a folder makes."""

_PIECE = 1 << 22
_READERS = 4


def record_path(path: UPath) -> UPath:
    """Return where the record of a file or folder is."""
    return path / RECORD if path.is_dir() else path.with_name(f".{path.name}{RECORD}")


def vouch(
    path: UPath,
    made_from: Mapping[str, Any] | None = None,
    *,
    record: UPath | None = None,
    before: str = "",
) -> None:
    """Record that what is at `path` now is what patchworks wrote.

    Parameters
    ----------
    path : UPath
        File or folder; nothing is written into it afterwards.
    made_from : mapping, optional
        JSON-ready; `made_from_what` gives it to a call that asks whether it has to work at all.
    record : UPath, optional
        Where the record goes, for a file that is yet to get its name.
    before : str
        Digest of what was there before, where that stays until the next step.
    """
    content = {
        "record_version": RECORD_VERSION,
        "written": [digest for digest in (digest_of(path), before) if digest],
        "made_from": dict(made_from or {}),
    }
    write_text(record or record_path(path), json.dumps(content) + "\n")


def fault_of(path: UPath) -> str | None:
    """Say what keeps patchworks from replacing what is at `path`; None where nothing does."""
    record = read_mapping(record_path(path))
    if record is None:
        return "nothing says that patchworks wrote it"
    if record.get("record_version") != RECORD_VERSION:
        return f"it was written by another version ({record.get('record_version')!r})"
    written = record.get("written")
    if isinstance(written, list) and digest_of(path) in written:
        return None
    return f"it was changed since patchworks wrote it{_newest(path)}"


def made_from_what(path: UPath) -> dict[str, Any] | None:
    """Return what the thing at `path` was made from; None where it is not what was written."""
    if not path.exists() or fault_of(path) is not None:
        return None
    recipe = (read_mapping(record_path(path)) or {}).get("made_from")
    return recipe if isinstance(recipe, dict) else None


def digest_of(path: UPath) -> str:
    """Return a digest of all files at `path`, but for the record."""
    total = hashlib.blake2b(digest_size=16)
    for part in _local_parts(str(path)) if is_local(path) else _remote_parts(path):
        total.update(len(part).to_bytes(8, "little"))
        total.update(part)
    return total.hexdigest()


def _local_parts(path: str) -> Iterator[bytes]:
    """Yield name and content digest of every file, in sorted order; files are read in threads."""
    names = sorted(_files(path)) if os.path.isdir(path) else [""]
    with ThreadPoolExecutor(_READERS) as readers:
        files = (os.path.join(path, name) if name else path for name in names)
        for name, content in zip(names, readers.map(_content, files), strict=True):
            yield name.encode(errors="surrogateescape")
            yield content


def _files(folder: str) -> Iterator[str]:
    for parent, _, names in os.walk(folder):
        for name in names:
            inner = os.path.relpath(os.path.join(parent, name), folder)
            if _counts(inner):
                yield inner


def _counts(inner: str) -> bool:
    name = inner.rpartition("/")[2]
    return inner != RECORD and name not in _LITTER and not name.startswith("._")


def _content(file: str) -> bytes:
    digest = hashlib.blake2b(digest_size=16)
    with open(file, "rb") as opened:
        while piece := opened.read(_PIECE):
            digest.update(piece)
    return digest.digest()


def _remote_parts(path: UPath) -> Iterator[bytes]:
    start = path.path.rstrip("/")
    if path.fs.isfile(start):
        yield path.fs.cat_file(start)
        return
    files = path.fs.find(start, detail=True)
    for file in sorted(files):
        inner = file[len(start) :].strip("/")
        if _counts(inner):
            yield inner.encode()
            yield from info_stamp(files[file])


def _newest(path: UPath) -> str:
    """Name the file that was changed last, for a message."""
    if not is_local(path) or not path.is_dir():
        return ""
    files = list(_files(str(path)))
    since = os.stat(str(record_path(path))).st_mtime_ns
    changed = {name: os.stat(os.path.join(str(path), name)).st_mtime_ns for name in files}
    newest = max(files, key=lambda name: changed[name], default=None)
    if newest is None or changed[newest] < since:
        return f" ({len(files)} files are there; one or more are missing or another)"
    return f" (such as {newest!r})"
