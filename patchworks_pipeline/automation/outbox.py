"""The outbox: what a sink missed, one file per alert and sink, until it is told or too old."""

import json
from collections.abc import Iterator
from dataclasses import asdict, dataclass, replace
from logging import Logger

from upath import UPath

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
        found = []
        for path in self._paths():
            try:
                found.append(Letter(**json.loads(path.read_text())))
            except FileNotFoundError:  # told meanwhile
                continue
            except (ValueError, TypeError) as error:
                log.error(f"{path} is not an alert and is removed: {error}")
                path.unlink(missing_ok=True)
        yield from sorted(found, key=lambda letter: letter.written)

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
