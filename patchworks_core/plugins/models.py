"""What plugins with a neural network share: packages, weights, one model per process, memory.

A model is never pickled: each process loads it when the first tile comes. What identifies it, the
package's version and the content of the weights, is settled when the image is planned.
"""

from __future__ import annotations

import hashlib
import inspect
import threading
from collections.abc import Callable, Hashable, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass, field
from functools import lru_cache
from importlib.metadata import PackageNotFoundError, version
from importlib.util import find_spec
from os import PathLike, fspath
from pathlib import Path
from typing import Any, TypeVar

import numpy as np

from patchworks_core.errors import SegmentationError
from patchworks_core.machine.devices import granted_devices
from patchworks_core.machine.faults import free_memory, kind_of

Result = TypeVar("Result")

MEMORY_SHARE = 0.5
"""Of the free memory of a GPU, for activations; the dynamics and other processes need some too."""


def required_version(package: str, *also: str, install: str) -> str:
    """Return the version of an installed package; nothing is imported.

    Parameters
    ----------
    package : str
        Distribution and module.
    *also : str
        Modules that it needs and does not always bring.
    install : str
        Command that installs all of them.

    Raises
    ------
    SegmentationError
        If one of them is missing.

    Examples
    --------
    >>> required_version("numpy", install="pip install numpy").split(".")[0]
    '2'
    """
    missing = [name for name in (package, *also) if find_spec(name) is None]
    try:
        if not missing:
            return version(package)
    except PackageNotFoundError:
        missing = [package]
    raise SegmentationError(
        f"the segmentation function {package!r} needs {' and '.join(missing)}, not installed in "
        f"this environment; install with: {install}"
    )


def digest_of_files(files: Sequence[Path]) -> str:
    """Return the digest of the content of files, 16 hex digits; a file is read once per process.

    Examples
    --------
    >>> digest_of_files([])
    'e4a6a0577479b2b4'
    """
    total = hashlib.blake2b(digest_size=8)
    for file in files:
        state = file.stat()
        total.update(_digest_of_file(file, state.st_size, state.st_mtime_ns))
    return total.hexdigest()


@lru_cache(maxsize=64)
def _digest_of_file(file: Path, size: int, changed: int) -> bytes:
    """Return the digest of a file's content; its size and time of change tell it is another."""
    with file.open("rb") as content:
        return hashlib.file_digest(content, lambda: hashlib.blake2b(digest_size=16)).digest()


def beside_defaults(function: Callable[..., Any], **options: Any) -> dict[str, Any]:
    """Return the arguments that are not what they are by default: the others are not recorded.

    So a function of `cellpose_fn` and one that is chosen by name have the same record.

    Examples
    --------
    >>> beside_defaults(lambda a=1, b=None: a, a=1, b=2)
    {'b': 2}
    """
    defaults = inspect.signature(function).parameters
    return {name: value for name, value in options.items() if value != defaults[name].default}


def recordable(parameters: Mapping[str, Any]) -> dict[str, Any]:
    """Return parameters as a plan records them: tuples as lists, paths as text, plain numbers.

    Examples
    --------
    >>> recordable({"normalize": (0, 1), "model_options": {"file": Path("a")}})
    {'normalize': [0, 1], 'model_options': {'file': 'a'}}
    """

    def plain(value: Any) -> Any:
        if isinstance(value, Mapping):
            return recordable(value)
        if isinstance(value, tuple | list):
            return [plain(v) for v in value]
        if isinstance(value, np.generic):
            return value.item()
        return fspath(value) if isinstance(value, PathLike) else value

    return {name: plain(value) for name, value in parameters.items()}


@dataclass(slots=True)
class Loaded:
    """A model in this process, and what is known of the memory it needs."""

    model: Any
    sizes: list[Any] | None = None
    """Sizes of work to try, from the most memory to the least; None before the first tile."""

    lock: threading.Lock = field(default_factory=threading.Lock)
    """Held while the model runs where it may run only once at a time."""


_LOADED: dict[Hashable, Loaded] = {}
_LOADING = threading.Lock()


def load_once(key: Hashable, load: Callable[[], Loaded]) -> Loaded:
    """Return the model of `key`, loaded if this process does not hold it.

    Parameters
    ----------
    key : hashable
        Tells models apart: weights, device, options.
    load : callable
        Returns the model. What it raises is raised, and the next call tries again.

    Notes
    -----
    A process holds one model: to load another lets go of the one before. Threads wait for each
    other while it is loaded.
    """
    with _LOADING:
        if key not in _LOADED:
            _LOADED.clear()
            free_memory()
            _LOADED[key] = load()
        return _LOADED[key]


def run_in_memory(loaded: Loaded, run: Callable[[Any], Result], *, alone: bool) -> Result:
    """Run with the first of ``loaded.sizes`` that the memory holds.

    Parameters
    ----------
    loaded : Loaded
        Sizes that did not fit are taken off its `sizes`, for the next tile.
    run : callable
        Called with a size, such as a batch size.
    alone : bool
        Let no other thread run this model meanwhile.

    Raises
    ------
    Exception
        What `run` raised with the last size, or anything else but a lack of memory: the tile is
        tried again by the rules of `patchworks_core.machine.faults`.

    Examples
    --------
    >>> def run(batch_size):
    ...     if batch_size > 2:
    ...         raise MemoryError
    ...     return batch_size
    >>> run_in_memory(loaded := Loaded(None, [8, 4, 2, 1]), run, alone=False), loaded.sizes
    (2, [2, 1])
    """
    with loaded.lock if alone else nullcontext():
        sizes = list(loaded.sizes or [None])
        while len(sizes) > 1:
            try:
                return run(sizes[0])
            # Every framework has its own class for this; all others are raised again.
            except Exception as error:
                if isinstance(error, OSError) or kind_of(error) != "transient":
                    raise
            # Out of the handler, so that the traceback no longer keeps the arrays alive.
            free_memory()
            loaded.sizes = sizes = sizes[1:]
        return run(sizes[0])


def fitting_batch_size(at_most: int, bytes_each: int, *, free_bytes: int | None) -> int:
    """Return how many patches to send through a network at once.

    Parameters
    ----------
    at_most : int
        What was asked for.
    bytes_each : int
        Memory of one patch in the network.
    free_bytes : int or None
        Of the GPU; None where it is not known, and then nothing is changed.

    Examples
    --------
    >>> fitting_batch_size(8, 500_000_000, free_bytes=3_000_000_000)
    3
    """
    if free_bytes is None:
        return at_most
    return max(1, min(at_most, int(free_bytes * MEMORY_SHARE) // bytes_each))


def free_gpu_bytes() -> int | None:
    """Return the free memory of the first GPU granted to this process; None where none is known."""
    devices = granted_devices()
    return devices[0].free_bytes if devices else None
