"""Where an image lies: local paths and URLs as one string, and what identifies a stored file."""

from __future__ import annotations

import errno
import os
import stat
from collections.abc import Iterable, Iterator
from typing import Any

from fsspec import AbstractFileSystem
from upath import UPath

from patchworks_core.errors import ImageError

FRESH: dict[str, Any] = {"use_listings_cache": False}
"""Storage options of every remote filesystem.

fsspec keeps listings, one set per filesystem object, and Zarr has an object of its own: what one
wrote, the other would not see.
"""

ZIP_SUFFIXES = (".zarr.zip", ".ozx")
"""How the names of zip files end that hold a Zarr node."""

CLUTTER_NAMES = {".ds_store", "thumbs.db", "desktop.ini", "__macosx", ".directory", "@eadir"}
"""What file managers and archivers leave in folders, in lower case."""

CLUTTER_SUFFIXES = (".part", ".partial", ".crdownload", ".filepart", ".tmp", "~")
"""How the names of files end that are still being copied, or were left by an editor."""

CREDENTIALS = (
    "give its credentials, such as AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, or "
    "FSSPEC_S3_ANON=true where it is public"
)
"""What to do where an object store refuses."""

_IDENTIFYING = ("ETag", "etag", "size", "mtime", "LastModified", "last_modified", "created")


def locate(source: str | os.PathLike[str] | UPath) -> str:
    """Return the absolute path, or the URL, of a source.

    Absolute, so that another process with another working directory finds the same image.
    """
    if isinstance(source, UPath) and source.protocol not in ("", "file", "local"):
        options = sorted(set(source.storage_options) - set(FRESH))
        if options:
            raise ImageError(
                "an image is known by its URL alone, got storage options "
                f"{options!r} with {str(source)!r}; put them in the fsspec "
                "configuration, such as FSSPEC_S3_ANON=true in the environment"
            )
        return str(source).rstrip("/")
    path = str(source) if isinstance(source, UPath) else os.fspath(source)
    if is_remote(path):
        return path.rstrip("/")
    return os.path.abspath(path.removeprefix("file://"))


def is_remote(url: str) -> bool:
    """Tell a URL from a local path."""
    return "://" in url and not url.startswith("file://")


def split_zip(url: str) -> tuple[str, str] | None:
    """Return the zip file that a path leads into, and the path within; None where it does not.

    Examples
    --------
    >>> split_zip("/data/plate.ome.zarr.zip/B/03/0")
    ('/data/plate.ome.zarr.zip', 'B/03/0')
    >>> split_zip("/data/a.ozx"), split_zip("/data/a.ome.zarr")
    (('/data/a.ozx', ''), None)
    """
    parts = url.split("/")
    for i, part in enumerate(parts):
        if part.lower().endswith(ZIP_SUFFIXES):
            return "/".join(parts[: i + 1]), "/".join(parts[i + 1 :])
    return None


def split_scene(url: str) -> tuple[str, str | None]:
    """Return the file that a path names, and the scene after its last ``#``.

    Examples
    --------
    >>> split_scene("slides.czi#2")
    ('slides.czi', '2')

    Whether a remote file is so called itself cannot be known: there the scene is a number, behind
    what has an extension.

    >>> split_scene("s3://slides/a.tif#1"), split_scene("s3://slides/a#1.tif")
    (('s3://slides/a.tif', '1'), ('s3://slides/a#1.tif', None))
    """
    file, mark, scene = url.rpartition("#")
    if is_remote(url):
        is_scene = scene.isdecimal() and "." in file.rpartition("/")[2]
    else:
        is_scene = not os.path.exists(url)
    return (file, scene) if mark and is_scene else (url, None)


def changed_at(url: str) -> int | None:
    """Return when the local file that a path leads to was changed, nanoseconds since 1970.

    None for URLs, and where nothing is there.
    """
    if is_remote(url):
        return None
    zipped = split_zip(url)
    file = zipped[0] if zipped else split_scene(url)[0]
    return os.stat(file).st_mtime_ns if os.path.exists(file) else None


def check_regular_file(path: str, where: str) -> None:
    """Raise ImageError where a local path leads to what would be read without end, or is no file.

    Nothing there is left to whoever opens it.
    """
    try:
        mode = os.stat(path).st_mode
    except OSError:
        return
    if not stat.S_ISREG(mode):
        what = "a folder" if stat.S_ISDIR(mode) else "a pipe, socket or device"
        raise ImageError(
            f"an image is read from files, got {what} at {path!r} in {where}; put the file itself "
            "there"
        )


def is_within(path: str, folders: Iterable[str]) -> bool:
    """Tell whether a local path, its symbolic links followed, lies in one of the folders."""
    real = os.path.realpath(path)
    tops = [os.path.realpath(folder) for folder in folders]
    return any(os.path.commonpath([real, top]) == top for top in tops)


def check_linked_folder(path: str, top: str) -> None:
    """Raise ImageError where a link to a folder leads out of `top`, or to one that it lies in."""
    if not os.path.islink(path):
        return
    real, parent = os.path.realpath(path), os.path.realpath(os.path.dirname(path))
    if not is_within(path, [top]):
        raise ImageError(
            f"an image lies within its folder, got a link from {path!r} to {real!r}; copy what is "
            "there into the folder"
        )
    if os.path.commonpath([real, parent]) == real:
        raise ImageError(
            f"a folder of an image must not hold itself, got a link from {path!r} to {real!r}; "
            "remove it"
        )


def filesystem(url: str) -> tuple[AbstractFileSystem, str]:
    """Return the filesystem of a URL and the path in it.

    Raises
    ------
    ImageError
        If nothing installed reads this kind of URL.
    """
    try:
        path = UPath(url, **FRESH) if is_remote(url) else UPath(url)
        return path.fs, path.path
    except (ImportError, ValueError) as error:
        raise ImageError(without_reader(url, error)) from error


def is_of_object_store(error: BaseException) -> bool:
    """Tell whether an error is of the client of S3, which has classes of its own."""
    return type(error).__module__.partition(".")[0] == "botocore"


def without_reader(url: str, error: ImportError | ValueError) -> str:
    """Return why a URL can be neither read nor written, in words, with what to install.

    Examples
    --------
    >>> without_reader("s3://b/a", ImportError("Install s3fs"))
    "no reader for the URL 's3://b/a': Install s3fs; pip install 'patchworks-pipeline[s3]'"
    """
    is_s3 = isinstance(error, ImportError) and url.startswith(("s3://", "s3a://"))
    extra = "; pip install 'patchworks-pipeline[s3]'" if is_s3 else ""
    return f"no reader for the URL {url!r}: {error}{extra}"


def file_stamp(url: str) -> Iterator[bytes]:
    """Yield what identifies one stored file: its place, size, and time of change or ETag."""
    yield url.encode()
    if not is_remote(url):
        yield from _local_file(url)
        return
    fs, path = filesystem(url)
    yield from info_stamp(fs.info(path))


def is_content(path: str) -> bool:
    """Tell whether a file below an image's folder belongs to its pixels.

    Clutter does not, nor labels that anybody wrote beside the pixels.

    Parameters
    ----------
    path : str
        Relative to the folder, parts separated by ``/``.

    Examples
    --------
    >>> is_content("0/c/1/2"), is_content("0/.DS_Store"), is_content("labels/cells/0/c/0")
    (True, False, False)
    """
    *folders, name = path.lower().split("/")
    if "labels" in folders or name.startswith("._") or name.endswith(CLUTTER_SUFFIXES):
        return False
    return not CLUTTER_NAMES & {*folders, name}


def folder_stamp(folder: str) -> Iterator[bytes]:
    """Yield what identifies every file of an image in a local folder, in sorted order."""
    yield folder.encode()
    for parent, folders, files in os.walk(folder):
        folders.sort()
        for name in folders:
            check_linked_folder(os.path.join(parent, name), folder)
        for name in sorted(files):
            path = os.path.join(parent, name)
            relative = os.path.relpath(path, folder)
            if not is_content(relative.replace(os.sep, "/")):
                continue
            yield relative.encode()
            yield from _local_file(path)


def remote_folder_stamp(
    fs: AbstractFileSystem, folder: str, names: Iterable[str]
) -> Iterator[bytes]:
    """Yield what identifies every object of an image in a remote folder, in sorted order.

    A web server lists nothing: there only the files called `names` are looked at.
    """
    yield f"{fs.protocol}:{folder}".encode()
    protocols = (fs.protocol,) if isinstance(fs.protocol, str) else fs.protocol
    if {"http", "https"} & set(protocols):
        paths = [f"{folder}/{name}" for name in names]
        infos = {path: fs.info(path) for path in paths if fs.exists(path)}
    else:
        infos = fs.find(folder, detail=True)
    start = fs._strip_protocol(folder).rstrip("/") + "/"
    for path in sorted(infos):
        if is_content(path.removeprefix(start)):
            yield path.encode()
            yield from info_stamp(infos[path])


def info_stamp(info: dict[str, Any]) -> Iterator[bytes]:
    """Yield the parts of an fsspec `info` that change when the object does."""
    for key in _IDENTIFYING:
        if key in info:
            yield f"{key}={info[key]}".encode()


def _local_file(path: str) -> Iterator[bytes]:
    try:
        status = os.stat(path)
    except OSError as error:
        is_gone = isinstance(error, FileNotFoundError) and not os.path.islink(path)
        if is_gone or error.errno in (errno.EIO, errno.ESTALE, errno.ETIMEDOUT):
            raise  # whoever asks knows what that means, or it may be there again in a moment
        raise ImageError(
            f"a file of the image cannot be looked at: {error}; restore it, or remove the link"
        ) from error
    if not stat.S_ISREG(status.st_mode):
        check_regular_file(path, repr(os.path.dirname(path)))
    yield f"{status.st_size},{status.st_mtime_ns}".encode()
