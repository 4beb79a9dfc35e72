"""Parts of an image that are not stored: they are read as a fill value, without an error."""

from __future__ import annotations

from math import prod
from typing import Any

import numpy as np
import numpy.typing as npt
import tifffile

from patchworks_core.images.readers.opened import Gaps


def gaps_in(is_stored: npt.NDArray[np.bool_], what: str, value: Any) -> Gaps | None:
    """Say how many parts are not stored; None where all are.

    Parameters
    ----------
    is_stored : ndarray of bool
        By the places of the parts in their grid.
    what : str
        They are, and of what, in words.
    value : object
        That pixels of parts that are not stored are read as.
    """
    n_missing = is_stored.size - int(np.count_nonzero(is_stored))
    if n_missing == 0:
        return None
    n_within = _n_within(is_stored)
    shown = value.item() if isinstance(value, np.generic) else value
    among = f", {n_within} of them among stored ones" if n_within else ""
    return Gaps(
        f"{n_missing} of {is_stored.size} {what} are not stored{among}; they are read as "
        f"{shown!r}: a writer leaves out empty chunks, and so does a broken copy",
        is_suspicious=n_missing == is_stored.size or n_within > 0,
    )


def stored_segments(part: tifffile.TiffPageSeries) -> npt.NDArray[np.bool_]:
    """Return which strips or tiles of every page of a TIFF have bytes, page after page."""
    if part.dataoffset is not None:  # they lie in one piece
        return np.ones(1, bool)
    pages = [np.array(page.databytecounts) > 0 for page in part.pages if page is not None]
    grid = part.keyframe.chunked
    is_regular = all(len(page) == prod(grid) for page in pages)
    return np.stack(pages).reshape(-1, *grid) if is_regular else np.concatenate(pages)


def _n_within(is_stored: npt.NDArray[np.bool_]) -> int:
    """Count the missing chunks whose every neighbour, across a face, is stored; 2 or more."""
    is_within = ~is_stored
    n_neighbours = np.zeros(is_stored.shape, np.int8)
    for axis in range(is_stored.ndim):
        for ahead in (True, False):
            here, there = [slice(None)] * is_stored.ndim, [slice(None)] * is_stored.ndim
            here[axis], there[axis] = slice(None, -1), slice(1, None)
            if ahead:
                here, there = there, here
            is_within[tuple(here)] &= is_stored[tuple(there)]
            n_neighbours[tuple(here)] += 1
    return int(np.count_nonzero(is_within & (n_neighbours >= 2)))
