"""What the version of a function changes with, and what it does not."""

from __future__ import annotations

import importlib
import os
import re
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from functools import partial
from importlib.metadata import packages_distributions, version
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest

from patchworks_core.plugins import user_modules
from patchworks_core.plugins.function_versions import version_before
from patchworks_core.plugins.segmentation import Segmentation, declare, segmentation_of

MAIN = """
import helpers
from pack import inner
import numpy as np

LEVEL = 3
CACHE = {}
MODEL = None
{extra}

def fn(tile, level=2, names=frozenset(["a", "b", "c", "d"])):
    global MODEL
    MODEL = object()
    from lazily import imported
    return helpers.label(tile > LEVEL + inner.OFFSET + imported.VALUE, CACHE)

class Method:
    def __init__(self, value):
        self.value = value

    def __call__(self, tile):
        return fn(tile, self.value)

    def run(self, tile):
        return fn(tile, self.value)

def made(value):
    def closure(tile):
        return fn(tile) + len(value)
    return closure
"""

FILES = {
    "helpers.py": "def label(tile, cache): return tile * 1\n",
    "pack/__init__.py": "",
    "pack/inner.py": "from .deeper import OFFSET\n",
    "pack/deeper.py": "OFFSET = 1\n",
    "lazily/__init__.py": "",
    "lazily/imported.py": "VALUE = 0\n",
    "unrelated.py": "X = 1\n",
}

ASK = """
import sys
sys.path.insert(0, sys.argv[1])
import user
from patchworks_core.plugins.segmentation import segmentation_of
for expression in sys.argv[2:]:
    print(segmentation_of(eval(expression, vars(user))))
"""


@pytest.fixture
def project(tmp_path: Path) -> Path:
    """A project of several modules, none of them installed."""
    for name, text in {**FILES, "user.py": MAIN.replace("{extra}", "")}.items():
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text(text)
    return tmp_path


@contextmanager
def fresh_import(project: Path) -> Iterator[ModuleType]:
    """Import the project anew, for as long as the block lasts."""
    names = {name.partition("/")[0].removesuffix(".py") for name in FILES} | {"user"}
    with pytest.MonkeyPatch.context() as patch:
        for name in [name for name in sys.modules if name.partition(".")[0] in names]:
            patch.delitem(sys.modules, name)
        patch.syspath_prepend(project)
        patch.setattr(sys, "dont_write_bytecode", True)
        yield importlib.import_module("user")
        for name in [name for name in sys.modules if name.partition(".")[0] in names]:
            del sys.modules[name]


def ask(project: Path, expression: str = "fn") -> Segmentation:
    """Return what a function of the project is now, imported anew."""
    with fresh_import(project) as module:
        return segmentation_of(eval(expression, vars(module)))


@pytest.mark.slow
def test_the_version_is_the_same_in_every_process(project):
    expressions = ["fn", "made({'z', 'y', 'x', 'w'})", "Method({'k': {1, 2}}).run", "Method(2)"]
    answers = set()
    for seed in "12":
        environment = {**os.environ, "PYTHONHASHSEED": seed, "PYTHONDONTWRITEBYTECODE": "1"}
        command = [sys.executable, "-c", ASK, str(project), *expressions]
        done = subprocess.run(command, env=environment, capture_output=True, text=True)
        assert done.returncode == 0, done.stderr
        answers.add(
            re.sub(" at 0x[0-9a-f]+", "", re.sub("function=.*?, name", "name", done.stdout))
        )
    assert len(answers) == 1
    assert answers.pop().count("unknown=()") == len(expressions)


@pytest.mark.parametrize(
    "file", ["user.py", "helpers.py", "pack/deeper.py", "lazily/imported.py", "pack/__init__.py"]
)
def test_an_edited_module_that_the_function_reaches_is_another_version(project, file):
    before = ask(project)
    with (project / file).open("a") as opened:
        opened.write("\n# edited\n")
    assert ask(project).version != before.version


def test_a_module_that_is_not_reached_does_not_count(project):
    before = ask(project)
    (project / "unrelated.py").write_text("X = 2\n")
    (project / "new.py").write_text("X = 2\n")
    assert ask(project).version == before.version


def test_the_folder_of_the_project_does_not_count(project, tmp_path_factory):
    moved = tmp_path_factory.mktemp("moved") / "project"
    before = ask(project)
    project.rename(moved)
    assert ask(moved).version == before.version


def test_the_packages_that_are_imported_count_by_version(project):
    assert f"numpy=={np.__version__}" in ask(project).version.split()
    assert "scipy" not in ask(project).version
    with (project / "pack/deeper.py").open("a") as opened:
        opened.write("import scipy\n")
    assert "scipy==" in ask(project).version


def test_what_is_imported_by_a_name_made_at_run_time_is_not_known(project):
    with (project / "helpers.py").open("a") as opened:
        opened.write("import importlib\nimportlib.import_module('unrelated')\n")
    known = ask(project)
    assert not known.unknown
    (project / "unrelated.py").write_text("X = 2\n")
    assert ask(project).version != known.version
    with (project / "helpers.py").open("a") as opened:
        opened.write("importlib.import_module('unre' + 'lated')\n")
    assert "imports by name in line 4" in ask(project).unknown[0]


def typed_in(text: str, name: str = "fn", **values: object) -> Segmentation:
    """Return what a function is that was typed into a notebook."""
    place: dict[str, object] = {"__name__": "__main__", "np": np, **values}
    exec(compile(text, "<cell>", "exec"), place)
    return segmentation_of(place[name])  # type: ignore[arg-type]


HELPED = "def helper(x): return x + {0}\ndef fn(tile): return helper(tile > LEVEL)\n"


def test_a_function_that_was_typed_in_counts_with_its_helpers_and_globals():
    first = typed_in(HELPED.format(1), LEVEL=2)
    assert typed_in("# moved\n\n" + HELPED.format(1), LEVEL=2, other=7).version == first.version
    assert typed_in(HELPED.format(2), LEVEL=2).version != first.version
    assert typed_in(HELPED.format(1), LEVEL=3).version != first.version
    assert not first.unknown


def test_a_global_that_code_may_change_is_told_apart_from_the_version():
    text = "def fn(tile): return tile > SETTINGS['level']\n"
    first = typed_in(text, SETTINGS={"level": 1})
    second = typed_in(text, SETTINGS={"level": 2})
    assert first.version == second.version
    assert first.changing != second.changing


def test_a_model_that_is_loaded_with_the_first_tile_makes_no_other_version():
    text = (
        "def fn(tile):\n    global MODEL\n    MODEL = MODEL or open('/dev/null')\n    return tile\n"
    )
    first = typed_in(text, MODEL=None)
    second = typed_in(text, MODEL=7)
    assert first.version == second.version
    assert first.changing != second.changing  # nobody can tell it from a setting


def test_what_cannot_be_digested_is_named_and_the_function_runs_all_the_same():
    lock = threading.Lock()

    def fn(tile):
        with lock:
            return tile

    found = segmentation_of(fn)
    assert len(found.unknown) == 1
    assert "'lock' of" in found.unknown[0]
    assert segmentation_of(fn).version == found.version


@pytest.mark.parametrize(
    "values",
    [
        (np.zeros(3), np.ones(3)),
        (np.zeros(3), np.zeros(3, "f4")),
        ({"a": {1, 2}}, {"a": {1, 3}}),
        ([1, (2, "x")], [1, (2, b"x")]),
        (partial(max, 1), partial(max, 2)),
        (Path("a"), Path("b")),
        (1, True),
        (np.array([1, "x"], object), np.array([1, "y"], object)),
    ],
)
def test_what_a_function_closes_over_counts(values):
    def versions(value):
        found = segmentation_of(lambda tile: (tile, value))
        return found.version, found.changing

    one, other = values
    assert versions(one) == versions(one)
    assert versions(one) != versions(other)


def test_a_value_that_holds_itself_ends():
    loop: list[object] = [1]
    loop.append(loop)
    assert segmentation_of(lambda tile: (tile, loop)).version


@declare(version="7")
def vouched(tile, weights=None, level=0):
    return tile


def test_a_declared_version_is_the_authors_word_and_files_count_by_content(tmp_path):
    weights = tmp_path / "weights.bin"
    weights.write_bytes(b"1")
    assert segmentation_of(vouched).version == "7"
    first = segmentation_of(vouched, {"weights": str(weights)})
    moved = tmp_path / "elsewhere.bin"
    moved.write_bytes(b"1")
    assert segmentation_of(vouched, {"weights": str(moved)}).version == first.version
    weights.write_bytes(b"22")
    assert segmentation_of(vouched, {"weights": str(weights)}).version != first.version
    assert segmentation_of(vouched, {"weights": str(tmp_path)}).version != first.version
    assert segmentation_of(partial(vouched, level=1)).version != "7"
    assert segmentation_of(vouched, {"weights": "not there"}).version == "7"


STATE = """
import functools, types
from scipy import ndimage
from enum import Enum

class Settings:
    def __init__(self, level): self.level = level
    def configure(self, level): self.level = level
    def predict(self, tile): return tile > self.level

def configured(level):
    settings = Settings(0)
    settings.configure(level)
    return settings

def reads_object(tile): return tile > SETTINGS.level
def reads_module(tile): return tile > CONF.level
def reads_replaced(tile): return tile > LEVEL
def main(level):
    global LEVEL
    LEVEL = level

def wrapping(level):
    @functools.wraps(ndimage.label)
    def fn(tile): return tile > level
    return fn

class Decorated:
    def __init__(self, function, level):
        functools.update_wrapper(self, function)
        self.level = level
    def __call__(self, tile): return tile > self.level

def attribute(level):
    def fn(tile): return tile > fn.level
    fn.level = level
    return fn

def composed(first, second):
    return lambda tile: first(second(tile))

def above(level):
    return lambda tile: tile > level

def steps(order):
    return lambda tile: [order[name] for name in order]

def of_class(value):
    class Held:
        _level = value
        levels = [value]
        @staticmethod
        def static(tile, level=value): return tile > level
        @property
        def p(self): return value
        def __call__(self, tile): return tile > self._level
    return Held()

def of_enum(value):
    T = Enum("T", {"LOW": value})
    return lambda tile: tile > T.LOW.value

def defaults(value):
    def fn(tile, cache={"level": value}): return tile > cache["level"]
    return fn
"""

PAIRS = {
    "an object global": ("SETTINGS = Settings(5)", "SETTINGS = Settings(9)", "reads_object"),
    "a module made at run time": (
        "CONF = types.ModuleType('c'); CONF.level = 5",
        "CONF = types.ModuleType('c'); CONF.level = 9",
        "reads_module",
    ),
    "a global that a function sets": ("main(5)", "main(9)", "reads_replaced"),
    "a fitted object": ("f = configured(5).predict", "f = configured(9).predict", "f"),
    "a wrapper of an installed function": ("f = wrapping(5)", "f = wrapping(9)", "f"),
    "an object that wraps": ("f = Decorated(main, 5)", "f = Decorated(main, 9)", "f"),
    "an attribute of a function": ("f = attribute(5)", "f = attribute(9)", "f"),
    "which of two functions": (
        "a, b = above(1), above(2); f = composed(a, composed(b, a))",
        "a, b = above(1), above(2); f = composed(a, composed(b, b))",
        "f",
    ),
    "the order of steps": ("f = steps({'a': 1, 'b': 2})", "f = steps({'b': 2, 'a': 1})", "f"),
    "what a class holds": ("f = of_class(5)", "f = of_class(9)", "f"),
    "a member of an enumeration": ("f = of_enum(5)", "f = of_enum(9)", "f"),
    "a default that may change": ("f = defaults(5)", "f = defaults(9)", "f"),
    "a bound method of an array": ("f = np.arange(5).take", "f = np.arange(6).take", "f"),
    "a mask": (
        "m = np.ma.masked_equal([1, 2], 1); f = lambda tile: m",
        "m = np.ma.masked_equal([1, 2], 2); f = lambda tile: m",
        "f",
    ),
}


@pytest.mark.parametrize("is_file", [False, True], ids=["typed in", "in a file"])
@pytest.mark.parametrize("what", PAIRS)
def test_what_a_function_depends_on_is_told_apart(what, is_file, tmp_path, monkeypatch):
    """By its version, or by what may change: never taken for the same."""

    def found(made: str) -> tuple[str, str]:
        if not is_file:
            version = typed_in(STATE + made, PAIRS[what][2])
            return version.version, version.changing
        (tmp_path / "state.py").write_text("import numpy as np\n" + STATE)
        monkeypatch.syspath_prepend(tmp_path)
        monkeypatch.delitem(sys.modules, "state", raising=False)
        module = importlib.import_module("state")
        exec(made, vars(module))
        version = segmentation_of(vars(module)[PAIRS[what][2]])
        return version.version, version.changing

    one, other, _ = PAIRS[what]
    assert found(one) == found(one)
    assert found(one) != found(other)


def test_code_that_was_edited_after_it_was_imported_is_another_version(project):
    with fresh_import(project) as module:
        first = segmentation_of(module.fn).version
        (project / "helpers.py").write_text("def label(tile, cache): return tile * 2\n")
        mixed = segmentation_of(module.fn).version
    assert len({first, mixed, ask(project).version}) == 3


def test_weights_that_code_names_count_by_content(tmp_path):
    weights = tmp_path / "w.txt"
    weights.write_text("1")

    def version() -> str:
        found = typed_in(f"W = {str(weights)!r}\ndef fn(tile): return open(W).read()")
        return found.version + found.changing

    before = version()
    assert version() == before
    weights.write_text("22")
    assert version() != before


def test_a_value_of_a_module_that_was_set_at_run_time_is_told_apart(project):
    (project / "user.py").write_text(
        "import helpers\nfrom helpers import get\ndef fn(tile): return tile > helpers.level\n"
        "def gets(tile): return tile > get()\n"
    )
    (project / "helpers.py").write_text("level = 1\ndef get(): return level\n")
    for name in ("fn", "gets"):
        one = ask(project, name)
        two = ask(project, f"[setattr(helpers, 'level', 2), {name}][1]")
        assert (one.version, one.changing) != (two.version, two.changing)


def test_a_function_that_was_piped_to_python_has_a_version_of_before(monkeypatch):
    monkeypatch.setattr(sys.modules[__name__], "__file__", "<stdin>")
    assert version_before(piped)


def piped(tile):
    return tile


def test_a_package_that_cannot_be_imported_is_followed_no_further(tmp_path, monkeypatch):
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "elsewhere" / "__init__.py").write_text("assert False, 'not on this machine'\n")
    (tmp_path / "elsewhere" / "part.py").write_text("")
    (tmp_path / "careful.py").write_text(
        "def label(tile):\n    import elsewhere.part\n    return tile.astype(int)\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    assert segmentation_of("careful:label").to_dict()["version"]
    sys.modules.pop("careful", None)


def test_versions_are_those_of_the_packages_that_hold_a_module():
    names = packages_distributions()
    some = sorted(names)[::7]
    for package in some:
        expected = sorted({f"{name}=={version(name)}" for name in names[package]})
        assert user_modules._versions_of(frozenset({package})) == expected
    assert user_modules._versions_of(frozenset({"no_such_package"})) == []
