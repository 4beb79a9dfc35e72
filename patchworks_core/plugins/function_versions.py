"""What identifies a function: its import path, and digests of all that its labels depend on.

1. `_Walk` goes from the function through every function of the user's that it names: what they
   close over, their defaults, and the values of the globals that they read.
2. Of a function whose module has a source file the file counts, and that of every module of the
   user's that it imports (`patchworks_core.plugins.user_modules`); of one that was typed in, its
   code.
3. Installed packages count by their version, files that parameters name by their content.

`FunctionVersion.unknown` says what of all this could not be told.
"""

from __future__ import annotations

import dis
import hashlib
import inspect
import logging
import os
from collections.abc import Callable, Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from types import CodeType, FunctionType, ModuleType
from typing import Any

import numpy as np

from patchworks_core.errors import SegmentationError
from patchworks_core.plugins.models import digest_of_files
from patchworks_core.plugins.user_modules import Reach, has_source, is_installed, is_source_of
from patchworks_core.plugins.value_digests import Digester, digest_text

MAX_FILES = 1000
"""A folder of more files that a parameter names is not looked through."""

_CONSTANT = (type(None), bool, int, float, complex, str, bytes, tuple, frozenset, np.generic)
"""Types of globals that code can only replace, not change."""

_MAKING = ("__init__", "__post_init__", "__new__", "__setstate__")
"""Methods that set attributes when an object is made."""

_FOLLOWED = (FunctionType, partial, type, np.ndarray, *_CONSTANT)
"""Types of globals that belong to the version."""

_CHANGING = (list, dict, set, bytearray)
"""Types of globals and attributes that code may change while it runs, such as a cache."""


@dataclass(frozen=True, slots=True)
class FunctionVersion:
    """What labels of a function depend on."""

    text: str
    """Digests and package versions, as plans record them."""

    changing: str = ""
    """Digest of the globals and attributes that code may change while it runs."""

    unknown: tuple[str, ...] = ()
    """What nothing here vouches for, in words."""


def name_of(function: Callable[..., Any]) -> str:
    """Return the import path of `function`; a partial shows what it wraps."""
    if isinstance(function, partial):
        return f"partial({name_of(function.func)})"
    qualname = getattr(function, "__qualname__", type(function).__qualname__)
    return f"{getattr(function, '__module__', type(function).__module__)}:{qualname}"


def version_of(function: Callable[..., Any]) -> FunctionVersion:
    """Return what the labels of a function depend on, beside the tile and its parameters."""
    walk = _Walk()
    values = walk.digester(function, f"the function {name_of(function)!r}")
    # Of the modules' files the content counts, not where they lie.
    modules = sorted(f"{name} {_digest_file(file)}" for file, name in walk.reach.files.items())
    packages = walk.reach.versions()
    parts = [f"code:{digest_text(values, *(text.encode() for text in modules))}", *packages]
    return FunctionVersion(
        " ".join(parts),
        digest_text(*walk.changing.values()) if walk.changing else "",
        tuple(dict.fromkeys([*walk.digester.unknown, *walk.reach.unknown])),
    )


def version_of_files(parameters: Mapping[str, Any]) -> FunctionVersion:
    """Return the digest of the files and folders that parameters name; no text where none does."""
    files: list[Path] = []
    unknown: list[str] = []
    for name, value in parameters.items():
        for path in _paths_in(value):
            inside = [path] if path.is_file() else _files_in(path)
            if inside is None:
                unknown.append(f"the folder {str(path)!r} of parameter {name!r}, of many files")
            else:
                files += inside
    return FunctionVersion(f"files:{digest_of_files(files)}" if files else "", "", tuple(unknown))


def _paths_in(value: Any) -> Iterator[Path]:
    """Yield what a value names of the files and folders that are there."""
    if isinstance(value, str | os.PathLike):
        text = os.fspath(value)
        if isinstance(text, str) and 0 < len(text) < 4096 and "\0" not in text:
            path = Path(text).expanduser()
            if os.path.exists(path):
                yield path
    elif isinstance(value, Mapping):
        for inner in value.values():
            yield from _paths_in(inner)
    elif isinstance(value, list | tuple):
        for inner in value:
            yield from _paths_in(inner)


def _files_in(folder: Path) -> list[Path] | None:
    """Return the files in a folder, sorted; None where there are too many."""
    files: list[Path] = []
    for parent, _, names in os.walk(folder):
        files += [Path(parent) / name for name in names]
        if len(files) > MAX_FILES:
            return None
    return sorted(file for file in files if file.is_file())


class _Walk:
    """Goes through a function and all that it names."""

    def __init__(self) -> None:
        self.reach = Reach()
        self.digester = Digester(self.function, self.class_, self.constant_state)
        self.changing: dict[str, bytes] = {}
        """Digests of what code may change while it runs, by name."""
        self._visited: dict[int, object] = {}

    def function(self, function: FunctionType, name: str) -> bytes:
        """Return the digest of a function that is met on the way."""
        module = function.__module__ or ""
        place = f"{module}:{function.__qualname__}".encode()
        if id(function) in self._visited:
            return place
        self._visited[id(function)] = function
        is_typed_in = not is_source_of(module, function.__code__.co_filename)
        if is_typed_in and (module == "__main__" or not is_installed(module)):
            own = [place, self.digester.code(function.__code__, name)]
        elif self.reach.add(module):
            own = [place]
        else:
            return place  # of Python, of an installed package, or of this one
        held = [
            self.digester(value, f"{label} of {function.__qualname__}")
            for label, value in _held(function)
        ]
        return b"".join([*own, *held, *self._globals(function)])

    def class_(self, cls: type) -> bytes:
        """Return the digest of a class: of one of the user's, that of its methods."""
        place = f"{cls.__module__}:{cls.__qualname__}".encode()
        if id(cls) in self._visited:
            return place
        self._visited[id(cls)] = cls
        is_users = self.reach.add(cls.__module__) or not (
            has_source(cls.__module__) or is_installed(cls.__module__)
        )
        if not is_users and cls.__module__ != "__main__":
            return place
        digests = [
            self.digester(value, f"{name!r} of the class {cls.__qualname__}")
            for name, value in sorted(vars(cls).items())
            if isinstance(value, FunctionType) or (isinstance(value, _CONSTANT) and name[0] != "_")
        ]
        return b"".join([place, *digests, *map(self.class_, cls.__bases__)])

    def constant_state(self, value: object, state: dict[str, Any], name: str) -> dict[str, Any]:
        """Return the attributes of an object that its methods neither replace nor may change."""
        if is_installed(type(value).__module__):
            return state
        replaced = set(_stored_attributes(type(value)))
        constant = {}
        for attribute, held in state.items():
            if attribute in replaced:
                continue
            where = f"{attribute!r} of {name}"
            if isinstance(held, _CHANGING):
                self.changing[where] = self.digester(held, where)
            else:
                constant[attribute] = held
        return constant

    def _globals(self, function: FunctionType) -> list[bytes]:
        """Digest the globals that a function reads and nothing replaces while it runs."""
        digests = []
        for name in sorted(set(_names(function.__code__))):
            if name not in function.__globals__ or name in _replaced(function):
                continue
            value = function.__globals__[name]
            where = f"the global {name!r} of {function.__module__}"
            if isinstance(value, ModuleType):
                self.reach.add(value.__name__)
            elif isinstance(value, _FOLLOWED) or callable(getattr(value, "__wrapped__", None)):
                digests.append(self.digester(value, where))
            elif isinstance(value, _CHANGING):
                self.changing[where] = self.digester(value, where)
            elif not isinstance(value, logging.Logger) and not has_source(function.__module__):
                digests.append(self.digester(value, where))
        return digests


def _held(function: FunctionType) -> Iterator[tuple[str, Any]]:
    """Yield what a function closes over, and its defaults, by name."""
    for name, cell in zip(function.__code__.co_freevars, function.__closure__ or (), strict=True):
        try:
            yield f"the value {name!r}", cell.cell_contents
        except ValueError:  # not assigned yet
            continue
    yield "the defaults", function.__defaults__ or ()
    yield "the keyword defaults", function.__kwdefaults__ or {}


def _names(code: CodeType) -> Iterator[str]:
    """Yield the names that code reads, that of functions within it too."""
    yield from code.co_names
    for constant in code.co_consts:
        if isinstance(constant, CodeType):
            yield from _names(constant)


def _replaced(function: FunctionType) -> set[str]:
    """Return the globals that some function of the same module replaces while it runs."""
    codes = {
        id(value.__code__): value.__code__
        for value in list(function.__globals__.values())
        if isinstance(value, FunctionType) and value.__globals__ is function.__globals__
    }
    codes[id(function.__code__)] = function.__code__
    return {name for code in codes.values() for name in _stored(code)}


def _stored(code: CodeType) -> Iterator[str]:
    for instruction in dis.get_instructions(code):
        if instruction.opname in ("STORE_GLOBAL", "DELETE_GLOBAL"):
            yield str(instruction.argval)
    for constant in code.co_consts:
        if isinstance(constant, CodeType):
            yield from _stored(constant)


def _stored_attributes(cls: type) -> Iterator[str]:
    """Yield the attributes that methods set later than when an object is made."""
    for base in cls.__mro__:
        for name, method in vars(base).items():
            if isinstance(method, FunctionType) and name not in _MAKING:
                yield from _set_in(method.__code__)


def _set_in(code: CodeType) -> Iterator[str]:
    for instruction in dis.get_instructions(code):
        if instruction.opname == "STORE_ATTR":
            yield str(instruction.argval)


def _digest_file(file: Path) -> str:
    return hashlib.blake2b(file.read_bytes(), digest_size=8).hexdigest()


def version_before(function: Callable[..., Any]) -> str:
    """Return what version 0.1.0 recorded of a function, so that its stages are known again.

    Raises
    ------
    SegmentationError
        If it recorded none.
    """
    if isinstance(function, partial):
        bound = (function.args, sorted(function.keywords.items()))
        return f"{version_before(function.func)} {_pickle_digest(bound)}"
    declared = getattr(getattr(function, "patchworks", None), "version", "")
    if declared:
        return str(declared)
    parts = []
    module = inspect.getmodule(function)
    file = getattr(module, "__file__", None)
    if module is not None and file:
        package = module.__name__.partition(".")[0]
        with suppress(PackageNotFoundError):
            parts.append(f"{package}=={version(package)}")
        parts.append(f"source:{_digest_file(Path(str(file)))}")
    if not parts or not inspect.isroutine(function) or "<" in name_of(function):
        parts.append(_pickle_digest(function))
    elif inspect.ismethod(function):
        parts.append(_pickle_digest(getattr(function, "__self__", None)))
    return " ".join(parts)


def _pickle_digest(value: object) -> str:
    import cloudpickle

    try:
        content = cloudpickle.dumps(value)
    except Exception as error:  # whatever an object's own code raises
        raise SegmentationError(f"{value!r} cannot be pickled ({error})") from error
    return f"pickle:{hashlib.blake2b(content, digest_size=8).hexdigest()}"
