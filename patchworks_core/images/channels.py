"""Which of several channels is read, in words."""

from __future__ import annotations

import numpy as np

from patchworks_core.images.readers.opened import Opened


def channel_note(unasked: int | None, opened: Opened, where: str) -> tuple[str, ...]:
    """Say which of several channels is read where nobody chose one.

    Parameters
    ----------
    unasked : int or None
        The channel that is read; None where it was chosen, or there is no choice.
    opened : Opened
    where : str
        The image, for messages.
    """
    n_channels = 0 if unasked is None else int(opened.pixels.shape[opened.axes.index("c")])
    if n_channels < 2:
        return ()
    names = opened.channel_names or _colours_of(opened, n_channels)
    described = [f"{i} is {name!r}" for i, name in enumerate(names)]
    channels = f" ({', '.join(described)})" if described else ""
    another = n_channels - 1
    return (
        f"channel {unasked} of {n_channels} in {where} is read{channels}; choose another with "
        f"channel={another} (--channel {another}), or say channel={unasked}",
    )


def _colours_of(opened: Opened, n_channels: int) -> tuple[str, ...]:
    """Return what the unnamed channels of a photograph are: it stores them last, in 8 bits."""
    if opened.axes[-1] != "c" or opened.pixels.dtype != np.uint8:
        return ()
    return ("red", "green", "blue", "opacity")[:n_channels] if n_channels in (3, 4) else ()
