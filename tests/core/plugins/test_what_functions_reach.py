"""What counts of a function beside its own code: modules, packages and the environment."""

from __future__ import annotations

import importlib
import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType

import pytest

from patchworks_core.plugins import user_modules
from patchworks_core.plugins.segmentation import Segmentation, segmentation_of


def typed_in(text: str, **values: object) -> Segmentation:
    """Return what a function ``fn`` is that was typed into a notebook."""
    place: dict[str, object] = {"__name__": "__main__", **values}
    exec(compile(text, "<cell>", "exec"), place)
    return segmentation_of(place["fn"])  # type: ignore[arg-type]


def forget() -> None:
    """Forget the modules of the folder, which other tests have too."""
    for name in ("reached", "parts", "parts.one"):
        sys.modules.pop(name, None)


@pytest.fixture
def folder(tmp_path, monkeypatch) -> Iterator[Path]:
    """A folder on the path, with a module and a package of modules."""
    forget()
    (tmp_path / "reached.py").write_text("def label(tile): return tile > 1\n")
    (tmp_path / "parts").mkdir()
    (tmp_path / "parts/__init__.py").write_text("")
    (tmp_path / "parts/one.py").write_text("def label(tile): return tile > 1\n")
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setattr(sys, "dont_write_bytecode", True)
    yield tmp_path
    forget()


@pytest.fixture
def reached(folder) -> ModuleType:
    """The module, imported."""
    return importlib.import_module("reached")


@pytest.mark.parametrize(
    ("line", "file"),
    [
        ("import reached", "reached.py"),
        ("from reached import label", "reached.py"),
        ("from parts import one", "parts/one.py"),
        ("import parts.one as p", "parts/one.py"),
        ("import importlib; importlib.import_module('parts.one')", "parts/one.py"),
        ("(lambda: __import__('reached'))()", "reached.py"),
    ],
)
def test_what_a_function_that_was_typed_in_imports_counts_before_it_ran(folder, line, file):
    text = f"def fn(tile):\n    {line}\n    return tile\n"
    before = typed_in(text)
    assert typed_in(text).version == before.version
    assert not before.unknown
    (folder / file).write_text("def label(tile): return tile > 2\n")
    assert typed_in(text).version != before.version


def test_packages_that_a_function_that_was_typed_in_imports_count(folder):
    text = "def fn(tile):\n    from scipy import ndimage\n    return ndimage.label(tile)[0]\n"
    assert "scipy==" in typed_in(text).version


def test_a_module_that_code_that_was_typed_in_imports_by_a_name_it_makes_is_not_known():
    made = typed_in("import importlib\ndef fn(tile): return importlib.import_module(NAME + 's')\n")
    assert made.unknown == ("the module that fn imports by name",)


@pytest.mark.parametrize(
    "made",
    [
        "def make(m): return lambda tile: m.label(tile)\nfn = make(M)",
        "import functools\ndef run(m, t): return m.label(t)\nfn = functools.partial(run, M)",
        "TABLE = {'m': M}\ndef fn(tile): return TABLE['m'].label(tile)",
        "def fn(tile, m=M): return m.label(tile)",
        "class C:\n    m = M\n    def __call__(self, tile): return self.m.label(tile)\nfn = C()",
    ],
    ids=["closed over", "bound", "in a table", "a default", "in a class"],
)
def test_the_file_of_a_module_that_is_a_value_counts(folder, reached, made):
    before = typed_in(made, M=reached)
    assert typed_in(made, M=reached).version == before.version
    assert not before.unknown
    (folder / "reached.py").write_text("def label(tile): return tile > 2\n")
    after = typed_in(made, M=reached)
    assert (after.version, after.changing) != (before.version, before.changing)


def test_a_module_without_a_file_that_is_a_value_is_not_known():
    made = typed_in("def fn(tile, m=M): return m.level", M=ModuleType("made"))
    assert "the module made has no file" in made.unknown[0]


def test_what_a_second_function_reads_of_a_module_counts_too(reached):
    text = "def other(tile): return tile > M.b\ndef fn(tile): return other(tile) + M.a\n"
    versions = set()
    for reached.a, reached.b in ((1, 1), (1, 2), (2, 1)):
        versions.add(typed_in(text, M=reached).version)
    assert len(versions) == 3


@pytest.mark.parametrize("call", ["environ['PW_LEVEL']", "environ.get('PW_LEVEL')"])
def test_what_a_function_reads_of_the_environment_is_told_apart(call, monkeypatch):
    text = f"import os\ndef fn(tile): return tile > int(os.{call} or 0)\n"
    told = set()
    for level in (None, "1", "2"):
        monkeypatch.delenv("PW_LEVEL", raising=False)
        if level is not None:
            monkeypatch.setenv("PW_LEVEL", level)
        told.add(typed_in(text).changing)
        monkeypatch.setenv("PW_UNRELATED", str(level))
        told.add(typed_in(text).changing)
    assert len(told) == 3


def test_what_lies_among_the_packages_without_being_one_counts_by_content(folder, monkeypatch):
    monkeypatch.setattr(user_modules, "_package_folders", lambda: (folder,))
    text = "def fn(tile):\n    import reached, parts\n    return tile\n"
    versions = {typed_in(text).version}
    for file in ("reached.py", "parts/one.py"):
        (folder / file).write_text("def label(tile): return tile > 22\n")
        versions.add(typed_in(text).version)
    assert len(versions) == 3
