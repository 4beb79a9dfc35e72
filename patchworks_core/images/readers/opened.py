"""What every reader returns, and the questions asked of all: axes, level and channel.

The letters of a file axis are those of `patchworks_core.tiles.grid.AXES`, or ``-`` for an axis of
size 1 that has no such name and is left out of the image.
"""

from __future__ import annotations

import operator
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from math import prod
from typing import Any

from patchworks_core.errors import ImageError
from patchworks_core.tiles.grid import AXES, SPATIAL_AXES
from patchworks_core.tiles.numbers import whole_number

DROPPED = "-"
"""Stands for a file axis of size 1 that is left out of the image."""

MAX_BYTES = 2**60
"""Of an image: an exabyte."""

MAX_CHUNK_BYTES = 2**32
"""Of a chunk; a page of 2 billion pixels of 16 bits."""

_PIXEL_KINDS = "buif"

_RULE = {1: "x", 2: "yx", 3: "zyx"}


@dataclass(frozen=True, slots=True)
class Gaps:
    """Chunks of an image that are not stored."""

    text: str
    """How many, in words."""

    is_suspicious: bool
    """Whether all are, or some among stored ones; a writer leaves out what is empty."""


def complete() -> None:
    """Say that nothing is missing: of a source without chunks that may be."""


@dataclass(frozen=True, slots=True)
class Opened:
    """An image as its file stores it: every channel, axes in file order."""

    pixels: Any
    """Has `shape`, `dtype` and slicing by a tuple of slices."""

    axes: str
    """One letter per axis of `pixels`: ``tczyx`` or ``-``."""

    format: str
    """What the source is, in words."""

    stamp: Callable[[], Iterable[bytes]]
    """Gives what identifies the content: sizes and times of files, or the bytes themselves."""

    chunks: tuple[int, ...] | None = None
    """Pixels of a storage chunk per file axis, where the source has chunks."""

    channel_names: tuple[str, ...] = ()
    """Names along the channel axis; empty where the file names none."""

    pixel_size: dict[str, float] = field(default_factory=dict)
    """Distance between pixel centres, per axis the metadata speaks of."""

    unit: dict[str, str] = field(default_factory=dict)
    """Unit of `pixel_size` and `translation`, an OME-NGFF word where there is one."""

    translation: dict[str, float] = field(default_factory=dict)
    """Place of the first pixel, per axis the metadata speaks of."""

    level: int = 0
    """Resolution that is open; 0 is full."""

    n_levels: int = 1
    """Resolutions the source has."""

    is_label_image: bool = False
    """Whether the metadata say that pixels are the ids of objects."""

    notes: tuple[str, ...] = ()
    """What was assumed where the file leaves a choice, in words."""

    gaps: Callable[[], Gaps | None] = complete
    """Counts the chunks that are not stored; None where all are."""


def file_axes(
    names: Sequence[str] | None, shape: Sequence[int], override: str | None, where: str
) -> str:
    """Decide the letter of every file axis.

    Parameters
    ----------
    names : sequence of str, optional
        What the metadata calls the axes; None where it says nothing.
    shape : sequence of int
        Pixels per file axis.
    override : str, optional
        What the user says the axes are; wins over `names`.
    where : str
        The image, for messages.

    Returns
    -------
    str
        One letter per file axis: ``tczyx`` or ``-``.

    Raises
    ------
    ImageError
        If the axes cannot be known, or are not a set of axes patchworks can hold.

    Examples
    --------
    >>> file_axes(["Y", "X", "C"], (5, 6, 3), None, "an array")
    'yxc'
    >>> file_axes(["Q", "Y", "X"], (1, 5, 6), None, "an array")
    '-yx'
    >>> file_axes(None, (4, 5, 6), None, "an array")
    'zyx'
    """
    if not shape:
        raise ImageError(f"an image needs at least one axis, got a single value in {where}")
    if 0 in shape:
        raise ImageError(f"an image needs pixels, got shape {tuple(shape)!r} in {where}")
    if override is not None:
        letters = _checked_override(override, shape, where)
    elif names is None:
        letters = _axes_by_rule(shape, where)
    else:
        letters = _axes_by_name(names, shape, where)
    if not set(letters) & set(SPATIAL_AXES):
        raise ImageError(
            f"an image needs at least one axis of {SPATIAL_AXES!r}, got axes {letters!r} in "
            f"{where}; pass axes="
        )
    return letters


_ORIENTATIONS = {
    2: "mirrored left to right",
    3: "turned by 180 degrees",
    4: "mirrored top to bottom",
    5: "with rows for columns",
    6: "turned by 90 degrees to the right",
    7: "turned by 180 degrees, with rows for columns",
    8: "turned by 90 degrees to the left",
}
"""How an image is to be shown, by the number in TIFF and EXIF (TIFF 6.0, section 8)."""


def orientation_notes(orientation: object, url: str) -> tuple[str, ...]:
    """Say where an image is to be shown otherwise than it is stored, as its metadata have it.

    Examples
    --------
    >>> orientation_notes(1, "a.tif"), orientation_notes(None, "a.tif")
    ((), ())
    """
    how = _ORIENTATIONS.get(orientation) if isinstance(orientation, int) else None
    if how is None:
        return ()
    return (
        f"{url!r} says that it is to be shown {how} (Orientation {orientation}); it is read as it "
        "is stored, and so are its labels: turn it and save it anew where a viewer is to show both",
    )


def axes_notes(
    names: Sequence[str] | None, letters: str, override: str | None, where: str
) -> tuple[str, ...]:
    """Say what the axes of a file were taken for, where it does not say so itself.

    Examples
    --------
    >>> axes_notes("QYX", "zyx", "zyx", "a.tif")
    ("axes 'QYX' of 'a.tif' are taken for 'zyx', as axes= says",)
    >>> axes_notes(None, "zyx", None, "a.npy")
    ("axes of 'a.npy' are taken for 'zyx', as it names none; axes= says otherwise",)
    """
    if names is None:
        guessed = override is None and len(letters) > len("yx")
        text = (
            f"axes of {where!r} are taken for {letters!r}, as it names none; axes= says otherwise"
        )
        return (text,) if guessed else ()
    file_axes = "".join(names)
    if override is None or file_axes.lower().replace("s", "c") == letters:
        return ()
    return (f"axes {file_axes!r} of {where!r} are taken for {letters!r}, as axes= says",)


def are_axes(letters: object) -> bool:
    """Tell whether a text has letters of `AXES`, none twice.

    Examples
    --------
    >>> are_axes("ZYX"), are_axes("zzx"), are_axes("")
    (True, False, False)
    """
    if not isinstance(letters, str) or not letters:
        return False
    return set(letters.lower()) <= set(AXES) and len(set(letters.lower())) == len(letters)


def _checked_override(override: str, shape: Sequence[int], where: str) -> str:
    """Check what the user passed as axes=."""
    letters = override.lower()
    if not are_axes(override) or len(letters) != len(shape):
        raise ImageError(
            f"axes= needs one letter of {AXES!r} per axis of the file, in the order of the file, "
            f"none twice; got {override!r} for shape {tuple(shape)!r} in {where}"
        )
    return letters


_OF_A_PICTURE = 32
"""Pixels along the sides of an array that may be a picture in colour."""


def _axes_by_rule(shape: Sequence[int], where: str) -> str:
    """Name the axes of an array without metadata; never a channel or time axis."""
    if len(shape) not in _RULE:
        raise ImageError(
            f"the axes of {len(shape)} dimensions cannot be known without metadata, got shape "
            f"{tuple(shape)!r} in {where}; pass axes=, such as "
            f"{'tzyx' if len(shape) == 4 else 'tczyx'!r}"
        )
    if len(shape) == 3 and shape[-1] in (3, 4) and min(shape[:2]) >= _OF_A_PICTURE:
        raise ImageError(
            f"{shape[-1]} values at each of {shape[0]} x {shape[1]} pixels may be a picture in "
            f"colour or a thin volume, got shape {tuple(shape)!r} in {where}; say axes='yxc' (and "
            "channel=) or axes='zyx'"
        )
    return _RULE[len(shape)]


def _axes_by_name(names: Sequence[str], shape: Sequence[int], where: str) -> str:
    """Name the axes as the metadata does; what is unknown or comes twice must have size 1."""
    letters = [name.lower() if name.lower() in set(AXES) else DROPPED for name in names]
    for i, (letter, size) in enumerate(zip(letters, shape, strict=True)):
        if size == 1 and letters.count(letter) > 1:
            letters[i] = DROPPED
    unknown = [
        name
        for name, letter, size in zip(names, letters, shape, strict=True)
        if (letter == DROPPED and size > 1) or (letter != DROPPED and letters.count(letter) > 1)
    ]
    if unknown:
        raise ImageError(
            f"an axis longer than 1 needs a name of its own from {AXES!r}, got {unknown!r} among "
            f"axes {list(names)!r} of shape {tuple(shape)!r} in {where}; pass axes=, one letter "
            "per axis"
        )
    return "".join(letters)


def check_level(level: int, shapes: Sequence[tuple[int, ...]], where: str) -> None:
    """Raise ImageError unless `level` is one of the resolutions whose `shapes` are given."""
    whole_number("level", level, least=None, error=ImageError)
    if not 0 <= level < len(shapes):
        count = f"{len(shapes)} level" + "s" * (len(shapes) > 1)
        listed = ", ".join(f"{i}: {tuple(shape)!r}" for i, shape in enumerate(shapes))
        raise ImageError(f"no level {level!r} in {where}, which has {count} ({listed})")


def choose_scene(scene: str, names: Sequence[str], where: str) -> int:
    """Return the number of one of several images in one place, chosen by name or number.

    Raises
    ------
    ImageError
        If there is no such image, or the name is not of one alone.
    """
    if names.count(scene) == 1:
        return names.index(scene)
    if scene.isdecimal() and int(scene) < len(names):
        return int(scene)
    named = f", named {list(names)!r}" if any(names) else ""
    raise ImageError(f"no scene {scene!r} in {where}; its scenes are 0 to {len(names) - 1}{named}")


def check_size(shape: Sequence[int], chunks: Sequence[int], itemsize: int, where: str) -> None:
    """Raise ImageError where an image or a chunk of it is larger than anything can be.

    A chunk is decoded whole, so that its size is the memory it takes.
    """
    if prod(shape) * itemsize > MAX_BYTES:
        raise ImageError(
            f"an image may have {MAX_BYTES} bytes, got shape {tuple(shape)!r} in {where}; correct "
            "its metadata"
        )
    if prod(chunks) * itemsize > MAX_CHUNK_BYTES:
        raise ImageError(
            f"a chunk is decoded whole and may have {MAX_CHUNK_BYTES} bytes, got chunks "
            f"{tuple(chunks)!r} of {itemsize} bytes a pixel in {where}; save it in smaller chunks"
        )


def check_dtype(dtype: Any, where: str) -> None:
    """Raise ImageError unless pixels are numbers or booleans."""
    if getattr(dtype, "kind", "?") not in _PIXEL_KINDS or dtype.fields is not None:
        raise ImageError(
            f"pixels must be bool, integers or floats, got {str(dtype)!r} in {where}; convert them"
        )


def choose_channel(channel: int | str | None, opened: Opened, where: str) -> int | None:
    """Return the number of the channel to read, None where there is no choice or it is all.

    Raises
    ------
    ImageError
        If there is no such channel.
    """
    if "c" not in opened.axes:
        if channel is None or (channel == 0 and not isinstance(channel, str)):
            return None
        raise ImageError(
            f"channel={channel!r} needs a channel axis, got axes "
            f"{opened.axes.replace(DROPPED, '')!r} in {where}; leave channel out, or say with "
            "axes= which axis is 'c'"
        )
    if channel is None:
        return None
    names = opened.channel_names
    n_channels = int(opened.pixels.shape[opened.axes.index("c")])
    available = f"0 to {n_channels - 1}" + (f", named {list(names)!r}" if names else ", unnamed")
    if isinstance(channel, str):
        if names.count(channel) == 1:
            return names.index(channel)
        count = "no" if channel not in names else "more than one"
        raise ImageError(f"{count} channel {channel!r} in {where}; its channels are {available}")
    number = operator.index(channel)
    # A channel may be called by its wavelength, which settings and commands read as a number.
    if number >= n_channels and names.count(str(number)) == 1:
        return names.index(str(number))
    if not 0 <= number < n_channels:
        raise ImageError(f"no channel {number} in {where}; its channels are {available}")
    return number
