"""The old name of `patchworks_core.operations.flat_field`, for scripts that import it from here."""

from __future__ import annotations

from importlib import import_module
from typing import Any


def __getattr__(name: str) -> Any:
    """Return what `patchworks_core.operations.flat_field` calls `name`."""
    return getattr(import_module("patchworks_core.operations.flat_field"), name)
