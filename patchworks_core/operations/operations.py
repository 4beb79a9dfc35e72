"""Operations: functions of pixels that give the same in tiles as on the whole image.

1. An `Operation` says how far it looks: its halo, the pixels around one that decide its result.
2. `chain` puts operations after each other; their halos add up.
3. `Chain.on_core` runs a chain on what a tile reads. Where that ends inside the image, each
   operation spoils the pixels within its halo of the end, and these are cut off before the next
   one runs. Where it ends at the border of the image, so does the whole image, and nothing is cut::

       |<-------------- read -------------->|
       |halo 1|halo 2|   core   |halo 2|halo 1|
              |<- right after operation 1 ->|
                     |<- 2 ->|
"""

from __future__ import annotations

import hashlib
import inspect
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any, TypeAlias

import numpy as np
import numpy.typing as npt

from patchworks_core.errors import ImageError
from patchworks_core.operations.places import PerAxis, TilePlace, per_axis
from patchworks_core.plugins.segmentation import recorded_before, segmentation_of
from patchworks_core.tiles.regions import Region

Array: TypeAlias = npt.NDArray[Any]

DtypeRule: TypeAlias = Callable[[np.dtype[Any]], npt.DTypeLike]
"""Data type of a result from the data type of the pixels."""


def same_dtype(dtype: np.dtype[Any]) -> np.dtype[Any]:
    """Return the data type of the pixels: the rule of operations that keep it."""
    return dtype


@dataclass(frozen=True, slots=True)
class _Always:
    """The rule of operations that always give one data type."""

    dtype: np.dtype[Any]

    def __call__(self, dtype: np.dtype[Any]) -> np.dtype[Any]:
        return self.dtype


@dataclass(frozen=True, slots=True)
class Operation:
    """A function of pixels with its parameters, how far it looks, and what type it returns.

    Raises
    ------
    ImageError
        If the halo is not of whole numbers, 0 or more, or a parameter cannot be recorded.

    Examples
    --------
    >>> invert = operation(np.invert)
    >>> invert(np.array([[0, 255]], "uint8"))
    array([[255,   0]], dtype=uint8)
    """

    name: str
    """What it is called in records."""

    function: Callable[..., Array]
    """``function(pixels, **parameters)`` returns as many pixels; the spatial axes only.

    One with a parameter ``place`` is told the `TilePlace` of the pixels. It may write into its
    input, and what it returns may be written to by others.
    """

    parameters: Mapping[str, Any] = field(default_factory=dict)
    """Keyword arguments of every call: numbers, text, arrays, or lists and mappings of these."""

    halo: PerAxis = 0
    """Pixels around each pixel that decide its result, on each side, as in `per_axis`."""

    output_dtype: DtypeRule = same_dtype
    """Data type of the result from that of the pixels; must pickle."""

    version: str = "1"
    """Raised whenever the same pixels would give others."""

    def __post_init__(self) -> None:
        halo = self.halo
        values: Sequence[Any] = (halo,)
        if isinstance(halo, Mapping | Sequence):
            values = tuple(halo.values()) if isinstance(halo, Mapping) else halo
        if not all(isinstance(v, int | np.integer) and v >= 0 for v in values):
            raise ImageError(
                f"the halo of operation {self.name!r} must be whole numbers of pixels, 0 or more, "
                f"got {halo!r}"
            )
        self.to_dict()

    def halo_of(self, axes: str) -> tuple[int, ...]:
        """Return the halo per axis of `axes`."""
        halo = per_axis(f"the halo of operation {self.name!r}", self.halo, axes)
        return tuple(int(n) for n in halo)

    def dtype_of(self, dtype: npt.DTypeLike) -> np.dtype[Any]:
        """Return the data type of the result."""
        return np.dtype(self.output_dtype(np.dtype(dtype)))

    def __call__(self, pixels: Array, place: TilePlace | None = None) -> Array:
        """Run the operation; `pixels` are left as they are.

        Parameters
        ----------
        pixels : ndarray
            One to three spatial axes.
        place : TilePlace, optional
            Where the pixels lie; None where they are the whole image.

        Returns
        -------
        ndarray
            Shape of `pixels`; right except within the halo of where it ends inside the image.

        Raises
        ------
        ImageError
            If the function returned another shape or data type.
        """
        return self.run(pixels.copy(), place or TilePlace.whole(pixels.shape))

    def run(self, pixels: Array, place: TilePlace) -> Array:
        """Run the operation as by a call, on pixels that it may write to."""
        where = {"place": place} if _wants_place(self.function) else {}
        result = np.asarray(self.function(pixels, **where, **self.parameters))
        dtype = self.dtype_of(pixels.dtype)
        if result.shape != pixels.shape:
            raise ImageError(
                f"operation {self.name!r} must return one value per pixel, was given shape "
                f"{pixels.shape!r} and returned {result.shape!r} at {place.region}"
            )
        if result.dtype != dtype:
            raise ImageError(
                f"operation {self.name!r} says that {pixels.dtype} becomes {dtype}, and returned "
                f"{result.dtype} at {place.region}; declare the dtype it returns (dtype=)"
            )
        return result

    def to_dict(self) -> dict[str, Any]:
        """Return what identifies the operation, JSON-ready; arrays as their digests."""
        return {
            "operation": self.name,
            "parameters": {k: _record(v, self.name) for k, v in self.parameters.items()},
            "halo": _record(self.halo, self.name),
            "version": self.version,
        }


@dataclass(frozen=True, slots=True)
class Chain:
    """Operations one after the other; made by `chain`."""

    operations: tuple[Operation, ...]
    """The first is run first."""

    def __post_init__(self) -> None:
        if not self.operations:
            raise ImageError("a chain needs at least one operation, got none")

    @property
    def name(self) -> str:
        """The names of the operations."""
        return " > ".join(operation.name for operation in self.operations)

    def halo_of(self, axes: str) -> tuple[int, ...]:
        """Return the sum of the halos, per axis of `axes`."""
        halos = [operation.halo_of(axes) for operation in self.operations]
        return tuple(sum(values) for values in zip(*halos, strict=True))

    def dtype_of(self, dtype: npt.DTypeLike) -> np.dtype[Any]:
        """Return the data type of the result."""
        for operation in self.operations:
            dtype = operation.dtype_of(dtype)
        return np.dtype(dtype)

    def __call__(self, pixels: Array, place: TilePlace | None = None) -> Array:
        """Run every operation on all `pixels`, which are left as they are."""
        pixels, place = pixels.copy(), place or TilePlace.whole(pixels.shape)
        for operation in self.operations:
            pixels = operation.run(pixels, place)
        return pixels

    def on_core(self, pixels: Array, place: TilePlace, core: Region) -> Array:
        """Run the chain on what a tile reads and return its core, as of the whole image.

        Parameters
        ----------
        pixels : ndarray
            The core grown by `halo_of`, clipped to the image; may be written to.
        place : TilePlace
            Where they lie.
        core : Region
            Pixels that are wanted.

        Returns
        -------
        ndarray of `core.shape`
        """
        halo = np.array(self.halo_of(place.axes), dtype=int)
        for operation in self.operations:
            pixels = operation.run(pixels, place)
            halo -= operation.halo_of(place.axes)
            kept = core.grow(halo.tolist(), within=place.image_shape)
            pixels = pixels[kept.slices_from(place.region.start)]
            place = replace(place, region=kept)
        return pixels

    def to_dict(self) -> list[dict[str, Any]]:
        """Return what identifies each operation, JSON-ready."""
        return [operation.to_dict() for operation in self.operations]


def chain(*operations: Operation | Chain) -> Chain:
    """Put operations after each other; the first is run first.

    Raises
    ------
    ImageError
        If there is none, or something else among them.

    Examples
    --------
    >>> first = operation(np.fabs, halo=1, name="fabs")
    >>> both = chain(first, operation(np.sqrt, halo={"y": 2, "x": 3}, name="sqrt"))
    >>> both.name, both.halo_of("zyx")
    ('fabs > sqrt', (1, 3, 4))
    """
    steps: list[Operation] = []
    for operation in operations:
        if isinstance(operation, Chain):
            steps += operation.operations
        elif isinstance(operation, Operation):
            steps.append(operation)
        else:
            raise ImageError(
                f"an image is processed by operations, got {operation!r}; make one of a function "
                "with operation(function, halo=...)"
            )
    return Chain(tuple(steps))


def operation(
    function: Callable[..., Array],
    parameters: Mapping[str, Any] | None = None,
    *,
    halo: PerAxis = 0,
    dtype: npt.DTypeLike | None = None,
    name: str | None = None,
) -> Operation:
    """Make an operation of a function.

    Parameters
    ----------
    function : callable
        ``function(pixels, **parameters)``, of the spatial axes of one time point and channel; with
        a parameter ``place`` it is told where the pixels lie (`TilePlace`).
    parameters : mapping, optional
        Keyword arguments of every call.
    halo : int, sequence or mapping
        Pixels around each pixel that decide its result, on each side. Too few give seams.
    dtype : dtype, optional
        Of the result; None is that of the pixels.
    name : str, optional
        Its import path by default.

    Examples
    --------
    >>> from scipy import ndimage
    >>> edges = operation(ndimage.sobel, {"axis": -1}, halo=1, dtype="float32")
    >>> edges.halo_of("yx"), edges.dtype_of("uint8")
    ((1, 1), dtype('float32'))
    """
    rule = same_dtype if dtype is None else _Always(np.dtype(dtype))
    # The same questions as of a segmentation function: which code, which version of it.
    segmentation = segmentation_of(function)
    parameters = dict(parameters or {})
    path = name or recorded_before(segmentation.name)
    return Operation(path, function, parameters, halo, rule, segmentation.version)


def _wants_place(function: Callable[..., Array]) -> bool:
    """Tell whether a function has a parameter ``place``."""
    try:
        return "place" in inspect.signature(function).parameters
    except (TypeError, ValueError):  # some functions written in C have no signature
        return False


def _record(value: Any, name: str) -> Any:
    """Return a parameter JSON-ready; an array is recorded by its digest."""
    if value is None or isinstance(value, bool | int | float | str):
        return value
    if isinstance(value, np.generic):
        return value.item()
    if isinstance(value, np.ndarray):
        digest = hashlib.blake2b(np.ascontiguousarray(value).data, digest_size=16).hexdigest()
        return {"shape": list(value.shape), "dtype": str(value.dtype), "digest": digest}
    if isinstance(value, Mapping):
        return {str(key): _record(item, name) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_record(item, name) for item in value]
    raise ImageError(
        f"a parameter of operation {name!r} must be a number, text, an array, or a list or mapping "
        f"of these, so that it can be recorded, got {value!r}"
    )
