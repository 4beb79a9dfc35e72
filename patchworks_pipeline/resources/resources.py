"""Resources: what a deployment decides. Choices of one run are config, facts are records."""

import os
from collections.abc import Callable, Collection, Mapping
from dataclasses import replace
from typing import Any, ClassVar, Self

from pydantic import ValidationInfo, field_validator
from upath import UPath

from patchworks_core.errors import ImageError, PlanError, SegmentationError
from patchworks_core.files.storage import DURABLE, as_path, be_durable, is_switched_on
from patchworks_core.images.image import Image
from patchworks_core.operations.named import check_operations, processed
from patchworks_core.pilot.trials import recommend_overlap
from patchworks_core.plugins.segmentation import Segmentation, segmentation_of
from patchworks_core.seams.rules import MergeOptions, MergeRule, Outline
from patchworks_core.stage.plan import FROM_IMAGE, Plan, as_recorded, in_blocks_of, make_plan
from patchworks_core.tiles.block_counts import blocks_of_small_tiles
from patchworks_pipeline.instance.home import SETTINGS, home_folder
from patchworks_pipeline.landing.candidates import LandingLayout, find_candidates
from patchworks_pipeline.landing.opening import ALL, Opening
from patchworks_pipeline.partitions import check_image_key
from patchworks_pipeline.records import Acquisition, ImageFolder
from patchworks_pipeline.resources import built_in
from patchworks_pipeline.resources.named_functions import check_exists, check_named
from patchworks_pipeline.resources.settings import Deployed, setting
from patchworks_pipeline.resources.settings_file import SEGMENTATIONS, Section, read_block

AUTOMATION_VARIABLE = "PATCHWORKS_AUTOMATION"
"""``off`` switches automation off; read at every tick."""


class LabelStore(Deployed):
    """Where stages and merged labels are kept, one folder per image."""

    section: ClassVar[str] = "store"

    root: str = setting(
        "",
        description="Folder or fsspec URL (s3://, memory://); empty is store/ in the home.",
    )
    fsync: bool = setting(
        False,
        description="True: what is written is on the disk before anything builds on it, so that a "
        f"power cut loses nothing, at a cost in time; as does {DURABLE}=on.",
    )

    def of_home(self) -> Self:
        """Return this with the settings of the home; this process writes as they say."""
        store = super().of_home()
        if store.fsync:
            be_durable()
        return store

    def path(self) -> UPath:
        """Return where the folders of images lie."""
        return as_path(self.root or home_folder(self.home) / "store")

    def folder(self, image: str, segmentation: str = "") -> ImageFolder:
        """Return the folder of an image, or of one of its segmentations."""
        path = self.path() / check_image_key(image)
        return ImageFolder(path / segmentation if segmentation else path, image, segmentation)


class AcquisitionSource(Deployed):
    """Where acquisitions land, how the folder is laid out, and when one is complete."""

    section: ClassVar[str] = "source"

    landing: str = setting("", description="Folder or fsspec URL; empty is landing/ in the home.")
    patterns: list[str] = setting(
        [],
        description="Globs below the folder, such as '*.tif' or '*/*.ome.zarr'; none: whatever "
        "can be read and lies directly in it.",
    )
    template: str = setting(
        "",
        description="Instead of patterns, such as '{plate}/{well}/{field}.ome.tif'; the fields "
        "make the partition key.",
    )
    marker: str = setting(
        "",
        description="File that says one is complete, such as '{name}.done' or '{stem}.done' "
        "beside it; empty: it is complete once it is still.",
    )
    settle_seconds: float = setting(
        15.0, ge=0, description="One is complete when no file of it changed for so long."
    )
    max_per_tick: int = setting(
        100, ge=1, description="Acquisitions taken by one tick of the landing sensor."
    )
    urgent: str = setting(
        "urgent",
        description="Folder below the landing folder whose acquisitions go before all others; "
        "empty: none.",
    )
    images_per_run: int = setting(
        25,
        ge=1,
        description="Where many small acquisitions land at once, so many are planned, staged and "
        "merged in one run; 1: each in runs of its own.",
    )
    small_megabytes: float = setting(
        64.0, ge=0, description="An acquisition of less is a small one."
    )

    open: list[dict[str, Any]] = setting(
        [],
        description="How images are opened whose name matches a glob, such as {match: '*.tif', "
        "axes: zyx, channel: DAPI, level: 0, series: 1}; the first that matches counts.",
    )

    @field_validator("open")
    @classmethod
    def _openings(cls, entries: list[dict[str, Any]]) -> list[dict[str, Any]]:
        """Refuse what is not a way of opening an image."""
        for entry in entries:
            Opening.of(entry)
        return entries

    def displaced(self) -> Collection[str]:
        """Return the other one of template and patterns; where both stand, the template counts."""
        pair = {"patterns", "template"}
        return pair if pair & self.model_fields_set else ()

    def layout(self) -> LandingLayout:
        """Return how the landing folder is laid out."""
        landing = self.landing or str(home_folder(self.home) / "landing")
        openings = tuple(Opening.of(entry) for entry in self.open)
        return LandingLayout(
            landing, tuple(self.patterns), self.template, self.marker, openings, self.urgent
        )

    def find(self, image: str) -> Acquisition:
        """Return the acquisition in the landing folder whose key is `image`.

        Raises
        ------
        ImageError
            If there is none, or more than one.
        """
        layout = self.layout()
        matches = [candidate for candidate in find_candidates(layout) if candidate.key == image]
        if len(matches) != 1:
            names = [candidate.name for candidate in matches]
            raise ImageError(
                f"image {image!r} is not registered and {len(matches)} acquisitions in "
                f"{layout.landing} have that key ({names!r}); copy exactly one there, or register "
                "it with 'patchworks run'"
            )
        return matches[0].acquisition()


class Automation(Deployed):
    """Whether sensors and schedules may start runs: the one switch for those who do not want it."""

    section: ClassVar[str] = "automation"

    enabled: bool = setting(
        True, description="False: no sensor and no schedule starts a run by itself."
    )
    finish_first: bool = setting(
        True,
        description="True: of runs that wait, those go first that are nearer to the labels, so "
        "that an image is finished before the next is begun.",
    )

    def why_off(self) -> str | None:
        """Return why automation is off, in words; None where it is on."""
        if not self.enabled:
            return "automation is switched off by the resource 'automation'"
        if is_switched_on(AUTOMATION_VARIABLE, otherwise=True):
            return None
        value = os.environ[AUTOMATION_VARIABLE]
        return f"automation is switched off by {AUTOMATION_VARIABLE}={value}"


class SegmentationDefaults(Deployed):
    """The segmentation function of images that do not name their own, and how it is tiled."""

    section: ClassVar[str] = "segmentation"

    block: str = setting(
        "", description="Its name in the section `segmentations`; empty: section `segmentation`."
    )
    function: str = setting(
        built_in.FUNCTION,
        description="Built-in name, name of an installed plugin, or 'module:function'.",
    )
    functions: list[str] = setting(
        [], description="Each 'module:function' that the config of a run may name."
    )
    parameters: dict[str, Any] = setting({}, description="Keyword arguments of every call.")
    channel: str = setting(
        "",
        description="Channel to segment, by position or name; empty: the acquisition's, and of "
        "that the first unless `source.open` says another.",
    )
    operations: list[dict[str, Any]] = setting(
        [],
        description="What pixels go through before the function, such as {median: 3} and "
        "{subtract_background: 25}; the first first.",
    )
    tile_shape: list[int] = setting(
        [built_in.TILE_SHAPE],
        min_length=1,
        description="Pixels of a tile: a number for all spatial axes, or a list with one per "
        "axis from the last; -1 is the whole axis.",
    )
    overlap: list[int] = setting(
        [built_in.OVERLAP],
        min_length=1,
        description="Halo on each side of a tile, pixels, by the same rules.",
    )
    merge: MergeRule = setting(
        built_in.MERGE,
        description="auto, overlap, overlap-pairs, touching or none: which labels are one object.",
    )
    connectivity: int = setting(
        0,
        ge=0,
        le=3,
        description="Contact that counts for 'touching', 1 to 3; 0 is the function's.",
    )
    min_iou: float = setting(
        built_in.MIN_IOU, ge=0, le=1, description="How much two views must agree, 0 to 1."
    )
    outline: Outline = setting(
        built_in.OUTLINE,
        description="auto, feather or core: how objects are drawn where tiles met.",
    )
    min_size: int = setting(
        built_in.MIN_SIZE, ge=0, description="Merged objects of fewer pixels become background."
    )
    skip_empty: bool = setting(False, description="Leave tiles without signal unsegmented.")
    empty_threshold: float | None = setting(
        None,
        description="Brightest value that is background; by default the image's histogram says.",
    )
    max_tile_partitions: int = setting(
        1000,
        ge=1,
        description="Tile partitions of one image; more tiles are grouped in blocks. While nobody "
        "sets this, so are more than 512 tiles of half a megapixel or less, to about a megapixel, "
        "and an image that was planned keeps its blocks.",
    )

    def read_section(self) -> Section:
        """Return what the file of the home says of this segmentation."""
        if not self.block:
            return super().read_section()
        return read_block(home_folder(self.home) / SETTINGS, SEGMENTATIONS, self.block)

    def check_run(self, in_code: Self) -> None:
        """Refuse also a function that the deployment does not name."""
        super().check_run(in_code)
        if "function" in self.model_fields_set and self.function != in_code.function:
            check_named(self.function, in_code.of_home())

    @field_validator("channel", mode="before")
    @classmethod
    def _channel(cls, channel: Any) -> Any:
        """Take a position as it is written."""
        is_position = isinstance(channel, int) and not isinstance(channel, bool)
        return str(channel) if is_position else channel

    @field_validator("tile_shape", "overlap", mode="before")
    @classmethod
    def _one_or_all(cls, sizes: Any) -> Any:
        """Take a number for all axes as it is written, and say of words what is wanted."""
        if isinstance(sizes, (int, float)) and not isinstance(sizes, bool):
            sizes = [sizes]
        if not isinstance(sizes, list) or not all(isinstance(n, (int, float)) for n in sizes):
            raise ValueError("must be whole numbers, such as 512 or [16, 512, 512]")
        return sizes

    @field_validator("operations")
    @classmethod
    def _operations(cls, entries: list[dict[str, Any]]) -> list[dict[str, Any]]:
        """Refuse what is no operation."""
        check_operations(entries)
        return entries

    @field_validator("tile_shape", "overlap")
    @classmethod
    def _pixels(cls, sizes: list[int], info: ValidationInfo) -> list[int]:
        """Refuse sizes that no tile and no halo can have."""
        if info.field_name == "overlap" and any(size < 0 for size in sizes):
            raise ValueError("must be 0 or more pixels, per axis")
        if info.field_name == "tile_shape" and any(size < 1 and size != -1 for size in sizes):
            raise ValueError("must be 1 or more pixels, or -1, per axis")
        return sizes

    def displaced(self) -> Collection[str]:
        """Return the parameters of another function, and the threshold of what is not skipped."""
        others = {"parameters"} if "function" in self.model_fields_set else set()
        if "skip_empty" in self.model_fields_set and not self.skip_empty:
            others.add("empty_threshold")
        return others

    def function_of(self, acquisition: Acquisition) -> Segmentation:
        """Return the function that an image named, or this deployment's."""
        if acquisition.function is not None:
            return segmentation_of(acquisition.function, acquisition.parameters)
        own = acquisition.parameters
        try:
            return segmentation_of(self.function, self.parameters if own is None else own)
        except SegmentationError as error:
            raise SegmentationError(f"{self.place_of('function')}{error}") from error

    def check_function(self) -> None:
        """Raise SegmentationError where there is no function of that name; none is imported."""
        try:
            check_exists(self.function)
        except SegmentationError as error:
            raise SegmentationError(f"{self.place_of('function')}{error}") from error

    def place_of(self, name: str) -> str:
        """Return where the file sets a field to what it is, to begin a message with; else nothing.

        Such as ``/srv/home/patchworks.yaml, line 4: cells.function: ``.
        """
        section = self.read_section()
        if str(section.values.get(name)) != str(getattr(self, name)):
            return ""
        return f"{section.where(name)}: {section.name}.{name}: "

    def open(self, acquisition: Acquisition) -> Image:
        """Open an acquisition as it is segmented: its channel, and after the operations."""
        if not self.channel or acquisition.has_own_channel:
            return processed(acquisition.open(), self.operations)
        position = self.channel.lstrip("-").isdigit()
        channel = int(self.channel) if position else self.channel
        chosen = replace(acquisition, channel=None if channel == ALL else channel)
        try:
            opened = chosen.open()
        except ImageError as error:
            acquisition.open()  # what is wrong with the image is not said of the setting
            words = str(error).replace(f"channel={channel!r} ", f"{channel!r} ", 1)
            place = self.place_of("channel") or f"{self.read_section().name}.channel: "
            raise ImageError(f"{place}{words}") from error
        return processed(opened, self.operations)

    def plan_of(self, acquisition: Acquisition, image: Image, folder: ImageFolder) -> Plan:
        """Return the plan of an image: the one that is recorded, where nothing is another now.

        Parameters
        ----------
        acquisition : Acquisition
        image : Image
            The acquisition, as `open` gives it.
        folder : ImageFolder
            Where an earlier plan of it may be.
        """
        function = self.function_of(acquisition)
        tiling = self.tiling_of(acquisition)
        is_limited = "max_tile_partitions" in self.model_fields_set
        plan = make_plan(image, function, **tiling)
        if not is_limited and plan.grid.n_blocks > (fewer := blocks_of_small_tiles(plan.grid)):
            plan = make_plan(image, function, **{**tiling, "max_blocks": fewer})
        try:
            if folder.has("plan.json"):
                recorded = folder.plan()
                if not is_limited:
                    plan = in_blocks_of(plan, recorded)
                return as_recorded(plan, function, recorded, folder.measured_before)
        except PlanError:  # damaged: it is planned anew
            pass
        return plan

    def tiling_of(self, acquisition: Acquisition) -> dict[str, Any]:
        """Return tile shape, overlap and block limit of an image."""
        own = acquisition.tile_shape
        tile_shape = tuple(self.tile_shape) if own is None else own
        overlap = self.overlap if acquisition.overlap is None else acquisition.overlap
        return {
            "tile_shape": tile_shape[0] if len(tile_shape) == 1 else tile_shape,
            "overlap": overlap[0] if len(overlap) == 1 else overlap,
            "max_blocks": self.max_tile_partitions,
            "empty_threshold": self._empty_threshold(),
            "operations": self.operations,
        }

    def _empty_threshold(self) -> float | str | None:
        """Return what a plan says of empty tiles."""
        if self.empty_threshold is not None:
            return self.empty_threshold
        return FROM_IMAGE if self.skip_empty else None

    def piloted(
        self, acquisition: Acquisition, *, say: Callable[[str], object] = lambda text: None
    ) -> Acquisition:
        """Return the acquisition with the overlap and the rule that a pilot recommends.

        `say` is told where a halo was taken without a trial.

        Raises
        ------
        PlanError
            If it has none to recommend.
        """
        report, best = recommend_overlap(
            self.open(acquisition),
            self.function_of(acquisition),
            tile_shape=self.tiling_of(acquisition)["tile_shape"],
            options=MergeOptions(**self._merge_values(acquisition)),
            say=say,
        )
        return replace(
            acquisition,
            overlap=best.overlap,
            merge={**acquisition.merge, "rule": best.rule},
            pilot=report.to_dict(),
        )

    def merge_options(
        self, acquisition: Acquisition, plan: Plan, chosen: dict[str, Any]
    ) -> MergeOptions:
        """Return how labels of an image are merged: the run's choice, the image's, or this one."""
        values = self._merge_values(acquisition, chosen)
        function = segmentation_of(plan.segmentation["function"], plan.segmentation["parameters"])
        return MergeOptions(**values).resolve(
            plan.grid,
            declared=function.merge,
            connectivity=function.connectivity,
            outline=function.outline,
        )

    def _merge_values(
        self, acquisition: Acquisition, chosen: Mapping[str, Any] | None = None
    ) -> dict[str, Any]:
        """Return the fields of `MergeOptions`: the run's, over the image's, over this one's."""
        values: dict[str, Any] = {
            "rule": self.merge,
            "connectivity": self.connectivity,
            "min_iou": self.min_iou,
            "outline": self.outline,
            "min_size": self.min_size,
        }
        for above in (acquisition.merge, chosen or {}):
            values |= {name: value for name, value in above.items() if value is not None}
        return {**values, "connectivity": values["connectivity"] or None}
