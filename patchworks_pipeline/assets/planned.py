"""What a plan asks for: its function, other channels beside the tile, which tiles are empty.

What must be measured for that beside the statistics of the segmented channel is one record,
``measured.json`` in the image's folder, written only where the plan asks for it.
"""

import json
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from patchworks_core.errors import StageError
from patchworks_core.files.records import read_mapping, sealed, unsealed
from patchworks_core.files.storage import write_text
from patchworks_core.images.image import Image
from patchworks_core.plugins.segmentation import Segmentation, segmentation_of
from patchworks_core.stage.plan import EMPTY_THRESHOLD, FROM_IMAGE, Plan
from patchworks_core.stage.staging import other_channels_of
from patchworks_core.statistics.empty_tiles import background_threshold
from patchworks_core.statistics.statistics import ImageStatistics
from patchworks_pipeline.records import ImageFolder

RECORD = "measured.json"


@dataclass(frozen=True, slots=True)
class Measured:
    """What a plan asks to know of an image beside its statistics."""

    other_channels: dict[str, ImageStatistics] = field(default_factory=dict)
    """Statistics of other channels, by the keyword of the function that gets their pixels."""

    maxima: tuple[float, ...] = ()
    """Brightest pixel that each tile reads, in row-major order; empty where none is skipped."""

    def write(self, folder: ImageFolder, plan: Plan) -> None:
        """Write the record."""
        record = {
            "plan": plan.fingerprint,
            "companions": {
                name: statistics.to_dict() for name, statistics in self.other_channels.items()
            },
            "maxima": [m if np.isfinite(m) else None for m in self.maxima],
        }
        write_text(folder.path / RECORD, json.dumps(sealed(record)) + "\n")

    @classmethod
    def read(cls, folder: ImageFolder, plan: Plan) -> "Measured":
        """Read the record of a plan.

        Raises
        ------
        StageError
            If there is none, or it is of another plan.
        """
        path = folder.path / RECORD
        record: dict[str, Any] = unsealed(read_mapping(path)) or {}
        try:
            if record.get("plan") == plan.fingerprint:
                other_channels = record["companions"].items()
                return cls(
                    {
                        name: ImageStatistics.from_dict(statistics)
                        for name, statistics in other_channels
                    },
                    tuple(np.nan if m is None else float(m) for m in record["maxima"]),
                )
        except (KeyError, TypeError, ValueError, AttributeError) as error:
            raise StageError(
                f"{path} is not the record of what was measured of image {folder.key!r} "
                f"({error!r}); materialize image_statistics again"
            ) from error
        raise StageError(
            f"image {folder.key!r} was not measured as its plan asks; materialize "
            "image_statistics again"
        )


def is_asked_for(function: Segmentation, plan: Plan) -> bool:
    """Tell whether a plan needs more than the statistics of its channel."""
    return bool(function.measured_channels) or EMPTY_THRESHOLD in plan.segmentation


@dataclass(frozen=True, slots=True)
class Beside:
    """What staging is given beside the image."""

    other_channels: dict[str, Image]
    """Other channels, by the keyword of the function that gets their pixels."""

    statistics: dict[str, ImageStatistics]
    """Of those whose statistics are asked for."""

    empty: frozenset[int]
    """Numbers of the tiles without signal."""

    @classmethod
    def of(cls, folder: ImageFolder, plan: Plan, function: Segmentation, image: Image) -> "Beside":
        """Find what a plan asks for."""
        other_channels = other_channels_of(function, image)
        if not is_asked_for(function, plan):
            return cls(other_channels, {}, frozenset())
        measured = Measured.read(folder, plan)
        empty: frozenset[int] = frozenset()
        if EMPTY_THRESHOLD in plan.segmentation:
            threshold = plan.segmentation[EMPTY_THRESHOLD]
            if threshold == FROM_IMAGE:
                threshold = background_threshold(folder.statistics())
            dark = ~(np.array(measured.maxima) > threshold)
            empty = frozenset(np.flatnonzero(dark).tolist())
        return cls(other_channels, measured.other_channels, empty)


def planned_function(folder: ImageFolder, plan: Plan) -> Segmentation:
    """Return the function that was planned, and only a version with the same labels.

    Raises
    ------
    StageError
        If its version is another now, which may give the image other labels.
    """
    planned = plan.segmentation
    function = segmentation_of(planned["function"], planned["parameters"])
    if function.version == planned["version"]:
        return function
    statistics = folder.measured_before()
    if statistics is None or not function.is_same_as(planned["version"], statistics):
        raise StageError(
            f"segmentation function {planned['function']!r} was planned at version "
            f"{planned['version']!r} and is now {function.version!r}; tiles of two versions are "
            "not mixed: materialize image again"
        )
    return function
