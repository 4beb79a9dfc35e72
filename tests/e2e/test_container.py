"""The container: deploy/Dockerfile is built as it stands, and served, stopped, killed, taken up."""

from __future__ import annotations

import json
import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.e2e import containers
from tests.e2e.conftest import until
from tests.tissue import tissue, write_tiff

pytestmark = [
    pytest.mark.slow,
    pytest.mark.skipif(
        containers.why_not_here() is not None, reason=f"{containers.why_not_here()}"
    ),
    pytest.mark.timeout(1800),
]

TAG = "localhost/patchworks"

SETTINGS = """\
source: {settle_seconds: 2}
segmentation: {function: watershed, tile_shape: [32], overlap: [8]}
"""


@pytest.fixture(scope="module")
def image(tmp_path_factory) -> Iterator[str]:
    """The image of the Dockerfile."""
    folder = tmp_path_factory.mktemp("container")
    containers.base_image(folder)
    (build,) = [line for line in containers.recipe() if line.startswith("docker build")]
    containers.typed(build, folder, *containers.pip_of_this_machine(folder))
    yield TAG
    containers.podman("rmi", "--force", TAG, check=False)


@pytest.fixture
def home(tmp_path) -> Path:
    """A folder to mount, of the user of the image."""
    home = tmp_path / "home"
    home.mkdir()
    (home / "patchworks.yaml").write_text(SETTINGS)
    for path in (home, home / "patchworks.yaml"):
        os.chown(path, 1000, 1000)
    return home


def n_staged(container: containers.Container) -> int:
    """Return how many tiles of the image that landed are staged."""
    said = container.call("patchworks", "status", "--json", check=False)
    return int(json.loads(said)["images"][0]["staged"] or 0) if '"staged"' in said else 0


def test_a_container_that_was_killed_takes_up_what_landed_and_ends_when_told(image, home):
    with containers.running(image, "--volume", f"{home}:/data") as container:
        until(container.is_healthy, seconds=120, what="a healthy container")
        container.call("sh", "-c", "cd /tmp && patchworks samples && cp nuclei.tif /data/landing")
        until(lambda: n_staged(container), seconds=120, what="a staged tile")
        containers.podman("kill", "--signal", "KILL", container.name)
        until(lambda: container.state("Running") == "false", seconds=20, what="the end")
        containers.podman("start", container.name)
        table = home / "store" / "nuclei" / "objects.csv"
        until(table.exists, seconds=600, what="labels")
        assert len(table.read_text().splitlines()) > 10
        assert {path.stat().st_uid for path in home.rglob("*")} == {1000}
        assert container.ended("--time", "60") == "0"


def test_the_recipe_of_the_documentation_runs(image, tmp_path):
    make_folder, serve, *commands = containers.recipe()[1:]
    (tmp_path / "images").mkdir()
    write_tiff(tmp_path / "images" / "nuclei.tif", tissue())
    containers.typed(make_folder, tmp_path)
    containers.podman("rm", "--force", "--ignore", "patchworks")
    try:
        containers.typed(serve, tmp_path)
        until(
            containers.Container("patchworks").is_healthy, seconds=120, what="a healthy container"
        )
        said = [containers.typed(command, tmp_path) for command in commands]
    finally:
        containers.podman("rm", "--force", "--time", "30", "patchworks", check=False)
    assert [command.split()[1] for command in commands] == ["exec", "run"]
    assert "staged" in said[0]
    assert "core" in said[1]


def test_a_command_runs_as_another_user(image, home):
    os.chown(home, 1234, 1234)
    options = ("--user", "1234:1234", "--volume", f"{home}:/data")
    said = containers.run_once(
        image,
        *("sh", "-c", "cd /data && patchworks samples && patchworks run nuclei.tif"),
        options=options,
    )
    assert "18 objects" in said
    said = containers.run_once(image, "patchworks", "status", options=options)
    assert "nuclei" in said


def test_a_container_is_given_what_it_may_take(image):
    code = "from patchworks_core.machine.budget import *; "
    code += "print(granted_memory_bytes().value, granted_cores().value)"
    options = ("--memory", "1g", "--cpus", "1")
    memory, cores = containers.run_once(image, "python", "-c", code, options=options).split()
    assert 5e8 < int(memory) <= 2**30
    assert int(cores) == 1


def test_a_home_that_its_user_cannot_write_to_is_named(image, tmp_path):
    (home := tmp_path / "home").mkdir(mode=0o755)
    options = ("--volume", f"{home}:/data")
    said = containers.run_once(image, "patchworks", "ui", options=options, check=False)
    assert "permission denied: '/data/dagster'" in said


def test_the_image_has_the_files_to_copy_and_runs_what_was_installed(image):
    code = "import patchworks_pipeline as p; print(p.__file__)"
    said = containers.run_once(image, "sh", "-c", f'ls deploy; ls -d /src; python -c "{code}"')
    assert {path.name for path in containers.DOCKERFILE.parent.iterdir()} <= set(said.split())
    assert "-packages/" in said.splitlines()[-1]
