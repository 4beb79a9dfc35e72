"""What is installed is whole: the definitions load from a wheel, far from the checkout."""

from __future__ import annotations

import importlib.util
import os
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest

CHECKOUT = Path(__file__).parents[2]

LOADED = """
import sys
import patchworks_core, patchworks_pipeline
from patchworks_pipeline.definitions import deployed, defs
import dagster as dg
dg.Definitions.validate_loadable(deployed())
from patchworks_pipeline.instance.home import prepare_home
from pathlib import Path
prepare_home(Path("home").absolute())
print(patchworks_core.__file__, patchworks_pipeline.__file__, len(list(deployed().jobs)), sep="\\n")
"""


def copied_into_the_image() -> list[Path]:
    """What the Dockerfile copies, of which the container image's wheel is built."""
    lines = (CHECKOUT / "deploy" / "Dockerfile").read_text().splitlines()
    names = [name for line in lines if line.startswith("COPY") for name in line.split()[1:-1]]
    return [CHECKOUT / name for name in names]


@pytest.fixture(scope="module")
def installed(tmp_path_factory) -> Path:
    """The wheel of what a container image is built of, unpacked as pip would."""
    if importlib.util.find_spec("hatchling") is None:
        pytest.skip("hatchling is not installed")
    folder = tmp_path_factory.mktemp("wheel")
    (source := folder / "source").mkdir()
    for path in copied_into_the_image():
        if path.is_dir():
            hidden = shutil.ignore_patterns("__pycache__")
            shutil.copytree(path, source / path.name, ignore=hidden)
        else:
            shutil.copy(path, source)
    command = [sys.executable, "-m", "hatchling", "build", "-t", "wheel", "-d", str(folder)]
    built = subprocess.run(command, cwd=source, capture_output=True, text=True)
    assert built.returncode == 0, built.stderr
    (wheel,) = folder.glob("*.whl")
    # Its requirements are those of this Python; pip would only look them up again.
    with zipfile.ZipFile(wheel) as archive:
        archive.extractall(folder / "site")
    return folder / "site"


def test_definitions_load_from_a_wheel(installed, tmp_path):
    known = {**os.environ, "PYTHONPATH": str(installed), "PATCHWORKS_HOME": str(tmp_path / "home")}
    # -P: neither the working folder nor the script's is on the path.
    found = subprocess.run(
        [sys.executable, "-P", "-c", LOADED],
        cwd=tmp_path,
        env=known,
        capture_output=True,
        text=True,
    )
    assert found.returncode == 0, found.stderr
    core, pipeline, n_jobs = found.stdout.split("\n")[:3]
    assert Path(core).is_relative_to(installed)
    assert Path(pipeline).is_relative_to(installed)
    assert int(n_jobs) == 6


def test_a_wheel_has_the_files_that_are_no_modules(installed):
    for name in ("dagster.yaml", "patchworks.yaml"):
        assert (installed / "patchworks_pipeline" / name).is_file()
    assert (installed / "patchworks_core" / "__init__.pyi").is_file()
    for package in ("patchworks_core", "patchworks_pipeline"):
        assert (installed / package / "py.typed").is_file()
    deployed = {p.name for p in (installed / "patchworks_pipeline" / "deploy").iterdir()}
    assert deployed == {p.name for p in (CHECKOUT / "deploy").iterdir()}


def test_a_wheel_has_no_tests_and_no_benchmarks(installed):
    names = {path.name for path in installed.iterdir() if not path.name.endswith(".dist-info")}
    assert names == {"patchworks_core", "patchworks_pipeline"}
