"""Cellpose 3 and 4 (Cellpose-SAM) on tiles.

What Cellpose would decide from the pixels of one tile is decided for the whole image here:

- normalisation: the two values that become 0 and 1 are handed over for every channel, with every
  other setting beside them, because both majors keep what one call changes for the next ones;
- the diameter: given, or the model's own; never estimated;
- sizes: ``min_size`` and ``max_size_fraction`` are off, since a tile sees pieces of objects.

Only what both majors share is used: `CellposeModel`, and the first value its ``eval`` returns.
"""

from __future__ import annotations

import inspect
import json
from collections.abc import Mapping, Sequence
from os import PathLike, fspath
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from patchworks_core.errors import SegmentationError
from patchworks_core.plugins.cellpose_eval import (
    EVAL_OPTIONS,
    FIXED,
    eval_arguments,
    n_channels_of,
    padded,
)
from patchworks_core.plugins.cellpose_package import (
    check_installed,
    load_model,
    major_of,
    weights_file,
)
from patchworks_core.plugins.models import (
    Loaded,
    beside_defaults,
    digest_of_files,
    fitting_batch_size,
    free_gpu_bytes,
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
from patchworks_core.statistics.statistics import ImageStatistics

Array = npt.NDArray[Any]

BYTES_PER_PATCH = {3: 120_000_000, 4: 350_000_000}
"""Of GPU memory that one more patch of a batch takes, by major of Cellpose.

Measured with the stock networks on an NVIDIA H200: 77 MB, and 240 MB in float32 (120 in bfloat16);
with what PyTorch holds in reserve beside, up to 97 and 350 MB.
"""


def _prepare(parameters: Mapping[str, Any]) -> str:
    """Refuse what could not run, and return what the labels depend on beside the parameters."""
    version = check_installed()
    values = {"normalize": "global", "percentiles": (1.0, 99.0), **parameters}
    unknown = set(values) - set(_NAMED) - set(EVAL_OPTIONS)
    if unknown:
        name = min(unknown, key=lambda n: (n not in FIXED, n))
        why = FIXED.get(name, f"the further ones are {', '.join(EVAL_OPTIONS)}")
        raise SegmentationError(
            f"the segmentation function 'cellpose' has no parameter {name!r}: {why}"
        )
    if not isinstance(values.get("model"), str):
        raise SegmentationError(
            "the segmentation function 'cellpose' needs model=, the path of weights or the name of "
            f"a Cellpose model, got {values.get('model')!r}"
        )
    _check_channels(values.get("channels"))
    check_normalize(values["normalize"], values["percentiles"])
    for name in ("diameter", "anisotropy", "batch_size"):
        if values.get(name) is not None and not values[name] > 0:
            raise SegmentationError(
                f"{name} must be above 0, got {values[name]!r}; leave it out for the usual"
            )
    options = (values.get("model_options") or {}).values()
    more = [Path(v) for v in options if isinstance(v, str) and Path(v).is_file()]
    weights = digest_of_files([weights_file(values["model"]), *more])
    return f"cellpose=={version} weights:{weights}"


def _check_channels(channels: object) -> None:
    """Raise SegmentationError where channels are numbered as within a tile, which holds one."""
    if channels is None or channels in ([0, 0], (0, 0)):
        return
    raise SegmentationError(
        f"tiles hold one channel, got channels={channels!r}; choose the cells with channel= of "
        "tile_process or of the acquisition, the nuclei with nuclei_channel=, and leave channels "
        "out"
    )


@declare(
    merge="overlap", version="1", prepare=_prepare, other_channels={"nuclei": "nuclei_channel"}
)
def cellpose(
    tile: Array,
    *,
    model: str,
    statistics: ImageStatistics | None = None,
    gpu: bool = False,
    diameter: float | None = None,
    do_3D: bool = False,
    anisotropy: float | None = None,
    normalize: Normalize = "global",
    percentiles: Sequence[float] = (1.0, 99.0),
    invert: bool = False,
    flow_threshold: float = 0.4,
    cellprob_threshold: float = 0.0,
    batch_size: int = 8,
    model_options: Mapping[str, Any] | None = None,
    channels: Sequence[int] | None = None,
    nuclei_channel: int | str | None = None,
    nuclei: Array | None = None,
    nuclei_statistics: ImageStatistics | None = None,
    **eval_options: Any,
) -> npt.NDArray[np.int32]:
    """Label cells or nuclei with a Cellpose model.

    Parameters
    ----------
    tile : ndarray
        Pixels of one tile: (y, x), (1, y, x), or (z, y, x) with `do_3D`.
    model : str
        Path of weights, or the name of a model of the installed Cellpose: ``cyto3``, ``nuclei``,
        ... in Cellpose 3, ``cpsam_v2``, ``cpsam``, ... in 4.
    statistics : ImageStatistics, optional
        Of the whole image, for ``normalize="global"``.
    gpu : bool
        Use a GPU if there is one.
    diameter : float, optional
        Of the objects, pixels; None takes objects to be as large as those of the training.
    do_3D : bool
        Segment volumes, rather than planes.
    anisotropy : float, optional
        Distance of planes over distance of pixels, for `do_3D`.
    normalize : {"global", "tile"} or (low, high)
        Which values become 0 and 1: percentiles of the whole image, of the tile (which can show at
        the seams), or the values themselves.
    percentiles : (float, float)
        For `normalize`.
    invert : bool
        For dark objects on a bright background.
    flow_threshold, cellprob_threshold : float
        As in Cellpose.
    batch_size : int
        Patches in the network at once; fewer where the memory of the GPU is short.
    model_options : mapping, optional
        Further arguments of `CellposeModel`, such as ``{"use_bfloat16": False}`` in Cellpose 4.
    channels : sequence of int, optional
        Refused with what to do instead: channels are chosen when the image is opened. ``[0, 0]`` is
        taken for none.
    nuclei_channel : int or str, optional
        Channel of the image with the nuclei, for models that take cells and nuclei together.
    nuclei : ndarray, optional
        Its pixels in this tile, and
    nuclei_statistics : ImageStatistics, optional
        its statistics: both are given by what runs the tiles.
    **eval_options
        ``augment``, ``bsize``, ``flow3D_smooth``, ``niter``, ``resample`` or ``tile_overlap``.

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
    halo of about one diameter: Cellpose tells touching cells apart.
    """
    _check_channels(channels)
    volume = _checked_volume(tile, do_3D)
    bounds = value_range(tile, normalize=normalize, percentiles=percentiles, statistics=statistics)
    if bounds is None:  # all pixels are the same
        return np.zeros(tile.shape, np.int32)
    volumes = [(volume, bounds[::-1] if invert else bounds)]
    if nuclei is not None:
        beside = value_range(
            nuclei, normalize=normalize, percentiles=percentiles, statistics=nuclei_statistics
        )
        if beside is not None:  # where all pixels are the same, the channel is blank
            volumes.append((_checked_volume(nuclei, do_3D), beside))
    loaded = _loaded(model, gpu, dict(model_options or {}), batch_size)
    arguments = eval_arguments(
        *(volume_pixels for _, volume_pixels in volumes),
        n_channels=n_channels_of(loaded.model),
        is_volume=volume.ndim == 3,
        diameter=diameter,
        anisotropy=anisotropy,
        flow_threshold=flow_threshold,
        cellprob_threshold=cellprob_threshold,
        **eval_options,
    )
    pixels = padded(
        [(finite_pixels(volume_pixels, low), low) for volume_pixels, (low, _) in volumes],
        n_channels_of(loaded.model),
    )
    labels = run_in_memory(
        loaded,
        lambda size: loaded.model.eval(pixels, batch_size=size, **arguments)[0],
        alone=bool(loaded.model.gpu),
    )
    labels = np.asarray(labels).reshape(pixels.shape[:-1])[tuple(slice(n) for n in volume.shape)]
    return labels.reshape(tile.shape).astype(np.int32)


_NAMED = frozenset(inspect.signature(cellpose).parameters) - {
    *("tile", "nuclei", "nuclei_statistics", "eval_options"),
}
"""Parameters of `cellpose` that it names."""


def cellpose_fn(
    model: str | PathLike[str],
    *,
    gpu: bool = False,
    diameter: float | None = None,
    do_3D: bool = False,
    channels: Sequence[int] | None = None,
    nuclei_channel: int | str | None = None,
    anisotropy: float | None = None,
    normalize: Normalize = "global",
    **options: Any,
) -> Segmentation:
    """Return Cellpose as a segmentation function, for `tile_process` and the like.

    Parameters
    ----------
    model : path or str
        Weights, or the name of a model of the installed Cellpose.
    gpu, diameter, do_3D, channels, nuclei_channel, anisotropy, normalize
        As in `cellpose`.
    **options
        Other parameters of `cellpose`, such as ``flow_threshold`` or ``batch_size``.

    Returns
    -------
    Segmentation
        Small enough to pickle: no model in it. Its version holds that of Cellpose and the digest
        of the weights.

    Raises
    ------
    SegmentationError
        If Cellpose is not installed, there are no such weights, or a parameter cannot be used.
    """
    name = fspath(model)
    if Path(name).expanduser().is_file():  # workers may have another working folder
        name = str(Path(name).expanduser().absolute())
    chosen = beside_defaults(
        cellpose,
        gpu=gpu,
        diameter=diameter,
        do_3D=do_3D,
        channels=channels,
        nuclei_channel=nuclei_channel,
        anisotropy=anisotropy,
        normalize=normalize,
    )
    return segmentation_of(cellpose, recordable({"model": name, **chosen, **options}))


def _checked_volume(tile: Array, do_3D: bool) -> Array:
    """Return the tile as (y, x), or as (z, y, x) if that is to be segmented as a volume."""
    volume = tile.reshape(tile.shape[1:]) if tile.ndim == 3 and tile.shape[0] == 1 else tile
    if volume.ndim == 2 or (volume.ndim == 3 and do_3D):
        return volume
    raise SegmentationError(
        f"Cellpose segments (y, x), or (z, y, x) with do_3D=True, got a tile of shape {tile.shape} "
        f"and do_3D={do_3D}; set do_3D=True, or make tiles one plane thick (tile_shape (1, y, x))"
    )


def _loaded(model: str, gpu: bool, options: dict[str, Any], batch_size: int) -> Loaded:
    """Return the model, which this process loads once, and the batch sizes to try."""

    def load() -> Loaded:
        network = load_model(model, gpu=gpu, options=options)
        free = free_gpu_bytes() if network.gpu else None
        n_bytes = BYTES_PER_PATCH[major_of(check_installed())]
        first = fitting_batch_size(batch_size, n_bytes, free_bytes=free)
        return Loaded(network, [first >> n for n in range(first.bit_length())])

    key = ("cellpose", model, gpu, json.dumps(options, sort_keys=True), batch_size)
    return load_once(key, load)
