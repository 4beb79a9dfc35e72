"""The folder of a stage: what it consists of, and which making of it stands there."""

from __future__ import annotations

import re
import uuid

from upath import UPath

from patchworks_core.errors import StageError
from patchworks_core.files.storage import write_text
from patchworks_core.stage import first_layout

BLOCKS = "blocks"
"""Folder of the files of tile blocks."""

_GENERATION = "generation"

_NAME = re.compile(rb"[0-9a-f]{32}")

_OF_FIRST_LAYOUT = "0"
"""Generation of a stage that version 0.1.0 made."""

PARTS = frozenset({"plan.json", _GENERATION, BLOCKS, "image.npy"}) | first_layout.PARTS
"""What a stage consists of; a folder that holds anything else is not replaced by one."""


def check_stage_only(path: UPath) -> None:
    """Raise StageError where a folder holds what is no part of a stage."""
    if not path.exists():
        return
    names = {inner.name for inner in path.iterdir()} if path.is_dir() else {path.name}
    # What starts with a dot is litter: of file managers, of removals that were cut short.
    others = sorted(n for n in names - PARTS if not n.startswith(".") and not n.endswith(".part"))
    if others:
        raise StageError(
            f"a stage replaces nothing but a stage, and {path} holds {others[0]!r}, which is no "
            "part of one; name another folder, or move that elsewhere"
        )


def begin_generation(path: UPath) -> None:
    """Note that the stage at `path` is made anew."""
    write_text(path / _GENERATION, new_generation())


def new_generation() -> str:
    """Return a name that no other making of a stage has."""
    return uuid.uuid4().hex


def read_generation(path: UPath) -> str:
    """Return the generation of the stage at `path`, by its folder where the file is damaged."""
    try:
        generation = (path / _GENERATION).read_bytes()
        if _NAME.fullmatch(generation):
            return generation.decode()
    except FileNotFoundError:
        pass
    names = [inner.name for inner in (path / BLOCKS).iterdir()] if (path / BLOCKS).exists() else []
    folders = [name for name in names if _NAME.fullmatch(name.encode())]
    return folders[0] if len(folders) == 1 else _OF_FIRST_LAYOUT
