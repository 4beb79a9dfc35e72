"""Every code block of the documentation runs: Python as it stands, ``sh`` line by line.

``console`` blocks are what a person types on a machine of their own (installing, serving); they are
not run. ``py`` blocks need weights that a reader has; they run on a stand-in for the network. YAML
blocks are parsed. A page shares one namespace and one folder, which is empty at its start.
"""

from __future__ import annotations

import importlib.util
import os
import shlex
import tempfile
import warnings
from pathlib import Path

import pytest
import yaml
from sybil import Example, Sybil
from sybil.evaluators.python import PythonEvaluator
from sybil.parsers.markdown import CodeBlockParser
from typer.testing import CliRunner

from patchworks_pipeline.cli.main import app

NEEDS = {"cellpose.md": "cellpose", "stardist.md": "stardist"}
"""Pages whose code needs a package that is not part of the default installation."""


def setup(namespace: dict[str, object]) -> None:
    """Start a page in a folder of its own."""
    folder = tempfile.TemporaryDirectory(prefix="patchworks-docs-")
    namespace["_folder"], namespace["_before"] = folder, os.getcwd()
    os.chdir(folder.name)


def teardown(namespace: dict[str, object]) -> None:
    """Leave the folder, and remove it."""
    os.chdir(str(namespace["_before"]))
    folder = namespace["_folder"]
    assert isinstance(folder, tempfile.TemporaryDirectory)
    folder.cleanup()


_python = PythonEvaluator()


def run_python(example: Example) -> str | None:
    """Run a Python block, unless its page needs a package that is not installed."""
    package = NEEDS.get(Path(example.path).name)
    if package and importlib.util.find_spec(package) is None:
        pytest.skip(f"{package} is not installed")
    return _python(example)


def run_with_weights(example: Example) -> str | None:
    """Run a block that needs weights, on a network without any where there is one."""
    page = Path(example.path).name
    if page != "cellpose.md" or importlib.util.find_spec("cellpose") is None:
        pytest.skip(f"{page} needs weights, and a package that is not part of the installation")
    from tests.functions.cellpose_models import blurred, use_network

    Path("my_weights").write_bytes(b"a network without weights")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of PyTorch, about itself
        undo = use_network(blurred)
        try:
            return _python(example)
        finally:
            undo()


def run_lines(example: Example) -> None:
    """Call each command of a ``sh`` block as the program does, in this process."""
    for line in str(example.parsed).replace("\\\n", " ").splitlines():
        command = shlex.split(line, comments=True)
        if command:
            assert command[0] == "patchworks", f"a console block is not run, and says {line!r}"
            environment = {"PATCHWORKS_HOME": os.path.join(os.getcwd(), ".patchworks")}
            result = CliRunner().invoke(app, command[1:], env=environment)
            assert result.exit_code == 0, f"{line}\n{result.output}\n{result.exception!r}"


def parse(example: Example) -> None:
    """Read a YAML block."""
    list(yaml.safe_load_all(str(example.parsed)))


PARSERS = [
    CodeBlockParser("python", run_python),
    CodeBlockParser("py", run_with_weights),
    CodeBlockParser("sh", run_lines),
    CodeBlockParser("yaml", parse),
]

pytest_collect_file = Sybil(
    parsers=PARSERS,
    patterns=["*.md"],
    excludes=["decisions/*.md"],
    setup=setup,
    teardown=teardown,
).pytest()
