"""Which acquisitions have arrived: complete, readable, and not taken before.

1. `look` compares every candidate with what was seen at earlier looks and says which have been
   still for long enough, or carry their marker.
2. `why_unreadable` opens one without reading pixels.
3. The `Ledger` remembers which version of what was taken, the `Quarantine` what was refused.

A look does not wait: what was seen when is handed back, and given again to the next look.
"""

import json
import os
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from hashlib import blake2b
from types import MappingProxyType
from typing import Any

import imageio.v3 as iio
from upath import UPath

from patchworks_core.errors import ImageError, PlanError
from patchworks_core.files.locations import (
    file_stamp,
    filesystem,
    folder_stamp,
    is_remote,
    remote_folder_stamp,
    split_scene,
)
from patchworks_core.files.records import mapping_of, read_mapping, sealed, unsealed
from patchworks_core.files.storage import remove, write_text
from patchworks_core.images.readers import raster
from patchworks_core.images.readers.node_paths import METADATA_FILES
from patchworks_pipeline.landing.candidates import Candidate
from patchworks_pipeline.records import Acquisition

MAX_PENDING = 1000
"""Candidates watched at once; the rest wait their turn, so that the cursor stays small."""

LOOKED_AGAIN = 5
"""Taken Zarr folders whose every file is looked at again per look, in turn."""

Looks = Mapping[str, tuple[str, int]]
"""Per candidate: signature, and the second since when it is the same."""

_GONE = (FileNotFoundError, NotADirectoryError)


@dataclass(frozen=True, slots=True)
class Version:
    """One state of the content of an acquisition."""

    signature: str
    """Digest of names, sizes and times of change of all its files."""

    glance: str
    """The same of a Zarr folder's metadata files only: cheap, and told by most changes."""


@dataclass(frozen=True, slots=True)
class Arrival:
    """A candidate that is complete."""

    candidate: Candidate
    version: Version

    @property
    def name(self) -> str:
        """Of this version of the acquisition; a run key, and the name of a record.

        What is opened in another way is another version: it may be that this mends it.
        """
        opening = self.candidate.opening.digest
        return f"{self.candidate.key}-{self.version.signature}" + (opening and f"-{opening}")


@dataclass(frozen=True, slots=True)
class Look:
    """What one look at the landing folder found."""

    arrivals: list[Arrival]
    """Complete now, by path."""

    looks: dict[str, tuple[str, int]]
    """For the next look."""

    n_waiting: int
    """Candidates that are not complete yet, or wait for their turn."""

    faults: dict[str, Exception] = field(default_factory=dict)
    """Why a candidate could not be looked at, by name; it counts as waiting."""


@dataclass(slots=True)
class Ledger:
    """Which version of each acquisition was taken, by URL; on disk with a copy of itself."""

    path: UPath
    taken: dict[str, Version] = field(default_factory=dict)
    damage: str = ""
    """What is wrong with the files, in words; writing the ledger mends them."""

    keys: dict[str, str] = field(default_factory=dict)
    """Keys that images are registered under, by URL; empty where one could not be made out."""

    is_new: bool = False
    """True where there is no file."""

    @property
    def lacks_keys(self) -> bool:
        """True where it may not say under which key an image was registered before."""
        is_of_before = not self.taken.keys() <= self.keys.keys()
        return self.is_new or bool(self.damage) or is_of_before

    def recall(self, registered: Mapping[str, Sequence[str]], own: Mapping[str, str]) -> None:
        """Enter the keys that images have in the store, and of several the one that is its own.

        Parameters
        ----------
        registered : mapping of str to sequence of str
            Keys by URL.
        own : mapping of str to str
            The key that the name makes now, by URL, of all that lies in the landing folder.
        """
        for url in {**own, **self.taken}:
            keys = registered.get(url)
            if keys and not self.keys.get(url):
                self.keys[url] = own[url] if own.get(url) in keys else keys[0]
        for url in self.taken:
            self.keys.setdefault(url, "")

    @classmethod
    def read(cls, path: UPath) -> "Ledger":
        """Read a ledger, or its copy where it is damaged; one that is not there is empty.

        Nothing is taken twice where both are damaged: images that are planned are entered again,
        and runs are requested under the name of the version.

        Raises
        ------
        PlanError
            If a file is there and cannot be read.
        """
        copy = _copy_of(path)
        records = [_read_ledger(place) for place in (path, copy)]
        if records == [None, None]:
            return cls(path, is_new=True)
        (first, is_whole), (second, copy_is_whole) = (record or ({}, False) for record in records)
        if is_whole:
            return cls._of(path, first)
        if copy_is_whole:
            damage = f"{path} is damaged or lost; its copy {copy.name!r} is used"
            return cls._of(path, second, damage)
        return cls._of(
            path,
            {**second, **first},
            f"{path} and its copy are damaged; what they no longer say is made out from the images "
            "that are planned, and from the runs there were",
        )

    @classmethod
    def _of(cls, path: UPath, entries: Mapping[str, dict[str, str]], damage: str = "") -> "Ledger":
        """Return the ledger that says what stands in a file."""
        taken = {
            url: Version(entry["signature"], entry["glance"])
            for url, entry in entries.items()
            if "signature" in entry
        }
        keys = {url: entry["key"] for url, entry in entries.items() if "key" in entry}
        return cls(path, taken, damage, keys)

    def write(self) -> None:
        """Write the ledger, its copy first."""
        record = {
            url: {
                **(asdict(self.taken[url]) if url in self.taken else {}),
                **({"key": self.keys[url]} if url in self.keys else {}),
            }
            for url in sorted({*self.taken, *self.keys})
        }
        text = json.dumps(sealed(record), indent=0) + "\n"
        write_text(_copy_of(self.path), text)
        write_text(self.path, text)


def _copy_of(path: UPath) -> UPath:
    return path.with_name(f"{path.name}.copy")


def _read_ledger(path: UPath) -> tuple[dict[str, dict[str, str]], bool] | None:
    """Return what one file still says, and whether that is all it said; None without a file."""
    try:
        record = mapping_of(path.read_bytes())
    except _GONE:
        return None
    except OSError as error:
        raise PlanError(
            f"{path} says which acquisitions were taken and cannot be read ({error}); correct its "
            "permissions, or remove it if it is no file"
        ) from error
    content = unsealed(record)
    if content is None:  # of what is there, any could be wrong
        return {}, False
    entries = {url: entry for url, entry in content.items() if _is_entry(entry)}
    return entries, len(entries) == len(content)


def _is_entry(record: Any) -> bool:
    """Tell whether this is a version, a key, or both."""
    return (
        isinstance(record, dict)
        and record.keys() - {"key"} in ({"signature", "glance"}, set())
        and all(isinstance(value, str) for value in record.values())
    )


@dataclass(frozen=True, slots=True)
class Refusal:
    """An acquisition that is not taken."""

    name: str
    """Of the version; see `Arrival.name`."""

    url: str

    key: str
    """Partition key that it would have; empty where none can be made of its name."""

    reason: str

    @classmethod
    def of_record(cls, name: str, record: Mapping[str, Any]) -> "Refusal":
        """Return what a record says of a version; empty where it does not."""
        return cls(name, *(str(record.get(field, "")) for field in ("url", "key", "reason")))


UNTOLD = ".untold"
"""Folder with a file per refusal that is not known to have been reported."""


@dataclass(frozen=True, slots=True)
class Quarantine:
    """Acquisitions that were refused, one record per version."""

    path: UPath

    def names(self) -> frozenset[str]:
        """Return the versions that were refused; see `Arrival.name`."""
        try:
            return frozenset(
                entry.name.removesuffix(".json")
                for entry in self.path.iterdir()
                if not entry.name.startswith(".")
            )
        except _GONE:
            return frozenset()
        except OSError as error:
            raise PlanError(
                f"{self.path} says which acquisitions were refused and cannot be read ({error}); "
                "correct its permissions"
            ) from error

    def refuse(self, arrival: Arrival, reason: str) -> None:
        """Record why a version was refused; another one will be tried again."""
        candidate = arrival.candidate
        self.record(arrival.name, reason, candidate.url, candidate.key, arrival.version.signature)

    def record(self, name: str, reason: str, url: str, key: str, signature: str) -> None:
        """Record the same of a version by its name."""
        record = {"url": url, "key": key, "signature": signature, "reason": reason}
        write_text(self.path / UNTOLD / name, "")  # first: a record without it is never told of
        write_text(self.path / f"{name}.json", json.dumps(record, indent=2) + "\n")

    def untold(self) -> list[Refusal]:
        """Return what was refused and is not known to have been reported."""
        try:
            names = sorted(entry.name for entry in (self.path / UNTOLD).iterdir())
        except _GONE:
            return []
        refusals = []
        for name in names:
            record = read_mapping(self.path / f"{name}.json")
            if record is not None:
                refusals.append(Refusal.of_record(name, record))
        return refusals

    def note_told(self, names: Iterable[str]) -> None:
        """Note that refusals were reported."""
        for name in names:
            remove(self.path / UNTOLD / name)

    def release(self, name: str) -> str:
        """Return how a version that was refused is tried again, in words."""
        return f"it is tried again when it changes, or once {self.path / name}.json is removed"

    def reasons(self) -> dict[str, str]:
        """Return why, by version."""
        return {refusal.name: refusal.reason for refusal in self.refusals()}

    def refusals(self) -> list[Refusal]:
        """Return all that were refused, by the name of their version."""
        return [self._refusal(name) for name in sorted(self.names())]

    def _refusal(self, name: str) -> Refusal:
        path = self.path / f"{name}.json"
        try:
            refusal = Refusal.of_record(name, read_mapping(path) or {})
        except OSError as error:
            return Refusal(name, "", "", f"why cannot be read from {path}: {error}")
        damaged = f"the record {path} is damaged; remove it to try again"
        return refusal if refusal.reason else replace(refusal, reason=damaged)


@dataclass(frozen=True, slots=True)
class Watch:
    """When a candidate counts as complete, and how many are taken at once."""

    settle_seconds: float
    max_arrivals: int


def look(
    candidates: Sequence[Candidate],
    watch: Watch,
    *,
    now: int,
    looks: Looks,
    ledger: Ledger,
    refused: frozenset[str] = frozenset(),
    under_way: Mapping[str, Version] = MappingProxyType({}),
    again: Iterable[str] = (),
) -> Look:
    """Say which candidates are complete and were not taken in this version.

    Parameters
    ----------
    candidates : sequence of Candidate
    watch : Watch
    now : int
        Seconds since 1970.
    looks : mapping
        What the look before handed back.
    ledger : Ledger
        Its glances are brought up to date where metadata were touched and nothing changed.
    refused : frozenset of str
        Versions in quarantine.
    under_way : mapping of str to Version
        What runs are at, by URL.
    again : iterable of str
        URLs of taken acquisitions to look at in full.

    Returns
    -------
    Look

    Notes
    -----
    A marker says that a new acquisition is complete. It is still there when the acquisition is
    written over, so a later version must also be still.
    """
    arrivals: list[Arrival] = []
    still: dict[str, tuple[str, int]] = {}
    faults: dict[str, Exception] = {}
    n_waiting = 0
    in_full = set(again)
    for candidate in candidates:
        taken, before = ledger.taken.get(candidate.url), looks.get(candidate.name)
        at_work = under_way.get(candidate.url)
        try:
            is_marked = candidate.marker is None or _exists(candidate.marker)
            glance = glance_at(candidate)
            glances = {version.glance for version in (taken, at_work) if version}
            if before is None and glance in glances and candidate.url not in in_full:
                continue
            signature = glance if not candidate.is_folder else signature_of(candidate)
        except (OSError, ImageError) as error:  # a pipe and a link that leads nowhere are no files
            faults[candidate.name] = error
            signature = glance = None
        except UnicodeError:
            faults[candidate.name] = ImageError(
                f"the name {candidate.name!r} is not in UTF-8; rename the file"
            )
            signature = glance = None
        if signature is None or glance is None:
            n_waiting += 1
            continue
        version = Version(signature, glance)
        arrival = Arrival(candidate, version)
        if taken and taken.signature == signature:
            ledger.taken[candidate.url] = version
            continue
        if arrival.name in refused or (at_work and at_work.signature == signature):
            continue
        # What was seen later than now was seen before the clock was set back.
        since = min(before[1], now) if before and before[0] == signature else now
        is_complete = now - since >= watch.settle_seconds
        if candidate.marker:
            is_complete = is_marked and (is_complete or taken is None)
        if is_complete and len(arrivals) < watch.max_arrivals:
            arrivals.append(arrival)
            continue
        n_waiting += 1
        if len(still) < MAX_PENDING:
            still[candidate.name] = (signature, since)
    return Look(arrivals, still, n_waiting, faults)


def signature_of(candidate: Candidate) -> str | None:
    """Return the digest of all files of a candidate; None where it is gone, or no image yet."""
    return _digest_of(lambda: _stamps(candidate, in_full=True))


def glance_at(candidate: Candidate) -> str | None:
    """Return the digest of a file, or of the metadata files of a Zarr folder; None as above."""
    return _digest_of(lambda: _stamps(candidate, in_full=False))


def _stamps(candidate: Candidate, *, in_full: bool) -> Iterator[bytes]:
    """Yield what identifies a candidate; nothing where a folder has no metadata."""
    place, _ = split_scene(candidate.url)
    if not candidate.is_folder:
        for file in (place, *candidate.others):
            yield from file_stamp(file)
        return
    metadata = _metadata(place)
    if not metadata:
        return
    if not in_full:
        for url in (*metadata, *_metadata(f"{place}/0")):
            yield from file_stamp(url)
    elif is_remote(place):
        fs, path = filesystem(place)
        yield from remote_folder_stamp(fs, path, METADATA_FILES)
    else:
        yield from folder_stamp(place)


def _metadata(folder: str) -> list[str]:
    """Return the Zarr metadata files that are in a folder."""
    return [url for url in (f"{folder}/{name}" for name in METADATA_FILES) if _exists(url)]


def _digest_of(stamps: Callable[[], Iterator[bytes]]) -> str | None:
    digest, is_empty = blake2b(digest_size=8), True
    try:
        for part in stamps():
            is_empty = False
            digest.update(len(part).to_bytes(8, "little") + part)
    except _GONE:
        return None  # taken away while we looked
    return None if is_empty else digest.hexdigest()


def _exists(url: str) -> bool:
    if not is_remote(url):
        return os.path.exists(url)
    fs, path = filesystem(url)
    return bool(fs.exists(path))


def why_unreadable(acquisition: Acquisition) -> str | None:
    """Return why an image cannot be opened, in words; None where it can. No pixels are read.

    Raises
    ------
    FileNotFoundError, ConnectionError, TimeoutError
        If it could not be tried now.
    """
    url = acquisition.url
    try:
        if url.lower().endswith(tuple(raster.FORMATS)):
            # Opening one decodes it whole; its header is all a sensor has time for.
            fs, path = filesystem(split_scene(url)[0])
            with fs.open(path, "rb") as file:
                iio.improps(file, plugin="pillow", index=0)
        else:
            acquisition.open()
    except (*_GONE, ConnectionError, TimeoutError):
        raise
    except ImageError as error:
        return str(error)
    except Exception as error:  # a damaged file may raise anything; it is handed on, in words
        return f"{type(error).__name__}: {error}; the file at {url!r} may be damaged"
    return None


def looks_to_json(looks: Looks) -> dict[str, Any]:
    """Return what was seen as JSON has it."""
    return {name: list(entry) for name, entry in looks.items()}


def looks_from_json(record: Mapping[str, Any]) -> dict[str, tuple[str, int]]:
    """Read what `looks_to_json` gave."""
    return {name: (str(signature), int(since)) for name, (signature, since) in record.items()}
