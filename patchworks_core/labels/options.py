"""The options that all functions for label images share, with their defaults, in one place.

A function takes them as ``**options: Unpack[LabelOptions]`` and is decorated with `takes_options`,
which gives it the whole signature to show, and refuses other names as Python does.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from typing import Any, ParamSpec, TypedDict, TypeVar

from patchworks_core.calls.options import spelled_out
from patchworks_core.images.image import DEFAULT_LEVEL
from patchworks_core.images.image_source import ImageSource
from patchworks_core.images.units import PixelSize
from patchworks_core.labels.source import LabelSource
from patchworks_core.machine.pools import Pool
from patchworks_core.machine.progress import Progress, progress_of
from patchworks_core.machine.workers import WorkerKind, Workers

P = ParamSpec("P")
R = TypeVar("R")


class ReadingOptions(TypedDict, total=False):
    """How labels are read, and what works on them."""

    level: int
    """Resolution level of a multiscale label image; 0, the default, is full."""

    axes: str | None
    """Axes of the labels in their own order, where their metadata does not say."""

    tile_shape: Sequence[int] | int | None
    """Pixels of a tile; as in `plan_grid`. It changes the memory that is needed and the time, not
    the result. None, the default, grows the chunks of the labels to some 4 million pixels."""

    max_workers: int
    """Tiles at once; 1 by default."""

    workers: WorkerKind
    """``threads``, the default, or ``processes``."""

    progress: bool | Progress | None
    """Bars, or ``progress(step, done, total)``; nobody is told by default."""


class LabelOptions(ReadingOptions, total=False):
    """How labels are read, what works on them, and what they may replace."""

    pixel_size: PixelSize | None
    """Micrometers per pixel, over what the labels say; as in `open_image`."""

    overwrite: bool
    """Replace whatever is there. Otherwise, and by default, only what patchworks wrote there, and
    nobody changed since, is replaced."""


DEFAULTS = LabelOptions(
    level=DEFAULT_LEVEL,
    axes=None,
    tile_shape=None,
    max_workers=1,
    workers="threads",
    pixel_size=None,
    overwrite=False,
    progress=None,
)


def takes_options(options: type) -> Callable[[Callable[P, R]], Callable[P, R]]:
    """Give a function that takes ``**options`` the signature with each of them spelled out.

    Parameters
    ----------
    options : type
        `ReadingOptions` or `LabelOptions`.
    """
    return spelled_out(options, {**DEFAULTS})


def source_of(labels: ImageSource, options: LabelOptions | ReadingOptions) -> LabelSource:
    """Open labels as the options say."""
    values: dict[str, Any] = {**DEFAULTS, **options}
    names = ("level", "axes", "pixel_size", "tile_shape")
    return LabelSource.open(labels, **{name: values[name] for name in names})


def pool_of(options: LabelOptions | ReadingOptions) -> AbstractContextManager[Pool]:
    """Return the pool that the options ask for, to be opened."""
    values: dict[str, Any] = {**DEFAULTS, **options}
    return _pool(Workers(values["max_workers"], values["workers"]), values["progress"])


@contextmanager
def _pool(workers: Workers, progress: bool | Progress | None) -> Iterator[Pool]:
    with progress_of(progress) as tell, Pool.open(workers, tell) as pool:
        yield pool
