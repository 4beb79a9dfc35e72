"""Alerts: what went wrong, to e-mail and to a webhook; one message per image and cause.

A thousand tiles that fail of one cause are one message, and the same again within the quiet hours
is none. A sink that fails is logged and stops nobody.
"""

import json
import re
import smtplib
import ssl
import time
import urllib.request
from collections.abc import Sequence
from dataclasses import dataclass
from email.message import EmailMessage
from hashlib import blake2b
from logging import Logger
from typing import ClassVar
from urllib.parse import quote

from upath import UPath

from patchworks_core.files.storage import write_text
from patchworks_pipeline.partitions import tile_keys
from patchworks_pipeline.records import ImageFolder
from patchworks_pipeline.resources.settings import Deployed, setting

MAX_CAUSES = 5
"""Causes told of one image in one run; more are counted."""

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
        kind = json.dumps([self.image, kind_of(self.cause)])
        return blake2b(kind.encode(), digest_size=8).hexdigest()

    def text(self, base_url: str) -> str:
        """Return the message."""
        link = f"{base_url.rstrip('/')}{self.link}"
        return f"{self.subject}\n\n{self.cause[:MAX_CAUSE_LENGTH]}\n\n{link}\n"


def kind_of(cause: str) -> str:
    """Return a cause without its numbers.

    Examples
    --------
    >>> kind_of("tile (0, 3) of 12: out of memory")
    'tile (#, #) of #: out of memory'
    """
    return _VARYING.sub("#", cause.strip().split("\n", 1)[0])


def link_to_failed_tiles(folder: ImageFolder) -> str:
    """Return where the UI lists the failed tiles of an image."""
    keys = tile_keys(folder.key, folder.plan().grid.block_keys())
    tiles = quote(keys[0] if len(keys) == 1 else f"[{keys[0]}...{keys[-1]}]")
    return f"/assets/staged_labels?view=partitions&status=FAILED&default_range={tiles}"


def link_to_run(run_id: str) -> str:
    """Return where the UI shows a run."""
    return f"/runs/{run_id}"


def alerts_of_tiles(folder: ImageFolder) -> list[Alert]:
    """Return one alert per cause of the failed tiles of an image, the most frequent first."""
    if not folder.has("plan.json"):
        return []
    found: dict[str, list[str]] = {}
    for failure in folder.failures():
        cause = f"{failure.error_type}: {failure.message}"
        found.setdefault(kind_of(cause), []).append(cause)
    if not found:
        return []
    link = link_to_failed_tiles(folder)
    groups = sorted(found.values(), key=len, reverse=True)
    alerts = [Alert(folder.key, causes[0], link, len(causes)) for causes in groups[:MAX_CAUSES]]
    if len(groups) > MAX_CAUSES:
        n_tiles = sum(map(len, groups[MAX_CAUSES:]))
        cause = "tiles also failed of other causes; each is in the metadata of its partition"
        alerts.append(Alert(folder.key, cause, link, n_tiles))
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
        "http://127.0.0.1:3000", description="Address of the UI, for the links."
    )
    quiet_hours: float = setting(
        24.0, ge=0, description="The same cause for the same image is told once in so long."
    )
    timeout_seconds: float = setting(10.0, gt=0, description="For a sink to take what it is told.")

    def send(self, alerts: Sequence[Alert], *, memory: UPath, log: Logger) -> int:
        """Tell of what was not told of lately.

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
        told = {
            digest: when
            for digest, when in _read_memory(memory).items()
            if now - when < self.quiet_hours * 3600
        }
        n_sent = 0
        for alert in alerts:
            if alert.digest in told:
                continue
            log.warning(alert.text(self.base_url))
            if self._deliver(alert, log):
                told[alert.digest] = now
                n_sent += 1
        if n_sent:
            write_text(memory, json.dumps(told, indent=0) + "\n")
        return n_sent

    def _deliver(self, alert: Alert, log: Logger) -> bool:
        """Give an alert to every sink; True where one took it, or there is none."""
        sinks = []
        if self.smtp_host and self.email_to:
            sinks.append(self._mail)
        if self.webhook_url:
            sinks.append(self._post)
        n_failed = 0
        for sink in sinks:
            try:
                sink(alert)
            # HTTP, SMTP and TLS errors are OSErrors; ValueError is an address that is none.
            except (OSError, ValueError) as error:
                n_failed += 1
                log.error(f"an alert could not be sent: {type(error).__name__}: {error}")
        return n_failed < len(sinks) or not sinks

    def _mail(self, alert: Alert) -> None:
        message = EmailMessage()
        message["Subject"] = alert.subject
        message["From"] = self.email_from
        message["To"] = ", ".join(self.email_to)
        message.set_content(alert.text(self.base_url))
        with smtplib.SMTP(self.smtp_host, self.smtp_port, timeout=self.timeout_seconds) as server:
            if self.smtp_starttls:
                server.starttls(context=ssl.create_default_context())
            if self.smtp_user:
                server.login(self.smtp_user, self.smtp_password)
            server.send_message(message)

    def _post(self, alert: Alert) -> None:
        request = urllib.request.Request(
            self.webhook_url,
            data=json.dumps({"text": alert.text(self.base_url)}).encode(),
            headers={"Content-Type": "application/json"},
        )
        with urllib.request.urlopen(request, timeout=self.timeout_seconds) as answer:
            answer.read()


def _read_memory(memory: UPath) -> dict[str, float]:
    """Return what was told when; nothing where the file is not there, or damaged."""
    try:
        return {str(digest): float(when) for digest, when in json.loads(memory.read_text()).items()}
    except (FileNotFoundError, ValueError, TypeError, AttributeError):
        return {}
