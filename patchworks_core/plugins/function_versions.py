"""What identifies a function: its import path, and digests of its source and of what it holds."""

from __future__ import annotations

import hashlib
import inspect
from collections.abc import Callable
from functools import partial
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from patchworks_core.errors import SegmentationError


def name_of(function: Callable[..., Any]) -> str:
    """Return the import path of `function`; a partial shows what it wraps."""
    if isinstance(function, partial):
        return f"partial({name_of(function.func)})"
    qualname = getattr(function, "__qualname__", type(function).__qualname__)
    return f"{getattr(function, '__module__', type(function).__module__)}:{qualname}"


def source_version(function: Callable[..., Any]) -> str:
    """Return digests of the source of a function and of what it holds.

    Raises
    ------
    SegmentationError
        If what it captured cannot be digested.
    """
    parts = []
    module = inspect.getmodule(function)
    file = getattr(module, "__file__", None)
    if module is not None and file:
        package = _distribution_version(module.__name__)
        parts.append(f"{package}source:{_digest(Path(str(file)).read_bytes())}")
    # The file says everything of a plain function only: a closure, a method and an object that can
    # be called also hold what was captured or set, and a notebook has no file.
    if not parts or not inspect.isroutine(function) or "<" in name_of(function):
        parts.append(pickle_digest(function, name_of(function)))
    elif inspect.ismethod(function):
        parts.append(pickle_digest(function.__self__, name_of(function)))
    return " ".join(parts)


def pickle_digest(value: object, name: str) -> str:
    """Return the digest of the code and values that `value` holds; `name` is for messages.

    Raises
    ------
    SegmentationError
        If it cannot be pickled.
    """
    import cloudpickle

    try:
        return f"pickle:{_digest(cloudpickle.dumps(value))}"
    # Pickling raises TypeError, PicklingError, or whatever a captured object's own code raises.
    except Exception as error:
        raise SegmentationError(
            f"segmentation function {name!r} has no version: what it captured cannot be pickled "
            f"({error}); give it one with patchworks_core.declare(version=...)"
        ) from error


def _digest(content: bytes) -> str:
    return hashlib.blake2b(content, digest_size=8).hexdigest()


def _distribution_version(module_name: str) -> str:
    """Return ``package==1.2 `` where the module belongs to an installed distribution."""
    package = module_name.partition(".")[0]
    try:
        return f"{package}=={version(package)} "
    except PackageNotFoundError:
        return ""
