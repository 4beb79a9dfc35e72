"""The most frequent id: how a pixel of a lower resolution is made from labels above it.

1. Each box of 2 pixels per halved axis becomes its most frequent id that is not 0; of two that are
   as frequent, the smaller one.
2. An object that got no pixel then takes one from an object that has more than one: the box in
   which it is most frequent, the first of those in row-major order. Where every box it lies in
   holds the only pixel of another object, it is lost.

Both steps look at what they are given and at nothing else. A level is made chunk by chunk (of the
level), so step 2 asks "no pixel in this chunk": an object cut by the border of chunks keeps a pixel
in each chunk it reaches. The bytes hence depend on the labels and the chunks, never on workers, the
order of tasks, or which chunks were written before.
"""

from __future__ import annotations

from collections.abc import Sequence
from itertools import product
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

Array = npt.NDArray[Any]


def most_frequent(labels: Array, step: Sequence[int]) -> Array:
    """Choose one id for every box of 2 pixels along every axis whose step is 2.

    Parameters
    ----------
    labels : ndarray
        Whole numbers >= 0; 0 is background.
    step : sequence of int
        1 or 2 per axis.

    Returns
    -------
    ndarray
        Of the same type. The last box of an axis of odd length is one pixel thick.

    Examples
    --------
    >>> most_frequent(np.array([[10, 10, 20], [1000, 0, 0]]), (2, 2))
    array([[10, 20]])
    >>> most_frequent(np.array([[7, 7, 7, 7], [7, 7, 7, 9]]), (2, 2))
    array([[7, 9]])
    """
    if labels.dtype.kind == "b":
        return most_frequent(labels.view(np.uint8), step).view(labels.dtype)
    odd = [(0, n % s) for n, s in zip(labels.shape, step, strict=True)]
    padded = np.pad(labels, odd) if any(after for _, after in odd) else labels
    unsigned = padded.view(f"{padded.dtype.byteorder}u{padded.dtype.itemsize}")
    winners = _reduced(np.maximum, unsigned, step)
    # One less, background is the largest number: the minimum is that of the objects.
    is_mixed = _reduced(np.minimum, unsigned - unsigned.dtype.type(1), step) + 1 < winners
    winners = winners.view(padded.dtype)
    if is_mixed.any():
        corners = product(*[range(s) for s in step])
        views = (
            padded[tuple(slice(a, None, s) for a, s in zip(corner, step, strict=True))]
            for corner in corners
        )
        votes = _count(np.stack([view[is_mixed] for view in views], axis=1))
        winners[is_mixed] = _elect(votes, winners[~is_mixed])
    return winners


def _reduced(choose: np.ufunc, values: Array, step: Sequence[int]) -> Array:
    """Choose one value for every box: along one axis, then of what is left along the next."""
    for axis in range(values.ndim):
        if step[axis] == 2:
            before: list[slice] = [slice(None)] * axis
            even, odd = ((*before, slice(first, None, 2)) for first in (0, 1))
            values = choose(values[even], values[odd])
    return values


class _Votes(NamedTuple):
    """Ids of boxes that hold several: by box, then the most frequent first, then by id."""

    boxes: Array
    ids: Array
    counts: Array


def _count(pixels: Array) -> _Votes:
    """Count the ids in boxes, given as one row of pixels each."""
    n_pixels = pixels.shape[1]
    pixels.sort(axis=1)
    is_first = np.ones(pixels.shape, bool)
    np.not_equal(pixels[:, 1:], pixels[:, :-1], out=is_first[:, 1:])
    places = np.flatnonzero(is_first)
    counts = np.diff(places, append=pixels.size)
    ids = pixels.reshape(-1)[places]
    boxes = places // n_pixels
    is_object = ids != 0
    boxes, ids, counts = boxes[is_object], ids[is_object], counts[is_object]
    # Stable, so that of two ids that are as frequent the smaller one stays first.
    order = np.argsort(boxes * (n_pixels + 1) + (n_pixels - counts), kind="stable")
    return _Votes(boxes[order], ids[order], counts[order])


def _elect(votes: _Votes, elsewhere: Array) -> Array:
    """Return the id of every box of several ids; `elsewhere` are those of the other boxes."""
    ids = _distinct(votes.ids)
    owner = np.searchsorted(ids, votes.ids[np.flatnonzero(np.diff(votes.boxes, prepend=-1))])
    n_boxes = np.bincount(owner, minlength=len(ids))
    if n_boxes.all():
        return np.asarray(ids[owner])
    places = np.searchsorted(ids, elsewhere)
    is_known = np.take(ids, places, mode="clip") == elsewhere
    n_boxes += np.bincount(places[is_known], minlength=len(ids))
    voters = np.searchsorted(ids, votes.ids)
    is_lost = n_boxes[voters] == 0
    order = np.lexsort((votes.boxes[is_lost], -votes.counts[is_lost], voters[is_lost]))
    _rescue(voters[is_lost][order], votes.boxes[is_lost][order], owner, n_boxes)
    return np.asarray(ids[owner])


def _distinct(values: Array) -> Array:
    """Return what `np.unique` does, by sorting: NumPy's hashing takes ten times as long."""
    values = np.sort(values)
    return np.asarray(values[np.append(True, values[1:] != values[:-1])])


def _rescue(losers: Array, boxes: Array, owner: Array, n_boxes: Array) -> None:
    """Give a box to each object without one, in place, from objects that have several.

    Parameters
    ----------
    losers, boxes : ndarray of int
        Objects without a box, ascending, and boxes they lie in, the best one first.
    owner : ndarray of int
        Object of each box.
    n_boxes : ndarray of int
        Boxes of each object.
    """
    while True:
        is_open = (n_boxes[losers] == 0) & (n_boxes[owner[boxes]] > 1)
        losers, boxes = losers[is_open], boxes[is_open]
        if not losers.size:
            return
        best = np.flatnonzero(np.diff(losers, prepend=-1))
        # Of several objects that want one box, the smallest id comes first.
        pixels, first = np.unique(boxes[best], return_index=True)
        takers, givers = losers[best][first], owner[pixels]
        order = np.argsort(givers, kind="stable")
        starts = np.flatnonzero(np.diff(givers[order], prepend=-1))
        sizes = np.diff(starts, append=len(order))
        rank = np.arange(len(order)) - np.repeat(starts, sizes)
        changes = order[rank < n_boxes[givers[order]] - 1]
        owner[pixels[changes]] = takers[changes]
        n_boxes[takers[changes]] += 1
        np.subtract.at(n_boxes, givers[changes], 1)
