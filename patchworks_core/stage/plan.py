"""The plan: what will be cut, read and run; stored beside the data and asserted by every step.

A stage is valid for one `Plan.fingerprint`: the image's content, channel and level, the grid, the
halo, and the function with its parameters and version. How staged labels are merged is not part of
it, so that a rule can be changed without segmenting again.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass, field, replace
from functools import cache
from importlib.metadata import PackageNotFoundError, version
from typing import Any

from patchworks_core.errors import PlanError, SegmentationError
from patchworks_core.files.records import mapping_of, sealed, unsealed
from patchworks_core.files.storage import as_path, write_text
from patchworks_core.images.image import Image
from patchworks_core.plugins.function_versions import version_before
from patchworks_core.plugins.segmentation import Segmentation, recorded_before, short_name
from patchworks_core.statistics.statistics import ImageStatistics
from patchworks_core.tiles.block_counts import enough_blocks
from patchworks_core.tiles.grid import TileGrid, plan_grid

RECORD_VERSION = 1
"""Of the layout of ``plan.json``."""

EMPTY_THRESHOLD = "empty_threshold"
"""Key in `Plan.segmentation` of plans that leave empty tiles unsegmented."""

OPERATIONS = "operations"
"""Key in `Plan.segmentation` of plans whose pixels go through operations before the function; as
`patchworks_core.operations.named` reads them."""

FROM_IMAGE = "from the image"
"""In place of a number: the brightest that the background of the image gets."""

CHANGING = "changing globals"
"""Key in `Plan.versions` of functions that read globals which code may change while it runs."""

PLAN_AGAIN = "plan the image again"
"""Way out where the record of a plan cannot be used."""

STAGE_AGAIN = ": stage again, or restore the old plan"
"""Way out where a stage is of another plan."""

_RECORDED_PACKAGES = ("patchworks-pipeline", "numpy", "scipy", "scikit-image", "zarr")


class OtherLayoutError(PlanError):
    """A record is of another version of patchworks: it is whole, and not to be mended."""


@dataclass(frozen=True, slots=True)
class ImageRecord:
    """Which pixels a plan is about."""

    url: str | None
    """Path or URL it was opened from; None for an array in memory."""

    format: str
    """What it was opened as, such as ``OME-Zarr 0.5``."""

    fingerprint: str
    """Digest of the content's identity."""

    dtype: str
    """Of the pixels."""

    channel: int | None
    """Channel read, counted from 0; None where all are, or there is no such axis."""

    level: int
    """Resolution level read, 0 is full."""

    pixel_size: dict[str, float]
    """Per axis, in `unit`; axes without calibration are absent."""

    unit: dict[str, str]
    """Per axis, NGFF unit names such as ``micrometer``."""

    translation: dict[str, float]
    """Of the first pixel, per axis, in `unit`."""

    @classmethod
    def of(cls, image: Image) -> ImageRecord:
        """Record `image`."""
        return cls(
            url=image.url,
            format=image.format,
            fingerprint=image.fingerprint,
            dtype=str(image.dtype),
            channel=image.channel,
            level=image.level,
            pixel_size=dict(image.pixel_size),
            unit=dict(image.unit),
            translation=dict(image.translation),
        )


@dataclass(frozen=True, slots=True)
class Plan:
    """What is cut, read and run."""

    image: ImageRecord
    grid: TileGrid
    segmentation: dict[str, Any]
    """Function, parameters and version, as `Segmentation.to_dict` gives them; built-in functions by
    their name."""

    versions: dict[str, str] = field(default_factory=dict)
    """Packages that made the plan, and the digest of `CHANGING`; not part of the fingerprint."""

    @property
    def fingerprint(self) -> str:
        """Digest of everything that staged labels depend on; 32 hex digits.

        It is the same for a plan of version 0.1.0, which recorded built-in functions by their path.
        """
        function = recorded_before(self.segmentation["function"])
        content = {
            "image": [self.image.fingerprint, self.image.channel, self.image.level],
            "grid": self.grid.to_dict(),
            "segmentation": {**self.segmentation, "function": function},
        }
        text = json.dumps(content, sort_keys=True)
        return hashlib.blake2b(text.encode(), digest_size=16).hexdigest()

    def to_json(self) -> str:
        """Return the record of the plan."""
        record = {
            "record_version": RECORD_VERSION,
            "fingerprint": self.fingerprint,
            "image": asdict(self.image),
            "grid": self.grid.to_dict(),
            "segmentation": self.segmentation,
            "versions": self.versions,
        }
        return json.dumps(sealed(record), indent=2) + "\n"

    @classmethod
    def from_json(cls, text: str | bytes, *, where: str = "plan") -> Plan:
        """Read what `to_json` wrote.

        Raises
        ------
        PlanError
            If it is not such a record, or was changed by hand.
        """
        try:
            record = mapping_of(text)
            if record is None:
                raise PlanError(
                    f"{where} is not the record of a plan (no JSON mapping); {PLAN_AGAIN}"
                )
            if record["record_version"] != RECORD_VERSION:
                raise OtherLayoutError(
                    f"{where} has layout {record['record_version']!r}, this patchworks reads "
                    f"{RECORD_VERSION}; {PLAN_AGAIN}"
                )
            record = unsealed(record)
            if record is None:
                raise PlanError(f"{where} was changed by hand, or is damaged; {PLAN_AGAIN}")
            plan = cls(
                image=ImageRecord(**record["image"]),
                grid=TileGrid.from_dict(record["grid"]),
                segmentation={
                    **record["segmentation"],
                    "function": short_name(record["segmentation"]["function"]),
                },
                versions=record["versions"],
            )
            written, made = record["fingerprint"], plan.fingerprint
        except PlanError:
            raise
        except (KeyError, TypeError, ValueError, AttributeError, RecursionError) as error:
            raise PlanError(
                f"{where} is not the record of a plan ({error!r}); {PLAN_AGAIN}"
            ) from error
        if made != written:
            raise PlanError(
                f"{where} says fingerprint {written!r} but its content gives "
                f"{made!r}: it was changed by hand; {PLAN_AGAIN}"
            )
        return plan

    def write(self, location: Any) -> None:
        """Write the record to a file."""
        write_text(as_path(location), self.to_json())

    @classmethod
    def read(cls, location: Any) -> Plan:
        """Read the record from a file.

        Raises
        ------
        FileNotFoundError
            If there is none.
        PlanError
            If it is not the record of a plan.
        """
        path = as_path(location)
        return cls.from_json(path.read_bytes(), where=str(path))

    def difference(self, other: Plan) -> str:
        """Say in words what staged labels of `self` and `other` would not share."""
        pairs: list[tuple[str, Any, Any]] = [
            ("channel", self.image.channel, other.image.channel),
            ("level", self.image.level, other.image.level),
        ]
        if all(mine == theirs for _, mine, theirs in pairs):
            # An image's fingerprint is of one channel and level, so it says more only now.
            pairs.append(("image content", self.image.fingerprint, other.image.fingerprint))
        mine, theirs = self.grid.to_dict(), other.grid.to_dict()
        pairs += [(name, mine[name], theirs[name]) for name in mine]
        pairs += [
            (f"segmentation {name}", self.segmentation.get(name), other.segmentation.get(name))
            for name in sorted({*self.segmentation, *other.segmentation})
        ]
        return "; ".join(f"{name}: {a!r} is not {b!r}" for name, a, b in pairs if a != b)


def make_plan(
    image: Image,
    segmentation: Segmentation,
    *,
    tile_shape: Sequence[int] | int,
    overlap: Sequence[int] | int = 0,
    max_blocks: int | None = None,
    empty_threshold: float | str | None = None,
    operations: Sequence[Mapping[str, Any]] = (),
) -> Plan:
    """Plan the tiles of an image.

    Parameters
    ----------
    image : Image
    segmentation : Segmentation
    tile_shape, overlap
        As in `patchworks_core.tiles.grid.plan_grid`.
    max_blocks : int, optional
        Group tiles into blocks so that there are at most this many; by default `enough_blocks`.
    empty_threshold : float or str, optional
        Tiles that read nothing above it are not segmented; `FROM_IMAGE` leaves it to the image's
        histogram; None segments all.
    operations : sequence of mapping
        What the pixels of `image` went through, to be recorded.

    Returns
    -------
    Plan

    Raises
    ------
    PlanError
        If the values do not describe a grid.
    """
    grid = plan_grid(
        image.axes,
        image.shape,
        tile_shape=tile_shape,
        overlap=overlap,
        max_blocks=enough_blocks(image.shape) if max_blocks is None else max_blocks,
        chunks=image.chunks if max_blocks is None else None,
    )
    check_parameters(segmentation.parameters)
    also: dict[str, Any] = {} if empty_threshold is None else {EMPTY_THRESHOLD: empty_threshold}
    if operations:
        also[OPERATIONS] = [dict(entry) for entry in operations]
    return Plan(
        image=ImageRecord.of(image),
        grid=grid,
        segmentation=segmentation.to_dict() | also,
        versions=package_versions()
        | ({CHANGING: segmentation.changing} if segmentation.changing else {}),
    )


def as_recorded(
    plan: Plan,
    segmentation: Segmentation,
    recorded: Plan,
    statistics: Callable[[], ImageStatistics | None] = lambda: None,
) -> Plan:
    """Return the recorded plan where its labels are those of this one; else this one.

    Version 0.1.0 told functions apart by less: the modules that they import did not count. And a
    function may say that an earlier version of it gave the same labels of this image.

    Parameters
    ----------
    plan : Plan
        As it is made now.
    segmentation : Segmentation
        Of that plan.
    recorded : Plan
    statistics : callable, optional
        Returns those of the image, None where they are not known; called only where they matter.
    """
    if plan.fingerprint == recorded.fingerprint:
        return plan
    with suppress(SegmentationError):
        version = version_before(segmentation.function)
        if _at_version(plan, version).fingerprint == recorded.fingerprint:
            return recorded
    version = str(recorded.segmentation["version"])
    if _at_version(plan, version).fingerprint != recorded.fingerprint:
        return plan
    measured = statistics()
    is_same = measured is not None and segmentation.is_same_as(version, measured)
    return recorded if is_same else plan


def tile_by_tile(plan: Plan) -> Plan:
    """Return the plan with every tile a block of its own."""
    return replace(plan, grid=replace(plan.grid, block_shape=(1,) * len(plan.grid.axes)))


def in_blocks_of(plan: Plan, recorded: Plan) -> Plan:
    """Return the plan with its tiles in the blocks of another one, where those are of its tiles."""
    grid = replace(plan.grid, block_shape=recorded.grid.block_shape)
    return replace(plan, grid=grid) if grid == recorded.grid else plan


def _at_version(plan: Plan, version: str) -> Plan:
    """Return a plan with another version of the function."""
    return replace(plan, segmentation={**plan.segmentation, "version": version})


def check_parameters(parameters: Mapping[str, Any]) -> None:
    """Raise PlanError where a parameter could not be recorded and read back the same."""
    for name, value in parameters.items():
        try:
            same = json.loads(json.dumps(value)) == value
        except TypeError:
            same = False
        if not same:
            raise PlanError(
                f"parameter {name!r} of the segmentation function is {value!r}, which a plan "
                "cannot record; pass numbers, text, lists or None, or close over it in a function"
            )


def package_versions() -> dict[str, str]:
    """Return the versions of the packages that results depend on."""
    return {package: _installed_version(package) for package in _RECORDED_PACKAGES}


@cache
def _installed_version(package: str) -> str:
    """Return the version of a package, read once: what is imported stays what it is."""
    try:
        return version(package)
    except PackageNotFoundError:
        return "not installed"
