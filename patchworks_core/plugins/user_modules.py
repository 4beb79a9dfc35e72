"""The user's own modules that a module reaches, and the packages that they import.

What a module imports is read from its source, wherever the import stands, so that nothing is run
for it. A module counts as the user's where it lies neither in the standard library nor among the
installed packages: a package that is being worked on (an editable install) is the user's too.
"""

from __future__ import annotations

import ast
import dis
import importlib.util
import os
import site
import sys
import sysconfig
from collections.abc import Iterator
from dataclasses import dataclass, field
from functools import lru_cache
from importlib.metadata import Distribution, PackageNotFoundError, distributions, version
from inspect import getmodulename
from pathlib import Path
from types import CodeType

from patchworks_core.plugins.models import digest_of_files

OURS = frozenset({"patchworks_core", "patchworks_pipeline"})
"""Packages that say by their functions' own versions when labels would be others."""


@dataclass(slots=True)
class Reach:
    """What a function reaches."""

    files: dict[Path, str] = field(default_factory=dict)
    """Source files of the user's modules, and the name of each module."""

    packages: set[str] = field(default_factory=set)
    """Top-level names of the installed packages that they import."""

    unknown: list[str] = field(default_factory=list)
    """What could not be followed, in words."""

    def add(self, module: str) -> bool:
        """Add a module by name, and all that it imports; tell whether it is the user's."""
        top = module.partition(".")[0]
        origin = _origin(module)
        if top in OURS or origin is None:
            return False
        if _is_installed(origin):
            self.packages.add(top)
            return False
        self._follow(origin, module)
        return True

    def add_file(self, file: str, module: str) -> None:
        """Add the file that code of the user's stands in, and the module that it says it is of."""
        origin = Path(os.path.realpath(file))
        if _file_of(module) != origin:
            modules = [(name, getattr(m, "__file__", None)) for name, m in sys.modules.items()]
            named = [n for n, path in modules if path and os.path.realpath(path) == str(origin)]
            module = min(named, key=len, default=origin.stem)
        self._follow(origin, module)

    def add_code(self, code: CodeType, package: str) -> None:
        """Add what code without a source file imports, wherever in it that stands.

        Parameters
        ----------
        code : CodeType
        package : str
            That relative imports start from.
        """
        for name in _imports_of_code(code, package):
            self.add(name)
        if {"import_module", "__import__"}.intersection(names_in(code)):
            names = [text for text in texts_in(code) if _is_module(text)]
            for name in names:
                self.add(name)
            if not names:
                self.unknown.append(f"the module that {code.co_name} imports by name")

    def _follow(self, file: Path, module: str) -> None:
        if file in self.files:
            return
        self.files[file] = module
        state = file.stat()
        package = _package_of(file, module)
        imported, unknown = _imports_of(file, package, state.st_mtime_ns, state.st_size)
        self.unknown += unknown
        for name in imported:
            self.add(name)

    def versions(self) -> list[str]:
        """Return ``distribution==version`` of the packages, sorted."""
        return _versions_of(frozenset(self.packages))


def owner_of(file: str) -> str:
    """Tell whose code with this file name is: ``user``, ``installed``, ``ours`` or ``typed in``.

    What was typed into a notebook, or made by ``exec``, has no file.
    """
    if not os.path.isfile(file):
        return "typed in"
    path = Path(os.path.realpath(file))
    if any(path.is_relative_to(folder) for folder in _our_folders()):
        return "ours"
    return "installed" if _is_of_python_or_installed(path) else "user"


def is_installed(module: str) -> bool:
    """Tell whether a module is part of Python, of an installed package, or of this one."""
    top = module.partition(".")[0]
    if top in OURS or top in sys.stdlib_module_names:
        return top != "__main__"
    file = _file_of(module)
    return file is not None and _is_of_python_or_installed(file)


def _file_of(module: str) -> Path | None:
    """Return the file of a module; None where it has none."""
    if module == "__main__":
        file = getattr(sys.modules.get("__main__"), "__file__", None)
        return Path(os.path.realpath(file)) if file and os.path.isfile(file) else None
    try:
        spec = importlib.util.find_spec(module)
    except Exception:  # finding a module imports its package, which may raise anything
        return None
    if spec is None or not spec.has_location or spec.origin is None:
        return None
    return Path(os.path.realpath(spec.origin))


def _origin(module: str) -> Path | None:
    """Return the file of a module that is not part of Python."""
    file = _file_of(module)
    if file is None or _is_installed(file):
        return file
    return None if file.is_relative_to(_standard_library()) else file


@lru_cache(maxsize=1)
def _our_folders() -> tuple[Path, ...]:
    files = [importlib.util.find_spec(name) for name in sorted(OURS)]
    return tuple(Path(os.path.realpath(f.origin)).parent for f in files if f and f.origin)


def _is_of_python_or_installed(path: Path) -> bool:
    return _is_installed(path) or path.is_relative_to(_standard_library())


def _package_of(file: Path, module: str) -> str:
    """Return the package that relative imports of a module start from."""
    if module == "__main__":
        spec = getattr(sys.modules.get("__main__"), "__spec__", None)
        return str(spec.parent) if spec is not None else ""
    return module if file.name == "__init__.py" else module.rpartition(".")[0]


@lru_cache(maxsize=1)
def _package_folders() -> tuple[Path, ...]:
    folders = {sysconfig.get_paths()[name] for name in ("purelib", "platlib")}
    folders |= {*site.getsitepackages(), site.getusersitepackages()}
    return tuple(Path(os.path.realpath(folder)) for folder in folders)


@lru_cache(maxsize=1)
def _standard_library() -> Path:
    return Path(os.path.realpath(sysconfig.get_paths()["stdlib"]))


def _is_installed(path: Path) -> bool:
    return any(path.is_relative_to(folder) for folder in _package_folders())


def _versions_of(packages: frozenset[str]) -> list[str]:
    """Return ``distribution==version`` of all that holds one of the packages, sorted.

    What was put among the installed packages without being one has a digest of its files.
    """
    versions = []
    for name in _distributions_of(packages):
        try:
            versions.append(f"{name}=={version(name)}")
        except PackageNotFoundError:
            if files := _files_of(name):
                versions.append(f"{name}=={digest_of_files(files)}")
    return sorted(versions)


def _files_of(package: str) -> list[Path]:
    """Return the files of a module or package, sorted, but for what Python compiled of them."""
    spec = importlib.util.find_spec(package)
    if spec is None:
        return []
    if spec.submodule_search_locations is None:
        return [Path(spec.origin)] if spec.has_location and spec.origin else []
    files = {file for folder in spec.submodule_search_locations for file in Path(folder).rglob("*")}
    return sorted(file for file in files if file.is_file() and file.suffix != ".pyc")


@lru_cache(maxsize=8)
def _distributions_of(packages: frozenset[str]) -> frozenset[str]:
    """Return the names of the distributions that hold packages; of one that none holds, its own.

    `importlib.metadata.packages_distributions` says the same of every package there is, which takes
    half a second of a first call.
    """
    held = [(one, names) for one in distributions() if (names := _held_by(one, packages))]
    own = packages.difference(*(names for _, names in held))
    return own.union(one.name for one, _ in held)


def _held_by(distribution: Distribution, packages: frozenset[str]) -> set[str]:
    """Return which of the packages a distribution holds."""
    declared = (distribution.read_text("top_level.txt") or "").split()
    if declared:
        return set(packages.intersection(declared))
    record = distribution.read_text("RECORD")
    if record is None:
        tops = {file.parts[0] for file in distribution.files or ()}
    else:
        tops = {line.partition(",")[0].partition("/")[0] for line in record.splitlines()}
    return {getmodulename(top) or top for top in tops} & packages


@lru_cache(maxsize=1024)
def _imports_of(
    file: Path, package: str, changed: int, size: int
) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """Return the modules that a source file imports, and what it imports by a name unknown here.

    `changed` and `size` tell that the file is another.
    """
    try:
        tree = ast.parse(file.read_bytes(), filename=str(file))
    except (SyntaxError, ValueError):
        return (), (f"what {file.name} imports, which is not Python source",)
    imported: dict[str, None] = {}
    unknown: list[str] = []
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            imported |= dict.fromkeys(name for alias in node.names for name in _parents(alias.name))
        elif isinstance(node, ast.ImportFrom):
            base = _base(node, package)
            imported |= dict.fromkeys(_parents(base))
            # What is imported from a package may be a module of it.
            imported |= dict.fromkeys(f"{base}.{alias.name}" for alias in node.names if base)
        elif isinstance(node, ast.Call) and _imports_by_name(node):
            name = node.args[0] if node.args else None
            if isinstance(name, ast.Constant) and isinstance(name.value, str):
                imported[name.value] = None
            else:
                unknown.append(f"the module that {file.name} imports by name in line {node.lineno}")
    return tuple(name for name in imported if name), tuple(unknown)


def _imports_of_code(code: CodeType, package: str) -> Iterator[str]:
    """Yield the modules that code imports, that of functions within it too."""
    made = [op for op in dis.get_instructions(code) if op.opname != "EXTENDED_ARG"]
    # An import is made of a level and of the names that are imported from the module.
    for level, names, made_import in zip(made, made[1:], made[2:], strict=False):
        if made_import.opname != "IMPORT_NAME":
            continue
        base = _absolute(made_import.argval, level.argval, package)
        yield from _parents(base)
        yield from (f"{base}.{name}" for name in names.argval or () if base)
    for constant in code.co_consts:
        if isinstance(constant, CodeType):
            yield from _imports_of_code(constant, package)


def names_in(code: CodeType) -> Iterator[str]:
    """Yield the names that code reads, that of functions within it too."""
    yield from code.co_names
    for constant in code.co_consts:
        if isinstance(constant, CodeType):
            yield from names_in(constant)


def texts_in(code: CodeType) -> Iterator[str]:
    """Yield the texts that stand in code, those of functions within it too."""
    for constant in code.co_consts:
        if isinstance(constant, str):
            yield constant
        elif isinstance(constant, CodeType):
            yield from texts_in(constant)


def _is_module(text: str) -> bool:
    return all(map(str.isidentifier, text.split("."))) and _file_of(text) is not None


def _parents(name: str) -> Iterator[str]:
    """Yield a module and the packages that it lies in, the outermost first."""
    parts = name.split(".")
    return (".".join(parts[: n + 1]) for n in range(len(parts)))


def _base(node: ast.ImportFrom, package: str) -> str:
    """Return the module that a ``from`` names, a relative one made absolute."""
    return _absolute(node.module or "", node.level, package)


def _absolute(module: str, level: int, package: str) -> str:
    """Return the name of a module that is named from a package, `level` dots before it."""
    if not level:
        return module
    parts = package.split(".") if package else []
    above = parts[: len(parts) - (level - 1)]
    return ".".join([*above, *([module] if module else [])])


def _imports_by_name(node: ast.Call) -> bool:
    called = node.func
    name = called.attr if isinstance(called, ast.Attribute) else getattr(called, "id", "")
    return name in ("import_module", "__import__")
