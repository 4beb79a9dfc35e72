"""StarDist 2-D and 3-D on tiles.

A model is a folder: ``config.json``, ``thresholds.json`` and weights. What StarDist leaves to its
caller, the normalisation, comes from the whole image here and not from a tile; thresholds are those
of the model unless they are given.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from os import PathLike, fspath
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from patchworks_core.errors import SegmentationError
from patchworks_core.plugins.models import (
    Loaded,
    beside_defaults,
    digest_of_files,
    load_once,
    recordable,
    run_in_memory,
)
from patchworks_core.plugins.normalization import (
    Normalize,
    check_normalize,
    finite_pixels,
    value_range,
)
from patchworks_core.plugins.segmentation import Segmentation, declare, segmentation_of
from patchworks_core.plugins.stardist_package import (
    check_installed,
    config_of,
    load_model,
    model_folder,
    weights_of,
)
from patchworks_core.statistics.statistics import ImageStatistics

Array = npt.NDArray[Any]

MAX_SPLITS = 6
"""How often a tile is cut in two for want of memory, before it is given back as failed."""


def _prepare(parameters: Mapping[str, Any]) -> str:
    """Refuse what could not run, and return what the labels depend on beside the parameters."""
    version = check_installed()
    values = {"normalize": "global", "percentiles": (1.0, 99.8), **parameters}
    if not isinstance(values.get("model"), str):
        raise SegmentationError(
            "the segmentation function 'stardist' needs model=, the folder of a saved model or the "
            f"name of a pretrained one, got {values.get('model')!r}"
        )
    check_normalize(values["normalize"], values["percentiles"])
    folder = model_folder(values["model"])
    n_channels = config_of(folder).get("n_channel_in", 1)
    if n_channels != 1:
        raise SegmentationError(
            f"tiles hold one channel, and the StarDist model {str(folder)!r} takes {n_channels}; "
            "use a model for one channel, such as '2D_versatile_fluo'"
        )
    thresholds = folder / "thresholds.json"
    files = [folder / "config.json", *([thresholds] if thresholds.is_file() else [])]
    return f"stardist=={version} weights:{digest_of_files([*files, weights_of(folder)])}"


@declare(merge="overlap", version="1", prepare=_prepare)
def stardist(
    tile: Array,
    *,
    model: str,
    statistics: ImageStatistics | None = None,
    gpu: bool = False,
    normalize: Normalize = "global",
    percentiles: Sequence[float] = (1.0, 99.8),
    prob_thresh: float | None = None,
    nms_thresh: float | None = None,
    scale: float | Sequence[float] | None = None,
    n_tiles: Sequence[int] | None = None,
) -> npt.NDArray[np.int32]:
    """Label star-convex objects, such as nuclei, with a StarDist model.

    Parameters
    ----------
    tile : ndarray
        Pixels of one tile: (y, x) or (1, y, x) for a 2-D model, (z, y, x) for a 3-D one.
    model : str
        Folder of a saved model, or the name of a pretrained one, such as ``2D_versatile_fluo``.
    statistics : ImageStatistics, optional
        Of the whole image, for ``normalize="global"``.
    gpu : bool
        Use a GPU if there is one.
    normalize : {"global", "tile"} or (low, high)
        Which values become 0 and 1: percentiles of the whole image, of the tile (which can show at
        the seams), or the values themselves.
    percentiles : (float, float)
        For `normalize`.
    prob_thresh, nms_thresh : float, optional
        As in StarDist; None takes those that were saved with the model.
    scale : float or sequence of float, optional
        Resize the tile by this for the network; per axis of the model, or one for all.
    n_tiles : sequence of int, optional
        Pieces per axis of the model that go through the network one after the other, to save
        memory. More are made by themselves where the memory of a GPU is short.

    Returns
    -------
    ndarray of int32, shape of `tile`

    Raises
    ------
    SegmentationError
        If the parameters or the tile cannot be used.

    Notes
    -----
    A process holds one model, loaded with its first tile. Merge with the rule ``overlap`` and a
    halo of about one diameter: StarDist tells touching objects apart.
    """
    bounds = value_range(tile, normalize=normalize, percentiles=percentiles, statistics=statistics)
    loaded = _loaded(model, gpu)
    pixels = _checked_axes(tile, len(_axes_of(loaded.model)))
    if bounds is None:  # all pixels are the same
        return np.zeros(tile.shape, np.int32)
    low, high = bounds
    scaled = (finite_pixels(pixels, low) - np.float32(low)) / np.float32(high - low)
    labels = run_in_memory(
        loaded,
        lambda splits: loaded.model.predict_instances(
            scaled,
            axes=_axes_of(loaded.model),
            prob_thresh=prob_thresh,
            nms_thresh=nms_thresh,
            scale=scale if scale is None or isinstance(scale, int | float) else tuple(scale),
            n_tiles=split(pixels.shape, n_tiles, splits),
            show_tile_progress=False,
        )[0],
        alone=True,  # Keras does not promise that threads may share a model
    )
    return np.asarray(labels).reshape(tile.shape).astype(np.int32)


def stardist_fn(
    model: str | PathLike[str],
    *,
    gpu: bool = False,
    prob_thresh: float | None = None,
    nms_thresh: float | None = None,
    normalize: Normalize = "global",
    n_tiles: Sequence[int] | None = None,
    **options: Any,
) -> Segmentation:
    """Return StarDist as a segmentation function, for `tile_process` and the like.

    Parameters
    ----------
    model : path or str
        Folder of a saved model, or the name of a pretrained one.
    gpu, prob_thresh, nms_thresh, normalize, n_tiles
        As in `stardist`.
    **options
        Other parameters of `stardist`: ``percentiles``, ``scale``.

    Returns
    -------
    Segmentation
        Small enough to pickle: no model in it. Its version holds that of StarDist and the digest
        of the model's files.

    Raises
    ------
    SegmentationError
        If StarDist is not installed, there is no such model, or a parameter cannot be used.
    """
    name = fspath(model)
    if Path(name).expanduser().is_dir():  # workers may have another working folder
        name = str(Path(name).expanduser().absolute())
    chosen = beside_defaults(
        stardist,
        gpu=gpu,
        prob_thresh=prob_thresh,
        nms_thresh=nms_thresh,
        normalize=normalize,
        n_tiles=n_tiles,
    )
    return segmentation_of(stardist, recordable({"model": name, **chosen, **options}))


def _loaded(model: str, gpu: bool) -> Loaded:
    """Return the model, which this process loads once, and how often to cut a tile in two."""

    def load() -> Loaded:
        return Loaded(load_model(model, gpu=gpu), list(range(MAX_SPLITS + 1)))

    return load_once(("stardist", model, gpu), load)


def _axes_of(model: Any) -> str:
    """Return the spatial axes of a model, ``YX`` or ``ZYX``."""
    return str(model.config.axes).replace("C", "")


def _checked_axes(tile: Array, n_dim: int) -> Array:
    """Return the tile with as many axes as the model has."""
    if tile.ndim == n_dim:
        return tile
    if n_dim == 2 and tile.ndim == 3 and tile.shape[0] == 1:
        return tile.reshape(tile.shape[1:])
    way_out = (
        "make tiles one plane thick (tile_shape (1, y, x)), or use a 3-D model"
        if n_dim == 2
        else "use a 2-D model"
    )
    raise SegmentationError(
        f"this StarDist model is {n_dim}-D, got a tile of shape {tile.shape}; {way_out}"
    )


def split(
    shape: Sequence[int], n_tiles: Sequence[int] | None, splits: int
) -> tuple[int, ...] | None:
    """Return pieces per axis, the longest piece cut in two `splits` times.

    Examples
    --------
    >>> split((512, 700), None, 3)
    (2, 4)
    """
    if n_tiles is None and splits == 0:
        return None
    pieces = list(n_tiles or [1] * len(shape))
    for _ in range(splits):
        longest = max(range(len(shape)), key=lambda axis: shape[axis] / pieces[axis])
        pieces[longest] *= 2
    return tuple(pieces)
