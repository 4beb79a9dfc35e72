"""What an image can be opened from, as signatures name it."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING, Any, TypeAlias, Union

import numpy as np
import numpy.typing as npt
import zarr
from upath import UPath

if TYPE_CHECKING:
    import dask.array as da

    from patchworks_core.images.image import Image

ImageSource: TypeAlias = Union[
    str,
    "os.PathLike[str]",
    UPath,
    npt.NDArray[np.generic],
    "da.Array",
    "zarr.Array[Any]",
    zarr.Group,
    "Image",
]
"""A path or URL, an array in memory (NumPy, Dask, Zarr), a Zarr group, or an image that is open."""
