"""What is wrong with one image is said of that image, and the others go on.

Every loop over images runs through `ImageFaults.about`: sensors, schedules, retention, alerts, and
the commands that are about several images. Faults of the code are no faults of an image and pass.
"""

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

from patchworks_core.errors import (
    ImageError,
    PlanError,
    SegmentationError,
    StageError,
    TileOutputError,
)

IMAGE_FAULTS = (ImageError, PlanError, SegmentationError, StageError, TileOutputError, OSError)
"""What is raised where a record, a file or a key of one image is not as it must be."""

_FULL = ("no space left on device", "disk quota exceeded", "database or disk is full")
_READ_ONLY = ("read-only file system", "attempt to write a readonly database")
_DENIED = ("permission denied: ", "operation not permitted: ")
"""What operating systems and databases say of a place."""


class ImageFaults:
    """What is wrong with single images; each is said once, for as long as it stays the same.

    Parameters
    ----------
    say : callable
        Is told in words, such as the ``warning`` of a logger.
    record : mapping
        What `found` was at the last look, so that a sensor does not repeat itself.
    """

    def __init__(self, say: Callable[[str], object], record: object = None) -> None:
        self._say = say
        self._said: Mapping[object, object] = record if isinstance(record, Mapping) else {}
        self.found: dict[str, str] = {}
        """What is wrong, by image."""
        self._errors: list[BaseException] = []

    @contextmanager
    def about(self, image: str) -> Iterator[None]:
        """Say what is wrong with an image, and go on behind the block."""
        try:
            yield
        except IMAGE_FAULTS as error:
            self._errors.append(error)
            self.found[image] = words_of(error)
            if self._said.get(image) != self.found[image]:
                self._say(f"image {image!r}: {self.found[image]}")

    def raise_any(self) -> None:
        """End a run as failed, once the other images are done: with the error, or what all say."""
        if len(self._errors) == 1:
            raise self._errors[0]
        if self._errors:
            raise StageError("; ".join(f"image {key!r}: {why}" for key, why in self.found.items()))


def words_of(error: BaseException) -> str:
    """Return an error in one line, without the numbers of the operating system.

    Examples
    --------
    >>> words_of(FileNotFoundError(2, "No such file or directory", "a.tif"))
    "no such file or directory: 'a.tif'"
    """
    if isinstance(error, OSError) and error.strerror:
        words = error.strerror[:1].lower() + error.strerror[1:]
        place = "" if error.filename is None else f": {str(error.filename)!r}"
        return with_way_out(words + place)
    text = " ".join(str(error).split())
    return with_way_out(text) if text else type(error).__name__


def with_way_out(text: str) -> str:
    """Add what to do to words that say of a place that it is full, or not to be written to.

    Examples
    --------
    >>> with_way_out("no space left on device: 'a'")
    "no space left on device: 'a'; what was finished is kept: make room there and call again"
    """
    words = text.lower()
    if "make room" not in words and any(fault in words for fault in _FULL):
        return f"{text}; what was finished is kept: make room there and call again"
    if any(fault in words for fault in _READ_ONLY):
        return (
            f"{text}; name a place that can be written to (--home, --output, or store.root in "
            "patchworks.yaml)"
        )
    if any(fault in words for fault in _DENIED) and ";" not in words:
        return f"{text}; correct its permissions, or name another place"
    return text


def error_of_step(data: Any) -> Any:
    """Return the error that a step raised, out of those that Dagster put around it.

    What that error came from in its turn is left: a reader's ``DeflateError`` names no image.

    Parameters
    ----------
    data : StepFailureData
        Of the event, as Dagster has it.

    Returns
    -------
    SerializableErrorInfo or None
    """
    error = data.error
    while error is not None and error.cause is not None and _is_dagsters(error):
        error = error.cause
    return error


def _is_dagsters(error: Any) -> bool:
    return str(error.cls_name).startswith("Dagster")
