"""The installed Cellpose: its version, the file of a model's weights, and the loaded model."""

from __future__ import annotations

import importlib
import os
import sys
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from patchworks_core.errors import SegmentationError
from patchworks_core.machine.faults import kind_of
from patchworks_core.plugins.models import required_version

INSTALL = 'pip install "patchworks-pipeline[cellpose]"'
"""Command that installs Cellpose and PyTorch beside patchworks."""

MAJORS = (3, 4)
"""Of Cellpose, that this plugin knows."""

MODELS_FOLDER = "CELLPOSE_LOCAL_MODELS_PATH"
"""Variable with which Cellpose is told where its models are kept."""

_FILE_NAMES = {name: f"{name}torch_0" for name in ("cyto", "cyto2", "nuclei")}
"""Files of the models of Cellpose 3 that are not called as the model; `models.model_path`."""

_MISSING_OPERATORS = "operator torchvision::nms does not exist"

_libraries: list[Any] = []
"""Operator schemas exist as long as the object that defined them."""


def check_installed() -> str:
    """Return the version of Cellpose; nothing is imported, so a scheduler may ask.

    Raises
    ------
    SegmentationError
        If Cellpose or PyTorch is missing, or this is a Cellpose that the plugin does not know.
    """
    version = required_version("cellpose", "torch", install=INSTALL)
    if major_of(version) not in MAJORS:
        raise SegmentationError(
            f"the segmentation function 'cellpose' knows Cellpose 3 and 4, got {version}; install "
            'one of them: pip install "cellpose>=3.1,<5"'
        )
    return version


def major_of(version: str) -> int:
    """Return the first number of a version.

    Examples
    --------
    >>> major_of("3.1.1.3")
    3
    """
    first = version.partition(".")[0]
    return int(first) if first.isdigit() else 0


def weights_file(model: str) -> Path:
    """Return the file with the weights of a model, fetched by Cellpose if it is a built-in one.

    Parameters
    ----------
    model : str
        Path of weights, or the name of a model of the installed Cellpose.

    Returns
    -------
    Path

    Raises
    ------
    SegmentationError
        If there is no such file and no model of that name. Cellpose itself would take its default
        model instead, and only log that.
    """
    path = Path(model).expanduser()
    if path.is_file():
        return path.absolute()
    kept = _models_folder() / _FILE_NAMES.get(model, model)
    if kept.is_file() and os.sep not in model:
        return kept
    version = check_installed()
    where = f"no weights at {str(path.absolute())!r}"
    if os.sep in model or path.is_dir():
        raise SegmentationError(f"{where}; give the path of a file with Cellpose weights")
    models = import_models()
    if model not in models.MODEL_NAMES:
        raise SegmentationError(
            f"{where}, and Cellpose {version} has no model called {model!r}; give the path of a "
            f"file with Cellpose weights, or one of {sorted(set(models.MODEL_NAMES))!r}"
        )
    return _fetched(models, model, kept)


def _models_folder() -> Path:
    """Return where Cellpose keeps its models."""
    folder = os.environ.get(MODELS_FOLDER)
    return Path(folder) if folder else Path.home() / ".cellpose" / "models"


def _fetched(models: Any, model: str, kept: Path) -> Path:
    """Let Cellpose download a built-in model; planning does so, not a hundred workers at once."""
    fetch = models.model_path if hasattr(models, "model_path") else models.cache_model_path
    try:
        return Path(fetch(model))
    except OSError as error:
        raise SegmentationError(
            f"Cellpose's model {model!r} is not at {str(kept)!r} and cannot be downloaded "
            f"({error}); copy it there, or give the path of its weights"
        ) from error


def import_models() -> Any:
    """Import and return ``cellpose.models``; this takes seconds, for PyTorch.

    Notes
    -----
    Cellpose 4 imports torchvision for a function it never calls. A torchvision built for a GPU
    beside a PyTorch built without refuses to be imported, for want of two operators. Their
    schemas are defined here then; calling them would still be an error.
    """
    try:
        return importlib.import_module("cellpose.models")
    except RuntimeError as error:
        if _MISSING_OPERATORS not in str(error):
            raise
    for name in [n for n in sys.modules if n.partition(".")[0] in ("torchvision", "cellpose")]:
        del sys.modules[name]
    torch = importlib.import_module("torch")
    library = torch.library.Library("torchvision", "DEF")
    for operator in ("nms", "qnms"):
        library.define(f"{operator}(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")
    _libraries.append(library)
    return importlib.import_module("cellpose.models")


def load_model(model: str, *, gpu: bool, options: Mapping[str, Any]) -> Any:
    """Return a `CellposeModel`.

    Parameters
    ----------
    model : str
        As in `weights_file`.
    gpu : bool
        Use the first GPU that ``CUDA_VISIBLE_DEVICES`` leaves, if there is one.
    options : mapping
        Further keyword arguments of `CellposeModel`.

    Raises
    ------
    SegmentationError
        If the weights are not of this Cellpose.

    MemoryError, RuntimeError
        If there is a GPU and its memory is short: a fault that may pass.

    Warns
    -----
    UserWarning
        If there is no GPU although one was asked for.
    """
    version = check_installed()
    file = weights_file(model)
    models = import_models()
    # By name where it has one: Cellpose 3 knows more of its own models than their files say.
    pretrained = model if model in models.MODEL_NAMES else str(file)
    try:
        loaded = models.CellposeModel(gpu=gpu, pretrained_model=pretrained, **options)
    # Cellpose has no class for this: torch, pickle, and asserts of its own all say it their way.
    except Exception as error:
        if kind_of(error) == "transient":
            raise
        message = " ".join(str(error).split())
        raise SegmentationError(
            f"Cellpose {version} cannot load {str(file)!r} with options {dict(options)!r} "
            f"({type(error).__name__}: {message}); weights of Cellpose 3 are not for Cellpose 4, "
            "nor the other way round: install the major that they were trained with"
        ) from error
    if gpu and not loaded.gpu:
        _check_memory(models.torch)
        warnings.warn(_no_gpu(models.torch.__version__), stacklevel=2)
    return loaded


def _check_memory(torch: Any) -> None:
    """Raise a lack of memory where there is a GPU all the same: it may be free in a moment.

    Cellpose takes any error of a first, small array for a GPU that is not there, and would run on
    the CPU for as long as this process lives.
    """
    if not torch.cuda.is_available():
        return
    torch.zeros(1, device="cuda")
    raise MemoryError(
        "Cellpose did not get the GPU that PyTorch finds; other processes held its memory"
    )


def _no_gpu(torch_version: str) -> str:
    """Say why Cellpose did not get a GPU."""
    return (
        f"gpu=True, and PyTorch {torch_version} finds no GPU (CUDA_VISIBLE_DEVICES is "
        f"{os.environ.get('CUDA_VISIBLE_DEVICES')!r}): Cellpose runs on the CPU, many times "
        "slower; install a PyTorch built for the driver of this machine, or leave gpu out"
    )
