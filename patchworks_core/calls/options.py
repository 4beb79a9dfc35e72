"""Options that several functions share: a function takes ``**options: Unpack[SomeOptions]``."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from functools import wraps
from typing import Any, ParamSpec, TypeVar, get_type_hints

P = ParamSpec("P")
R = TypeVar("R")


def spelled_out(
    options: type, defaults: Mapping[str, Any]
) -> Callable[[Callable[P, R]], Callable[P, R]]:
    """Give a function that takes ``**options`` the signature with each of them spelled out.

    Parameters
    ----------
    options : type
        A `typing.TypedDict`.
    defaults : mapping
        Of each option, for the signature.
    """
    hints = get_type_hints(options)

    def decorate(function: Callable[P, R]) -> Callable[P, R]:
        signature = inspect.signature(function)
        own = [p for p in signature.parameters.values() if p.kind is not p.VAR_KEYWORD]
        shared = [
            inspect.Parameter(
                name, inspect.Parameter.KEYWORD_ONLY, default=defaults[name], annotation=hint
            )
            for name, hint in hints.items()
        ]
        whole = signature.replace(parameters=[*own, *shared])

        @wraps(function)
        def call(*args: P.args, **kwargs: P.kwargs) -> R:
            try:
                whole.bind(*args, **kwargs)
            except TypeError as error:
                names = ", ".join(f"{name}=" for name in whole.parameters)
                raise TypeError(
                    f"{function.__name__}() {error}; its parameters are {names}"
                ) from None
            return function(*args, **kwargs)

        call.__signature__ = whole  # type: ignore[attr-defined]
        return call

    return decorate
