"""What one segmentation of the images of a deployment is called in Dagster.

Names are all that two deployments in one code location, or two segmentations of one image, could
share by accident: keys of assets, names of jobs, sensors, schedules, steps and partition sets, keys
of resources. They are made here, from a prefix and the name of the segmentation, and nowhere else.
Without either they are bare: ``staged_labels``, ``tiles``, ``stage_tiles``.
"""

import inspect
import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import wraps
from typing import Any

import dagster as dg

from patchworks_core.errors import PlanError
from patchworks_pipeline.partitions import images, tiles

ASSET_JOB = "__ASSET_JOB"
"""Job of the runs that the UI starts for a selection of assets."""

OF_SEGMENTATION = "segmentation"
"""The resource that each segmentation has of its own; the others are the deployment's."""

BATCH_JOB = "process_images"
"""Job of the runs that take many small images."""

JOBS = (
    *("plan_image", "stage_tiles", "repair_image", "merge_image", "relate", "retire_images"),
    BATCH_JOB,
)
"""Jobs of a segmentation."""

ASSETS = (
    *("acquisition", "image", "tile_plan", "image_statistics", "staged_labels", "boundary_pairs"),
    *("global_lut", "merged_labels", "object_table", "quality_report"),
)
"""In the order of the lineage."""

FOLDERS = ("report", "failures")
"""In the folder of an image; no segmentation can be called so."""

_NAME = re.compile(r"[A-Za-z0-9]+(_[A-Za-z0-9]+)*")


@dataclass(frozen=True, slots=True)
class Lineage:
    """The names of one segmentation."""

    prefix: tuple[str, ...] = ()
    """Of the deployment, where it is one of several in a code location."""

    segmentation: str = ""
    """Its name, where the images have several."""

    @property
    def path(self) -> tuple[str, ...]:
        """What stands before every name."""
        return (*self.prefix, self.segmentation) if self.segmentation else self.prefix

    @property
    def shared(self) -> "Lineage":
        """The names of what all segmentations of an image share."""
        return Lineage(self.prefix)

    @property
    def images(self) -> dg.DynamicPartitionsDefinition:
        """One key per acquisition, the same for all segmentations."""
        return dg.DynamicPartitionsDefinition(name="/".join((*self.prefix, str(images.name))))

    @property
    def tiles(self) -> dg.DynamicPartitionsDefinition:
        """One key per tile block of every image."""
        return dg.DynamicPartitionsDefinition(name="/".join((*self.path, str(tiles.name))))

    def key(self, asset: str) -> dg.AssetKey:
        """Return the key of an asset."""
        return dg.AssetKey([*self.path, asset])

    def name(self, bare: str) -> str:
        """Return the name of a job, a sensor, a schedule, or a step.

        Examples
        --------
        >>> Lineage().name("stage_tiles"), Lineage(("lab",), "nuclei").name("stage_tiles")
        ('stage_tiles', 'lab__nuclei__stage_tiles')
        """
        return "__".join((*self.path, bare))

    def resource(self, bare: str) -> str:
        """Return the key of a resource."""
        path = self.path if bare == OF_SEGMENTATION else self.prefix
        return "__".join((*path, bare))

    def link(self, asset: str) -> str:
        """Return where the UI shows an asset, below its address."""
        return "/assets/" + "/".join(self.key(asset).path)

    def has_run(self, run: dg.DagsterRun) -> bool:
        """Tell whether a run is of this segmentation: one of its jobs, or of its assets."""
        if run.job_name != ASSET_JOB:
            return run.job_name in {self.name(job) for job in JOBS}
        # Of an older log, or of a test, which may not say which assets.
        selection = run.asset_selection
        return selection is None or any(self.key(asset) in selection for asset in ASSETS)

    def bound(self, function: Callable[..., Any], **also: Any) -> Callable[..., Any]:
        """Return a function for Dagster that asks for resources by the names they have here.

        Parameters
        ----------
        function : callable
            Body of an asset, an op, a sensor or a schedule. Its parameter ``lineage`` gets these
            names, and Dagster does not see it.
        **also
            Further arguments that Dagster does not see.
        """
        signature = inspect.signature(function)
        hidden = {"lineage": self, **also}
        hidden = {name: value for name, value in hidden.items() if name in signature.parameters}
        shown = [p for name, p in signature.parameters.items() if name not in hidden]
        renamed = [p.replace(name=self.resource(p.name)) if _is_resource(p) else p for p in shown]
        bare = {new.name: old.name for new, old in zip(renamed, shown, strict=True)}

        @wraps(function)
        def call(*args: Any, **options: Any) -> Any:
            named = {bare.get(name, name): value for name, value in options.items()}
            return function(*args, **named, **hidden)

        # Dagster reads resources out of the one or the other, as its version is.
        returned = {"return": signature.return_annotation}
        call.__signature__ = signature.replace(parameters=renamed)  # type: ignore[attr-defined]
        call.__annotations__ = {p.name: p.annotation for p in renamed} | returned
        return call


def _is_resource(parameter: inspect.Parameter) -> bool:
    kind = parameter.annotation
    return isinstance(kind, type) and issubclass(kind, dg.ConfigurableResource)


@dataclass(frozen=True, slots=True)
class Mount:
    """One deployment in a code location: its prefix, and the segmentations of its images.

    Raises
    ------
    PlanError
        If a name could not be part of the names that Dagster takes.
    """

    prefix: tuple[str, ...] = ()

    segmentations: tuple[str, ...] = ()
    """Empty where images have one, without a name."""

    relations: tuple[tuple[str, str], ...] = ()
    """Pairs of them: objects of the first lie in objects of the second."""

    def __post_init__(self) -> None:
        for kind, names in (("key prefix", self.prefix), ("segmentation", self.segmentations)):
            for name in names:
                check_name(kind, name)
        _check_folders(self.segmentations)
        for a, b in self.relations:
            if a == b or not {a, b} <= set(self.segmentations):
                raise PlanError(
                    f"a relation must be of two of the segmentations "
                    f"{list(self.segmentations)!r}, got {a!r} in {b!r}"
                )

    @classmethod
    def of(
        cls,
        key_prefix: str | Sequence[str],
        segmentations: Sequence[str] = (),
        relations: Mapping[str, str] | None = None,
    ) -> "Mount":
        """Return the deployment with a prefix as Dagster takes it: a name, or several."""
        prefix = (key_prefix,) if isinstance(key_prefix, str) else tuple(key_prefix)
        pairs = tuple((relations or {}).items())
        return cls(tuple(filter(None, prefix)), tuple(segmentations), pairs)

    @property
    def shared(self) -> Lineage:
        """The names of what is said of an image, whatever segmentations it has."""
        return Lineage(self.prefix)

    @property
    def lineages(self) -> tuple[Lineage, ...]:
        """The names of each segmentation."""
        return tuple(Lineage(self.prefix, name) for name in self.segmentations or ("",))

    def lineage(self, segmentation: str) -> Lineage:
        """Return the names of one segmentation."""
        return Lineage(self.prefix, segmentation)

    def lineage_of(self, run: dg.DagsterRun) -> Lineage | None:
        """Return the segmentation that a run is of; None where it is of another deployment."""
        for lineage in (*self.lineages, self.shared):
            if lineage.has_run(run):
                return lineage
        return None


def check_name(kind: str, name: str) -> str:
    """Return a name that keys, jobs and folders can be called by.

    Raises
    ------
    PlanError
        If it is none.
    """
    if not isinstance(name, str) or not _NAME.fullmatch(name):
        raise PlanError(
            f"a {kind} must be a name of letters, digits and single '_', got {name!r}; rename it"
        )
    if name.lower() in (*ASSETS, *FOLDERS):
        raise PlanError(
            f"a {kind} cannot be called {name!r}, as an asset or a folder of an image is; rename it"
        )
    return name


def _check_folders(segmentations: Sequence[str]) -> None:
    """Raise PlanError where two would share a folder on a disk that does not tell case apart."""
    before: dict[str, str] = {}
    for name in segmentations:
        other = before.setdefault(name.lower(), name)
        if other != name:
            raise PlanError(
                f"segmentations {other!r} and {name!r} differ by case alone, and would share a "
                "folder on some disks; rename one"
            )


ALONE = Mount()
"""The only deployment of its code location, with one segmentation."""
