"""The home: one folder with the Dagster instance, the store, the landing folder and the settings.

``$PATCHWORKS_HOME``, by default ``./.patchworks``, holds ``dagster/``, ``store/``, ``landing/`` and
``patchworks.yaml``.
The variable is read when something is opened, never at import.
"""

import os
from collections.abc import Iterator
from contextlib import contextmanager
from importlib.resources import files
from pathlib import Path

from filelock import FileLock

from patchworks_core.files.storage import as_path, write_text

HOME_VARIABLE = "PATCHWORKS_HOME"

DEFAULT_HOME = ".patchworks"

SETTINGS = "patchworks.yaml"
"""File in the home with the settings of the deployment."""

BATCH_VARIABLE = "DAGSTER_EVENT_BATCH_SIZE"
"""Where this is set, Dagster hands what a new run plans, an event per tile, to its storage at once.

`patchworks_pipeline.event_storage` then writes it at once."""

EVENTS_TOGETHER = "1000"


def home_folder(below: str = "") -> Path:
    """Return the home of this process, or that of a deployment of its own in a folder below."""
    return Path(os.environ.get(HOME_VARIABLE) or DEFAULT_HOME).absolute() / below


def prepare_home(home: Path) -> Path:
    """Make the folders of a home, and its two files of settings if missing; return the home."""
    for name in ("dagster", "store", "landing"):
        (home / name).mkdir(parents=True, exist_ok=True)
    for path in (home / "dagster" / "dagster.yaml", home / SETTINGS):
        if not path.exists():
            template = files("patchworks_pipeline").joinpath(path.name).read_text()
            write_text(as_path(path), template)
    return home


@contextmanager
def opening(home: Path) -> Iterator[None]:
    """Keep other processes from opening the instance of a home meanwhile.

    Opening it the first time makes its tables, and two that do so at once trip over each other.
    """
    with FileLock(home / "dagster" / "opening.lock"):
        yield


def home_environment(home: Path) -> dict[str, str]:
    """Return the variables that point Dagster and patchworks to a home."""
    return {
        HOME_VARIABLE: str(home),
        "DAGSTER_HOME": str(home / "dagster"),
        BATCH_VARIABLE: os.environ.get(BATCH_VARIABLE, EVENTS_TOGETHER),
    }
