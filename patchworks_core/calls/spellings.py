"""Other spellings of parameters: those that are taken for ours, and those that have no meaning."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from functools import wraps
from typing import Any, ParamSpec, TypeVar

P = ParamSpec("P")
R = TypeVar("R")


def also_spelled(
    names: Mapping[str, str],
    *,
    values: Mapping[str, Mapping[Any, Any]] | None = None,
    absent: Mapping[str, str] | None = None,
) -> Callable[[Callable[P, R]], Callable[P, R]]:
    """Let a function be called by other names of its parameters; its signature stays its own.

    Parameters
    ----------
    names : mapping of str to str
        Name of ours for each other name.
    values : mapping, optional
        What values of an other name are called here, by other name.
    absent : mapping of str to str, optional
        What to do instead, for each name that means nothing here.

    Examples
    --------
    >>> @also_spelled({"colour": "color"}, values={"colour": {"grey": "gray"}})
    ... def paint(color="red"):
    ...     return color
    >>> paint(colour="grey"), paint(colour="blue"), paint()
    ('gray', 'blue', 'red')
    """

    def decorate(function: Callable[P, R]) -> Callable[P, R]:
        name = function.__name__

        def spelled_as_ours(arguments: dict[str, Any]) -> None:
            for other in [*arguments]:
                if absent is not None and other in absent:
                    raise TypeError(f"{name}() has no {other}=: {absent[other]}")
                if other in names:
                    ours, value = names[other], arguments.pop(other)
                    if ours in arguments:
                        raise TypeError(
                            f"{name}() got {ours}= and {other}=, which are the same; leave one out"
                        )
                    words = (values or {}).get(other, {})
                    arguments[ours] = words.get(value, value) if words else value

        @wraps(function)
        def call(*args: P.args, **kwargs: P.kwargs) -> R:
            spelled_as_ours(kwargs)
            return function(*args, **kwargs)

        call.other_spellings = dict(names)  # type: ignore[attr-defined]
        call.absent_spellings = dict(absent or {})  # type: ignore[attr-defined]
        return call

    return decorate
