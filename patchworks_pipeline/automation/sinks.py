"""Sinks: where alerts go outside, a mail server and a webhook; told by a process of its own.

What is at the other end may hang in the middle of a line, send a byte every few seconds, or be no
server of its kind. A time-out of a socket bounds each wait and not their sum, and none bounds the
look-up of a name. So a process does the talking, and is ended when its time is up::

    tell(sink, messages, timeout) --> this file as a script: one line per message that was taken,
                                      or refused --> how each message fared

The script imports the standard library alone, so that it starts in a moment.
"""

import json
import smtplib
import ssl
import subprocess
import sys
import urllib.request
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from email.message import EmailMessage
from http.client import HTTPException, InvalidURL
from typing import Any, ClassVar
from urllib.error import HTTPError


@dataclass(frozen=True, slots=True)
class Message:
    """What a sink is told."""

    subject: str
    """One line."""

    text: str
    """All of it, the subject too."""


@dataclass(frozen=True, slots=True)
class Delivery:
    """How a message fared."""

    is_taken: bool
    """True where the sink has it."""

    reason: str | None = None
    """Why it has not, or what the sink said; None where there is nothing to say."""


Taken = Callable[[str | None], None]
"""Called with what the sink said, or None, as soon as it has the message."""


@dataclass(frozen=True, slots=True)
class MailSink:
    """A mail server."""

    name: ClassVar[str] = "mail"

    host: str
    port: int
    starttls: bool
    user: str
    password: str
    sender: str
    recipients: tuple[str, ...]

    def send(self, message: Message, timeout_seconds: float, taken: Taken) -> None:
        """Give a message to the server."""
        mail = EmailMessage()
        mail["Subject"] = message.subject
        mail["From"] = self.sender
        mail["To"] = ", ".join(self.recipients)
        mail.set_content(message.text)
        with smtplib.SMTP(self.host, self.port, timeout=timeout_seconds) as server:
            if self.starttls:
                server.starttls(context=ssl.create_default_context())
            if self.user:
                server.login(self.user, self.password)
            refused = server.send_message(mail)
            taken(f"some recipients were refused: {refused!r}" if refused else None)


@dataclass(frozen=True, slots=True)
class WebhookSink:
    """An address that takes ``{"text": ...}`` by POST, as Slack does."""

    name: ClassVar[str] = "webhook"

    url: str

    def send(self, message: Message, timeout_seconds: float, taken: Taken) -> None:
        """Post a message; what is answered beyond the status does not matter."""
        if not self.url.startswith(("http://", "https://")):
            raise ValueError("the address must begin with http:// or https://")
        request = urllib.request.Request(
            self.url,
            data=json.dumps({"text": message.text}).encode(),
            headers={"Content-Type": "application/json"},
        )
        try:
            with urllib.request.build_opener(_Stay).open(request, timeout=timeout_seconds):
                taken(None)
        except InvalidURL:  # its words show the address, which is a secret
            raise ValueError("the address is not one of the web") from None


class _Stay(urllib.request.HTTPRedirectHandler):
    """Follows no redirection: a POST that is redirected becomes a GET, and its message is lost."""

    def redirect_request(self, *_: Any) -> None:
        """Return no request, which makes the answer an error."""


SINKS: tuple[type[MailSink] | type[WebhookSink], ...] = (MailSink, WebhookSink)

# The sink spoke as one of its kind, and refused this message; it may take the next.
_ANSWERS = (HTTPError, smtplib.SMTPResponseException, smtplib.SMTPRecipientsRefused)

# Errors of SMTP and of TLS are OSErrors.
_FAULTS = (OSError, ValueError, HTTPException)


def tell(
    sink: MailSink | WebhookSink, messages: Sequence[Message], *, timeout_seconds: float
) -> list[Delivery]:
    """Give messages to a sink, in no more time than this for all; no fault of a sink is raised.

    Returns
    -------
    list of Delivery
        One per message. After a fault that is not about the message the others are not tried.
    """
    request = {
        "name": sink.name,
        "sink": asdict(sink),
        "messages": [asdict(message) for message in messages],
        "timeout_seconds": timeout_seconds,
    }
    reason: str | None = f"it did not take it within {timeout_seconds:g} s"
    try:
        # What is secret goes through the pipe: arguments are seen by everybody on the machine.
        ended = subprocess.run(
            [sys.executable, "-P", __file__],
            input=json.dumps(request).encode(),
            capture_output=True,
            timeout=timeout_seconds,
            check=False,
        )
        lines = ended.stdout
        last = ended.stderr.decode(errors="replace").strip().rpartition("\n")[2]
        reason = f"the process that talks to it ended with code {ended.returncode}: {last}"
    except subprocess.TimeoutExpired as error:
        lines = error.stdout or b""
    except OSError as error:
        lines, reason = b"", f"no process could be started to talk to it: {error}"
    whole = [line for line in lines.splitlines(keepends=True) if line.endswith(b"\n")]
    deliveries = [Delivery(**json.loads(line)) for line in whole]
    if deliveries and not deliveries[-1].is_taken:
        reason = deliveries[-1].reason
    return [*deliveries, *[Delivery(False, reason)] * (len(messages) - len(deliveries))]


def main() -> None:
    """Send what is asked for on the standard input; print a line for each that fared."""
    request = json.load(sys.stdin)
    (kind,) = [message for message in SINKS if message.name == request["name"]]
    sink = kind(**request["sink"])
    for message in request["messages"]:
        reasons: list[str | None] = []

        def taken(reason: str | None, reasons: list[str | None] = reasons) -> None:
            reasons.append(reason)
            # At once: a sink may hang while it is taken leave of, and has the message.
            print(json.dumps(asdict(Delivery(True, reason))), flush=True)

        try:
            sink.send(Message(**message), request["timeout_seconds"], taken)
        except _FAULTS as error:
            if not reasons:
                print(json.dumps(asdict(Delivery(False, _words(error)))), flush=True)
            if not reasons and not isinstance(error, _ANSWERS):
                return


def _words(error: Exception) -> str:
    """Return what a sink did wrong, in words."""
    if isinstance(error, HTTPError) and 300 <= error.code < 400:
        return f"it answered {error.code}, a redirection; give the address that it points to"
    return f"{type(error).__name__}: {error}"


if __name__ == "__main__":
    main()
