"""Digests of values: of what a function holds, the same in every process and for any hash seed.

Sets and mappings are digested in an order of their own, arrays by type, shape and content, and any
other object by what pickling would keep of it. What cannot be digested is named, not guessed.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Callable, Iterable, Mapping
from functools import partial
from pathlib import PurePath
from types import BuiltinFunctionType, CodeType, FunctionType, MethodType, ModuleType
from typing import Any

import numpy as np

MAX_DEPTH = 100
"""How deep a value may be nested."""


class Digester:
    """Digests values, and remembers what it could not."""

    def __init__(
        self,
        visit_function: Callable[[FunctionType, str], bytes],
        visit_class: Callable[[type], bytes],
        constant_state: Callable[[Any, dict[str, Any], str], dict[str, Any]],
    ) -> None:
        self._visit_function = visit_function
        self._visit_class = visit_class
        self._constant_state = constant_state
        self._open: dict[int, int] = {}
        self.unknown: list[str] = []
        """What could not be digested, in words."""

    def __call__(self, value: Any, name: str) -> bytes:
        """Return the digest of a value; `name` says what it is, where it cannot be digested."""
        if id(value) in self._open:  # a value that holds itself
            return _join(b"again", str(self._open[id(value)]).encode())
        if len(self._open) >= MAX_DEPTH:
            self.unknown.append(f"{name} (nested more than {MAX_DEPTH} deep)")
            return b""
        self._open[id(value)] = len(self._open)
        try:
            return self._digest(value, name)
        finally:
            del self._open[id(value)]

    def _digest(self, value: Any, name: str) -> bytes:
        kind = type(value).__name__.encode()
        if value is None or value is Ellipsis or isinstance(value, bool | int | float | complex):
            return _join(kind, repr(value).encode())
        if isinstance(value, str):
            return _join(kind, value.encode(errors="surrogatepass"))
        if isinstance(value, bytes | bytearray):
            return _join(kind, bytes(value))
        if isinstance(value, np.ndarray | np.generic) and not value.dtype.hasobject:
            shape = repr((value.dtype.str, value.shape)).encode()
            return _join(kind, shape, np.ascontiguousarray(value).tobytes())
        if isinstance(value, list | tuple):
            return self._all(kind, value, name)
        if isinstance(value, set | frozenset):
            return _join(kind, *sorted(self(item, name) for item in value))
        if isinstance(value, Mapping) and type(value).__module__ == "builtins":
            pairs = (self(pair, f"{name}[{pair[0]!r}]") for pair in value.items())
            return _join(kind, *sorted(pairs))
        return self._digest_object(value, name, kind)

    def _digest_object(self, value: Any, name: str, kind: bytes) -> bytes:
        """Digest what is neither a number, text, an array, nor a container."""
        if isinstance(value, FunctionType):
            return self._visit_function(value, name)
        if isinstance(value, MethodType):
            return self._all(kind, [value.__func__, value.__self__], name)
        if isinstance(value, partial):
            return self._all(kind, [value.func, value.args, value.keywords], name)
        if isinstance(value, CodeType):
            return self.code(value, name)
        if isinstance(value, PurePath):
            return _join(kind, str(value).encode())
        if isinstance(value, re.Pattern):
            return self._all(kind, [value.pattern, value.flags], name)
        if isinstance(value, ModuleType):
            return _join(kind, value.__name__.encode())
        if isinstance(value, type):
            return self._visit_class(value)
        if isinstance(value, BuiltinFunctionType | np.ufunc):
            where = getattr(value, "__module__", "")
            return _join(kind, f"{where}:{getattr(value, '__qualname__', value)}".encode())
        if callable(getattr(value, "__wrapped__", None)):  # such as functools.cache
            return self._all(kind, [value.__wrapped__], name)
        try:
            reduced = value.__reduce_ex__(4)
        except Exception as error:  # whatever an object's own code raises
            self.unknown.append(f"{name} ({type(value).__name__}: {error})")
            return kind
        if isinstance(reduced, str):
            return _join(kind, reduced.encode())
        # Function, arguments and state; then, where there are any, the items of a container.
        made, state = list(reduced[:2]), reduced[2] if len(reduced) > 2 else None
        if isinstance(state, dict):
            state = self._constant_state(value, state, name)
        items = [list(part) for part in reduced[3:5] if part is not None]
        return self._all(kind, [*made, state, *items], name)

    def code(self, code: CodeType, name: str) -> bytes:
        """Return the digest of what code does, wherever it stands."""
        names = [code.co_names, code.co_varnames, code.co_freevars, code.co_cellvars]
        counts = [code.co_argcount, code.co_posonlyargcount, code.co_kwonlyargcount]
        parts = [code.co_code, code.co_consts, *names, *counts, code.co_flags]
        return self._all(b"code", parts, name)

    def _all(self, kind: bytes, values: Iterable[Any], name: str) -> bytes:
        return _join(kind, *(self(value, name) for value in values))


def digest_text(*parts: bytes) -> str:
    """Return the digest of several parts, 16 hex digits."""
    return hashlib.blake2b(_join(*parts), digest_size=8).hexdigest()


def _join(*parts: bytes) -> bytes:
    """Return a digest in which no part can run into the next."""
    total = hashlib.blake2b(digest_size=16)
    for part in parts:
        total.update(len(part).to_bytes(8, "little"))
        total.update(part)
    return total.digest()
