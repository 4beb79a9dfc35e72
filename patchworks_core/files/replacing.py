"""Replacing: the one way in which something new takes the place of what was there.

`replacing` is a context in five steps:

1. It refuses a target that is, holds, or lies in, anything that is read (`check_reads`).
2. It claims the target: of two calls at one time, one works and the other is told.
3. It takes up what a killed call left (`recover`), and refuses to replace what patchworks did not
   write itself, or what was changed since, unless `overwrite` is given (`check_replaceable`).
4. What is new is made in a folder beside the target, from nothing, from what a killed call left
   there, or from a copy of the old one, and vouched for when it is whole
   (`patchworks_core.files.written`).
5. The old one is renamed into that folder, the new one gets its name, and the old one is removed::

       labels              old   old   -     new   new      new
       labels.work/new     ...   whole whole -     -        -
       labels.work/old     -     -     old   old   removed  -

At every instant the old or the new one is whole, and the next call finds it. An object store cannot
rename: there a mark is left while the new one is copied, metadata last, so that a reader sees the
old one, nothing, or the new one; a call that finds the mark copies again.
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from functools import partial
from typing import Any

from upath import UPath

from patchworks_core.errors import PlanError, StorageError
from patchworks_core.files.faults import storing
from patchworks_core.files.records import read_mapping
from patchworks_core.files.storage import (
    claimed,
    copy_objects,
    discard,
    group_format,
    is_durable,
    is_local,
    is_part,
    is_trash,
    remove,
    remove_parts,
    sync,
    sync_all,
    write_text,
)
from patchworks_core.files.stores import Place, places_of
from patchworks_core.files.written import (
    RECORD,
    digest_of,
    fault_of,
    made_from_what,
    record_path,
    vouch,
)

WORK = ".work"
"""Ending of the folder in which something new is made, beside what it replaces."""

NEW, OLD, MARK = "new", "old", "publishing"

WORK_NAMES = frozenset({NEW, OLD, MARK, "stage.zarr", "applied", "merged", "result"})
"""What a folder of work may hold; one that holds anything else is not ours to clear."""

OVERWRITE = "overwrite=True (--overwrite on the command line)"

NO_OTHER = ""
"""What to name another of, where there is nothing: the place follows from what is written."""


@dataclass(frozen=True, slots=True)
class Working:
    """Where the work on something new is done."""

    folder: UPath
    """For whatever the work needs; one of `WORK_NAMES` each."""

    new: UPath
    """Where the new array, group or file is made; nothing is there, but for what is taken up."""

    old: UPath | None = None
    """The target, where it is vouched for: what is new may begin as a copy of it."""

    is_done: bool = False
    """Whether the target is already what would be made; then nothing is to be done."""


@contextmanager
def replacing(
    target: UPath,
    *,
    reads: Iterable[Any] = (),
    what: str,
    another: str = "write_to",
    overwrite: bool = False,
    made_from: Mapping[str, Any] | None = None,
    resume: bool = False,
    keeps: bool = False,
    takes_up: Callable[[UPath], bool] = lambda new: False,
    is_ours: Callable[[UPath], bool] = lambda target: False,
    clear: Callable[[UPath], None] = discard,
) -> Iterator[Working]:
    """Give a place to make something new, which takes the place of `target` when it is whole.

    Parameters
    ----------
    target : UPath
        Array, group or file that is written.
    reads : iterable
        Everything that is read while it is made, as `patchworks_core.files.stores.places_of` takes
        it.
    what : str
        What is written, for messages, such as 'labels'.
    another : str
        What to name another of, for messages; or `NO_OTHER`.
    overwrite : bool
        Replace whatever is there, and make everything anew.
    made_from : mapping, optional
        JSON-ready, kept in the record.
    resume : bool
        Take the target for done where it is what an earlier call made from the same.
    keeps : bool
        Leave the folder of work where the block raises, for the next call to take up.
    takes_up : callable
        Tells whether the block can go on with what a call before left in `Working.new`; what it
        cannot go on with is removed.
    is_ours : callable
        Tells of a target without a record whether patchworks wrote it before there were records.
    clear : callable
        Removes the folder of work, or part of it, when all is done.

    Yields
    ------
    Working

    Raises
    ------
    PlanError
        If the target is read, is not ours to replace, or another call is at it. What was made is
        then, if it was made, left in the folder of work.
    StorageError
        If the target, or the folder of work, cannot be written to.
    """
    work = work_folder(target)
    for written in (target, work):
        check_reads(written, reads, what=what, another=another)
    with _saying_what_is_kept(target, what, keeps=keeps), claimed(work, doing="writing to"):
        recover(target)
        _check_work(work, another)
        if resume and made_from is not None and made_from_what(target) == _as_json(made_from):
            yield Working(work, work / NEW, is_done=True)
            clear(work)
            return
        check = partial(
            check_replaceable,
            target,
            what=what,
            another=another,
            overwrite=overwrite,
            is_ours=is_ours,
        )
        check()
        _begin(work / NEW, (lambda new: False) if overwrite else takes_up)
        is_vouched_for = not overwrite and target.is_dir() and record_path(target).exists()
        try:
            yield Working(work, work / NEW, target if is_vouched_for else None)
        except BaseException:
            if not keeps:
                with suppress(OSError):  # what the block was stopped by is what is said
                    discard(work)
            raise
        check(made=work / NEW)
        try:
            _publish(work / NEW, target, made_from)
        except BaseException:
            with suppress(OSError):  # the next call does it
                recover(target)
            raise
        clear(work)


@contextmanager
def _saying_what_is_kept(target: UPath, what: str, *, keeps: bool) -> Iterator[None]:
    """Say of a place that cannot be written to what is kept, and how to go on."""
    work = work_folder(target)
    try:
        with storing(target, work, work / NEW, doing=f"writing {what}"):
            yield
    except StorageError as error:
        is_kept = keeps and work.exists()
        kept = f"what is done is kept at {work}" if is_kept else "nothing is left of what was made"
        raise StorageError(
            f"{error}; {kept}: make room, or mend the place, and call again", error.errno
        ) from error


def work_folder(target: UPath) -> UPath:
    """Return the folder in which the work for a target is done."""
    return target.with_name(f"{target.name}{WORK}")


def component_path(group: UPath, component: str) -> UPath:
    """Return the path of an array in a group.

    Raises
    ------
    PlanError
        If it would not lie in the group.
    """
    parts = component.split("/")
    if not all(part not in ("", ".", "..") and "\\" not in part for part in parts):
        raise PlanError(
            f"a component is the name of an array within its group, got {component!r} for {group}; "
            "name it such as 'labels', and give the group apart"
        )
    return group.joinpath(*parts)


def check_reads(target: UPath, reads: Iterable[Any], *, what: str, another: str) -> None:
    """Raise PlanError where writing to a target would change what is read."""
    places: dict[Place, None] = {}
    for read in reads:
        places |= dict.fromkeys(places_of(read))
    for place in places:
        clash = place.clash(target)
        if clash is not None:
            relation = "is that" if clash == "is" else f"{clash} {place}"
            raise PlanError(
                f"{what} is never written over what it is made from, and {target} {relation}; name "
                f"another {another}"
            )


def check_replaceable(
    target: UPath,
    *,
    what: str,
    another: str,
    overwrite: bool,
    is_ours: Callable[[UPath], bool] = lambda target: False,
    made: UPath | None = None,
) -> None:
    """Raise PlanError where something is at a target that is not ours to replace.

    Parameters
    ----------
    target, what, another, overwrite, is_ours
        As in `replacing`.
    made : UPath, optional
        What would replace it, where that is made already.
    """
    if not _exists(target):
        return
    way_out = f"name another {another}" if another else "work elsewhere"
    if overwrite:
        if not (is_local(target) and _holds_work_of_this_process(target)):
            return
        fault = "this process works in it"
    else:
        changed = fault_of(target)
        if changed is None or (not record_path(target).exists() and is_ours(target)):
            return
        fault, way_out = changed, f"{way_out}, or pass {OVERWRITE}"
        if not another:
            way_out = (
                "what is there is left as it is: copy it elsewhere to keep it, and pass "
                f"{OVERWRITE} to have it made again"
            )
    if made is not None:
        way_out = f"the new one is at {made} until the next call; {way_out}"
    raise PlanError(
        f"{what} only replaces what patchworks wrote itself and nobody changed since, and {target} "
        f"is {_kind(target)}: {fault}; {way_out}"
    )


def recover(target: UPath) -> None:
    """Bring a target into order after a call that was killed while it replaced it.

    Where the target is missing, the new one takes its place if it was whole, else the old one.
    """
    work = work_folder(target)
    new, old = work / NEW, work / OLD
    if not is_local(target):
        if (work / MARK).exists():
            _copy_in(new, target)
        return
    if not _exists(target):
        if new.is_dir() and record_path(new).exists() and fault_of(new) is None:
            os.rename(str(new), str(target))
        elif _exists(old):
            os.rename(str(old), str(target))
    discard(old)
    _sweep(work, WORK_NAMES)
    _sweep(target.parent, {work.name, f".{target.name}{RECORD}"})


def put_back(target: UPath) -> bool:
    """Bring back what a killed call left of a local target that is missing; tell if it is there.

    For who reads: a call that is just replacing the target is left alone.
    """
    if not is_local(target) or _exists(target) or not work_folder(target).is_dir():
        return _exists(target)
    with suppress(PlanError), claimed(work_folder(target), doing="writing to"):
        recover(target)
    return _exists(target)


def _begin(new: UPath, takes_up: Callable[[UPath], bool]) -> None:
    """Let the work go on with what is there, no longer vouched for, or remove it."""
    if takes_up(new):
        remove(record_path(new))
        remove_parts(new)
    else:
        discard(new)


def _sweep(folder: UPath, names: Iterable[str]) -> None:
    """Remove what killed calls were about to remove, or to write, of these names."""
    if not folder.is_dir():
        return
    for leftover in os.listdir(str(folder)):
        if any(is_trash(leftover, of=name) or is_part(leftover, of=name) for name in names):
            remove(folder / leftover)


def _publish(new: UPath, target: UPath, made_from: Mapping[str, Any] | None) -> None:
    """Vouch for what is new and give it the name of the target."""
    if not new.is_dir():
        _publish_file(new, target, made_from)
        return
    vouch(new, made_from)
    if not is_local(target):
        write_text(new.parent / MARK, str(target))
        _copy_in(new, target)
        return
    old = new.parent / OLD
    if is_durable():
        sync_all(new)
    if _exists(target):
        os.rename(str(target), str(old))
    os.rename(str(new), str(target))
    if is_durable():
        sync(target.parent)
    discard(old)


def _publish_file(new: UPath, target: UPath, made_from: Mapping[str, Any] | None) -> None:
    """Give a file its name; the record vouches for the old and the new one until then."""
    if target.is_dir():
        discard(target)
    record = record_path(target)
    vouch(new, made_from, record=record, before=digest_of(target) if target.exists() else "")
    if is_local(target):
        if is_durable():
            sync(new)
        os.replace(str(new), str(target))
        if is_durable():
            sync(target.parent)
    else:
        target.fs.copy(new.path, target.path)


def _copy_in(new: UPath, target: UPath) -> None:
    """Copy what is new on an object store into its place, and take the mark away."""
    made_from = (read_mapping(record_path(new)) or {}).get("made_from")
    discard(target)
    copy_objects(new, target)
    vouch(target, made_from)
    remove(new.parent / MARK)


def _check_work(work: UPath, another: str) -> None:
    """Raise PlanError where the folder of work holds what no call of ours made."""
    if not work.exists():
        return
    names = {path.name for path in work.iterdir()} if work.is_dir() else {work.name}
    if not names <= WORK_NAMES:
        way_out = "move it elsewhere" + (f", or name another {another}" if another else "")
        raise PlanError(
            f"the work is done in {work}, and that holds {sorted(names - WORK_NAMES)[0]!r}, which "
            f"is nothing of ours; {way_out}"
        )


def _as_json(value: Mapping[str, Any]) -> Any:
    return json.loads(json.dumps(dict(value)))


def _exists(path: UPath) -> bool:
    return os.path.lexists(str(path)) if is_local(path) else bool(path.exists())


def _holds_work_of_this_process(path: UPath) -> bool:
    """Tell whether a folder is the working directory, or holds it."""
    return Place.of(os.getcwd()).clash(path) in ("is", "holds")


def _kind(path: UPath) -> str:
    """Say what is at a path; its metadata may be damaged."""
    if group_format(path) is None:
        return "a folder" if path.is_dir() else "a file"
    record = read_mapping(path / "zarr.json") or {}
    is_group = (path / ".zgroup").exists() or record.get("node_type") == "group"
    return "a whole Zarr group" if is_group else "a Zarr array"
