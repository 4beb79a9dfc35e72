"""Operations by name, as settings and plans write them down.

One entry per operation, the first first; what stands behind the name are its arguments, the first
one alone or all by name::

    [{"median": 3}, {"subtract_background": {"radius": 25}}, {"flat_field": "flat.npy"}]
"""

from __future__ import annotations

import inspect
from collections.abc import Callable, Iterable, Mapping
from typing import Any

from patchworks_core.errors import ImageError, PlanError
from patchworks_core.images.image import Image, open_image
from patchworks_core.operations.background import subtract_background, white_tophat
from patchworks_core.operations.filters import clip_and_scale, gaussian, maximum, median, minimum
from patchworks_core.operations.operations import Operation
from patchworks_core.operations.processed import process_lazily
from patchworks_core.operations.shading import shading_correction
from patchworks_core.tiles.grid import SPATIAL_AXES
from patchworks_core.tiles.regions import Region

Entry = Mapping[str, Any]
"""One operation: its name, and its arguments."""


def flat_field(flat: str, dark: str | float | None = None, **options: Any) -> Operation:
    """Return the correction of uneven illumination, its fields read from files."""
    if isinstance(dark, str):
        dark = _whole(dark)
    return shading_correction(_whole(flat), dark, **options)


def _whole(location: str) -> Any:
    image = open_image(location, channel=None)
    return image.read(Region((0,) * image.ndim, image.shape))


OPERATIONS: Mapping[str, Callable[..., Operation]] = {
    "clip_and_scale": clip_and_scale,
    "flat_field": flat_field,
    "gaussian": gaussian,
    "maximum": maximum,
    "median": median,
    "minimum": minimum,
    "subtract_background": subtract_background,
    "white_tophat": white_tophat,
}
"""What an entry may name."""


def processed(image: Image, entries: Iterable[Entry]) -> Image:
    """Return an image as it is after operations; the image itself where there is none.

    Parameters
    ----------
    image : Image
    entries : iterable of mapping
        As `operations_of` reads them.

    Examples
    --------
    >>> import numpy as np
    >>> smooth = processed(open_image(np.eye(4, dtype="u1")), [{"maximum": 3}])
    >>> smooth.read(Region((0, 0), (1, 4)))
    array([[1, 1, 1, 0]], dtype=uint8)
    """
    operations = operations_of(entries)
    return process_lazily(image, *operations) if operations else image


def operations_of(entries: Iterable[Entry]) -> tuple[Operation, ...]:
    """Return the operations that entries name.

    Raises
    ------
    PlanError
        If an entry is none, names what is unknown, or has arguments that the operation has not.
    ImageError
        If an argument has a value that the operation cannot have, or a field cannot be read.
    """
    return tuple(_call(entry)() for entry in entries)


def check_operations(entries: Iterable[Entry]) -> None:
    """Raise as `operations_of` does, without reading the fields that entries name."""
    for entry in entries:
        call = _call(entry)
        if next(iter(entry)) != "flat_field":
            call()


def _call(entry: Entry) -> Callable[[], Operation]:
    """Return the call that makes an operation."""
    if not isinstance(entry, Mapping) or len(entry) != 1:
        raise PlanError(
            "an operation must be one name with its arguments, such as {median: 3}, got "
            f"{entry!r}"
        )
    ((name, arguments),) = entry.items()
    if name not in OPERATIONS:
        raise PlanError(
            f"there is no operation {name!r}; the operations are {sorted(OPERATIONS)!r}"
        )
    make = OPERATIONS[name]
    positional: tuple[Any, ...] = ()
    named: dict[str, Any] = {}
    if isinstance(arguments, Mapping) and not set(arguments) <= set(SPATIAL_AXES):
        named = dict(arguments)
    elif arguments is not None:
        positional = (arguments,)
    try:
        bound = inspect.signature(make).bind(*positional, **named)
    except TypeError as error:
        parameters = list(inspect.signature(make).parameters)
        raise PlanError(
            f"operation {name!r} cannot have the arguments {arguments!r}: {error}; its arguments "
            f"are {parameters!r}"
        ) from error

    def call() -> Operation:
        try:
            return make(*bound.args, **bound.kwargs)
        except TypeError as error:
            raise ImageError(
                f"operation {name!r} cannot have the arguments {arguments!r}: {error}"
            ) from error

    return call
