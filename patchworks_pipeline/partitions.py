"""The two dynamic partition sets, and the names of their keys.

``images`` holds one key per acquisition; ``tiles`` holds ``<image>/<tile block>``, all blocks of an
image added in one call so that they are one contiguous range.
"""

import re
import unicodedata
from collections.abc import Iterable
from hashlib import blake2b

import dagster as dg

from patchworks_core.errors import PlanError

images = dg.DynamicPartitionsDefinition(name="images")
"""One key per acquisition."""

tiles = dg.DynamicPartitionsDefinition(name="tiles")
"""One key per tile block of every image."""

NOT_BY_KEY = dg.SpecificPartitionsPartitionMapping([])
"""Mapping of the arrows between `tiles` and `images`.

The lineage shows the arrow and backfills of either side work; which tiles make an image complete is
decided by the stage's own counts. Custom mappings would be ignored by the daemon.
"""

IMAGE = "patchworks/image"
"""Tag of a run for one image."""

MAX_KEY_LENGTH = 150
"""Characters of a name that are kept in its key; a folder's name, with endings, has 255 bytes."""

_LEGAL = re.compile(r"[^A-Za-z0-9._-]+")

SUFFIXES = (
    ".ome.zarr.zip",
    ".zarr.zip",
    ".ozx",
    ".ome.zarr",
    ".ome.tiff",
    ".ome.tif",
    ".zarr",
    ".tiff",
    ".tif",
    ".svs",
    ".png",
    ".jpeg",
    ".jpg",
    ".bmp",
    ".npy",
    ".czi",
    ".lif",
    ".nd2",
)
"""Endings of what can be read; the longer ones first."""


def image_key(location: str) -> str:
    """Return the partition key of an acquisition: its file name, made legal.

    Letters that ASCII has not are written as those they are made of, or left out, and a digest of
    the name keeps it apart from others. The same is done where a name is too long for a folder.

    Examples
    --------
    >>> image_key("landing/plate 1/B03.ome.tif"), image_key("a.lif#2")
    ('B03', 'a_2')
    >>> image_key("Gewebe_ä.tif"), image_key("Gewebe_â.tif"), image_key("細胞 7.tif")
    ('Gewebe_a-d8c170e4', 'Gewebe_a-7f1e5124', '7-59057345')
    """
    name = location.replace("\\", "/").rstrip("/").rsplit("/", 1)[-1]
    file, mark, scene = name.rpartition("#")
    if mark and suffix_of(file):
        stem = f"{file.removesuffix(suffix_of(file))}_{scene}"
    else:
        stem = name.removesuffix(suffix_of(name))
    stem = unicodedata.normalize("NFC", stem)  # file systems differ in how they write 'ä'
    plain = unicodedata.normalize("NFKD", stem)
    # Dagster reserves '...' for ranges of keys, and '/' parts image and tile here.
    key = re.sub(r"\.{2,}", ".", _LEGAL.sub("_", _without_accents(plain))).strip("._-")
    if len(key) > MAX_KEY_LENGTH or not stem.isascii():
        digest = blake2b(stem.encode(errors="surrogatepass"), digest_size=4).hexdigest()
        key = f"{key[:MAX_KEY_LENGTH]}-{digest}".lstrip("-")
    if not key:
        raise PlanError(f"no partition key can be made of the name {name!r}; rename the file")
    return key


def _without_accents(text: str) -> str:
    """Return a decomposed text without the marks of its letters, and what is no ASCII as blank."""
    letters = (letter for letter in text if not unicodedata.combining(letter))
    return "".join(letter if letter.isascii() else " " for letter in letters).strip()


def suffix_of(name: str) -> str:
    """Return the ending of a file name that says its format, as it is written; else nothing.

    Examples
    --------
    >>> suffix_of("B03.OME.tif")
    '.OME.tif'
    """
    suffix = next((s for s in SUFFIXES if name.lower().endswith(s)), "")
    return name[len(name) - len(suffix) :] if suffix else ""


def check_image_key(key: str) -> str:
    """Return `key` if it may name an image.

    Raises
    ------
    PlanError
        If it has characters that partition keys or folders cannot have.
    """
    if _LEGAL.search(key) or ".." in key or not key.strip("._-"):
        raise PlanError(
            f"{key!r} cannot name an image: use letters, digits, '_', '-' and single '.'"
        )
    return key


def tile_keys(image: str, blocks: Iterable[str]) -> list[str]:
    """Return the partition keys of tile blocks of an image."""
    return [f"{image}/{block}" for block in blocks]


def split_tile_key(key: str) -> tuple[str, str]:
    """Return image and tile block of a partition key.

    Examples
    --------
    >>> split_tile_key("plate1_B03_0/y003x011")
    ('plate1_B03_0', 'y003x011')
    """
    image, separator, block = key.rpartition("/")
    if not separator:
        raise PlanError(f"{key!r} is not the key of a tile; tiles are called <image>/<tile block>")
    return image, block
