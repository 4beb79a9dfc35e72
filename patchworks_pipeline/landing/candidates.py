"""Acquisitions in the landing folder: where each lies, and the partition key it gets.

A landing folder is read by glob patterns, or by a template whose fields make the key. An OME-NGFF
plate gives one acquisition per field, what bioformats2raw wrote one per series, a set of
OME-TIFF files one per image. Whether one is complete is the business of `arrivals`.
"""

import fnmatch
import re
from collections.abc import Container, Iterator, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache
from typing import Any

from patchworks_core.errors import ImageError, PlanError
from patchworks_core.files.locations import filesystem, info_stamp, is_remote
from patchworks_core.files.storage import as_path
from patchworks_core.images.readers.sources import list_images
from patchworks_core.images.readers.tiff import other_files
from patchworks_pipeline.image_faults import ImageFaults
from patchworks_pipeline.landing.opening import ALL, DEFAULT, Opening
from patchworks_pipeline.partitions import SUFFIXES, image_key, suffix_of
from patchworks_pipeline.records import Acquisition

_FIELD = re.compile(r"\{([A-Za-z_][A-Za-z0-9_]*)\}")

_ZARR_SUFFIX = ".zarr"

_TIFF_SUFFIXES = (".tif", ".tiff")


@dataclass(frozen=True, slots=True)
class Candidate:
    """Something in the landing folder that would be an image, once it is complete."""

    url: str
    """Path or URL."""

    name: str
    """Path below the landing folder; what people are shown."""

    key: str
    """Partition key; empty where none can be made of the name."""

    is_folder: bool
    """True for Zarr."""

    marker: str | None = None
    """Path or URL of the file that says the acquisition is complete; None where none is asked."""

    opening: Opening = DEFAULT
    """How it is opened."""

    others: tuple[str, ...] = ()
    """Paths of the other files of a set; it is complete when all are there."""

    version: tuple[bytes, ...] = ()
    """What the listing says of a file: its size and time of change."""

    n_bytes: int | None = None
    """Size of the file; None for a folder."""

    is_urgent: bool = False
    """Whether it goes before others."""

    def acquisition(self) -> Acquisition:
        """Return its record, as the settings say."""
        return replace(self.opening.acquisition(self.url), priority=int(self.is_urgent))


@dataclass(frozen=True, slots=True)
class LandingLayout:
    """How a landing folder is laid out."""

    landing: str
    """Folder or fsspec URL."""

    patterns: tuple[str, ...] = ()
    """Globs relative to `landing`, such as ``*.tif`` or ``*/*.ome.zarr``; none: all formats."""

    template: str = ""
    """Instead of patterns, such as ``{plate}/{well}/{field}.ome.tif``; the fields make the key."""

    marker: str = ""
    """Name of the file that marks one as complete, such as ``{name}.done``; empty: none."""

    openings: tuple[Opening, ...] = ()
    """How images are opened: the first that fits the name counts."""

    urgent: str = ""
    """Folder below `landing`, laid out as that, of what goes before others; empty: none."""

    def __post_init__(self) -> None:
        if self.template and not _FIELD.search(self.template):
            raise PlanError(
                f"a landing template must name fields in braces, got {self.template!r}; for "
                "example '{plate}/{well}/{field}.ome.tif'"
            )
        if self.marker and not {"{name}", "{stem}"} & set(re.findall(r"\{\w+\}", self.marker)):
            raise PlanError(
                f"a marker must contain {{name}} or {{stem}}, got {self.marker!r}; for example "
                "'{name}.done'"
            )


def check_landing(layout: LandingLayout) -> None:
    """Raise ImageError where a landing folder of this machine does not exist."""
    if not is_remote(layout.landing) and not as_path(layout.landing).is_dir():
        raise ImageError(
            f"the landing folder {layout.landing!r} does not exist; mount its disk, make it, or "
            "correct source.landing in patchworks.yaml"
        )


def find_candidates(
    layout: LandingLayout, *, taken: Container[str] = (), faults: ImageFaults | None = None
) -> list[Candidate]:
    """Return what lies in a landing folder: what is urgent, and then the others, each by path.

    Parameters
    ----------
    layout : LandingLayout
    taken : container of str
        URLs of images that hold no others; their metadata are not read again.
    faults : ImageFaults
        Is told of a folder or file that cannot be looked into, and the others are returned.

    Returns
    -------
    list of Candidate
        Two may have the same key. A folder that does not exist holds none.
    """
    faults = faults or ImageFaults(lambda words: None)
    by_name = _by_name(layout, faults)
    candidates: list[Candidate] = []
    for name in sorted(by_name, key=lambda name: (not by_name[name].is_urgent, name)):
        whole = by_name[name]
        opening = _opening(layout, whole.name)
        if opening.series not in (None, ALL):
            candidates.append(_within(whole, f"#{opening.series}", opening, whole.key))
        elif opening.series == ALL or whole.others or (whole.is_folder and whole.url not in taken):
            with faults.about(name):
                candidates += _images_of(whole, layout)
        else:
            candidates.append(replace(whole, opening=opening))
    return candidates


def _by_name(layout: LandingLayout, faults: ImageFaults) -> dict[str, Candidate]:
    """Return the files and folders that match, by path; of a set the first one."""
    folder = str(as_path(layout.landing))
    fs, root = filesystem(folder)
    # Object stores cache listings, and would never show what landed since.
    fs.invalidate_cache()
    patterns = [layout.template] if layout.template else layout.patterns
    patterns = patterns or [f"*{suffix}" for suffix in SUFFIXES]
    by_name: dict[str, Candidate] = {}
    urgent = f"{layout.urgent}/" if layout.urgent else ""
    if urgent:
        patterns = [*patterns, *(urgent + pattern for pattern in patterns)]
    for parts in ([_regex(part) for part in pattern.split("/")] for pattern in patterns):
        for path, entry, fields in _match(fs, root.rstrip("/"), parts, {}, faults):
            is_folder = entry["type"] == "directory"
            name = path[len(root.rstrip("/")) + 1 :]
            if name in by_name or (is_folder and not name.endswith(_ZARR_SUFFIX)):
                continue
            url = f"{folder.rstrip('/')}/{name}"
            is_urgent = bool(urgent) and name.startswith(urgent)
            of_key = name.removeprefix(urgent) if is_urgent else name
            key = _key("/".join(fields.values()) if layout.template else of_key)
            marker = _marker(layout.marker, url)
            version = () if is_folder else tuple(info_stamp(entry))
            by_name[name] = Candidate(
                url,
                name,
                key,
                is_folder,
                marker,
                version=version,
                n_bytes=None if is_folder else entry.get("size"),
                is_urgent=is_urgent,
            )
    return by_name if is_remote(folder) else _with_sets(by_name)


def _with_sets(candidates: dict[str, Candidate]) -> dict[str, Candidate]:
    """Return the candidates with one in place of all the files of a set: the first by name."""
    whole = dict(candidates)
    for name in sorted(candidates):
        candidate = whole.get(name)
        if candidate is None or not name.lower().endswith(_TIFF_SUFFIXES):
            continue
        others = _set_of(candidate.url, candidate.version)[1]
        if not others:
            continue
        folder, _, _ = candidate.url.rpartition("/")
        top, _, _ = name.rpartition("/")
        whole[name] = replace(candidate, others=tuple(f"{folder}/{other}" for other in others))
        for other in others:
            whole.pop(f"{top}/{other}" if top else other, None)
    return whole


@lru_cache(maxsize=100_000)
def _set_of(url: str, version: tuple[bytes, ...]) -> tuple[int, tuple[str, ...]]:
    """Return how many images a set of TIFF has, and its other files; read once per version."""
    try:
        n_images, names = other_files(url)
    except ImageError:
        return 1, ()  # half-written, or damaged: opening it will say why
    is_set = all("/" not in name and name != ".." for name in names)
    return (n_images, names) if is_set else (1, ())


@lru_cache(maxsize=10_000)
def _listed(url: str, version: tuple[bytes, ...]) -> list[str]:
    """Return the images of a file, read once per version."""
    return list_images(url)


def _opening(layout: LandingLayout, name: str, default: Opening = DEFAULT) -> Opening:
    return next((opening for opening in layout.openings if opening.fits(name)), default)


def _images_of(whole: Candidate, layout: LandingLayout) -> list[Candidate]:
    """Return the images that a folder or file names; itself where it names none.

    What it names and is not written yet is none yet. Where its metadata are half-written or not
    valid, opening it will say why.
    """
    opening = _opening(layout, whole.name)
    try:
        if whole.others:  # which need not be there yet
            n_images, _ = _set_of(whole.url, whole.version)
            urls = [f"{whole.url}#{i}" for i in range(n_images)] if n_images > 1 else [whole.url]
        else:
            urls = _listed(whole.url, whole.version) if whole.version else list_images(whole.url)
    except ImageError:
        urls = [whole.url]
    inside = [url.removeprefix(whole.url) for url in urls]
    if inside == [""]:
        return [replace(whole, opening=opening)]
    return [
        _within(
            whole,
            path,
            _opening(layout, whole.name + path, opening),
            f"{whole.key}_{_key_within(path)}",
        )
        for path in inside
    ]


def _within(whole: Candidate, path: str, opening: Opening, key: str) -> Candidate:
    """Return one of the images in a folder or file."""
    return replace(whole, url=whole.url + path, name=whole.name + path, key=key, opening=opening)


def _key_within(path: str) -> str:
    """Return what a path below a folder adds to its key.

    Examples
    --------
    >>> _key_within("/B/03/0"), _key_within("/1"), _key_within("#2")
    ('B03_0', '1', '2')
    """
    *folders, name = path.lstrip("/#").split("/")
    return _key("/".join(filter(None, ("".join(folders), name))))


def _regex(part: str) -> re.Pattern[str]:
    """Return the pattern of one path part, written as a glob or with fields in braces."""
    if not _FIELD.search(part):
        return re.compile(fnmatch.translate(part), re.IGNORECASE)
    text, end = "", 0
    for field in _FIELD.finditer(part):
        text += re.escape(part[end : field.start()]) + f"(?P<{field[1]}>[^/]+?)"
        end = field.end()
    return re.compile(text + re.escape(part[end:]) + r"\Z", re.IGNORECASE)


def _match(
    fs: Any,
    folder: str,
    parts: Sequence[re.Pattern[str]],
    fields: dict[str, str],
    faults: ImageFaults,
    *,
    is_landing: bool = True,
) -> Iterator[tuple[str, dict[str, Any], dict[str, str]]]:
    """Yield path, listing, and the fields of what matches below a folder."""
    try:
        entries = fs.ls(folder or "/", detail=True)
    except (FileNotFoundError, NotADirectoryError):
        return  # not made yet, or taken away while we looked
    except OSError:
        if is_landing:
            raise
        with faults.about(folder):  # one folder of many
            raise
        return
    for entry in entries:
        path = entry["name"].rstrip("/")
        name = path.rsplit("/", 1)[-1]
        match = parts[0].match(name)
        if name.startswith(".") or match is None:
            continue
        is_folder = entry["type"] == "directory"
        named = {**fields, **match.groupdict()}
        if len(parts) == 1:
            yield path, entry, named
        elif is_folder:
            yield from _match(fs, path, parts[1:], named, faults, is_landing=False)


def _key(name: str) -> str:
    """Return the key of a path below the landing folder: its parts joined, made legal."""
    try:
        return image_key(name.replace("/", "_"))
    except PlanError:
        return ""


def _marker(pattern: str, url: str) -> str | None:
    """Return the marker of an acquisition, beside it."""
    if not pattern:
        return None
    folder, _, name = url.rpartition("/")
    stem = name.removesuffix(suffix_of(name))
    return f"{folder}/{pattern.replace('{name}', name).replace('{stem}', stem)}"
