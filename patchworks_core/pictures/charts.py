"""Charts for people: how many objects have which size, one number per tile of the grid.

Every chart is a uint8 array of shape (height, width, 3), as pictures of pixels are.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import numpy.typing as npt

from patchworks_core.errors import ImageError

if TYPE_CHECKING:
    from matplotlib.figure import Figure

Array = npt.NDArray[Any]
Rgb = npt.NDArray[np.uint8]

TEAL = "#1f7a8c"
DARK = "#333333"
RED = "#c8553d"


def size_histogram(areas: Array, unit_label: str) -> Rgb:
    """Draw how many objects have which size, the median marked.

    Parameters
    ----------
    areas : ndarray, 1-D
        Sizes above 0; there may be none.
    unit_label : str
        What the sizes are, with their unit: ``"area (µm²)"``.

    Returns
    -------
    ndarray of uint8, shape (height, width, 3)

    Examples
    --------
    >>> size_histogram(np.array([]), "area (pixels)").shape
    (420, 700, 3)
    """
    sizes = np.asarray(areas, np.float64)
    figure, axes = _figure()
    axes.set_title(f"{sizes.size:,} object{'' if sizes.size == 1 else 's'}", loc="left", color=DARK)
    axes.set_xlabel(unit_label)
    axes.set_ylabel("objects")
    if sizes.size == 0:
        axes.set(xticks=[], yticks=[])
        axes.text(0.5, 0.5, "no objects", ha="center", va="center", transform=axes.transAxes)
        return _render(figure)
    low, high = float(sizes.min()), float(sizes.max())
    n_bins = int(np.clip(np.sqrt(sizes.size), 10, 60))
    if high > 20 * low > 0:
        edges = np.geomspace(low, high, n_bins + 1)
        axes.set_xscale("log")
        axes.xaxis.set_major_formatter(lambda value, _: f"{value:,.12g}")
    else:
        edges = np.linspace(low, high, n_bins + 1)
    if low == high:
        margin = max(high / 10, 0.5)
        edges = np.array([low - margin, low + margin])
    axes.hist(sizes, bins=edges, color=TEAL, edgecolor="white", linewidth=0.5)
    median = float(np.median(sizes))
    axes.axvline(median, color=RED, linewidth=1.5, linestyle="--")
    axes.set_title(f"median {median:,.4g}", loc="right", color=RED, size="medium")
    if low == high:
        axes.set_xlim(low - 5 * margin, low + 5 * margin)
    axes.yaxis.get_major_locator().set_params(integer=True)
    return _render(figure)


def tile_map(
    values: Array,
    title: str,
    unit_label: str,
    *,
    limits: tuple[float, float] | None = None,
    grey: str = "",
) -> Rgb:
    """Draw one number per tile as a heat map of the tile grid; NaN is grey.

    Parameters
    ----------
    values : ndarray, 2-D
        One number per tile: row and column of the grid.
    title : str
        Heading.
    unit_label : str
        What the numbers are: ``"objects per tile"``, ``"seconds per tile"``.
    limits : tuple of float
        Numbers that have the first and the last colour, where they mean the same in every image;
        by default the least and the largest of `values`.
    grey : str
        What a tile without a number is; said where there is one.

    Returns
    -------
    ndarray of uint8, shape (height, width, 3)

    Raises
    ------
    ImageError
        If `values` is not 2-D.

    Examples
    --------
    >>> tile_map(np.arange(6).reshape(2, 3), "plate1_B03_0", "objects per tile").shape
    (420, 700, 3)
    """
    if values.ndim != 2:
        raise ImageError(f"a tile map needs one number per row and column, got {values.shape}")
    figure, axes = _figure()
    numbers = np.ma.masked_invalid(np.asarray(values, np.float64))
    axes.set_facecolor("#dddddd")
    # a handful of rows or columns is stretched: square cells would be slivers
    aspect = "equal" if max(values.shape) <= 6 * min(values.shape) else "auto"
    least, most = limits or (None, None)
    drawn = axes.imshow(
        numbers, cmap="viridis", aspect=aspect, interpolation="nearest", vmin=least, vmax=most
    )
    figure.colorbar(drawn, ax=axes, label=unit_label)
    says_grey = f"; grey: {grey}" if grey and np.ma.getmaskarray(numbers).any() else ""
    axes.set_title(title + says_grey, loc="left", color=DARK)
    axes.set_xlabel("tile column")
    axes.set_ylabel("tile row")
    for axis in (axes.xaxis, axes.yaxis):
        axis.get_major_locator().set_params(integer=True)
    if values.size <= 100:
        low, high = limits or (numbers.min(), numbers.max())
        bright = low + 0.6 * (high - low)
        for row, column in np.argwhere(~np.ma.getmaskarray(numbers)):
            number = numbers[row, column]
            colour = "black" if number > bright else "white"
            axes.text(column, row, f"{number:,.4g}", ha="center", va="center", color=colour, size=8)
    axes.spines[:].set_visible(False)
    return _render(figure)


def _figure() -> tuple[Figure, Any]:
    """Return a figure and its axes, without pyplot and so without global state."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(7, 4.2), dpi=100)
    # Wide enough for seven digits; a layout that is solved takes as long as drawing does.
    figure.subplots_adjust(left=0.13, right=0.97, bottom=0.13, top=0.92)
    axes = figure.add_subplot()
    axes.spines[["top", "right"]].set_visible(False)
    return figure, axes


def _render(figure: Figure) -> Rgb:
    from matplotlib.backends.backend_agg import FigureCanvasAgg

    canvas: Any = FigureCanvasAgg(figure)
    canvas.draw()
    return np.asarray(canvas.buffer_rgba())[..., :3].copy()
