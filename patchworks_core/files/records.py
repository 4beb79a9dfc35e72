"""Hidden records: small JSON files that say what lies beside them, never trusted blindly."""

from __future__ import annotations

import json
from hashlib import blake2b
from typing import Any

from upath import UPath

_SEAL = "digest"
"""Field of a sealed record; those of version 0.1.0 have none."""


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


def sealed(record: dict[str, Any]) -> dict[str, Any]:
    """Return a record with a digest of itself, so that no damage to it goes unseen.

    Examples
    --------
    >>> record = sealed({"sigma": 2.5})
    >>> unsealed(record), unsealed({**record, "sigma": 2.4}), unsealed({"made by": "0.1.0"})
    ({'sigma': 2.5}, None, {'made by': '0.1.0'})
    """
    return {**record, _SEAL: _digest(record)}


def unsealed(record: dict[str, Any] | None) -> dict[str, Any] | None:
    """Return what was sealed; None where that, or nothing, is no longer there. No seal is no fault.

    Notes
    -----
    A record is compared as JSON has it, so that its layout in the file does not matter.
    """
    if record is None or _SEAL not in record:
        return record
    content = {name: value for name, value in record.items() if name != _SEAL}
    return content if record[_SEAL] == _digest(content) else None


def _digest(record: dict[str, Any]) -> str:
    return blake2b(json.dumps(record, sort_keys=True).encode(), digest_size=8).hexdigest()
