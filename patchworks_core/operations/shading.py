"""Shading: uneven illumination, divided out, exact in tiles.

``(I - D) * mean(F - D) / (F - D)`` for an image I, a flat field F and a dark field D. Each tile
takes its own part of F and D, and the mean is that of the plane. Where no flat field was taken at
the microscope, `patchworks_core.operations.flat_field` measures one in the image.
"""

from __future__ import annotations

from typing import Any, Literal, TypeAlias

import numpy as np
import numpy.typing as npt

from patchworks_core.errors import ImageError
from patchworks_core.operations.operations import Operation
from patchworks_core.operations.places import TilePlace

Array: TypeAlias = npt.NDArray[Any]

_PIECE_BYTES = 1 << 18
"""Pixels are corrected in pieces of whole lines that stay in the cache."""


def shading_correction(
    flat_field: npt.ArrayLike,
    dark_field: npt.ArrayLike | None = None,
    *,
    dtype: Literal["same", "float32"] = "same",
) -> Operation:
    """Return an operation that divides uneven illumination out.

    Parameters
    ----------
    flat_field : array
        The illumination: shape (y, x) for every channel, or (channel, y, x). Volumes are corrected
        plane by plane.
    dark_field : array or float, optional
        What the camera gives without light, of the same shape, or one number; 0 by default.
    dtype : {"same", "float32"}
        Of the result: that of the pixels, integers being rounded and clipped to what it holds; or
        float32, which keeps fractions and negative values.

    Returns
    -------
    Operation
        Without halo. The mean of the flat field is that of the whole plane, whatever the tile.

    Raises
    ------
    ImageError
        If a field is not finite, the flat field is not above the dark field everywhere, or their
        shapes differ. When it is run: if the plane of the image has another shape or there is no
        such channel.

    Notes
    -----
    Computed in float64 for pixels of more than 16 bits and in float32 for others. The fields
    travel with every tile to worker processes; prefer threads, the GIL is released.

    Examples
    --------
    >>> correct = shading_correction(np.array([[1.0, 3.0]]), dark_field=0.5)
    >>> correct(np.array([[2.5, 13.0]]))
    array([[6. , 7.5]])
    """
    flat = np.asarray(flat_field, np.float64)
    dark = np.asarray(0.0 if dark_field is None else dark_field, np.float64)
    if flat.ndim not in (2, 3) or not flat.size:
        raise ImageError(f"a flat field needs shape (y, x) or (channel, y, x), got {flat.shape!r}")
    if dark.ndim and dark.shape != flat.shape:
        raise ImageError(
            f"a dark field is one number or as large as the flat field, got {dark.shape!r} and "
            f"{flat.shape!r}"
        )
    light = flat - dark
    n_wrong = light.size - int(np.count_nonzero((light > 0) & np.isfinite(light)))
    if n_wrong:
        raise ImageError(
            "a flat field must be finite and above the dark field everywhere, got "
            f"{n_wrong} of {light.size} pixels that are not, the lowest difference being "
            f"{np.nanmin(light):g}; clip the flat field, or measure it again"
        )
    if dtype not in ("same", "float32"):
        raise ImageError(f"dtype must be 'same' or 'float32', got {dtype!r}")
    gain = light.mean(axis=(-2, -1), keepdims=True) / light
    return Operation(
        "shading_correction",
        _corrected,
        {"gain": gain, "dark": dark, "dtype": dtype},
        output_dtype=_keep_number if dtype == "same" else _to_float32,
    )


def _keep_number(dtype: np.dtype[Any]) -> np.dtype[Any]:
    """Return the data type of the pixels, which may not be bool."""
    if dtype.kind == "b":
        raise ImageError("shading is corrected in pixels that are numbers, got bool")
    return dtype


def _to_float32(dtype: np.dtype[Any]) -> np.dtype[Any]:
    return np.dtype(np.float32)


def _corrected(pixels: Array, *, place: TilePlace, gain: Array, dark: Array, dtype: str) -> Array:
    """Correct the pixels of one tile."""
    gains, darks = _of_tile(gain, place, "flat field"), dark
    if dark.ndim:
        darks = _of_tile(dark, place, "dark field")
    is_narrow = pixels.dtype.itemsize <= 2 or pixels.dtype == np.float32
    precise = np.dtype(np.float32 if is_narrow else np.float64)
    final = pixels.dtype if dtype == "same" else np.dtype(np.float32)
    # Pixels that an operation is given are its own to write to, which saves a fresh array.
    result = pixels if pixels.dtype == final == precise else np.empty(pixels.shape, final)
    limits = _limits(result.dtype, precise)
    step = max(1, _PIECE_BYTES // (precise.itemsize * pixels.shape[-1]))
    buffer = np.empty((step, pixels.shape[-1]), precise)
    for plane in np.ndindex(pixels.shape[:-2]):
        for start in range(0, pixels.shape[-2], step):
            lines = slice(start, start + step)
            source, target = pixels[plane][lines], result[plane][lines]
            # Where types agree the result itself is the buffer, and nothing is copied.
            work = target if target.dtype == precise else buffer[: len(source)]
            np.subtract(source, darks[lines] if darks.ndim else darks, out=work, dtype=precise)
            np.multiply(work, gains[lines], out=work, dtype=precise)
            if limits is not None:
                np.rint(work, out=work)
                np.clip(work, *limits, out=work)
            if work is not target:
                target[...] = work
    return result


def _limits(dtype: np.dtype[Any], precise: np.dtype[Any]) -> tuple[Any, Any] | None:
    """Return the smallest and largest float that an integer type holds, None for floats."""
    if dtype.kind not in "iu":
        return None
    lowest, highest = np.iinfo(dtype).min, np.iinfo(dtype).max
    top = precise.type(highest)
    # 2**63 - 1 is rounded up to a float that no longer fits.
    return precise.type(lowest), top if int(top) <= highest else np.nextafter(top, precise.type(0))


def _of_tile(field: Array, place: TilePlace, what: str) -> Array:
    """Return the part of a field, shape (y, x) or (channel, y, x), that a tile lies on."""
    shape = place.image_shape[-2:]
    if place.axes[-2:] != "yx" or field.shape[-2:] != shape:
        raise ImageError(
            f"a {what} has the planes of the image, got {field.shape[-2:]!r} for planes of "
            f"{shape!r} along {place.axes[-2:]!r}"
        )
    lines = place.region.slices[-2:]
    if field.ndim == 2:
        return field[lines]
    channel = place.index.get("c", 0)
    # One without channels, such as a mosaic camera's, is the only one there is.
    if channel >= len(field) or ("c" not in place.index and len(field) > 1):
        image = f"channel {channel}" if "c" in place.index else "an image without channel axis"
        raise ImageError(
            f"the {what} is of {len(field)} channels, got {image}; give one of shape (y, x), or "
            "one per channel"
        )
    return np.asarray(field[channel][lines])
