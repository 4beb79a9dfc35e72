"""What is handed to ``CellposeModel.eval``: pixels and arguments that both majors take."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

Array = npt.NDArray[Any]

FIXED = {
    "min_size": "min_size of the merge drops small objects once they are whole",
    "max_size_fraction": "a tile has no say in how large an object may be",
    "stitch_threshold": "do_3D=True segments volumes; tiles one plane thick make 2-D labels",
    "z_axis": "tiles come as (z, y, x)",
    "channel_axis": "tiles hold one channel",
    "rescale": "diameter= says it",
    "interp": "Cellpose 4 refuses it",
    "compute_masks": "labels are what is wanted",
    "progress": "patchworks reports it",
}
"""Arguments of ``eval`` that are not the user's to set, and why or what to use instead."""

EVAL_OPTIONS = ("augment", "bsize", "flow3D_smooth", "niter", "resample", "tile_overlap")
"""Arguments of ``eval`` that both majors take and patchworks has no opinion on."""


def eval_arguments(
    *bounds: tuple[float, float],
    n_channels: int,
    is_volume: bool,
    anisotropy: float | None,
    **same: Any,
) -> dict[str, Any]:
    """Return the arguments of ``CellposeModel.eval`` beside pixels and batch size.

    Parameters
    ----------
    *bounds : (float, float)
        Values that become 0 and 1, of each channel that is not blank.
    n_channels : int
        Channels of the pixels, the last axis; those beyond `bounds` are blank.
    is_volume : bool
        Whether the pixels are (z, y, x, channel) rather than (y, x, channel).
    anisotropy : float, optional
    **same
        Passed on as they are.

    Notes
    -----
    One pair of bounds for all channels would turn blank channels into ``-low / (high - low)``.
    Cellpose 4 raises for ``z_axis`` in 2-D.

    Examples
    --------
    >>> eval_arguments((2, 9), n_channels=2, is_volume=False, anisotropy=None)["normalize"][
    ...     "lowhigh"
    ... ]
    [[2, 9], [0.0, 1.0]]
    """
    normalize = {
        "lowhigh": [*map(list, bounds), *[[0.0, 1.0]] * (n_channels - len(bounds))],
        "percentile": None,
        "normalize": True,
        "norm3D": is_volume,
        "sharpen_radius": 0,
        "smooth_radius": 0,
        "tile_norm_blocksize": 0,
        "tile_norm_smooth3D": 1,
        "invert": False,
    }
    arguments = {
        **same,
        "normalize": normalize,
        "channel_axis": 3 if is_volume else 2,
        "do_3D": is_volume,
        "min_size": -1,
        "max_size_fraction": 1.0,
    }
    if is_volume:
        arguments |= {"z_axis": 0, "anisotropy": anisotropy}
    return arguments


def padded(channels: Sequence[tuple[npt.NDArray[np.float32], float]], n_channels: int) -> Array:
    """Return the pixels with channels last, no axis 1 wide: Cellpose 3 would squeeze it away.

    Parameters
    ----------
    channels : sequence of (ndarray of float32, float)
        Pixels (y, x) or (z, y, x), and the value of those that are added.
    n_channels : int
        Those beyond `channels` are 0.

    Examples
    --------
    >>> padded([(np.ones((1, 3), "float32"), 0.0)], n_channels=2).shape
    (2, 3, 2)
    """
    shape = channels[0][0].shape
    result = np.zeros((*(max(2, n) for n in shape), n_channels), np.float32)
    for i, (pixels, blank) in enumerate(channels):
        result[..., i] = blank
        result[..., i][tuple(slice(n) for n in shape)] = pixels
    return result


def n_channels_of(model: Any) -> int:
    """Return how many channels the network takes; Cellpose 4 always takes three."""
    return int(getattr(model, "nchan", None) or 3)
