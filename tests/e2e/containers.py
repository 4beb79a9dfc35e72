"""Containers of the test's own: Debian's podman, and a base image of Debian's Python.

No registry of images is asked. The image that the Dockerfile begins from is one of this machine, or
made by debootstrap under its name: Debian's Python, which need not be of the same version.
"""

from __future__ import annotations

import os
import re
import resource
import shlex
import shutil
import subprocess
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

CHECKOUT = Path(__file__).parents[2]

DOCKERFILE = CHECKOUT / "deploy" / "Dockerfile"

STORAGE = Path("/var/tmp/patchworks-containers")
"""Images take 2 GB, which a folder in memory has not; the base image stays there for the next."""

PODMAN = (
    *("podman", "--root", f"{STORAGE}/images", "--runroot", f"{STORAGE}/run"),
    *("--runtime", "runc", "--cgroup-manager", "cgroupfs", "--events-backend", "none"),
)

SUITE = "bookworm"

PROGRAMS = ("podman", "runc", "debootstrap")

BASE = """\
FROM scratch
ADD base.tar /
CMD ["python3"]
"""

MOST = 16384
"""Files, or processes, of a container."""

_SETTING = re.compile(r"^(?:global|:env:)\.([\w-]+)='(.*)'$", re.MULTILINE)


def why_not_here() -> str | None:
    """Return why no container can be built and run here; None where one can."""
    if sys.platform != "linux" or os.geteuid() != 0:
        return "containers are built here by root on Linux"
    path = f"{os.environ['PATH']}:/usr/sbin:/sbin"
    missing = next((name for name in PROGRAMS if shutil.which(name, path=path) is None), None)
    return None if missing is None else f"{missing} is missing"


def podman(*arguments: str | Path, check: bool = True) -> str:
    """Call podman on the storage of these tests; return what it printed.

    Where it may fail (`check` false), its errors are among that.
    """
    result = subprocess.run([*PODMAN, *map(str, arguments)], capture_output=True, text=True)
    assert not check or result.returncode == 0, result.stderr[-4000:]
    return (result.stdout if check else result.stdout + result.stderr).strip()


def base_image(folder: Path) -> str:
    """Return the image that the Dockerfile begins from; made here where there is none."""
    (name,) = re.findall(r"^FROM (\S+)", DOCKERFILE.read_text(), re.MULTILINE)
    image = f"docker.io/library/{name}"
    if podman("images", "--quiet", image):
        return image
    root = folder / "root"
    packages = "--include=ca-certificates,python3,python3-venv,python3-pip"
    subprocess.run(
        ["debootstrap", "--variant=minbase", packages, SUITE, str(root)],
        check=True,
        capture_output=True,
        env={**os.environ, "PATH": f"{os.environ['PATH']}:/usr/sbin:/sbin"},
    )
    # As in the image of that name: `python` is there, and pip installs for all.
    for mark in root.glob("usr/lib/python3.*/EXTERNALLY-MANAGED"):
        mark.unlink()
    (root / "usr/bin/python").symlink_to("python3")
    subprocess.run(["tar", "-C", str(root), "-cf", str(folder / "base.tar"), "."], check=True)
    shutil.rmtree(root)
    (folder / "Dockerfile").write_text(BASE)
    podman("build", "--isolation", "chroot", "--tag", image, folder)
    (folder / "base.tar").unlink()
    return image


def pip_of_this_machine(folder: Path) -> list[str]:
    """Return the options by which pip in a build finds what pip finds here, and nothing in it.

    A mirror of PyPI, a certificate: what this machine's configuration says, and the files it names.
    """
    said = subprocess.run(
        [sys.executable, "-m", "pip", "config", "list"], capture_output=True, text=True, check=True
    ).stdout
    settings = dict(_SETTING.findall(said))
    (folder / "pip.conf").write_text(
        "\n".join(["[global]", *(f"{name} = {value}" for name, value in settings.items())])
    )
    words = {word.removeprefix("file://") for value in settings.values() for word in value.split()}
    # The index lies beside its files, so what holds both is shown.
    paths = {path.parent if path.name == "simple" else path for path in map(Path, words)}
    shown = sorted(path for path in paths if path.is_absolute() and path.exists())
    volumes = [f"{path}:{path}:ro" for path in shown] + [f"{folder}/pip.conf:/etc/pip.conf:ro"]
    return [option for volume in volumes for option in ("--volume", volume)]


def recipe() -> list[str]:
    """Return what the documentation has to type, line by line."""
    page = (CHECKOUT / "docs" / "deploy.md").read_text()
    (section,) = re.findall(r"^## A container\n(.*?)^## ", page, re.MULTILINE | re.DOTALL)
    (block,) = re.findall(r"```console\n(.*?)```", section, re.DOTALL)
    return list(block.splitlines())


def typed(line: str, folder: Path, *options: str) -> str:
    """Type a line of the recipe, with podman for docker and a folder for `/srv`.

    Parameters
    ----------
    line : str
    folder : Path
    options : str
        Of its command, in this place alone.
    """
    of_command = {
        "build": (
            *("--isolation", "chroot", "--network", "host", "--pull=never", "--layers=false"),
            *("--format", "docker"),  # the other one has no health check
        ),
        "run": ("--network", "none", *limited()),
    }
    word = line.split()[1]
    more = shlex.join([*of_command.get(word, ()), *options])
    program = shlex.join([*PODMAN])
    line = line.replace("/srv/", f"{folder}/").replace(f"docker {word}", f"{program} {word} {more}")
    result = subprocess.run(
        ["bash", "-c", line], cwd=CHECKOUT, capture_output=True, text=True, check=False
    )
    assert result.returncode == 0, result.stderr[-4000:]
    return result.stdout.strip()


def limited() -> list[str]:
    """Return options without which podman asks for more files and processes than it may have."""
    kinds = {"nofile": resource.RLIMIT_NOFILE, "nproc": resource.RLIMIT_NPROC}
    limits = {word: min(MOST, resource.getrlimit(kind)[0]) for word, kind in kinds.items()}
    return [part for word, n in limits.items() for part in ("--ulimit", f"{word}={n}:{n}")]


@dataclass(frozen=True, slots=True)
class Container:
    """A container that runs."""

    name: str

    def call(self, *command: str, check: bool = True) -> str:
        """Run a command in it; return what it printed."""
        return podman("exec", self.name, *command, check=check)

    def is_healthy(self) -> bool:
        """Ask what the health check of the image asks."""
        return podman("healthcheck", "run", self.name, check=False) == ""

    def ended(self, *options: str) -> str:
        """Tell it to end, and return its exit code."""
        podman("stop", *options, self.name)
        return self.state("ExitCode")

    def state(self, field: str) -> str:
        """Return a field of its state."""
        return podman("inspect", self.name, "--format", f"{{{{.State.{field}}}}}")


def run_once(
    tag: str, *command: str, options: Sequence[str | Path] = (), check: bool = True
) -> str:
    """Run a command in a container that is gone after it; return what was printed."""
    all_options = ("--rm", "--network", "none", *limited(), *options)
    return podman("run", *all_options, tag, *command, check=check)


@contextmanager
def running(tag: str, *options: str | Path) -> Iterator[Container]:
    """Run an image as its Dockerfile says, on a network of its own; nothing of it is left."""
    name = "patchworks-test"
    podman("rm", "--force", "--volumes", "--ignore", name)
    podman("run", "--detach", "--name", name, "--network", "none", *limited(), *options, tag)
    try:
        yield Container(name)
    finally:
        podman("rm", "--force", "--volumes", "--time", "5", name, check=False)
