"""Numbers that people give: whole or not, finite, within bounds; checked in this one place."""

from __future__ import annotations

import math
from numbers import Integral, Real
from typing import Any

from patchworks_core.errors import PlanError


def whole_number(
    name: str,
    value: Any,
    *,
    least: int | None = 0,
    most: int | None = None,
    error: type[ValueError] = PlanError,
) -> int:
    """Return a whole number within bounds.

    Parameters
    ----------
    name : str
        Of the argument, for messages.
    value : int
        NumPy's integers are whole numbers too; True and 2.0 are not.
    least, most : int
        Bounds, included.
    error : type
        Raised where it is none.

    Examples
    --------
    >>> whole_number("max_workers", 2)
    2
    >>> whole_number("max_workers", 1.5, least=1)
    Traceback (most recent call last):
    patchworks_core.errors.PlanError: max_workers must be a whole number, 1 or more, got 1.5
    """
    if isinstance(value, Integral) and not isinstance(value, bool):
        number = int(value)
        if (least is None or number >= least) and (most is None or number <= most):
            return number
    raise error(f"{name} must be a whole number{_bounds(least, most)}, got {value!r}")


def finite_number(
    name: str,
    value: Any,
    *,
    least: float | None = None,
    most: float | None = None,
    error: type[ValueError] = PlanError,
) -> float:
    """Return a number that is neither NaN nor infinite, within bounds; otherwise as `whole_number`.

    Examples
    --------
    >>> finite_number("min_iou", float("nan"), least=0, most=1)
    Traceback (most recent call last):
    patchworks_core.errors.PlanError: min_iou must be a finite number, from 0 to 1, got nan
    """
    if isinstance(value, Real) and not isinstance(value, bool) and math.isfinite(value):
        number = float(value)
        if (least is None or number >= least) and (most is None or number <= most):
            return number
    raise error(f"{name} must be a finite number{_bounds(least, most)}, got {value!r}")


def _bounds(least: float | None, most: float | None) -> str:
    if least is None and most is None:
        return ""
    if most is None:
        return f", {least} or more"
    return f", {most} or less" if least is None else f", from {least} to {most}"
