"""Digests of values: of what a function holds, the same in every process and for any hash seed.

Sets and mappings are digested in an order of their own, arrays by type, shape and content, and any
other object by what pickling would keep of it. What cannot be digested is named, not guessed.
"""

from __future__ import annotations

import hashlib
import os
import re
from collections.abc import Iterable, Mapping
from functools import partial
from pathlib import Path, PurePath
from types import BuiltinFunctionType, CodeType, FunctionType, MethodType, ModuleType
from typing import Any, Protocol

import numpy as np

from patchworks_core.plugins.models import digest_of_files

MAX_DEPTH = 100
"""How deep a value may be nested."""


class Visitor(Protocol):
    """What goes through functions, classes and the attributes of objects."""

    def function(self, function: FunctionType, name: str) -> bytes:
        """Return the digest of a function."""

    def class_(self, cls: type) -> bytes:
        """Return the digest of a class."""

    def module(self, module: ModuleType, name: str) -> bytes:
        """Return the digest of a module."""

    def state(self, value: object, state: dict[str, Any], name: str) -> list[bytes]:
        """Return the digests of the attributes of an object."""


class Digester:
    """Digests values, and remembers what it could not."""

    def __init__(self, visitor: Visitor) -> None:
        self._visitor = visitor
        self._open: dict[int, int] = {}
        self.unknown: list[str] = []
        """What could not be digested, in words."""
        self.contents: list[bytes] = []
        """Digests of the files that texts and paths name."""

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
            self._note_file(value)
            return _join(kind, value.encode(errors="surrogatepass"))
        if isinstance(value, bytes | bytearray):
            return _join(kind, bytes(value))
        is_array = type(value) is np.ndarray or isinstance(value, np.generic)
        if is_array and not value.dtype.hasobject:
            shape = repr((value.dtype, value.shape)).encode()
            return _join(kind, shape, np.ascontiguousarray(value).tobytes())
        if isinstance(value, list | tuple):
            return self._all(kind, value, name)
        if isinstance(value, set | frozenset):
            return _join(kind, *sorted(self(item, name) for item in value))
        if isinstance(value, Mapping) and type(value).__module__ == "builtins":
            return _join(kind, *(self(pair, f"{name}[{pair[0]!r}]") for pair in value.items()))
        return self._digest_object(value, name, kind)

    def _digest_object(self, value: Any, name: str, kind: bytes) -> bytes:
        """Digest what is neither a number, text, an array, nor a container."""
        if isinstance(value, FunctionType):
            return self._visitor.function(value, name)
        if isinstance(value, type):
            return self._visitor.class_(value)
        if isinstance(value, MethodType):
            return self._all(kind, [value.__func__, value.__self__], name)
        if isinstance(value, partial):
            keywords = sorted(value.keywords.items())
            return self._all(kind, [value.func, value.args, keywords], name)
        if isinstance(value, CodeType):
            return self.code(value, name)
        if isinstance(value, PurePath):
            self._note_file(str(value))
            return _join(kind, str(value).encode())
        if isinstance(value, re.Pattern):
            return self._all(kind, [value.pattern, value.flags], name)
        if isinstance(value, ModuleType):
            return _join(kind, self._visitor.module(value, name))
        if isinstance(value, BuiltinFunctionType | np.ufunc):
            where = getattr(value, "__module__", "")
            text = f"{where}:{getattr(value, '__qualname__', value)}".encode()
            owner = getattr(value, "__self__", None)
            return _join(kind, text, b"" if isinstance(owner, ModuleType) else self(owner, name))
        wrapped = getattr(value, "__wrapped__", None)
        parts = [self._reduced(value, name, kind)]
        if callable(wrapped):
            parts.append(self(wrapped, name))
        return _join(kind, *parts)

    def _reduced(self, value: Any, name: str, kind: bytes) -> bytes:
        """Digest what pickling would keep of an object."""
        try:
            reduced = value.__reduce_ex__(4)
        except Exception as error:  # whatever an object's own code raises
            self.unknown.append(f"{name} ({type(value).__name__}: {error})")
            return kind
        if isinstance(reduced, str):
            return _join(kind, reduced.encode())
        # Function, arguments and state; then, where there are any, the items of a container.
        made, state = list(reduced[:2]), reduced[2] if len(reduced) > 2 else None
        items = [list(part) for part in reduced[3:5] if part is not None]
        digest = self._all(kind, [*made, *items], name)
        slots: list[Any] = list(state) if isinstance(state, tuple) else [state]
        for part in slots:
            attributes = isinstance(part, dict) and all(isinstance(key, str) for key in part)
            digests = self._visitor.state(value, part, name) if attributes else [self(part, name)]
            digest = _join(digest, *digests)
        return digest

    def _note_file(self, text: str) -> None:
        """Note the content of the file that a text names, if it names one."""
        try:
            if 0 < len(text) < 4096 and os.path.isfile(text):
                self.contents.append(digest_of_files([Path(text)]).encode())
        except (OSError, ValueError):  # no name of a file, or one that may not be read
            return

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
