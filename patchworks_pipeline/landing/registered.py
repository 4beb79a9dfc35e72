"""Under which key each image of a store is registered: it keeps that key, whatever its name.

What a name makes of a key changes with the template of the landing folder, and changed with the
version of patchworks.
"""

from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from upath import UPath

from patchworks_core.errors import PlanError
from patchworks_pipeline.landing.arrivals import Ledger
from patchworks_pipeline.partitions import image_key
from patchworks_pipeline.records import ACQUISITION, Acquisition

LEDGER = ".landing.json"
"""Record in a store of what was taken from the landing folder."""

N_READERS = 16
"""Records that are read at once; on an object store each takes its time."""


def registered_keys(store: UPath) -> dict[str, list[str]]:
    """Return the keys of the images of a store, by URL; a damaged record has no part in it."""
    if not store.exists():
        return {}
    folders = [entry for entry in store.iterdir() if not entry.name.startswith(".")]
    keys: dict[str, list[str]] = {}
    with ThreadPoolExecutor(N_READERS) as readers:
        for folder, url in zip(folders, readers.map(_url_of, folders), strict=True):
            if url is not None:
                keys.setdefault(url, []).append(folder.name)
    return {url: sorted(of_url) for url, of_url in keys.items()}


def _url_of(folder: UPath) -> str | None:
    """Return where the image of a folder is."""
    path = folder / ACQUISITION
    try:
        return Acquisition.from_json(path.read_bytes(), where=str(path)).url
    except (OSError, PlanError):
        return None


def key_of(store: UPath, url: str) -> str:
    """Return the key of an image: the one that it was taken under, else what its name makes.

    Raises
    ------
    PlanError
        If it was not taken from the landing folder, and its name makes no key.
    """
    return _key_taken(store, url) or image_key(url)


def keys_of(store: UPath, url: str) -> list[str]:
    """Return the keys that an image may have, by its path or URL, the likely one first."""
    try:
        by_name = [image_key(url)]
    except PlanError:
        by_name = []
    taken = _key_taken(store, url)
    return [taken, *by_name] if taken else by_name


def _key_taken(store: UPath, url: str) -> str | None:
    """Return the key under which an image was taken from the landing folder."""
    place = url if "://" in url else str(Path(url).absolute())
    return Ledger.read(store / LEDGER).keys.get(place)
