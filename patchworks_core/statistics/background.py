"""Whether the background of an image is bright, as in brightfield, told from its histogram.

Objects are dark where the background is bright; taken for bright ones, the labels are inside out.
Otsu's threshold parts the pixels into a dark and a bright part, and the bright part is background
where four things are so of it. Each is what fluorescence lacks, however dense its objects are:

1. It is the larger part: most of a field of view is background.
2. It is even: half of its pixels lie close together, clear of the threshold.
3. Little is brighter: light that nothing absorbs is the brightest there is. Objects that shine
   differ, and the brightest of them are far brighter than most.
4. The dark part is less even, or far from black: that of fluorescence is empty background.

Where objects cover most of an 8-bit slide or photograph, light that nothing absorbs is known by
itself: the commonest tenth of the pixels lies close together, little is brighter, and the darkest
pixels are far from black, which a camera's offset would be too.

Light that the camera cuts off looks even and has nothing above it, whatever it is. Then the bright
part must be most of the image, and the dark part far from black. In doubt objects are bright.
"""

from __future__ import annotations

from dataclasses import dataclass
from math import ceil
from typing import Any
from weakref import WeakKeyDictionary

import numpy as np
import numpy.typing as npt

from patchworks_core.statistics.statistics import ImageStatistics

Array = npt.NDArray[Any]

DARK_OBJECTS = (
    "the background of the image is bright, so its dark objects are labelled; dark_objects=False "
    "labels what is bright, dark_objects=True says that this is right"
)
"""What is said where a function takes objects for dark."""

SHARE, MOST = 1 / 2, 2 / 3
"""Least share of the pixels that the bright part holds; where light is cut off, or the dark part is
not much less even."""

CLEARANCE = 2.0
"""How many of its own widths the bright part stands above the threshold, at least."""

TAIL = 0.2
"""How far the brightest pixels are above the bright part, at most, of how far the darkest are below
it: 0.04 to 0.18 in brightfield, 0.25 and more in fluorescence of every density."""

EVENNESS = 2.0
"""How many times as wide as the bright part the dark part is, at least; once where the bright part
is `MOST` of the image."""

CUT_OFF = 0.1
"""Share of the bright part that has the largest value, from which on light counts as cut off."""

FAR_FROM_BLACK = 0.25
"""Least value of a dark part that is not black, of the largest value."""


LIGHT_SHARE, LIGHT_WIDTH, LIGHT_TAIL, LIGHT_LEAST = 0.1, 0.07, 0.21, 0.15
"""Of light that nothing absorbs, where objects cover most of it: the tenth of the pixels that lie
closest together does so within this share of their distance from the darkest ones, the brightest
are no farther above them, and the darkest are this far from black, of the largest value."""


@dataclass(frozen=True, slots=True)
class _Part:
    """The pixels on one side of the threshold: the narrowest range that holds half of them."""

    low: float
    high: float
    share: float

    @property
    def middle(self) -> float:
        return (self.low + self.high) / 2

    @property
    def width(self) -> float:
        return self.high - self.low


def has_bright_background(statistics: ImageStatistics) -> bool:
    """Tell whether an image has dark objects on a bright background; in doubt it has not.

    Examples
    --------
    >>> from patchworks_core.images.image import open_image
    >>> from patchworks_core.statistics.measuring import measure
    >>> from patchworks_core.tiles.regions import Region
    >>> slide = np.random.default_rng(0).normal(220, 3, (64, 64)).astype("uint8")
    >>> slide[20:40, 20:40] = 90
    >>> whole = [Region((0, 0), (64, 64))]
    >>> [has_bright_background(measure(open_image(i), whole)) for i in (slide, 255 - slide)]
    [True, False]
    """
    answer = _ANSWERS.get(statistics)
    if answer is None:  # every tile asks
        answer = _ANSWERS[statistics] = _has_bright_background(statistics)
    return answer


_ANSWERS: WeakKeyDictionary[ImageStatistics, bool] = WeakKeyDictionary()


def _has_bright_background(statistics: ImageStatistics) -> bool:
    values, counts = statistics.bins.values, statistics.counts
    if statistics.dtype == "bool" or statistics.minimum == statistics.maximum:
        return False
    is_bright = values > statistics.threshold()
    if not counts[is_bright].any() or not counts[~is_bright].any():
        return False
    dark, bright = _part_of(values, counts, ~is_bright), _part_of(values, counts, is_bright)
    is_far = dark.low > FAR_FROM_BLACK * float(statistics.maximum)
    if int(counts[np.flatnonzero(counts)[-1]]) > CUT_OFF * int(counts[is_bright].sum()):
        return bright.share >= MOST and is_far
    ends = statistics.percentile(0.1), statistics.percentile(99.9)
    if statistics.dtype == "uint8" and _is_lit(values, counts, is_bright, ends):
        return True
    is_clear = bright.low - statistics.threshold() >= CLEARANCE * bright.width
    is_brightest = ends[1] - bright.middle <= TAIL * (bright.middle - ends[0])
    least = bright.width - float(statistics.bins.width)  # whole numbers round the widths
    if bright.share >= MOST:
        is_more_even = is_far or dark.width >= least
    else:
        is_more_even = dark.width >= EVENNESS * bright.width
    return bright.share >= SHARE and is_clear and is_brightest and is_more_even


def _is_lit(
    values: Array,
    counts: npt.NDArray[np.int64],
    is_bright: npt.NDArray[np.bool_],
    ends: tuple[float, float],
) -> bool:
    """Tell whether the commonest pixels are bright, and light that nothing absorbs."""
    share = LIGHT_SHARE * int(counts.sum()) / int(counts[is_bright].sum())
    light = _part_of(values, counts, is_bright, share=min(1.0, share))
    commonest = _part_of(values, counts, counts > 0, share=LIGHT_SHARE)
    span = light.middle - ends[0]
    return (
        light.width <= min(commonest.width, LIGHT_WIDTH * span)
        and ends[1] - light.middle <= LIGHT_TAIL * span
        and ends[0] > LIGHT_LEAST * float(values[np.flatnonzero(counts)[-1]])
    )


def _part_of(
    values: Array,
    counts: npt.NDArray[np.int64],
    is_part: npt.NDArray[np.bool_],
    *,
    share: float = 1 / 2,
) -> _Part:
    """Return the narrowest range of values that holds a share of the pixels of a part."""
    occupied = np.flatnonzero(np.where(is_part, counts, 0))
    sums = np.cumsum(counts[occupied])
    before = sums - counts[occupied]
    last = np.searchsorted(sums, before + ceil(int(sums[-1]) * share))
    starts = np.flatnonzero(last < occupied.size)
    lows, highs = values[occupied[starts]], values[occupied[last[starts]]]
    narrowest = int(np.argmin(highs - lows))
    held = int(sums[-1]) / int(counts.sum())
    return _Part(float(lows[narrowest]), float(highs[narrowest]), held)
