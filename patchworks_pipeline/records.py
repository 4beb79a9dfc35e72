"""The folder of one image in the label store, and the records in it.

::

    <store>/<image>/
      acquisition.json        where the image is, and what was chosen for it
      plan.json               grid, calibration, identity, function, versions
      statistics.json         global histogram
      stage.zarr/             one file per tile block
      retired.json            where the tiles of a finished image are no partitions any more
      failures/<block>.json   why a tile block failed; gone once it is staged
      boundary_pairs.parquet  the edge table
      lut.parquet             joined ids, with the rule that joined them
      <image>.ome.zarr/       merged labels
      objects.parquet, objects.csv
      report/                 pictures and tables

Where an image has several segmentations, each has such a folder in that of the image, which keeps
the acquisition and the container: ``<image>.ome.zarr/labels/<segmentation>``.

What a record says is parsed and checked where it is read.
"""

import json
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field, replace
from functools import partial
from typing import Any

import pyarrow as pa
from upath import UPath

from patchworks_core.errors import PlanError, StageError
from patchworks_core.files.records import mapping_of, read_mapping, sealed, unsealed
from patchworks_core.files.replacing import put_back
from patchworks_core.files.storage import remove, remove_parts, write_bytes, write_text
from patchworks_core.files.tables import bytes_of_table, table_of
from patchworks_core.images.image import DEFAULT_CHANNEL, Image, is_default, open_image
from patchworks_core.ome_zarr.label_image import LabelImage
from patchworks_core.operations.named import processed
from patchworks_core.seams.edge_table import Edges
from patchworks_core.seams.lookup import LookupTable, offsets_of
from patchworks_core.seams.rules import MergeOptions
from patchworks_core.stage.plan import OPERATIONS, PLAN_AGAIN, Plan
from patchworks_core.stage.stage import Stage
from patchworks_core.statistics.statistics import ImageStatistics
from patchworks_pipeline.edge_records import MADE_BY, PAIRS, EdgesOfRecord, write_edges
from patchworks_pipeline.tables import was_changed, write_table
from patchworks_pipeline.tile_failures import TileFailure

ACQUISITION = "acquisition.json"
"""Where an image is; in the folder of a segmentation, what was chosen for that."""

WRITTEN_AGAIN = "'patchworks run' of the image, with the options it had, writes it again"
"""Way out where the record of an acquisition is lost."""

STORE_ROOT = "store.root of patchworks.yaml"
"""What says where the store is."""

OBJECTS_CSV = "objects.csv"
"""The object table for programs that read no Parquet."""

LABEL_NAME = "labels"
"""Of the label image in an image's container."""

RETIRED = "retired.json"
"""Record of a finished image whose tiles are no partitions any more."""


@dataclass(frozen=True, slots=True)
class Acquisition:
    """Where an image is and what was chosen for it; None leaves a choice to the deployment."""

    url: str
    """Path or URL of the image."""

    channel: int | str | None = DEFAULT_CHANNEL
    """Channel to segment, by position or name; None segments each. Not recorded where nobody chose
    one."""

    level: int = 0
    """Resolution level, 0 is full."""

    axes: str | None = None
    """Axes in the file's order, where its metadata does not say."""

    pixel_size: dict[str, float] | list[float] | float | None = None
    """Micrometers per pixel, over what the file says; as in `open_image`."""

    function: str | None = None
    """Name or ``module:function`` of the segmentation function."""

    parameters: dict[str, Any] | None = None
    """Of the function."""

    tile_shape: tuple[int, ...] | None = None
    """Pixels of a tile; one value for all axes, or one per axis counted from the last."""

    overlap: tuple[int, ...] | None = None
    """Halo on each side, by the same rules."""

    merge: dict[str, Any] = field(default_factory=dict)
    """Fields of `MergeOptions` that were chosen."""

    pilot: dict[str, Any] | None = None
    """Report of the pilot that chose overlap and rule, where one did."""

    priority: int = 0
    """Its runs go before those of images of a lower one. Not recorded where nobody chose one."""

    is_of_image: bool = False
    """True where the channel was chosen for the image, and not for this segmentation of it."""

    @property
    def has_own_channel(self) -> bool:
        """True where somebody chose the channel to segment."""
        return not (self.is_of_image or is_default(self.channel))

    def of_image(self) -> "Acquisition":
        """Return what is said of the image alone, whatever segmentations it has."""
        return Acquisition(
            self.url,
            channel=self.channel,
            level=self.level,
            axes=self.axes,
            pixel_size=self.pixel_size,
            priority=self.priority,
        )

    def open(self) -> Image:
        """Open the image."""
        return open_image(
            self.url,
            channel=self.channel,
            level=self.level,
            axes=self.axes,
            pixel_size=self.pixel_size,
        )

    def to_json(self) -> str:
        """Return the record."""
        record = asdict(self)
        del record["is_of_image"]
        if is_default(self.channel):
            del record["channel"]
        if not self.priority:
            del record["priority"]
        return json.dumps(sealed(record), indent=2) + "\n"

    @classmethod
    def from_json(cls, text: str | bytes, *, where: str) -> "Acquisition":
        """Read what `to_json` wrote.

        Raises
        ------
        PlanError
            If it is not the record of an acquisition.
        """
        try:
            record = unsealed(json.loads(text))
            if record is None:
                raise PlanError(
                    f"{where} was changed by hand, or is damaged; remove its line 'digest' to keep "
                    f"a change; or {WRITTEN_AGAIN}"
                )
            for name in ("tile_shape", "overlap"):
                record[name] = None if record[name] is None else tuple(record[name])
            return cls(**record)
        except PlanError:
            raise
        except (KeyError, TypeError, ValueError, AttributeError, RecursionError) as error:
            raise PlanError(
                f"{where} is not the record of an acquisition ({error!r}); {WRITTEN_AGAIN}"
            ) from error


@dataclass(frozen=True, slots=True)
class ImageFolder:
    """The folder of one image; reads and writes its records."""

    path: UPath
    key: str
    """Partition key of the image."""

    segmentation: str = ""
    """Name of the segmentation, where the image has several: each has a folder in the image's."""

    @property
    def shared(self) -> "ImageFolder":
        """The folder of the image, whatever segmentations it has."""
        return ImageFolder(self.path.parent, self.key) if self.segmentation else self

    @property
    def title(self) -> str:
        """What people are told it is: the image, and which segmentation of it."""
        return f"{self.key} ({self.segmentation})" if self.segmentation else self.key

    @property
    def container(self) -> UPath:
        """The OME-Zarr with the merged labels, of all segmentations."""
        return self.shared.path / f"{self.key}.ome.zarr"

    @property
    def is_registered(self) -> bool:
        """True where it is recorded where the image is."""
        return self.shared.has(ACQUISITION)

    @property
    def report(self) -> UPath:
        """Folder of the pictures and tables."""
        return self.path / "report"

    def _read(self, name: str, made_by: str) -> bytes:
        """Return the content of a record, or say which asset makes it."""
        self._must_have(name, made_by)
        return bytes((self.path / name).read_bytes())

    def _read_mapping(self, name: str, made_by: str) -> dict[str, Any]:
        """Return the mapping in a record, or say which asset makes it."""
        record = unsealed(mapping_of(self._read(name, made_by)))
        if record is None:
            raise StageError(
                f"{name} of image {self.key!r} at {self.path} must hold a JSON mapping and is "
                f"damaged; materialize {made_by} again"
            )
        return record

    def has(self, name: str) -> bool:
        """Tell whether a record is there."""
        return bool((self.path / name).exists())

    def clear_unfinished(self) -> None:
        """Remove what killed processes of this machine left half-written."""
        remove_parts(self.path, of_the_dead=True)

    def recorded(self) -> Acquisition | None:
        """Return the acquisition; None where its record is not there, or damaged."""
        try:
            return self.acquisition() if self.is_registered else None
        except PlanError:
            return None

    def acquisition(self) -> Acquisition:
        """Return where the image is and what was chosen for it."""
        if not self.segmentation:
            if not self.is_registered:
                raise StageError(
                    f"no {ACQUISITION} for image {self.key!r} at {self.path}; {WRITTEN_AGAIN}"
                )
            text = (self.path / ACQUISITION).read_bytes()
            return Acquisition.from_json(text, where=str(self.path / ACQUISITION))
        image = self.shared.acquisition()
        if not self.has(ACQUISITION):
            # What else stands there was chosen when the image had one segmentation.
            return replace(image.of_image(), is_of_image=True)
        text = (self.path / ACQUISITION).read_bytes()
        own = Acquisition.from_json(text, where=str(self.path / ACQUISITION))
        is_of_image = is_default(own.channel)
        return replace(
            own,
            url=image.url,
            level=image.level,
            axes=image.axes,
            pixel_size=image.pixel_size,
            priority=image.priority,
            channel=image.channel if is_of_image else own.channel,
            is_of_image=is_of_image,
        )

    def image(self, plan: Plan) -> Image:
        """Open the image as it was planned: its channel, and after the operations of the plan."""
        acquisition = self.acquisition()
        opened = acquisition.open()
        if opened.channel != plan.image.channel:
            opened = replace(acquisition, channel=plan.image.channel).open()
        return processed(opened, plan.segmentation.get(OPERATIONS, ()))

    def write_acquisition(self, acquisition: Acquisition) -> None:
        """Write where the image is and what was chosen for it."""
        if not self.segmentation:
            write_text(self.path / ACQUISITION, acquisition.to_json())
            return
        image = replace(acquisition.of_image(), channel=DEFAULT_CHANNEL)
        if (before := self.shared.recorded()) is not None:
            # What was chosen when the image had one segmentation holds once it has one again.
            names = ("url", "level", "axes", "pixel_size", "priority")
            image = replace(before, **{name: getattr(acquisition, name) for name in names})
        self.shared.write_acquisition(image)
        if acquisition.is_of_image:
            acquisition = replace(acquisition, channel=DEFAULT_CHANNEL)
        write_text(self.path / ACQUISITION, acquisition.to_json())

    def plan(self) -> Plan:
        """Return the plan."""
        path = self.path / "plan.json"
        try:
            return Plan.from_json(self._read("plan.json", "image"), where=str(path))
        except PlanError as error:
            again = "'patchworks run' of the image plans it again"
            raise type(error)(str(error).replace(PLAN_AGAIN, again)) from error

    def write_plan(self, plan: Plan) -> None:
        """Write the plan."""
        plan.write(self.path / "plan.json")

    def statistics(self) -> ImageStatistics:
        """Return the global statistics of the planned pixels."""
        record = self._read_mapping("statistics.json", "image_statistics")
        if record.get("image") != self.plan().image.fingerprint:
            raise StageError(
                f"statistics.json of image {self.key!r} is of other content than the plan; "
                "materialize image_statistics again"
            )
        with self._reading("statistics.json", "image_statistics"):
            return ImageStatistics.from_dict(record["statistics"])

    def measured_before(self) -> ImageStatistics | None:
        """Return the global statistics, None where there are none that can be used."""
        try:
            return self.statistics()
        except (PlanError, StageError):
            return None

    def write_statistics(self, statistics: ImageStatistics) -> None:
        """Write the global statistics."""
        record = {"image": self.plan().image.fingerprint, "statistics": statistics.to_dict()}
        write_text(self.path / "statistics.json", json.dumps(sealed(record)) + "\n")

    def stage(self, plan: Plan | None = None) -> Stage:
        """Return the stage of the plan."""
        plan = plan or self.plan()
        with self._reading("stage.zarr", "image"):
            return Stage.open(self.path / "stage.zarr", plan)

    def failures(self) -> list[TileFailure]:
        """Return why tile blocks failed, by block; a damaged record still says of which."""
        folder = self.path / "failures"
        if not folder.is_dir():
            return []
        paths = sorted(folder.iterdir(), key=str)
        return [TileFailure.read(path) for path in paths if path.name.endswith(".json")]

    def write_failure(self, failure: TileFailure) -> None:
        """Record why a tile block failed."""
        record = json.dumps(asdict(failure), indent=2) + "\n"
        write_text(self.path / "failures" / f"{failure.block}.json", record)

    def clear_failure(self, block: str) -> None:
        """Forget that a tile block failed."""
        remove(self.path / "failures" / f"{block}.json")

    def clear_failures(self) -> None:
        """Forget all failures, when another plan begins."""
        remove(self.path / "failures")

    @property
    def is_retired(self) -> bool:
        """True where the tiles are no partitions any more, or are about to be none."""
        if not self.has(RETIRED):
            return False
        # Version 0.1.0 wrote no time, and left the record where an image was taken up again.
        record = read_mapping(self.path / RETIRED) or {}
        return "time" in record or not self.has("stage.zarr/plan.json")

    def write_retired(self, stage_content: str | None, n_tiles: int) -> None:
        """Record that the tiles of an image are no partitions any more."""
        record = {"stage": stage_content, "n_tiles": n_tiles, "time": time.time()}
        write_text(self.path / RETIRED, json.dumps(record) + "\n")

    def clear_retired(self) -> None:
        """Forget that an image was retired, when it is taken up again."""
        remove(self.path / RETIRED)

    def edges(self, stage: Stage) -> EdgesOfRecord:
        """Return the edge table of the labels as they are staged now; parts are checked as read."""
        self._must_have(PAIRS, MADE_BY)
        edges = EdgesOfRecord.open(self.path / PAIRS, partial(self._reading, PAIRS, MADE_BY))
        self._check_content(PAIRS, edges.table.record, stage, made_by=MADE_BY)
        return edges

    def write_edges(self, edges: Edges, stage_content: str, *, allow_missing: bool = False) -> None:
        """Write the edge table of a stage with that content, and whether it may have holes."""
        write_edges(self.path / PAIRS, edges, stage_content, allow_missing=allow_missing)

    def has_edges_of(self, stage: Stage, *, allow_missing: bool) -> bool:
        """Tell whether the edge table is of the labels as staged now, with holes or without."""
        try:
            self.edges(stage).check()
            return self.allows_missing(stage) == allow_missing
        except StageError:  # there is none, or of other labels, or damaged
            return False

    def allows_missing(self, stage: Stage) -> bool:
        """Tell whether the merge that was begun may leave out tiles that are not staged."""
        return self.edges(stage).allows_missing

    def lut(self, stage: Stage) -> tuple[LookupTable, MergeOptions]:
        """Return the lookup table of the labels as staged now, and the options it was made with."""
        table, record = self._read_table("lut.parquet", stage, made_by="global_lut")
        offsets = offsets_of(stage.settled_counts(allow_missing=self.allows_missing(stage)))
        with self._reading("lut.parquet", "global_lut"):
            options = MergeOptions.from_dict(json.loads(record["merge"]))
            lut = LookupTable(
                offsets=offsets,
                joined=table["joined"].to_numpy(),
                merged=table["merged"].to_numpy(),
                sequential=options.sequential,
            )
        return lut, options

    def write_lut(self, lut: LookupTable, options: MergeOptions, stage_content: str) -> None:
        """Write the lookup table of a stage with that content, and its options."""
        record = {"stage": stage_content, "merge": json.dumps(options.to_dict())}
        table = pa.table({"joined": lut.joined, "merged": lut.merged})
        self._write_table("lut.parquet", table, record)

    def labels(self, plan: Plan) -> LabelImage:
        """Return the merged labels."""
        return LabelImage(self.container, self.segmentation or LABEL_NAME, plan)

    def provenance(self, plan: Plan) -> dict[str, Any] | None:
        """Return what the merged labels were made of; None where there are none."""
        labels = self.labels(plan).path
        path = labels / "provenance.json"
        if not (put_back(labels) and path.exists()):
            return None
        record = read_mapping(path)
        if record is None:
            raise StageError(
                f"{path} must say what the labels of image {self.key!r} were made of and is "
                "damaged; materialize merged_labels again with overwrite"
            )
        return record

    def summary(self) -> dict[str, Any]:
        """Return the figures of the report."""
        return self._read_mapping("report/summary.json", "quality_report")

    def write_objects(self, table: pa.Table) -> list[UPath]:
        """Write the object table; return where what was changed in the one before is kept."""
        return write_table(self.path / "objects.parquet", table.replace_schema_metadata(None))

    @property
    def has_changed_objects(self) -> bool:
        """True where the object table is not what was written, such as one that was corrected."""
        return was_changed(self.path / "objects.parquet")

    def objects(self) -> pa.Table:
        """Return the object table."""
        content = self._read("objects.parquet", "object_table")
        with self._reading("objects.parquet", "object_table"):
            return table_of(content)

    def _read_table(
        self, name: str, stage: Stage, *, made_by: str
    ) -> tuple[pa.Table, dict[str, str]]:
        """Read a table made from the labels as they are staged now, and what it records."""
        content = self._read(name, made_by)
        with self._reading(name, made_by):
            table = table_of(content)
            record = {k.decode(): v.decode() for k, v in (table.schema.metadata or {}).items()}
        self._check_content(name, record, stage, made_by=made_by)
        return table, record

    def _check_content(
        self, name: str, record: dict[str, str], stage: Stage, *, made_by: str
    ) -> None:
        """Raise StageError where a table was not made from the labels as they are staged now."""
        if record.get("stage") != stage.content():
            raise StageError(
                f"{name} of image {self.key!r} was made from other staged labels than are there "
                f"now; materialize {made_by} again"
            )

    @contextmanager
    def _reading(self, name: str, made_by: str) -> Iterator[None]:
        """Say of whatever is wrong with the content of a record which it is, and who makes it."""
        try:
            yield
        except (PlanError, StageError):
            raise
        except (ValueError, LookupError, TypeError, AttributeError, RuntimeError) as error:
            raise StageError(
                f"{name} of image {self.key!r} at {self.path} cannot be read ({error!r}); "
                f"materialize {made_by} again"
            ) from error

    def _must_have(self, name: str, made_by: str) -> None:
        if not self.has(name):
            raise StageError(
                f"no {name} for image {self.key!r} at {self.path}; materialize {made_by} first, "
                f"or correct {STORE_ROOT}"
            )

    def _write_table(self, name: str, table: pa.Table, record: dict[str, str]) -> None:
        content = bytes_of_table(table.replace_schema_metadata(record or None))
        write_bytes(self.path / name, content)
