"""What identifies a function: its import path, and digests of all that its labels depend on.

1. `_Walk` goes from the function through every function of the user's that it names: what they
   close over, their defaults, and the values of the globals that they read.
2. Its code counts, and where that has a source file the file, and that of every module of the
   user's that it imports (`patchworks_core.plugins.user_modules`).
3. Values that code may change while it runs (`FunctionVersion.changing`) are kept apart: a model
   that is loaded with the first tile makes no other function, and nobody can tell it from settings.
4. Installed packages count by their version, files that parameters name by their content.

`FunctionVersion.unknown` says what of all this could not be told.
"""

from __future__ import annotations

import dis
import hashlib
import inspect
import logging
import os
import re
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from functools import cached_property, lru_cache, partial
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path, PurePath
from types import (
    BuiltinFunctionType,
    CodeType,
    FunctionType,
    GetSetDescriptorType,
    MemberDescriptorType,
    MethodType,
    ModuleType,
)
from typing import Any

import numpy as np

from patchworks_core.errors import SegmentationError
from patchworks_core.plugins.models import digest_of_files
from patchworks_core.plugins.user_modules import Reach, is_installed, names_in, owner_of, texts_in
from patchworks_core.plugins.value_digests import Digester, digest_text

MAX_FILES = 1000
"""A folder of more files that a parameter names is not looked through."""

_CONSTANT = (
    *(type(None), bool, int, float, complex, str, bytes, tuple, frozenset, slice, range),
    *(np.generic, np.ndarray, np.dtype, PurePath, re.Pattern),
    *(FunctionType, BuiltinFunctionType, MethodType, partial, type, ModuleType),
)
"""Types of values that belong to the version; those of others may change while code runs."""

_MAKING = ("__init__", "__post_init__", "__new__", "__setstate__")
"""Methods that set attributes when an object is made."""

_BOOKKEEPING = frozenset(
    {
        *("__module__", "__dict__", "__weakref__", "__doc__", "__qualname__", "__annotations__"),
        *("__firstlineno__", "__static_attributes__", "__abstractmethods__", "_abc_impl"),
        *("__dataclass_fields__", "__dataclass_params__", "__parameters__", "__orig_bases__"),
    }
)
"""What Python itself notes in a class."""


@dataclass(frozen=True, slots=True)
class FunctionVersion:
    """What labels of a function depend on."""

    text: str
    """Digests and package versions, as plans record them."""

    changing: str = ""
    """Digest of the values that code may change while it runs."""

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
    values = walk.digester(function, f"the function {name_of(function)!r}")  # an object's too
    # Of the modules' files the content counts, not where they lie.
    modules = sorted(f"{name} {_digest_file(file)}" for file, name in walk.reach.files.items())
    packages = walk.reach.versions()
    # A file that code names may be weights, or one that it writes.
    changing = [*walk.changing, *walk.digester.contents]
    parts = [f"code:{digest_text(values, *(text.encode() for text in modules))}", *packages]
    return FunctionVersion(
        " ".join(parts),
        digest_text(*changing) if changing else "",
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
        self.digester = Digester(self)
        self.changing: list[bytes] = []
        """Digests of what code may change while it runs."""
        self._visited: dict[int, object] = {}
        self._read: set[tuple[int, str]] = set()
        """Modules, and the names that were read of them."""

    def value(self, value: Any, where: str, *, may_change: bool = False) -> bytes:
        """Return the digest of a value; nothing where code may change it, which is kept apart."""
        digest = self.digester(value, where)
        if isinstance(value, _CONSTANT) and not may_change:
            return digest
        if callable(getattr(value, "__wrapped__", None)):  # such as functools.cache
            return digest
        self.changing.append(digest)
        return b""

    def _again(self, visited: object) -> bytes | None:
        """Return which of the functions and classes this is, where it was met before."""
        if id(visited) in self._visited:
            return f"again {list(self._visited).index(id(visited))}".encode()
        self._visited[id(visited)] = visited
        return None

    def function(self, function: FunctionType, name: str) -> bytes:
        """Return the digest of a function that is met on the way."""
        again = self._again(function)
        if again is not None:
            return again
        module, file = function.__module__ or "", function.__code__.co_filename
        digests = [f"{module}:{function.__qualname__}".encode()]
        whose = owner_of(file)
        if whose in ("user", "typed in"):
            digests.append(self.digester.code(function.__code__, name))
        if whose == "user":
            self.reach.add_file(file, module)
        elif whose == "typed in":
            self.reach.add_code(function.__code__, _package_of(function))
        for label, value, may_change in _held(function):
            where = f"{label} of {function.__qualname__}"
            digests.append(self.value(value, where, may_change=may_change))
        if whose in ("user", "typed in"):
            digests += self._globals(function)
            self.changing += _environment(function.__code__)
        return b"".join(digests)

    def class_(self, cls: type) -> bytes:
        """Return the digest of a class: of one of the user's, that of all it holds."""
        again = self._again(cls)
        if again is not None:
            return again
        digests = [f"{cls.__module__}:{cls.__qualname__}".encode()]
        # A class of a notebook and one of the program that started it are both of __main__.
        is_users = self.reach.add(cls.__module__) or cls.__module__ == "__main__"
        if is_users or not is_installed(cls.__module__):
            for name, value in sorted(vars(cls).items()):
                if name in _BOOKKEEPING:
                    continue
                for part in _parts_of(value):
                    digests.append(self.value(part, f"{name!r} of the class {cls.__qualname__}"))
            digests += map(self.class_, (type(cls), *cls.__bases__))
        return b"".join(digests)

    def state(self, value: object, state: dict[str, Any], name: str) -> list[bytes]:
        """Return the digests of the attributes of an object; what may change is kept apart."""
        replaced = set(_stored_attributes(type(value)))
        return [
            attribute.encode()
            + self.value(held, f"{attribute!r} of {name}", may_change=attribute in replaced)
            for attribute, held in state.items()
        ]

    def _globals(self, function: FunctionType) -> list[bytes]:
        """Digest the globals that a function reads, and the attributes of modules."""
        names, replaced = sorted(set(names_in(function.__code__))), _replaced(function)
        digests = []
        for name in names:
            if name in function.__globals__:
                where = f"the global {name!r} of {function.__module__}"
                value, may_change = function.__globals__[name], name in replaced
                digests.append(self._global(value, where, names, may_change=may_change))
            else:
                inner = f"{_package_of(function)}.{name}"
                for module in filter(None, map(sys.modules.get, (name, inner))):
                    digests.append(self._module(module, names))
        return digests

    def _global(
        self, value: Any, where: str, names: Sequence[str], *, may_change: bool = False
    ) -> bytes:
        if isinstance(value, ModuleType):
            return self._module(value, names)
        if isinstance(value, logging.Logger):
            return b""
        return self.value(value, where, may_change=may_change)

    def module(self, module: ModuleType, name: str) -> bytes:
        """Return the digest of a module that is a value, of which anything may be read."""
        if not self._is_users(module):
            return module.__name__.encode()
        if getattr(module, "__file__", None) is None:
            self.digester.unknown.append(f"{name} (the module {module.__name__} has no file)")
        return module.__name__.encode()

    def _is_users(self, module: ModuleType) -> bool:
        """Tell whether a module is the user's, and add its file to what is reached."""
        file = getattr(module, "__file__", None)
        added = self.reach.add(module.__name__)
        return added or not (file or is_installed(module.__name__))

    def _module(self, module: ModuleType, names: Sequence[str]) -> bytes:
        """Digest what is read of a module of the user's; of others the version counts."""
        if not self._is_users(module):
            return module.__name__.encode()
        read = [name for name in names if name in vars(module)]
        read = [name for name in read if (id(module), name) not in self._read]
        self._read.update((id(module), name) for name in read)
        digests = [
            self._global(vars(module)[name], f"{name!r} of the module {module.__name__}", names)
            for name in read
        ]
        return b"".join([module.__name__.encode(), *digests])


def _held(function: FunctionType) -> Iterator[tuple[str, Any, bool]]:
    """Yield what a function closes over, its defaults and attributes; and if code replaces it."""
    replaced = set(_stored(function.__code__, ("STORE_DEREF", "DELETE_DEREF")))
    for name, cell in zip(function.__code__.co_freevars, function.__closure__ or (), strict=True):
        try:
            yield f"the value {name!r}", cell.cell_contents, name in replaced
        except ValueError:  # not assigned yet
            continue
    for value in function.__defaults__ or ():
        yield "a default", value, False
    for name, value in (function.__kwdefaults__ or {}).items():
        yield f"the default of {name!r}", value, False
    for name, value in vars(function).items():
        if name not in ("patchworks", "__wrapped__"):
            yield f"the attribute {name!r}", value, True


def _package_of(function: FunctionType) -> str:
    return str(function.__globals__.get("__package__") or "")


def _environment(code: CodeType) -> Iterator[bytes]:
    """Yield what the environment holds of the variables that code names, where it asks for any."""
    if {"environ", "getenv"}.intersection(names_in(code)):
        for name in sorted(set(texts_in(code)).intersection(os.environ)):
            yield digest_text(
                name.encode(), os.environ[name].encode(errors="surrogateescape")
            ).encode()


def _replaced(function: FunctionType) -> set[str]:
    """Return the globals that some function of the same module replaces while it runs."""
    codes = {
        id(value.__code__): value.__code__
        for value in list(function.__globals__.values())
        if isinstance(value, FunctionType) and value.__globals__ is function.__globals__
    }
    codes[id(function.__code__)] = function.__code__
    opcodes = ("STORE_GLOBAL", "DELETE_GLOBAL")
    return {name for code in codes.values() for name in _stored(code, opcodes)}


@lru_cache(maxsize=4096)
def _stored(code: CodeType, opcodes: tuple[str, ...]) -> frozenset[str]:
    """Return the names that code, and the code in it, stores by these instructions."""
    names = {str(one.argval) for one in dis.get_instructions(code) if one.opname in opcodes}
    for constant in code.co_consts:
        if isinstance(constant, CodeType):
            names |= _stored(constant, opcodes)
    return frozenset(names)


def _stored_attributes(cls: type) -> Iterator[str]:
    """Yield the attributes that methods set later than when an object is made."""
    for base in cls.__mro__:
        for name, method in vars(base).items():
            if isinstance(method, FunctionType) and name not in _MAKING:
                yield from _stored(method.__code__, ("STORE_ATTR", "DELETE_ATTR"))


def _parts_of(value: Any) -> tuple[Any, ...]:
    """Return what stands in a class: the functions behind methods and properties."""
    if isinstance(value, staticmethod | classmethod):
        return (value.__func__,)
    if isinstance(value, property):
        return (value.fget, value.fset, value.fdel)
    if isinstance(value, cached_property):
        return (value.func,)
    if isinstance(value, MemberDescriptorType | GetSetDescriptorType):
        return ()
    return (value,)


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
    # A script that was typed in, or piped to Python, has a name and no file.
    if module is not None and file and Path(str(file)).is_file():
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
