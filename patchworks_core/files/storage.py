"""Where things are kept: local paths and fsspec URLs behind one `UPath`, and Zarr opened on it.

Writes that must not look finished by half go through `write_bytes`, which writes under a temporary
name and then replaces.
"""

from __future__ import annotations

import fcntl
import hashlib
import os
import re
import shutil
import socket
import tempfile
import threading
import time
import uuid
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path
from typing import Any, Literal

import numpy as np
import psutil
import zarr
from upath import UPath
from zarr.abc.store import Store
from zarr.codecs import ZstdCodec
from zarr.storage import FsspecStore, LocalStore

from patchworks_core.errors import PlanError, StorageError
from patchworks_core.files.locations import FRESH, without_reader

Location = str | os.PathLike[str] | UPath

ZarrFormat = Literal[2, 3]

_RECORDS = frozenset({"zarr.json", ".zarray", ".zgroup", ".zattrs", "plan.json"})
"""Files that make a folder a Zarr node, or a stage."""


def as_path(location: Location) -> UPath:
    """Return a path object for a local path or an fsspec URL.

    Local paths become absolute, so that another process with another working directory means the
    same place.

    Examples
    --------
    >>> as_path("memory://bucket/plate").name
    'plate'
    """
    path = location if isinstance(location, UPath) else UPath(os.fspath(location))
    if is_local(path):
        return UPath(os.path.abspath(path.path))
    remote: UPath = UPath(str(path).rstrip("/"), **{**path.storage_options, **FRESH})
    try:
        _ = remote.fs
    except ImportError as error:
        raise StorageError(without_reader(str(remote), error)) from error
    return remote


def is_local(path: UPath | Path) -> bool:
    """Tell whether `path` is on a file system of this machine."""
    return isinstance(path, Path) or path.protocol in ("", "file", "local")


def zarr_store(path: UPath, *, read_only: bool = False) -> Store:
    """Return the Zarr store at `path`."""
    if is_local(path):
        return LocalStore(Path(str(path)).absolute(), read_only=read_only)
    return FsspecStore.from_url(
        str(path), storage_options=dict(path.storage_options), read_only=read_only
    )


def open_array(path: UPath, *, mode: Literal["r", "r+"] = "r") -> zarr.Array[Any]:
    """Open the Zarr array at `path`.

    Raises
    ------
    FileNotFoundError
        If there is none.
    """
    return zarr.open_array(zarr_store(path, read_only=mode == "r"), mode=mode)


def group_format(path: UPath) -> ZarrFormat | None:
    """Return the Zarr format of the group or array at `path`, None where there is neither."""
    if (path / "zarr.json").exists():
        return 3
    if (path / ".zgroup").exists() or (path / ".zarray").exists():
        return 2
    return None


def create_array(
    path: UPath,
    *,
    shape: Sequence[int],
    chunks: Sequence[int],
    shards: Sequence[int] | None = None,
    dtype: np.dtype[Any] | type,
    axes: str | None = None,
    zarr_format: ZarrFormat = 3,
) -> zarr.Array[Any]:
    """Create an array at `path`, replacing what is there; one chunk, or one shard, is one file.

    Chunks that hold only 0 are not stored.
    """
    compressor: Any = ZstdCodec(level=1)
    separator: dict[str, Any] = {"name": "default", "separator": "/"}
    if zarr_format == 2:
        import numcodecs

        compressor = numcodecs.Zstd(level=1)
        separator = {"name": "v2", "separator": "/"}
    return zarr.create_array(
        zarr_store(path),
        shape=tuple(shape),
        chunks=tuple(min(c, max(n, 1)) for c, n in zip(chunks, shape, strict=True)),
        shards=None if shards is None else tuple(shards),
        dtype=dtype,
        fill_value=0,
        compressors=compressor,
        chunk_key_encoding=separator,
        dimension_names=list(axes) if axes and zarr_format == 3 else None,
        zarr_format=zarr_format,
        overwrite=True,
    )


def write_bytes(path: UPath | Path, content: bytes) -> None:
    """Write a whole file under a temporary name, then give it its own."""
    if not is_local(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(content)  # an object appears whole or not at all
        return
    # Plain names: a path object for each of many small files costs more than the file.
    name = str(path)
    temporary = part_name(name)
    try:
        try:
            Path(temporary).write_bytes(content)
        except FileNotFoundError:
            os.makedirs(os.path.dirname(name), exist_ok=True)
            Path(temporary).write_bytes(content)
        if is_durable():
            sync(temporary)
        os.replace(temporary, name)
    except BaseException as error:
        with suppress(OSError):  # what it was stopped by is what is said
            os.unlink(temporary)
        if isinstance(error, OSError) and error.filename in (None, temporary):
            error.filename = name  # the one that a person knows
        raise
    if is_durable():
        sync(os.path.dirname(name))


@contextmanager
def written_whole(path: UPath) -> Iterator[str]:
    """Give the name of a local file that becomes the one at `path` when the block ends well.

    For what is written piece by piece; of an object store the file is sent there at the end.
    """
    local = is_local(path)
    with ExitStack() as stack:
        if local:
            os.makedirs(os.path.dirname(str(path)), exist_ok=True)
            name = part_name(str(path))
        else:
            folder = stack.enter_context(tempfile.TemporaryDirectory(prefix="patchworks-"))
            name = os.path.join(folder, path.name)
        try:
            yield name
            if not local:
                path.parent.mkdir(parents=True, exist_ok=True)
                path.fs.put_file(name, path.path)
                return
            if is_durable():
                sync(name)
            os.replace(name, str(path))
        except BaseException as error:
            with suppress(OSError):  # what it was stopped by is what is said
                os.unlink(name)
            if isinstance(error, OSError) and error.filename in (None, name):
                error.filename = str(path)  # the one that a person knows
            raise
    if is_durable():
        sync(os.path.dirname(str(path)))


DURABLE = "PATCHWORKS_FSYNC"
"""Variable that says ``on`` where what is written must outlast a power cut, at a cost in time."""


ON, OFF = ("on", "1", "true", "yes"), ("off", "0", "false", "no")
"""What switches in the environment may say."""


def is_switched_on(variable: str, *, otherwise: bool) -> bool:
    """Tell whether a variable of the environment says ``on``; empty, or not set, says nothing.

    Raises
    ------
    PlanError
        If it says neither on nor off.
    """
    value = os.environ.get(variable, "")
    if value.lower() not in ("", *ON, *OFF):
        raise PlanError(
            f"{variable} must be one of {(*ON, *OFF)!r}, got {value!r}; correct it, or remove it "
            "from the environment"
        )
    return value.lower() in ON if value else otherwise


def is_durable() -> bool:
    """Tell whether what is written is to be on the disk itself before anything builds on it."""
    return is_switched_on(DURABLE, otherwise=False)


def be_durable() -> None:
    """Let this process, and those that it starts, wait until what they write is on the disk."""
    os.environ[DURABLE] = "on"


def sync(path: UPath | str) -> None:
    """Wait until a local file, or the names in a local folder, are on the disk."""
    descriptor = os.open(str(path), os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def sync_all(folder: UPath) -> None:
    """Wait until a local folder with all that is in it is on the disk."""
    for parent, _, names in os.walk(str(folder), topdown=False):
        for name in (*names, ""):
            sync(as_path(os.path.join(parent, name)))


def write_text(path: UPath, content: str) -> None:
    """Write a whole text file (UTF-8) under a temporary name, then give it its own."""
    write_bytes(path, content.encode())


_CLAIMED: set[str] = set()
"""Places on object stores that a call of this process works on."""

_CLAIMING = threading.Lock()


@contextmanager
def claimed(path: UPath, *, doing: str, patience: float = 0.0) -> Iterator[None]:
    """Keep other calls from working on a place at the same time.

    Of a local place all processes are kept out, and all threads. Object stores have no locks: there
    the other calls of this process are kept out.

    Parameters
    ----------
    path : UPath
    doing : str
        In the error.
    patience : float
        Seconds to wait for a call that is working on it.

    Raises
    ------
    PlanError
        If another call has claimed it.
    """

    def busy() -> PlanError:
        return PlanError(
            f"one call at a time is {doing} {path}, and another one is at it{_holder(path)}; wait "
            "for it, or name another place"
        )

    deadline = time.monotonic() + patience
    if is_local(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        while (lock := _lock_file(f"{path}.lock")) is None:
            _wait_until(deadline, busy)
        try:
            yield
        finally:
            try:
                with suppress(FileNotFoundError):  # the whole folder was removed
                    os.unlink(f"{path}.lock")
            finally:
                os.close(lock)
        return
    while not _claim(str(path)):
        _wait_until(deadline, busy)
    try:
        yield
    finally:
        _CLAIMED.discard(str(path))


def _claim(path: str) -> bool:
    """Claim a place for a call of this process; False where another one has it."""
    with _CLAIMING:
        is_free = path not in _CLAIMED
        _CLAIMED.add(path)
        return is_free


def _wait_until(deadline: float, error: Callable[[], Exception]) -> None:
    """Wait a moment for a place; raise the error where it is too late."""
    if time.monotonic() >= deadline:
        raise error()
    time.sleep(0.02)


def _holder(path: UPath) -> str:
    """Say in brackets which process has a place, where that can be known."""
    if not is_local(path):
        return ", in this process"
    try:
        holder = Path(f"{path}.lock").read_text()
    except OSError:  # it is gone meanwhile
        holder = ""
    return f" ({holder})" if holder else ""


def _sign(descriptor: int) -> None:
    """Leave in a lock file which process has it; on a full disk it goes without."""
    with suppress(OSError):
        os.ftruncate(descriptor, 0)  # of a call that was killed
        os.write(descriptor, f"process {os.getpid()} on {socket.gethostname()}".encode())


def _lock_file(path: str) -> int | None:
    """Lock a file and return its descriptor; None where another call holds it."""
    while True:
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT, 0o666)
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            if os.path.exists(path) and os.path.samestat(os.stat(path), os.fstat(descriptor)):
                _sign(descriptor)
                return descriptor
        except BlockingIOError:
            os.close(descriptor)
            return None
        except FileNotFoundError:  # removed between the two looks
            pass
        os.close(descriptor)  # of the call before, which removed it when it was done


def remove(path: UPath) -> None:
    """Remove a file or a whole folder, if it is there; of a symbolic link only the link."""
    if is_local(path) and path.is_symlink():
        os.unlink(str(path))
    elif not path.is_dir():
        path.unlink(missing_ok=True)
    elif is_local(path):
        shutil.rmtree(str(path))
    else:
        path.fs.rm(path.path, recursive=True)


def discard(path: UPath) -> None:
    """Remove a file or folder so that, killed half way, nothing of it is taken for whole.

    A local folder gets a name of its own first, see `is_trash`. On an object store the records go
    first that make it a Zarr node or a stage.
    """
    if is_local(path):
        if os.path.lexists(str(path)):
            trash = path.with_name(f".{path.name}.{uuid.uuid4().hex}.trash")
            os.rename(str(path), str(trash))
        if path.parent.is_dir():
            for name in os.listdir(str(path.parent)):
                if is_trash(name, of=path.name):  # also of a call that was killed
                    remove(path.parent / name)
        return
    fs, start = path.fs, path.path.rstrip("/")
    records = [name for name in fs.find(start) if name.rpartition("/")[2] in _RECORDS]
    if records:
        fs.rm(records)
    if fs.exists(start):
        fs.rm(start, recursive=True)


def is_trash(name: str, *, of: str) -> bool:
    """Tell whether a name is one that `discard` gave to the folder called `of`.

    Examples
    --------
    >>> is_trash(f".labels.work.{'0' * 32}.trash", of="labels.work")
    True
    """
    return re.fullmatch(rf"\.{re.escape(of)}\.[0-9a-f]{{32}}\.trash", name) is not None


def part_name(name: str) -> str:
    """Return under what name a file is kept while it is not whole, or not to stay.

    A name of its own: two runs, perhaps on two machines, may write the same record at once.
    """
    return f"{name}.{_THIS_MACHINE}{os.getpid():08x}{_random()}.part"


def is_part(name: str, *, of: str) -> bool:
    """Tell whether a name is one that `part_name` gave for the file called `of`."""
    return re.fullmatch(rf"{re.escape(of)}\.[0-9a-f]{{32}}\.part", name) is not None


def remove_parts(folder: UPath, *, of_the_dead: bool = False, is_deep: bool = True) -> None:
    """Remove what killed writers of files left in a local folder, Zarr's and `write_bytes`'s.

    Parameters
    ----------
    folder : UPath
    of_the_dead : bool
        Leave what another process may still be writing: what is not `write_bytes`'s, of another
        machine, or of a process that is there.
    is_deep : bool
        Look into the folders in it too.
    """
    if not is_local(folder):
        return
    for parent, folders, names in os.walk(str(folder)):
        if not is_deep:
            folders.clear()
        for name in names:
            part = re.search(r"\.([0-9a-f]{8})([0-9a-f]{8})[0-9a-f]{16}\.part(ial)?$", name)
            if part and not (of_the_dead and _may_be_written(*part.groups())):
                with suppress(FileNotFoundError):
                    os.unlink(os.path.join(parent, name))


def _may_be_written(machine: str, process: str, suffix: str | None) -> bool:
    """Tell whether the process that a name tells of may still be there."""
    if suffix is not None or machine != _THIS_MACHINE:
        return True
    return bool(psutil.pid_exists(int(process, 16)))


def _random() -> str:
    return os.urandom(8).hex()


_THIS_MACHINE = hashlib.blake2b(socket.gethostname().encode(), digest_size=4).hexdigest()
"""In the names of files that are being written."""


def duplicate(source: UPath, target: UPath) -> None:
    """Copy a folder into one that is not there yet, the files at its top last.

    On a local file system the files are hard links where it has them: nothing is read, and a file
    that is then replaced, as Zarr and `write_bytes` do, leaves that of the source as it was. On an
    object store the store copies.
    """
    if not is_local(source):
        copy_objects(source, target)
        return
    for parent, _, names in os.walk(str(source), topdown=False):
        folder = os.path.normpath(os.path.join(str(target), os.path.relpath(parent, str(source))))
        os.makedirs(folder, exist_ok=True)
        for name in names:
            file, copy = os.path.join(parent, name), os.path.join(folder, name)
            try:
                os.link(file, copy)
            except OSError:  # no links here, or too many of one file, or not of another's files
                shutil.copy2(file, copy)


def copy_objects(source: UPath, target: UPath) -> None:
    """Copy a folder of an object store, the records at its top last."""
    fs, start, end = source.fs, source.path.rstrip("/"), target.path.rstrip("/")
    paths = [path[len(start) :] for path in fs.find(start) if path.startswith(f"{start}/")]
    records = [path for path in paths if path.count("/") == 1]
    for part in ([path for path in paths if path.count("/") > 1], records):
        if part:
            fs.copy([f"{start}{path}" for path in part], [f"{end}{path}" for path in part])
