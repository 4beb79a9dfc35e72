"""Every code block of the documentation runs: Python as it stands, ``sh`` line by line.

``console`` blocks are what a person types on a machine of their own (installing, serving); they are
not run. YAML blocks are parsed. A page shares one namespace and one folder with sample images.
"""

from __future__ import annotations

import importlib.util
import os
import shlex
import subprocess
import sys
import tempfile
from pathlib import Path

import numpy as np
import pytest
import yaml
import zarr
from sybil import Example, Sybil
from sybil.evaluators.python import PythonEvaluator
from sybil.parsers.markdown import CodeBlockParser

NEEDS = {"cellpose.md": "cellpose", "stardist.md": "stardist"}
"""Pages whose code needs a package that is not part of the default installation."""


def volume() -> np.ndarray:
    """Return two channels of round objects over noise, axes czyx."""
    z, y, x = np.ogrid[:12, :160, :200]
    waves = np.sin(y / 9) * np.sin(x / 11) * np.sin((z + 3) / 6)
    noise = np.random.default_rng(0).normal(100, 3, (2, 12, 160, 200))
    return (noise + 1500 * np.clip(np.stack([waves, -waves]) - 0.4, 0, None)).astype("u2")


def write_samples(folder: Path) -> None:
    """Write the images that the pages speak of."""
    import tifffile

    pixels = volume()
    group = zarr.open_group(str(folder / "volume.ome.zarr"), mode="w", zarr_format=3)
    axes: list[dict[str, str]] = [{"name": "c", "type": "channel"}]
    axes += [{"name": a, "type": "space", "unit": "micrometer"} for a in "zyx"]
    datasets = []
    for level, step in enumerate((1, 2)):
        part = pixels[:, :, ::step, ::step]
        array = group.create_array(
            str(level), shape=part.shape, dtype=part.dtype, chunks=(1, 12, 64, 64)
        )
        array[...] = part
        scale = [1.0, 0.5, 0.2 * step, 0.2 * step]
        transform = {"type": "scale", "scale": scale}
        datasets.append({"path": str(level), "coordinateTransformations": [transform]})
    group.attrs["ome"] = {
        "version": "0.5",
        "multiscales": [{"axes": axes, "datasets": datasets}],
        "omero": {"channels": [{"label": "DAPI"}, {"label": "GFP"}]},
    }
    tifffile.imwrite(folder / "nuclei.tif", pixels[0, 6])
    labels = zarr.open_group(str(folder / "tiles.zarr"), mode="w")
    from scipy import ndimage

    stored = labels.create_array("labels", shape=(160, 200), dtype="i4", chunks=(80, 100))
    for y in (0, 80):
        for x in (0, 100):
            tile = np.s_[y : y + 80, x : x + 100]
            stored[tile] = ndimage.label(pixels[0, 6][tile] > 300)[0]


def setup(namespace: dict[str, object]) -> None:
    """Start a page in a folder of its own."""
    folder = tempfile.TemporaryDirectory(prefix="patchworks-docs-")
    namespace["_folder"], namespace["_before"] = folder, os.getcwd()
    write_samples(Path(folder.name))
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


def run_lines(example: Example) -> None:
    """Run each command of a ``sh`` block, with the programs of this environment."""
    programs = Path(sys.executable).parent
    environment = os.environ | {
        "PATH": f"{programs}{os.pathsep}{os.environ['PATH']}",
        "PATCHWORKS_HOME": os.path.join(os.getcwd(), "home"),
    }
    for line in str(example.parsed).replace("\\\n", " ").splitlines():
        command = shlex.split(line, comments=True)
        if command:
            done = subprocess.run(command, env=environment, capture_output=True, text=True)
            assert done.returncode == 0, f"{line}\n{done.stdout}\n{done.stderr}"


def parse(example: Example) -> None:
    """Read a YAML block."""
    list(yaml.safe_load_all(str(example.parsed)))


pytest_collect_file = Sybil(
    parsers=[
        CodeBlockParser("python", run_python),
        CodeBlockParser("sh", run_lines),
        CodeBlockParser("yaml", parse),
    ],
    patterns=["*.md"],
    excludes=["decisions/*.md"],
    setup=setup,
    teardown=teardown,
).pytest()
