"""Results that other tools return as a dict: objects with fields, which are mappings too."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import fields
from typing import Any


class Values(Mapping[str, Any]):
    """A dataclass whose fields and properties are found by name too: ``result["n_tiles"]``."""

    __slots__ = ()

    def __getitem__(self, name: str) -> Any:
        if name not in (names := list(self)):
            raise KeyError(f"{name!r} is not one of {', '.join(map(str, names))}")
        return getattr(self, name)

    def __iter__(self) -> Iterator[str]:
        yield from (field.name for field in fields(self))  # type: ignore[arg-type]
        for kind in type(self).__mro__:
            if issubclass(kind, Values):
                members = vars(kind).items()
                yield from (n for n, m in members if isinstance(m, property) and n[0] != "_")

    def __len__(self) -> int:
        return len(list(iter(self)))

    def __eq__(self, other: object) -> bool:  # a mapping's would compare arrays
        return self is other

    __hash__ = object.__hash__
