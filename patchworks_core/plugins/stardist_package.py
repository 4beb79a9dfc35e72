"""The installed StarDist: its version, the folder of a model, and the loaded model."""

from __future__ import annotations

import importlib
import json
import os
import warnings
from pathlib import Path
from typing import Any

from patchworks_core.errors import SegmentationError
from patchworks_core.plugins.models import required_version

INSTALL = 'pip install "patchworks-pipeline[stardist]"'
"""Command that installs StarDist and TensorFlow beside patchworks."""


def check_installed() -> str:
    """Return the version of StarDist; nothing is imported.

    Raises
    ------
    SegmentationError
        If StarDist or TensorFlow is missing.
    """
    return required_version("stardist", "tensorflow", install=INSTALL)


def model_folder(model: str) -> Path:
    """Return the folder of a model, fetched by StarDist if it is a pretrained one.

    Raises
    ------
    SegmentationError
        If there is no such model, or it has no weights. StarDist itself would go on with random
        weights, and only warn.
    """
    folder = Path(model).expanduser().absolute()
    if not (folder / "config.json").is_file():
        if folder.is_dir() or os.sep in model:
            raise SegmentationError(
                f"no StarDist model at {str(folder)!r}: there is no config.json; give the folder "
                "that StarDist saved the model in"
            )
        folder = _pretrained_folder(model)
    weights_of(folder)
    return folder


def weights_of(folder: Path) -> Path:
    """Return the weights that StarDist takes: the newest called best, else the newest."""
    files = [file for ending in ("*.h5", "*.hdf5") for file in folder.glob(ending)]
    if not files:
        raise SegmentationError(
            f"the StarDist model {str(folder)!r} has no weights (*.h5); copy them there, such as "
            "weights_best.h5"
        )
    return max(files, key=lambda file: ("best" in file.name, file.stat().st_mtime_ns))


def _pretrained_folder(model: str) -> Path:
    """Return where a pretrained model is kept, downloaded if it is not there yet."""
    home = os.environ.get("KERAS_HOME")
    keras = Path(home) if home else Path.home() / ".keras"
    for kept in sorted(keras.glob(f"models/StarDist?D/{model}")):
        for folder in (kept / model, kept):  # as newer and older Keras unpack it
            if (folder / "config.json").is_file():
                return folder
    models = importlib.import_module("stardist.models")
    registry = importlib.import_module("csbdeep.models.pretrained")
    classes = (models.StarDist2D, models.StarDist3D)
    classes_by_model = {
        key: cls for cls in classes for key in registry.get_registered_models(cls)[0]
    }
    if model not in classes_by_model:
        raise SegmentationError(
            f"no StarDist model at {str(Path(model).absolute())!r}, and none is called {model!r}; "
            f"give the folder of a saved model, or one of {sorted(classes_by_model)!r}"
        )
    try:
        return Path(registry.get_model_folder(classes_by_model[model], model))
    # Keras wraps what urllib raises into a bare Exception.
    except Exception as error:
        raise SegmentationError(
            f"StarDist's model {model!r} is not in {str(keras)!r} and cannot be downloaded "
            f"({error}); copy its folder, and give the path of that"
        ) from error


def config_of(folder: Path) -> dict[str, Any]:
    """Read the configuration of a model."""
    try:
        config = json.loads((folder / "config.json").read_text())
    except json.JSONDecodeError as error:
        raise SegmentationError(
            f"{str(folder / 'config.json')!r} is not the configuration of a StarDist model "
            f"({error}); save the model again"
        ) from error
    return dict(config)


def load_model(model: str, *, gpu: bool) -> Any:
    """Return a `StarDist2D` or `StarDist3D`.

    Warns
    -----
    UserWarning
        If there is no GPU although one was asked for.
    """
    _choose_device(importlib.import_module("tensorflow"), gpu)
    models = importlib.import_module("stardist.models")
    folder = model_folder(model)
    name = "StarDist3D" if config_of(folder).get("n_dim") == 3 else "StarDist2D"
    return getattr(models, name)(None, name=folder.name, basedir=str(folder.parent))


def _choose_device(tensorflow: Any, gpu: bool) -> None:
    """Let TensorFlow take memory of a GPU as it needs it, or keep it off the GPU."""
    devices = tensorflow.config.list_physical_devices("GPU")
    if gpu and not devices:
        warnings.warn(
            f"gpu=True, and TensorFlow {tensorflow.__version__} finds no GPU (CUDA_VISIBLE_DEVICES "
            f"is {os.environ.get('CUDA_VISIBLE_DEVICES')!r}): StarDist runs on the CPU, many times "
            'slower; pip install "tensorflow[and-cuda]", or leave gpu out',
            stacklevel=2,
        )
    try:
        if not gpu:
            tensorflow.config.set_visible_devices([], "GPU")
        for device in devices if gpu else ():
            tensorflow.config.experimental.set_memory_growth(device, True)
    except RuntimeError:
        # TensorFlow is in use in this process already: how it treats GPUs was decided there.
        return
