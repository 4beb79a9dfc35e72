"""What the version of a function changes with, and what it does not."""

from __future__ import annotations

import importlib
import os
import re
import subprocess
import sys
import threading
from functools import partial
from pathlib import Path

import numpy as np
import pytest

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


def ask(project: Path, expression: str = "fn") -> Segmentation:
    """Return what a function of the project is now, imported anew."""
    names = {name.partition("/")[0].removesuffix(".py") for name in FILES} | {"user"}
    with pytest.MonkeyPatch.context() as patch:
        for name in [name for name in sys.modules if name.partition(".")[0] in names]:
            patch.delitem(sys.modules, name)
        patch.syspath_prepend(project)
        patch.setattr(sys, "dont_write_bytecode", True)
        return segmentation_of(eval(expression, vars(importlib.import_module("user"))))


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


def test_a_model_that_is_loaded_with_the_first_tile_changes_nothing():
    text = (
        "def fn(tile):\n    global MODEL\n    MODEL = MODEL or open('/dev/null')\n    return tile\n"
    )
    first = typed_in(text, MODEL=None)
    second = typed_in(text, MODEL=threading.Lock())
    assert (first.version, first.changing) == (second.version, second.changing)
    assert not second.unknown


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
        return segmentation_of(lambda tile: (tile, value)).version

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
