"""How the images of a landing folder are opened, where their files leave a choice."""

import fnmatch
import re
from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from hashlib import blake2b
from typing import Any

from patchworks_core.errors import ImageError, PlanError
from patchworks_core.images.image import DEFAULT_CHANNEL
from patchworks_core.images.readers.opened import are_axes
from patchworks_core.images.units import pixel_sizes
from patchworks_core.tiles.grid import AXES, SPATIAL_AXES
from patchworks_core.tiles.numbers import whole_number
from patchworks_pipeline.records import Acquisition

ALL = "all"
"""Every channel, or every image of a file."""


@dataclass(frozen=True, slots=True)
class Opening:
    """How the images are opened whose name matches a pattern."""

    match: str = "*"
    """Glob of paths below the landing folder, such as ``*.tif`` or ``plate1.zarr/*``."""

    series: int | str | None = None
    """Number or name of one of several images in a file, ``all`` for each; None is the first."""

    channel: int | str = DEFAULT_CHANNEL
    """Number or name of the channel to segment, ``all`` for each."""

    level: int = 0
    """Resolution, 0 is full."""

    axes: str | None = None
    """One letter of ``tczyx`` per axis of the file, in its order."""

    pixel_size: dict[str, float] | list[float] | float | None = None
    """Micrometers per pixel, over what the file says; as in `open_image`."""

    @classmethod
    def of(cls, record: Mapping[str, Any]) -> "Opening":
        """Read an entry of the settings.

        Raises
        ------
        PlanError
            If it has no pattern, or a field or value that is not allowed.
        """
        names = [field.name for field in fields(cls)]
        values = {name: value for name, value in record.items() if value is not None}
        if unknown := sorted(set(values) - set(names)):
            raise PlanError(f"has no field {unknown[0]!r}; the fields are {names!r}")
        if not isinstance(values.get("match"), str):
            raise PlanError("needs match, a glob such as '*.tif'")
        for name in ("series", "channel"):
            value = values.get(name, 0)
            if isinstance(value, bool) or not isinstance(value, (int, str)) or value in ("", -1):
                raise PlanError(f"needs a number, a name or 'all' for {name}")
        whole_number("level", values.get("level", 0), least=0, error=PlanError)
        if "axes" in values and not are_axes(values["axes"]):
            raise PlanError(f"needs one letter of {AXES!r} per axis of the file for axes")
        if "pixel_size" in values:
            size = values["pixel_size"]
            n_axes = len(size) if isinstance(size, list) else len(SPATIAL_AXES)
            try:
                pixel_sizes(size, SPATIAL_AXES[-n_axes:], "an image")
            except ImageError as error:
                raise PlanError(str(error)) from None
        return cls(**values)

    def fits(self, name: str) -> bool:
        """Tell whether the pattern matches a path below the landing folder."""
        return fnmatch.fnmatch(name.lower(), self.match.lower())

    def acquisition(self, url: str) -> Acquisition:
        """Return the record of an image that is opened so."""
        channel = None if self.channel == ALL else self.channel
        return Acquisition(
            url,
            channel=channel,
            level=self.level,
            axes=self.axes,
            pixel_size=self.pixel_size,
        )

    @property
    def digest(self) -> str:
        """Of what is not as it is by default; empty where all is."""
        values = {k: v for k, v in asdict(self).items() if v != getattr(DEFAULT, k)}
        values.pop("match", None)
        text = repr(sorted(values.items()))
        return blake2b(text.encode(), digest_size=4).hexdigest() if values else ""


def with_setting(reason: str, name: str) -> str:
    """Return why an image cannot be opened, with where to say how it can, if its axes are it.

    Examples
    --------
    >>> with_setting("no axes; pass axes=, such as 'tzyx'", "a.tif").rpartition("; ")[2]
    "in patchworks.yaml that is source: {open: [{match: 'a.tif', axes: tzyx}]}"
    >>> with_setting("it is damaged", "a.tif")
    'it is damaged'
    """
    if "pass axes=" not in reason:
        return reason
    example = re.search(r"such as '([tczyx]+)'", reason)
    axes = example[1] if example else "zyx"
    setting = f"source: {{open: [{{match: {name!r}, axes: {axes}}}]}}"
    return f"{reason}; in patchworks.yaml that is {setting}"


DEFAULT = Opening()
"""As `open_image` opens what nothing is said of."""
