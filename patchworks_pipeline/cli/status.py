"""How far the images of a home are, and what it refused: read from what lies on disk."""

import re
import shlex
from collections import Counter
from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass, field
from itertools import product
from pathlib import Path
from typing import Any

import dagster as dg
from rich.table import Column, Table

from patchworks_core.errors import PlanError, StageError
from patchworks_core.stage.plan import Plan
from patchworks_pipeline.assets.merging import N_TILES_MISSING
from patchworks_pipeline.cli.homes import segmentations_of
from patchworks_pipeline.cli.records import words_of_blocks, words_of_holes
from patchworks_pipeline.cli.runs import location
from patchworks_pipeline.cli.third_views import NONE, views_of, words_of_views
from patchworks_pipeline.cli.unplanned import why_unplanned
from patchworks_pipeline.definitions import defs
from patchworks_pipeline.image_faults import IMAGE_FAULTS, ImageFaults, words_of
from patchworks_pipeline.instance.home import SETTINGS
from patchworks_pipeline.landing.arrivals import Quarantine
from patchworks_pipeline.landing.candidates import check_landing
from patchworks_pipeline.lineage import FOLDERS, Lineage
from patchworks_pipeline.partitions import suffix_of
from patchworks_pipeline.records import ImageFolder
from patchworks_pipeline.resources.backfills import Backfills
from patchworks_pipeline.resources.resources import (
    AcquisitionSource,
    LabelStore,
    SegmentationDefaults,
)
from patchworks_pipeline.resources.settings import Deployed
from patchworks_pipeline.tile_failures import TileFailure

UNKNOWN = {
    **dict.fromkeys(("file", "tiles", "staged", "failed", "missing", "objects", "labels")),
    "tiles_left_out": None,
    **NONE,
}
"""Of an image of which nothing can be read."""


LONGEST_REASON = 300
"""Characters of why tiles failed, in one line."""

N_SHOWN = 5
"""Tiles that are named of those that failed of the same; the folder ``failures`` has each."""

_NUMBER = re.compile(r"\d+")

NOT_FOR_RUNS = ("automation", "alerts", "retention", "backfills")
"""Sections that no run of an image reads; a variable of theirs may be that of the service alone."""


@dataclass(slots=True)
class State:
    """How far the images of a home are, and what is wrong."""

    images: list[dict[str, Any]] = field(default_factory=list)
    """One record per image and segmentation."""

    titles: list[str] = field(default_factory=list)
    """What people are told each is."""

    complaints: list[str] = field(default_factory=list)
    """What is wrong with images, tiles and settings."""

    unplanned: list[str] = field(default_factory=list)
    """Why images have no plan; they are among the complaints."""

    failed: list[str] = field(default_factory=list)
    """Why most of the failed tiles of an image failed, where nobody asked for it alone."""

    blocks: list[str] = field(default_factory=list)
    """Of which images tiles are counted by blocks."""

    mended: list[str] = field(default_factory=list)
    """What third views images have, and what their labels heard of them."""

    holes: list[str] = field(default_factory=list)
    """Which labels lack tiles, and what heals them."""

    refused: list[str] = field(default_factory=list)
    without_row: set[str] = field(default_factory=set)
    """Images that were refused: those of which nothing was planned are said, not counted."""

    left_over: list[str] = field(default_factory=list)
    mistakes: list[str] = field(default_factory=list)
    """In the settings, and a landing folder that is not there."""

    is_sound: bool = True
    """False where an image cannot be read, or would not be run."""

    def record(self) -> dict[str, Any]:
        """Return it for a program to read."""
        return {
            "images": self.images,
            "unplanned": self.unplanned,
            "failed": self.failed,
            "refused": self.refused,
            "left_over": self.left_over,
            "mistakes": self.mistakes,
        }

    def table(self) -> Table:
        """Return how far the images are; with their files, where keys do not tell them."""
        numbers = ("tiles", "staged", "failed", "missing", "objects")
        shown = [
            (title, row)
            for title, row in zip(self.titles, self.images, strict=True)
            if row["tiles"] or row["image"] not in self.without_row
        ]
        has_files = not all(tells_its_file(row["image"], row["file"]) for _, row in shown)
        names = ["image", "file"] if has_files else ["image"]
        table = Table(*(Column(name, overflow="fold") for name in names), *numbers)
        for title, row in shown:
            texts = [title, shown_file(row["file"])] if has_files else [title]
            table.add_row(*texts, *("-" if row[n] is None else str(row[n]) for n in numbers))
        return table

    def labels(self) -> list[str]:
        """Return where the labels are, in words, and which were mended."""
        texts = [
            f"{title}: labels {row['labels']}"
            for title, row in zip(self.titles, self.images, strict=True)
            if row["labels"]
        ]
        return self.blocks + texts + self.holes + self.mended


def state_of(
    instance: dg.DagsterInstance, keys: Sequence[str], names: Sequence[str], *, of_home: bool
) -> State:
    """Return how far images are; of the home also what was refused, and mistakes in its settings.

    Parameters
    ----------
    instance : DagsterInstance
    keys : sequence of str
        Images.
    names : sequence of str
        Their segmentations; an empty name where images have one; none where the settings do not
        say, which is a mistake in them: then those that were planned.
    of_home : bool
        False where one image was asked for, whose failed tiles are then named.
    """
    store, state = LabelStore().of_home(), State()
    faults = ImageFaults(state.complaints.append)
    for key, name in product(keys, names) if names else _as_planned(store, keys):
        row, folder = UNKNOWN, store.folder(key, name)
        with faults.about(folder.title):
            plan = plan_if_any(folder)
            row = status_of(folder, plan)
            if plan is None or row["missing"]:
                state.unplanned += filter(None, [why_unplanned(instance, folder)])
            state.mended += filter(None, [words_of_views(folder, row)])
            if plan and (words := words_of_blocks(plan.grid)):
                state.blocks.append(f"{folder.title}: {words}")
            if plan and (words := words_of_holes(folder, plan.grid, row["tiles_left_out"])):
                state.holes.append(f"{folder.title}: {words}")
            failures = folder.failures()
            shown = [failure for failure in failures if not of_home or failure.is_unreadable]
            state.complaints += by_reason(folder.title, shown)
            if of_home and row["failed"]:
                again = f"'{shlex.join(['patchworks', 'status', folder.key])}' says which"
                state.failed.append(f"{folder.title}: {commonest(failures)}; {again}")
        state.images.append({"image": key, **({"segmentation": name} if name else {}), **row})
        state.titles.append(folder.title)
    state.complaints += state.unplanned
    state.complaints += (gone := _why_all_are_gone(instance, store, keys))
    state.is_sound = not (faults.found or state.unplanned or gone)
    state.left_over = left_over(instance, store, keys, names) if names else []
    if of_home:
        refused = _refused()
        state.refused = list(refused.values())
        state.without_row = {key for key, _ in refused}
        mistakes = mistakes_of_home()
        state.mistakes = list(mistakes.values())
        state.is_sound &= not set(mistakes) - set(NOT_FOR_RUNS)
        state.complaints += state.mistakes
    return state


def names_of_home(home: Path) -> tuple[str, ...]:
    """Return the segmentations of a home; none where its settings do not say.

    What keeps them from saying so is among `mistakes_of_home`.
    """
    try:
        return segmentations_of(home, None)
    except PlanError:
        return ()


def _as_planned(store: LabelStore, keys: Sequence[str]) -> Iterator[tuple[str, str]]:
    """Yield images and those of their segmentations that have a plan, else one without a name."""
    for key in keys:
        for name in tuple(_planned(store.folder(key))) or ("",):
            yield key, name


def mistakes_of_home() -> dict[str, str]:
    """Return what is wrong with the settings of the home, by what of it; run refuses most."""
    mistakes: dict[str, str] = {}
    try:
        of_location = location().resources
    except IMAGE_FAULTS as error:  # of sections that have several segmentations
        mistakes["segmentations"] = words_of(error)
        of_location = defs.resources
    resources: dict[str, Any] = {**(of_location or {}), "backfills": Backfills()}
    for name, resource in resources.items():
        if not isinstance(resource, Deployed):
            continue
        try:
            deployed = resource.of_home()
            if isinstance(deployed, SegmentationDefaults):
                deployed.check_function()
            if isinstance(deployed, AcquisitionSource):
                check_landing(deployed.layout())
        except IMAGE_FAULTS as error:
            mistakes.setdefault(name, words_of(error))
    return mistakes


def _why_all_are_gone(
    instance: dg.DagsterInstance, store: LabelStore, keys: Sequence[str]
) -> list[str]:
    """Say that no image has its folder, though one had: then the disk of the store is not there."""
    if not keys or any(store.folder(key).path.exists() for key in keys):
        return []
    if not set(keys) & instance.get_materialized_partitions(Lineage().shared.key("image")):
        return []
    return [
        f"no folder of {len(keys)} images is in the store, {store.path()}: mount its disk, or "
        f"correct store.root in {SETTINGS}"
    ]


def plan_if_any(folder: ImageFolder) -> Plan | None:
    """Return the plan of an image; None where it was not planned."""
    return folder.plan() if folder.has("plan.json") else None


def status_of(folder: ImageFolder, plan: Plan | None) -> dict[str, Any]:
    """Return what an image is of, and how far it is: tiles by state, objects, where its labels are.

    Raises
    ------
    PlanError, StageError, OSError
        If a record of the image cannot be read.
    """
    file = folder.acquisition().url if folder.is_registered else None
    if plan is None:
        return {
            **UNKNOWN,
            "file": file,
            **dict.fromkeys(("tiles", "staged", "failed", "missing"), 0),
        }
    missing = _missing_blocks(folder, plan)
    failed = {failure.block for failure in folder.failures()} & missing
    labels = folder.labels(plan).path
    provenance = folder.provenance(plan)
    return {
        "file": file,
        "tiles": plan.grid.n_blocks,
        "staged": plan.grid.n_blocks - len(missing),
        "failed": len(failed),
        "missing": len(missing) - len(failed),
        "objects": None if provenance is None else provenance.get("n_objects"),
        "labels": None if provenance is None else str(labels),
        "tiles_left_out": None if provenance is None else provenance.get(N_TILES_MISSING, 0),
        **views_of(folder, plan, provenance),
    }


def shown_file(url: str | None) -> str:
    """Return the name of an image's file, with what stands within it.

    Examples
    --------
    >>> shown_file("/data/plate.ome.zarr/B/03/0"), shown_file("s3://bucket/a.lif#2")
    ('plate.ome.zarr/B/03/0', 'a.lif#2')
    """
    parts = (url or "").rstrip("/").split("/")
    is_file = [bool(suffix_of(part.partition("#")[0])) for part in parts]
    return "/".join(parts[is_file.index(True) :]) if any(is_file) else parts[-1]


def tells_its_file(key: str, url: str | None) -> bool:
    """Tell whether a key is its file's name without the ending, so that nobody need ask."""
    name = shown_file(url)
    return name.removesuffix(suffix_of(name)) in ("", key)


def refusals() -> list[str]:
    """Return the versions of acquisitions that were refused in this home, each with the reason."""
    return list(_refused().values())


def _refused() -> dict[tuple[str, str], str]:
    """Return what was refused, in words, by image and version."""
    quarantine = Quarantine(LabelStore().of_home().path() / ".quarantine")
    return {
        (refusal.key, refusal.name): (
            f"{f'{refusal.key}: version ' if refusal.key else ''}{refusal.name} was refused: "
            f"{refusal.reason}; {quarantine.release(refusal.name)}"
        )
        for refusal in quarantine.refusals()
    }


def commonest(failures: Sequence[TileFailure]) -> str:
    """Return what most of some failed tiles failed of, in one line.

    Examples
    --------
    >>> failures = [TileFailure(key, "ValueError", "no model", "") for key in ("y0", "y1")]
    >>> commonest([*failures, TileFailure("y2", "MemoryError", "", "")])
    '2 of 3 failed tiles: ValueError: no model'
    """
    texts = [f"{failure.error_type}: {failure.message}" for failure in failures]
    kinds = [_NUMBER.sub("0", text) for text in texts]  # what else tells tiles apart
    ((kind, n),) = Counter(kinds).most_common(1)
    text = texts[kinds.index(kind)]
    of_all = f"{n} of {len(failures)} failed tiles" if len(failures) > 1 else "1 failed tile"
    return f"{of_all}: {' '.join(text.split())[:LONGEST_REASON].removesuffix(': ')}"


def by_reason(title: str, failures: Sequence[TileFailure]) -> list[str]:
    """Return why tiles of an image failed: those that failed of the same, numbers aside, together.

    Examples
    --------
    >>> failures = [TileFailure(f"y{i}", "ValueError", f"{i} of 9 is bad", "") for i in range(9)]
    >>> failures.append(TileFailure("y9", "MemoryError", "no room", ""))
    >>> for text in by_reason("plate", failures):
    ...     print(text)
    plate: 9 tiles (y0, y1, y2, y3, y4, ...): ValueError: 0 of 9 is bad
    plate/y9: MemoryError: no room
    """
    alike: dict[str, list[TileFailure]] = {}
    for failure in failures:
        kind = _NUMBER.sub("0", f"{failure.error_type}: {failure.message}")
        alike.setdefault(kind, []).append(failure)
    texts = []
    for first, *others in alike.values():
        keys = [failure.block for failure in (first, *others)]
        shown = ", ".join(keys[:N_SHOWN]) + (", ..." if len(keys) > N_SHOWN else "")
        which = f"{title}: {len(keys)} tiles ({shown})" if others else f"{title}/{first.block}"
        texts.append(f"{which}: {first.error_type}: {first.message}")
    return texts


def left_over(
    instance: dg.DagsterInstance, store: LabelStore, images: Sequence[str], names: Collection[str]
) -> list[str]:
    """Return what is there of segmentations that the settings do not name, in words.

    Parameters
    ----------
    instance : DagsterInstance
    store : LabelStore
    images : sequence of str
        Keys.
    names : collection of str
        Segmentations that the settings name; an empty name where images have one.
    """
    of_others: dict[str, list[str]] = {}
    for image in images:
        for name in _planned(store.folder(image)):
            if name not in names:
                of_others.setdefault(name, []).append(image)
    texts = []
    for name, keys in sorted(of_others.items()):
        tiles = str(Lineage((), name).tiles.name)
        n_tiles = len(instance.get_dynamic_partitions(tiles))
        why = (
            f"segmentation {name!r} has no block in {SETTINGS}"
            if name
            else f"{SETTINGS} names several segmentations"
        )
        what = f"of segmentation {name!r}" if name else "of the one before, without a name,"
        path = store.folder(keys[0], name).path
        what_lies = path if name else f"plan.json and stage.zarr in {path} and the like"
        where = f"{len(keys)} image{'' if len(keys) == 1 else 's'}, the first {keys[0]!r}"
        texts.append(
            f"{why}: what was made {what} stays in {where}, with {n_tiles} tile partitions "
            f"({tiles!r}); nothing runs, shows or retires it until {SETTINGS} names it again. To "
            f"be rid of it, remove {what_lies} and wipe those partitions in the UI"
        )
    return texts


def _planned(image: ImageFolder) -> Iterator[str]:
    """Yield the segmentations of an image that have a plan."""
    if image.has("plan.json"):
        yield ""
    for entry in sorted(image.path.iterdir(), key=str) if image.path.is_dir() else ():
        is_block = not entry.suffix and entry.name not in FOLDERS
        if is_block and (entry / "plan.json").exists():
            yield entry.name


def _missing_blocks(folder: ImageFolder, plan: Plan) -> set[str]:
    """Return the tile blocks that are not staged; without a stage of the plan, all."""
    try:
        return set(folder.stage(plan).missing_blocks())
    except StageError:
        return set(plan.grid.block_keys())
