"""Alerts: what went wrong, to e-mail and to a webhook; one message per image and cause.

A thousand tiles that fail of one cause are one message, and the same again within the quiet hours
is none. A sink that fails is logged and stops nobody, and is told again what it missed (`outbox`).
"""

import json
import os
import re
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from hashlib import blake2b
from logging import Logger
from typing import ClassVar
from urllib.parse import quote

from upath import UPath

from patchworks_core.files.records import read_mapping
from patchworks_core.files.storage import write_text
from patchworks_pipeline.automation.outbox import KEPT_SECONDS, Letter, Outbox
from patchworks_pipeline.automation.sinks import MailSink, Message, WebhookSink, tell
from patchworks_pipeline.image_faults import ImageFaults
from patchworks_pipeline.lineage import Lineage
from patchworks_pipeline.partitions import tile_keys
from patchworks_pipeline.records import ImageFolder
from patchworks_pipeline.resources.resources import LabelStore
from patchworks_pipeline.resources.settings import Deployed, setting

ADDRESS_VARIABLE = "PATCHWORKS_UI"
"""Where `patchworks ui` serves the UI; set by it for what it starts."""

USUAL_ADDRESS = "http://127.0.0.1:3000"
"""Of a webserver that was started with no other port."""

MAX_CAUSES = 5
"""Causes told of one image in one run; more are counted."""

MISSED = ".alerts.missed"
"""Folder beside the memory of what was told, with what sinks missed."""

MAX_CAUSE_LENGTH = 1000
"""Characters of a cause."""

_VARYING = re.compile(r"0x[0-9a-fA-F]+|\d+")


@dataclass(frozen=True, slots=True)
class Alert:
    """What went wrong with one image, of one cause."""

    image: str
    """Partition key; empty where no image is concerned."""

    cause: str
    """In words."""

    link: str
    """Where in the UI to look, below its address."""

    n_tiles: int = 0
    """Failed tiles; 0 where it is not about tiles."""

    @property
    def subject(self) -> str:
        """One line."""
        about = f"image {self.image}" if self.image else "a run"
        tiles = f", {self.n_tiles} failed tiles" if self.n_tiles else ""
        return f"patchworks: {about} needs attention{tiles}"

    @property
    def digest(self) -> str:
        """Of image and cause; numbers in the cause do not count, for they name tiles and times."""
        kind = json.dumps([self.image, without_numbers(self.cause)])
        return blake2b(kind.encode(), digest_size=8).hexdigest()

    def text(self, base_url: str) -> str:
        """Return the message."""
        link = f"{base_url.rstrip('/')}{self.link}"
        return f"{self.subject}\n\n{self.cause[:MAX_CAUSE_LENGTH]}\n\n{link}\n"


def without_numbers(cause: str) -> str:
    """Return a cause without its numbers.

    Examples
    --------
    >>> without_numbers("tile (0, 3) of 12: out of memory")
    'tile (#, #) of #: out of memory'
    """
    return _VARYING.sub("#", cause.strip().split("\n", 1)[0])


def link_to_failed_tiles(lineage: Lineage, folder: ImageFolder) -> str:
    """Return where the UI lists the failed tiles of an image."""
    keys = tile_keys(folder.key, folder.plan().grid.block_keys())
    tiles = quote(keys[0] if len(keys) == 1 else f"[{keys[0]}...{keys[-1]}]")
    asset = lineage.link("staged_labels")
    return f"{asset}?view=partitions&status=FAILED&default_range={tiles}"


def link_to_run(run_id: str) -> str:
    """Return where the UI shows a run."""
    return f"/runs/{run_id}"


def alerts_of_tiles(lineage: Lineage, folder: ImageFolder) -> list[Alert]:
    """Return one alert per cause of the failed tiles of an image, the most frequent first."""
    if not folder.has("plan.json"):
        return []
    by_kind: dict[str, list[str]] = {}
    for failure in folder.failures():
        cause = f"{failure.error_type}: {failure.message}"
        by_kind.setdefault(without_numbers(cause), []).append(cause)
    if not by_kind:
        return []
    link = link_to_failed_tiles(lineage, folder)
    groups = sorted(by_kind.values(), key=len, reverse=True)
    alerts = [Alert(folder.title, causes[0], link, len(causes)) for causes in groups[:MAX_CAUSES]]
    if len(groups) > MAX_CAUSES:
        n_tiles = sum(map(len, groups[MAX_CAUSES:]))
        cause = "tiles also failed of other causes; each is in the metadata of its partition"
        alerts.append(Alert(folder.title, cause, link, n_tiles))
    return alerts


class Alerts(Deployed):
    """Who is told when something fails; without an address and a webhook, nobody is."""

    section: ClassVar[str] = "alerts"

    smtp_host: str = setting("", description="Mail server; empty: no e-mail.")
    smtp_port: int = setting(25, ge=1, le=65_535, description="Of the mail server.")
    smtp_starttls: bool = setting(False, description="True encrypts before anything is said.")
    smtp_user: str = setting("", description="Empty: no login.")
    smtp_password: str = setting(
        "", is_secret=True, description="Give it as an environment variable."
    )
    email_from: str = setting("patchworks@localhost", description="Address of the sender.")
    email_to: list[str] = setting([], description="Addresses; none: no e-mail.")
    webhook_url: str = setting(
        "", is_secret=True, description='Gets {"text": ...} by POST, as Slack does; empty: none.'
    )
    base_url: str = setting(
        "",
        description="Address of the UI, for the links. Empty: where `patchworks ui` serves it, or "
        f"{USUAL_ADDRESS}.",
    )
    quiet_hours: float = setting(
        24.0, ge=0, description="The same cause for the same image is told once in so long."
    )
    timeout_seconds: float = setting(10.0, gt=0, description="For a sink to take what it is told.")

    @property
    def address(self) -> str:
        """Where links lead to."""
        return self.base_url or os.environ.get(ADDRESS_VARIABLE) or USUAL_ADDRESS

    def sinks(self) -> list[MailSink | WebhookSink]:
        """Return who is to be told."""
        sinks: list[MailSink | WebhookSink] = []
        if self.smtp_host and self.email_to:
            server = (self.smtp_host, self.smtp_port, self.smtp_starttls)
            login = (self.smtp_user, self.smtp_password)
            sinks.append(MailSink(*server, *login, self.email_from, tuple(self.email_to)))
        if self.webhook_url:
            sinks.append(WebhookSink(self.webhook_url))
        return sinks

    def send(self, alerts: Sequence[Alert], *, memory: UPath, log: Logger) -> int:
        """Tell of what was not told of lately, and of what a sink missed before.

        No sink stops another one or the caller: each has `timeout_seconds` for all it is told, and
        what it did not take is kept beside `memory` for the next call.

        Parameters
        ----------
        alerts : sequence of Alert
        memory : UPath
            File that remembers what was told when.
        log : Logger
            Is told of sinks that fail.

        Returns
        -------
        int
            How many alerts reached a sink, or are in the log where there is none.
        """
        now = time.time()
        remembered = {
            digest: when
            for digest, when in _read_memory(memory).items()
            if 0 <= now - when < self.quiet_hours * 3600  # of later is of another clock
        }
        new: dict[str, Alert] = {}
        for alert in alerts:
            if alert.digest not in remembered and alert.digest not in new:
                log.warning(alert.text(self.address))
                new[alert.digest] = alert
        sinks, reached = self.sinks(), set()
        outbox = Outbox(memory.parent / MISSED)
        missed = _still_wanted(outbox, now, log)
        for sink in sinks:
            letters = [
                letter for letter in missed if letter.sink == sink.name and letter.due <= now
            ]
            letters += [
                Letter(sink.name, digest, alert.subject, alert.text(self.address), now)
                for digest, alert in new.items()
            ]
            reached |= self._deliver(sink, letters, outbox, now, log)
        if new:
            with _logged(log):
                write_text(
                    memory, json.dumps(remembered | dict.fromkeys(new, now), indent=0) + "\n"
                )
        return len(reached) if sinks else len(new)

    def _deliver(
        self,
        sink: MailSink | WebhookSink,
        letters: Sequence[Letter],
        outbox: Outbox,
        now: float,
        log: Logger,
    ) -> set[str]:
        """Give letters to a sink, keep those it did not take; return the alerts of the others."""
        if not letters:
            return set()
        messages = [Message(letter.subject, letter.text) for letter in letters]
        outcomes = tell(sink, messages, timeout_seconds=self.timeout_seconds)
        delivered = set()
        for letter, outcome in zip(letters, outcomes, strict=True):
            if outcome.is_taken:
                delivered.add(letter.digest)
            with _logged(log):
                if outcome.is_taken:
                    outbox.remove(letter)
                else:
                    outbox.keep(letter.missed(now))
        reasons = [delivery.reason for delivery in outcomes if not delivery.is_taken]
        for reason in dict.fromkeys(reasons):
            n = f"{reasons.count(reason)} alerts" if reasons.count(reason) > 1 else "an alert"
            log.error(f"{n} could not be sent to {sink.name}: {reason}; sent again later")
        for problem in filter(
            None, (delivery.reason for delivery in outcomes if delivery.is_taken)
        ):
            log.error(f"{sink.name} took an alert, but {problem}")
        return delivered


MEMORY = ".alerts.json"
"""File in the label store that remembers what was told when."""


def tell_of_lasting(
    faults: ImageFaults,
    before: object,
    lineage: Lineage,
    alerts: Alerts,
    store: LabelStore,
    log: Logger,
) -> None:
    """Tell of what is wrong with single images and was wrong so at the last look already.

    What is being written at this moment is none of these.
    """
    earlier = before if isinstance(before, dict) else {}
    lasting = [name for name, why in faults.found.items() if earlier.get(name) == why]
    if lasting:
        alarms = [Alert(name, faults.found[name], lineage.link("image")) for name in lasting]
        alerts.send(alarms, memory=store.path() / MEMORY, log=log)


@contextmanager
def _logged(log: Logger) -> Iterator[None]:
    """Log that the store cannot be read or written, and go on: people are told none the less."""
    try:
        yield
    except OSError as error:
        log.error(f"what was told, and what was missed, cannot be kept in the store: {error}")


def _still_wanted(outbox: Outbox, now: float, log: Logger) -> list[Letter]:
    """Return what is kept; remove what could not be told for too long."""
    letters: list[Letter] = []
    with _logged(log):
        for letter in outbox.letters(log):
            if now - letter.written < KEPT_SECONDS:
                letters.append(letter)
                continue
            log.error(f"{letter.sink} could not be told for days; given up: {letter.subject}")
            outbox.remove(letter)
    return letters


def _read_memory(memory: UPath) -> dict[str, float]:
    """Return what was told when; nothing where the file cannot be read."""
    try:
        record = read_mapping(memory) or {}
        return {str(digest): float(when) for digest, when in record.items()}
    except (OSError, ValueError, TypeError):
        return {}
