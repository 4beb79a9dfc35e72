"""The object table: what people read of every object, in pixels and in micrometres.

Sums of pieces are made and combined in `patchworks_core.stage.object_sums`; `object_table` derives
the rest from them, once per object.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from math import prod
from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from patchworks_core.images.calibration import pixel_size_um
from patchworks_core.stage.object_sums import ObjectSums
from patchworks_core.tiles.grid import SPATIAL_AXES

if TYPE_CHECKING:
    import pyarrow as pa


Array = npt.NDArray[Any]


SIZE_NAMES = {1: ("length", ""), 2: ("area", "2"), 3: ("volume", "3")}
"""What the pixels of an object amount to, by number of spatial axes, and its power of a length."""


def object_table(
    merged: ObjectSums,
    *,
    image_shape: Sequence[int],
    pixel_size: Mapping[str, float],
    unit: Mapping[str, str],
) -> pa.Table:
    """Derive the table people read, one row per object.

    Parameters
    ----------
    merged : ObjectSums
        What `merge_objects` returned.
    image_shape : sequence of int
        Pixels of the image, one per axis of `merged.axes`.
    pixel_size : mapping of str to float
        Size of a pixel by axis name, in `unit`; axes may be missing.
    unit : mapping of str to str
        Unit by axis name, such as ``"micrometer"``.

    Returns
    -------
    pyarrow.Table
        `label`; `t` and `c` where the image has them; `area_pixels` (`volume_pixels` with three
        spatial axes, `length_pixels` with one); `centroid_<axis>` in pixels, counted between
        pixel centres; `bbox_<axis>_start` and `_stop`; `touches_border`, which ignores axes one
        pixel thick; `n_tiles`; `crosses_seam`, true where that is more than one;
        `equivalent_diameter_pixels` where pixels are as long as wide, or of unknown size;
        `intensity_mean`, `_sum`, `_min` and `_max` where measured. Where every spatial
        pixel size is a known length also `area_um2` (`volume_um3`, `length_um`),
        `centroid_<axis>_um` and `equivalent_diameter_um`.

    Examples
    --------
    >>> from patchworks_core.stage.object_sums import measure_tile
    >>> sums = measure_tile(np.ones((2, 4), int), axes="yx", origin=(0, 0), n_labels=1)
    >>> table = object_table(sums, image_shape=(2, 9), pixel_size={"y": 500.0, "x": 500.0},
    ...                      unit={"y": "nanometer", "x": "nanometer"})
    >>> table["area_um2"][0].as_py(), table["centroid_x"][0].as_py()
    (2.0, 1.5)
    """
    import pyarrow as pa

    spatial = [i for i, axis in enumerate(merged.axes) if axis in SPATIAL_AXES]
    names = [merged.axes[i] for i in spatial]
    size, power = SIZE_NAMES[len(spatial)]
    size_um = pixel_size_um(names, pixel_size, unit)
    columns: dict[str, Array] = {"label": merged.label}
    for i, axis in enumerate(merged.axes):
        if i not in spatial:
            columns[axis] = merged.start[:, i]
    columns[f"{size}_pixels"] = merged.area
    if size_um:
        columns[f"{size}_um{power}"] = merged.area * prod(size_um)
        columns["equivalent_diameter_um"] = _diameter(merged.area * prod(size_um), len(spatial))
    if len(set(size_um or [1.0])) == 1 and (size_um or len(spatial) == 2):
        columns["equivalent_diameter_pixels"] = _diameter(merged.area, len(spatial))
    for i, axis in zip(spatial, names, strict=True):
        columns[f"centroid_{axis}"] = merged.position_sum[:, i] / merged.area
    for axis, length in zip(names, size_um, strict=False):
        columns[f"centroid_{axis}_um"] = columns[f"centroid_{axis}"] * length
    touches = np.zeros(len(merged), bool)
    for i, axis in zip(spatial, names, strict=True):
        columns[f"bbox_{axis}_start"] = merged.start[:, i]
        columns[f"bbox_{axis}_stop"] = merged.stop[:, i]
        if image_shape[i] > 1:
            touches |= (merged.start[:, i] == 0) | (merged.stop[:, i] == image_shape[i])
    columns["touches_border"] = touches
    columns["n_tiles"] = merged.n_tiles
    columns["crosses_seam"] = merged.n_tiles > 1
    if merged.measured:
        columns["intensity_mean"] = merged.intensity_sum / merged.area
        columns["intensity_sum"] = merged.intensity_sum
        columns["intensity_min"] = merged.intensity_min
        columns["intensity_max"] = merged.intensity_max
    return pa.table({name: np.ascontiguousarray(column) for name, column in columns.items()})


def _diameter(size: Array, n_axes: int) -> Array:
    """Return the diameter of the disk or ball of that area or volume."""
    formulas: dict[int, Callable[[Array], Array]] = {
        1: lambda length: length.astype(np.float64),
        2: lambda area: np.sqrt(4 * area / np.pi),
        3: lambda volume: np.cbrt(6 * volume / np.pi),
    }
    return formulas[n_axes](size)
