"""The outbox: what a sink missed, one file per alert and sink, until it is told or too old."""

import json
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass, fields, replace
from logging import Logger
from typing import Any

from upath import UPath

from patchworks_core.files.records import mapping_of
from patchworks_core.files.storage import write_text

FIRST_WAIT, LONGEST_WAIT = 30.0, 3600.0
"""Seconds between the second and the third try, and between tries at most."""

KEPT_SECONDS = 7 * 86_400.0
"""What could not be told for so long is given up."""


@dataclass(frozen=True, slots=True)
class Letter:
    """A message for one sink."""

    sink: str
    """Name of the sink."""

    digest: str
    """Of the alert."""

    subject: str
    text: str

    written: float
    """When it was to be told first, seconds since 1970."""

    n_tries: int = 0
    """Tries that failed."""

    due: float = 0.0
    """When it is tried again."""

    @classmethod
    def of(cls, record: Mapping[str, Any]) -> "Letter":
        """Read what `asdict` gave; raise TypeError where it is of other fields or types."""
        letter = cls(**record)
        for field in fields(cls):
            value = getattr(letter, field.name)
            types = str if field.type is str else (int, float)
            if not isinstance(value, types):
                raise TypeError(f"its {field.name} must not be {value!r}")
        return letter

    def missed(self, now: float) -> "Letter":
        """Return it after a try that failed: due at the next tick, then ever more rarely."""
        wait = 0.0 if self.n_tries == 0 else FIRST_WAIT * 2 ** min(self.n_tries - 1, 20)
        return replace(self, n_tries=self.n_tries + 1, due=now + min(wait, LONGEST_WAIT))


@dataclass(frozen=True, slots=True)
class Outbox:
    """A folder of letters."""

    folder: UPath

    def letters(self, log: Logger) -> Iterator[Letter]:
        """Give all letters, the oldest first; what is no letter is removed."""
        letters = []
        for path in self._paths():
            try:
                letters.append(Letter.of(mapping_of(path.read_bytes()) or {}))
            except FileNotFoundError:  # told meanwhile
                continue
            except OSError as error:
                log.error(f"{path} is an alert that cannot be read, and is passed over: {error}")
            except TypeError as error:
                log.error(f"{path} is not an alert and is removed: {error}")
                path.unlink(missing_ok=True)
        yield from sorted(letters, key=lambda letter: letter.written)

    def keep(self, letter: Letter) -> None:
        """Write a letter; it replaces the one of the same alert and sink."""
        write_text(self._path(letter), json.dumps(asdict(letter)) + "\n")

    def remove(self, letter: Letter) -> None:
        """Remove a letter, where it was kept."""
        self._path(letter).unlink(missing_ok=True)

    def _path(self, letter: Letter) -> UPath:
        return self.folder / f"{letter.digest}-{letter.sink}.json"

    def _paths(self) -> list[UPath]:
        try:
            return [path for path in self.folder.iterdir() if path.name.endswith(".json")]
        except FileNotFoundError:
            return []
