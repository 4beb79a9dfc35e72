"""Hidden records: small JSON files that say what lies beside them, never trusted blindly."""

from __future__ import annotations

import json
from typing import Any

from upath import UPath


def mapping_of(text: str | bytes) -> dict[str, Any] | None:
    """Return the mapping that a JSON text holds; None where it is damaged or holds anything else.

    Examples
    --------
    >>> mapping_of('{"a": 1}'), mapping_of("[1]"), mapping_of('{"a": ')
    ({'a': 1}, None, None)
    """
    try:
        value = json.loads(text)
    except (ValueError, RecursionError):  # no JSON, or no UTF-8
        return None
    return value if isinstance(value, dict) else None


def read_mapping(path: UPath) -> dict[str, Any] | None:
    """Return the mapping in a JSON file; None where there is no file, or no mapping in it."""
    try:
        return mapping_of(path.read_bytes())
    except (FileNotFoundError, NotADirectoryError, IsADirectoryError):
        return None
