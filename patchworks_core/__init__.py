"""Segment images larger than memory tile by tile, and get one label image back.

What is public stands in ``__init__.pyi``, and is imported when it is asked for.
"""

from __future__ import annotations

import lazy_loader

_public, __dir__, __all__ = lazy_loader.attach_stub(__name__, __file__)


def __getattr__(name: str) -> object:
    if name == "__version__":
        from importlib.metadata import version

        return version("patchworks-pipeline")
    return _public(name)
