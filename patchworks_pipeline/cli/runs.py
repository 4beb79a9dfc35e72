"""Runs of the jobs in this process, on a persistent instance: what the command line does.

Each step runs only where its result is missing or was made from something else, so a second call
redoes what is missing and nothing more.
"""

import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from functools import lru_cache, partial
from pathlib import Path
from typing import Any

import dagster as dg

from patchworks_core.errors import PlanError, StageError
from patchworks_core.plugins.segmentation import Segmentation
from patchworks_core.stage.plan import Plan
from patchworks_core.tiles.halos import warning_of_halo
from patchworks_pipeline.assets.corrected import check_corrected
from patchworks_pipeline.assets.lost_choices import check_choices
from patchworks_pipeline.assets.planned import planned_function
from patchworks_pipeline.assets.relating import is_related, relation_name, relation_path
from patchworks_pipeline.assets.stage_reading import what_is_replaced
from patchworks_pipeline.assets.tile_events import not_logged
from patchworks_pipeline.automation.events import RANGE_END, RANGE_START
from patchworks_pipeline.automation.in_process import InProcess, JobError
from patchworks_pipeline.automation.jobs import MERGED, PLANNED
from patchworks_pipeline.cli.advice import command_on, planned_anew
from patchworks_pipeline.cli.exit_codes import TILES_FAILED
from patchworks_pipeline.cli.image_runs import ImageRun
from patchworks_pipeline.cli.results import (
    check_results,
    is_merged,
    is_planned,
    say_copy,
    why_not_as_written,
    why_table_is_kept,
)
from patchworks_pipeline.cli.terminal import errors, in_options, say, say_step
from patchworks_pipeline.definitions import definitions, defs
from patchworks_pipeline.instance.home import home_environment, prepare_home
from patchworks_pipeline.instance.run_processes import open_instance
from patchworks_pipeline.instance.slots import NoSlotError, only_call
from patchworks_pipeline.instance.tile_partitions import tile_keys_of
from patchworks_pipeline.landing.registered import key_of
from patchworks_pipeline.lineage import Lineage
from patchworks_pipeline.partitions import check_image_key, images, tile_keys
from patchworks_pipeline.records import Acquisition, ImageFolder
from patchworks_pipeline.resources.clusters import DaskCluster
from patchworks_pipeline.resources.compute_budget import ComputeBudget
from patchworks_pipeline.resources.gpus import GpuPool
from patchworks_pipeline.resources.pools import DeployedCompute
from patchworks_pipeline.resources.resources import LabelStore, SegmentationDefaults
from patchworks_pipeline.resources.several import Several
from patchworks_pipeline.tables import csv_path, was_changed


@contextmanager
def open_home(home: Path) -> Iterator[dg.DagsterInstance]:
    """Open the Dagster instance of a home, making it if needed; this process then uses it.

    Runs that were killed are ended first, so that nothing waits for what they held.
    """
    os.environ.update(home_environment(prepare_home(home)))
    with open_instance(home, say=partial(say, on=errors)) as instance:
        yield instance


def segmentation_of_home(folder: ImageFolder) -> SegmentationDefaults:
    """Return what the home says of the segmentation whose folder it is."""
    return SegmentationDefaults(block=folder.segmentation).of_home()


@lru_cache
def _location(names: tuple[str, ...], relations: tuple[tuple[str, str], ...]) -> dg.Definitions:
    """Return the definitions with some segmentations."""
    return definitions(segmentations=names, relations=dict(relations)) if names else defs


def location() -> dg.Definitions:
    """Return the definitions of the home of this process."""
    several = Several.of_home()
    return _location(several.names, tuple(several.relations.items()))


def plan_of(acquisition: Acquisition, budget: ComputeBudget, folder: ImageFolder) -> Plan:
    """Return the plan of an acquisition, and refuse choices that a later step would refuse.

    What was assumed in opening it is said on standard error.

    Raises
    ------
    ImageError, PlanError, SegmentationError
        If the image cannot be opened, tiled, segmented or merged as chosen.
    """
    segmentation = segmentation_of_home(folder)
    image = segmentation.open(acquisition)
    for note in image.notes:
        say(in_options(note), on=errors)
    if (gaps := image.gaps) is not None and gaps.is_suspicious:
        say(f"warning: {gaps.text}", on=errors)
    plan = segmentation.plan_of(acquisition, image, folder)
    if (warning := warning_of_halo(plan.grid)) is not None:
        say(f"warning: {in_options(warning)}", on=errors)
    segmentation.merge_options(acquisition, plan, {})
    budget.open(budget.decide(plan).count)
    return plan


def choose(folder: ImageFolder, url: str, chosen: Mapping[str, Any]) -> Acquisition:
    """Return the record of an image: what is chosen now over what was chosen before.

    Parameters
    ----------
    folder : ImageFolder
    url : str
        Of the image.
    chosen : mapping
        Fields of `Acquisition`; None, or left out, keeps what was chosen before. The channel comes
        in a tuple of one, because None is a channel too.
    """
    before = folder.recorded()
    if before is None and folder.segmentation and (of_image := folder.shared.recorded()):
        before = replace(of_image.of_image(), is_of_image=True)
    if before is None or before.url != url:
        before = Acquisition(url)
    changes = {name: value for name, value in chosen.items() if value is not None}
    if "channel" in changes:
        (changes["channel"],) = changes["channel"]
    if "function" in changes:
        changes.setdefault("parameters", None)
    if "overlap" in changes:
        changes["pilot"] = None
    rule = {name: value for name, value in changes.pop("merge", {}).items() if value is not None}
    return replace(before, **changes, merge={**before.merge, **rule})


def choose_image(
    instance: dg.DagsterInstance,
    url: str,
    name: str | None,
    chosen: Mapping[str, Any],
    *,
    budget: ComputeBudget,
    segmentation: str = "",
    overwrite: bool = False,
    of_plan: str = "",
    say: Callable[[str], object],
) -> tuple[ImageFolder, Plan]:
    """Make an image known as it is chosen; return its folder, and what its plan is to be.

    Parameters
    ----------
    instance : DagsterInstance
    url : str
        Path or URL of the image.
    name : str or None
        Its key; None is its file name.
    chosen : mapping
        As in `choose`; an overlap of ``auto`` asks a pilot.
    budget : ComputeBudget
    segmentation : str
        Of several.
    overwrite : bool
        Replace what was made by other choices also where their record is lost.
    of_plan : str
        Fingerprint of the plan that this is a job of; `overwrite` then covers no lost choices.
    say : callable
        Told what the pilot did.

    Raises
    ------
    PlanError
        If what was chosen before is not on record, and what was made of the image was made by
        other choices; if it was planned anew since the job was written; or if its labels or its
        table were changed.
    """
    store = LabelStore().of_home()
    url = url if "://" in url else str(Path(url).absolute())
    key = check_image_key(name) if name else key_of(store.path(), url)
    folder = store.folder(key, segmentation)
    wants_pilot = chosen.get("overlap") == "auto"
    acquisition = choose(folder, url, {**chosen, "overlap": None} if wants_pilot else chosen)
    if wants_pilot:
        acquisition = segmentation_of_home(folder).piloted(acquisition, say=say)
    plan = plan_of(acquisition, budget, folder)
    merge = segmentation_of_home(folder).merge_options(acquisition, plan, {})
    if folder.recorded() is None and (of_plan or not overwrite):
        check_choices(folder, plan, merge)
    if of_plan and plan.fingerprint != of_plan:
        raise PlanError(planned_anew(folder))
    check_results(folder, plan, merge, overwrite=overwrite)
    return register(instance, store, key, acquisition, segmentation), plan


def register(
    instance: dg.DagsterInstance,
    store: LabelStore,
    key: str,
    acquisition: Acquisition,
    segmentation: str = "",
) -> ImageFolder:
    """Make an acquisition known: its record, and its partition.

    Raises
    ------
    PlanError
        If the key belongs to another acquisition.
    """
    folder = store.folder(key, segmentation)
    before = folder.shared.recorded()
    if before is not None and before.url != acquisition.url:
        raise PlanError(
            f"image {key!r} is {before.url!r} in this home; give "
            f"{acquisition.url!r} another name with --name"
        )
    folder.clear_unfinished()
    folder.write_acquisition(acquisition)
    instance.add_dynamic_partitions(str(images.name), [key])
    return folder


def run_image(
    instance: dg.DagsterInstance,
    folder: ImageFolder,
    plan: Plan,
    *,
    budget: ComputeBudget,
    overwrite: bool = False,
) -> ImageRun:
    """Materialise whatever of an image is missing, in this process.

    Parameters
    ----------
    instance : DagsterInstance
    folder : ImageFolder
        Of a registered acquisition.
    plan : Plan
        What the image's plan is to be, as `plan_of` gives it.
    budget : ComputeBudget
    overwrite : bool
        Replace labels and tables that were changed.
    """
    try:
        with only_call(instance, folder.key, say=partial(say, on=errors)):
            return _run_missing(instance, folder, plan, budget, overwrite)
    except NoSlotError as busy:
        return ImageRun(folder, (), (), str(busy))


def plan_image(
    instance: dg.DagsterInstance, folder: ImageFolder, plan: Plan, *, budget: ComputeBudget
) -> ImageRun:
    """Plan an image where that is missing, in this process; arguments are as in `run_image`."""
    try:
        with only_call(instance, folder.key, say=partial(say, on=errors)):
            return _plan_missing(instance, folder, plan, budget)
    except NoSlotError as busy:
        return ImageRun(folder, (), (), str(busy))


def _plan_missing(
    instance: dg.DagsterInstance, folder: ImageFolder, plan: Plan, budget: ComputeBudget
) -> ImageRun:
    lineage = Lineage((), folder.segmentation)
    keys = tile_keys(folder.key, plan.grid.block_keys())
    # They are not where the image was retired, or the instance is a new one.
    has_keys = set(keys) <= set(tile_keys_of(instance, lineage, folder.key))
    if has_keys and is_planned(folder, plan):
        return ImageRun(folder, (), (), None)
    say_step(f"{folder.title}: planning")
    if replaced := what_is_replaced(folder, plan):
        say(replaced, on=errors)
    error = _run(
        instance,
        "plan_image",
        folder.key,
        {"budget": {"config": dict(budget)}},
        partition_key=folder.key,
        assets=_planning(lineage),
    )
    return ImageRun.of_job(folder, ["plan_image"], error)


def _run_missing(
    instance: dg.DagsterInstance,
    folder: ImageFolder,
    plan: Plan,
    budget: ComputeBudget,
    overwrite: bool,
) -> ImageRun:
    is_changed = folder.has_changed_objects
    if is_changed and (why := why_table_is_kept(folder, overwrite)):
        return ImageRun.left(folder, why)
    lineage = Lineage((), folder.segmentation)
    resources = {"budget": {"config": dict(budget)}}
    planned = _plan_missing(instance, folder, plan, budget)
    if planned.error:
        return planned
    steps = [*planned.steps]
    function = planned_function(folder, plan)
    for note in function.notes_on(folder.statistics()):
        say(in_options(note), on=errors)
    blocks = folder.stage(plan).missing_blocks()
    doing = "staging" if blocks else "logging"
    # What was staged by a run that was ended before it had logged it is staged no second time.
    blocks = blocks or not_logged(instance, lineage, folder.key, plan.grid.block_keys())
    if blocks:
        _warn_of_limits(budget, function)
        steps.append("stage_tiles")
        say_step(f"{folder.title}: {doing} {len(blocks)} of {plan.grid.n_blocks} {plan.grid.units}")
        keys = tile_keys(folder.key, blocks)
        error = _run(
            instance,
            lineage.name("stage_tiles"),
            folder.key,
            resources,
            tags={RANGE_START: keys[0], RANGE_END: keys[-1]},
            ops={lineage.name("staged_labels"): {"config": {"skip_staged": True}}},
        )
        if error:
            failures = folder.failures() if error.is_of_tiles else []
            return ImageRun.of_job(folder, steps, error, failures)
    merge = segmentation_of_home(folder).merge_options(folder.acquisition(), plan, {})
    is_outdated = is_changed or not is_merged(folder, plan, merge)
    # Without overwrite, labels that were changed were refused before anything was written.
    if is_outdated or (overwrite and why_not_as_written(folder, plan)):
        steps.append("merge_image")
        say_step(f"{folder.title}: merging {plan.grid.n_blocks} {plan.grid.units}")
        job, name = lineage.name("merge_image"), lineage.name("merged_labels")
        ops = {name: {"config": {"overwrite": True}}} if overwrite else {}
        error = _run(instance, job, folder.key, resources, partition_key=folder.key, ops=ops)
        return ImageRun.of_job(folder, steps, error)
    return ImageRun(folder, tuple(steps), (), None)


def _warn_of_limits(budget: ComputeBudget, function: Segmentation) -> None:
    """Say where limits of tiles are asked for that are not kept."""
    compute = DeployedCompute(
        budget,
        GpuPool().of_home(),
        DaskCluster().of_home(),
        wants_gpu=function.wants_gpu,
        declared=function.worker_kind,
    )
    if compute.unkept_limits:
        say(f"warning: {compute.unkept_limits}", on=errors)


def _planning(lineage: Lineage) -> list[dg.AssetKey]:
    """Return the assets that plan an image for one segmentation."""
    if not lineage.segmentation:
        return [lineage.key("image"), lineage.key("image_statistics")]
    return [lineage.shared.key("image"), *map(lineage.key, PLANNED)]


def with_relations(instance: dg.DagsterInstance, result: ImageRun) -> ImageRun:
    """Relate the segmentations of an image that was merged to each other, where that is due."""
    if not result.folder.segmentation or not result.is_complete:
        return result
    store, image, due, tables = LabelStore().of_home(), result.folder.key, [], []
    for a, b in Several.of_home().relations.items():
        if not is_related(store.folder(image, a), store.folder(image, b)):
            path = relation_path(store.folder(image, a), b)
            if was_changed(path):
                say_copy(csv_path(path))
            due.append(Lineage((), a).key(relation_name(b)))
            tables.append(csv_path(path))
    if not due:
        return result
    error = _run(instance, "relate", image, {}, partition_key=image, assets=due)
    if error:
        return replace(result, error=error.message)
    return replace(result, relations=tuple(tables))


def merge_again(
    instance: dg.DagsterInstance,
    folder: ImageFolder,
    chosen: dict[str, Any],
    *,
    allow_missing: bool = False,
    overwrite: bool = False,
    mend: Mapping[str, Any] | None = None,
    budget: Mapping[str, Any] | None = None,
) -> ImageRun:
    """Merge the staged labels of an image again, by another rule or with holes.

    Parameters
    ----------
    instance : DagsterInstance
    folder : ImageFolder
        Of an image that was staged.
    chosen : dict
        Fields of `MergeOptions`; they are kept for the image.
    allow_missing : bool
        Take tiles that are not staged for tiles without labels.
    overwrite : bool
        Replace labels that were changed, or that are not patchworks'.
    mend : mapping, optional
        Fields of `MendConfig`: stage third views of faces first.
    budget : mapping, optional
        Fields of `ComputeBudget` that hold for this call.

    Raises
    ------
    PlanError, StageError
        If the options are wrong, staged tiles are damaged, or the labels were changed; nothing is
        written then. Nor is it where tiles are missing and that is not allowed.
    """
    try:
        with only_call(instance, folder.key, say=partial(say, on=errors)):
            pairing: dict[str, Any] = {"allow_missing_tiles": allow_missing}
            pairing |= {} if mend is None else {"mend": dict(mend)}
            return _merge(instance, folder, chosen, pairing, overwrite, budget or {})
    except NoSlotError as busy:
        return ImageRun(folder, (), (), str(busy))


def _merge(
    instance: dg.DagsterInstance,
    folder: ImageFolder,
    chosen: dict[str, Any],
    pairing: Mapping[str, Any],
    overwrite: bool,
    budget: Mapping[str, Any],
) -> ImageRun:
    allow_missing = pairing["allow_missing_tiles"]
    if folder.has_changed_objects and (why := why_table_is_kept(folder, overwrite)):
        return ImageRun.left(folder, why)
    plan = folder.plan()
    stage = folder.stage(plan)
    before = folder.acquisition()
    acquisition = replace(before, merge={**before.merge, **chosen})
    segmentation_of_home(folder).merge_options(acquisition, plan, {})
    try:
        stage.settled_counts(allow_missing=allow_missing)
    except StageError as fault:
        if not stage.missing_blocks():
            raise
        why = (
            f"{fault}: '{command_on(folder, 'retry')}' does that and merges, "
            f"'{command_on(folder, 'merge', '--allow-missing-tiles')}' merges with holes"
        )
        return ImageRun(folder, (), (), why, code_of_error=TILES_FAILED)
    check_corrected(folder, plan, overwrite=overwrite)
    folder.write_acquisition(acquisition)
    n_missing, n_tiles = len(stage.missing_blocks()), plan.grid.n_blocks
    which = f"{n_tiles - n_missing} of {n_tiles}" if n_missing else f"{n_tiles}"
    say_step(f"{folder.title}: merging {which} {plan.grid.units}")
    has_pairs = "mend" not in pairing and folder.has_edges_of(stage, allow_missing=allow_missing)
    lineage = Lineage((), folder.segmentation)
    names = MERGED[1:] if has_pairs else MERGED
    configs = {
        "boundary_pairs": pairing,
        "merged_labels": {"overwrite": overwrite},
    }
    error = _run(
        instance,
        lineage.name("merge_image"),
        folder.key,
        {"budget": {"config": dict(budget)}} if budget else {},
        partition_key=folder.key,
        ops={
            lineage.name(name): {"config": config}
            for name, config in configs.items()
            if name in names
        },
        assets=[lineage.key(name) for name in names],
    )
    return ImageRun.of_job(folder, ["merge_image"], error)


def _run(
    instance: dg.DagsterInstance,
    job: str,
    image: str,
    resources: dict[str, Any],
    *,
    partition_key: str | None = None,
    tags: dict[str, str] | None = None,
    ops: dict[str, Any] | None = None,
    assets: Sequence[dg.AssetKey] | None = None,
) -> JobError | None:
    """Run a job for an image and return why it failed, or None."""
    _, error = InProcess(instance, partial(say, on=errors)).run(
        location().resolve_job_def(job),
        image,
        resources=resources,
        partition_key=partition_key,
        tags=tags,
        ops=ops,
        assets=assets,
    )
    return error
