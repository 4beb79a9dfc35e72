"""Results as people look at them: objects with fields, which are mappings and draw in a notebook.

Other tools return them as a dict.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import fields
from html import escape
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

    def _repr_html_(self) -> str:
        rows = [(name, self[name]) for name in self]
        return html_table(("", type(self).__name__), [row for row in rows if is_short(row[1])])


def is_short(value: object) -> bool:
    """Tell whether a value reads in one cell of a table."""
    if isinstance(value, tuple):
        return len(value) <= 6 and all(isinstance(v, int | float | str) for v in value)
    return value is None or isinstance(value, int | float | str)


def html_table(names: Sequence[str], rows: Sequence[Sequence[object]]) -> str:
    """Return a table for a notebook.

    Examples
    --------
    >>> html_table(["a"], [["<b>"]])
    '<table><tr><th>a</th></tr><tr><td>&lt;b&gt;</td></tr></table>'
    """
    lines = [("th", names), *(("td", row) for row in rows)]
    cells = (
        "".join(f"<{tag}>{escape(_text(cell))}</{tag}>" for cell in line) for tag, line in lines
    )
    return f"<table>{''.join(f'<tr>{row}</tr>' for row in cells)}</table>"


def _text(value: object) -> str:
    return f"{value:.4g}" if isinstance(value, float) else str(value)
